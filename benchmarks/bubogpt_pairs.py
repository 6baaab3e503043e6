"""What negative pairs teach BuboGPT, at toy size: does it know whether a picture and a sound belong together?

    python -m benchmarks.bubogpt_pairs --out runs/pairs

For each seed one stage 1, then two stages 2 from its checkpoint, with negative pairs and without. Both answer "Are the
audio and image related to each other? What are they?" about the same 200 pairs of scenes from a generator seed of their
own, on which nothing was trained or chosen: 100 of one scene and 100 of two that cannot belong together. The seeds are
of the stages; they share one preparation. A run that is in the folder already is not run again. Prints the table as
Markdown and writes it to `table.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from avcap_zoo.cli.main import avcap
from avcap_zoo.data_modules.instructions import UNRELATED
from avcap_zoo.data_modules.scenes.events import PICTURES
from avcap_zoo.data_modules.scenes.instructions import HEARD, RELATED, words_in

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tiny"
WITHOUT = Path(__file__).resolve().parents[1] / "configs" / "tables" / "bubogpt" / "tiny_without_negatives.yaml"
ROWS: dict[str, list[str]] = {"with negatives": [], "without": ["-c", str(WITHOUT)]}
UNSEEN = ["--data.init_args.scene_seed", "7", "--data.init_args.num_train", "8", "--data.init_args.num_val", "8"]
COLUMNS = {
    "verdict": "right verdict",
    "together": "called related",
    "heard": "all sounds right",
    "seen": "all things right",
}


def judge(rows: Collection[Mapping[str, Any]]) -> dict[str, float]:
    """Shares of the answers, in per cent: see `COLUMNS`.

    Args:
        rows: of `test_captions.jsonl`: `caption` is what the model said, the first of `references` what is right.
    """
    found: dict[str, list[bool]] = {name: [] for name in COLUMNS}
    for row in rows:
        said, right = row["caption"].lower(), row["references"][0].lower()
        together, apart = (said.startswith(start.strip().lower()) for start in (RELATED, UNRELATED))
        found["verdict"].append(together if right.startswith(RELATED.lower()) else apart)
        found["together"].append(together)
        for column, names in (("heard", HEARD.values()), ("seen", PICTURES)):
            found[column].append(set(words_in(said, names)) == set(words_in(right, names)))
    return {name: 100 * statistics.mean(values) for name, values in found.items()}


def run(words: list[str], folder: Path, seed: int, scenes: Path) -> None:
    """One command as a user would type it, with its files in a folder of known name."""
    common = [
        "--seed_everything",
        str(seed),
        "--data.init_args.root",
        str(scenes),
        "--trainer.enable_progress_bar=false",
    ]
    log = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={folder.parent}"]
    log += [f"--trainer.logger.name={folder.name}", "--trainer.logger.version="]
    if avcap([*words, *common, *log]):
        sys.exit(f"{' '.join(words)} failed, see above")


def run_seed(seed: int, out: Path) -> dict[str, dict[str, float]]:
    """Train and test both rows of a seed, or read what an earlier run left.

    Args:
        seed: of both stages.
        out: folder of everything.

    Returns:
        By row what `judge` found.
    """
    scenes, first = out / "scenes", out / f"stage1-{seed}"
    started = first / "checkpoints" / "last.ckpt"
    if not started.is_file():
        run(["fit", "-c", str(CONFIGS / "bubogpt_stage1.yaml")], first, seed, scenes)
    results = {}
    for row, overlay in ROWS.items():
        folder = out / f"stage2-{row.split()[0]}-{seed}"
        config = ["-c", str(CONFIGS / "bubogpt_stage2.yaml"), *overlay, "--model.start_from", str(started)]
        weights = folder / "checkpoints" / "last.ckpt"
        if not weights.is_file():
            run(["fit", *config], folder, seed, scenes)
        answers = folder / "unseen" / "test_captions.jsonl"
        if not answers.is_file():
            words = ["test", *config, *UNSEEN, "--ckpt_path", str(weights)]
            run(words, folder / "unseen", seed, out / "scenes-unseen")
        results[row] = judge([json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()])
    return results


def table(results: Mapping[int, Mapping[str, Mapping[str, float]]]) -> str:
    """A row for each seed and kind of stage 2, as Markdown."""
    lines = ["| stage 2 | seed | " + " | ".join(COLUMNS.values()) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for row in ROWS:
        for seed, found in results.items():
            cells = " | ".join(f"{found[row][name]:.1f} %" for name in COLUMNS)
            lines.append(f"| {row} | {seed} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for seed in options.seeds:
        began = time.perf_counter()
        results[seed] = run_seed(seed, options.out)
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
        (options.out / "table.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
