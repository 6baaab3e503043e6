"""What the runs of a row left: one `result.json` per run, written last and whole; mean and spread over seeds."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from avcap_zoo.cli.versions import source_commit
from avcap_zoo.data_modules.files import json_bytes, write_file
from avcap_zoo.errors import DataError
from avcap_zoo.tables.paper_tables import COLUMNS, PaperRow
from avcap_zoo.tables.row_runs import RowRun, merged
from avcap_zoo.tables.run_results import TEST_FOLDER, events_right, read_annotations

RESULT = "result.json"
_OF_THE_MEAN = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice", "spider")


class Spread(NamedTuple):
    """Mean over seeds, standard deviation (None for one seed), and how many seeds."""

    mean: float
    deviation: float | None
    seeds: int


@dataclass(frozen=True)
class RowOutcome:
    """What became of a row.

    Attributes:
        row: as published.
        runs: planned ones, by seed; none where something is missing.
        results: of those that are done, by key.
        failures: what went wrong, by key.
        missing: what is not there, each with how to get it.
    """

    row: PaperRow
    runs: tuple[RowRun, ...] = ()
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def done(self) -> list[Mapping[str, Any]]:
        """Results in order of the runs."""
        return [self.results[run.key] for run in self.runs if run.key in self.results]

    def spread(self, column: str) -> Spread | None:
        """A score over the seeds, on the scale that tables print; None where no run has it."""
        return spread([COLUMNS[column].factor * r["scores"][column] for r in self.done() if column in r["scores"]])


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and sample standard deviation."""
    if not values:
        return None
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def finish(run: RowRun) -> None:
    """Gather what a run's commands wrote into `result.json`; a small model has no scores.

    Raises:
        DataError: the test wrote no scores.
    """
    notes = [json.loads(run.done_file(command).read_text(encoding="utf-8")) for command in run.commands]
    result: dict[str, Any] = {
        "title": run.title,
        "key": run.key,
        "configs": list(run.configs),
        "checkpoint": run.checkpoint,
        "commands": [note["command"] for note in notes],
        "seconds": sum(note["seconds"] for note in notes),
        "resumed": any(note["resumed"] for note in notes),
        "commit": source_commit(),
        "hardware": hardware(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "scores": {},
    }
    if (run.folder / f"{TEST_FOLDER}.done").is_file():
        result |= _tested(run)
    write_file(run.folder / RESULT, json_bytes(result))


def read_result(run: RowRun) -> dict[str, Any] | None:
    """The result of a run that is done; None if it is not, or if the file is damaged or of another run."""
    try:
        found = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(found, dict) and found.get("key") == run.key and isinstance(found.get("scores"), dict)
    return found if whole else None


def captions_of(run: RowRun) -> list[dict[str, Any]]:
    """Rows of `test_captions.jsonl`: id, caption, references, scores.

    Raises:
        DataError: the file is missing or damaged.
    """
    path = run.folder / TEST_FOLDER / "test_captions.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: delete {run.folder} and run avcap reproduce again") from error


def hardware() -> str:
    """The processor of this machine and its threads, and its GPUs if there are."""
    import torch

    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join([*sorted({f"{gpus.count(gpu)} x {gpu}" for gpu in gpus}), f"{name}, {os.cpu_count()} threads"])


def _tested(run: RowRun) -> dict[str, Any]:
    path = run.folder / TEST_FOLDER / "test_scores.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the test wrote no readable {path}; delete {run.folder} and run avcap reproduce again"
        ) from error
    scores = dict(summary["scores"])
    if all(name in scores for name in _OF_THE_MEAN):
        scores["nlg_mean"] = statistics.mean(scores[name] for name in _OF_THE_MEAN)
    rows = captions_of(run)
    return {
        "scores": scores | _shares(run, rows),
        "missing_scores": summary["missing_scores"],
        "clips_scored": summary["clips_scored"],
        "clips_official": summary["clips_official"],
        "clips_skipped": len(summary["clips_skipped"]),
        "versions": summary["versions"],
        "tokenizer": summary["tokenizer"],
        "data": summary["data"],
    }


def _shares(run: RowRun, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares of right captions that only the embedded data allow to count."""
    kind = merged(run.configs)["data"]["class_path"].rpartition(".")[2]
    if kind == "ScenesDataModule":
        annotations = read_annotations(Path(run.settings["data"]["init_args"]["root"]))
        return {"events": events_right({row["id"]: row["caption"] for row in rows}, annotations)}
    if kind == "SceneInstructionsDataModule":
        agree = [_verdict(row["caption"]) == _verdict(row["references"][0]) for row in rows]
        return {"related": sum(agree) / len(agree)}
    return {}


def _verdict(answer: str) -> str:
    """The sentence about belonging together with which an answer begins; the whole answer if it is none."""
    # Only here: they take torch, which showing what is kept does without.
    from avcap_zoo.data_modules.instructions import UNRELATED
    from avcap_zoo.data_modules.scenes.instructions import RELATED

    said = answer.strip().lower()
    return next((one for one in (RELATED, UNRELATED) if said.startswith(one.strip().lower())), said)
