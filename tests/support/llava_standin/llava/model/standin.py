import numpy as np
import torch


class StandIn(torch.nn.Module):
    """Generates "A", the end of the turn, and more, unless a stopping criterion ends it there."""

    def __init__(self, config, tokenizer):
        super().__init__()
        self.config = config
        self._tokens = tokenizer("A<|im_end|> is not all that could be said").input_ids

    def tie_weights(self):
        pass

    def generate(self, inputs, images, stopping_criteria=(), max_new_tokens=20, **arguments):
        for count in range(1, min(max_new_tokens, len(self._tokens)) + 1):
            so_far = torch.tensor([self._tokens[:count]])
            if any(stops(so_far, None) for stops in stopping_criteria):
                break
        return so_far


class ImageProcessor:
    """Pixels from -1 to 1, channels first, in their own size."""

    def preprocess(self, images, return_tensors):
        assert return_tensors == "pt"
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        return {"pixel_values": pixels.permute(0, 3, 1, 2) / 127.5 - 1}
