"""VGGSS (Chen et al., CVPR 2021), boxes around what sounds, and VGGSound (Chen et al., ICASSP 2020), its clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from avcap_zoo.batch import Split
from avcap_zoo.data_modules.annotations import (
    Problems,
    is_safe_id,
    items_of,
    objects_of,
    parse_seconds,
    read_csv,
    read_json,
)
from avcap_zoo.data_modules.base import CaptionDataModule, SplitIndex
from avcap_zoo.data_modules.media_files import ClipFiles

CLIP_S = 10.0
FRAME_AT_S = 5.0
"""The frame that was annotated: the 125th of a video of 25 frames a second."""
OVERHANG = 0.01
"""Boxes may reach this far out of the picture, as a share of its side; they are cut off there."""


@dataclass
class SoundingClip:
    """An entry of vggss.json.

    Attributes:
        name: YouTube id and start, as in the file.
        youtube_id: of the video.
        start_s: where the clip begins in it.
        label: class of the sound.
        boxes: left, top, right, bottom as shares of the picture's sides.
    """

    name: str
    youtube_id: str
    start_s: int
    label: str
    boxes: list[tuple[float, float, float, float]]


class VGGSSDataModule(CaptionDataModule):
    """VGGSS, one frame with boxes and ten seconds of sound a clip; or VGGSound, ten seconds of video.

    Expected folder:

        root/vggss.json                     file, class, bbox
        root/vggsound.csv                   id, start second, class, split; without a header. For VGGSS it may be absent
        root/vggss_test.csv                 one file name of vggss.json a line: the test split; may be absent
        root/audio/<stem>.wav               or wav/, audios/, waveforms/; other formats as well
        root/image/<stem>.jpg               the frame at 5 s; or images/, frames/
        root/video/<stem>.mp4               or videos/; taken for what of sound and picture is not there

    A stem is the name in vggss.json, `<youtube_id>_<start as six digits>`, the id with the start as plain seconds, in
    milliseconds, or with the end, or the id alone. The two files name the same clips differently; both are understood.

    VGGSS was made from VGGSound's test clips, so without `vggss_test.csv` and `vggsound.csv` all of it is test data.
    The caption is the class label: the data set has no sentences.

    Args:
        annotations: `vggss` or `vggsound`.
        whole_set_as: take all of vggss.json as this split; BuboGPT (arXiv 2307.08581) trains on it.
        num_frames: frames per clip; in VGGSS each shows the moment that was annotated.
        options: see `CaptionDataModule`.
    """

    name = "vggss"

    def __init__(
        self,
        root: str | None = None,
        *,
        annotations: Literal["vggss", "vggsound"] = "vggss",
        whole_set_as: Split | None = None,
        num_frames: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(root, num_frames=num_frames, **options)
        self.annotations = annotations
        self.whole_set_as = whole_set_as

    def has_validation(self) -> bool:
        """Neither set publishes validation clips; the embedded scenes do, in vggsound.csv."""
        return self.whole_set_as == "val" or (self.whole_set_as is None and bool(self._index("val").num_official))

    def read_split(self, split: Split) -> SplitIndex:
        """Read the annotations and look for the media of each clip.

        Raises:
            DataError: files missing or malformed, unsafe names; all problems of a file at once.
        """
        return self._read_vggss(split) if self.annotations == "vggss" else self._read_vggsound(split)

    def _read_vggss(self, split: Split) -> SplitIndex:
        index = SplitIndex(sources=["vggss.json"])
        clips = read_vggss(self.root / "vggss.json", index)
        split_of = self._splits_of_clips(clips, index)
        files = self._files()
        for clip in clips:
            if split_of[clip.name] != split:
                continue
            shown = {"label": clip.label, "onset_s": 0.0, "offset_s": CLIP_S}
            files.add(
                index,
                clip.name,
                [clip.label],
                _stems(clip.name, clip.youtube_id, clip.start_s),
                self.modalities,
                objects=[{**shown, "box": list(box)} for box in clip.boxes],
                duration_s=CLIP_S,
                frame_at_s=FRAME_AT_S,
            )
        return index

    def _splits_of_clips(self, clips: list[SoundingClip], index: SplitIndex) -> dict[str, Split]:
        """Which split each clip belongs to."""
        if self.whole_set_as is not None:
            return dict.fromkeys((clip.name for clip in clips), self.whole_set_as)
        if (path := self.root / "vggsound.csv").is_file():
            index.sources.append(path.name)
            known = {(row.youtube_id, row.start_s): row.split for row in read_vggsound(path, SplitIndex())}
            absent = [clip.name for clip in clips if (clip.youtube_id, clip.start_s) not in known]
            index.leave_out("clips that vggsound.csv does not have", len(absent))
            return {clip.name: known.get((clip.youtube_id, clip.start_s), "") for clip in clips}  # type: ignore[misc]
        if (path := self.root / "vggss_test.csv").is_file():
            index.sources.append(path.name)
            problems = Problems(path)
            rows = read_csv(path, ("file",), problems, hint="", has_header=False)
            problems.raise_any()
            test = {row.values["file"].strip().rpartition(".")[0] or row.values["file"].strip() for row in rows}
            return {clip.name: "test" if clip.name in test else "train" for clip in clips}
        return dict.fromkeys((clip.name for clip in clips), "test")

    def _read_vggsound(self, split: Split) -> SplitIndex:
        index = SplitIndex(sources=["vggsound.csv"])
        files = self._files()
        for row in read_vggsound(self.root / "vggsound.csv", index):
            if row.split == split:
                name = f"{row.youtube_id}_{row.start_s:06d}"
                files.add(index, name, [row.label], _stems(name, row.youtube_id, row.start_s), self.modalities)
        return index

    def _files(self) -> ClipFiles:
        return ClipFiles(
            self.root,
            sounds=("audio", "audios", "wav", "waveforms"),
            # A single frame does not stand for ten seconds of video.
            pictures=("image", "images", "frames") if self.annotations == "vggss" else (),
            videos=("video", "videos"),
        )


@dataclass
class VGGSoundRow:
    """A row of vggsound.csv."""

    youtube_id: str
    start_s: int
    label: str
    split: str


def read_vggss(path: Path, index: SplitIndex) -> list[SoundingClip]:
    """Read vggss.json.

    Boxes without area, and those that are no part of the picture, are left out and counted in `index`; so are entries
    that name a file again. A clip may so be left without boxes.

    Args:
        path: the file.
        index: counts what is left out.

    Raises:
        DataError: no such file, no list of objects, unsafe names, labels that are no text, boxes that are no numbers.
    """
    hint = "VGGSS publishes vggss.json on its project page, put it there"
    problems = Problems(path)
    clips: dict[str, SoundingClip] = {}
    for place, item in objects_of(items_of(path, read_json(path, hint=hint)), ("file", "class", "bbox"), problems):
        name, label, boxes = item["file"], item["class"], item["bbox"]
        youtube_id, _, start = name.rpartition("_") if isinstance(name, str) else ("", "", "")
        if not is_safe_id(youtube_id) or not (start.isascii() and start.isdigit()):
            problems.add(place, f"file {name!r} is not <YouTube id>_<start second>")
        elif not isinstance(label, str) or not label.strip():
            problems.add(place, f"class {label!r} is no text")
        elif not isinstance(boxes, list) or not all(map(_is_box, boxes)):
            problems.add(place, f"bbox {str(boxes)[:60]} is no list of boxes of four numbers")
        elif name in clips:
            index.leave_out("entries that name a file again")
        else:
            kept = [cut for box in boxes if (cut := _cut(box)) is not None]
            index.leave_out("boxes without area or outside the picture", len(boxes) - len(kept))
            clips[name] = SoundingClip(name, youtube_id, int(start), label.strip(), kept)
    problems.raise_any()
    return list(clips.values())


def read_vggsound(path: Path, index: SplitIndex) -> list[VGGSoundRow]:
    """Read vggsound.csv: YouTube id, start second, class, split, without a header.

    Args:
        path: the file.
        index: counts the rows that name a clip again.

    Raises:
        DataError: no such file, unsafe ids, starts that are no whole seconds, or unknown splits.
    """
    hint = "VGGSound publishes vggsound.csv on its project page, put it there"
    problems = Problems(path)
    found: dict[tuple[str, int], VGGSoundRow] = {}
    for row in read_csv(path, ("id", "start", "class", "split"), problems, hint=hint, has_header=False):
        youtube_id, start, label, split = (row.values[name].strip() for name in ("id", "start", "class", "split"))
        start_s = parse_seconds(start)
        if not is_safe_id(youtube_id):
            problems.add(row.place, f"id {youtube_id!r} is no safe id")
        elif start_s is None or start_s != int(start_s):
            problems.add(row.place, f"start {start!r} is no whole second")
        elif split not in {"train", "val", "test"} or not label:
            problems.add(row.place, f"class {label!r} or split {split!r} is none, wanted a text and train or test")
        elif (youtube_id, int(start_s)) in found:
            index.leave_out("rows that name a clip again")
        else:
            found[youtube_id, int(start_s)] = VGGSoundRow(youtube_id, int(start_s), label, split)
    problems.raise_any()
    return list(found.values())


def _stems(name: str, youtube_id: str, start_s: int) -> list[str]:
    end_s = start_s + round(CLIP_S)
    return [
        name,
        f"{youtube_id}_{start_s:06d}",
        f"{youtube_id}_{start_s}",
        f"{youtube_id}_{start_s * 1000}_{end_s * 1000}",
        f"{youtube_id}_{start_s * 1000}",
        f"{youtube_id}_{start_s}_{end_s}",
        youtube_id,
    ]


def _is_box(box: object) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in box)
    )


def _cut(box: list[float]) -> tuple[float, float, float, float] | None:
    """The box within the picture; None if it has no area or is not given in shares of the picture."""
    if not all(math.isfinite(side) and -OVERHANG <= side <= 1 + OVERHANG for side in box):
        return None
    left, top, right, bottom = (min(max(float(side), 0.0), 1.0) for side in box)
    return (left, top, right, bottom) if left < right and top < bottom else None
