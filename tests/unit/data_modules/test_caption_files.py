from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.data_modules.caption_files import (
    Predictions,
    References,
    pair,
    read_predictions,
    read_references,
    some_ids,
)
from avcap_zoo.errors import DataError

CAPTIONS = {"a": ["a dog"], "b": ["rain"]}


def _file(tmp_path: Path, name: str, content: Any) -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.jsonl", '{"id": "a", "caption": "a dog", "made_by": "x"}\n\n{"id": "b", "caption": "rain"}\n'),
        ("own.csv", "id,start_s,end_s,caption,made_by\na,,,a dog,x\nb,,,rain,x\n"),
        ("dcase.csv", "\ufefffile_name,caption_predicted\r\na,a dog\r\nb,rain\r\n"),
        ("coco.json", [{"image_id": "a", "caption": "a dog"}, {"image_id": "b", "caption": "rain"}]),
        ("plain.json", {"a": "a dog", "b": "rain"}),
    ],
)
def test_predictions_in_every_format(tmp_path: Path, name: str, content: Any) -> None:
    assert read_predictions(_file(tmp_path, name, content)).candidates == CAPTIONS


def test_numbers_are_ids_and_candidates_may_be_several(tmp_path: Path) -> None:
    lines = '{"image_id": 42, "candidates": ["a dog", "dogs"]}\n{"id": 7, "caption": ""}\n'
    assert read_predictions(_file(tmp_path, "p.jsonl", lines)).candidates == {"42": ["a dog", "dogs"], "7": [""]}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "a dog", "ends in .txt, wanted .json, .jsonl or .csv: JSON lines or CSV with id and caption"),
        ("p.jsonl", "", "holds no rows"),
        ("p.jsonl", '{"id": "a", "caption": "x"}\n{"id": "b"', 'line 2: \'{"id": "b"\' is no JSON object'),
        ("p.jsonl", '{"caption": "x"}', "line 1: no id: found caption, wanted one of id, image_id"),
        (
            "p.jsonl",
            '{"id": "a", "text": "x"}',
            "line 1: no caption: found id, text, wanted one of candidates, caption",
        ),
        ("p.jsonl", '{"id": true, "caption": "x"}', "line 1: id True is no id"),
        ("p.jsonl", '{"id": "a", "caption": null}', "line 1: caption None is no text"),
        ("p.jsonl", '{"id": "a", "candidates": []}', "line 1: id 'a' has an empty list of captions"),
        (
            "p.jsonl",
            '{"id": "a", "caption": "x"}\n{"id": "b", "caption": "x"}\n{"id": "a", "caption": "y"}',
            "line 3: id 'a' stands at line 1, too; wanted each id once",
        ),
        ("p.csv", "id,caption\na,one, two\n", "line 2: 3 fields, wanted 2; quote text that holds commas"),
        ("p.csv", "id,caption\n", "holds no rows"),
        ("p.json", "{", "is no JSON: line 1 column 2"),
        ("p.json", [], "holds an empty list"),
        ("p.json", [3], "item 1: is a number, wanted an object"),
        ("p.json", {}, "holds an object with the keys none, wanted a list"),
    ],
)
def test_predictions_that_cannot_be_used(tmp_path: Path, name: str, content: Any, said: str) -> None:
    path = _file(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist; wanted JSON lines"), (b"\xff\xfe", "is no JSON lines in UTF-8")]
)
def test_unreadable_files(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "p.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_predictions(path)


REFERENCES = {"a": ["a dog", "dogs"], "b": ["rain", "it rains"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "coco.json",
            {
                "images": [{"id": "a"}, {"id": "b"}],
                "annotations": [
                    {"image_id": clip_id, "caption": text} for clip_id, texts in REFERENCES.items() for text in texts
                ],
            },
        ),
        ("plain.json", REFERENCES),
        ("list.json", [{"sound_name": clip_id, "captions": texts} for clip_id, texts in REFERENCES.items()]),
        ("own.jsonl", "".join(json.dumps({"id": i, "references": texts}) + "\n" for i, texts in REFERENCES.items())),
        ("long.csv", "id,caption\na,a dog\na,dogs\nb,rain\nb,it rains\n"),
    ],
)
def test_references_in_every_format(tmp_path: Path, name: str, content: Any) -> None:
    read = read_references(_file(tmp_path, name, content))
    assert read.captions == REFERENCES
    assert read.notes == []


def test_published_csv_files_and_the_names_of_their_clips(scenes_root: Path) -> None:
    clotho = read_references(scenes_root / "clotho/clotho_captions_evaluation.csv")
    audiocaps = read_references(scenes_root / "audiocaps/test.csv")
    assert {len(texts) for texts in clotho.captions.values()} == {5}
    assert len(audiocaps.captions) == len(clotho.captions) == 6
    for clip_id in clotho.captions:
        assert clotho.find(f"clips/{clip_id}.wav") == clip_id
    rows = (scenes_root / "audiocaps/test.csv").read_text().splitlines()[1:]
    number, youtube_id, start_s, _ = rows[0].split(",", 3)
    for name in (youtube_id, f"Y{youtube_id}", number, f"waveforms/{youtube_id}_{1000 * int(float(start_s))}.flac"):
        assert audiocaps.find(name) == youtube_id
    assert audiocaps.find("nobody") is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.json", {"a": ["", " "], "b": ["x"]}, "no reference with a word in it for 1 clips: a"),
        ("r.json", {"a": []}, "no reference with a word in it for 1 clips: a"),
        ("r.json", {"a": 3}, "item 1: captions 3 is no text"),
        ("r.json", {"annotations": [{"image_id": 1}]}, "item 1: has no caption"),
        (
            "r.json",
            [{"id": "a", "captions": ["x"]}, {"id": "a", "captions": ["y"]}],
            "item 2: id 'a' has another list of captions already",
        ),
        ("r.csv", "file_name,caption_1\na.wav,x\n", "has no column caption_2, caption_3"),
        ("r.csv", "audiocap_id,youtube_id,start_time,caption\n1,../x,0,y\n", "line 2: id '../x' or '1' is no safe id"),
        ("r.csv", "clip,text\na,x\n", "line 2: no id: found clip, text"),
    ],
)
def test_references_that_cannot_be_used(tmp_path: Path, name: str, content: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read_references(_file(tmp_path, name, content))
    assert said in str(caught.value)


def test_blank_and_repeated_references_are_left_out_and_said(tmp_path: Path) -> None:
    blank = read_references(_file(tmp_path, "r.json", {"a": ["x", ""], "b": [" ", "y"]}))
    assert blank.captions == {"a": ["x"], "b": ["y"]}
    assert blank.notes == ["2 empty references of r.json were left out"]
    twice = read_references(_file(tmp_path, "t.json", [{"id": "a", "captions": ["x"]}] * 2))
    assert twice.notes == ["1 repeated rows of t.json were left out"]


def _predictions(**candidates: list[str]) -> Predictions:
    return Predictions(Path("p.jsonl"), candidates)


def _references(*ids: str) -> References:
    return References(Path("r.json"), {clip_id: ["x"] for clip_id in ids})


def test_pairs_keep_the_order_of_the_references_and_find_files() -> None:
    pairs = pair(Predictions(Path("p"), {"out/b.mp4": ["1"], "a": ["2"]}), _references("a", "b"))
    assert list(pairs.candidates.items()) == [("a", ["2"]), ("b", ["1"])]
    assert pairs.notes == []


def test_missing_and_unknown_clips_are_refused_with_the_list_and_left_out_on_request() -> None:
    predictions = _predictions(a=["x"], z=["x"])
    with pytest.raises(DataError) as caught:
        pair(predictions, _references("a", "b", "c"))
    assert str(caught.value) == (
        "p.jsonl: 1 of 2 ids are not in r.json: z; 2 of 3 clips of r.json have no caption: b, c; "
        "--common scores the 1 clips that both have"
    )
    pairs = pair(predictions, _references("a", "b", "c"), common=True)
    assert list(pairs.references) == ["a"]
    assert pairs.notes[0].startswith("only the 1 clips that both files have are scored: 1 of 2 ids are not in r.json")


@pytest.mark.parametrize("common", [False, True])
def test_two_captions_for_one_clip_and_no_clip_in_common(common: bool) -> None:
    doubled = Predictions(Path("p.jsonl"), {"a": ["x"], "a.wav": ["y"]})
    with pytest.raises(DataError, match=r"two captions for one clip: a and a\.wav; wanted each clip once"):
        pair(doubled, _references("a"), common=common)
    with pytest.raises(DataError, match=r"no clip in common: ids are such as z here and a, b there"):
        pair(_predictions(z=["x"]), _references("a", "b"), common=common)


def test_empty_captions_are_said() -> None:
    pairs = pair(_predictions(a=[" "], b=["x"]), _references("a", "b"))
    assert pairs.notes == ["1 captions of p.jsonl are empty and score 0: a"]


def test_a_name_that_two_clips_share_stands_for_neither() -> None:
    references = References(Path("r"), {"one/a.wav": ["x"], "two/a.wav": ["y"]})
    assert references.find("a") is None
    assert references.find("two/a.wav") == "two/a.wav"


def test_long_lists_are_cut() -> None:
    assert some_ids([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
