"""Clotho (Drossos et al., ICASSP 2020), versions 1, 2 and 2.1: Freesound clips of 15 to 30 s with five captions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

from avcap_zoo.batch import Modality, Split
from avcap_zoo.data_modules.annotations import Problems, file_name_problem, items_of, read_csv, read_json
from avcap_zoo.data_modules.base import CaptionDataModule, SplitIndex
from avcap_zoo.data_modules.caption_lists import NamedSounds, read_sound_list, stem_of
from avcap_zoo.data_modules.cropping import CropPolicy
from avcap_zoo.data_modules.media_files import ClipFiles

PARTS: dict[Split, str] = {"train": "development", "val": "validation", "test": "evaluation"}
CAPTION_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))
SAMPLE_RATE_HZ = 44_100
"""Of the published files; the metadata count in its samples."""

_NOT_IN_WINDOWS_NAMES = re.compile(r'[<>:"|?*]')


class ClothoDataModule(CaptionDataModule):
    """The published captions, with the unpacked sounds beside them.

    Expected folder:

        root/clotho_captions_<part>.csv               file_name,caption_1,...,caption_5
        root/clotho_metadata_<part>.csv               file_name, ..., start_end_samples, ...; may be absent
          or clotho_v2.1_{train,val,test}.json        sound_name, captions
        root/<part>/<file_name>                       or clotho_audio_<part>/, or both; .flac and others do as well

    The parts are development, validation and evaluation; version 1 has no validation. The CSV files may also lie in
    `root/clotho_csv_files`. The clip id is the file name without `.wav`.

    Clips last 15 to 30 s. What a model hears of them is a matter of `max_duration_s` and `crop`, which the results
    name; by default it is everything.

    Args:
        annotations: name of the captions' files, such as "clotho_v2.1_{split}.json" or "my_captions_{part}.csv";
            None = the first of those above that is there.
        modalities: sound is all there is.
        max_duration_s: longer sounds are cropped to this; None = never.
        crop: which part of a longer sound is kept: `start`, `centre`, or `seeded`.
        options: see `CaptionDataModule`.
    """

    name = "clotho"
    given_modalities: ClassVar[tuple[Modality, ...]] = ("audio",)

    def __init__(
        self,
        root: str | None = None,
        *,
        annotations: str | None = None,
        modalities: tuple[Modality, ...] = ("audio",),
        max_duration_s: float | None = None,
        crop: CropPolicy = "start",
        **options: object,
    ) -> None:
        super().__init__(
            root,
            modalities=modalities,
            max_duration_s=max_duration_s,
            crop=crop,
            **options,  # type: ignore[arg-type]
        )
        self.annotations = annotations

    def read_split(self, split: Split) -> SplitIndex:
        """Read the captions of a split, and look for its sounds.

        Raises:
            DataError: no captions, wrong columns, names that lead elsewhere, or one name with two sets of captions.
        """
        part = PARTS[split]
        path = self._captions_file(split)
        index = SplitIndex(sources=[str(path.relative_to(self.root))])
        clips = _read_clips(path, index)
        durations_s = self._read_durations(path, part, index)
        files = ClipFiles(
            self.root,
            sounds=(
                part,
                f"clotho_audio_{part}/{part}",
                f"clotho_audio_{part}",
                f"clotho_audio_files/{part}",
                f"audio/{part}",
                f"audiofolder/{part}",
            ),
        )
        for clip_id, clip in clips.items():
            captions = [caption.strip() for caption in clip.captions if caption.strip()]
            # Archives unpacked on Windows have "_" in place of what names may not hold there.
            stems = [*clip.stems, _NOT_IN_WINDOWS_NAMES.sub("_", clip_id), clip_id.strip()]
            if captions:
                duration_s = durations_s.get(clip_id, 0.0)
                files.add(index, clip_id, captions, stems, self.modalities, duration_s=duration_s)
            else:
                index.missing.append((clip_id, "every caption is empty"))
        return index

    def captions_of(self, split: Split) -> dict[str, list[str]]:
        """The captions of a split by clip id, in file order, whether or not the sounds are there.

        Raises:
            DataError: as in `read_split`.
        """
        clips = _read_clips(self._captions_file(split), SplitIndex())
        spoken = {clip_id: [text for text in map(str.strip, clip.captions) if text] for clip_id, clip in clips.items()}
        return {clip_id: captions for clip_id, captions in spoken.items() if captions}

    def _captions_file(self, split: Split) -> Path:
        patterns = (
            (self.annotations,)
            if self.annotations
            else (
                "clotho_captions_{part}.csv",
                "clotho_csv_files/clotho_captions_{part}.csv",
                "clotho_v2.1_{split}.json",
            )
        )
        paths = [self.root / pattern.replace("{split}", split).replace("{part}", PARTS[split]) for pattern in patterns]
        return next((path for path in paths if path.is_file()), paths[0])

    def _read_durations(self, captions: Path, part: str, index: SplitIndex) -> dict[str, float]:
        """Length of the clips whose metadata give it, by clip id."""
        path = captions.with_name(f"clotho_metadata_{part}.csv")
        if not path.is_file():
            return {}
        problems = Problems(path)
        # Published as UTF-8 in some versions and as Windows-1252 in others.
        rows = read_csv(path, ("file_name",), problems, hint="", legacy_encoding="cp1252")
        problems.raise_any()
        index.sources.append(str(path.relative_to(self.root)))
        found = {}
        for row in rows:
            numbers = re.fullmatch(r"\[(\d{1,12}), *(\d{1,12})\]", row.values.get("start_end_samples", "").strip())
            if numbers and int(numbers[2]) > int(numbers[1]):
                found[stem_of(row.values["file_name"])] = (int(numbers[2]) - int(numbers[1])) / SAMPLE_RATE_HZ
        return found


def _read_clips(path: Path, index: SplitIndex) -> dict[str, NamedSounds]:
    """Clips of either form by clip id, in file order."""
    if path.suffix == ".json":
        return read_sound_list(path, items_of(path, read_json(path, hint="put it there")), index, str)
    return read_captions(path, index)


def read_captions(path: Path, index: SplitIndex) -> dict[str, NamedSounds]:
    """Clips of a captions file by clip id, in file order.

    Raises:
        DataError: no such file, wrong columns, or names that lead elsewhere.
    """
    problems = Problems(path)
    part = path.stem.rpartition("_")[2]
    hint = f"Clotho publishes clotho_captions_{part}.csv, put it there"
    if part == PARTS["val"]:
        hint += " (version 1 has none: take version 2 or 2.1)"
    clips: dict[str, NamedSounds] = {}
    for row in read_csv(path, ("file_name", *CAPTION_COLUMNS), problems, hint=hint):
        name = row.values["file_name"]
        captions = [row.values[column] for column in CAPTION_COLUMNS]
        if problem := file_name_problem(name):
            problems.add(row.place, problem)
            continue
        clip_id = stem_of(name)
        if clip_id not in clips:
            clips[clip_id] = NamedSounds(captions, [clip_id])
        else:
            # Version 2.1 has "young artists.wav" twice: one file, so one clip.
            same = clips[clip_id].captions == captions
            index.leave_out("repeated rows" if same else "further rows of a file that has captions already")
    problems.raise_any()
    return clips
