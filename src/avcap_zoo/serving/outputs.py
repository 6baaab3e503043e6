"""Captions as JSON lines, CSV or subtitles, written as they come and taken up again after a stop."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from avcap_zoo.data_modules.files import write_error
from avcap_zoo.errors import AvcapError, ConfigError, DataError

SUFFIXES = (".jsonl", ".csv", ".srt")
CSV_COLUMNS = ("id", "start_s", "end_s", "caption", "made_by")
Row = dict[str, Any]
"""At least `id`, `caption`, and `start_s` and `end_s` (None for a whole file)."""


class CaptionSaveError(AvcapError):
    """Captions could not be written; those before them are kept."""


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn what the system says of a path that cannot be written into one line.

    Raises:
        CaptionSaveError: disk full, no permission, or any other I/O error.
    """
    try:
        yield
    except OSError as error:
        raise CaptionSaveError(str(write_error(path, error))) from error


class CaptionFile(ABC):
    """A file of captions that is open for more. A batch is with the system before the next one is begun.

    An existing file is continued: `done` holds the ids it has, a half-written last line is cut off. While it is open
    no other process can open it so, where the system has locks.

    Args:
        path: of the file.
        made_by: hash of what makes these captions; written into each row and compared with those found.
        provenance: further keys of each row of JSON.

    Raises:
        DataError: the file holds something else, or captions of other weights or settings, or cannot be written, or
            another process writes it.
    """

    def __init__(self, path: Path, made_by: str, provenance: Row) -> None:
        self.path = path
        self.made_by = made_by
        self.provenance = provenance
        self.rows: list[Row] = []
        self._file = self._open()
        try:
            self._continue()
        except BaseException:
            self._close()
            raise

    @property
    def done(self) -> set[str]:
        """Ids of the captions in the file."""
        return {row["id"] for row in self.rows}

    @abstractmethod
    def read(self, text: str) -> list[Row]:
        """Rows of the whole lines of a file.

        Raises:
            ValueError: this is no file of captions; says what stands where.
        """

    @abstractmethod
    def line(self, row: Row) -> str:
        """A row as one line, its end included."""

    def head(self) -> str:
        """What a new file begins with."""
        return ""

    def write(self, rows: list[Row]) -> None:
        """Add rows.

        Raises:
            CaptionSaveError: the disk is full, or gone.
        """
        try:
            with saving(self.path):
                self._file.write("".join(self.line({**row, "made_by": self.made_by}) for row in rows))
                self._file.flush()
        except CaptionSaveError:
            self._close()
            raise
        self.rows += rows

    def finish(self) -> None:
        """Called once all captions are there: close."""
        self._file.close()

    def __enter__(self) -> CaptionFile:
        """The file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what was written stays, whatever happened."""
        self._close()

    def _close(self) -> None:
        with suppress(OSError):  # of what could not be written, which was said
            self._file.close()

    def _open(self) -> TextIO:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8", newline="")
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}") from error
        here = False
        with suppress(FileNotFoundError):  # another process may have renamed it since
            here = _lock(file) and os.path.samestat(self.path.stat(), os.fstat(file.fileno()))
        if not here:
            file.close()
            raise DataError(f"another process writes {self.path}: let it end, or choose another --out")
        return file

    def _continue(self) -> None:
        advice = "choose another --out, or remove the file"
        try:
            self._file.seek(0)
            # By the same descriptor: closing another one would give the lock back.
            content = self._file.buffer.read()
            whole = content[: content.rfind(b"\n") + 1]
            self.rows = self.read(whole.decode("utf-8")) if whole else []
            strangers = [row for row in self.rows if row.get("made_by") != self.made_by]
            if strangers:
                raise DataError(
                    f"{self.path} holds captions made with other weights or settings ({strangers[0]['id']}); {advice}"
                )
            self._file.truncate(len(whole))
            if not whole:
                self._file.write(self.head())
                self._file.flush()
        except OSError as error:
            raise DataError(f"cannot write {self.path}: {error.strerror}") from error
        except ValueError as error:
            raise DataError(f"{self.path} is no file of captions of ours ({error}); {advice}") from error


def _lock(file: TextIO) -> bool:
    """Take a file for this process alone, until it closes it or ends; False if another one has it.

    The lock of this process, not of its descriptor: data workers that outlive a kill by seconds do not hold it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in {errno.EACCES, errno.EAGAIN}  # else the file system has no locks
    return True


class JsonLines(CaptionFile):
    """One JSON object per line: id, caption, the window's seconds if there is one, and where it comes from."""

    def read(self, text: str) -> list[Row]:
        """See `CaptionFile.read`."""
        rows = []
        # Of what Python takes for the end of a line, an id may hold some.
        for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise ValueError(f"line {number} has no id")  # noqa: TRY004 - one type for all that is wrong with it
            rows.append(row)
        return rows

    def line(self, row: Row) -> str:
        """See `CaptionFile.line`."""
        window = {} if row["start_s"] is None else {"start_s": row["start_s"], "end_s": row["end_s"]}
        ordered = {"id": row["id"], **window, "caption": row["caption"], **self.provenance, "made_by": row["made_by"]}
        return json.dumps(ordered, ensure_ascii=False) + "\n"


class CommaSeparated(CaptionFile):
    """A table with the columns id, start_s, end_s, caption, made_by."""

    def read(self, text: str) -> list[Row]:
        """See `CaptionFile.read`."""
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if tuple(reader.fieldnames or ()) != CSV_COLUMNS:
            raise ValueError(f"its columns are {', '.join(reader.fieldnames or ())}")
        return list(reader)

    def head(self) -> str:
        """The names of the columns."""
        return ",".join(CSV_COLUMNS) + "\n"

    def line(self, row: Row) -> str:
        """See `CaptionFile.line`."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([row[column] for column in CSV_COLUMNS])
        return text.getvalue()


class Subtitles(JsonLines):
    """Subtitles of one file. They are kept as JSON lines in `<name>.srt.jsonl` until all are there.

    Args:
        path: the `.srt`.
        made_by: see `CaptionFile`.
        provenance: see `CaptionFile`.
    """

    def __init__(self, path: Path, made_by: str, provenance: Row) -> None:
        self.target = path
        super().__init__(path.with_name(f"{path.name}.jsonl"), made_by, provenance)

    def finish(self) -> None:
        """Write the subtitles in order of time, and remove the JSON lines."""
        super().finish()
        staging = self.target.with_name(f".{self.target.name}.partial")
        with saving(self.target):
            staging.write_text(subtitles(self.rows), encoding="utf-8")
            staging.replace(self.target)
            self.path.unlink()


KINDS: dict[str, type[CaptionFile]] = {".jsonl": JsonLines, ".csv": CommaSeparated, ".srt": Subtitles}


def caption_row(clip_id: str, caption: str, window_s: tuple[float, float] | None) -> Row:
    """A row of a clip: its caption on one line, and the seconds of a part of a file."""
    start_s, end_s = window_s or (None, None)
    return {"id": clip_id, "start_s": start_s, "end_s": end_s, "caption": " ".join(caption.split())}


def check_suffix(path: Path) -> None:
    """Refuse a file name that says no format.

    Raises:
        ConfigError: names the formats.
    """
    if path.suffix.lower() not in KINDS:
        raise ConfigError(f"--out {path} must end in {', '.join(SUFFIXES)}")


def open_captions(path: Path, made_by: str, provenance: Row) -> CaptionFile:
    """The file of captions that a path asks for by its ending; arguments as in `CaptionFile`.

    Raises:
        ConfigError: an ending that says no format.
        DataError: the file is there and cannot be continued.
    """
    check_suffix(path)
    return KINDS[path.suffix.lower()](path, made_by, provenance)


def subtitles(rows: list[Row]) -> str:
    """SubRip text of rows with `start_s` and `end_s`, in order of time."""
    ordered = sorted(rows, key=lambda row: (row["start_s"], row["end_s"]))
    return "".join(
        f"{number}\n{_clock(row['start_s'])} --> {_clock(row['end_s'])}\n{row['caption']}\n\n"
        for number, row in enumerate(ordered, 1)
    )


def _clock(time_s: float) -> str:
    """A time as hh:mm:ss,mmm."""
    milliseconds = round(time_s * 1000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02},{milliseconds:03}"
