"""AudioCaps (Kim et al., NAACL 2019): ten-second YouTube clips with one training caption or five references."""

from __future__ import annotations

import csv
import math
import os
import re
from pathlib import Path
from typing import ClassVar

from lightning.pytorch.utilities import rank_zero_warn

from avcap_zoo.batch import Split
from avcap_zoo.data_modules.base import CaptionDataModule, ClipRecord, SplitIndex
from avcap_zoo.errors import DataError

COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
_SAFE_ID = re.compile(r"[A-Za-z0-9_-]+")
_LISTED_PROBLEMS = 5


class AudioCapsDataModule(CaptionDataModule):
    """The official CSV files with media beside them.

    Expected folder (what is not decoded may be absent):

        root/train.csv  val.csv  test.csv             audiocap_id,youtube_id,start_time,caption
        root/<split>/waveforms/<stem>.wav             or .flac .mp3 .ogg .m4a
        root/<split>/videos/<stem>.mp4                or .mkv .webm; also taken for sound if there is no waveform
        root/<split>/frames/<stem>/*.jpg              used if there is no video
        root/visual_feature/<split>/<stem>.npy        (frames, width) floats; if the folder exists, instead of pictures

    Folders may be links to another disk; a link of a single file that leads out of its folder and of `root` is not
    followed.

    A stem is `<youtube_id>_<start in ms>`, `Y<youtube_id>`, `<youtube_id>` or `<audiocap_id>`. The clip id is the
    YouTube id, which is unique in AudioCaps.

    Args:
        use_cached_features: False ignores `visual_feature/`.
        options: see `CaptionDataModule`.
    """

    name = "audiocaps"
    audio_suffixes: ClassVar[tuple[str, ...]] = (".wav", ".flac", ".mp3", ".ogg", ".m4a")
    video_suffixes: ClassVar[tuple[str, ...]] = (".mp4", ".mkv", ".webm")

    def __init__(self, root: str | None = None, *, use_cached_features: bool = True, **options: object) -> None:
        super().__init__(root, **options)  # type: ignore[arg-type]
        self.use_cached_features = use_cached_features

    def read_split(self, split: Split) -> SplitIndex:
        """Read `<split>.csv` and look for the media of each clip.

        Raises:
            DataError: no CSV, wrong columns, unsafe ids, or bad numbers (up to five lines are listed).
        """
        rows = self._read_rows(self.root / f"{split}.csv")
        sounds = self._by_stem(self.root / split / "waveforms", self.audio_suffixes)
        videos = self._by_stem(self.root / split / "videos", self.video_suffixes)
        frames = self._by_stem(self.root / split / "frames", ("",))
        features_folder = self.root / "visual_feature" / split
        cached = self.use_cached_features and features_folder.is_dir()
        features = self._by_stem(features_folder, (".npy",)) if cached else {}
        index = SplitIndex()
        for youtube_id, clip_rows in rows.items():
            captions = [row["caption"].strip() for row in clip_rows if row["caption"].strip()]
            if not captions:
                index.missing.append((youtube_id, "every caption is empty"))
                continue
            start_ms = round(float(clip_rows[0]["start_time"]) * 1000)
            stems = (f"{youtube_id}_{start_ms}", f"Y{youtube_id}", youtube_id, *(r["audiocap_id"] for r in clip_rows))

            def find(files: dict[str, str], stems: tuple[str, ...] = stems) -> str | None:
                return next((files[stem] for stem in stems if stem in files), None)

            visual = find(videos) or find(frames)
            record = ClipRecord(youtube_id, captions, find(sounds) or find(videos), visual, find(features))
            lacking = []
            if "audio" in self.modalities and record.audio is None:
                lacking.append("no sound file")
            if "visual" in self.modalities and (record.features if cached else visual) is None:
                lacking.append("no cached features" if cached else "no video or frames")
            if lacking:
                index.missing.append((youtube_id, " and ".join(lacking)))
            else:
                index.records.append(record)
        return index

    def _read_rows(self, path: Path) -> dict[str, list[dict[str, str]]]:
        """Rows of a CSV by YouTube id, in file order."""
        if not path.is_file():
            raise DataError(
                f"{path} does not exist; AudioCaps publishes train.csv, val.csv and test.csv, put them there"
            )
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                columns = list(reader.fieldnames or [])
                rows = [(reader.line_num, row) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is no CSV in UTF-8: {error}") from error
        absent = [column for column in COLUMNS if column not in columns]
        if absent:
            raise DataError(f"{path} has no column {', '.join(absent)}; found {', '.join(columns) or 'nothing'}")
        clips: dict[str, list[dict[str, str]]] = {}
        problems = []
        for line, row in rows:
            if not _SAFE_ID.fullmatch(row["youtube_id"] or "") or not _SAFE_ID.fullmatch(row["audiocap_id"] or ""):
                problems.append(f"line {line}: id {row['youtube_id']!r} or {row['audiocap_id']!r} is no safe id")
            elif not _is_number(row["start_time"]):
                problems.append(f"line {line}: start_time {row['start_time']!r} is no number")
            elif row["caption"] is None:
                problems.append(f"line {line}: fewer than four columns")
            else:
                clips.setdefault(row["youtube_id"], []).append(row)
        if problems:
            more = f" and {len(problems) - _LISTED_PROBLEMS} more" if len(problems) > _LISTED_PROBLEMS else ""
            raise DataError(f"{path}: {'; '.join(problems[:_LISTED_PROBLEMS])}{more}")
        if not clips:
            raise DataError(f"{path} holds no rows")
        return clips

    def _by_stem(self, folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
        """Files (for suffix "", folders) of a folder by stem; an earlier suffix wins."""
        if not folder.is_dir():
            return {}
        found: dict[str, str] = {}
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        allowed = (self.root.resolve(), folder.resolve())
        leading_out = set()
        for suffix in suffixes:
            for entry in entries:
                path = Path(entry.path)
                if path.suffix.lower() != suffix or not (entry.is_file() if suffix else entry.is_dir()):
                    continue
                # The user may link whole folders; a single link that leads out of them came with somebody's archive.
                if entry.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
                    leading_out.add(entry.name)
                    continue
                found.setdefault(path.stem, entry.path)
        if leading_out:
            rank_zero_warn(
                f"{len(leading_out)} links in {folder} lead out of it and are not followed, such as {min(leading_out)}"
            )
        return found


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and 0 <= float(text) < math.inf
    except ValueError:
        return False
