"""A small random LLaVA-OneVision in the layout of transformers' checkpoints."""

from __future__ import annotations

from pathlib import Path

import transformers
from evaluation_setup import write_byte_tokenizer
from model_setup import randomise

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
IMAGE_SIZE, PATCH_SIZE = 112, 28
# As the published template: images, videos, then all text, whatever their order in the message.
CHAT_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }} \
{% for part in message.content | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}\
{% for part in message.content | selectattr('type', 'equalto', 'video') %}<video>{% endfor %}\
{% for part in message.content | selectattr('type', 'equalto', 'text') %}{{ '\\n' + part.text }}{% endfor %}\
<|im_end|>{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def save_tiny_onevision(folder: Path) -> Path:
    """Two layers, a token a byte, images of 112 x 112 pixels."""
    folder.mkdir(parents=True)
    write_byte_tokenizer(folder, SPECIAL_TOKENS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = transformers.LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **size,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config={
            "model_type": "qwen2",
            **size,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "eos_token_id": end,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
    )
    model = transformers.LlavaOnevisionForConditionalGeneration(config)
    randomise(model)
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    model.save_pretrained(folder)
    pixels = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=pixels, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=pixels),
        num_image_tokens=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder
