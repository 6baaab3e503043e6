from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from avcap_zoo.cli import forks
from avcap_zoo.cli.forks import Fork, can_fork
from avcap_zoo.cli.side_by_side import Command, Run, RunFailedError
from tests.processes import is_running

WANTING = """
import sys
from pathlib import Path
from avcap_zoo.cli import forks

forks.IMPORTED = ("avcap_zoo.cli.main",)
fork = forks.Fork(["score", sys.argv[1], sys.argv[1]], Path(sys.argv[2]), {})
print(fork.pid, flush=True)
fork.wait()
"""

pytestmark = pytest.mark.skipif(not can_fork(), reason="this system has no such processes")


@pytest.fixture(autouse=True)
def nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """No torch in the process that is forked: what is tested here needs none."""
    monkeypatch.setattr(forks, "IMPORTED", ("avcap_zoo.cli.main",))


def test_a_fork_is_the_command_with_its_output_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    assert Fork(["--help"], log, {}).wait(60) == 0
    assert Fork(["scenes", "--clips", "0"], log, {}).wait(60) == 2
    lines = log.read_text().splitlines()
    assert lines[:2] == ["before", "usage: avcap VERB [-c FILE ...] [options]"]
    assert lines[-1].startswith("avcap scenes: argument --clips")


def test_a_run_of_forks_reads_like_one_of_programs(tmp_path: Path) -> None:
    seconds: list[float] = []
    commands = [Command("one", ["--help"]), Command("two", ["reproduce", "--seeds", "0"])]
    one = Run("a", commands, tmp_path / "log.txt", forked=True, on_done=lambda command, took: seconds.append(took))
    one.log.write_text("of an earlier run\n")
    with pytest.raises(RunFailedError, match="exit code 2: avcap reproduce --seeds 0"):
        while one.advance():
            time.sleep(0.02)
    assert len(seconds) == 1
    told = [line for line in one.log.read_text().splitlines() if line.startswith("$")]
    assert told == ["$ avcap --help", "$ avcap reproduce --seeds 0"]
    assert "of an earlier run" not in one.log.read_text()


def test_a_fork_that_is_ended(tmp_path: Path) -> None:
    endless = tmp_path / "endless.csv"
    os.mkfifo(endless)  # nobody writes
    fork = Fork(["score", str(endless), str(endless)], tmp_path / "log.txt", {})
    with pytest.raises(subprocess.TimeoutExpired):
        fork.wait(0.2)
    assert fork.poll() is None
    fork.terminate()
    assert fork.wait(60) == -signal.SIGTERM


def test_forks_do_not_outlive_who_wanted_them(tmp_path: Path) -> None:
    endless = tmp_path / "endless.csv"
    os.mkfifo(endless)
    log = tmp_path / "log.txt"
    script = tmp_path / "wanting.py"
    script.write_text(WANTING)
    with subprocess.Popen([sys.executable, str(script), str(endless), str(log)], stdout=subprocess.PIPE) as wanting:
        assert wanting.stdout is not None
        pid = int(wanting.stdout.readline())
        assert is_running(pid)
        wanting.kill()
    deadline = time.monotonic() + 60
    while is_running(pid):
        assert time.monotonic() < deadline, "a fork outlived the process that wanted it"
        time.sleep(0.05)
