import torch


class KeywordsStoppingCriteria:
    """LLaVA-NeXT's criterion fails for keywords of several tokens; nothing here may use it."""

    def __init__(self, *arguments):
        raise AssertionError("the plug-in brings its own stopping criterion")


def get_model_name_from_path(path):
    return path.rstrip("/").rsplit("/", 1)[-1]


def process_images(images, image_processor, config):
    return image_processor.preprocess(images, return_tensors="pt")["pixel_values"]


def tokenizer_image_token(prompt, tokenizer, image_token_index, return_tensors):
    """Token ids of a prompt, with the image's index where it says <image>."""
    assert return_tensors == "pt"
    before, *parts = (tokenizer(part).input_ids for part in prompt.split("<image>"))
    return torch.tensor(before + [token for part in parts for token in (image_token_index, *part)])
