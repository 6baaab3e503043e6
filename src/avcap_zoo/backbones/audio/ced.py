"""CED, the audio spectrogram transformer that LAVCap listens with.

Source: Dinkel et al., "CED: Consistent ensemble distillation for audio tagging" (2023); the shapes are those of the
released checkpoints (spec lavcap.md, sections 1.1 and 11).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.errors import ShapeError

PATCH_SIZE = 16


@dataclass
class CEDSettings:
    """Size and input of a CED encoder; the defaults are CED-base inside LAVCap.

    Args:
        embed_dim: width C of the tokens (tiny 192, mini 256, small 384, base 768).
        depth: transformer blocks.
        num_heads: attention heads (tiny 3, mini 4, small 6, base 12).
        num_mel_bins: mel bins F, a multiple of 16.
        target_length: frames T that the time positions cover; shorter input uses a prefix of them.
        frame_shift_ms: step of the filter bank in front.
        feature_mean: subtracted from the log-mel input.
        feature_std: divides it.
        pad_with_silence: see `ops.fbank.normalised_fbank`.
        frozen_batch_norm: the input BatchNorm of an encoder that is not fully trained: `drift` (as released) keeps
            moving its statistics in training, `eval` keeps those of the checkpoint.
    """

    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    num_mel_bins: int = 64
    target_length: int = 1024
    frame_shift_ms: float = 10.0
    feature_mean: float = -4.346
    feature_std: float = 4.332
    pad_with_silence: bool = False
    frozen_batch_norm: Literal["eval", "drift"] = "drift"


class CED(nn.Module):
    """Patch-wise transformer over a normalised log-mel spectrogram.

    State-dict names are those of the released LAVCap encoder, but `init_bn.1.` is `init_bn.` here and there is no
    classifier.

    Args:
        settings: see `CEDSettings`.

    Raises:
        ValueError: widths or bins that do not divide.
    """

    def __init__(self, settings: CEDSettings) -> None:
        super().__init__()
        if settings.num_mel_bins % PATCH_SIZE or settings.target_length % PATCH_SIZE:
            raise ValueError(
                f"num_mel_bins {settings.num_mel_bins} and target_length {settings.target_length} "
                f"must be multiples of the patch size {PATCH_SIZE}"
            )
        if settings.embed_dim % settings.num_heads:
            raise ValueError(f"embed_dim {settings.embed_dim} is not a multiple of num_heads {settings.num_heads}")
        width = settings.embed_dim
        self.settings = settings
        self.init_bn = nn.BatchNorm2d(settings.num_mel_bins, momentum=0.01)
        self.patch_embed = _PatchEmbedding(width)
        self.time_pos_embed = nn.Parameter(torch.randn(1, width, 1, settings.target_length // PATCH_SIZE) * 0.02)
        self.freq_pos_embed = nn.Parameter(torch.randn(1, width, settings.num_mel_bins // PATCH_SIZE, 1) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, settings.num_heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.batch_norm_frozen = False

    def freeze_batch_norm(self) -> None:
        """Keep the input BatchNorm in evaluation mode from now on, whatever `train()` says."""
        self.batch_norm_frozen = True
        self.init_bn.eval()

    def train(self, mode: bool = True) -> CED:
        """Set training mode; a frozen input BatchNorm stays in evaluation mode."""
        super().train(mode)
        if self.batch_norm_frozen:
            self.init_bn.eval()
        return self

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Encode spectrograms.

        Args:
            spectrogram: (B, T, F) normalised log-mel, T at most `target_length`; the last T % 16 frames are not seen.

        Returns:
            (B, F / 16, T // 16, C) tokens after the final norm. Flattening the two middle axes gives the released,
            frequency-major order.

        Raises:
            ShapeError: F differs from the settings, or T is longer than the time positions or shorter than one patch.
        """
        if spectrogram.ndim != 3 or spectrogram.shape[2] != self.settings.num_mel_bins:
            raise ShapeError(
                f"spectrogram is {tuple(spectrogram.shape)}, wanted (clips, frames, {self.settings.num_mel_bins})"
            )
        num_frames = spectrogram.shape[1]
        if not PATCH_SIZE <= num_frames < self.settings.target_length + PATCH_SIZE:
            raise ShapeError(
                f"spectrogram has {num_frames} frames, wanted {PATCH_SIZE} to {self.settings.target_length}"
            )
        mel_first = spectrogram.transpose(1, 2)[:, :, None, :]  # (B, F, 1, T): mel bins are BatchNorm's channels
        normed = self.init_bn(mel_first).transpose(1, 2)  # (B, 1, F, T)
        grid = self.patch_embed(normed)
        grid = grid + self.time_pos_embed[..., : grid.shape[3]] + self.freq_pos_embed
        tokens = grid.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens).unflatten(1, (grid.shape[2], grid.shape[3]))  # type: ignore[no-any-return]


class _PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, PATCH_SIZE, PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image)  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _MLP(width)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = [
            projection(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        ]
        mixed = F.scaled_dot_product_attention(*heads)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))  # type: ignore[no-any-return]
