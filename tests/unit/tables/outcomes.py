"""Tables with invented results, for tests of what shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avcap_zoo.cli.side_by_side import Command
from avcap_zoo.tables.paper_tables import Paper, PaperTable, read_papers
from avcap_zoo.tables.result_tables import TableOutcome
from avcap_zoo.tables.row_results import RowOutcome
from avcap_zoo.tables.row_runs import RowRun

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def table_two() -> tuple[Paper, PaperTable]:
    """Table II of LAVCap: three rows, METEOR, CIDEr, SPICE, SPIDEr."""
    (paper,) = [paper for paper in read_papers() if paper.system == "lavcap"]
    return paper, paper.tables[1]


def result(key: str, scores: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """As `row_results.finish` writes it."""
    return {
        "key": key,
        "scores": dict(scores),
        "missing_scores": {},
        "seconds": 100.0,
        "resumed": False,
        "commit": COMMIT,
        "hardware": "a processor, 2 threads",
        "checkpoint": "trained here",
        "clips_scored": 900,
        "clips_official": 975,
        "commands": ["avcap fit -c a.yaml", "avcap test -c 'b & c.yaml'"],
        **more,
    }


def run(folder: Path, key: str, configs: Sequence[str] = ("configs/tiny/lavcap.yaml",)) -> RowRun:
    """A run of two quick commands."""
    return RowRun(
        title=f"run {key}",
        key=key,
        folder=folder / key,
        configs=tuple(configs),
        settings={"seed_everything": 0, "data": {"init_args": {"root": str(folder / "scenes")}}},
        commands=(Command("one", ["--version"]), Command("two", ["--help"])),
        checkpoint="trained here",
    )


def both_tracks(folder: Path) -> list[TableOutcome]:
    """At full size two seeds of the first row, the second failed, the third lacks something; of the toys one row."""
    paper, table = table_two()
    runs = [run(folder, key) for key in ("a", "b", "c", "d")]
    results = {"a": result("a", {"cider": 0.78, "meteor": 0.25}), "b": result("b", {"cider": 0.8, "meteor": 0.26})}
    full = (
        RowOutcome(table.rows[0], (runs[0], runs[1]), results),
        RowOutcome(table.rows[1], (runs[2],), failures={"c": "boom <here>"}),
        RowOutcome(table.rows[2], missing=("weights ced-base: not | there",)),
    )
    toy = result("d", {"cider": 2.5, "bleu_4": 0.5, "events": 0.4}, clips_scored=300, clips_official=300)
    toys = (RowOutcome(table.rows[0], (runs[3],), {"d": toy}),)
    return [TableOutcome(paper, table, "full", full), TableOutcome(paper, table, "tiny", toys)]


def write_captions(of: RowRun, scores: Mapping[str, float], said: str = "a dog barks") -> None:
    """A test's captions, one clip per entry of `scores`."""
    folder = of.folder / "test"
    folder.mkdir(parents=True)
    rows = [
        {
            "id": clip_id,
            "caption": f"{said} {clip_id}",
            "references": ["it barks", "it barks"],
            "scores": {"cider": score},
        }
        for clip_id, score in scores.items()
    ]
    (folder / "test_captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
