"""EVA ViT-g, the image encoder of BLIP-2 and of what is built on it: all patch tokens, on transformers' host class.

Source: Fang et al., "EVA" (CVPR 2023), 39 of its 40 blocks as in BLIP-2 (arXiv 2301.12597); names and sizes from spec
bubogpt.md, sections 1, 2 and 13.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.vision.clip import CLIP_MEAN, CLIP_STD
from avcap_zoo.errors import ConfigError, ShapeError
from avcap_zoo.ops.picture_resize import crop_pictures, resize_pictures

ImageFit = Literal["crop", "stretch"]

_RENAMED = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.layers.\1.self_attn."),
    (r"^blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)
# EVA's own end, which BLIP-2 replaces by a norm of its own: nothing of it is used.
_DROPPED = re.compile(r"^(norm|fc_norm|head)\.")


@dataclass
class EVASettings:
    """Size and input of an EVA ViT; the defaults are ViT-g as BLIP-2 uses it.

    Args:
        image_size_px: side of the square input.
        patch_size: side of the patches.
        embed_dim: width C of the tokens.
        depth: transformer blocks.
        num_heads: attention heads.
        mlp_dim: inner width of the feed-forward layers.
        fit: how a picture becomes square. `crop`: shorter side to the size, centre crop (the evaluation transform of
            BuboGPT's demo); `stretch`: both sides to the size (BLIP-2's evaluation transform).
        initial_std: of the random weights without a checkpoint; narrow ones need more to learn at all.
    """

    image_size_px: int = 224
    patch_size: int = 14
    embed_dim: int = 1408
    depth: int = 39
    num_heads: int = 16
    mlp_dim: int = 6144
    fit: ImageFit = "crop"
    initial_std: float = 0.02


class EVA(nn.Module):
    """transformers' Blip2VisionModel with BLIP-2's norm over all tokens at the end.

    The last norm computes in float32 whatever the weights' dtype, and its eps is 1e-5, not the blocks' 1e-6.

    Args:
        settings: see `EVASettings`.

    Raises:
        ConfigError: sizes that do not divide.
    """

    def __init__(self, settings: EVASettings) -> None:
        super().__init__()
        from transformers import Blip2VisionConfig, Blip2VisionModel

        if settings.embed_dim % settings.num_heads:
            raise ConfigError(
                f"EVA: embed_dim {settings.embed_dim} is not a multiple of num_heads {settings.num_heads}"
            )
        if settings.image_size_px % settings.patch_size:
            raise ConfigError(
                f"EVA: image_size_px {settings.image_size_px} is not a multiple of patch_size {settings.patch_size}"
            )
        self.settings = settings
        self.embed_dim = settings.embed_dim
        self.image_size_px = settings.image_size_px
        self.model = Blip2VisionModel(
            Blip2VisionConfig(
                hidden_size=settings.embed_dim,
                intermediate_size=settings.mlp_dim,
                num_hidden_layers=settings.depth,
                num_attention_heads=settings.num_heads,
                image_size=settings.image_size_px,
                patch_size=settings.patch_size,
                hidden_act="gelu",
                layer_norm_eps=1e-6,
                qkv_bias=True,
                initializer_range=settings.initial_std,  # transformers' 1e-10 would make all pictures one
            )
        )
        self.model.post_layernorm = _Float32LayerNorm(settings.embed_dim, eps=1e-5)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            images: (N, 3, H, W) uint8 of any size, or (N, 3, size, size) floats as `normalise` gives them.

        Returns:
            (N, 1 + patches, C) in the weights' dtype; the class token comes first.

        Raises:
            ShapeError: neither of the two.
        """
        size = self.image_size_px
        if images.dtype == torch.uint8:
            images = self.normalise(images)
        elif tuple(images.shape[1:]) != (3, size, size) or not images.is_floating_point():
            raise ShapeError(
                f"images are {tuple(images.shape)} {images.dtype}, wanted (pictures, 3, height, width) torch.uint8 "
                f"or normalised (pictures, 3, {size}, {size})"
            )
        tokens: Tensor = self.model(pixel_values=images.to(self.model.dtype)).last_hidden_state
        return tokens

    def normalise(self, images: Tensor) -> Tensor:
        """The evaluation transform, batched on the device and equal to torchvision's on Pillow images.

        Args:
            images: (N, 3, H, W) uint8, decoded RGB.

        Returns:
            (N, 3, size, size) float32.

        Raises:
            ShapeError: not (N, 3, H, W) uint8.
        """
        side = (self.image_size_px, self.image_size_px)
        fitted = resize_pictures(images, side) if self.settings.fit == "stretch" else crop_pictures(images, side[0])
        return (fitted.float() / 255 - self.mean.float()) / self.std.float()


class _Float32LayerNorm(nn.LayerNorm):
    """A LayerNorm that computes in float32 and returns its input's dtype."""

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            normed = F.layer_norm(
                tokens.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
            )
        return normed.to(tokens.dtype)


def from_eva_names(tensors: Mapping[str, Tensor], settings: EVASettings | None = None) -> dict[str, Tensor]:
    """Rename `eva_vit_g.pth`, and join its query and value biases with zeros for the keys.

    Dropped: EVA's own last norm and head, and the one block behind the last that is built (BLIP-2 uses 39 of 40).

    Args:
        tensors: official names, without a prefix such as LAVIS' `visual_encoder.`; see `from_lavis_names`.
        settings: of the encoder the result is for; without them every block is kept.

    Returns:
        Names of `EVA`, without the last norm, which comes from a BLIP-2 file (`from_lavis_names`). Unknown names are
        passed on, so that strict loading reports them.
    """
    ours: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if _DROPPED.match(name) or (settings is not None and name.startswith(f"blocks.{settings.depth}.")):
            continue
        renamed = name
        for pattern, replacement in _RENAMED:
            renamed, found = re.subn(pattern, replacement, renamed)
            if found:
                break
        stem, _, part = name.rpartition(".")
        if part == "q_bias" and f"{stem}.v_bias" in tensors:
            renamed = renamed.replace("q_bias", "qkv.bias")
            value = torch.cat([value, torch.zeros_like(value), tensors[f"{stem}.v_bias"]])
        elif part == "v_bias" and f"{stem}.q_bias" in tensors:
            continue
        ours[f"model.{renamed}"] = value
    return ours


def from_lavis_names(tensors: Mapping[str, Tensor], settings: EVASettings | None = None) -> dict[str, Tensor]:
    """The vision part of a LAVIS state dict: `visual_encoder.*` and `ln_vision.*`; other parts are left out.

    Args:
        tensors: official names. BLIP-2's files of a Q-Former hold the norm alone.
        settings: of the encoder the result is for; without them every block is kept.

    Returns:
        Names of `EVA`.
    """
    encoder = "visual_encoder."
    ours = from_eva_names({n[len(encoder) :]: v for n, v in tensors.items() if n.startswith(encoder)}, settings)
    norm = "ln_vision."
    return ours | {f"model.post_layernorm.{n[len(norm) :]}": v for n, v in tensors.items() if n.startswith(norm)}
