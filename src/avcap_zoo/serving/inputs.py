"""What is to be captioned: files, folders, patterns and lists to records of clips, and what is wrong with some."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from avcap_zoo.batch import Modality, SkippedClip
from avcap_zoo.data_modules.media.duration import read_duration_s
from avcap_zoo.data_modules.media.video import PICTURE_SUFFIXES
from avcap_zoo.data_modules.records import ClipRecord
from avcap_zoo.errors import DataError, MediaError

SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".aif", ".wma")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".flv", ".gif", ".wmv")
MEDIA_SUFFIXES = (*SOUND_SUFFIXES, *VIDEO_SUFFIXES, *PICTURE_SUFFIXES)
LIST_SUFFIXES = (".csv", ".jsonl", ".txt")
SHORTEST_WINDOW_S = 0.5
"""A shorter rest at the end of a file gets no window of its own."""


@dataclass
class Inputs:
    """Clips to caption, each id once, and what cannot be used.

    Attributes:
        clips: in the order given; a file stands for both its sound and its pictures.
        problems: id, path and reason of what was named and cannot be captioned.
    """

    clips: list[ClipRecord] = field(default_factory=list)
    problems: list[SkippedClip] = field(default_factory=list)

    def add(self, record: ClipRecord) -> None:
        """Take a clip; one that is known already is not taken twice.

        Two clips of one id are a problem if they are of different media. Bytes of a file's name that are no text are
        spelled out in its id.
        """
        record = replace(record, clip_id=record.clip_id.encode("utf-8", "backslashreplace").decode())
        known = self._by_id.setdefault(record.clip_id, record)
        if known is record:
            self.clips.append(record)
        elif known != record:
            self.refuse(record.clip_id, record.audio or record.visual, "another clip of the list has this id")

    def refuse(self, clip_id: str, path: str | None, reason: str) -> None:
        """Note what cannot be used."""
        self.problems.append(SkippedClip(clip_id, path, reason))

    def __post_init__(self) -> None:
        self._by_id: dict[str, ClipRecord] = {record.clip_id: record for record in self.clips}


def find_inputs(words: Sequence[str], stdin: Iterable[str] = ()) -> Inputs:
    """Everything that the words of a command line name.

    A word is a media file, a folder (searched to the bottom, hidden files left out), a pattern with * ? or [ ], a list
    (`.csv`, `.jsonl`, `.txt`), or `-` for a list on standard input. The id of a file is its path as it was found.

    Lists: a line of text is a path. JSON lines and CSV have `path`, or `audio` and `visual` (a video, a picture or a
    folder of frames); `id`, and `start_s` with `end_s` for a part of the file, may be added. Paths count from the
    folder of the list; those of standard input from the current one.

    Args:
        words: what the user named.
        stdin: lines, read if one of the words is `-`.

    Returns:
        Clips, and problems of single names and rows.

    Raises:
        DataError: a list as a whole cannot be read.
    """
    inputs = Inputs()
    for word in words:
        if word == "-":
            _add_rows(inputs, _rows_of_lines(stdin), Path(), "standard input")
            continue
        paths = [word] if Path(word).exists() else sorted(glob.glob(word, recursive=True))  # noqa: PTH207 - absolute patterns, too
        if not paths:
            inputs.refuse(word, word, "no file matches" if glob.has_magic(word) else "no such file")
        for path in paths:
            _add_path(inputs, path)
    return inputs


def inputs_in_parts(path: Path, num_rows: int) -> Iterator[Callable[[], Inputs]]:
    """A list in parts of so many rows, each made into clips when it is called: a part is all that is held in memory.

    Args:
        path: of the list; see `find_inputs`.
        num_rows: of a part; the last one may be shorter.

    Raises:
        DataError: the list cannot be read.
    """

    def part(rows: list[tuple[int, Any]]) -> Inputs:
        inputs = Inputs()
        _add_rows(inputs, rows, path.parent, str(path))
        return inputs

    rows = _rows_of_file(path)
    while taken := list(islice(rows, num_rows)):
        yield partial(part, taken)


def with_modalities(inputs: Inputs, modalities: Sequence[Modality]) -> Inputs:
    """The inputs as a system of these modalities takes them; clips that lack one become problems.

    Args:
        inputs: from `find_inputs`.
        modalities: what the system needs.
    """
    fitting = Inputs(problems=list(inputs.problems))
    for record in inputs.clips:
        lacking = _what_is_lacking(record, modalities)
        if lacking:
            fitting.refuse(record.clip_id, record.audio or record.visual, lacking)
        else:
            fitting.add(record)
    return fitting


def cut_into_windows(inputs: Inputs, window_s: float, hop_s: float) -> Inputs:
    """Each file as clips of `window_s` that begin every `hop_s`, the last one shorter; ids end in `#t=from,to`.

    Pictures, and rows that name a part themselves, stay as they are. A rest of less than half a second is left out.

    Args:
        inputs: whole files.
        window_s: length of a window in seconds.
        hop_s: from the beginning of one to the beginning of the next, in seconds.
    """
    cut = Inputs(problems=list(inputs.problems))
    for record in inputs.clips:
        path = record.audio or record.visual
        if path is None or record.window_s is not None or Path(path).is_dir() or _is_picture(path):
            cut.add(record)
            continue
        try:
            duration_s = read_duration_s(Path(path), record.clip_id)
        except MediaError as error:
            cut.refuse(record.clip_id, path, error.reason)
            continue
        for start_s, end_s in windows(duration_s, window_s, hop_s):
            clip_id = f"{record.clip_id}#t={start_s:g},{end_s:g}"
            cut.add(replace(record, clip_id=clip_id, window_s=(start_s, end_s)))
    return cut


def windows(duration_s: float, window_s: float, hop_s: float) -> list[tuple[float, float]]:
    """From and to, in seconds, of the windows of a file; to the millisecond."""
    found = []
    count = 0
    while count == 0 or duration_s - count * hop_s >= SHORTEST_WINDOW_S:
        start_s = count * hop_s
        found.append((round(start_s, 3), round(min(start_s + window_s, duration_s), 3)))
        if start_s + window_s >= duration_s:
            break
        count += 1
    return found


def _add_path(inputs: Inputs, path: str) -> None:
    suffix = Path(path).suffix.lower()
    if Path(path).is_dir():
        before = len(inputs.clips)
        for below in sorted(Path(path).rglob("*")):
            hidden = any(part.startswith(".") for part in below.relative_to(path).parts)
            if below.suffix.lower() in MEDIA_SUFFIXES and below.is_file() and not hidden:
                inputs.add(_record(below.as_posix()))
        if len(inputs.clips) == before:
            inputs.refuse(path, path, "the folder holds no sound, video or picture")
    elif suffix in LIST_SUFFIXES:
        _add_rows(inputs, _rows_of_file(Path(path)), Path(path).parent, path)
    elif suffix in MEDIA_SUFFIXES:
        inputs.add(_record(path))
    else:
        inputs.refuse(path, path, f"{suffix or 'no extension'} is none of {' '.join(MEDIA_SUFFIXES)}")


def _record(path: str) -> ClipRecord:
    return ClipRecord(path, [], audio=path, visual=path)


def _rows_of_file(path: Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and rows, read as they are asked for."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() != ".csv":
                yield from _rows_of_lines(file)
                return
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if not {"path", "audio", "visual"} & set(columns):
                raise DataError(
                    f"{path} has the columns {', '.join(columns) or 'none'}; wanted path, or audio and visual"
                )
            for row in reader:
                yield reader.line_num, {key: value for key, value in row.items() if key is not None and value}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a list of clips: {error}") from error


def _rows_of_lines(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text.startswith("{"):
            try:
                yield number, json.loads(text)
            except ValueError:
                yield number, None
        elif text:
            yield number, {"path": text}


def _add_rows(inputs: Inputs, rows: Iterable[tuple[int, Any]], folder: Path, name: str) -> None:
    for number, row in rows:
        where = f"{name}:{number}"
        if not isinstance(row, dict):
            inputs.refuse(where, None, "the line is neither a path nor a JSON object")
            continue
        named = {key: row[key] for key in ("path", "audio", "visual") if row.get(key)}
        if not named or not all(isinstance(path, str) for path in named.values()):
            keys = ", ".join(map(str, row)) or "none"
            inputs.refuse(where, None, f"found the keys {keys}; wanted path, or audio and visual")
            continue
        paths = {key: (folder / path).as_posix() for key, path in named.items()}
        whole = paths.get("path")
        clip_id = str(row.get("id") or paths.get("path") or paths.get("audio") or paths.get("visual"))
        absent = [path for path in paths.values() if not Path(path).exists()]
        if absent:
            inputs.refuse(clip_id, absent[0], "no such file")
            continue
        try:
            window_s = _window(row)
        except (TypeError, ValueError):
            span = f"{row.get('start_s')!r} to {row.get('end_s')!r}"
            inputs.refuse(clip_id, where, f"start_s and end_s are {span}, wanted two rising numbers of seconds from 0")
            continue
        if window_s is not None and not row.get("id"):
            clip_id = f"{clip_id}#t={window_s[0]:g},{window_s[1]:g}"
        inputs.add(
            ClipRecord(clip_id, [], paths.get("audio") or whole, paths.get("visual") or whole, window_s=window_s)
        )


def _window(row: dict[str, Any]) -> tuple[float, float] | None:
    if row.get("start_s") is None and row.get("end_s") is None:
        return None
    start_s, end_s = float(row.get("start_s") or 0), float(row["end_s"] if row.get("end_s") is not None else "nan")
    if not 0 <= start_s < end_s < float("inf"):
        raise ValueError
    return start_s, end_s


def _what_is_lacking(record: ClipRecord, modalities: Sequence[Modality]) -> str:
    if "audio" in modalities and record.audio is None:
        return "the row names no sound, and the system listens"
    if "visual" in modalities and record.visual is None:
        return "the row names no pictures, and the system looks"
    if "audio" in modalities and record.audio is not None and _is_picture(record.audio):
        return "a picture has no sound, and the system listens"
    if "visual" in modalities and record.visual is not None and Path(record.visual).suffix.lower() in SOUND_SUFFIXES:
        return "a sound file has no pictures, and the system looks"
    return ""


def _is_picture(path: str) -> bool:
    return Path(path).suffix.lower() in PICTURE_SUFFIXES
