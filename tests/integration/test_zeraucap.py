"""The shipped tiny configurations from nothing to captions, and ZerAuCap on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.cli.main import avcap

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--data.init_args.num_train", "8", "--data.init_args.num_val", "4", "--data.init_args.num_test", "5"),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
]
SHORT = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--data.init_args.batch_size", "4"]
"""Two steps; ZerAuCap itself takes none."""


def command(folder: Path, verb: str, name: str, *arguments: str) -> list[str]:
    """A shipped configuration, unchanged, in a folder that looks like the checkout."""
    if not (folder / "configs").exists():
        (folder / "configs").symlink_to(ROOT / "configs")
    return [verb, "-c", f"configs/tiny/{name}.yaml", *SMALL, *arguments]


def run(folder: Path, *words: str) -> int:
    """Exit code of a command, in this process."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return avcap(command(folder, *words))
    finally:
        os.chdir(before)


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
        assert run(made, "fit", name, *SHORT) == 0
        assert (made / f"runs/pretrained/{name}/config.json").is_file()
    return made


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """Folder of a test run on one process."""
    assert run(folder, "test", "zeraucap") == 0
    return newest(folder, "zeraucap")


def test_without_the_small_models_their_commands_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "test", "zeraucap") == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("avcap test: runs/pretrained/clap does not exist, ")
    assert "make it: lightning fit -c configs/tiny/clap.yaml; " in said
    assert said.endswith("make it: lightning fit -c configs/tiny/caption_language.yaml")


def test_fit_has_one_line_to_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "fit", "zeraucap") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "avcap fit: ZerAuCap is not trained: use test (scores) or predict (captions) with the same -c"
    )


def test_scores_and_captions_are_written(alone: Path) -> None:
    scores = json.loads((alone / "test_scores.json").read_text())
    assert scores["clips_scored"] == len(rows(alone / "test_captions.jsonl")) == 5
    assert scores["scores"]["cider"] >= 0
    assert scores["decode"]["language"] == "runs/pretrained/caption_language"


@pytest.mark.slow
def test_two_processes_caption_like_one(folder: Path, alone: Path) -> None:
    # Five clips in batches of two: every clip counts once, and its neighbours are others.
    odd = ["--data.init_args.eval_batch_size", "2", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    words = [sys.executable, "-m", "avcap_zoo", *command(folder, "test", "zeraucap", *odd)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    together = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert together.returncode == 0, together.stderr[-2000:]
    both = newest(folder, "zeraucap")
    assert both != alone
    wanted, found = rows(alone / "test_captions.jsonl"), rows(both / "test_captions.jsonl")
    assert [(row["id"], row["caption"]) for row in found] == [(row["id"], row["caption"]) for row in wanted]
    one, two = (json.loads((where / "test_scores.json").read_text())["scores"] for where in (alone, both))
    assert two == pytest.approx(one, abs=1e-9)


@pytest.mark.parametrize("row", ["no_audio", "no_guidance", "no_keywords"])
def test_rows_lie_over_the_tiny_configuration(folder: Path, row: str) -> None:
    assert run(folder, "predict", "zeraucap", "-c", f"configs/tables/zeraucap/{row}.yaml") == 0
    captions = rows(newest(folder, "zeraucap") / "predictions.jsonl")
    assert len(captions) == 5
    decode = captions[0]["decode"]
    assert (decode["beta"] > 0) == (row == "no_keywords")
    assert decode["num_keywords"] == (2 if row == "no_guidance" else 0)
    if row == "no_audio":
        assert len({caption["caption"] for caption in captions}) == 1


def test_a_file_is_captioned_and_explained(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    clip = next(Path("runs/scenes/audiocaps").rglob("*.wav"))
    assert avcap(["caption", str(clip), "-c", "configs/tiny/zeraucap.yaml", "--explain", "why"]) == 0
    path, caption = capsys.readouterr().out.strip().split("\t")
    assert path == str(clip)
    (text,) = Path("why").glob("*.txt")
    (page,) = [found for found in Path("why").glob("*.html") if found.name != "index.html"]
    assert text.read_text(encoding="utf-8").startswith(f"caption   {caption}\nkeywords  ")
    assert "The best candidates of each step" in page.read_text(encoding="utf-8")
