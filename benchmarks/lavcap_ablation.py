"""Table II of the LAVCap paper at toy size: what pictures, the transport loss and OT-Att bring on the embedded scenes.

    python -m benchmarks.lavcap_ablation --out runs/ablation

Every row is trained from the same prepared backbones, over three seeds, in two regimes:

- `all_trained`: audio encoder, fusion, projector and the whole language model learn, from 2,000 clips;
- `frozen_lm`: language model frozen but for LoRA, audio encoder frozen, captions of 300 clips only.

No validation, no choice of checkpoint: the last weights are scored once on 300 clips that nothing was chosen on. A row
that is in the folder already is not run again. Prints the table as Markdown and writes it to `table.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.data import DataLoader

from avcap_zoo.batch import Batch
from avcap_zoo.cli.main import avcap
from avcap_zoo.data_modules.records import PackedRecords
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.tables.run_results import read_annotations, read_run

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "tiny" / "lavcap.yaml"

ROWS: dict[str, dict[str, str]] = {
    "audio only": {"kind": "audio_only"},
    "audio + visual": {"kind": "concatenation"},
    "+ OT loss, paper": {"kind": "concatenation_ot", "loss_convention": "paper"},
    "+ OT loss, released": {"kind": "concatenation_ot", "loss_convention": "released"},
    "+ OT loss + OT-Att, paper": {"kind": "ot_attention", "loss_convention": "paper"},
    "+ OT loss + OT-Att, released": {"kind": "ot_attention", "loss_convention": "released"},
    "+ OT loss + OT-Att, row_normalised": {
        "kind": "ot_attention",
        "loss_convention": "paper",
        "attention_convention": "row_normalised",
    },
}
REGIMES = ("all_trained", "frozen_lm")


class FewCaptions(ScenesDataModule):
    """Scenes of which only the first `num_captioned` training clips are used to learn captions.

    Args:
        num_captioned: clips of the training split that a fit sees; preparation sees all.
        options: of `ScenesDataModule`.
    """

    def __init__(self, num_captioned: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_captioned = num_captioned

    def train_dataloader(self) -> DataLoader[Batch]:
        """The first clips only."""
        whole = self.records("train")
        self._packed["train"] = PackedRecords(whole[index] for index in range(self.num_captioned))
        try:
            return super().train_dataloader()
        finally:
            self._packed["train"] = whole


def overlay(regime: str, row: str, seed: int, steps: int, scenes: Path) -> dict[str, Any]:
    """Settings of one run on top of `configs/tiny/lavcap.yaml`."""
    frozen = regime == "frozen_lm"
    fusion = {"loss_weight": 0.05, **ROWS[row]}
    model: dict[str, Any] = {"fusion": fusion, "audio": {"training": "frozen" if frozen else "full"}}
    if frozen:
        model["language"] = {
            "training": "lora",
            "lora": {"rank": 8, "alpha": 32, "dropout": 0.1, "targets": ["q_proj", "v_proj"]},
        }
    data: dict[str, Any] = {"num_captioned": 300 if frozen else 2000, "root": str(scenes)}
    if row == "audio only":
        data["modalities"] = ["audio"]
    return {
        "seed_everything": seed,
        "trainer": {
            "max_steps": steps,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {
                    "class_path": "avcap_zoo.systems.lavcap.preparation.PrepareBackbones",
                    "init_args": {"audio_steps": 400, "vision_steps": 400, "language_steps": 200},
                },
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"filename": "last", "monitor": None, "enable_version_counter": False},
                },
            ],
        },
        "model": {"init_args": model},
        "data": {"class_path": "benchmarks.lavcap_ablation.FewCaptions", "init_args": data},
    }


def run_row(regime: str, row: str, seed: int, steps: int, out: Path) -> dict[str, Any]:
    """Train and test one row with the commands that a user would type; or read what an earlier run left."""
    folder = out / regime / f"{row.replace(' ', '_').replace(',', '')}-{seed}"
    result = folder / "result.json"
    if result.is_file():
        known: dict[str, Any] = json.loads(result.read_text())
        return known
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "overlay.yaml"
    settings.write_text(yaml.safe_dump(overlay(regime, row, seed, steps, out / "scenes")))
    started = time.perf_counter()
    common = ["-c", str(CONFIG), "-c", str(settings)]
    for verb in ("fit", "test"):
        log = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={folder}"]
        log += [f"--trainer.logger.name={verb}", "--trainer.logger.version="]
        weights = ["--ckpt_path", str(folder / "fit" / "checkpoints" / "last.ckpt")] if verb == "test" else []
        if avcap([verb, *common, *log, *weights]):
            sys.exit(f"{verb} of {row} failed, see above")
    found = read_run(row, folder, read_annotations(out / "scenes"))
    summary = {
        "cider": 100 * found.scores["cider"],
        "events": 100 * found.events_share,
        "seconds": time.perf_counter() - started,
    }
    result.write_text(json.dumps(summary))
    return summary


def table(results: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = ["| row | " + " | ".join(f"{r} CIDEr | {r} right events %" for r in REGIMES) + " |"]
    lines += ["|---|" + "---|" * (2 * len(REGIMES))]
    for row in ROWS:
        cells = []
        for regime in REGIMES:
            for name in ("cider", "events"):
                values = [result[name] for result in results.get((regime, row), [])]
                if not values:
                    cells.append("not run")
                    continue
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread} ({len(values)})")
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, print the table after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs=2, default=(500, 500), help="of the two regimes")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in range(options.seeds):
        for regime in options.regimes:
            steps = options.steps[REGIMES.index(regime)]
            for row in ROWS:
                found = run_row(regime, row, seed, steps, options.out)
                results.setdefault((regime, row), []).append(found)
                print(f"{regime} {row} seed {seed}: {found}", flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
