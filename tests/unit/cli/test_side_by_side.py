from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from avcap_zoo.cli.side_by_side import Command, Run, RunFailedError, Status, run_side_by_side

FOREVER = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(600)"


def python(tmp_path: Path, text: str, *arguments: Path | str) -> list[str]:
    """Arguments that make Python run a script of this text."""
    script = tmp_path / f"script{len(list(tmp_path.glob('script*')))}.py"
    script.write_text(text)
    return [str(script), *map(str, arguments)]


def run(tmp_path: Path, title: str, *commands: Command) -> Run:
    return Run(title, commands, tmp_path / title / "log.txt", (sys.executable,))


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def said_on(there: Console) -> str:
    assert isinstance(there.file, io.StringIO)
    return there.file.getvalue()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(path: Path) -> int:
    """The number that a process writes as soon as it runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.is_file() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} was never written")


def test_commands_run_in_order_on_one_thread(tmp_path: Path) -> None:
    script = "import os; print('one', os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"
    both = [
        run(
            tmp_path,
            title,
            Command("first", python(tmp_path, script)),
            Command("second", python(tmp_path, "print('two')")),
        )
        for title in ("a", "b")
    ]
    there = console()
    run_side_by_side(both, there)
    for one in both:
        lines = one.log.read_text().splitlines()
        assert [line for line in lines if not line.startswith("$ avcap")] == ["one 1 1", "two"]
        assert one.status.doing == "done"
        assert f"{one.title}: done" in said_on(there)


def test_they_run_at_the_same_time(tmp_path: Path) -> None:
    meet = (
        "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)"
    )
    left, right = tmp_path / "left", tmp_path / "right"
    runs = [
        run(tmp_path, "a", Command("waiting", python(tmp_path, meet, left, right))),
        run(tmp_path, "b", Command("waiting", python(tmp_path, meet, right, left))),
    ]
    run_side_by_side(runs, console())
    assert [one.status.doing for one in runs] == ["done", "done"]


def test_a_failure_is_told_and_stops_the_other(tmp_path: Path) -> None:
    number = tmp_path / "pid"
    script = (
        "import pathlib, sys, time\n"
        "while not (pathlib.Path(sys.argv[1]).exists() and pathlib.Path(sys.argv[1]).read_text()): time.sleep(0.01)\n"
        "print('x:  50%|#| 1/2 [00:01<00:01]')\n"
        "for n in range(40): print('line', n)\n"
        "sys.exit(3)"
    )
    failing = run(
        tmp_path,
        "bad",
        Command("failing", python(tmp_path, script, number)),
        Command("never", python(tmp_path, "print('never')")),
    )
    with pytest.raises(RunFailedError) as caught:
        run_side_by_side(
            [run(tmp_path, "good", Command("working", python(tmp_path, FOREVER, number))), failing], console()
        )
    message = str(caught.value)
    assert message.startswith("bad: this command ended with exit code 3: avcap ")
    assert "line 39" in message
    assert "line 10" not in message
    assert "50%" not in message
    assert message.endswith(f"all it said is in {failing.log}")
    assert "never" not in failing.log.read_text()
    assert not is_alive(int(number.read_text()))


@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all(tmp_path: Path, sent: signal.Signals) -> None:
    # The first child hears no SIGTERM, as a training that is busy preparing does not.
    deaf = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{FOREVER}"
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom rich.console import Console\n"
        "from avcap_zoo.cli.side_by_side import Command, Run, run_side_by_side\n"
        "folder = Path(sys.argv[1])\n"
        "runs = [Run(n, [Command('x', [code, str(folder / n)])], folder / f'{n}.txt', (sys.executable, '-c'))\n"
        "        for n, code in (('a', sys.argv[2]), ('b', sys.argv[3]))]\n"
        "run_side_by_side(runs, Console())\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), deaf, FOREVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as parent:
        children = [wait_for(tmp_path / name) for name in ("a", "b")]
        parent.send_signal(sent)
        parent.communicate(timeout=60)
    assert parent.returncode in {-signal.SIGINT, 128 + signal.SIGTERM}
    assert [is_alive(child) for child in children] == [False, False]


def test_progress_is_read_from_the_log_then_from_the_metrics(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    script = (
        "import pathlib, sys, time\n"
        "sys.stderr.write('preparing vision_encoder:  35%|###  | 140/400 [00:10<00:20, 13.1it/s, loss=0.1]\\rprep')\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
    )
    one = run(tmp_path, "a", Command("starting", python(tmp_path, script, tmp_path / "go"), 800, metrics))
    try:
        assert one.advance()
        assert one.status == Status("starting")
        deadline = time.monotonic() + 60
        while one.status.doing == "starting" and time.monotonic() < deadline:
            assert one.advance()
            time.sleep(0.02)
        assert str(one.status) == "preparing vision encoder 140/400"
        metrics.write_text("epoch,step,train/loss,val/cider\n0,19,2.345,\n0,39,1.25,\n0,39,,2.0\n0,5")
        assert one.advance()
        assert str(one.status) == "training, step 40/800, loss 1.25, CIDEr 200"
        (tmp_path / "go").touch()
        while one.advance() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert str(one.status) == "done, loss 1.25, CIDEr 200"
    finally:
        one.stop()


def test_a_terminal_gets_bars(tmp_path: Path) -> None:
    there = console(terminal=True)
    run_side_by_side([run(tmp_path, "a model", Command("x", python(tmp_path, "pass")))], there)
    assert "a model" in said_on(there)
    assert "━" in said_on(there)
    assert "done" in said_on(there)


def test_a_command_reads_as_one_types_it() -> None:
    assert str(Command("x", ["fit", "-c", "a b.yaml"])) == "avcap fit -c 'a b.yaml'"


def test_commands_that_end_well_are_told_with_their_time(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    good = Command("x", python(tmp_path, "import os; print(os.environ['WHERE'])"))
    bad = Command("y", python(tmp_path, "raise SystemExit(3)"))
    one = run(tmp_path, "one", good, bad)
    one.environment = {"WHERE": "device 7"}
    one.on_done = lambda command, seconds: told.append((command.doing, seconds))
    with pytest.raises(RunFailedError):
        run_side_by_side([one], console())
    assert [doing for doing, _ in told] == ["x"]
    assert 0 < told[0][1] < 60
    assert "device 7" in one.log.read_text()
