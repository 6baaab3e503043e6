"""The shipped small VLRM from nothing to a test, in a few steps of each: do all its parts fit together?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from avcap_zoo.cli.main import lightning
from tests.house import tree

CONFIGS = tree.ROOT / "configs/tiny"
SMALL = {
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.log_every_n_steps": 1,
    "trainer.enable_progress_bar": "false",
    "data.num_train": 12,
    "data.num_val": 4,
    "data.num_test": 6,
    "data.batch_size": 6,
}


def run(verb: str, name: str, *arguments: str) -> int | str | None:
    options = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    return lightning([verb, "-c", str(CONFIGS / f"{name}.yaml"), *options, *arguments])


@pytest.mark.slow
def test_from_nothing_to_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("fit", "itm") not in {0, None}
    printed = capsys.readouterr().err
    assert "make it: lightning fit -c configs/tiny/blip2.yaml" in printed.splitlines()[-1]
    assert run("fit", "blip2", "--model.words_steps", "1") in {0, None}
    assert run("fit", "vlrm") not in {0, None}
    assert "make it: lightning fit -c configs/tiny/itm.yaml" in capsys.readouterr().err.splitlines()[-1]
    for name in ("itm", "clip_judge"):
        assert run("fit", name) in {0, None}, capsys.readouterr().err
    assert run("fit", "vlrm_rs") not in {0, None}
    assert "make it: lightning fit -c configs/tiny/clip.yaml" in capsys.readouterr().err.splitlines()[-1]
    assert run("fit", "clip") in {0, None}
    for name in ("vlrm", "vlrm_rs"):
        assert run("fit", name, "--model.policy_optimizer.warmup_steps", "0") in {0, None}, capsys.readouterr().err
        version = sorted(Path("runs/vlrm").glob("version_*"))[-1]
        checkpoint = version / "checkpoints/last.ckpt"
        held = torch.load(checkpoint, weights_only=True)["state_dict"]
        assert not any("judge" in key or "rewards" in key or "vision_model" in key for key in held)
        assert run("test", name, "--ckpt_path", str(checkpoint)) in {0, None}, capsys.readouterr().err
        (summary,) = sorted(Path("runs/vlrm").glob("version_*"))[-1].glob("test_scores.json")
        scores = json.loads(summary.read_text())["scores"]
        assert {"mrr", "recall_1", "recall_5", "recall_10", "caption_words", "colour_coverage", "cider"} <= set(scores)
        assert scores["recall_10"] == 1  # of six pictures
        assert scores["fluency"] < 0
