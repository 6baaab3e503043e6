"""A folder of AudioCaps' layout with tiny media, and a data module on it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from avcap_zoo.data_modules.audiocaps import AudioCapsDataModule
from tests.unit.data_modules.media_files import encode, numbered_frames, write_sound

HEADER = ("audiocap_id", "youtube_id", "start_time", "caption")
SHORT_S = 0.05


def sound(number: int) -> Any:
    """A constant whose value tells the clip."""
    return np.full(round(16_000 * SHORT_S), (number + 1) / 1024, np.float32)


def write_rows(path: Path, rows: list[tuple[Any, ...]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def make_folder(
    root: Path,
    *,
    train: int = 6,
    val: int = 3,
    test: int = 3,
    captions: int = 1,
    with_videos: bool = False,
    broken: tuple[str, ...] = (),
) -> Path:
    """Clips `train0`, `train1` ..., each with a constant sound of its own; the `broken` ones are garbage."""
    film = encode(numbered_frames(4)) if with_videos else b""
    for split, count in (("train", train), ("val", val), ("test", test)):
        rows = [
            (100 * number + turn, f"{split}{number}", 30, f"{split} {number} caption {turn}")
            for number in range(count)
            for turn in range(captions)
        ]
        write_rows(root / f"{split}.csv", rows)
        for number in range(count):
            path = write_sound(root / split / "waveforms" / f"{split}{number}_30000.wav", sound(number))
            if f"{split}{number}" in broken:
                path.write_bytes(b"garbage")
            if with_videos:
                (root / split / "videos").mkdir(exist_ok=True)
                (root / split / "videos" / f"{split}{number}_30000.mp4").write_bytes(film)
    return root


def data_module(root: Path, **options: Any) -> AudioCapsDataModule:
    settings: dict[str, Any] = {"batch_size": 2, "modalities": ("audio",), "num_frames": 2, "image_size_px": 16}
    return AudioCapsDataModule(str(root), **{**settings, **options})
