from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.cli.main import avcap
from avcap_zoo.cli.scenes import FORMATS, split_counts
from avcap_zoo.data_modules.scenes import export
from avcap_zoo.errors import DataError
from tests.unit.cli.running import Outcome, call


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the generator is asked for, in place of generating."""
    seen: dict[str, Any] = {}

    def generate(root: Path, **options: Any) -> Path:
        seen.update(options, root=root)
        return root

    monkeypatch.setattr(export, "generate_scenes", generate)
    return seen


@pytest.mark.parametrize(
    ("num_clips", "counts"),
    [(3, (1, 1, 1)), (10, (7, 1, 2)), (20, (16, 1, 3)), (100, (80, 5, 15)), (2400, (1920, 120, 360))],
)
def test_split_counts(num_clips: int, counts: tuple[int, int, int]) -> None:
    assert tuple(split_counts(num_clips).values()) == counts
    assert sum(counts) == num_clips


def test_formats_are_those_of_the_generator() -> None:
    assert set(FORMATS) == set(export.FORMATS)


def test_options_reach_the_generator(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--out",
        "there",
        "--clips",
        "20",
        "--format",
        "clotho",
        "--seed",
        "7",
        "--image-size",
        "32",
        "--workers",
        "2",
    ]
    outcome = call(capsys, avcap, ["scenes", *words])
    assert asked == {
        "root": Path("there"),
        "counts": {"train": 16, "val": 1, "test": 3},
        "formats": ("clotho",),
        "seed": 7,
        "image_size_px": 32,
        "num_workers": 2,
        "progress": True,
    }
    assert outcome == Outcome(0, "20 clips (16 train, 1 val, 3 test), seed 7: there/clotho\n", "")


def test_all_formats(asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["scenes", "--out", "d", "--clips", "3", "--format", "all"])
    assert asked["formats"] == FORMATS
    assert outcome.out.endswith(": d/audiocaps d/clotho d/vggss d/coco\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--clips", "9"], "the following arguments are required: --out"),
        (["--out", "x", "--clip", "9"], "no option --clip; did you mean --clips?"),
        (["--out", "x", "--clips", "2"], "argument --clips: found 2, wanted at least 3"),
        (["--out", "x", "--clips", "some"], "argument --clips: found 'some', wanted an integer"),
        (["--out", "x", "--clips", "9", "--seed", "-1"], "argument --seed: found -1, wanted at least 0"),
        (["--out", "x", "--clips", "9", "--image-size", "33"], "image_size_px is 33; it must be even"),
    ],
)
def test_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["scenes", *words])
    assert outcome.code == 2
    assert outcome.err.startswith(f"avcap scenes: {message}")
    assert len(outcome.err.splitlines()) == 1


def test_wrong_format_lists_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["scenes", "--out", "x", "--clips", "9", "--format", "audiocap"])
    assert outcome.code == 2
    assert all(name in outcome.err for name in FORMATS)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["scenes", "--help"])
    assert outcome.code == 0
    assert outcome.out.startswith("usage: avcap scenes ")


def test_generator_errors_of_the_run_exit_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def generate(root: Path, **options: Any) -> Path:
        raise DataError("the disk is full")

    monkeypatch.setattr(export, "generate_scenes", generate)
    outcome = call(capsys, avcap, ["scenes", "--out", "x", "--clips", "3"])
    assert (outcome.code, outcome.err) == (1, "avcap scenes: the disk is full\n")


def test_small_set_is_really_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path / "s"), "--clips", "3", "--image-size", "32", "--workers", "0"]
    assert call(capsys, avcap, ["scenes", *words]).code == 0
    assert {path.name for path in (tmp_path / "s" / "audiocaps").glob("*.csv")} == {"train.csv", "val.csv", "test.csv"}
