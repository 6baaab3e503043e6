from __future__ import annotations

import json
from pathlib import Path

import pytest

from avcap_zoo.data_modules.instruction_building import (
    AnswerFile,
    clotho_captions,
    description_question,
    detail_entries,
    read_answers,
    source_sentences,
    write_annotations,
    write_questions,
)
from avcap_zoo.data_modules.instruction_files import read_clotho_detail, read_vggss_instructions
from avcap_zoo.data_modules.instructions import SOURCE_SENTENCES
from avcap_zoo.errors import DataError


def test_the_sentences_are_read_as_the_published_file_is(scenes_root: Path, tmp_path: Path) -> None:
    entries, _ = source_sentences(scenes_root / "vggss")
    labels = {item["file"]: item["class"] for item in json.loads((scenes_root / "vggss/vggss.json").read_text())}
    assert [entry["audio_id"] for entry in entries] == list(labels)
    for entry in entries:
        spoken = {sentence.format(labels[entry["audio_id"]]) for sentence in SOURCE_SENTENCES}
        assert entry["caption"] in spoken
        assert entry["image_id"] == entry["audio_id"]
    write_annotations(tmp_path / "made.json", entries)
    index = read_vggss_instructions(tmp_path / "made.json", scenes_root / "vggss")
    assert {record.clip_id: record.captions for record in index.records} == {
        entry["audio_id"]: [entry["caption"]] for entry in entries
    }


def test_the_choice_of_sentences_depends_on_seed_and_clip_alone(scenes_root: Path, tmp_path: Path) -> None:
    content = json.loads((scenes_root / "vggss/vggss.json").read_text())
    (tmp_path / "vggss.json").write_text(json.dumps(content[::-1]))
    entries, _ = source_sentences(scenes_root / "vggss", seed=3)
    turned, _ = source_sentences(tmp_path, seed=3)
    assert turned == entries[::-1]
    assert source_sentences(tmp_path, seed=4)[0] != turned


def test_a_question_holds_every_caption() -> None:
    system, user = description_question(["A dog barks.", "Rain falls."])
    assert (system["role"], user["role"]) == ("system", "user")
    assert "- A dog barks.\n- Rain falls.\n" in user["content"]


def test_descriptions_are_read_as_the_published_file_is(scenes_root: Path, tmp_path: Path) -> None:
    root = scenes_root / "clotho"
    captions = clotho_captions(root, ["development", "evaluation"])
    assert captions.keys() == (
        clotho_captions(root, ["development"]).keys() | clotho_captions(root, ["evaluation"]).keys()
    )
    write_questions(tmp_path / "questions.jsonl", captions)
    asked = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert [item["id"] for item in asked] == list(captions)
    lines = [json.dumps({"id": item["id"], "answer": f" Long\n {item['id']} "}) for item in asked[1:]]
    (tmp_path / "answers.jsonl").write_text("\n".join([*lines, "", '{"id": "cut sho']))
    answers = read_answers(tmp_path / "answers.jsonl", captions)
    assert asked[0]["id"] not in answers
    write_annotations(tmp_path / "made.json", detail_entries(captions, answers))
    index = read_clotho_detail(tmp_path / "made.json", root)
    assert {record.clip_id: record.captions for record in index.records} == {
        item["id"]: [f"Long {item['id']}"] for item in asked[1:]
    }


def test_answers_that_cannot_be_used_are_named_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"id": "a", "answer": 3}\n{"id": "b", "answer": "x"}\n{"id"\n[]\n')
    with pytest.raises(
        DataError, match=r"line 1: wanted an object .*line 2: id 'b' is none.*line 3: is no JSON.*line 4"
    ):
        read_answers(path, ["a"])
    with pytest.raises(DataError, match=r"missing.jsonl does not exist; avcap build clotho-detail --questions"):
        read_answers(tmp_path / "missing.jsonl", ["a"])
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"answers.jsonl cannot be read"):
        read_answers(path, ["a"])


def test_a_models_answers_are_kept_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "made/answers.jsonl"
    file = AnswerFile(path, ["a", "b", "c"], "model")
    file.add({"a": "Rain.", "b": " \n"})
    with path.open("a") as text:
        text.write('{"id": "c", "ans')
    again = AnswerFile(path, ["a", "b", "c"], "model")
    assert again.answers == {"a": "Rain."}
    again.add({"c": "Wind."})
    assert read_answers(path, ["a", "b", "c"]) == {"a": "Rain.", "c": "Wind."}
    with pytest.raises(DataError, match=r"line 1: was answered by 'model', not by 'other'; give another --out"):
        AnswerFile(path, ["a", "b", "c"], "other")
