"""Reading of annotation files: CSV and JSON as people really have them, ids that stay in their folder, id lists.

Every problem of a file is found before any is reported, each with the line it stands on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avcap_zoo.errors import DataError, first_line

LISTED_PROBLEMS = 8
"""Problems of one file that are spelt out; the others are counted."""

_SAFE_ID = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_NAME_BYTES = 240
"""File systems allow 255; features of a clip are kept under its id and a suffix."""


class Problems:
    """What is wrong with one file.

    Args:
        path: the file; it opens the message.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[tuple[int, str]] = []

    def add(self, place: str, what: str) -> None:
        """Note a problem; `place` is such as "line 3" or "item 12"."""
        number = place.rpartition(" ")[2]
        self._found.append((int(number) if number.isdigit() else 0, f"{place}: {what}"))

    def raise_any(self) -> None:
        """Raise what was noted.

        Raises:
            DataError: there was something; the first eight problems are listed, the others counted.
        """
        if self._found:
            rest = len(self._found) - LISTED_PROBLEMS
            more = f" and {rest} more" if rest > 0 else ""
            in_order = [text for _, text in sorted(self._found, key=lambda problem: problem[0])]
            raise DataError(f"{self.path}: {'; '.join(in_order[:LISTED_PROBLEMS])}{more}")


@dataclass
class Row:
    """One row of a CSV file.

    Attributes:
        line: number of the line it begins on, from 1.
        values: text by column.
    """

    line: int
    values: dict[str, str]

    @property
    def place(self) -> str:
        """Where it stands, for `Problems`."""
        return f"line {self.line}"


def read_csv(
    path: Path,
    columns: Sequence[str],
    problems: Problems,
    *,
    hint: str,
    has_header: bool = True,
    legacy_encoding: str | None = None,
) -> list[Row]:
    """Read a comma-separated file: with or without byte order mark, any line ends, quoted commas.

    Rows with too few or too many fields are noted in `problems`, and left out.

    Args:
        path: the file.
        columns: that must be there, in any order; further ones are kept. Without a header: all, in order.
        problems: collects what is wrong with rows, for the caller to add to and raise.
        hint: what to do when the file does not exist.
        has_header: whether the first row names the columns. Without one, lines that begin with "#" are comments.
        legacy_encoding: tried when the file is no UTF-8; None = refuse it.

    Returns:
        Rows in file order; blank lines are skipped.

    Raises:
        DataError: no such file, no text, broken quotes, missing columns, or no rows at all.
    """
    text = read_text(path, "CSV", hint, legacy_encoding)
    # Strict: a quote that is never closed would otherwise swallow the rows after it without a word.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    names: list[str] = [] if has_header else list(columns)
    line = 0
    try:
        for fields in reader:
            line, begins = reader.line_num, line + 1
            if not fields or (not has_header and fields[0].startswith("#")):
                continue
            if not names:
                names = [name.strip() for name in fields]
                _check_columns(path, columns, names)
            elif len(fields) != len(names):
                advice = "; quote text that holds commas" if len(fields) > len(names) else ""
                problems.add(f"line {begins}", f"{len(fields)} fields, wanted {len(names)}{advice}")
            else:
                rows.append(Row(begins, dict(zip(names, fields, strict=True))))
    except csv.Error as error:
        raise DataError(f"{path} is no CSV in UTF-8: line {reader.line_num}: {error}") from error
    if not names:
        _check_columns(path, columns, [])
    if not rows:
        problems.raise_any()
        raise DataError(f"{path} holds no rows")
    return rows


def _check_columns(path: Path, columns: Sequence[str], names: list[str]) -> None:
    absent = [column for column in columns if column not in names]
    repeated = sorted({name for name in names if names.count(name) > 1 and name in columns})
    if absent:
        raise DataError(f"{path} has no column {', '.join(absent)}; found {', '.join(names) or 'nothing'}")
    if repeated:
        raise DataError(f"{path} has the column {', '.join(repeated)} more than once")


def read_json(path: Path, *, hint: str) -> Any:
    """Read a JSON file, with or without byte order mark.

    Args:
        path: the file.
        hint: what to do when the file does not exist.

    Raises:
        DataError: no such file, no text, or broken JSON (line and column are named).
    """
    text = read_text(path, "JSON", hint)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no JSON: line {error.lineno} column {error.colno}: {error.msg}; get the file again"
        ) from error
    except (RecursionError, ValueError) as error:  # nested without end, or a number of a million digits
        raise DataError(f"{path} is no usable JSON: {first_line(error)}") from error


def read_text(path: Path, kind: str, hint: str, legacy_encoding: str | None = None) -> str:
    """Read a text file, with or without byte order mark.

    Args:
        path: the file.
        kind: what it should be, for the message.
        hint: what to do when it does not exist.
        legacy_encoding: tried when the file is no UTF-8; None = refuse it.

    Raises:
        DataError: no such file, or no text.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; {hint}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if legacy_encoding is None:
            raise DataError(f"{path} is no {kind} in UTF-8: {error}") from error
        text = content.decode(legacy_encoding, errors="replace")
    if "\0" in text:
        raise DataError(f"{path} is no {kind} in UTF-8: it holds zero bytes, as a damaged or binary file does")
    return text


def items_of(path: Path, content: Any, key: str | None = None) -> list[Any]:
    """The list of a JSON file.

    Args:
        path: named in errors.
        content: what the file holds.
        key: under which the list lies; None = the file is the list.

    Raises:
        DataError: there is no such list, or it is empty.
    """
    found = content.get(key) if key is not None and isinstance(content, dict) else content if key is None else None
    if not isinstance(found, list):
        wanted = "a list" if key is None else f"an object with a list {key!r}"
        raise DataError(f"{path} holds {_kind(content)}, wanted {wanted}")
    if not found:
        raise DataError(f"{path} holds an empty list")
    return found


def _kind(content: Any) -> str:
    if isinstance(content, dict):
        return f"an object with the keys {', '.join(map(repr, list(content)[:6])) or 'none'}"
    names = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return names.get(type(content), "a number")


def objects_of(items: Iterable[Any], keys: Sequence[str], problems: Problems) -> list[tuple[str, dict[str, Any]]]:
    """The items that are objects with these keys, each with its place; the others are noted in `problems`.

    Args:
        items: of a JSON list.
        keys: that each object must have.
        problems: collects the others.
    """
    found = []
    for number, item in enumerate(items, 1):
        place = f"item {number}"
        if not isinstance(item, dict):
            problems.add(place, f"is {_kind(item)}, wanted an object with {', '.join(keys)}")
        elif absent := [key for key in keys if key not in item]:
            problems.add(place, f"has no {', '.join(absent)}; found {', '.join(map(str, list(item)[:6])) or 'nothing'}")
        else:
            found.append((place, item))
    return found


def is_safe_id(text: object) -> bool:
    """Whether a text is made of letters, digits, - and _ alone, as YouTube's ids are."""
    return isinstance(text, str) and bool(_SAFE_ID.fullmatch(text)) and len(text) <= _LONGEST_NAME_BYTES


def file_name_problem(name: object) -> str:
    """Why a name from an annotation file may not be used as the name of a file; "" if it may.

    Spaces, quotes and other scripts are fine; what could lead out of the folder is not.
    """
    if not isinstance(name, str) or not name.strip():
        return f"{name!r} is no file name"
    if "/" in name or "\\" in name or name.strip() in {".", ".."}:
        return f"file name {name!r} leads to another folder"
    if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in name):
        return f"file name {name!r} holds control characters"
    if len(name.encode()) > _LONGEST_NAME_BYTES:
        return f"file name {name[:20]!r}... is longer than {_LONGEST_NAME_BYTES} bytes"
    return ""


def relative_path_problem(path: object) -> str:
    """Why a path from an annotation file may not be used below the data folder; "" if it may."""
    if not isinstance(path, str) or not path.strip():
        return f"{path!r} is no path"
    if path.startswith("/"):
        return f"path {path!r} leads to another folder"
    return next((f"path {path!r}: {why}" for part in path.split("/") if (why := file_name_problem(part))), "")


def text_problem(value: object, what: str) -> str:
    """Why a value is no text; "" if it is. Empty text is text."""
    return "" if isinstance(value, str) else f"{what} {value!r} is no text"


def parse_seconds(text: object) -> float | None:
    """A point in time, 0 or later, whose milliseconds are a number, too; None if it is none."""
    try:
        seconds = float(text) if isinstance(text, (str, int, float)) and not isinstance(text, bool) else -1.0
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds * 1000 < math.inf else None


@dataclass(frozen=True)
class IdList:
    """The clips to which a split is narrowed.

    Attributes:
        path: the file.
        ids: in file order.
        sha256: of the file.
    """

    path: Path
    ids: tuple[str, ...]
    sha256: str


def read_id_list(path: Path) -> IdList:
    """Read a list of clip ids, one a line; blank lines and lines that begin with "# " are skipped.

    Raises:
        DataError: no such file, no UTF-8, no ids, or an id twice (the lines are named).
    """
    text = read_text(path, "list of ids", "data.init_args.subset names it")
    problems = Problems(path)
    lines: dict[str, int] = {}
    for number, line in enumerate(io.StringIO(text), 1):
        clip_id = line.strip()
        if not clip_id or clip_id.startswith("# "):
            continue
        if clip_id in lines:
            problems.add(f"line {number}", f"id {clip_id!r} stands on line {lines[clip_id]}, too")
        lines.setdefault(clip_id, number)
    problems.raise_any()
    if not lines:
        raise DataError(f"{path} holds no ids; wanted one clip id a line")
    return IdList(path, tuple(lines), hashlib.sha256(path.read_bytes()).hexdigest())
