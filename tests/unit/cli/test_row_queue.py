from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from avcap_zoo.cli.row_queue import run_rows
from avcap_zoo.cli.side_by_side import Command
from avcap_zoo.errors import DataError
from avcap_zoo.tables.row_runs import RowRun
from tests.unit.tables.outcomes import run

QUICK = ("scenes", "--help")
WRONG = ("reproduce", "--seeds", "0")


def job(folder: Path, key: str, *commands: Sequence[str], needs: tuple[RowRun, ...] = ()) -> RowRun:
    told = tuple(Command("working", list(words)) for words in commands)
    return replace(run(folder, key), commands=told, needs=needs)


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_what_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    broken, good = job(tmp_path, "broken", WRONG), job(tmp_path, "good", QUICK)
    above = job(tmp_path, "above", QUICK, needs=(broken,))
    finished: list[str] = []
    there = console()
    failures = run_rows([broken, above, good], [{}], there, lambda one: finished.append(one.key))
    assert finished == ["good"]
    assert failures == {
        "broken": "avcap reproduce: argument --seeds: found 0, wanted at least 1 "
        f"(all it said is in {broken.folder / 'log.txt'})",
        "above": "what it needs failed: run broken",
    }
    assert isinstance(there.file, io.StringIO)
    said = there.file.getvalue()
    assert "1/3  run broken: FAILED in" in said
    assert "run above: not run, run broken failed" in said
    assert "3/3  run good: done in" in said
    assert not above.folder.exists()


def test_what_is_needed_comes_first_and_done_commands_are_not_run_again(tmp_path: Path) -> None:
    below = job(tmp_path, "below", QUICK)
    above = job(tmp_path, "above", QUICK, WRONG, needs=(below,))
    above.folder.mkdir()
    above.mark_done(above.commands[1], 1.0)  # the one that would fail
    finished: list[str] = []
    assert run_rows([above, below], [{}, {}], console(), lambda one: finished.append(one.key)) == {}
    assert finished == ["below", "above"]
    assert below.done_file(below.commands[0]).is_file()
    assert (above.folder / "settings.yaml").is_file()
    assert "$ avcap scenes --help" in (above.folder / "log.txt").read_text()


def test_a_row_that_leaves_no_scores_has_failed(tmp_path: Path) -> None:
    def refuse(one: RowRun) -> None:
        raise DataError(f"nothing in {one.key}")

    assert run_rows([job(tmp_path, "a", QUICK)], [{}], console(), refuse) == {"a": "nothing in a"}
