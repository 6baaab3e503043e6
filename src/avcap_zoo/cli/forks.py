"""Commands of this package in forks of one process that has imported what they need.

Each is a process of its own, as if typed by hand, but its imports, some seven seconds of a processor, are paid once.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from avcap_zoo.data_modules.workers import end_with_parent, without_main_module

IMPORTED = (
    "avcap_zoo.cli.parser",
    "avcap_zoo.systems.bubogpt",
    "avcap_zoo.systems.lavcap",
    "avcap_zoo.systems.vlrm",
    "avcap_zoo.systems.zeraucap",
)
"""What the process that is forked has imported."""


def can_fork() -> bool:
    """Whether this system has such processes; Windows has not."""
    return "forkserver" in multiprocessing.get_all_start_methods()


class Fork:
    """A command that runs; what can be asked of it is named as in `subprocess.Popen`.

    Args:
        arguments: what follows `avcap`.
        log: file that takes all it prints, at its end.
        environment: variables beside those of this process; those of its first fork hold for all.
    """

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        self._process = context.Process(target=_run, args=(list(arguments), log))
        with _variables(environment), without_main_module():
            self._process.start()

    @property
    def pid(self) -> int | None:
        """Its number."""
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            TimeoutExpired: it runs still.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("avcap", timeout or 0)
        return self._process.exitcode

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def _run(arguments: list[str], log: Path) -> None:
    """In the fork: the command, with its output in the log; ends when the process that wanted it does."""
    end_with_parent()
    with log.open("ab") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    from avcap_zoo.cli.main import avcap

    sys.argv = ["avcap", *arguments]
    sys.exit(avcap(arguments))


@contextmanager
def _variables(environment: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
