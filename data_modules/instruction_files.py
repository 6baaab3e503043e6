"""Files of instructions and long answers about sounds and pictures, as published for instruction tuning.

Each function reads one format and gives a `SplitIndex` whose records carry the answer as their only caption, and the
instruction where the file has one. Mixing them, and templates for what has none, is not done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avcap_zoo.data_modules.annotations import (
    Problems,
    file_name_problem,
    items_of,
    objects_of,
    read_json,
    relative_path_problem,
)
from avcap_zoo.data_modules.caption_lists import stem_of
from avcap_zoo.data_modules.coco import PICTURE_FOLDERS
from avcap_zoo.data_modules.media_files import ClipFiles
from avcap_zoo.data_modules.records import SplitIndex

IMAGE_PLACEHOLDERS = ("<image>\n", "\n<image>", "<image>")


def read_clotho_detail(
    annotations: Path, root: Path, sounds: Sequence[str] = ("development", "evaluation")
) -> SplitIndex:
    """Clotho-Detail: long descriptions of Clotho's clips.

    The published file covers development and evaluation clips of version 1: who trains on it has seen test sounds.

    Args:
        annotations: Clotho-detail-annotation.json: {"annotations": [{"audio_id", "caption"}]}, ids without ".wav".
        root: folder of the sounds; files leading out of it are not followed.
        sounds: folders below `root` that hold them.

    Raises:
        DataError: the file is missing or malformed, or names lead elsewhere.
    """
    return _read_answers(annotations, ClipFiles(root, sounds=sounds), {"audio_id": "audio"})


def read_alignment(annotations: Path, root: Path, pictures: Sequence[str] = ("image",)) -> SplitIndex:
    """MiniGPT-4's second stage: long descriptions of pictures.

    Args:
        annotations: filter_cap.json: {"annotations": [{"image_id", "caption"}]}.
        root: folder of the pictures.
        pictures: folders below `root` that hold them.

    Raises:
        DataError: the file is missing or malformed, or names lead elsewhere.
    """
    return _read_answers(annotations, ClipFiles(root, pictures=pictures), {"image_id": "visual"})


def read_vggss_instructions(
    annotations: Path, root: Path, sounds: Sequence[str] = ("audio",), pictures: Sequence[str] = ("image",)
) -> SplitIndex:
    """Sentences about the source of a sound in a picture, one pair per clip of VGGSS.

    Args:
        annotations: vggss-instruction-tuning.json: {"annotations": [{"audio_id", "image_id", "caption"}]}.
        root: folder of the media.
        sounds: folders below `root` that hold the sounds.
        pictures: folders below `root` that hold the pictures.

    Raises:
        DataError: the file is missing or malformed, or names lead elsewhere.
    """
    files = ClipFiles(root, sounds=sounds, pictures=pictures)
    return _read_answers(annotations, files, {"audio_id": "audio", "image_id": "visual"})


def read_llava(annotations: Path, root: Path, pictures: Sequence[str] = PICTURE_FOLDERS) -> SplitIndex:
    """LLaVA-Instruct-150K, one of its three lists: conversations about pictures of COCO 2014.

    Each question with its answer becomes a record of its own, without what was said before. The placeholder of the
    picture is taken out. The clip id is the entry's id, its number in the list where the id stands there again, and
    the number of the question.

    Args:
        annotations: list of {"id", "image", "conversations": [{"from": "human" or "gpt", "value"}, ...]}.
        root: folder of COCO.
        pictures: folders below `root` that hold the pictures.

    Raises:
        DataError: the file is missing or malformed, names lead elsewhere, or a speaker is neither human nor gpt.
    """
    problems = Problems(annotations)
    index = SplitIndex(sources=[annotations.name])
    files = ClipFiles(root, pictures=pictures)
    seen: set[str] = set()
    content = items_of(annotations, read_json(annotations, hint="it is part of LLaVA-Instruct-150K"))
    for place, item in objects_of(content, ("id", "image", "conversations"), problems):
        name, entry = item["image"], str(item["id"])
        problem = (
            relative_path_problem(name) or file_name_problem(entry) or _conversation_problem(item["conversations"])
        )
        if problem:
            problems.add(place, problem)
            continue
        if entry in seen:
            entry = f"{entry}_{place.rpartition(' ')[2]}"
        seen.add(entry)
        stem = name.rpartition("/")[2].rpartition(".")[0] or name
        turns = item["conversations"]
        for number in range(0, len(turns) - 1, 2):
            question, answer = (turn["value"] for turn in turns[number : number + 2])
            for placeholder in IMAGE_PLACEHOLDERS:
                question = question.replace(placeholder, "")
            if not question.strip() or not answer.strip():
                index.leave_out("questions without text or answer")
                continue
            stems = [f"COCO_train2014_{stem:0>12}", stem]
            clip_id = f"{entry}_{number // 2}"
            files.add(index, clip_id, [answer.strip()], stems, ("visual",), instruction=question.strip())
        index.leave_out("questions without text or answer", len(turns) % 2)
    problems.raise_any()
    return index


def _conversation_problem(turns: Any) -> str:
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return "conversations is no list of objects"
    for number, turn in enumerate(turns):
        wanted = "gpt" if number % 2 else "human"
        if turn.get("from") != wanted or not isinstance(turn.get("value"), str):
            return f"turn {number + 1} is not a text from {wanted!r}"
    return ""


def _read_answers(annotations: Path, files: ClipFiles, kinds: dict[str, Any]) -> SplitIndex:
    """Records of {"annotations": [...]} with a caption and an id of each kind of media."""
    problems = Problems(annotations)
    index = SplitIndex(sources=[annotations.name])
    seen: set[str] = set()
    content = items_of(annotations, read_json(annotations, hint="put it there"), "annotations")
    for place, item in objects_of(content, (*kinds, "caption"), problems):
        names = [str(item[key]) if isinstance(item[key], int) else item[key] for key in kinds]
        problem = next((problem for name in names if (problem := file_name_problem(name))), "")
        if problem or not isinstance(item["caption"], str):
            problems.add(place, problem or f"caption {item['caption']!r} is no text")
            continue
        stems = list(dict.fromkeys(stem_of(name) for name in names))
        if stems[0] in seen:
            index.leave_out("entries that name a clip again")
        elif not item["caption"].strip():
            index.missing.append((stems[0], "the caption is empty"))
        else:
            seen.add(stems[0])
            files.add(index, stems[0], [item["caption"].strip()], stems, tuple(kinds.values()))
    problems.raise_any()
    return index
