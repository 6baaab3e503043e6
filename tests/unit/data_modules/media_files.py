"""Small sounds and videos, written on the spot."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from avcap_zoo.errors import MediaError

RATE_HZ = 16_000


def tone(duration_s: float = 1.0, *, hz: float = 440.0, level: float = 0.3, rate_hz: int = RATE_HZ) -> Any:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate_hz)) / rate_hz)).astype(np.float32)


def write_sound(path: Path, samples: Any = None, rate_hz: int = RATE_HZ, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone() if samples is None else samples, rate_hz, **options)
    return path


def numbered_frames(count: int, size: tuple[int, int] = (32, 32)) -> Any:
    """(count, H, W, 3): the gray of a frame says which one it is."""
    return np.broadcast_to((8 * np.arange(count) + 4).astype(np.uint8)[:, None, None, None], (count, *size, 3)).copy()


def numbers_of(frames: Any) -> list[int]:
    """Which of the `numbered_frames` the (K, 3, H, W) frames are."""
    return [round((float(frame.mean()) - 4) / 8) for frame in frames]


def encode(
    frames: Any = None,
    samples: Any = None,
    *,
    fps: Fraction | int = 10,
    rate_hz: int = RATE_HZ,
    container: str = "mp4",
    video_codec: str = "libx264",
    audio_codec: str = "aac",
    options: dict[str, str] | None = None,
    title: str = "",
    first_frame: int = 0,
    to_pipe: bool = False,
    folder: Path | None = None,
    key_frame_every: int | None = None,
) -> bytes:
    """A file of frames (K, H, W, 3) and samples (channels, S), either of which may be left out.

    `to_pipe`: the writer cannot go back to the header, which so lacks the length. `folder`: where a file is written
    first, needed for an index in front.
    """
    target: Any = _Pipe() if to_pipe else io.BytesIO()
    if folder is not None:
        target = str(folder / "encoded")
    with av.open(target, "w", format=container, options=options or {}) as file:
        if title:
            file.metadata["title"] = title
        video: Any = None
        if frames is not None:
            video = file.add_stream(video_codec, rate=fps)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.thread_count = 1
            if video_codec == "libx264":
                video.options = {"preset": "ultrafast", "crf": "10", "threads": "1"}
            if key_frame_every is not None:
                video.gop_size = key_frame_every
        audio: Any = None
        if samples is not None:
            audio = file.add_stream(audio_codec, rate=rate_hz)
            audio.layout = "mono" if len(samples) == 1 else "stereo"
        for number, pixels in enumerate([] if frames is None else frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = number + first_frame, 1 / Fraction(fps)
            file.mux(video.encode(picture))
        if video is not None:
            file.mux(video.encode())
        for start in range(0, 0 if samples is None else samples.shape[1], 1024):
            piece = np.ascontiguousarray(samples[:, start : start + 1024], dtype=np.float32)
            sound = av.AudioFrame.from_ndarray(piece, format="fltp", layout=audio.layout.name)
            sound.sample_rate, sound.pts, sound.time_base = rate_hz, start, Fraction(1, rate_hz)
            file.mux(audio.encode(sound))
        if audio is not None:
            file.mux(audio.encode())
    if folder is not None:
        return Path(target).read_bytes()
    return bytes(target.content if to_pipe else target.getvalue())


def folder_of_pictures(folder: Path, count: int, suffix: str = "png") -> Path:
    folder.mkdir()
    for number, pixels in enumerate(numbered_frames(count)):
        Image.fromarray(pixels).save(folder / f"{number:03d}.{suffix}")
    return folder


class _Pipe(io.RawIOBase):
    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.content += bytes(data)
        return len(data)


def media_error(read: Callable[[], object], path: Path, reason: str) -> MediaError:
    """The error of a reader; it must name clip "c" and the path, and its reason match a pattern."""
    with pytest.raises(MediaError) as caught:
        read()
    error = caught.value
    assert (error.clip_id, error.path) == ("c", str(path))
    assert str(error).startswith(f"clip c ({path}): ")
    assert "\n" not in str(error)
    assert re.search(reason, error.reason), error.reason
    return error
