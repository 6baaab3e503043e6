from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.errors import DataError
from avcap_zoo.tables.run_results import (
    clip_count,
    events_right,
    first_right_and_wrong,
    margin,
    one_of_each_kind,
    read_annotations,
    read_curves,
    read_run,
    same_clips,
    shares_by_relation,
    spoken_duration,
)
from tests.unit.tables.runs import HEADER, write_run


@pytest.fixture(scope="session")
def truth(scenes_root: Path) -> dict[str, dict[str, Any]]:
    return read_annotations(scenes_root)


def references(truth: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    return {clip_id: row["captions"] for clip_id, row in truth.items()}


def test_annotations_are_those_of_the_split(scenes_root: Path, truth: dict[str, dict[str, Any]]) -> None:
    assert len(truth) == 6
    assert len(read_annotations(scenes_root, "train")) == 24
    with pytest.raises(DataError, match="no clip of the split holiday"):
        read_annotations(scenes_root, "holiday")


def test_captions_are_judged_by_the_annotations(tmp_path: Path, truth: dict[str, dict[str, Any]]) -> None:
    said = {clip_id: row["captions"][0] for clip_id, row in truth.items()}
    wrong, vague, *_ = sorted(said)
    said[wrong] = "a choir sings"
    said[vague] += " loudly" if truth[vague]["events"][-1]["loudness"] != "loud" else " quietly"
    run = read_run("it", write_run(tmp_path / "run", said, references(truth)), truth)
    assert [clip.clip_id for clip in run.clips] == sorted(said)
    assert {clip.clip_id for clip in run.clips if not clip.events_right} == {wrong}
    assert {clip.clip_id for clip in run.clips if not clip.all_right} == {wrong, vague}
    assert run.events_share == pytest.approx(5 / 6)
    assert run.all_share == pytest.approx(4 / 6)
    assert run.scores == {"cider": 2.5, "bleu_4": 0.125}
    assert run.versions["torch"] == "8.8"
    assert clip_count(run.config, "train") == 1234


def test_curves_hold_the_caption_loss_and_cider(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(f"{HEADER}\n0,19,2.0,1.75,\n0,39,1.5,,\n0,39,,,2.0\n,,1.0,1.0,\n1,59,nan,nan,\n1,79,1.2")
    loss, cider = read_curves(path)
    assert loss == [(20, 1.75), (40, 1.5), (80, 1.2)]
    assert cider == [(40, 200.0)]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*metrics\.csv"):
        read_curves(tmp_path / "metrics.csv")
    with pytest.raises(DataError, match=r"cannot read .*test_captions\.jsonl"):
        read_run("it", tmp_path, {})


def test_clips_without_annotation_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"stranger": "a dog barks"}, {"stranger": ["a dog barks"]})
    with pytest.raises(DataError, match=r"without annotation \(stranger\)"):
        read_run("it", folder, {"known": {}})


def test_margin_is_wilsons() -> None:
    assert margin(0.5, 100) == pytest.approx(0.0962, abs=1e-4)
    assert margin(0.0, 100) > 0
    assert margin(0.7, 300) < margin(0.7, 100)


def test_clips_are_chosen_by_rule(tmp_path: Path, truth: dict[str, dict[str, Any]]) -> None:
    ids = sorted(truth)
    said = {clip_id: truth[clip_id]["captions"][0] if n % 2 else "a choir" for n, clip_id in enumerate(ids)}
    run = read_run("it", write_run(tmp_path / "run", said, references(truth)), truth)
    assert [clip.clip_id for clip in first_right_and_wrong(run, 2)] == [ids[1], ids[3], ids[0], ids[2]]
    shown = one_of_each_kind(run, truth)
    right = [clip.events_right for clip in shown]
    assert right == sorted(right, reverse=True)
    for clip in shown:
        kind = truth[clip.clip_id]["relation"]
        earlier = [i for i in ids[: ids.index(clip.clip_id)] if truth[i]["relation"] == kind]
        assert all((i in ids[1::2]) != clip.events_right for i in earlier)
    assert len(shown) == len({(clip.events_right, truth[clip.clip_id]["relation"]) for clip in run.clips})


def test_shares_by_relation_add_up(tmp_path: Path, truth: dict[str, dict[str, Any]]) -> None:
    said = {clip_id: row["captions"][0] for clip_id, row in truth.items()}
    lost = next(iter(said))
    said[lost] = ""
    run = read_run("it", write_run(tmp_path / "run", said, references(truth)), truth)
    shares = shares_by_relation(run, truth)
    assert sum(count for count, _ in shares.values()) == 6
    assert sum(count * share for count, share in shares.values()) == pytest.approx(5)
    assert shares[truth[lost]["relation"]][1] < 1


def test_runs_on_other_clips_are_told_apart(tmp_path: Path, truth: dict[str, dict[str, Any]]) -> None:
    said = dict.fromkeys(truth, "a dog barks")
    fewer = dict(list(said.items())[1:])
    runs = [
        read_run("it", write_run(tmp_path / str(n), captions, references(truth)), truth)
        for n, captions in enumerate((said, said, fewer))
    ]
    assert same_clips(runs[:2])
    assert not same_clips(runs)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (307, "5 min 7 s"), (7260, "2 h 1 min")]
)
def test_durations_are_spoken(seconds: float, said: str) -> None:
    assert spoken_duration(seconds) == said


def test_right_events_are_a_share(truth: dict[str, dict[str, Any]]) -> None:
    said = {clip_id: row["captions"][0] for clip_id, row in truth.items()}
    assert events_right(said, truth) == 1.0
    assert events_right(said | {next(iter(said)): "a choir sings"}, truth) == pytest.approx(5 / 6)
