"""Pictures of every mode become upright RGB squares; every broken one ends in a MediaError."""

from __future__ import annotations

import os
import pickle
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from avcap_zoo.data_modules.media.image import read_image
from avcap_zoo.data_modules.media.limits import MediaLimits
from avcap_zoo.errors import MediaError
from tests.unit.data_modules.media_files import media_error

RED = (200, 40, 30)


def save(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    pixels = read_image(save(tmp_path / f"red.{suffix}", Image.new("RGB", (40, 40), RED)), 32, "c")
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert np.abs(pixels.mean(axis=(1, 2)) - RED).max() < 4


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "seen"),
    [
        ("L", 90, "png", (90, 90, 90)),
        ("L", 90, "jpg", (90, 90, 90)),
        ("LA", (90, 128), "png", (90, 90, 90)),
        ("RGBA", (*RED, 128), "png", RED),
        ("RGBA", (*RED, 0), "png", RED),
        ("1", 1, "png", (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), "jpg", (255, 0, 0)),
        ("I;16", 90 * 256, "png", (90, 90, 90)),
    ],
)
def test_modes(tmp_path: Path, mode: str, colour: int | tuple[int, ...], suffix: str, seen: tuple[int, ...]) -> None:
    pixels = read_image(save(tmp_path / f"p.{suffix}", Image.new(mode, (32, 32), colour)), 32, "c")
    assert pixels.shape == (3, 32, 32)
    assert np.abs(pixels.mean(axis=(1, 2)) - seen).max() < 4


def test_palettes_and_transparent_palettes_do_not_warn(tmp_path: Path) -> None:
    picture = Image.new("P", (32, 32), 1)
    picture.putpalette([0, 0, 0, *RED])
    for name, options in (("plain.png", {}), ("clear.png", {"transparency": bytes([255, 0])})):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixels = read_image(save(tmp_path / name, picture, **options), 32, "c")
        assert tuple(pixels[:, 0, 0]) == RED


def test_16_bit_gray_is_scaled_not_cut(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint16)[None] * 257, 256, axis=0)
    pixels = read_image(save(tmp_path / "ramp.png", Image.fromarray(ramp)), 256, "c")
    np.testing.assert_array_equal(pixels[0, 0], np.arange(256))


@pytest.mark.parametrize(("orientation", "white_side"), [(1, "left"), (3, "right"), (6, "top"), (8, "bottom")])
def test_exif_turns_the_picture(tmp_path: Path, orientation: int, white_side: str) -> None:
    stored = np.zeros((32, 32, 3), np.uint8)
    stored[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read_image(save(tmp_path / "turned.png", Image.fromarray(stored), exif=exif), 32, "c")[0]
    sides = {"left": pixels[:, :8], "right": pixels[:, -8:], "top": pixels[:8], "bottom": pixels[-8:]}
    assert max(sides, key=lambda side: sides[side].mean()) == white_side
    assert sides[white_side].mean() == 255


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (64, 32), (33, 32), (40, 80)])
def test_the_middle_is_kept_and_not_squeezed(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    side = min(size)
    stored = np.zeros((height, width, 3), np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    stored[top : top + side, left : left + side] = 200
    pixels = read_image(save(tmp_path / "wide.png", Image.fromarray(stored)), 32, "c")
    assert pixels.shape == (3, 32, 32)
    assert (pixels[:, 2:-2, 2:-2] == 200).all()


def test_a_circle_stays_round(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:60, :120]
    disc = ((rows - 30) ** 2 + (columns - 60) ** 2 < 20**2).astype(np.uint8) * 255
    pixels = read_image(save(tmp_path / "disc.png", Image.fromarray(disc)), 30, "c")[0] > 127
    assert abs(int(pixels.any(axis=0).sum()) - int(pixels.any(axis=1).sum())) <= 1


def test_extreme_shapes(tmp_path: Path) -> None:
    for size in ((1, 1), (1, 300), (300, 1)):
        assert read_image(save(tmp_path / "thin.png", Image.new("RGB", size, RED)), 16, "c").shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"\x89PNG\r\n\x1a\n", "not decodable"), (b"<html>404</html>", "not decodable")],
)
def test_files_that_hold_no_picture(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    error = media_error(lambda: read_image(path, 32, "c"), path, reason)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_no_program_is_called_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # not looked for yet
    path = tmp_path / "x.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n")
    media_error(lambda: read_image(path, 32, "c"), path, "not decodable as a picture")
    assert not (tmp_path / "ran").exists()
    with suppress(OSError), Image.open(path) as picture:
        picture.load()
    assert (tmp_path / "ran").exists(), "the trap itself must work"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_broken_off_pictures(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"half.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    media_error(lambda: read_image(path, 32, "c"), path, "not decodable as a picture")


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "x.jpg", Image.new("RGB", (32, 32), RED), exif=exif)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(150):
        damaged = whole.copy()
        places = random.integers(2, len(whole), 8)
        damaged[places] = random.integers(0, 255, 8)
        path.write_bytes(damaged.tobytes())
        with suppress(MediaError):
            assert read_image(path, 16, "c").shape == (3, 16, 16)


def test_missing_folder_and_pipe(tmp_path: Path) -> None:
    media_error(lambda: read_image(tmp_path / "no.png", 32, "c"), tmp_path / "no.png", "^no such file$")
    media_error(lambda: read_image(tmp_path, 32, "c"), tmp_path, "^no such file$")
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)  # opening it would wait for ever
    media_error(lambda: read_image(pipe, 32, "c"), pipe, "^no such file$")


def test_too_many_pixels_are_not_decoded(tmp_path: Path) -> None:
    path = save(tmp_path / "large.png", Image.new("RGB", (50, 40)))
    limits = MediaLimits(max_pixels=1999)
    media_error(lambda: read_image(path, 32, "c", limits), path, "50 x 40 pixels, at most 1999 are read")
