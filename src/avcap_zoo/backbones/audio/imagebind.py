"""ImageBind's audio tower as a token encoder: every token of a few log-mel clips, averaged over the clips.

Source: Girdhar et al., "ImageBind" (CVPR 2023); the use of its tokens instead of its embedding is BuboGPT's
(arXiv 2307.08581; spec bubogpt.md, sections 3 and 13). The published weights are CC-BY-NC-SA 4.0: not for commercial
use.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.audio.blocks import PreNormBlock
from avcap_zoo.errors import ConfigError, ShapeError

LARGEST_SCALE = 100.0

_OTHER_TOWERS = re.compile(r"^modality_(preprocessors|trunks|heads|postprocessors)\.(vision|text|depth|thermal|imu)\.")
_HEAD = "modality_heads.audio."
_RENAMED = (
    ("modality_preprocessors.audio.cls_token", "cls_token"),
    ("modality_preprocessors.audio.rgbt_stem.proj.", "stem."),
    ("modality_preprocessors.audio.rgbt_stem.norm_layer.", "stem_norm."),
    ("modality_preprocessors.audio.pos_embedding_helper.pos_embed", "pos_embed"),
    ("modality_trunks.audio.blocks.", "blocks."),
    (f"{_HEAD}0.", "head.0."),
    (f"{_HEAD}2.", "head.1."),
    ("modality_postprocessors.audio.1.log_logit_scale", "log_logit_scale"),
)


@dataclass
class ImageBindAudioSettings:
    """Size and input of the tower; the defaults are ImageBind-Huge's audio branch.

    Args:
        num_mel_bins: mel bins F.
        target_length: frames T of a clip.
        patch_size: side of the square patches.
        patch_stride: step between patches; smaller than `patch_size`, they overlap.
        embed_dim: width C of the tokens.
        depth: transformer blocks.
        num_heads: attention heads.
        head_dim: width of ImageBind's head (1,024), applied to every token; None = the tokens themselves, which the
            released captioning weights were trained on.
    """

    num_mel_bins: int = 128
    target_length: int = 204
    patch_size: int = 16
    patch_stride: int = 10
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    head_dim: int | None = None

    @property
    def num_tokens(self) -> int:
        """N: one token per patch, and one for the clip in front."""
        bins, frames = (
            (side - self.patch_size) // self.patch_stride + 1 for side in (self.num_mel_bins, self.target_length)
        )
        return bins * frames + 1


class ImageBindAudio(nn.Module):
    """Audio spectrogram transformer with one learned key and value beside those of the tokens.

    The drop path of the original (0.1) is left out: the tower is only used frozen, in evaluation mode.

    Args:
        settings: see `ImageBindAudioSettings`.

    Raises:
        ConfigError: sizes that do not divide, or clips smaller than one patch.
    """

    def __init__(self, settings: ImageBindAudioSettings) -> None:
        super().__init__()
        if settings.embed_dim % settings.num_heads:
            raise ConfigError(
                f"audio tower: embed_dim {settings.embed_dim} is not a multiple of num_heads {settings.num_heads}"
            )
        if min(settings.num_mel_bins, settings.target_length) < settings.patch_size:
            raise ConfigError(
                f"audio tower: a clip of {settings.num_mel_bins} mel bins and {settings.target_length} frames "
                f"is smaller than one patch of {settings.patch_size}"
            )
        width = settings.embed_dim
        self.settings = settings
        self.embed_dim = settings.head_dim or width
        self.stem = nn.Conv2d(1, width, settings.patch_size, settings.patch_stride, bias=False)
        self.stem_norm = nn.LayerNorm(width, eps=1e-5)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, settings.num_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(
            PreNormBlock(_Attention(width, settings.num_heads), width) for _ in range(settings.depth)
        )
        if settings.head_dim is not None:
            self.head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, settings.head_dim, bias=False))
        self.register_buffer("log_logit_scale", torch.tensor(math.log(20.0)))
        self.log_logit_scale: Tensor

    def forward(self, clips: Tensor) -> Tensor:
        """Encode the clips of each sound and average them.

        Args:
            clips: (B, S, 1, F, T) normalised log-mel clips; S may differ from call to call.

        Returns:
            (B, N, C) float32: each clip's tokens have length 20 (the scale of the checkpoint, at most 100) before the
            mean over S is taken.

        Raises:
            ShapeError: clips of another size, or none.
        """
        wanted = (1, self.settings.num_mel_bins, self.settings.target_length)
        if clips.ndim != 5 or tuple(clips.shape[2:]) != wanted or clips.shape[1] == 0:
            raise ShapeError(
                f"clips are {tuple(clips.shape)}, wanted (sounds, at least 1 clip, {', '.join(map(str, wanted))})"
            )
        tokens = self.encode(clips.flatten(0, 1))
        with torch.autocast(clips.device.type, enabled=False):
            scale = self.log_logit_scale.float().exp().clamp_max(LARGEST_SCALE)
            scaled = F.normalize(tokens.float(), dim=-1) * scale
            mean: Tensor = scaled.unflatten(0, clips.shape[:2]).mean(dim=1)
            return mean

    def encode(self, clips: Tensor) -> Tensor:
        """Tokens (N, tokens, C) of single clips (N, 1, F, T), before normalisation, after the head if there is one."""
        tokens = self.embed(clips)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens if self.settings.head_dim is None else self.head(tokens)

    def embed(self, clips: Tensor) -> Tensor:
        """Patches with the clip's own token in front and positions added: what enters the first block."""
        patches = self.stem_norm(self.stem(clips.to(self.stem.weight.dtype)).flatten(2).transpose(1, 2))
        return torch.cat([self.cls_token.expand(len(clips), -1, -1).to(patches.dtype), patches], 1) + self.pos_embed


class _Attention(nn.Module):
    """Self-attention whose keys and values have one learned position more."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.bias_k = nn.Parameter(torch.empty(1, 1, width))
        self.bias_v = nn.Parameter(torch.empty(1, 1, width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_normal_(self.bias_k)
        nn.init.xavier_normal_(self.bias_v)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = F.linear(tokens, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=2)
        key, value = (
            torch.cat([projected, extra.expand(len(tokens), -1, -1).to(projected.dtype)], dim=1)
            for projected, extra in ((key, self.bias_k), (value, self.bias_v))
        )
        heads = [part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)]
        mixed = F.scaled_dot_product_attention(*heads)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def from_imagebind_names(tensors: Mapping[str, Tensor], settings: ImageBindAudioSettings) -> dict[str, Tensor]:
    """Rename the audio part of `imagebind_huge.pth`.

    Dropped: the towers of the other five modalities, and the head when `settings.head_dim` is None.

    Args:
        tensors: official names.
        settings: of the tower the result is for.

    Returns:
        Names of `ImageBindAudio`. Unknown names are passed on, so that strict loading reports them.
    """
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if _OTHER_TOWERS.match(name) or (settings.head_dim is None and name.startswith(_HEAD)):
            continue
        renamed = name
        for official, mine in _RENAMED:
            if name.startswith(official):
                renamed = mine + name[len(official) :]
                break
        ours[re.sub(r"^(blocks\.\d+\.norm)_", r"\1", renamed)] = value
    return ours
