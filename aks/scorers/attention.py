"""Self-attention of BLIP's and BLIP-2's vision transformers by PyTorch's fused kernels.

transformers computes it step by step and writes (n, heads, 577, 577) attention weights to memory, which on a
GPU takes longer than the matrix products. Only GPUs use this: on a CPU the gain is small, and the
step-by-step form keeps the original's order of sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


class FusedAttention(torch.nn.Module):
    """Replaces a ``BlipAttention`` or ``Blip2Attention`` and keeps its weights."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.qkv, self.projection = attention.qkv, attention.projection
        self.num_heads = attention.num_heads

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        """(n, tokens, width) to the same shape; attention weights are not returned."""
        batch, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).view(batch, length, 3, self.num_heads, width // self.num_heads)
        context = scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
        return self.projection(context.transpose(1, 2).reshape(batch, length, width)), None


def fuse_attention(vision_model: Any) -> None:
    """Replace the self-attention of every layer of a vision transformer, in place."""
    for layer in vision_model.encoder.layers:
        layer.self_attn = FusedAttention(layer.self_attn)
