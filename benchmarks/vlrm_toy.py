"""VLRM and VLRM-RS at toy size against the captioner they begin with: the table and the curves of the system's page.

    python -m benchmarks.vlrm_toy --out runs/vlrm_toy --seeds 1

Runs the commands that a user would type, from the same pretrained parts (`configs/tiny/blip2.yaml`, `itm.yaml`,
`clip_judge.yaml`, `clip.yaml`), each of which is trained if it is not there. The last weights of each run are tested on
300 pictures that nothing was chosen on. A run that is in the folder already is not repeated. Beside the scores of the
test itself the captions are held against what is in the picture: details that they tell, how many of these are right,
and whether they are sentences of the grammar that all captions were made with, or bare lists of keywords. Prints the
table as Markdown, writes it to `table.md` and the curves of the first seed to `curves.svg`.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from avcap_zoo.cli.main import avcap
from avcap_zoo.data_modules.scenes.picture_reading import count_details, read_picture_caption
from avcap_zoo.tables.pictures import Line, line_chart

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "tiny"
PARTS = {"blip2": "blip2", "itm": "itm", "clip_judge": "clip_judge.safetensors", "clip": "clip.safetensors"}
BASE = "before"
KINDS = ("picture", "colour", "place", "background")
ROWS = {"VLRM": "vlrm", "VLRM-RS": "vlrm_rs"}
MEASURES = {
    "recall_1": "recall R@1",
    "recall_5": "recall R@5",
    "recall_10": "recall R@10",
    "mrr": "MRR",
    "caption_words": "words per caption",
    "colour_words": "colour words per caption",
    "colour_coverage": "colour coverage",
    "told": "details told per caption",
    "right": "right details per caption",
    "complete": "share of all details that are told rightly",
    "right_picture": "right of the told objects",
    "right_colour": "right of the told colours",
    "right_background": "right of the told backgrounds",
    "right_place": "right of the told places (chance 0.25)",
    "grammatical": "share of grammatical captions",
    "listed": "share of bare lists of keywords",
    "fluency": "fluency (log-probability of a token)",
    "repeated_words": "repeated words per caption",
    "bad_phrases": "phrases of Table 6 per caption",
    "cider": "CIDEr",
}
CURVES = {
    "val/recall_1": "recall R@1 on validation pictures",
    "train/caption_length": "tokens of drawn captions",
    "train/reward_itm": "matching logit of drawn captions",
    "val/fluency": "fluency on validation pictures",
}
STYLE = """
text { font: 12px sans-serif; fill: #555 } .grid { stroke: #bbb; stroke-width: 0.5 }
.curve { fill: none; stroke-width: 2 } .VLRM { stroke: #1f6fb4 } .VLRM-RS { stroke: #d3691e }
.dot.VLRM, .key.VLRM { fill: #1f6fb4 } .dot.VLRM-RS, .key.VLRM-RS { fill: #d3691e } .key { stroke: none }
"""


def prepare() -> None:
    """Train the parts that are not there."""
    for name, made in PARTS.items():
        if not (Path("runs/pretrained") / made).exists():
            run("fit", name, Path("runs/vlrm_toy_parts") / name)


def run(verb: str, config: str, folder: Path, *arguments: str) -> None:
    """One command of the user; its log in `folder`."""
    log = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={folder.parent}"]
    log += [f"--trainer.logger.name={folder.name}", "--trainer.logger.version=", "--trainer.enable_progress_bar=false"]
    if avcap([verb, "-c", str(CONFIGS / f"{config}.yaml"), *log, *arguments]):
        sys.exit(f"{verb} of {config} failed, see above")


def train_and_test(row: str, seed: int, out: Path) -> Path:
    """Folder of a row's test; what an earlier call has left is kept."""
    folder = out / f"{row}-{seed}"
    if (folder / "test" / "test_scores.json").is_file():
        return folder
    started = time.perf_counter()
    weights: list[str] = []
    if row != BASE:
        run("fit", ROWS[row], folder / "fit", f"--seed_everything={seed}")
        weights = ["--ckpt_path", str(folder / "fit" / "checkpoints" / "last.ckpt")]
    print(f"{row} seed {seed}: {time.perf_counter() - started:.0f} s of training", flush=True)
    run("test", ROWS.get(row, "vlrm"), folder / "test", *weights)
    return folder


def measure(folder: Path) -> dict[str, float]:
    """Scores of a test, and what its captions say of the pictures."""
    scores: dict[str, float] = json.loads((folder / "test" / "test_scores.json").read_text())["scores"]
    lines = (folder / "test" / "test_captions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found = [count_details(row["caption"], max(row["references"], key=len)) for row in rows]
    said = [read_picture_caption(row["caption"]) for row in rows]
    told, right, there = (
        {kind: sum(getattr(item[kind], name) for item in found) for kind in KINDS} for name in ("told", "right", "all")
    )
    return {
        **scores,
        "told": sum(told.values()) / len(rows),
        "right": sum(right.values()) / len(rows),
        "complete": sum(right.values()) / sum(there.values()),
        **{f"right_{kind}": right[kind] / max(1, told[kind]) for kind in KINDS},
        "grammatical": sum(caption.grammatical for caption in said) / len(rows),
        "listed": sum(caption.listed for caption in said) / len(rows),
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Mean and standard deviation over the seeds, as Markdown."""
    lines = ["| test | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for name, told in MEASURES.items():
        cells = []
        for found in results.values():
            values = [scores[name] for scores in found]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        lines.append(f"| {told} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def curves(folders: dict[str, Path]) -> str:
    """What was logged while training, one chart per quantity, as an SVG of its own."""
    charts = []
    for number, (key, told) in enumerate(CURVES.items()):
        lines = [Line(row, row, read_curve(folder / "fit" / "metrics.csv", key)) for row, folder in folders.items()]
        chart = line_chart(lines, x_label="iterations", y_label=told)
        place = f'x="{460 * (number % 2)}" y="{30 + 270 * (number // 2)}" width="440" height="250"'
        charts.append(chart.replace("<svg ", f"<svg {place} ", 1))
    keys = [
        f'<rect class="key {row}" x="{46 + 110 * number}" y="8" width="14" height="10"/>'
        f'<text x="{66 + 110 * number}" y="17">{row}</text>'
        for number, row in enumerate(folders)
    ]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 570">'
    return f"{head}<style>{STYLE}</style>{''.join(keys)}{''.join(charts)}</svg>\n"


def read_curve(path: Path, key: str) -> list[tuple[float, float]]:
    """(iterations done, value) of one column of Lightning's metrics.csv, where it has a number."""
    with path.open(newline="") as file:
        return [(int(row["step"]) + 1, float(row[key])) for row in csv.DictReader(file) if row.get(key)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vlrm_toy"))
    parser.add_argument("--seeds", type=int, default=1, help="of VLRM and VLRM-RS (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    prepare()
    results = {BASE: [measure(train_and_test(BASE, 0, options.out))]}
    for seed in range(options.seeds):
        for row in ROWS:
            results.setdefault(row, []).append(measure(train_and_test(row, seed, options.out)))
            (options.out / "table.md").write_text(table(results))
    (options.out / "curves.svg").write_text(curves({row: options.out / f"{row}-0" for row in ROWS}))
    print(table(results))


if __name__ == "__main__":
    main()
