"""Folders as runs leave them, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

HEADER = "epoch,step,train/loss,train/loss_caption,val/cider"


def write_run(
    folder: Path,
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    cider: float = 2.5,
    metrics: Sequence[str] = ("0,19,2.0,1.75,", "0,39,1.5,1.25,", "0,39,,,2.0"),
) -> Path:
    """Write the files of a fit and a test; returns the folder."""
    (folder / "fit").mkdir(parents=True)
    (folder / "test").mkdir()
    (folder / "fit" / "metrics.csv").write_text("\n".join([HEADER, *metrics]) + "\n")
    (folder / "fit" / "config.yaml").write_text("# avcap-zoo==9.9\ndata:\n  init_args:\n    num_train: 1234\n")
    rows = [{"id": i, "caption": captions[i], "references": list(references[i])} for i in sorted(captions)]
    (folder / "test" / "test_captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"scores": {"cider": cider, "bleu_4": 0.125}, "versions": {"avcap_zoo": "9.9", "torch": "8.8"}}
    (folder / "test" / "test_scores.json").write_text(json.dumps(summary))
    return folder
