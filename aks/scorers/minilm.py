"""The sentence encoder all-MiniLM-L6-v2: six layers of BERT, whose token vectors are averaged and normalized.

It is built from PyTorch's own layers, because importing transformers takes longer than all else that the
conse scorer does before its first frame, and imports torchvision.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

MAX_TOKENS = 256
BATCH_SIZE = 64
# PyTorch's names of a layer's parameters, and BERT's.
LAYER_NAMES = {
    "self_attn.in_proj_": ("attention.self.query.", "attention.self.key.", "attention.self.value."),
    "self_attn.out_proj.": ("attention.output.dense.",),
    "norm1.": ("attention.output.LayerNorm.",),
    "linear1.": ("intermediate.dense.",),
    "linear2.": ("output.dense.",),
    "norm2.": ("output.LayerNorm.",),
}


class SentenceEncoder(nn.Module):
    """Texts to embeddings (n, 384) float32."""

    def __init__(self, folder: Path) -> None:
        """Read ``config.json``, ``tokenizer.json`` and ``model.safetensors`` of a BERT checkpoint."""
        super().__init__()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()  # forward() pads to the longest text of a batch
        self._words = nn.Embedding.from_pretrained(weights["embeddings.word_embeddings.weight"])
        # Every text is one segment, so the first row of the segments' embeddings belongs to every token.
        self._positions = nn.Embedding.from_pretrained(
            weights["embeddings.position_embeddings.weight"]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        eps = config["layer_norm_eps"]
        self._norm = nn.LayerNorm(config["hidden_size"], eps=eps)
        for kind in ("weight", "bias"):
            getattr(self._norm, kind).data = weights[f"embeddings.LayerNorm.{kind}"]
        layer = nn.TransformerEncoderLayer(
            config["hidden_size"],
            config["num_attention_heads"],
            config["intermediate_size"],
            activation=config["hidden_act"],
            layer_norm_eps=eps,
            batch_first=True,
        )
        self._layers = nn.TransformerEncoder(layer, config["num_hidden_layers"], enable_nested_tensor=False)
        self._layers.load_state_dict(
            {
                f"layers.{index}.{name}{kind}": torch.cat(
                    [weights[f"encoder.layer.{index}.{part}{kind}"] for part in parts]
                )
                for index in range(config["num_hidden_layers"])
                for name, parts in LAYER_NAMES.items()
                for kind in ("weight", "bias")
            }
        )
        self.eval().requires_grad_(False)

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, cut to 256."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    @torch.inference_mode()
    def forward(self, tokens: list[list[int]]) -> torch.Tensor:
        """Token ids of n texts to normalized embeddings (n, 384)."""
        weight = self._words.weight
        embeddings = torch.empty(len(tokens), weight.shape[1], device=weight.device)
        # Texts of similar length share a batch, so that it holds little padding.
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        for start in range(0, len(tokens), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            ids = nn.utils.rnn.pad_sequence(
                [torch.tensor(tokens[index], device=weight.device) for index in batch], batch_first=True
            )
            padding = torch.arange(ids.shape[1], device=weight.device) >= torch.tensor(
                [[len(tokens[index])] for index in batch], device=weight.device
            )
            states = self._norm(self._words(ids) + self._positions.weight[: ids.shape[1]])
            states = self._layers(states, src_key_padding_mask=padding)
            mask = ~padding.unsqueeze(-1)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            embeddings[batch] = nn.functional.normalize(mean, dim=1)
        return embeddings
