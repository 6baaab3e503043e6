"""The shipped small VLRM from nothing to a test, in a few steps of each: do all its parts fit together?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from avcap_zoo.batch import Batch
from avcap_zoo.cli.main import lightning
from avcap_zoo.errors import ConfigError, how_to_get
from avcap_zoo.systems.vlrm.evaluation import wording
from avcap_zoo.systems.vlrm.pretraining import draw_captions, nearest_captions
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


def test_wording_by_hand() -> None:
    found = wording(["A red dog and a red Car and a dog.", "there is a t-shirt in 1993"])
    assert found == {
        "caption_words": (10 + 6) / 2,
        "colour_captions": 0.5,
        "colour_words": 1.0,
        "colour_coverage": pytest.approx(1 / colours()),
        "repeated_words": (2 + 0) / 2,  # and, dog
        "bad_phrases": (0 + 2) / 2,  # there is, a year
    }
    assert wording([]) == {}


def colours() -> int:
    path = tree.ROOT / "src/avcap_zoo/systems/vlrm/colours.txt"
    return len(path.read_text(encoding="utf-8").split("\n")) - 1


def test_captions_of_a_style() -> None:
    texts = ["a dog", "a red dog at the left", "a cat"]
    batch = Batch(["a"], [texts], [texts[0]])
    assert {draw_captions(batch, "terse")[0] for _ in range(40)} == {"a dog", "a cat"}
    assert {draw_captions(batch, "all")[0] for _ in range(60)} == set(texts)
    assert draw_captions(batch, "detailed") == [texts[1]]
    with pytest.raises(ConfigError, match="clip a has no caption to learn from"):
        draw_captions(Batch(["a"], [[]], [""]), "all")


def test_the_nearest_caption_shares_most_words() -> None:
    captions = ["a red dog", "a red car", "two birds sing", "a red dog.", "a blue dog and a bird"]
    assert nearest_captions(captions)[0] == "a red car"
    assert nearest_captions(["a dog", "a dog"]) == ["a dog", "a dog"]


def test_only_our_own_missing_models_have_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert how_to_get("runs/pretrained/clip.safetensors") == "make it: lightning fit -c configs/tiny/clip.yaml"
    assert how_to_get("Salesforce/blip2-opt-2.7b") == how_to_get("runs/mine/clip.safetensors") == ""
    Path("runs/pretrained/itm").mkdir(parents=True)
    assert how_to_get("runs/pretrained/itm") == ""
