"""The shipped tiny configuration through the command line, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(verb: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "avcap_zoo", verb]
    for name in ("lavcap", "smoke"):
        command += ["-c", str(ROOT / f"configs/tiny/{name}.yaml")]
    command += ["--trainer.accelerator", "cpu", "--trainer.default_root_dir", str(folder)]
    command += ["--data.init_args.root", str(folder.parent / "scenes"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder.parent)}
    return subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=120)


def results_of(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    newest = max(folder.glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
    rows = [json.loads(line) for line in (newest / "test_captions.jsonl").read_text().splitlines()]
    return json.loads((newest / "test_scores.json").read_text()), rows


@pytest.mark.slow
def test_fit_then_test_on_one_process_and_on_two(tmp_path: Path) -> None:
    fitted = run("fit", tmp_path / "fit")
    assert fitted.returncode == 0, fitted.stderr[-2000:]
    assert "best checkpoint: " in fitted.stderr + fitted.stdout
    run_folder = tmp_path / "fit/version_0"
    best = run_folder / "checkpoints/best.ckpt"
    assert {"config.yaml", "metrics.csv", "checkpoints", "figures"} <= {path.name for path in run_folder.iterdir()}
    assert any(path.name.startswith("events.out.tfevents") for path in run_folder.iterdir())

    scores = ["--model.init_args.scores.test", "[bleu, rouge_l, cider]", "--ckpt_path", str(best)]
    alone = run("test", tmp_path / "one", *scores)
    assert alone.returncode == 0, alone.stderr[-2000:]
    # One clip at a time on two processes: every clip must count once.
    odd = ["--data.init_args.eval_batch_size", "1", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    together = run("test", tmp_path / "two", *scores, *odd)
    assert together.returncode == 0, together.stderr[-2000:]
    one, rows_of_one = results_of(tmp_path / "one")
    two, rows_of_two = results_of(tmp_path / "two")
    assert one["clips_scored"] == two["clips_scored"] == 4
    assert two["scores"] == pytest.approx(one["scores"], abs=1e-9)
    assert [(row["id"], row["caption"]) for row in rows_of_two] == [(row["id"], row["caption"]) for row in rows_of_one]


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    fitted = run("fit", tmp_path / "fit", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert fitted.returncode == 0, fitted.stderr[-2000:]
    assert (tmp_path / "fit/version_0/checkpoints/best.ckpt").is_file()
    assert "unused" not in fitted.stderr


@pytest.mark.slow
def test_training_stops_in_one_line_when_data_are_broken(tmp_path: Path) -> None:
    fitted = run("fit", tmp_path / "fit")
    assert fitted.returncode == 0, fitted.stderr[-2000:]
    for path in (tmp_path / "scenes/audiocaps/train/waveforms").iterdir():
        path.write_bytes(b"no sound")
    stopped = run("fit", tmp_path / "again")
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    (line,) = [line for line in stopped.stderr.splitlines() if "clips in a row cannot be read" in line]
    assert "check the media folder" in line
