"""What a split holds: clips with their references and media files, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass
class ClipRecord:
    """One clip of a split: its references and where its media lie.

    Attributes:
        clip_id: unique in the split.
        captions: references, none empty.
        audio: sound file.
        visual: video file, or folder of pictures.
        features: .npy file with one vector per frame.
        audio_features: .npy file with one vector per audio token.
        sounds: labelled stretches of sound, as keyword arguments of `batch.SoundEvent`.
        objects: labelled objects with the seconds in which they are seen: label, onset_s, offset_s, box (left, top,
            right, bottom).
        duration_s: length of the clip; needed with `objects`.
        window_s: the part of `audio` and `visual` that is the clip, from and to, in seconds; None = all of them.
    """

    clip_id: str
    captions: list[str]
    audio: str | None = None
    visual: str | None = None
    features: str | None = None
    audio_features: str | None = None
    sounds: list[dict[str, Any]] | None = None
    objects: list[dict[str, Any]] | None = None
    duration_s: float = 0.0
    window_s: tuple[float, float] | None = None


@dataclass
class SplitIndex:
    """What a split holds on this disk.

    Attributes:
        records: clips whose media are there.
        missing: id and reason of those that are not.
    """

    records: list[ClipRecord] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_official(self) -> int:
        """Clips that the annotations name."""
        return len(self.records) + len(self.missing)


class PackedRecords:
    """Records as one block of bytes, so that data workers share it instead of copying Python objects.

    Args:
        records: any number of clips.
    """

    def __init__(self, records: Iterable[ClipRecord]) -> None:
        lines = [json.dumps(asdict(record)).encode() for record in records]
        self._bytes = np.frombuffer(b"".join(lines), dtype=np.uint8)
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._ends)

    def __getitem__(self, index: int) -> ClipRecord:
        """The record at an index."""
        start = self._ends[index - 1] if index else 0
        return ClipRecord(**json.loads(self._bytes[start : self._ends[index]].tobytes()))
