"""The shipped tiny configurations from nothing to captions, and ZerAuCap on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--data.init_args.num_train", "8", "--data.init_args.num_val", "4", "--data.init_args.num_test", "5"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]
SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.init_args.batch_size", "4"]
"""Two steps; ZerAuCap itself takes none."""


def run(verb: str, folder: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A shipped configuration, unchanged, in a folder that looks like the checkout."""
    configs = folder / "configs"
    if not configs.exists():
        configs.symlink_to(ROOT / "configs")
    command = [sys.executable, "-m", "avcap_zoo", verb, "-c", f"configs/tiny/{name}.yaml", *SMALL, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def newest(folder: Path, name: str) -> Path:
    """Folder of the last run of a system."""
    return max((folder / "runs" / name).glob("version_*"), key=lambda path: int(path.name.split("_")[1]))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both small models have been made, by two steps each."""
    made = tmp_path_factory.mktemp("zeraucap")
    for name in ("clap", "caption_language"):
        fitted = run("fit", made, name, *SHORT)
        assert fitted.returncode == 0, fitted.stderr[-2000:]
        assert (made / f"runs/pretrained/{name}/config.json").is_file()
    return made


@pytest.mark.slow
def test_without_the_small_models_their_commands_are_named(tmp_path: Path) -> None:
    stopped = run("test", tmp_path, "zeraucap")
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    (line,) = [line for line in stopped.stderr.splitlines() if "does not exist" in line]
    assert "make it: lightning fit -c configs/tiny/clap.yaml" in line
    assert "make it: lightning fit -c configs/tiny/caption_language.yaml" in line


@pytest.mark.slow
def test_fit_has_one_line_to_say(folder: Path) -> None:
    stopped = run("fit", folder, "zeraucap")
    assert stopped.returncode == 1
    assert stopped.stderr.splitlines()[-1] == (
        "avcap fit: ZerAuCap is not trained: use test (scores) or predict (captions) with the same -c"
    )


@pytest.mark.slow
def test_scores_of_one_process_and_of_two(folder: Path) -> None:
    alone = run("test", folder, "zeraucap")
    assert alone.returncode == 0, alone.stderr[-2000:]
    one = rows(newest(folder, "zeraucap") / "test_captions.jsonl")
    scores = json.loads((newest(folder, "zeraucap") / "test_scores.json").read_text())
    assert scores["clips_scored"] == 5
    assert scores["decode"]["language"] == "runs/pretrained/caption_language"
    # Five clips on two processes, in batches of two: every clip counts once, and neighbours are others.
    odd = ["--data.init_args.eval_batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    together = run("test", folder, "zeraucap", *odd)
    assert together.returncode == 0, together.stderr[-2000:]
    two = rows(newest(folder, "zeraucap") / "test_captions.jsonl")
    assert len(two) == 5
    assert [(row["id"], row["caption"]) for row in two] == [(row["id"], row["caption"]) for row in one]
    found = json.loads((newest(folder, "zeraucap") / "test_scores.json").read_text())
    assert found["scores"] == pytest.approx(scores["scores"], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["no_audio", "no_guidance", "no_keywords"])
def test_rows_lie_over_the_tiny_configuration(folder: Path, row: str) -> None:
    done = run("predict", folder, "zeraucap", "-c", f"configs/tables/zeraucap/{row}.yaml")
    assert done.returncode == 0, done.stderr[-2000:]
    captions = rows(newest(folder, "zeraucap") / "predictions.jsonl")
    assert len(captions) == 5
    decode = captions[0]["decode"]
    assert decode["beta"] == (0.5 if row == "no_keywords" else 0.0)
    assert decode["num_keywords"] == (2 if row == "no_guidance" else 0)
    if row == "no_audio":
        assert len({caption["caption"] for caption in captions}) == 1
