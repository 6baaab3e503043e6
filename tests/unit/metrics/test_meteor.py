from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.metrics import meteor
from avcap_zoo.metrics.java import JavaError
from avcap_zoo.metrics.meteor import MeteorProcess, shared_meteor, stop_meteor

PlayJava = Callable[[str], Path]

# Answers as METEOR does, with the length of the line for a statistic.
ANSWERS = """
for line in sys.stdin:
    if line.startswith("SCORE"):
        print(f"{len(line)}.0 1.0", flush=True)
    else:
        fields = line.split("|||")[1:]
        print(*[0.5 for _ in fields], 0.25, sep="\\n", flush=True)
"""
# Writes every question to the file `log`.
LOGS = """
for line in sys.stdin:
    log.write(line); log.flush()
    print(1, flush=True)
    if line.startswith("EVAL"): print(1, flush=True)
"""


def _pid_runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_scores_in_order(play_java: PlayJava) -> None:
    process = MeteorProcess(play_java(ANSWERS))
    assert process.score(["a", "b c"], [["a"], ["b", "c"]]) == (0.25, [0.5, 0.5])
    assert process.score([], []) == (0.25, [])
    process.close()


def test_the_question_holds_one_line_and_its_fields(play_java: PlayJava, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = MeteorProcess(play_java(f"log = open({str(log)!r}, 'w')\n{LOGS}"))
    process.score(["a ||| b\nc"], [["x\r\ny", "|||"]])
    process.close()
    assert log.read_text().splitlines() == ["SCORE ||| x y |||  ||| a b c", "EVAL ||| 1.0"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("time.sleep(60)", "no answer within 1 s"),
        ("sys.stdin.readline(); print('1 2', flush=True); time.sleep(60)", "no answer within 1 s"),
        ("sys.exit('java.lang.OutOfMemoryError: Java heap space')", "it ended; java.lang.OutOfMemoryError"),
        ("print('Error: specify SCORE or EVAL', flush=True); time.sleep(60)", "'Error: specify SCORE or EVAL'"),
        ("print('0,5', flush=True); time.sleep(60)", "'0,5', which is not a number"),
        ("print('1', flush=True); sys.stdin.readline(); sys.stdin.readline(); print('x')", "it ended"),
    ],
)
def test_a_failure_is_an_error_and_the_end_of_the_process(play_java: PlayJava, text: str, reason: str) -> None:
    process = MeteorProcess(play_java(text), start_timeout_s=1, timeout_s=1)
    start_s = time.monotonic()
    with pytest.raises(JavaError, match="METEOR failed") as caught:
        process.score(["a"], [["b"]])
    assert reason in str(caught.value)
    assert time.monotonic() - start_s < 20
    assert not process.is_usable
    with pytest.raises(JavaError, match="start a new process"):
        process.score(["a"], [["b"]])


def test_a_program_that_does_not_read_is_not_waited_for(play_java: PlayJava) -> None:
    process = MeteorProcess(play_java("time.sleep(60)"), start_timeout_s=1)
    with pytest.raises(JavaError, match="no answer within 1 s"):
        process.score(["word " * 100_000], [["b"]])


def test_an_interrupt_leaves_no_process_out_of_step(play_java: PlayJava, monkeypatch: pytest.MonkeyPatch) -> None:
    process = MeteorProcess(play_java(ANSWERS))

    class Interrupted:
        def readline(self) -> bytes:
            raise KeyboardInterrupt

        def close(self) -> None: ...

    assert process._process.stdout is not None
    process._process.stdout.close()
    process._process.stdout = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        process.score(["a"], [["b"]])
    assert not process.is_usable


def test_a_program_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(JavaError, match="cannot be run"):
        MeteorProcess(tmp_path / "java")


def test_one_process_is_shared_and_replaced_after_a_failure(
    play_java: PlayJava, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meteor, "_running", {})  # leave the process of the session alone
    java = play_java(ANSWERS)
    first = shared_meteor(java)
    assert shared_meteor(java) is first
    first._process.kill()
    first._process.wait()
    second = shared_meteor(java)
    assert second is not first
    assert second.score(["a"], [["b"]])[0] == 0.25
    stop_meteor()
    assert not second.is_usable
    assert shared_meteor(java) is not second
    stop_meteor()


def test_a_forked_child_neither_uses_nor_stops_it(play_java: PlayJava, monkeypatch: pytest.MonkeyPatch) -> None:
    process = MeteorProcess(play_java(ANSWERS))
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: -1)
        assert not process.is_usable
        meteor._stop_process(process._process, process._stderr, process._owner)
    assert process.is_usable
    process.close()
    process.close()
    assert process._process.poll() is not None


def test_it_dies_with_its_object(play_java: PlayJava) -> None:
    process = MeteorProcess(play_java(ANSWERS))
    child: Any = process._process
    del process
    assert child.poll() is not None


def test_it_dies_with_the_program(play_java: PlayJava) -> None:
    java = play_java("time.sleep(600)")
    code = (
        "from pathlib import Path; from avcap_zoo.metrics.meteor import shared_meteor; "
        f"print(shared_meteor(Path({str(java)!r}))._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert not _pid_runs(int(done.stdout))


def test_meteor_itself_takes_empty_and_odd_captions(java: Path) -> None:
    process = shared_meteor(java)
    candidates = ["a dog barks", "", "a dog", "", "a ||| dog", "café 汉字", "a dog barks"]
    references = [["a dog barks"], ["a dog"], [""], [""], ["a dog"], ["café 汉字"], ["a cat", "", "a dog barks"]]
    corpus, clips = process.score(candidates, references)
    assert clips[0] == pytest.approx(clips[6])
    assert clips[0] > 0.9
    assert clips[1:4] == [0.0, 0.0, 0.0]
    assert clips[4] == pytest.approx(process.score(["a dog"], [["a dog"]])[0])
    assert clips[5] > 0.9
    assert 0 < corpus < 1
