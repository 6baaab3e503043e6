from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.errors import DataError
from avcap_zoo.tables.row_results import RESULT, Spread, finish, hardware, read_result, spread
from avcap_zoo.tables.row_runs import RowRun
from avcap_zoo.tables.run_results import read_annotations
from tests.unit.tables.outcomes import both_tracks, run

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_spread_is_mean_and_sample_deviation() -> None:
    assert spread([]) is None
    assert spread([3.0]) == Spread(3.0, None, 1)
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)


def test_an_outcome_is_on_the_scale_of_the_tables(tmp_path: Path) -> None:
    first = both_tracks(tmp_path)[0].rows[0]
    cider = first.spread("cider")
    assert cider is not None
    assert cider.mean == pytest.approx(79.0)
    assert cider.deviation == pytest.approx(1.41421, abs=1e-4)
    assert first.spread("spice") is None


def a_tested_run(folder: Path, scores: dict[str, float], captions: dict[str, tuple[str, str]], config: str) -> RowRun:
    """A run whose commands are done and whose test wrote what a test writes."""
    made = replace(run(folder, "k", (config,)), settings={"data": {"init_args": {"root": str(folder)}}})
    fit, _ = made.commands
    commands = (replace(fit, arguments=["fit"]), replace(fit, arguments=["test"]))
    made = replace(made, commands=commands)
    (made.folder / "test").mkdir(parents=True)
    for command, seconds in zip(commands, (10.0, 2.5), strict=True):
        made.mark_done(command, seconds)
    rows: list[dict[str, Any]] = [
        {"id": i, "caption": said, "references": [truth], "scores": {}} for i, (said, truth) in captions.items()
    ]
    (made.folder / "test/test_captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        "scores": scores,
        "missing_scores": {"spice": "needs Java"},
        "clips_scored": len(rows),
        "clips_official": 9,
        "clips_skipped": ["x"],
        "versions": {"torch": "8.8"},
        "tokenizer": "python",
        "data": None,
    }
    (made.folder / "test/test_scores.json").write_text(json.dumps(summary))
    return made


def test_a_result_holds_what_the_commands_wrote(tmp_path: Path) -> None:
    nine = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice", "spider")
    scores = {name: 0.1 * number for number, name in enumerate(nine)}
    made = a_tested_run(tmp_path, scores, {"a": ("x", "x")}, "configs/zeraucap.yaml")
    assert read_result(made) is None
    finish(made)
    found = read_result(made)
    assert found is not None
    assert found["scores"] == scores | {"nlg_mean": pytest.approx(0.4)}
    assert (found["seconds"], found["resumed"], found["clips_scored"], found["clips_skipped"]) == (12.5, False, 1, 1)
    assert found["commands"] == ["avcap fit", "avcap test"]
    assert found["hardware"] == hardware()
    assert found["missing_scores"] == {"spice": "needs Java"}
    assert list(made.folder.glob(".*partial")) == []


def test_right_events_are_counted_on_the_scenes(tmp_path: Path, scenes_root: Path) -> None:
    truth = read_annotations(scenes_root)
    said = {i: (row["captions"][0] if n else "a choir sings", "x") for n, (i, row) in enumerate(truth.items())}
    made = a_tested_run(tmp_path, {"cider": 1.0}, said, "configs/tiny/lavcap.yaml")
    finish(replace(made, settings={"data": {"init_args": {"root": str(scenes_root)}}}))
    found = read_result(made)
    assert found is not None
    assert found["scores"] == {"cider": 1.0, "events": pytest.approx(5 / 6)}


def test_right_answers_about_pairs_are_counted(tmp_path: Path) -> None:
    said = {
        "a": ("they seem unrelated. a dog", "They seem unrelated. a cat"),
        "b": ("the sound is of the dog", "They seem unrelated. a cat"),
        "c": ("the sound is of the dog", "the sound is of the cat"),
        "d": ("unrelated", "the sound is of the cat"),
    }
    made = a_tested_run(tmp_path, {}, said, "configs/tiny/bubogpt_stage2.yaml")
    finish(made)
    found = read_result(made)
    assert found is not None
    assert found["scores"] == {"related": 0.5}


def test_a_damaged_result_counts_as_none(tmp_path: Path) -> None:
    made = a_tested_run(tmp_path, {"cider": 1.0}, {"a": ("x", "x")}, "configs/zeraucap.yaml")
    finish(made)
    path = made.folder / RESULT
    for text in ("{", "[]", '{"key": "other", "scores": {}}', '{"key": "k", "scores": 3}'):
        path.write_text(text)
        assert read_result(made) is None


def test_a_test_without_scores_is_said(tmp_path: Path) -> None:
    made = a_tested_run(tmp_path, {}, {"a": ("x", "x")}, "configs/zeraucap.yaml")
    (made.folder / "test/test_scores.json").unlink()
    with pytest.raises(
        DataError, match=r"the test wrote no readable .*test_scores.json; delete .* and run avcap reproduce again"
    ):
        finish(made)
