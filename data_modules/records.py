"""What a split holds: clips with their references and media files, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avcap_zoo.data_modules.annotations import IdList
from avcap_zoo.errors import DataError


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
        cached: row and number of tokens in the feature cache, by modality.
        sounds: labelled stretches of sound, as keyword arguments of `batch.SoundEvent`.
        objects: labelled objects with the seconds in which they are seen: label, onset_s, offset_s, box (left, top,
            right, bottom).
        duration_s: length of the clip; needed with `objects`.
        instruction: what the captions answer.
        frame_at_s: of a video, the one moment that is shown in every frame; None = spread over the clip.
        window_s: the part of `audio` and `visual` that is the clip, from and to, in seconds; None = all of them.
    """

    clip_id: str
    captions: list[str]
    audio: str | None = None
    visual: str | None = None
    features: str | None = None
    audio_features: str | None = None
    cached: dict[str, tuple[int, int]] = field(default_factory=dict)
    sounds: list[dict[str, Any]] | None = None
    objects: list[dict[str, Any]] | None = None
    duration_s: float = 0.0
    instruction: str | None = None
    frame_at_s: float | None = None
    window_s: tuple[float, float] | None = None


@dataclass
class SplitIndex:
    """What a split holds on this disk.

    Attributes:
        records: clips whose media are there.
        missing: id and reason of those that are not.
        left_out: what of the annotations was not taken, such as "repeated rows": how many.
        sources: the annotation files.
        subset: the id list to which the split is narrowed, if it is.
    """

    records: list[ClipRecord] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    subset: IdList | None = None

    def leave_out(self, what: str, count: int = 1) -> None:
        """Count what of the annotations is not taken."""
        if count:
            self.left_out[what] = self.left_out.get(what, 0) + count

    def narrow(self, ids: IdList) -> None:
        """Keep the clips of an id list, in the order of the annotations.

        Raises:
            DataError: the list names clips that the annotations do not.
        """
        wanted = set(ids.ids)
        known = {record.clip_id for record in self.records} | {clip_id for clip_id, _ in self.missing}
        unknown = [clip_id for clip_id in ids.ids if clip_id not in known]
        if unknown:
            raise DataError(
                f"{ids.path}: {len(unknown)} of {len(ids.ids)} ids are not in {', '.join(self.sources)}, such as "
                f"{', '.join(unknown[:3])}; its clips have ids such as {', '.join(sorted(known)[:2])}"
            )
        self.records = [record for record in self.records if record.clip_id in wanted]
        self.missing = [(clip_id, reason) for clip_id, reason in self.missing if clip_id in wanted]
        self.subset = ids

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
        lines = [
            json.dumps({key: value for key, value in vars(record).items() if value is not None}).encode()
            for record in records
        ]
        self._bytes = np.frombuffer(b"".join(lines), dtype=np.uint8)
        self._ends = np.cumsum([len(line) for line in lines], dtype=np.int64)

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._ends)

    def __getitem__(self, index: int) -> ClipRecord:
        """The record at an index."""
        start = self._ends[index - 1] if index else 0
        record = ClipRecord(**json.loads(self._bytes[start : self._ends[index]].tobytes()))
        record.cached = {modality: (row, length) for modality, (row, length) in record.cached.items()}
        return record

    def without(self, clip_ids: Collection[str]) -> PackedRecords:
        """The other clips, in the same order."""
        records = (self[index] for index in range(len(self)))
        return PackedRecords(record for record in records if record.clip_id not in clip_ids)
