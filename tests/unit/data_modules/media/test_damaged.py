"""Damaged and hostile files end in a MediaError with clip, path and reason, or are read as far as they go."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avcap_zoo.data_modules.media.audio import read_audio
from avcap_zoo.data_modules.media.image import read_image
from avcap_zoo.data_modules.media.limits import MediaLimits
from avcap_zoo.data_modules.media.video import read_frames
from avcap_zoo.errors import ConfigError
from tests.unit.data_modules.media_files import RATE_HZ, encode, media_error, numbered_frames, tone, write_sound

TENTHS = range(10)


def wav_header(*, channels: int = 1, num_samples: int = 100, rate_hz: int = RATE_HZ) -> bytes:
    """A RIFF header of 16 bit PCM that may say anything of itself."""
    size = min(2 * channels * num_samples, 0xFFFFFFFF - 36)
    form = struct.pack("<HHIIHH", 1, channels, rate_hz, 2 * channels * rate_hz & 0xFFFFFFFF, 2 * channels, 16)
    return (
        b"RIFF"
        + struct.pack("<I", size + 36)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", size)
    )


@pytest.mark.parametrize("tenth", TENTHS)
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
def test_a_sound_that_breaks_off_anywhere(tmp_path: Path, suffix: str, tenth: int) -> None:
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "m4a":
        whole.write_bytes(encode(samples=tone()[None], container="ipod"))
    else:
        write_sound(whole)
    content = whole.read_bytes()
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content[: len(content) * tenth // 10])
    if tenth == 0:
        media_error(lambda: read_audio(path, RATE_HZ, "c"), path, r"^the file is empty \(0 bytes\)$")
        return
    if suffix in {"flac", "ogg", "m4a"} or (suffix == "mp3" and tenth < 3):
        media_error(
            lambda: read_audio(path, RATE_HZ, "c"),
            path,
            "^(not decodable as sound: .*|the file has no sound track|the file holds no samples)$",
        )
        return
    samples = read_audio(path, RATE_HZ, "c")  # as far as it goes
    assert np.isfinite(samples).all()
    assert 0 < len(samples) < RATE_HZ
    if suffix == "wav":
        assert len(samples) == pytest.approx(RATE_HZ * tenth / 10, abs=44)


@pytest.mark.parametrize("tenth", TENTHS)
def test_a_video_that_breaks_off_anywhere(tmp_path: Path, tenth: int) -> None:
    content = encode(numbered_frames(10), tone()[None])
    path = tmp_path / "broken.mp4"
    path.write_bytes(content[: len(content) * tenth // 10])
    reason = r"^the file is empty \(0 bytes\)$" if tenth == 0 else "^not decodable as video: "
    media_error(lambda: read_frames(path, 4, 32, "c"), path, reason)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("tenth", [0, 1, 5, 9])
def test_a_picture_that_breaks_off_anywhere(tmp_path: Path, suffix: str, mode: str, tenth: int) -> None:
    if (suffix, mode) in {("png", "CMYK"), ("jpg", "RGBA")}:
        mode = "RGB"  # the format does not know the mode
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise, "RGBA").convert("RGB").convert(mode).save(buffer, format={"jpg": "jpeg"}.get(suffix, suffix))
    content = buffer.getvalue()
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content)
    assert read_image(path, 32, "c").shape == (3, 32, 32)
    path.write_bytes(content[: len(content) * tenth // 10])
    reason = r"^the file is empty \(0 bytes\)$" if tenth == 0 else "^not decodable as a picture: "
    media_error(lambda: read_image(path, 32, "c"), path, reason)


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    sound = tmp_path / "sound.mp4"
    sound.write_bytes(write_sound(tmp_path / "sound.wav").read_bytes())
    assert len(read_audio(sound, RATE_HZ, "c")) == RATE_HZ
    media_error(lambda: read_frames(sound, 2, 32, "c"), sound, "^the file has no pictures$")
    film = tmp_path / "film.wav"
    film.write_bytes(encode(numbered_frames(4)))
    assert read_frames(film, 2, 32, "c").shape == (2, 3, 32, 32)
    media_error(lambda: read_audio(film, RATE_HZ, "c"), film, "^the file has no sound track$")
    picture = tmp_path / "picture.jpg"
    Image.new("RGB", (8, 8)).save(picture, format="png")
    assert read_image(picture, 8, "c").shape == (3, 8, 8)
    picture.write_bytes(sound.read_bytes())
    media_error(lambda: read_image(picture, 8, "c"), picture, "^not decodable as a picture: cannot identify")


def test_no_channels(tmp_path: Path) -> None:
    path = tmp_path / "none.wav"
    path.write_bytes(wav_header(channels=0) + bytes(200))
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, "^not decodable as sound: ")


def test_too_many_channels(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "wide.wav", np.zeros((10, 40)))
    reason = r"^40 channels, at most 32 are read \(limits.max_channels\)$"
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, reason)
    limits = MediaLimits(max_channels=1)
    path.write_bytes(encode(samples=np.stack([tone()] * 2), container="ipod"))
    media_error(lambda: read_audio(path, RATE_HZ, "c", limits=limits), path, "^2 channels, at most 1 are read")


def test_a_billion_declared_samples_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.wav"
    path.write_bytes(wav_header(num_samples=1_000_000_000) + bytes(2 * RATE_HZ))
    assert len(read_audio(path, RATE_HZ, "c")) == RATE_HZ  # libsndfile believes the file's size, not its header
    flac = write_sound(tmp_path / "huge.flac")
    content = bytearray(flac.read_bytes())
    content[18:26] = ((RATE_HZ << 44) | (15 << 36) | 1_000_000_000).to_bytes(8, "big")
    flac.write_bytes(content)
    reason = r"^more than 3600 s of sound, the most that is read \(limits.max_duration_s\)$"
    media_error(lambda: read_audio(flac, RATE_HZ, "c"), flac, reason)


def test_a_20000_px_wide_picture(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("L", (20_000, 20), 90).save(path)
    pixels = read_image(path, 16, "c")
    assert pixels.shape == (3, 16, 16)
    assert (pixels == 90).all()
    reason = r"^not decodable as a picture: 20000 x 20 pixels, at most 399999 are read \(limits.max_pixels\)$"
    media_error(lambda: read_image(path, 16, "c", MediaLimits(max_pixels=399_999)), path, reason)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)  # 50 kB on disk, 1.2 GB as RGB
    media_error(lambda: read_image(path, 16, "c"), path, "^not decodable as a picture: .*400000000 pixels")


def test_large_frames(tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    path.write_bytes(encode(numbered_frames(2, (64, 48))))
    reason = r"^48 x 64 pixels, at most 3000 are read \(limits.max_pixels\)$"
    media_error(lambda: read_frames(path, 2, 16, "c", limits=MediaLimits(max_pixels=3000)), path, reason)


def test_wall_time(tmp_path: Path) -> None:
    limits = MediaLimits(max_decode_s=1e-9)
    reason = r"^decoding takes more than 1e-09 s \(limits.max_decode_s\)$"
    film = tmp_path / "film.mp4"
    film.write_bytes(encode(numbered_frames(4), tone()[None]))
    media_error(lambda: read_frames(film, 2, 16, "c", limits=limits), film, reason)
    media_error(lambda: read_audio(film, RATE_HZ, "c", limits=limits), film, reason)
    sound = write_sound(tmp_path / "sound.wav")
    media_error(lambda: read_audio(sound, RATE_HZ, "c", limits=limits), sound, reason)


@pytest.mark.parametrize("name", ["max_duration_s", "max_channels", "max_pixels", "max_decode_s"])
def test_limits_that_let_nothing_pass(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data.init_args.limits.{name} is 0, wanted more than 0"):
        MediaLimits(**{name: 0})
