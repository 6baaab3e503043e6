"""The Makefile has the targets that README names, and continuous integration uses them."""

from __future__ import annotations

import os
import re
import subprocess

from tests.house import tree

TARGETS = {
    *("help", "install", "demo", "reproduce-tables", "test", "test-fast", "test-hpu", "lint", "format", "typecheck"),
    *("smoke", "docs", "figures", "dist", "clean"),
}
TEXT = (tree.ROOT / "Makefile").read_text(encoding="utf-8")


def targets_of(text: str) -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*)\s*:(?!=)", text, flags=re.MULTILINE))


def test_the_targets_are_these() -> None:
    assert targets_of(TEXT) == TARGETS
    (phony,) = re.findall(r"^\.PHONY: (.*)$", TEXT, flags=re.MULTILINE)
    assert set(phony.split()) == TARGETS
    assert targets_of("a: b\n\tx\nc := d\n.e: f\nextra:\n") == {"a", "extra"}


def test_help_is_the_default_and_has_a_line_for_each() -> None:
    # GNU make hands its flags to what it starts; a test under `make test` must not inherit them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    run = subprocess.run(["make"], cwd=tree.ROOT, env=environment, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in run.stdout.splitlines()] == re.findall(
        r"^([a-z][\w-]*):.*## ", TEXT, re.MULTILINE
    )
    assert {line.split()[0] for line in run.stdout.splitlines()} == TARGETS
    assert all(len(line.split()) > 1 for line in run.stdout.splitlines())


def test_clean_removes_nothing_of_the_user() -> None:
    recipe = TEXT.split("\nclean:")[1].split("\n\n")[0]
    for kept in ("data", "runs", "lightning_logs", "checkpoints"):
        assert not re.search(rf"rm .*\b{kept}\b(?!_)", recipe.replace("data_modules", ""))


def test_continuous_integration_runs_make_test() -> None:
    path = tree.ROOT / ".ci/run"
    assert os.access(path, os.X_OK)
    text = path.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text
    assert "make test </dev/null" in text
