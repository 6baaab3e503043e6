"""What runs on the embedded scenes left on disk: captions, scores, learning curves, and which captions are right."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from avcap_zoo.data_modules.scenes.grammar import events_correct, fully_correct
from avcap_zoo.errors import DataError

FIT_FOLDER = "fit"
TEST_FOLDER = "test"
"""Where a run's two commands write, below the run's folder."""

Curve = list[tuple[int, float]]
"""(optimizer steps done, value) in order."""

Annotations = Mapping[str, Mapping[str, Any]]
"""Lines of `annotations.jsonl` by clip id."""


@dataclass(frozen=True)
class ClipResult:
    """A model's caption of one test clip.

    Attributes:
        clip_id: as in the annotations.
        caption: what the model said.
        references: what the clip's annotation says.
        events_right: exactly the right events, in the right order and relation.
        all_right: every adverb is right, too.
    """

    clip_id: str
    caption: str
    references: tuple[str, ...]
    events_right: bool
    all_right: bool


@dataclass(frozen=True)
class RunResult:
    """What one model's fit and test left.

    Attributes:
        title: name of the model for readers.
        clips: test clips in order of id.
        scores: scores of the whole test set by name, on the scale of 0 to 1 (CIDEr: 0 to 10).
        versions: of the packages that computed them.
        loss: caption loss of training batches.
        cider: CIDEr on the validation clips, x100.
        config: the merged settings of the fit, as YAML.
    """

    title: str
    clips: tuple[ClipResult, ...]
    scores: dict[str, float]
    versions: dict[str, str]
    loss: Curve
    cider: Curve
    config: str

    @property
    def events_share(self) -> float:
        """Share of the clips with exactly the right events."""
        return sum(clip.events_right for clip in self.clips) / len(self.clips)

    @property
    def all_share(self) -> float:
        """Share of the clips with the right events and adverbs."""
        return sum(clip.all_right for clip in self.clips) / len(self.clips)


def read_annotations(root: Path, split: str = "test") -> dict[str, dict[str, Any]]:
    """Annotations of a split of the embedded scenes, by clip id.

    Args:
        root: folder of the scenes.
        split: "train", "val" or "test".

    Raises:
        DataError: there is no annotation file, or it lacks the split.
    """
    path = root / "audiocaps" / "annotations.jsonl"
    rows = {row["clip_id"]: row for row in _json_lines(path) if row["split"] == split}
    if not rows:
        raise DataError(f"{path} holds no clip of the split {split}")
    return rows


def read_run(title: str, folder: Path, annotations: Annotations) -> RunResult:
    """Read what a fit and a test wrote, and judge each caption.

    Args:
        title: name of the model for readers.
        folder: holds the folders `fit` and `test`.
        annotations: of the test clips; truth for the events.

    Raises:
        DataError: a file is missing, or clips are not annotated.
    """
    captions_path = folder / TEST_FOLDER / "test_captions.jsonl"
    rows = _json_lines(captions_path)
    unknown = [row["id"] for row in rows if row["id"] not in annotations]
    if unknown or not rows:
        what = f"names clips without annotation ({', '.join(unknown[:5])})" if unknown else "is empty"
        raise DataError(f"{captions_path} {what}; run the test again")
    summary = json.loads(_text(folder / TEST_FOLDER / "test_scores.json"))
    loss, cider = read_curves(folder / FIT_FOLDER / "metrics.csv")
    return RunResult(
        title=title,
        clips=tuple(
            ClipResult(
                row["id"],
                row["caption"],
                tuple(row["references"]),
                events_correct(row["caption"], annotations[row["id"]]),
                fully_correct(row["caption"], annotations[row["id"]]),
            )
            for row in rows
        ),
        scores=summary["scores"],
        versions=summary["versions"],
        loss=loss,
        cider=cider,
        config=_text(folder / FIT_FOLDER / "config.yaml"),
    )


def read_curves(path: Path) -> tuple[Curve, Curve]:
    """Caption loss and validation CIDEr (x100) of a run's metrics.csv; what is not there yet is left out.

    Where the loss has several parts, the part of the captions is taken, so that models can be compared. The file may
    be one that a run is just writing.

    Args:
        path: file of Lightning's CSVLogger.

    Raises:
        DataError: the file does not exist.
    """
    loss: Curve = []
    cider: Curve = []
    for step, values in _logged(path):
        if (value := values.get("train/loss_caption", values.get("train/loss"))) is not None:
            loss.append((step, value))
        if (value := values.get("val/cider")) is not None:
            cider.append((step, 100 * value))
    return loss, cider


def read_columns(folder: Path) -> dict[str, Curve]:
    """Every number that a fit logged, by name; what it logged before it was resumed (`metrics-*.csv`) comes first.

    Args:
        folder: of Lightning's CSVLogger; empty where there is none.
    """
    found: dict[str, dict[int, float]] = {}
    for path in [*sorted(folder.glob("metrics-*.csv")), *folder.glob("metrics.csv")]:
        for step, values in _logged(path):
            for name, value in values.items():
                found.setdefault(name, {})[step] = value
    return {name: sorted(curve.items()) for name, curve in found.items()}


def events_right(captions: Mapping[str, str], annotations: Annotations) -> float:
    """Share of captions with exactly the right events.

    Args:
        captions: by clip id.
        annotations: of these clips.
    """
    return sum(events_correct(caption, annotations[clip_id]) for clip_id, caption in captions.items()) / len(captions)


def margin(share: float, count: int) -> float:
    """Half the width of the 95 % interval of a share that was measured on `count` clips (Wilson's)."""
    z = 1.96
    return z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)


def spoken_duration(seconds: float) -> str:
    """Seconds as people say them: `48 s`, `5 min 7 s`, `3 h 2 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 120:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def first_right_and_wrong(run: RunResult, count: int) -> list[ClipResult]:
    """The first clips with the right events and the first with wrong ones, in order of id, `count` of each."""
    right = [clip for clip in run.clips if clip.events_right]
    wrong = [clip for clip in run.clips if not clip.events_right]
    return right[:count] + wrong[:count]


def one_of_each_kind(run: RunResult, annotations: Annotations) -> list[ClipResult]:
    """For each relation of events, the first clip in order of id that is right and the first that is wrong.

    Right ones come first. At most six, as there are three relations.
    """
    chosen: dict[tuple[bool, str], ClipResult] = {}
    for clip in run.clips:
        chosen.setdefault((not clip.events_right, annotations[clip.clip_id]["relation"]), clip)
    order = {"single": 0, "then": 1, "while": 2}
    return [chosen[key] for key in sorted(chosen, key=lambda key: (key[0], order[key[1]]))]


def shares_by_relation(run: RunResult, annotations: Annotations) -> dict[str, tuple[int, float]]:
    """Number of clips of each relation, and the share of them with exactly the right events."""
    groups: dict[str, list[bool]] = {"single": [], "then": [], "while": []}
    for clip in run.clips:
        groups[annotations[clip.clip_id]["relation"]].append(clip.events_right)
    return {name: (len(right), sum(right) / len(right)) for name, right in groups.items() if right}


def clip_count(config: str, split: str) -> int:
    """How many clips of a split the settings of a run ask for.

    Args:
        config: the merged settings as YAML.
        split: "train", "val" or "test".
    """
    return int(yaml.safe_load(config)["data"]["init_args"][f"num_{split}"])


def same_clips(runs: Sequence[RunResult]) -> bool:
    """Whether all runs captioned the same clips."""
    ids = [[clip.clip_id for clip in run.clips] for run in runs]
    return all(other == ids[0] for other in ids[1:])


def _json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _text(path).splitlines() if line]


def _logged(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Optimizer steps done and what was logged then, line by line."""
    for row in csv.DictReader(_text(path).splitlines()):
        values = {key: number for key, text in row.items() if (number := _number(text)) is not None}
        if "step" in values:
            yield int(values["step"]) + 1, values


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; run the demo again") from error


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
