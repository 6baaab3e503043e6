"""METEOR 1.5 through a Java process that is started once and kept.

Its start takes 6-10 s (a 62 MB paraphrase table), a clip with four references about 1 ms afterwards, so one process
serves every metric object of this Python process and lives until `stop_meteor` or the end of the program.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from avcap_zoo.metrics.java import LOCALE_FLAGS, JavaError, jar_folder, last_lines

_SEPARATOR = "|||"
# Where the counts of a clip have its words (candidate, reference), the chunks, and the words that match (both).
_LENGTHS, _CHUNKS, _MATCHES = slice(0, 2), 20, slice(21, 23)


class MeteorProcess:
    """One running METEOR program, asked line by line.

    Every question has a time limit: a watchdog kills the program, which ends any wait on it. After a failure the
    process is gone for good, so answers can never get out of step with questions.

    Args:
        java: the launcher, from `find_java`.
        heap: largest Java heap, such as "2G".
        start_timeout_s: seconds for the start and the first answer.
        timeout_s: seconds for each later answer.

    Raises:
        JavaError: the program cannot be started.
        MissingExtraError: pycocoevalcap is not installed.
    """

    def __init__(
        self, java: Path, *, heap: str = "2G", start_timeout_s: float = 300.0, timeout_s: float = 60.0
    ) -> None:
        folder = jar_folder() / "meteor"
        command = [str(java), *LOCALE_FLAGS, f"-Xmx{heap}", "-jar", str(folder / "meteor-1.5.jar")]
        command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        # A file, not a pipe: nobody reads it while the program runs, and a full pipe would stop the program.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the program
        try:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
            )
        except OSError as error:
            self._stderr.close()
            raise JavaError(f"METEOR: {java} cannot be run: {error}") from error
        self._owner = os.getpid()
        self._stop = weakref.finalize(self, _stop_process, self._process, self._stderr, self._owner)
        self._lock = threading.Lock()
        self._next_timeout_s = start_timeout_s
        self._timeout_s = timeout_s

    @property
    def is_usable(self) -> bool:
        """Whether it runs and was started by this very process, not by one that forked it."""
        return self._owner == os.getpid() and self._stop.alive and self._process.poll() is None

    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
        """Score tokenised captions; empty ones are allowed and score 0.

        Args:
            candidates: B tokenised captions.
            references: B lists of tokenised references.

        Returns:
            The corpus score (from summed statistics, so not the mean) and B scores, all in [0, 1].

        Raises:
            JavaError: the program died, took too long or answered with something that is not a number.
        """
        return self.evaluate(self.count(candidates, references))

    def count(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[float]]:
        """What METEOR counts in each clip (words, matches, chunks ...); arguments and errors as in `score`.

        The counts of a corpus are the sums of those of its clips. Where all words match in one chunk, METEOR adds no
        chunk to the corpus; the row says none then, which is the same to the clip's own score.
        """
        counts = []
        with self._lock:
            for candidate, own_references in zip(candidates, references, strict=True):
                parts = ["SCORE", *map(_one_field, own_references), _one_field(candidate)]
                (answer,) = self._ask(f" {_SEPARATOR} ".join(parts), num_answers=1)
                row = self._numbers(answer.split())
                if row[_CHUNKS : _CHUNKS + 1] == [1.0] and row[_LENGTHS] == row[_MATCHES]:
                    row[_CHUNKS] = 0.0
                counts.append(row)
        return counts

    def evaluate(self, counts: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
        """Scores from counts; rows may be those of `count`, or sums of some of them.

        Args:
            counts: B rows.

        Returns:
            The score of the sum of all rows, and B scores, all in [0, 1].

        Raises:
            JavaError: as in `score`.
        """
        rows = [" ".join(repr(float(number)) for number in row) for row in counts]
        with self._lock:
            answers = self._ask(f" {_SEPARATOR} ".join(["EVAL", *rows]), num_answers=len(rows) + 1)
            scores = self._numbers(answers)
        return scores[-1], scores[:-1]

    def close(self) -> None:
        """Stop the program; safe to call again."""
        self._stop()

    def _ask(self, line: str, *, num_answers: int) -> list[str]:
        """Write one line and read that many lines, or stop the program and raise JavaError."""
        if not self.is_usable:
            raise JavaError("METEOR was stopped; start a new process")
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        timed_out = threading.Event()
        timeout_s = self._next_timeout_s

        def stop_waiting() -> None:
            timed_out.set()
            self._process.kill()

        watchdog = threading.Timer(timeout_s, stop_waiting)
        watchdog.daemon = True
        watchdog.start()
        answers: list[bytes] = []
        try:
            stdin.write(line.encode("utf-8", "replace") + b"\n")
            stdin.flush()
            while len(answers) < num_answers and (answer := stdout.readline()):
                answers.append(answer)
        except OSError:
            answers = []
        except BaseException:  # an interrupt: the answer would come to the next question
            self.close()
            raise
        finally:
            watchdog.cancel()
        if len(answers) < num_answers:
            raise self._failure(f"no answer within {timeout_s:.0f} s" if timed_out.is_set() else "it ended")
        self._next_timeout_s = self._timeout_s
        return [answer.decode("utf-8", "replace").strip() for answer in answers]

    def _numbers(self, texts: Sequence[str]) -> list[float]:
        """The answers as numbers, or stop the program and raise JavaError."""
        try:
            return [float(text) for text in texts]
        except ValueError as error:
            raise self._failure(f"it answered {' '.join(texts)[:80]!r}, which is not a number") from error

    def _failure(self, reason: str) -> JavaError:
        """Stop the program and word the error, with the end of what it printed."""
        self._process.kill()
        self._process.wait()
        self._stderr.seek(0)
        error = JavaError(f"METEOR failed: {reason}; {last_lines(self._stderr.read())}")
        self.close()
        return error


def _one_field(caption: str) -> str:
    """A caption that can neither end the line nor open another field."""
    return " ".join(caption.replace(_SEPARATOR, " ").split())


def _stop_process(process: subprocess.Popen[bytes], stderr: IO[bytes], owner: int) -> None:
    """Kill the program and close its pipes; a forked child that inherited the object leaves it alone."""
    if os.getpid() != owner:
        return
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, stderr):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # unsent text of a program that died
                continue


_running: dict[Path, MeteorProcess] = {}
_running_lock = threading.Lock()


def shared_meteor(java: Path) -> MeteorProcess:
    """The METEOR program of this process, started at the first call and again after a failure.

    Args:
        java: the launcher, from `find_java`.

    Raises:
        JavaError: it cannot be started.
    """
    with _running_lock:
        process = _running.get(java)
        if process is None or not process.is_usable:
            process = _running[java] = MeteorProcess(java)
        return process


def stop_meteor() -> None:
    """Stop the METEOR programs of this process and give their memory back (about 1.2 GB each)."""
    with _running_lock:
        for process in _running.values():
            process.close()
        _running.clear()
