"""Rows of tables run one after another, as many at once as there are places; what fails does not stop the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from rich.console import Console

from avcap_zoo.cli.side_by_side import Run, RunFailedError, ended_by_sigterm
from avcap_zoo.errors import AvcapError
from avcap_zoo.tables.row_runs import RowRun
from avcap_zoo.tables.run_results import spoken_duration

_POLL_S = 0.3
_LINE_EVERY_S = 60.0


@dataclass
class _Place:
    """Where one row at a time is run."""

    environment: Mapping[str, str]
    job: RowRun | None = None
    run: Run | None = None
    started: float = field(default=0.0)


def run_rows(
    jobs: Sequence[RowRun],
    places: Sequence[Mapping[str, str]],
    console: Console,
    finish: Callable[[RowRun], None],
    *,
    forked: bool = False,
) -> dict[str, str]:
    """Run all, each after those that it needs; when this process is left, whatever the reason, none goes on.

    Args:
        jobs: not done yet; what they need is done or among them.
        places: the environment of each, such as the device that it may see.
        console: told what begins and ends.
        finish: called with each job whose commands are done.
        forked: commands share their imports (`forks`), for rows so short that these would count.

    Returns:
        What went wrong, by key of the job.
    """
    waiting = list(jobs)
    open_keys = {job.key for job in jobs}
    failures: dict[str, str] = {}
    slots = [_Place(environment) for environment in places]
    began = said = time.monotonic()
    status = console.status("") if console.is_terminal else None

    def say(text: str) -> None:
        done = len(jobs) - len(open_keys)
        clock = spoken_duration(time.monotonic() - began)
        console.print(f"{clock:>12}  {done}/{len(jobs)}  {text}", markup=False, highlight=False, soft_wrap=True)

    def leave(job: RowRun, problem: str | None) -> None:
        open_keys.discard(job.key)
        if problem is not None:
            failures[job.key] = problem

    try:
        with ended_by_sigterm(), status or nullcontext():
            while open_keys:
                for job in [job for job in waiting if any(need.key in failures for need in job.needs)]:
                    waiting.remove(job)
                    broken = next(need.title for need in job.needs if need.key in failures)
                    leave(job, f"what it needs failed: {broken}")
                    say(f"{job.title}: not run, {broken} failed")
                for slot in slots:
                    if slot.run is None:
                        ready = [job for job in waiting if not any(need.key in open_keys for need in job.needs)]
                        if ready:
                            waiting.remove(ready[0])
                            _start(slot, ready[0], forked)
                            say(f"{ready[0].title}: begins")
                    elif slot.job is not None:
                        job, problem = slot.job, _advance(slot, finish)
                        if slot.run is None:
                            leave(job, problem)
                            took = spoken_duration(time.monotonic() - slot.started)
                            say(f"{job.title}: {'done' if problem is None else 'FAILED'} in {took}")
                if status is not None:
                    status.update("; ".join(f"{slot.run.title}: {slot.run.status}" for slot in slots if slot.run))
                elif time.monotonic() - said > _LINE_EVERY_S:
                    said = time.monotonic()
                    for slot in slots:
                        if slot.run is not None:
                            say(f"{slot.run.title}: {slot.run.status}")
                time.sleep(_POLL_S)
    finally:
        for slot in slots:
            if slot.run is not None:
                slot.run.stop()
    return failures


def _start(slot: _Place, job: RowRun, forked: bool) -> None:
    job.write_settings()
    slot.job = job
    slot.run = Run(
        job.title,
        job.remaining(),
        job.folder / "log.txt",
        environment=slot.environment,
        forked=forked,
        on_done=job.mark_done,
    )
    slot.started = time.monotonic()


def _advance(slot: _Place, finish: Callable[[RowRun], None]) -> str | None:
    """Look at what runs; empties the place when it has ended. Returns what went wrong, if anything did."""
    assert slot.run is not None
    assert slot.job is not None
    problem = None
    try:
        if slot.run.advance():
            return None
        finish(slot.job)
    except RunFailedError as error:
        problem = _last_line(str(error))
    except AvcapError as error:
        problem = str(error)
    slot.run.stop()
    slot.run = slot.job = None
    return problem


def _last_line(text: str) -> str:
    """The line of a failed command's log that says most, and where the rest is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = lines[-2] if len(lines) > 2 else lines[0]
    return f"{said} ({lines[-1]})"
