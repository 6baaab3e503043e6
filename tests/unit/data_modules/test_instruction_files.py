"""Instruction files: Clotho-Detail, MiniGPT-4's alignment set, LLaVA-Instruct, VGGSS instructions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.data_modules.dataset import Sample, collate
from avcap_zoo.data_modules.instruction_files import (
    read_alignment,
    read_clotho_detail,
    read_llava,
    read_vggss_instructions,
)
from avcap_zoo.errors import DataError


def put(folder: Path, content: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def talk(*turns: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(turns)]


def test_clotho_detail_of_the_generated_clips(scenes_root: Path) -> None:
    root = scenes_root / "clotho"
    index = read_clotho_detail(root / "Clotho-detail-annotation.json", root)
    assert len(index.records) == 24
    assert index.missing == []
    assert all(record.audio and len(record.captions) == 1 for record in index.records)
    assert all(record.instruction is None for record in index.records)


def test_clotho_detail_left_out_and_missing(tmp_path: Path) -> None:
    items = [{"audio_id": "rain on tin 1", "caption": "Rain."}, {"audio_id": "rain on tin 1", "caption": "Again."},
             {"audio_id": "cafe.wav", "caption": " "}, {"audio_id": "bus", "caption": "A bus."}]  # fmt: skip
    touch(tmp_path, "evaluation/rain on tin 1.wav", "development/cafe.wav")
    index = read_clotho_detail(put(tmp_path, {"annotations": items}), tmp_path)
    assert [record.captions for record in index.records] == [["Rain."]]
    assert index.left_out == {"entries that name a clip again": 1}
    assert index.missing == [("cafe", "the caption is empty"), ("bus", "no sound file")]


def test_alignment(tmp_path: Path) -> None:
    items = [{"image_id": "2", "caption": "A dog."}, {"image_id": 3, "caption": "A lake."}]
    touch(tmp_path, "image/2.jpg", "image/3.png")
    index = read_alignment(put(tmp_path, {"annotations": items}), tmp_path)
    assert [(record.clip_id, record.captions) for record in index.records] == [("2", ["A dog."]), ("3", ["A lake."])]
    assert index.records[1].visual == str(tmp_path / "image" / "3.png")


def test_vggss_instructions(tmp_path: Path) -> None:
    name = "a-_defghijk_000030"
    touch(tmp_path, f"audio/{name}.wav", f"image/{name}.jpg", "audio/b.wav")
    items = [
        {"audio_id": name, "image_id": name, "caption": "A dog."},
        {"audio_id": "b", "image_id": "b", "caption": "B."},
    ]
    index = read_vggss_instructions(put(tmp_path, {"annotations": items}), tmp_path)
    (record,) = index.records
    assert (record.audio, record.visual) == (
        str(tmp_path / "audio" / f"{name}.wav"),
        str(tmp_path / "image" / f"{name}.jpg"),
    )
    assert index.missing == [("b", "no picture")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "holds a list, wanted an object with a list 'annotations'"),
        ({"annotations": [{"image_id": "../2", "caption": "x"}]}, "item 1: file name '../2' leads to another folder"),
        ({"annotations": [{"image_id": None, "caption": "x"}]}, "item 1: None is no file name"),
        ({"annotations": [{"image_id": "2", "caption": 3}]}, "item 1: caption 3 is no text"),
        ({"annotations": [{"caption": "x"}]}, "item 1: has no image_id; found caption"),
    ],
)
def test_answers_that_cannot_be(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_alignment(put(tmp_path, content), tmp_path)


def test_each_question_of_a_conversation_is_a_record(tmp_path: Path) -> None:
    touch(tmp_path, "train2014/COCO_train2014_000000000001.jpg", "train2017/000000000002.jpg")
    items = [
        {
            "id": "000000000001",
            "image": "000000000001.jpg",
            "conversations": talk("<image>\nWhat?", "A dog.", "Why?", " So. "),
        },
        {"id": "000000000001", "image": "000000000001.jpg", "conversations": talk("Where?\n<image>", "Here.", "When?")},
        {"id": "000000000002", "image": "000000000002.jpg", "conversations": talk("<image>", "x", "Who?", " ")},
        {"id": "3", "image": "000000000003.jpg", "conversations": talk("What?", "Gone.")},
    ]
    index = read_llava(put(tmp_path, items), tmp_path)
    assert [(record.clip_id, record.instruction, record.captions) for record in index.records] == [
        ("000000000001_0", "What?", ["A dog."]),
        ("000000000001_1", "Why?", ["So."]),
        ("000000000001_2_0", "Where?", ["Here."]),
    ]
    assert index.left_out == {"questions without text or answer": 3}
    assert index.missing == [("3_0", "no picture")]
    batch = collate([Sample(record, caption=record.captions[0]) for record in index.records], 1)
    assert batch.instruction == ["What?", "Why?", "Where?"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": "../1.jpg"}, "item 1: path '../1.jpg'"),
        ({"id": "../1"}, "item 1: file name '../1' leads to another folder"),
        ({"conversations": "x"}, "item 1: conversations is no list of objects"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "item 1: turn 1 is not a text from 'human'"),
        ({"conversations": [{"from": "human", "value": None}]}, "item 1: turn 1 is not a text from 'human'"),
        ({"conversations": [*talk("x"), *talk("y")]}, "item 1: turn 2 is not a text from 'gpt'"),
    ],
)
def test_conversations_that_cannot_be(tmp_path: Path, changes: Any, said: str) -> None:
    item = {"id": "1", "image": "1.jpg", "conversations": talk("x", "y"), **changes}
    with pytest.raises(DataError, match=said):
        read_llava(put(tmp_path, [item]), tmp_path)
