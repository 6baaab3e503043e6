from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from avcap_zoo.cli.usage import CommandLineError
from avcap_zoo.errors import ConfigError
from avcap_zoo.tables.missing import manifest_entry
from avcap_zoo.tables.paper_tables import NUMBERS, Paper, PaperRow, PaperTable, choose, read_papers
from avcap_zoo.tables.row_runs import merged, strings_of

REPOSITORY = Path(__file__).parents[3]
PAPERS = read_papers()
ROWS = [(paper, table, row) for paper in PAPERS for table in paper.tables for row in table.rows]
HEAD_NAMES = {
    "BLEU-4": "bleu_4",
    "METEOR": "meteor",
    "CIDEr": "cider",
    "SPICE": "spice",
    "SPIDEr": "spider",
}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def numbers(table: PaperTable, row: PaperRow) -> dict[str, float]:
    return {name: value for name, value in zip(table.columns, row.paper, strict=True) if value is not None}


def test_all_four_papers_are_there() -> None:
    assert [paper.system for paper in PAPERS] == ["bubogpt", "lavcap", "vlrm", "zeraucap"]
    assert {paper.system: len(paper.tables) for paper in PAPERS} == {
        "bubogpt": 1,
        "lavcap": 6,
        "vlrm": 1,
        "zeraucap": 5,
    }
    assert all(paper.not_published for paper in PAPERS)
    for paper in PAPERS:
        assert len({table.table_id for table in paper.tables}) == len(paper.tables)
        for table in paper.tables:
            assert len({row.row_id for row in table.rows}) == len(table.rows), table.table_id


def test_spider_is_the_mean_of_cider_and_spice() -> None:
    """A slip in typing one of the three would show: the papers' own rows agree but for rounding and one misprint."""
    seen = 0
    for _, table, row in ROWS:
        found = numbers(table, row)
        if {"cider", "spice", "spider"} <= set(found) and row.row_id != "avcap_freeze_av":
            assert found["spider"] == pytest.approx((found["cider"] + found["spice"]) / 2, abs=0.26), row.row_id
            seen += 1
    assert seen > 60


def test_the_mean_of_nine_is_their_mean() -> None:
    (whole,) = [
        numbers(table, row) for _, table, row in ROWS if (table.table_id, row.row_id) == ("audiocaps", "zeraucap")
    ]
    mean = whole.pop("nlg_mean")
    assert len(whole) == 9
    assert mean == pytest.approx(sum(whole.values()) / 9, abs=0.1)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs/tables").glob("*cap/*.yaml")), ids=lambda path: path.stem
)
def test_the_heads_of_the_overlays_say_the_same(path: Path) -> None:
    name = path.relative_to(REPOSITORY).as_posix()
    head = " ".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    said = {
        column: float(value)
        for label, column in HEAD_NAMES.items()
        for value in re.findall(rf"{label} (\d+\.\d)", head)
    }
    of_rows = [numbers(table, row) for paper, table, row in ROWS if row.full and row.full[-1] == name]
    assert of_rows, f"no row is run with {name}"
    assert said
    assert any({key: found.get(key) for key in said} == said for found in of_rows)


@pytest.mark.parametrize(("paper", "table", "row"), ROWS, ids=lambda one: getattr(one, "row_id", ""))
def test_what_a_row_names_exists(paper: Paper, table: PaperTable, row: PaperRow) -> None:
    for configs in (row.full, row.toy):
        if configs:
            content = merged(configs)
            assert content["model"]["class_path"].startswith(f"avcap_zoo.systems.{paper.system}.")
    if row.full:
        named = set(strings_of(merged(row.full)["model"]))
        for weights in row.weights:
            entry = manifest_entry(weights)
            assert paper.system in entry["needed_by"]
            wanted = entry.get("hub_id", f"checkpoints/{entry.get('file')}")
            assert wanted in named or weights == "clip-vit-g-14", f"no file of {row.row_id} names {wanted}"
        assert table.official_clips is not None
    if not row.full and not row.toy and paper.system != "lavcap":
        assert row.note or row.paper


def test_toy_rows_name_nothing_that_nobody_makes() -> None:
    """Every path below runs/pretrained or of a checkpoint is the product of a maker."""
    seen = set()
    for paper in PAPERS:
        products = {maker.makes for maker in paper.makers.values()}
        rows = [row.toy for table in paper.tables for row in table.rows if row.toy]
        for configs in [*rows, *(maker.configs for maker in paper.makers.values())]:
            named = {text for text in strings_of(merged(configs)) if re.match(r"runs/(pretrained/|.*\.ckpt$)", text)}
            assert named <= products, (configs, named - products)
            seen |= named
        assert products <= seen


def test_only_papers_without_scores_have_tables_without_numbers() -> None:
    assert {paper.system for paper in PAPERS if not any(table.columns for table in paper.tables)} == {"bubogpt"}


def test_tables_are_chosen_by_name() -> None:
    assert [table.table_id for _, table in choose(PAPERS, "LAVCap", "ii")] == ["II"]
    assert len(choose(PAPERS, None, None)) == 13
    with pytest.raises(CommandLineError, match="argument --system: no system 'lavcup'; did you mean lavcap"):
        choose(PAPERS, "lavcup", None)
    with pytest.raises(CommandLineError, match=r"no table 'IX', there are: lavcap: I, II, III, IV, VI, VII"):
        choose(PAPERS, "lavcap", "IX")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.update(colums=[]), "table 3: keys missing: none; unknown: colums"),
        (lambda table: table.pop("source"), "table 3: keys missing: source; unknown: none"),
        (lambda table: table["columns"].append("bertscore"), "table 3: no columns bertscore, known: bleu_1"),
        (lambda table: table["rows"][1]["paper"].append(1), "table 3, row blip2: 5 numbers for 4 columns"),
        (lambda table: table["rows"][1].update(paid=1), "table 3, row blip2: keys missing: none; unknown: paid"),
    ],
)
def test_a_file_with_a_slip_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    content = yaml.safe_load((NUMBERS / "vlrm.yaml").read_text(encoding="utf-8"))
    change(content["tables"][0])
    (tmp_path / "vlrm.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        read_papers(tmp_path)
    assert str(caught.value).startswith(f"vlrm.yaml: {said}")
