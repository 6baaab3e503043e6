"""Anybody's captions and references, read from the formats in which people keep them, and brought together by id."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avcap_zoo.data_modules import audiocaps, clotho
from avcap_zoo.data_modules.annotations import (
    Problems,
    items_of,
    objects_of,
    read_csv,
    read_json,
    read_text,
)
from avcap_zoo.data_modules.media.video import PICTURE_SUFFIXES
from avcap_zoo.data_modules.media_files import AUDIO_SUFFIXES, VIDEO_SUFFIXES, MediaFiles
from avcap_zoo.data_modules.records import SplitIndex
from avcap_zoo.errors import DataError

ID_KEYS = ("id", "image_id", "clip_id", "sound_name", "file_name")
CAPTION_KEYS = ("caption", "caption_predicted")
CANDIDATE_KEYS = ("candidates",)
REFERENCE_KEYS = ("captions", "references", "caption")
PREDICTION_FORMATS = "JSON lines or CSV with id and caption, COCO results JSON, or a JSON object of id and caption"
REFERENCE_FORMATS = "COCO's annotations, a CSV of Clotho or AudioCaps, or JSON, JSON lines or CSV of ids and captions"
LISTED_IDS = 8
"""Ids that a message spells out; the others are counted."""

_MEDIA_SUFFIXES = (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES, *PICTURE_SUFFIXES)


@dataclass
class Predictions:
    """Captions under test.

    Attributes:
        path: the file.
        candidates: by id, one caption or several, the best first; they may be empty texts.
    """

    path: Path
    candidates: dict[str, list[str]]


@dataclass
class References:
    """What captions are compared with.

    Attributes:
        path: the file.
        captions: by clip id, none blank, none without any.
        names: other names of a clip, such as that of its file.
        notes: what of the file was not taken.
    """

    path: Path
    captions: dict[str, list[str]]
    names: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        bare: dict[str, set[str]] = {}
        for clip_id in self.captions:
            bare.setdefault(_bare(clip_id), set()).add(clip_id)
        self.names |= {name: ids.pop() for name, ids in bare.items() if len(ids) == 1}

    def find(self, name: str) -> str | None:
        """The clip of a name: its id, another name of it, or a path that ends in one of these."""
        if name in self.captions:
            return name
        return self.names.get(name) or self.names.get(_bare(name))

    def find_pictures(self, folder: Path, clip_ids: Iterable[str]) -> dict[str, str]:
        """The picture of each clip, under any of its names, in a folder and those below it.

        Raises:
            DataError: clips without one; the first are named.
        """
        files = MediaFiles(folder, ("",), PICTURE_SUFFIXES, deep=True)
        stems: dict[str, list[str]] = {}
        for name, clip_id in self.names.items():
            stems.setdefault(clip_id, []).append(name)
        found = {clip_id: files.find([clip_id, *stems.get(clip_id, [])]) for clip_id in clip_ids}
        missing = [clip_id for clip_id, path in found.items() if path is None]
        if missing:
            raise DataError(
                f"{folder} has no picture ({' '.join(PICTURE_SUFFIXES)}) of {len(missing)} of {len(found)} clips: "
                f"{some_ids(missing)}"
            )
        return {clip_id: path for clip_id, path in found.items() if path is not None}


@dataclass
class Pairs:
    """Clips that have candidates and references, in the order of the references.

    Attributes:
        candidates: by clip id.
        references: by clip id, the same ids.
        notes: what the reader of the scores should know.
    """

    candidates: dict[str, list[str]]
    references: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)


def some_ids(ids: Sequence[str]) -> str:
    """The first ids of a list, and how many more there are."""
    more = f" and {len(ids) - LISTED_IDS} more" if len(ids) > LISTED_IDS else ""
    return ", ".join(ids[:LISTED_IDS]) + more


def read_predictions(path: Path) -> Predictions:
    """Read captions, each id once.

    Formats, by the ending of the name: `.jsonl` as `avcap caption` and `lightning predict` write it; `.csv` with an id
    and a caption, also under the names of the Clotho task of DCASE (`file_name`, `caption_predicted`); `.json` as
    COCO's results, or an object of ids and captions. In place of `caption` there may be `candidates`, the best first.

    Raises:
        DataError: the file cannot be read, or holds something else; ids that come twice. All problems at once.
    """
    problems = Problems(path)
    candidates: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for place, item in _items(path, problems, PREDICTION_FORMATS, CANDIDATE_KEYS[0]):
        clip_id = _id_of(item, place, problems)
        texts = _texts_of(item, (*CANDIDATE_KEYS, *CAPTION_KEYS), place, problems)
        if clip_id is None or texts is None:
            continue
        if clip_id in candidates:
            problems.add(place, f"id {clip_id!r} stands at {places[clip_id]}, too; wanted each id once")
        elif not texts:
            problems.add(place, f"id {clip_id!r} has an empty list of captions")
        else:
            candidates[clip_id], places[clip_id] = texts, place
    problems.raise_any()
    return Predictions(path, candidates)


def read_references(path: Path) -> References:
    """Read the references of a data set.

    Formats: COCO's annotations; the CSV files of Clotho and AudioCaps as published; a JSON object of ids and captions;
    JSON lists, JSON lines and CSV with an id and one caption or a list of them, where rows of one id add up.

    Raises:
        DataError: the file cannot be read, or holds something else; clips whose captions are all blank.
    """
    published = _read_published(path)
    captions, names, notes = published if published is not None else _read_listed(path)
    blank = sum(not text.strip() for texts in captions.values() for text in texts)
    kept = {clip_id: [text for text in texts if text.strip()] for clip_id, texts in captions.items()}
    empty = [clip_id for clip_id, texts in kept.items() if not texts]
    if empty:
        raise DataError(f"{path}: no reference with a word in it for {len(empty)} clips: {some_ids(empty)}")
    if blank:
        notes.append(f"{blank} empty references of {path.name} were left out")
    return References(path, kept, names, notes)


def pair(predictions: Predictions, references: References, *, common: bool = False) -> Pairs:
    """Bring captions and references together.

    Args:
        predictions: captions under test.
        references: of the clips.
        common: take the clips that both have; otherwise both must have the same.

    Raises:
        DataError: ids that the references do not have, clips without a caption, two captions for one clip, or no clip
            in common. The ids are named.
    """
    ids: dict[str, str] = {}
    unknown, doubled = [], []
    for name in predictions.candidates:
        clip_id = references.find(name)
        if clip_id is None:
            unknown.append(name)
        elif clip_id in ids:
            doubled.append(f"{ids[clip_id]} and {name}")
        else:
            ids[clip_id] = name
    if doubled:
        raise DataError(f"{predictions.path}: two captions for one clip: {some_ids(doubled)}; wanted each clip once")
    if not ids:
        raise DataError(
            f"{predictions.path} and {references.path} have no clip in common: ids are such as "
            f"{', '.join(unknown[:3])} here and {', '.join(list(references.captions)[:3])} there"
        )
    missing = [clip_id for clip_id in references.captions if clip_id not in ids]
    notes = []
    problems = []
    if unknown:
        known = f"{len(unknown)} of {len(predictions.candidates)} ids are not in {references.path}"
        problems.append(f"{known}: {some_ids(unknown)}")
    if missing:
        total = len(references.captions)
        problems.append(f"{len(missing)} of {total} clips of {references.path} have no caption: {some_ids(missing)}")
    if problems and not common:
        raise DataError(
            f"{predictions.path}: {'; '.join(problems)}; --common scores the {len(ids)} clips that both have"
        )
    if problems:
        notes.append(f"only the {len(ids)} clips that both files have are scored: {'; '.join(problems)}")
    chosen = {clip_id: texts for clip_id, texts in references.captions.items() if clip_id in ids}
    candidates = {clip_id: predictions.candidates[ids[clip_id]] for clip_id in chosen}
    empty = [clip_id for clip_id, texts in candidates.items() if not texts[0].strip()]
    if empty:
        notes.append(f"{len(empty)} captions of {predictions.path.name} are empty and score 0: {some_ids(empty)}")
    return Pairs(candidates, chosen, notes)


def _bare(name: str) -> str:
    """The last part of a path, without the suffix of a sound, video or picture."""
    last = name.replace("\\", "/").rpartition("/")[2]
    front, dot, suffix = last.rpartition(".")
    return front if dot + suffix.lower() in _MEDIA_SUFFIXES else last


def _items(path: Path, problems: Problems, formats: str, list_key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file in any of the formats, each with its place; those of a JSON object get `id` and a list."""
    suffix = path.suffix.lower()
    hint = f"wanted {formats}"
    if suffix == ".csv":
        yield from ((row.place, dict(row.values)) for row in read_csv(path, (), problems, hint=hint))
    elif suffix in {".jsonl", ".ndjson"}:
        yield from _json_lines(path, problems, hint)
    elif suffix == ".json":
        content = read_json(path, hint=hint)
        if isinstance(content, dict) and content:
            for number, (clip_id, texts) in enumerate(content.items(), 1):
                yield f"item {number}", {"id": clip_id, list_key: [texts] if isinstance(texts, str) else texts}
        else:
            yield from objects_of(items_of(path, content), (), problems)
    else:
        raise DataError(f"{path} ends in {suffix or 'nothing'}, wanted .json, .jsonl or .csv: {formats}")


def _json_lines(path: Path, problems: Problems, hint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    found = False
    for number, line in enumerate(io.StringIO(read_text(path, "JSON lines", hint)), 1):
        if not line.strip():
            continue
        found = True
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            item = None
        if isinstance(item, dict):
            yield f"line {number}", item
        else:
            problems.add(f"line {number}", f"{line.strip()[:40]!r} is no JSON object")
    if not found:
        raise DataError(f"{path} holds no rows")


def _id_of(item: dict[str, Any], place: str, problems: Problems) -> str | None:
    key = next((key for key in ID_KEYS if key in item), None)
    value = None if key is None else item[key]
    if key is None:
        problems.add(
            place, f"no id: found {', '.join(map(str, item)) or 'nothing'}, wanted one of {', '.join(ID_KEYS)}"
        )
    elif isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    elif isinstance(value, str) and value.strip():
        return value.strip()
    else:
        problems.add(place, f"{key} {value!r} is no id")
    return None


def _texts_of(item: dict[str, Any], keys: Iterable[str], place: str, problems: Problems) -> list[str] | None:
    """The caption or captions of an item; None where there are none that can be used."""
    key = next((key for key in keys if key in item), None)
    if key is None:
        problems.add(place, f"no caption: found {', '.join(map(str, item))}, wanted one of {', '.join(keys)}")
        return None
    texts = item[key] if isinstance(item[key], list) else [item[key]]
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        problems.add(place, f"{key} {str(wrong[0])[:60]} is no text")
        return None
    return texts


_Read = tuple[dict[str, list[str]], dict[str, str], list[str]]
"""Captions by clip id, other names of clips, and notes."""


def _read_published(path: Path) -> _Read | None:
    """The references of a CSV of Clotho or AudioCaps; None for anything else."""
    if path.suffix.lower() != ".csv":
        return None
    # What is wrong with single rows is said by the reader that the columns call for.
    first = read_csv(path, (), Problems(path), hint=f"wanted {REFERENCE_FORMATS}")[0].values
    index = SplitIndex()
    if set(audiocaps.COLUMNS) <= set(first):
        clips = audiocaps.read_clips(path, index)
    elif set(clotho.CAPTION_COLUMNS) & set(first):
        clips = clotho.read_captions(path, index)
    else:
        return None
    names = {stem: clip_id for clip_id, clip in clips.items() for stem in clip.stems}
    notes = [f"{count} {what} of {path.name} were left out" for what, count in index.left_out.items()]
    return {clip_id: clip.captions for clip_id, clip in clips.items()}, names, notes


def _read_listed(path: Path) -> _Read:
    problems = Problems(path)
    captions: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    notes: list[str] = []
    repeated = 0
    content = read_json(path, hint=f"wanted {REFERENCE_FORMATS}") if path.suffix.lower() == ".json" else None
    if isinstance(content, dict) and "annotations" in content:
        items: Iterable[tuple[str, dict[str, Any]]] = objects_of(
            items_of(path, content, "annotations"), ("image_id", "caption"), problems
        )
        images = content.get("images")
        names = _names_of_images(images if isinstance(images, list) else [])
    else:
        items = _items(path, problems, REFERENCE_FORMATS, REFERENCE_KEYS[0])
    for place, item in items:
        clip_id = _id_of(item, place, problems)
        texts = _texts_of(item, REFERENCE_KEYS, place, problems)
        if clip_id is None or texts is None:
            continue
        is_list = any(isinstance(item.get(key), list) for key in REFERENCE_KEYS)
        if not is_list:
            captions.setdefault(clip_id, []).extend(texts)
        elif captions.setdefault(clip_id, texts) is not texts:
            if captions[clip_id] == texts:
                repeated += 1
            else:
                problems.add(place, f"id {clip_id!r} has another list of captions already")
    problems.raise_any()
    if repeated:
        notes.append(f"{repeated} repeated rows of {path.name} were left out")
    return captions, names, notes


def _names_of_images(images: list[Any]) -> dict[str, str]:
    """Ids by the bare names of COCO's pictures."""
    known = [item for item in images if isinstance(item, dict) and isinstance(item.get("file_name"), str)]
    return {_bare(item["file_name"]): str(item.get("id")) for item in known}
