"""Pictures resized in a batch on their device, bit for bit as Pillow resizes 8-bit pictures one by one.

Pillow weighs pixels with coefficients of 22 bits, along rows and then along columns, and rounds to 8 bits after each.
Products and sums are integers below 2^53, so float64 holds them exactly, on every device that has float64. Pillow 13
begins with the columns where the height loses more than twice the pixels that the width loses; older versions never
do, and such pictures then differ by a few of 255 levels.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from avcap_zoo.errors import ShapeError

ResizeKernel = Literal["bilinear", "bicubic"]

_UNIT = float(1 << 22)


def resize_pictures(images: Tensor, size_px: tuple[int, int], kernel: ResizeKernel = "bicubic") -> Tensor:
    """Resize pictures.

    Args:
        images: (N, 3, H, W) uint8.
        size_px: height and width of the result; the aspect ratio follows.
        kernel: as in Pillow, widened when shrinking.

    Returns:
        (N, 3, height, width) uint8, equal to `PIL.Image.resize` of Pillow 13.

    Raises:
        ShapeError: not (N, 3, H, W) uint8, or without pixels.
    """
    _check(images)
    height, width = size_px
    lost_rows, lost_columns = images.shape[2] - height, images.shape[3] - width
    columns_first = lost_rows > max(0, 2 * lost_columns)
    for along_rows in (False, True) if columns_first else (True, False):
        if along_rows and lost_columns:
            images = _weigh(images, width, kernel)
        elif not along_rows and lost_rows:
            images = _weigh(images.transpose(2, 3), height, kernel).transpose(2, 3)
    return images


def crop_pictures(images: Tensor, size_px: int, kernel: ResizeKernel = "bicubic") -> Tensor:
    """Shorter side to a size, then the square in the middle.

    The longer side is rounded down and the crop's corner half to even, both as in torchvision.

    Args:
        images: (N, 3, H, W) uint8.
        size_px: side of the result.
        kernel: see `resize_pictures`.

    Returns:
        (N, 3, size_px, size_px) uint8.

    Raises:
        ShapeError: not (N, 3, H, W) uint8, or without pixels.
    """
    _check(images)
    height, width = images.shape[2:]
    shorter = min(height, width)
    resized = resize_pictures(images, (size_px * height // shorter, size_px * width // shorter), kernel)
    top, left = (round((side - size_px) / 2) for side in resized.shape[2:])
    return resized[:, :, top : top + size_px, left : left + size_px]


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8 or 0 in images.shape[2:]:
        raise ShapeError(
            f"images are {tuple(images.shape)} {images.dtype}, wanted (pictures, 3, height, width) torch.uint8"
        )


def _weigh(images: Tensor, out_size: int, kernel: ResizeKernel) -> Tensor:
    """Resize the last axis."""
    weights = _pillow_weights(images.shape[3], out_size, kernel).to(images.device)
    sums = images.double() @ weights
    return ((sums + _UNIT / 2) / _UNIT).floor().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=32)
def _pillow_weights(in_size: int, out_size: int, kernel: ResizeKernel) -> Tensor:
    """(in_size, out_size) float64 on the CPU: Pillow's coefficients, integers."""
    reach = 1.0 if kernel == "bilinear" else 2.0
    with torch.device("cpu"):
        scale = in_size / out_size
        widened = max(scale, 1.0)
        centre = (torch.arange(out_size, dtype=torch.float64) + 0.5) * scale
        first = (centre - reach * widened + 0.5).floor().clamp_min(0)
        last = (centre + reach * widened + 0.5).floor().clamp_max(in_size)
        place = torch.arange(in_size, dtype=torch.float64)[:, None]
        distance = ((place - centre + 0.5) / widened).abs()
        weights = _cubic(distance) if kernel == "bicubic" else (1 - distance).clamp_min(0)
        weights = weights * ((place >= first) & (place < last))
        weights = weights / weights.sum(dim=0) * _UNIT
        return torch.where(weights < 0, (weights - 0.5).ceil(), (weights + 0.5).floor())


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5, 0 from 2 on."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))
