"""Run a command in this process and keep what it said."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

BASE = """
seed_everything: 1
model:
  class_path: tests.unit.cli.toy.ToySystem
  init_args:
    ot_weight: 0.2
    language:
      width: 4
data:
  class_path: tests.unit.cli.toy.ToyDataModule
trainer:
  accelerator: cpu
  max_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
"""


@dataclass
class Outcome:
    """What a command left: its exit code, and what it printed."""

    code: int
    out: str
    err: str


def call(
    capsys: pytest.CaptureFixture[str], command: Callable[[Sequence[str] | None], int], arguments: Sequence[str]
) -> Outcome:
    """Run a console script's function; exceptions other than SystemExit come through."""
    capsys.readouterr()
    try:
        code: int | str | None = command(arguments)
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    return Outcome(int(code or 0), said.out, said.err)


def write(path: str, text: str) -> None:
    """Write a file below the current folder."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
