"""Which file belongs to which clip: one scan of each folder, then look-ups under all the names a clip may have."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from avcap_zoo.batch import Modality
from avcap_zoo.data_modules.base import ClipRecord, SplitIndex
from avcap_zoo.data_modules.media.video import PICTURE_SUFFIXES

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".opus", ".aac")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm")
FEATURE_SUFFIXES = (".npy",)
FOLDERS = ("",)
"""In place of suffixes: folders are looked for, not files."""


class MediaFiles:
    """The files of one kind, by stem.

    Args:
        root: the data folder; links of single files that lead out of it and of their folder are not followed.
        folders: where to look, relative to `root`; an earlier one wins. Those that do not exist are skipped.
        suffixes: in lower case, with the dot; an earlier one wins within a folder. `FOLDERS` = look for folders.
        deep: look into sub-folders, too.
    """

    def __init__(self, root: Path, folders: Iterable[str], suffixes: Sequence[str], *, deep: bool = False) -> None:
        self.suffixes = tuple(suffixes)
        self._paths: dict[str, str] = {}
        self._others: dict[str, str] = {}
        ranks = {suffix: rank for rank, suffix in enumerate(self.suffixes)}
        looked_at: set[str] = set()
        for folder in folders:
            place = root / folder
            if not place.is_dir() or (real := os.path.realpath(place)) in looked_at:
                continue
            looked_at.add(real)
            here: dict[str, tuple[int, str]] = {}
            for name, path, is_folder in sorted(scan_folder(place, root, deep=deep)):
                stem, suffix = (name, "") if is_folder else os.path.splitext(name)  # noqa: PTH122 - on a name
                rank = ranks.get(suffix.lower()) if is_folder == (self.suffixes == FOLDERS) else None
                stem = _composed(stem)
                if rank is None:
                    if not is_folder:
                        self._others.setdefault(stem, name)
                elif stem not in here or rank < here[stem][0]:
                    here[stem] = (rank, path)
            for stem, (_, path) in here.items():
                self._paths.setdefault(stem, path)

    def __len__(self) -> int:
        """Number of files found."""
        return len(self._paths)

    def find(self, stems: Iterable[str]) -> str | None:
        """Path under the first of these stems that is there."""
        return _first(self._paths, stems)

    def other_file(self, stems: Iterable[str]) -> str | None:
        """Name of a file that has one of these stems but none of the suffixes."""
        return _first(self._others, stems)


class ClipFiles:
    """All kinds of media of a data set, and the decision whether a clip is there.

    Args:
        root: the data folder.
        sounds: folders of sound files.
        pictures: folders of single pictures.
        videos: folders of videos, which also serve for sound if there is no sound file.
        frames: folders that hold a folder of pictures per clip.
        features: folders of .npy files with one vector per frame, which then count instead of pictures; None = unused.
        deep: look into sub-folders, too.
    """

    def __init__(
        self,
        root: Path,
        *,
        sounds: Sequence[str] = (),
        pictures: Sequence[str] = (),
        videos: Sequence[str] = (),
        frames: Sequence[str] = (),
        features: Sequence[str] | None = None,
        deep: bool = False,
    ) -> None:
        self.sounds = MediaFiles(root, sounds, AUDIO_SUFFIXES, deep=deep)
        self.pictures = MediaFiles(root, pictures, PICTURE_SUFFIXES, deep=deep)
        self.videos = MediaFiles(root, videos, VIDEO_SUFFIXES, deep=deep)
        self.frames = MediaFiles(root, frames, FOLDERS)
        self.features = MediaFiles(root, features or (), FEATURE_SUFFIXES, deep=deep)
        self.visual_kinds = " or ".join(
            kind for kind, wanted in (("picture", pictures), ("video", videos), ("frames", frames)) if wanted
        )
        self.uses_features = features is not None

    def add(
        self,
        index: SplitIndex,
        clip_id: str,
        captions: list[str],
        stems: Sequence[str],
        modalities: Sequence[Modality],
        **details: Any,
    ) -> None:
        """Add a clip to the records, or to the missing with what it lacks.

        Args:
            index: takes the clip.
            clip_id: of the clip.
            captions: of the clip.
            stems: names under which its media may lie; an earlier one wins.
            modalities: what must be there.
            details: further fields of the `ClipRecord`.
        """
        visual = self.pictures.find(stems) or self.videos.find(stems) or self.frames.find(stems)
        audio = self.sounds.find(stems) or self.videos.find(stems)
        features = self.features.find(stems)
        lacking = []
        if "audio" in modalities and audio is None:
            lacking.append(_lack("no sound file", self.sounds, stems))
        if "visual" in modalities:
            if self.uses_features and features is None:
                lacking.append("no cached features")
            elif not self.uses_features and visual is None:
                files = self.videos if self.videos.other_file(stems) else self.pictures
                lacking.append(_lack(f"no {self.visual_kinds}", files, stems))
        if lacking:
            index.missing.append((clip_id, " and ".join(lacking)))
        else:
            index.records.append(
                ClipRecord(clip_id, captions, audio=audio, visual=visual, features=features, **details)
            )


def scan_folder(folder: Path, root: Path, *, deep: bool = False) -> Iterator[tuple[str, str, bool]]:
    """Name, path and whether it is a folder, of all that lies in a folder; hidden names are passed over.

    A link that leads out of the folder and of `root` is not followed: the user may link whole folders, but a single
    link that leads out came with somebody's archive. Links are followed once each, so that none leads in circles.

    Args:
        folder: to look into.
        root: of the data set.
        deep: look into sub-folders, too; these are then not listed themselves.
    """
    allowed = (root.resolve(), folder.resolve())
    leading_out: set[str] = set()
    visited: set[str] = set()
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        if deep:
            real = os.path.realpath(place)
            if real in visited:
                continue
            visited.add(real)
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):  # "._x.wav" is some system's note about x.wav
                    continue
                if entry.is_symlink() and not any(Path(entry.path).resolve().is_relative_to(p) for p in allowed):
                    leading_out.add(entry.name)
                elif entry.is_file():
                    yield entry.name, entry.path, False
                elif entry.is_dir():
                    if deep:
                        waiting.append(entry.path)
                    else:
                        yield entry.name, entry.path, True
    if leading_out:
        rank_zero_warn(
            f"{len(leading_out)} links in {folder} lead out of it and are not followed, such as {min(leading_out)}"
        )


def _first(names: dict[str, str], stems: Iterable[str]) -> str | None:
    if names:
        for stem in stems:
            if (found := names.get(_composed(stem))) is not None:
                return found
    return None


def _composed(stem: str) -> str:
    """One spelling of accents: some systems store é as two characters."""
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


def _lack(what: str, files: MediaFiles, stems: Sequence[str]) -> str:
    other = files.other_file(stems)
    return what if other is None else f"{what} ({other} is none of {' '.join(files.suffixes)})"
