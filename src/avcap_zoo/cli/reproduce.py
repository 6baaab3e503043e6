"""`avcap reproduce`: the papers' tables, at full size where data and weights are there, and with toy models always.

Every row is ordinary commands of this program, each in a process of its own. What is done is kept under a hash of all
that its numbers depend on, so that a run that was killed goes on at the row it was in and a second one shows the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avcap_zoo.cli.usage import CommandLineError, VerbParser
from avcap_zoo.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from avcap_zoo.tables.paper_tables import Paper, PaperRow, PaperTable, Track
    from avcap_zoo.tables.result_tables import TableOutcome
    from avcap_zoo.tables.row_results import RowOutcome
    from avcap_zoo.tables.row_runs import RowRun

FULL_SEEDS, TOY_SEEDS = 3, 1
"""Trainings of each row where the user names no number: at full size, and of toy rows, for the sake of time."""
_MOST_PLACES = 8
_TITLES = {"full": "Full size", "tiny": "Toy models"}


@dataclass(frozen=True)
class ReproduceOptions:
    """What the command line asks for.

    Attributes:
        system: short name of one, or None for all.
        table: id of one, or None for all.
        track: one of the two, or None for both.
        seeds: trainings per row, or None for `FULL_SEEDS` and `TOY_SEEDS`.
        out: folder for everything.
    """

    system: str | None
    table: str | None
    track: Track | None
    seeds: int | None
    out: Path


def main(arguments: Sequence[str]) -> int:
    """Run what can be run, and write the tables.

    Args:
        arguments: what follows the verb.

    Returns:
        0, or 1 if a row failed.

    Raises:
        CommandLineError: an option is unknown or names nothing.
        ConfigError: the current folder is no checkout.
    """
    options = parse_options(arguments)
    from avcap_zoo.tables.paper_tables import read_papers

    return reproduce(options, read_papers())


def parse_options(arguments: Sequence[str]) -> ReproduceOptions:
    """Read the command line; --data becomes the environment variable AVCAP_DATA.

    Raises:
        CommandLineError: an option is unknown or out of range.
    """
    parser = VerbParser(
        prog="avcap reproduce",
        description="The tables of the four papers: at full size each row whose data and weights are here, with a word "
        "on what the others lack; and the same settings with toy models on generated clips, which need nothing. Goes "
        "on where it stopped. Tables (Markdown, CSV) and a report (HTML) are written to OUT.",
        allow_abbrev=False,
    )
    parser.add_argument("--system", metavar="S", help="lavcap, zeraucap, vlrm or bubogpt (all)")
    parser.add_argument("--table", metavar="T", help="one table, such as II (all)")
    parser.add_argument("--data", type=Path, metavar="ROOT", help="folder of the data sets ($AVCAP_DATA)")
    parser.add_argument("--track", choices=("full", "tiny"), help="full size or toy models (both)")
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"trainings of each row ({FULL_SEEDS} at full size, {TOY_SEEDS} of toy models)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), metavar="DIR", help="folder (%(default)s)")
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        raise CommandLineError(f"argument --seeds: found {options.seeds}, wanted at least 1")
    if options.data is not None:
        if not options.data.is_dir():
            raise CommandLineError(f"argument --data: {options.data} is no folder; docs/data.md shows what it holds")
        os.environ["AVCAP_DATA"] = str(options.data)
    return ReproduceOptions(options.system, options.table, options.track, options.seeds, options.out)


def reproduce(options: ReproduceOptions, papers: Sequence[Paper]) -> int:
    """Run the rows of some papers; arguments, result and errors as in `main`."""
    from filelock import FileLock, Timeout
    from rich.console import Console

    from avcap_zoo.tables.paper_tables import choose

    console = Console()
    chosen = choose(papers, options.system, options.table)
    if not Path("configs").is_dir():
        raise ConfigError(f"there is no folder configs in {Path.cwd()}: run avcap reproduce in a checkout of avcap-zoo")
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(options.out / ".lock", timeout=0):
            failed = _reproduce(options, chosen, console)
    except Timeout:
        raise ConfigError(
            f"another avcap reproduce is at work in {options.out}: wait for it, or take another --out"
        ) from None
    return 1 if failed else 0


def _reproduce(options: ReproduceOptions, chosen: Sequence[tuple[Paper, PaperTable]], console: Console) -> bool:
    from avcap_zoo.tables.result_tables import print_missing, print_tables

    outcomes: dict[str, list[TableOutcome]] = {}
    if options.track != "tiny":
        outcomes["full"] = _plan(chosen, "full", options)
        console.print("At full size, what is missing (and how many rows wait for it):")
        print_missing(console, outcomes["full"])
    # The toy models first: they take minutes.
    for track in ("tiny", "full"):
        if track == "tiny" and options.track != "full":
            outcomes["tiny"] = _plan(chosen, "tiny", options)
        if track in outcomes:
            outcomes[track] = _run(outcomes[track], console)
            _write(options.out, in_order(outcomes.values()))
    for track in ("full", "tiny"):
        if track in outcomes:
            print_tables(console, outcomes[track])
    every = [one for part in outcomes.values() for one in part]
    failed = {f"{row.row.label}: {text}" for one in every for row in one.rows for text in row.failures.values()}
    for line in sorted(failed):
        console.print(f"FAILED {line}", style="bold red", markup=False, highlight=False, soft_wrap=True)
    files = ", ".join(str(options.out / name) for name in ("report.html", "tables.md", "tables.csv"))
    console.print(f"\nReport and tables: {files}", highlight=False, soft_wrap=True)
    return bool(failed)


def _plan(chosen: Sequence[tuple[Paper, PaperTable]], track: Track, options: ReproduceOptions) -> list[TableOutcome]:
    from avcap_zoo.tables.result_tables import TableOutcome
    from avcap_zoo.tables.row_results import RowOutcome

    planned = []
    for paper, table in chosen:
        if not (table.columns if track == "full" else table.toy_columns):
            continue
        rows = []
        for row in table.rows:
            if row.configs(track):
                rows.append(_plan_row(paper, table, row, track, options))
            elif track == "full":
                rows.append(RowOutcome(row))
        planned.append(TableOutcome(paper, table, track, tuple(rows)))
    return planned


def _plan_row(paper: Paper, table: PaperTable, row: PaperRow, track: Track, options: ReproduceOptions) -> RowOutcome:
    from avcap_zoo.tables.missing import clips_present, what_is_missing
    from avcap_zoo.tables.row_results import RowOutcome
    from avcap_zoo.tables.row_runs import merged, plan_row

    seeds = options.seeds or (FULL_SEEDS if track == "full" else TOY_SEEDS)
    if track == "tiny":
        return RowOutcome(row, tuple(plan_row(paper, table, row, track, out=options.out, seeds=seeds)))
    missing = what_is_missing(table, row)
    if missing:
        return RowOutcome(row, missing=tuple(missing))
    present = clips_present(merged(row.full))
    return RowOutcome(row, tuple(plan_row(paper, table, row, track, out=options.out, seeds=seeds, present=present)))


def _run(outcomes: Sequence[TableOutcome], console: Console) -> list[TableOutcome]:
    from dataclasses import replace

    from avcap_zoo.cli.forks import can_fork
    from avcap_zoo.cli.row_queue import run_rows
    from avcap_zoo.tables.row_results import finish, read_result

    jobs = _with_needs([run for outcome in outcomes for row in outcome.rows for run in row.runs])
    results = {job.key: found for job in jobs if (found := read_result(job)) is not None}
    left = [job for job in jobs if job.key not in results]
    failures: Mapping[str, str] = {}
    track = outcomes[0].track if outcomes else "tiny"
    if jobs:
        console.print(f"{_TITLES[track]}: {len(jobs)} runs, {len(jobs) - len(left)} of them done before.")
    if left:
        failures = run_rows(left, places(track), console, finish, forked=track == "tiny" and can_fork())
        results |= {job.key: found for job in left if (found := read_result(job)) is not None}
    return [
        replace(
            outcome,
            rows=tuple(
                replace(
                    row,
                    results={run.key: results[run.key] for run in row.runs if run.key in results},
                    failures={run.key: failures[run.key] for run in row.runs if run.key in failures},
                )
                for row in outcome.rows
            ),
        )
        for outcome in outcomes
    ]


def _with_needs(runs: Sequence[RowRun]) -> list[RowRun]:
    """Every run once; what others need comes first, each behind what it needs itself."""
    ordered: dict[str, RowRun] = {}

    def add(run: RowRun) -> None:
        for need in run.needs:
            add(need)
        ordered.setdefault(run.key, run)

    for run in runs:
        for need in run.needs:
            add(need)
    for run in runs:
        add(run)
    return list(ordered.values())


def in_order(tracks: Iterable[Sequence[TableOutcome]]) -> list[TableOutcome]:
    """Every table of the papers' sizes with its toy counterpart behind it."""
    every = [outcome for track in tracks for outcome in track]
    tables = list(dict.fromkeys((one.paper.system, one.table.table_id) for one in every))
    return sorted(
        every, key=lambda one: (one.paper.system, tables.index((one.paper.system, one.table.table_id)), one.track)
    )


def places(track: Track) -> list[dict[str, str]]:
    """The environment of each process that may run at once: one per GPU at full size, one per core for toy models."""
    from avcap_zoo.cli.side_by_side import ONE_THREAD

    if track == "tiny":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return [dict(ONE_THREAD) for _ in range(min(cores, _MOST_PLACES))]
    import torch

    return [{"CUDA_VISIBLE_DEVICES": str(index)} for index in range(torch.cuda.device_count())] or [{}]


def _write(out: Path, outcomes: Sequence[TableOutcome]) -> None:
    from avcap_zoo.tables.result_tables import csv_text, markdown
    from avcap_zoo.tables.tables_report import write_tables_report

    (out / "tables.md").write_text(markdown(outcomes), encoding="utf-8")
    (out / "tables.csv").write_text(csv_text(outcomes), encoding="utf-8")
    write_tables_report(out / "report.html", outcomes)
