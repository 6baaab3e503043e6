"""`avcap cache` on the shipped tiny configuration: fill, share, resume, use, refuse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from avcap_zoo.cli.main import avcap
from avcap_zoo.data_modules.feature_cache import FeatureReader
from tests.unit.cli.running import Outcome, call

CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"
COMMON = [
    *("-c", str(CONFIGS / "lavcap.yaml"), "-c", str(CONFIGS / "smoke.yaml"), "--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_fill_share_resume_use_and_refuse(started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> Outcome:
        outcome = call(capsys, avcap, [*words, *COMMON])
        assert outcome.code == 0, outcome.err[-2000:]
        return outcome

    run("fit")
    best = ["--ckpt_path", str(next(started.rglob("best.ckpt")))]
    first = run("cache", "visual", *best, "--splits", "train", "val", "--shard", "0/2")
    assert re.search(r"visual features of the encoder clip-\w{16}: train 4 of 4, val 2 of 2 clips", first.out)
    folder = Path(first.out.split()[-1])
    assert folder.is_relative_to("runs/scenes-smoke/audiocaps/feature_cache")
    assert first.out.endswith(f"  --data.init_args.visual_cache {folder}\n")
    again = run("cache", "visual", *best, "--splits", "train", "val", "--shard", "0/2")
    assert again.out == first.out
    assert "visual features, train" not in again.err
    run("cache", "visual", *best, "--shard", "1/2")
    assert len(FeatureReader(folder, "train").lengths()) == 8
    assert len(FeatureReader(folder, "test").lengths()) == 2
    run("cache", "visual", *best)

    run("predict", *best, "--trainer.default_root_dir", "live")
    run("predict", *best, "--trainer.default_root_dir", "cached", "--data.visual_cache", str(folder))
    live, cached = (next(started.glob(f"{name}/**/predictions.jsonl")).read_text() for name in ("live", "cached"))
    assert live == cached

    other = call(capsys, avcap, ["predict", *COMMON, "--data.visual_cache", str(folder), "--seed_everything", "3"])
    assert other.code == 1
    assert re.search(r"come from the encoder clip-\w{16}, the configured one is clip-\w{16}: make them anew", other.err)


def test_self_made_encoders_need_a_checkpoint(
    started: Path, capsys: pytest.CaptureFixture[str], scenes_root: Path
) -> None:
    words = ["--data.init_args.root", str(scenes_root), "--data.init_args.num_train", "24"]
    words += ["--data.init_args.num_val", "6", "--data.init_args.num_test", "6"]
    outcome = call(capsys, avcap, ["cache", "visual", *COMMON, *words])
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("avcap cache: model.init_args.vision.source is null: the weights ")
    outcome = call(capsys, avcap, ["cache", "visual", *COMMON, *words, "--data.init_args.modalities", "[audio]"])
    assert outcome.err.splitlines()[-1].endswith("is ['audio']: no visual is decoded, nor used")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: modality"),
        (["smell"], "argument modality: invalid choice: 'smell'"),
        (["visual"], "no configuration given, wanted: avcap cache visual -c "),
        (["visual", "-c", "none.yaml"], "none.yaml does not exist"),
        (["visual", "-c", "a.yaml", "--shard", "2/2"], "argument --shard: found '2/2', wanted I/N with I from 0"),
        (["visual", "-c", "a.yaml", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["visual", "-c", "a.yaml", "--batch-size", "0"], "argument --batch-size: found 0, wanted at least 1"),
    ],
)
def test_refusals(words: list[str], said: str, started: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["cache", *words])
    assert outcome.code == 2
    assert outcome.err.startswith(f"avcap cache: {said}")
