"""Whole commands on stand-in cards, with whichever Lightning is installed: `make test-hpu` runs them with both.

Only the vendor's container is stood in for (tests/hpu/stand_in): habana_frameworks, and hl-smi, which lightning-habana
asks for the release. Device `hpu` is the processor, `hccl` is gloo, `hpu_backend` takes graphs as they are.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
from packaging.version import Version

from avcap_zoo.accelerators.hpu import LAST_WITH_HABANA

pytestmark = pytest.mark.skipif(
    "AVCAP_TEST_HPU" not in os.environ, reason="minutes, in an environment of its own: make test-hpu"
)
ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests/hpu/stand_in"
STEPS = 12
BUCKETS = 4
CONFIGS = [str(ROOT / f"configs/{name}.yaml") for name in ("tiny/lavcap", "tiny/smoke", "device/hpu")]
SMALL = """
trainer: {max_steps: 12, val_check_interval: 12}
model:
  init_args:
    language:
      config:
        model_type: llama
        hidden_size: 32
        intermediate_size: 48
        num_hidden_layers: 1
        num_attention_heads: 2
        max_position_embeddings: 128
    generation: {num_beams: 2, max_new_tokens: 6}
data: {init_args: {num_train: 48, num_test: 6, eval_batch_size: 4}}
"""


def run(
    verb: str, folder: Path, *arguments: str, paths: tuple[Path, ...] = (STAND_IN,), **variables: str
) -> subprocess.CompletedProcess[str]:
    """One verb on LAVCap at toy size, smaller still, with the overlay of the device."""
    small = folder / "small.yaml"
    small.write_text(SMALL, encoding="utf-8")
    (folder / "record").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "avcap_zoo", verb]
    command += [word for path in (*CONFIGS, str(small)) for word in ("-c", path)]
    command += ["--trainer.default_root_dir", verb, "--data.init_args.root", "scenes", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PT_HPU_LAZY_MODE"} | {
        "HOME": str(folder),
        "PATH": f"{STAND_IN / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "STAND_IN_RECORD": str(folder / "record"),
        **variables,
    }
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=800, check=False
    )


def records(folder: Path) -> list[dict[str, Any]]:
    """What each process asked of the stand-in."""
    return [json.loads(path.read_text()) for path in sorted((folder / "record").iterdir())]


def logged(folder: Path, name: str) -> list[float]:
    """A column of the metrics of a fit."""
    with (folder / "fit/version_0/metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_one_card_trains_and_tests(tmp_path: Path) -> None:
    fitted = run("fit", tmp_path)
    assert fitted.returncode == 0, fitted.stderr[-3000:]
    (record,) = records(tmp_path)
    assert record["lazy_mode"] == "0"
    assert record["process_group"] is None
    assert record["autocast"] == ["torch.bfloat16"]
    assert record["marks"] >= STEPS + 1
    shapes = logged(tmp_path, "train/batch_shapes")[-1]
    assert 1 <= shapes <= BUCKETS  # without buckets of sound it is 5
    assert 1 <= record["graphs"] <= shapes + 4  # to caption: prompt and token, for a batch and for the clip shown
    assert len(logged(tmp_path, "train/loss")) == STEPS

    tested = run("test", tmp_path, "--ckpt_path", "fit/version_0/checkpoints/best.ckpt")
    assert tested.returncode == 0, tested.stderr[-3000:]
    (record,) = records(tmp_path)
    assert record["marks"] >= 2  # six clips in batches of four
    assert record["graphs"] <= 3  # prompt and token, and once more with torch 2.9; a smaller last batch makes two more
    results = json.loads((tmp_path / "test/version_0/test_scores.json").read_text())
    assert results["clips_scored"] == 6


def test_two_cards_train_together(tmp_path: Path) -> None:
    fitted = run("fit", tmp_path, "--trainer.devices", "2")
    assert fitted.returncode == 0, fitted.stderr[-3000:]
    assert "distributed_backend=hccl" in fitted.stdout + fitted.stderr
    first, second = records(tmp_path)
    assert [first["process_group"], second["process_group"]] == [[2, 0, 0], [2, 1, 1]]
    assert first["autocast"] == second["autocast"] == ["torch.bfloat16"]
    assert first["marks"] == second["marks"] >= STEPS + 1
    assert (tmp_path / "fit/version_0/checkpoints/best.ckpt").is_file()


BROKEN = "raise ImportError('cannot import LRScheduler')\n"
OLD = Version(lightning.__version__) <= LAST_WITH_HABANA


@pytest.mark.parametrize(
    ("arguments", "with_bridge", "variables", "said"),
    [
        pytest.param([], False, {}, "needs a Gaudi and the package habana_frameworks", id="no bridge"),
        pytest.param([], True, {"STAND_IN_CARDS": "0"}, "sees no Gaudi", id="no card"),
        pytest.param(["--trainer.precision", "16-mixed"], True, {}, "runs in 32-true or bf16-mixed", id="precision"),
        pytest.param(
            ["--broken"],
            True,
            {},
            "which cannot be imported (cannot import LRScheduler)",
            id="wrong lightning-habana",
            marks=pytest.mark.skipif(not OLD, reason="this Lightning does without lightning-habana"),
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    arguments: list[str], with_bridge: bool, variables: dict[str, str], said: str, tmp_path: Path
) -> None:
    paths = (STAND_IN,) if with_bridge else ()
    if arguments == ["--broken"]:
        (tmp_path / "lightning_habana.py").write_text(BROKEN, encoding="utf-8")
        paths, arguments = (tmp_path, *paths), []
    stopped = run("fit", tmp_path, *arguments, paths=paths, **variables)
    assert stopped.returncode == 1
    (line,) = [line for line in stopped.stderr.splitlines() if line.startswith("avcap fit: ")]
    assert said in line
    assert "Traceback" not in stopped.stderr
