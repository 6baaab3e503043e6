"""CLIP as a frame encoder: one projected image embedding per video frame."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.pretrained import load_pretrained
from avcap_zoo.errors import ShapeError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass
class CLIPSettings:
    """Where the vision encoder comes from.

    Args:
        source: hub id or local folder in transformers format; None = random weights from `config`.
        config: keys of transformers' CLIPVisionConfig, used only without `source`.
    """

    source: str | None = "openai/clip-vit-large-patch14"
    config: dict[str, Any] = field(default_factory=dict)


class CLIPFrameEncoder(nn.Module):
    """transformers' CLIP vision tower with its projection, applied to every frame.

    Args:
        settings: see `CLIPSettings`.

    Raises:
        WeightsError: the source cannot be found or read, or holds no CLIP vision encoder.
    """

    def __init__(self, settings: CLIPSettings) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        if settings.source is None:
            self.model = CLIPVisionModelWithProjection(CLIPVisionConfig(**settings.config))
        else:
            self.model = load_pretrained(
                CLIPVisionModelWithProjection, settings.source, "model.init_args.vision.source"
            )
        self.embed_dim: int = self.model.config.projection_dim
        self.image_size_px: int = self.model.config.image_size
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    @property
    def num_patches(self) -> int:
        """Positions of one frame, that of the class token among them."""
        return int((self.image_size_px // self.model.config.patch_size) ** 2 + 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Encode frames.

        Args:
            frames: (B, K, 3, H, W) uint8.

        Returns:
            (B, K, C) float projected image embeddings, not normalised.

        Raises:
            ShapeError: frames is not 5-D uint8 with three channels.
        """
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.dtype != torch.uint8:
            raise ShapeError(
                f"frames is {tuple(frames.shape)} {frames.dtype}, wanted (clips, frames, 3, height, width) torch.uint8"
            )
        pixels = self.normalise(frames.flatten(0, 1))
        embeddings: Tensor = self.model(pixel_values=pixels).image_embeds
        return embeddings.view(*frames.shape[:2], -1)

    def normalise(self, images: Tensor) -> Tensor:
        """CLIP's preprocessing on the device: shorter side to the model's size, centre crop, mean and std.

        Args:
            images: (N, 3, H, W) uint8.

        Returns:
            (N, 3, size, size) in the model's dtype.
        """
        return normalise_images(images, self.image_size_px, self.mean, self.std).to(self.model.dtype)


def normalise_images(images: Tensor, size_px: int, mean: Tensor, std: Tensor) -> Tensor:
    """Shorter side to `size_px` (bicubic), centre crop, mean and std, on the images' device.

    Args:
        images: (N, 3, H, W) uint8.
        size_px: side of the result.
        mean: (3, 1, 1), of values in 0..1.
        std: (3, 1, 1).

    Returns:
        (N, 3, size, size) float32.
    """
    pixels = images.float() / 255
    height, width = pixels.shape[2:]
    if (height, width) != (size_px, size_px):
        shape = [size_px * side // min(height, width) for side in (height, width)]  # rounded down, as in transformers
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (shape[0] - size_px) // 2, (shape[1] - size_px) // 2
        pixels = pixels[:, :, top : top + size_px, left : left + size_px]
    return (pixels - mean) / std
