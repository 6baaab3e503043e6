from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.tables.result_tables import TableOutcome
from avcap_zoo.tables.row_data import ClipMedia, clip_media
from avcap_zoo.tables.row_runs import merged
from avcap_zoo.tables.run_results import read_annotations
from avcap_zoo.tables.tables_report import best_and_worst, tables_report, write_tables_report
from tests.unit.tables.outcomes import both_tracks, run, write_captions
from tests.unit.tables.test_report import Page

REPOSITORY = Path(__file__).parents[3]
RUDE = "<script>alert('bark')</script> & more"


@pytest.fixture
def outcomes(tmp_path: Path, scenes_root: Path, monkeypatch: pytest.MonkeyPatch) -> list[TableOutcome]:
    """One toy row on six real clips, with curves; nothing of the full size has captions."""
    monkeypatch.chdir(REPOSITORY)
    full, toy = both_tracks(tmp_path)
    row = toy.rows[0]
    made = replace(run(tmp_path, "d"), settings={"data": {"init_args": scenes_section(scenes_root)["init_args"]}})
    (made.folder / "fit").mkdir(parents=True)
    (made.folder / "fit/metrics-000.csv").write_text("step,train/loss,val/cider\n9,3.0,\n19,2.0,\n")
    (made.folder / "fit/metrics.csv").write_text("step,train/loss,val/cider\n19,2.5,\n29,1.0,\n29,,1.5\n")
    ids = sorted(read_annotations(scenes_root))
    write_captions(made, {clip_id: 0.1 * number for number, clip_id in enumerate(ids)}, RUDE)
    failed = replace(full.rows[0], runs=(), results={})
    return [replace(full, rows=(failed, *full.rows[1:])), replace(toy, rows=(replace(row, runs=(made,)),))]


def scenes_section(scenes_root: Path) -> dict[str, Any]:
    section: dict[str, Any] = merged(("configs/tiny/lavcap.yaml",))["data"]
    section["init_args"] |= {"root": str(scenes_root), "num_train": 24, "num_val": 6, "num_test": 6}
    return section


def test_the_page_is_whole_and_needs_nothing_but_itself(outcomes: list[TableOutcome], tmp_path: Path) -> None:
    html = tables_report(outcomes, tmp_path / "clips")
    page = Page(html)
    assert (page.open, page.crossed) == ([], [])
    assert "http://" not in html
    assert "https://" not in html
    assert page.attributes("script") == []
    assert page.attributes("link") == []
    assert all(one["src"].startswith("data:") for tag in ("img", "audio") for one in page.attributes(tag))
    assert all(image["alt"] for image in page.attributes("img"))
    assert any(meta.get("name") == "viewport" for meta in page.attributes("meta"))
    anchors = {one["href"].removeprefix("#") for one in page.attributes("a")}
    assert (
        anchors == {one["id"] for one in page.attributes("h2") if "id" in one} == {"lavcap-II-full", "lavcap-II-tiny"}
    )


def test_the_page_shows_clips_curves_and_commands(outcomes: list[TableOutcome], tmp_path: Path) -> None:
    page = Page(tables_report(outcomes, tmp_path / "clips"))
    text = "".join(page.texts)
    assert len(page.attributes("audio")) == 4  # the two best and the two worst
    assert all(one["src"].startswith("data:audio/mpeg;base64,") for one in page.attributes("audio"))
    assert len(page.attributes("img")) == 4 * 4
    assert len(page.attributes("svg")) == 2
    assert text.count(RUDE) == 4
    assert "avcap test -c 'b & c.yaml'" in text
    assert "300 of 300" in text
    assert "kind: ot_attention" in text
    assert "Best and worst clips by CIDEr of “sound alone”" in text
    assert "weights ced-base: not | there (1 row)" in text
    curves = [one["aria-label"] for one in page.attributes("svg")]
    assert curves == [
        "Loss, training batches over optimizer steps: sound alone ends at 1",
        "CIDEr × 100, validation clips over optimizer steps: sound alone ends at 150",
    ]


def test_each_row_has_the_loss_that_it_logged(outcomes: list[TableOutcome], tmp_path: Path) -> None:
    """Where one row has a caption loss beside another term, the whole loss of the others is their caption loss."""
    row = outcomes[1].rows[0]
    other = replace(run(tmp_path, "e"), settings=row.runs[0].settings)
    (other.folder / "fit").mkdir(parents=True)
    (other.folder / "fit/metrics.csv").write_text("step,train/loss,train/loss_caption\n9,9.0,4.0\n19,8.0,3.0\n")
    write_captions(other, {})
    with_ot = replace(row, row=outcomes[0].table.rows[2], runs=(other,), results={"e": row.results["d"]})
    page = Page(tables_report([outcomes[0], replace(outcomes[1], rows=(row, with_ot))], tmp_path / "clips"))
    told = page.attributes("svg")[0]["aria-label"]
    assert told.startswith("Caption loss, training batches over optimizer steps: sound alone ends at 1;")
    assert told.endswith("sound, pictures, OT loss ends at 3")


def test_clips_are_decoded_once(outcomes: list[TableOutcome], scenes_root: Path, tmp_path: Path) -> None:
    section = scenes_section(scenes_root)
    ids = sorted(read_annotations(scenes_root))[:2]
    first = clip_media(section, [*ids, "nobody"], tmp_path / "kept")
    assert set(first) == set(ids)
    assert all(media.sound is not None and len(media.pictures) == 4 for media in first.values())
    assert sum(len(media.sound or b"") for media in first.values()) < 100_000
    stems = {path.stem: path for path in (tmp_path / "kept").glob("*.mp3")}
    assert len(stems) == 2
    for path in stems.values():
        path.write_bytes(b"kept")
    again = clip_media(section, ids, tmp_path / "kept")
    assert {media.sound for media in again.values()} == {b"kept"}


def test_a_clip_without_sound_has_none(tmp_path: Path, scenes_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    section = scenes_section(scenes_root)
    section["init_args"]["modalities"] = ["visual"]
    clip_id = min(read_annotations(scenes_root))
    (media,) = clip_media(section, [clip_id], tmp_path / "kept").values()
    assert isinstance(media, ClipMedia)
    assert media.sound is None
    assert len(media.pictures) == 4


def test_best_and_worst_go_by_spider_where_it_is() -> None:
    rows = [{"id": str(n), "scores": {"cider": n, "spider": -n}} for n in range(5)]
    assert best_and_worst(rows, 1) == ("spider", ["0", "4"])
    for row in rows:
        del row["scores"]["spider"]  # type: ignore[attr-defined]
    assert best_and_worst(rows, 2) == ("cider", ["4", "3", "1", "0"])
    rows[4]["scores"]["cider"] = float("nan")  # type: ignore[index]
    assert best_and_worst(rows, 1) == ("cider", ["3", "0"])
    assert best_and_worst(rows[:1], 2) == ("cider", ["0"])
    assert best_and_worst([{"id": "a", "scores": {}}], 2) == ("", [])


def test_the_page_is_written_and_small(outcomes: list[TableOutcome], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_tables_report(path, outcomes)
    assert path.read_text(encoding="utf-8") == tables_report(outcomes, tmp_path / "clips")
    assert path.stat().st_size < 1_000_000


def test_data_that_were_removed_leave_the_captions(outcomes: list[TableOutcome], tmp_path: Path) -> None:
    made = outcomes[1].rows[0].runs[0]
    settings = json.loads(json.dumps(made.settings))
    settings["data"]["init_args"] |= {"root": str(tmp_path / "gone")}
    gone = replace(outcomes[1].rows[0], runs=(replace(made, settings=settings),))
    page = Page(tables_report([outcomes[0], replace(outcomes[1], rows=(gone,))], tmp_path / "clips"))
    assert page.attributes("audio") == []
    assert "".join(page.texts).count(RUDE) == 4
