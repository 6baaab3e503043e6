"""AudioCaps (Kim et al., NAACL 2019): ten-second YouTube clips with one training caption or five references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from avcap_zoo.data_modules.caption_lists import NamedSounds, read_sound_list
from avcap_zoo.data_modules.media_files import ClipFiles
from avcap_zoo.errors import DataError

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
CLIP_S = 10
"""Length of a clip, part of some file names."""
YOUTUBE_ID_LENGTH = 11


class AudioCapsDataModule(CaptionDataModule):
    """The official CSV files of version 1 or 2, or the JSON lists of two published systems, with media beside them.

    Expected folder (what is not decoded may be absent):

        root/train.csv  val.csv  test.csv             audiocap_id,youtube_id,start_time,caption
          or train.json  test.json  test_coco.json    audio_path, caption ...; the references of the test clips
          or AudioCaps_{train,val,test}.json          sound_name, captions
        root/<split>/waveforms/<stem>.wav             or .flac .mp3 .ogg .m4a .opus .aac
        root/<split>/videos/<stem>.mp4                or .mkv .webm; also taken for sound if there is no waveform
        root/<split>/frames/<stem>/*.jpg              used if there is no video
        root/visual_feature/<split>/<stem>.npy        (frames, width) floats; if the folder exists, instead of pictures

    Media may also lie in `root/waveforms/<split>`, `root/waveforms`, and so on; `audio` and `video` are taken for
    `waveforms` and `videos`. Folders may be links to another disk; a link of a single file that leads out of its
    folder and of `root` is not followed.

    A stem is `<youtube_id>_<start in ms>`, `Y<youtube_id>`, `<youtube_id>`, `<audiocap_id>`, or the name with start
    and end in seconds that AudioSet's and VGGSound's tools give. The clip id is the YouTube id, followed by the start
    in ms where several clips come from one video.

    Args:
        annotations: name of the annotation files, such as "AudioCaps_{split}.json"; None = the first of those above
            that is there.
        use_cached_features: False ignores `visual_feature/`.
        options: see `CaptionDataModule`.
    """

    name = "audiocaps"

    def __init__(
        self,
        root: str | None = None,
        *,
        annotations: str | None = None,
        use_cached_features: bool = True,
        **options: object,
    ) -> None:
        super().__init__(root, **options)  # type: ignore[arg-type]
        self.annotations = annotations
        self.use_cached_features = use_cached_features

    def read_split(self, split: Split) -> SplitIndex:
        """Read the annotations of a split and look for the media of each clip.

        Raises:
            DataError: no annotations, wrong columns or keys, unsafe ids, bad numbers, or one id for two clips.
        """
        path = self._annotation_file(split)
        index = SplitIndex(sources=[path.name])
        clips = read_clips(path, index) if path.suffix == ".csv" else _read_list(path, split, index)
        features_folder = self.root / "visual_feature" / split
        cached = self.use_cached_features and features_folder.is_dir()
        files = ClipFiles(
            self.root,
            sounds=_folders(split, "waveforms", "audio"),
            videos=_folders(split, "videos", "video"),
            frames=_folders(split, "frames"),
            features=(f"visual_feature/{split}",) if cached else None,
        )
        for clip_id, clip in clips.items():
            captions = [caption.strip() for caption in clip.captions if caption.strip()]
            if captions:
                files.add(index, clip_id, captions, clip.stems, self.modalities)
            else:
                index.missing.append((clip_id, "every caption is empty"))
        return index

    def _annotation_file(self, split: Split) -> Path:
        patterns = (
            (self.annotations,) if self.annotations else ("{split}.csv", "{split}.json", "AudioCaps_{split}.json")
        )
        paths = [self.root / pattern.replace("{split}", split) for pattern in patterns]
        found = next((path for path in paths if path.is_file()), None)
        if found is None and self.annotations:
            raise DataError(f"{paths[0]} does not exist; data.init_args.annotations names it")
        if found is None:
            raise DataError(
                f"{paths[0]} does not exist; AudioCaps publishes train.csv, val.csv and test.csv, put them there "
                f"({', '.join(path.name for path in paths[1:])} would be read, too)"
            )
        return found


def _folders(split: Split, *names: str) -> tuple[str, ...]:
    """Where media of a split may lie, the usual places first."""
    return tuple(
        pattern.format(name=name, split=split)
        for pattern in ("{split}/{name}", "{name}/{split}", "{name}")
        for name in names
    )


def read_clips(path: Path, index: SplitIndex) -> dict[str, NamedSounds]:
    """Clips of a CSV by clip id, in file order.

    Raises:
        DataError: no such file, wrong columns, unsafe ids, bad numbers, or one id for two clips.
    """
    problems = Problems(path)
    hint = "AudioCaps publishes train.csv, val.csv and test.csv, put them there"
    seen: set[tuple[str, ...]] = set()
    clip_of_number: dict[str, tuple[tuple[str, float], str]] = {}
    clips: dict[tuple[str, float], NamedSounds] = {}
    for row in read_csv(path, COLUMNS, problems, hint=hint):
        number, youtube_id, start, caption = (row.values[column] for column in COLUMNS)
        start_s = parse_seconds(start)
        if not is_safe_id(youtube_id) or not is_safe_id(number):
            problems.add(row.place, f"id {youtube_id!r} or {number!r} is no safe id")
        elif start_s is None:
            problems.add(row.place, f"start_time {start!r} is no number")
        elif (number, youtube_id, start, caption) in seen:
            index.leave_out("repeated rows")
        else:
            seen.add((number, youtube_id, start, caption))
            clip = (youtube_id, start_s)
            other, place = clip_of_number.setdefault(number, (clip, row.place))
            if other != clip:
                problems.add(row.place, f"audiocap_id {number!r} is that of another clip on {place}")
            entry = clips.setdefault(clip, NamedSounds([], []))
            entry.captions.append(caption)
            entry.stems.append(number)
    problems.raise_any()
    starts: dict[str, int] = {}
    for youtube_id, _ in clips:
        starts[youtube_id] = starts.get(youtube_id, 0) + 1
    named = {}
    for (youtube_id, start_s), clip_ in clips.items():
        alone = starts[youtube_id] == 1
        named[youtube_id if alone else f"{youtube_id}_{round(start_s * 1000)}"] = NamedSounds(
            clip_.captions, [*_stems(youtube_id, start_s, alone=alone), *clip_.stems]
        )
    return named


def _stems(youtube_id: str, start_s: float, *, alone: bool) -> list[str]:
    """Names under which people keep a clip; without the start only if the video has no other clip."""
    seconds, end = round(start_s), round(start_s) + CLIP_S
    stems = [f"{youtube_id}_{round(start_s * 1000)}", *([f"Y{youtube_id}", youtube_id] if alone else [])]
    return [
        *stems,
        f"{youtube_id}_{seconds:06d}",
        f"{youtube_id}_{seconds}_{end}",
        f"Y{youtube_id}_{seconds}.000_{end}.000",
    ]


def _read_list(path: Path, split: Split, index: SplitIndex) -> dict[str, NamedSounds]:
    """Clips of a JSON list by clip id: the file name of the sound without start time where that is unambiguous."""
    content = read_json(path, hint="put it there")
    items = items_of(path, content)
    if isinstance(items[0], dict) and "sound_name" in items[0]:
        return read_sound_list(path, items, index, _id_of_stem)
    problems = Problems(path)
    clips: dict[str, NamedSounds] = {}
    for place, item in objects_of(items, ("audio_path", "caption"), problems):
        stem = item["audio_path"].removesuffix(".wav") if isinstance(item["audio_path"], str) else ""
        if not is_safe_id(stem):
            problems.add(place, f"audio_path {item['audio_path']!r} is no safe file name")
        elif not isinstance(item["caption"], str):
            problems.add(place, f"caption {item['caption']!r} is no text")
        else:
            clip_id = str(item.get("youtube_id") or _id_of_stem(stem))
            if not is_safe_id(clip_id):
                problems.add(place, f"youtube_id {clip_id!r} is no safe id")
                continue
            clip = clips.setdefault(clip_id, NamedSounds([], [stem]))
            if stem not in clip.stems:
                problems.add(place, f"youtube_id {clip_id!r} names {stem!r} and {clip.stems[0]!r}")
            elif item["caption"] in clip.captions:
                index.leave_out("repeated rows")
            else:
                clip.captions.append(item["caption"])
    problems.raise_any()
    references = path.with_name(f"{split}_coco.json")
    if references.is_file():
        index.sources.append(references.name)
        _take_references(references, clips)
    for clip_id, clip in clips.items():
        clip.stems += [f"Y{clip_id}", clip_id]
    return clips


def _id_of_stem(stem: str) -> str:
    """The YouTube id of `<youtube_id>_<start in ms>`; other stems stand for themselves."""
    front, _, start = stem.rpartition("_")
    return front if front and start.isdigit() and len(stem) > YOUTUBE_ID_LENGTH else stem


def _take_references(path: Path, clips: dict[str, NamedSounds]) -> None:
    """Replace the captions by all references of a file in the format of COCO's captions."""
    problems = Problems(path)
    references: dict[str, list[str]] = {}
    rows: list[tuple[str, dict[str, Any]]] = objects_of(
        items_of(path, read_json(path, hint="put it there"), "annotations"), ("image_id", "caption"), problems
    )
    for place, item in rows:
        if isinstance(item["caption"], str):
            references.setdefault(str(item["image_id"]), []).append(item["caption"])
        else:
            problems.add(place, f"caption {item['caption']!r} is no text")
    lacking = [clip_id for clip_id in clips if clip_id not in references]
    if lacking:
        problems.add("annotations", f"no references for {len(lacking)} clips, such as {', '.join(lacking[:3])}")
    problems.raise_any()
    for clip_id, clip in clips.items():
        clip.captions[:] = references[clip_id]
