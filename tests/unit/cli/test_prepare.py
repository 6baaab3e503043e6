from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from avcap_zoo.cli.main import avcap
from avcap_zoo.cli.prepare import DATA_SETS
from avcap_zoo.data_modules.preparation_plans import PLANNERS
from tests.unit.cli.running import call


def test_data_sets_are_those_of_the_planners() -> None:
    assert set(DATA_SETS) == set(PLANNERS)


def test_scenes_are_prepared_and_counted(scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media = tmp_path / "media"
    shutil.copytree(scenes_root / "audiocaps", media)
    missing = min(path.stem for path in (media / "val/videos").iterdir())
    for path in media.glob(f"val/*/{missing}.*"):
        path.unlink()
    words = ["prepare", "audiocaps", "--videos", str(media), "--annotations", str(scenes_root / "audiocaps")]
    words += ["--out", str(tmp_path / "out"), "--size", "16", "--num-frames", "2", "--workers", "0"]
    for _ in range(2):
        outcome = call(capsys, avcap, words)
        assert outcome.code == 0, outcome.err
        assert outcome.out == (
            f"35 of 36 clips (97.2 %) are in {tmp_path / 'out'}\nthe others and why: {tmp_path / 'out/missing.csv'}\n"
        )
    assert (tmp_path / "out/missing.csv").read_text().splitlines()[1:] == [
        f"val,{missing},no sound or video file and no video file"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audiocap"], "argument data_set: invalid choice: 'audiocap'"),
        (["coco", "--out", "x"], "the following arguments are required: --media/--videos"),
        (["coco", "--media", ".", "--out", "x", "--sise", "3"], "no option --sise; did you mean --size?"),
        (["coco", "--media", "nowhere", "--out", "x"], "argument --media: nowhere is no folder"),
        (["coco", "--media", ".", "--out", "x", "--size", "0"], "argument --size: found 0, wanted at least 1"),
    ],
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["prepare", *words])
    assert outcome.code == 2
    assert outcome.err.startswith(f"avcap prepare: {said}")
