"""Picture files to square RGB arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from avcap_zoo.errors import MediaError

MAX_PIXELS = 100_000_000


def read_image(path: Path, size_px: int, clip_id: str) -> NDArray[np.uint8]:
    """Read a picture in any mode: upright, RGB, shorter side to `size_px`, centre crop.

    Args:
        path: anything Pillow reads.
        size_px: side of the square result.
        clip_id: named in errors.

    Returns:
        (3, size_px, size_px) uint8.

    Raises:
        MediaError: missing, truncated, not a picture, or more than 100 million pixels.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise MediaError(clip_id, path, f"{image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise MediaError(clip_id, path, "no such file") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(clip_id, path, f"not decodable as a picture: {error}") from error
    if upright.size != (size_px, size_px):
        upright = ImageOps.fit(upright, (size_px, size_px), Image.Resampling.BICUBIC)
    return np.asarray(upright).transpose(2, 0, 1)
