"""Picture files to RGB arrays: square ones for clips, whole ones for grounding."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from avcap_zoo.data_modules.media.limits import DEFAULT_LIMITS, MediaLimits
from avcap_zoo.errors import MediaError, first_line

_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""What a file may be, whatever it is called. Others of Pillow's are given to programs: PostScript to Ghostscript."""


def read_image(path: Path, size_px: int, clip_id: str, limits: MediaLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Read a picture in any mode: upright, RGB, shorter side to `size_px`, centre crop.

    Args:
        path: in one of the usual formats of pixels; its name does not matter.
        size_px: side of the square result.
        clip_id: named in errors.
        limits: what the file may cost.

    Returns:
        (3, size_px, size_px) uint8.

    Raises:
        MediaError: missing, truncated, not a picture, or beyond `limits.max_pixels`.
    """
    _check_file(path, clip_id)
    return decode_image(path, size_px, clip_id, path, limits)


def read_whole_image(path: Path, clip_id: str, limits: MediaLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Read a picture in any mode: upright, RGB, in its own size.

    Args:
        path: in one of the usual formats of pixels; its name does not matter.
        clip_id: named in errors.
        limits: what the file may cost.

    Returns:
        (3, H, W) uint8.

    Raises:
        MediaError: missing, truncated, not a picture, or beyond `limits.max_pixels`.
    """
    _check_file(path, clip_id)
    return np.array(_open_upright(path, clip_id, path, limits)).transpose(2, 0, 1)


def decode_image(
    source: Path | BinaryIO, size_px: int, clip_id: str, path: Path | str, limits: MediaLimits = DEFAULT_LIMITS
) -> NDArray[np.uint8]:
    """`read_image` of a file that is open already, or lies in an archive.

    Args:
        source: where the picture is read from.
        size_px: side of the square result.
        clip_id: named in errors.
        path: named in errors.
        limits: what the file may cost.

    Returns:
        (3, size_px, size_px) uint8.

    Raises:
        MediaError: truncated, not a picture, or beyond `limits.max_pixels`.
    """
    upright = _open_upright(source, clip_id, path, limits)
    if upright.size != (size_px, size_px):
        upright = ImageOps.fit(upright, (size_px, size_px), Image.Resampling.BICUBIC)
    return np.array(upright).transpose(2, 0, 1)


def _check_file(path: Path, clip_id: str) -> None:
    if not path.is_file():
        raise MediaError(clip_id, path, "no such file")
    if path.stat().st_size == 0:
        raise MediaError(clip_id, path, "the file is empty (0 bytes)")


def _open_upright(source: Path | BinaryIO, clip_id: str, path: Path | str, limits: MediaLimits) -> Image.Image:
    try:
        with Image.open(source, formats=_known_formats()) as image:
            return _upright_rgb(image, limits.max_pixels)
    except Exception as error:  # Pillow's readers let through whatever a damaged file makes them stumble over
        raise MediaError(clip_id, path, f"not decodable as a picture: {first_line(error)}") from error


@cache
def _known_formats() -> list[str]:
    """Those that this Pillow was built with."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _upright_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """A picture of any mode as 8-bit RGB without alpha, turned as its EXIF data say."""
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {max_pixels} are read (limits.max_pixels)")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bit gray: Pillow would cut off at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P":  # straight to RGB, Pillow warns about transparent palettes
        image = image.convert("RGBA")
    return image.convert("RGB")
