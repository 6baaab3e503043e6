"""The transformer block of the audio towers written here, CED and ImageBind; they differ in their attention."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PreNormBlock(nn.Module):
    """Attention, then two layers with a GELU between them, each behind a norm and added to what came in.

    Args:
        attention: (B, N, C) to (B, N, C).
        width: C.
    """

    def __init__(self, attention: nn.Module, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) tokens to (B, N, C)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]
