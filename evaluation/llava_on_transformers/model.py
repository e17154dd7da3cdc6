"""LLaVA over Qwen2: SigLIP's features of frames and pictures among the words' embeddings.

    pixels -> SigLIP, without its last layer -> projector -> 27 x 27 features a picture
    of a video: 2 x 2 features to one (14 x 14 a frame), with newline features between them

A video of n frames is n x 210 tokens with ``grid`` (LLaVA-Video: a newline after each of 14 rows), n x 197
with ``frame``, n x 196 + 1 with ``one_token`` (LLaVA-OneVision) and n x 196 with ``no_token``. The modules
have the names that lmms-lab's checkpoints give to their weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipVisionEmbeddings

from evaluation.errors import EvaluationError
from evaluation.llava_on_transformers.config import SIDE, max_tiles
from evaluation.llava_on_transformers.pictures import crop_padding, tile_grid
from evaluation.llava_on_transformers.prompts import IMAGE_TOKEN_INDEX

STRIDE = 2  # LLaVA-NeXT halves a frame's height and width, whatever mm_spatial_pool_stride says


class LlavaQwenConfig(Qwen2Config):
    """Qwen2's configuration with LLaVA's entries beside it."""

    model_type = "llava_qwen"


class VisionTower(nn.Module):
    """SigLIP's vision transformer without its last layer, without the norm and the head that follow it."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        """Make its modules under the checkpoints' names."""
        super().__init__()
        parts = {"embeddings": SiglipVisionEmbeddings(config), "encoder": SiglipEncoder(config)}
        self.vision_tower = nn.ModuleDict({"vision_model": nn.ModuleDict(parts)})

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, 384, 384) to features (n, 729, width)."""
        parts = self.vision_tower["vision_model"]
        # The encoder alone: of a whole SigLIP, versions of transformers disagree which hidden state is last.
        return parts["encoder"](inputs_embeds=parts["embeddings"](pixels)).last_hidden_state


class LlavaQwenForCausalLM(Qwen2ForCausalLM):
    """Answers prompts with frames or pictures, one at a time."""

    config_class = LlavaQwenConfig
    _no_split_modules = ["Qwen2DecoderLayer", "VisionTower"]  # noqa: RUF012 - transformers' own declaration

    def __init__(self, config: LlavaQwenConfig, tower_config: SiglipVisionConfig) -> None:
        """Make the modules, whose weights are loaded later.

        Args:
            config: the language model's, with LLaVA's entries.
            tower_config: the vision tower's.
        """
        super().__init__(config)
        self.model.vision_tower = VisionTower(tower_config)
        self.model.mm_projector = nn.Sequential(
            nn.Linear(tower_config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        self.model.image_newline = nn.Parameter(torch.empty(config.hidden_size))

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor,
        images: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        modalities: str | Sequence[str] = "image",
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Generate an answer.

        Args:
            inputs: the prompt's token ids, (1, length), with a placeholder for each picture or video.
            images: pixels as for :meth:`embed`.
            image_sizes: width and height of each picture that has tiles.
            modalities: ``video`` or ``image`` of each of the images.
            attention_mask: (1, length); tokens where it is 0 are left out.
            options: of transformers' ``generate``.

        Returns:
            The new tokens' ids alone, (1, length).
        """
        if inputs.shape[0] != 1:
            raise EvaluationError(
                f"{inputs.shape[0]} prompts at once; LLaVA answers one at a time: --batch_size 1"
            )
        ids = inputs[0] if attention_mask is None else inputs[0][attention_mask[0].bool()]
        embeddings = self.embed(ids, images, image_sizes, modalities)[None]
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        if not options.get("do_sample", self.generation_config.do_sample):
            # transformers warns of settings of sampling that are not used; the checkpoints have some.
            options |= {"temperature": None, "top_p": None, "top_k": None}
        return super().generate(inputs_embeds=embeddings, attention_mask=mask, **options)

    def embed(
        self,
        ids: torch.Tensor,
        images: torch.Tensor | Sequence[torch.Tensor] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        modalities: str | Sequence[str] = "image",
    ) -> torch.Tensor:
        """A prompt's embeddings, (tokens, width), with the images' features at their placeholders.

        Args:
            ids: token ids, (length,).
            images: (n, 3, 384, 384): n pictures. A list, or five dimensions: each entry is a video's frames,
                or the whole and the tiles of a picture.
            image_sizes: as for :meth:`generate`.
            modalities: as for :meth:`generate`.

        Raises:
            EvaluationError: the placeholders are not as many as the images, or the prompt is too long.
        """
        features = [] if images is None else self.encode(images, image_sizes, modalities)
        placeholders = torch.nonzero(ids == IMAGE_TOKEN_INDEX).flatten().tolist()
        if len(placeholders) != len(features):
            raise EvaluationError(
                f"the prompt has {len(placeholders)} <image> for {len(features)} videos or pictures; "
                "remove <image> from the question's text"
            )
        words = self.get_input_embeddings()(ids[ids != IMAGE_TOKEN_INDEX])
        parts, start = [], 0
        for index, (position, image) in enumerate(zip(placeholders, features, strict=True)):
            end = position - index  # among the words alone
            parts += [words[start:end], image.to(words.device)]
            start = end
        embeddings = torch.cat([*parts, words[start:]])
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        if limit is not None and len(embeddings) > limit:
            # LLaVA-NeXT cuts the end off, which is the question.
            raise EvaluationError(
                f"the prompt has {len(embeddings)} tokens with its pictures, the checkpoint reads {limit} "
                "(tokenizer_model_max_length in config.json); show fewer frames"
            )
        return embeddings

    def encode(
        self,
        images: torch.Tensor | Sequence[torch.Tensor],
        image_sizes: Sequence[tuple[int, int]] | None = None,
        modalities: str | Sequence[str] = "image",
    ) -> list[torch.Tensor]:
        """Features of each image, (tokens, width); arguments as for :meth:`embed`."""
        if isinstance(images, torch.Tensor) and images.ndim == 4:  # pictures padded to squares
            return list(self._project(images))
        kinds = [modalities] if isinstance(modalities, str) else list(modalities)
        kinds += ["image"] * (len(images) - len(kinds))
        encoded = self._project(torch.cat(list(images))).split([len(pixels) for pixels in images])
        return [
            self._video_tokens(features)
            if kind == "video"
            else self._tiled_tokens(features, image_sizes[index])
            for index, (kind, features) in enumerate(zip(kinds, encoded, strict=True))
        ]

    def _project(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (n, 3, 384, 384) to features in the language model's width, (n, 729, width)."""
        tower = self.model.vision_tower
        weight = next(tower.parameters())
        return self.model.mm_projector(tower(pixels.to(weight.device, weight.dtype)))

    def _video_tokens(self, features: torch.Tensor) -> torch.Tensor:
        """A video's features (frames, 729, width) to tokens, frame after frame and row after row."""
        pooled = pool(
            features.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2), self.config.mm_spatial_pool_mode
        )
        rows = pooled.permute(0, 2, 3, 1)  # frames, rows, columns, width
        frames, height, _, width = rows.shape
        newline = self.model.image_newline.to(rows.device)
        position = getattr(self.config, "mm_newline_position", None) or "one_token"
        if position == "grid":
            return torch.cat([rows, newline.expand(frames, height, 1, width)], dim=2).flatten(0, 2)
        if position == "frame":
            return torch.cat([rows.flatten(1, 2), newline.expand(frames, 1, width)], dim=1).flatten(0, 1)
        tokens = rows.flatten(0, 2)
        return torch.cat([tokens, newline[None]]) if position == "one_token" else tokens

    def _tiled_tokens(self, features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Features of a picture and its tiles (1 + tiles, 729, width) to tokens: the whole, then the rows.

        Args:
            features: of the whole picture, then of its tiles row by row.
            size: the picture's width and height in pixels.
        """
        whole, tiles = features[0], features[1:]
        columns, rows = tile_grid(size, self.config.image_grid_pinpoints)
        tiles = tiles.view(rows, columns, SIDE, SIDE, -1).permute(4, 0, 2, 1, 3)
        joined = crop_padding(tiles.flatten(1, 2).flatten(2, 3), size)
        if most := max_tiles(self.config.image_aspect_ratio):
            _, height, width = joined.shape
            excess = math.sqrt(height * width / (most * SIDE**2))
            if excess > 1.1:
                smaller = (int(height // excess), int(width // excess))
                joined = functional.interpolate(joined[None], smaller, mode="bilinear")[0]
        newline = self.model.image_newline.to(joined.device)
        ended = torch.cat([joined, newline[:, None, None].expand(-1, joined.shape[1], 1)], dim=2)
        return torch.cat([whole, ended.flatten(1, 2).T])


def pool(features: torch.Tensor, mode: str) -> torch.Tensor:
    """Features (n, width, 27, 27) of half the height and width: 14 x 14 with ``bilinear``, else 13 x 13.

    Args:
        features: of frames.
        mode: ``bilinear``, ``average`` or ``max``.
    """
    features = features.contiguous()
    if mode == "average":
        return functional.avg_pool2d(features, STRIDE)
    if mode == "max":
        return functional.max_pool2d(features, STRIDE)
    half = math.ceil(SIDE / STRIDE)
    return functional.interpolate(features, size=(half, half), mode="bilinear")
