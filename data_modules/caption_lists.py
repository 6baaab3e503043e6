"""Captions by the name of a sound file: what several published lists have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avcap_zoo.data_modules.annotations import Problems, file_name_problem, objects_of
from avcap_zoo.data_modules.media_files import AUDIO_SUFFIXES
from avcap_zoo.data_modules.records import SplitIndex


@dataclass
class NamedSounds:
    """A clip as an annotation file gives it.

    Attributes:
        captions: in file order; some may be blank.
        stems: names under which its media may lie, without suffix; an earlier one wins.
    """

    captions: list[str]
    stems: list[str]


def stem_of(file_name: str) -> str:
    """A file name without its suffix, if that is one of a sound."""
    front, dot, suffix = file_name.rpartition(".")
    return front if dot + suffix.lower() in AUDIO_SUFFIXES else file_name


def read_sound_list(
    path: Path, items: list[Any], index: SplitIndex, id_of_stem: Callable[[str], str]
) -> dict[str, NamedSounds]:
    """Clips of a list of objects with `sound_name` and `captions`, by clip id, in file order.

    This is the format in which ZerAuCap (arXiv 2311.08396) publishes AudioCaps and Clotho.

    Args:
        path: of the list, named in errors.
        items: of the list.
        index: counts the clips that are named again with the same captions.
        id_of_stem: clip id of a file name without suffix.

    Raises:
        DataError: keys are missing, names lead elsewhere, captions are no text, or one name has two sets of captions.
    """
    problems = Problems(path)
    clips: dict[str, NamedSounds] = {}
    for place, item in objects_of(items, ("sound_name", "captions"), problems):
        name, captions = item["sound_name"], item["captions"]
        if problem := file_name_problem(name):
            problems.add(place, problem)
        elif not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            problems.add(place, f"captions of {name!r} are no list of texts")
        else:
            stem = stem_of(name)
            clip = clips.get(id_of_stem(stem))
            if clip is None:
                clips[id_of_stem(stem)] = NamedSounds(captions, [stem])
            elif clip.captions == captions and clip.stems == [stem]:
                index.leave_out("repeated rows")
            else:
                problems.add(place, f"{name!r} stands for two clips or with two sets of captions")
    problems.raise_any()
    return clips
