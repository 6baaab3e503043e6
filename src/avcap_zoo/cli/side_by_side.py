"""Several models trained at once, each in a process of its own with one thread, shown on one live display."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from avcap_zoo.cli.forks import Fork
from avcap_zoo.errors import AvcapError, DataError
from avcap_zoo.tables.run_results import read_curves

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""With more threads than that, two processes on two cores spend their time waiting for each other."""

_POLL_S = 0.5
_LINE_EVERY_S = 20.0
_GRACE_S = 3.0
_SHOWN_LINES = 15
_WIDTH_WITH_BARS = 104
_PR_SET_PDEATHSIG = 1
_TQDM = re.compile(r"^\s*(?P<what>[^:|%]+):\s+\d+%\|.*?\|\s*(?P<done>\d+)/(?P<total>\d+)")


class RunFailedError(AvcapError):
    """A command of a run ended with an error; the message holds the last lines of its log."""


@dataclass
class Command:
    """One command of the package.

    Attributes:
        doing: what it does until its log tells more, for the display.
        arguments: what follows `avcap`.
        num_steps: optimizer steps it makes; 0 for commands that do not train.
        metrics: where those steps are logged.
    """

    doing: str
    arguments: list[str]
    num_steps: int = 0
    metrics: Path | None = None

    def __str__(self) -> str:
        """As one types it."""
        return shlex.join(["avcap", *self.arguments])


@dataclass
class Status:
    """What a run does now.

    Attributes:
        doing: in words.
        done: parts of it that are done.
        total: all its parts; 0 if nothing is counted.
        numbers: the last loss and score, in words.
    """

    doing: str
    done: int = 0
    total: int = 0
    numbers: str = ""

    def __str__(self) -> str:
        """One line."""
        return f"{self.step}{', ' if self.numbers else ''}{self.numbers}"

    @property
    def step(self) -> str:
        """What it does and how far it is."""
        return f"{self.doing} {self.done}/{self.total}" if self.total else self.doing


@dataclass
class Run:
    """One model: its commands, run one after the other.

    Attributes:
        title: name of the model for the display.
        commands: what to run.
        log: file that takes all they print.
        program: what the arguments of a command are given to.
        environment: variables beside those of this process.
        forked: commands of this package are run as `forks.Fork`, whatever the program.
        on_done: told each command that ended well, and how many seconds it took.
    """

    title: str
    commands: Sequence[Command]
    log: Path
    program: Sequence[str] = (sys.executable, "-m", "avcap_zoo")
    environment: Mapping[str, str] = field(default_factory=lambda: ONE_THREAD)
    forked: bool = False
    on_done: Callable[[Command, float], None] | None = None
    status: Status = field(default_factory=lambda: Status("waiting"))
    _next: int = 0
    _process: subprocess.Popen[bytes] | Fork | None = None
    _file: IO[bytes] | None = None
    _read: int = 0
    _started: float = 0.0

    def advance(self) -> bool:
        """Start the next command if none is running, and look at what is done.

        Returns:
            Whether anything is left to do.

        Raises:
            RunFailedError: the command that ended, ended badly.
        """
        if self._process is not None:
            code = self._process.poll()
            self._look(self.commands[self._next - 1])
            if code is None:
                return True
            self._process = None
            if code != 0:
                self._fail(code)
            if self.on_done is not None:
                self.on_done(self.commands[self._next - 1], time.monotonic() - self._started)
        if self._next == len(self.commands):
            self.status = Status("done", numbers=self.status.numbers)
            self.stop()
            return False
        self._start(self.commands[self._next])
        self._next += 1
        return True

    def stop(self) -> None:
        """End what is running, by force if need be."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _start(self, command: Command) -> None:
        if self._file is None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.unlink(missing_ok=True)
            self._file = self.log.open("ab")  # a fork opens it once more
        self._file.write(f"$ {command}\n".encode())
        self._file.flush()
        self.status = Status(command.doing, numbers=self.status.numbers)
        self._started = time.monotonic()
        environment = {**self.environment, "PYTHONUNBUFFERED": "1"}
        if self.forked:
            self._process = Fork(command.arguments, self.log, environment)
            return
        self._process = subprocess.Popen(
            [*self.program, *command.arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )

    def _look(self, command: Command) -> None:
        """Read the steps from the metrics once there are any, else the progress bars from the log."""
        if command.metrics is not None:
            try:
                loss, score = read_curves(command.metrics)
            except DataError:
                loss, score = [], []
            if loss:
                numbers = f"loss {loss[-1][1]:.2f}" + (f", CIDEr {score[-1][1]:.0f}" if score else "")
                self.status = Status("training, step", loss[-1][0], command.num_steps, numbers)
                return
        with self.log.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        # What follows the last break may be half a line.
        end = max(text.rfind(b"\r"), text.rfind(b"\n")) + 1
        self._read += end
        for line in re.split(r"[\r\n]+", text[:end].decode("utf-8", "replace")):
            bar = _TQDM.match(line)
            if bar is not None:
                doing = bar["what"].strip().replace("_", " ")
                self.status = Status(doing, int(bar["done"]), int(bar["total"]), self.status.numbers)

    def _fail(self, code: int) -> NoReturn:
        lines = [line for line in re.split(r"[\r\n]+", self.log.read_text("utf-8", "replace")) if line.strip()]
        lines = [line for line in lines if _TQDM.match(line) is None][-_SHOWN_LINES:]
        raise RunFailedError(
            f"{self.title}: this command ended with exit code {code}: {self.commands[self._next - 1]}\n"
            + "".join(f"    {line}\n" for line in lines)
            + f"  all it said is in {self.log}"
        )


def _end_with_parent() -> None:
    """In a new process: be killed when this one is, even by a signal that it cannot catch."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_side_by_side(runs: Sequence[Run], console: Console) -> None:
    """Run all to their end and show what they do; when this one is left, whatever the reason, none goes on.

    Args:
        runs: started together.
        console: a terminal gets bars, anything else a line now and then.

    Raises:
        RunFailedError: a command failed; the other runs are stopped.
    """
    show = _bars if console.is_terminal else _lines
    try:
        with ended_by_sigterm(), show(runs, console) as display:
            while [run for run in runs if run.advance()]:
                display.update()
                time.sleep(_POLL_S)
            display.update()
    finally:
        for run in runs:
            run.stop()


class _Display:
    """What the loop tells to be brought up to date."""

    def update(self) -> None:
        """Show the runs as they are now."""


class _Bars(_Display):
    def __init__(self, runs: Sequence[Run], progress: Progress) -> None:
        self.progress = progress
        self.tasks: list[tuple[Run, TaskID]] = [
            (run, progress.add_task(run.title, total=None, doing="", numbers="")) for run in runs
        ]

    def update(self) -> None:
        for run, task in self.tasks:
            status = run.status
            finished = status.doing == "done"
            if finished:
                self.progress.stop_task(task)
            self.progress.update(
                task,
                total=1 if finished else status.total or None,
                completed=1 if finished else status.done,
                doing=f"{status.step:<32}",
                numbers=f"{status.numbers:<20}",
            )


class _Lines(_Display):
    def __init__(self, runs: Sequence[Run], console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.said: dict[str, tuple[float, str]] = {run.title: (-_LINE_EVERY_S, "") for run in runs}
        self.runs = runs

    def update(self) -> None:
        now = time.monotonic() - self.started
        for run in self.runs:
            last, doing = self.said[run.title]
            if run.status.doing == doing and (now - last < _LINE_EVERY_S or doing == "done"):
                continue
            self.said[run.title] = (now, run.status.doing)
            self.console.print(f"{now:4.0f} s  {run.title}: {run.status}", highlight=False, soft_wrap=True)


@contextmanager
def _bars(runs: Sequence[Run], console: Console) -> Iterator[_Display]:
    texts = [TextColumn(f"{{task.{name}}}") for name in ("description", "fields[doing]", "fields[numbers]")]
    bar = [BarColumn(bar_width=20)] if console.width >= _WIDTH_WITH_BARS else []
    columns = (*texts[:2], *bar, *texts[2:], TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        yield _Bars(runs, progress)


@contextmanager
def _lines(runs: Sequence[Run], console: Console) -> Iterator[_Display]:
    yield _Lines(runs, console)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process in the ordinary way, so that the others are stopped before it goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
