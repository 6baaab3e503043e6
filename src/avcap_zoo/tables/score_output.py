"""Scores of captions as a terminal table, as one JSON file, and clip by clip."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from avcap_zoo.errors import ConfigError, DataError, first_line
from avcap_zoo.metrics.bootstrap import Difference, Interval
from avcap_zoo.metrics.scores import CaptionReport

TITLES = {
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "cider": "CIDEr-D",
    "spice": "SPICE",
    "spider": "SPIDEr",
    "spider_max": "SPIDEr-max",
    "spider_fl": "SPIDEr-FL",
    "fense": "FENSE",
    "sbert_sim": "Sentence-BERT",
    "fluency_error": "fluency errors",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
}
"""Names of scores in tables, in the order of their rows."""

PER_CLIP_SUFFIXES = (".jsonl", ".csv")


@dataclass(frozen=True)
class ScoredFile:
    """One file of captions and what it scores.

    Attributes:
        path: of the file.
        captions: by clip id.
        report: its scores.
        intervals: of the scores of the corpus, by name; may be empty.
    """

    path: Path
    captions: dict[str, str]
    report: CaptionReport
    intervals: dict[str, Interval] = field(default_factory=dict)


def score_table(scored: ScoredFile) -> str:
    """Rows of one file, x100, with intervals where there are any; "-" for what is missing."""
    rows = [["", "x100", "95 % interval"]]
    for name, title in _shown([scored.report]):
        score = scored.report.corpus.get(name)
        rows.append([title, _hundredfold(score), _span(scored.intervals.get(name))])
    return _aligned(rows if scored.intervals else [row[:2] for row in rows])


def comparison_table(first: ScoredFile, second: ScoredFile, differences: Mapping[str, Difference]) -> str:
    """Rows of two files and their differences, x100."""
    rows = [["", first.path.name, second.path.name, "difference", "95 % interval", "p"]]
    for name, title in _shown([first.report, second.report]):
        scores = [_hundredfold(scored.report.corpus.get(name)) for scored in (first, second)]
        found = differences.get(name)
        rest = ["-", "", ""]
        if found is not None:
            rest = [f"{100 * found.value:+.2f}", _span(found.interval), f"{found.p_value:.3f}"]
        rows.append([title, *scores, *rest])
    return _aligned(rows)


def spread_table(scores: Mapping[str, Sequence[float]]) -> str:
    """Mean and population standard deviation of several runs, x100."""
    rows = [["", "mean x100", "std"]]
    for name, title in TITLES.items():
        if name in scores:
            values = scores[name]
            mean = sum(values) / len(values)
            spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
            rows.append([title, _hundredfold(mean), _hundredfold(spread)])
    return _aligned(rows)


def ranking_score(report: CaptionReport) -> str:
    """The score by which clips are called good or bad: SPIDEr, else CIDEr-D, else the first one of the report."""
    return next((name for name in ("spider", "cider") if name in report.corpus), next(iter(report.corpus)))


def extremes(
    scored: ScoredFile, references: Mapping[str, Sequence[str]], count: int, *, best: bool, other: ScoredFile | None
) -> str:
    """The best or worst clips with their captions and references, as text.

    Args:
        scored: the file of captions.
        references: by clip id.
        count: how many clips.
        best: the best ones or the worst ones.
        other: a second file: then clips are ordered by what its captions score above those of the first.
    """
    name = ranking_score(scored.report)
    values = {clip_id: clip[name] for clip_id, clip in scored.report.per_clip.items()}
    if other is not None:
        values = {clip_id: other.report.per_clip[clip_id][name] - value for clip_id, value in values.items()}
    known = [clip_id for clip_id, value in values.items() if not math.isnan(value)]
    chosen = sorted(known, key=lambda clip_id: (-values[clip_id] if best else values[clip_id], clip_id))[:count]
    what = TITLES[name] if other is None else f"{TITLES[name]} of {other.path.name} less that of {scored.path.name}"
    lines = [f"{'best' if best else 'worst'} {len(chosen)} clips by {what} (x100):"]
    for clip_id in chosen:
        lines.append(f"{100 * values[clip_id]:8.1f}  {clip_id}")
        lines += [f"{'':10}> {file.captions[clip_id]}" for file in (scored, other) if file is not None]
        lines += [f"{'':12}{text}" for text in references[clip_id]]
    return "\n".join(lines)


def check_per_clip(path: Path) -> None:
    """Refuse a file name that says no format.

    Raises:
        ConfigError: names the formats.
    """
    if path.suffix.lower() not in PER_CLIP_SUFFIXES:
        raise ConfigError(f"--per_clip {path} must end in {' or '.join(PER_CLIP_SUFFIXES)}")


def write_per_clip(
    path: Path, scored: ScoredFile, references: Mapping[str, Sequence[str]], other: ScoredFile | None
) -> None:
    """Write raw scores of every clip, as JSON lines or CSV; those of a second file beside them, as `other_...`.

    Raises:
        DataError: the file cannot be written.
    """
    rows = [_clip_row(clip_id, scored, references, other) for clip_id in scored.report.per_clip]
    if path.suffix.lower() == ".csv":
        text = io.StringIO()
        flat = [_flat(row) for row in rows]
        writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
        _write(path, text.getvalue())
    else:
        _write(path, "".join(json.dumps(_without_nan(row), ensure_ascii=False) + "\n" for row in rows))


def write_summary(
    path: Path,
    files: Sequence[ScoredFile],
    differences: Mapping[str, Difference],
    **settings: Any,
) -> None:
    """Write all scores of the corpus as JSON, raw: 0 to 1, CIDEr-D 0 to 10; null where a score is not defined.

    Args:
        path: of the file.
        files: what was scored.
        differences: by name, if there are two files.
        settings: further keys.

    Raises:
        DataError: the file cannot be written.
    """
    scored = [
        {
            "file": str(file.path),
            "clips": len(file.report.per_clip),
            "scores": file.report.corpus,
            "intervals": {name: asdict(interval) for name, interval in file.intervals.items()},
            "missing": file.report.missing,
            "tokenizer": file.report.tokenizer,
        }
        for file in files
    ]
    compared = {name: asdict(difference) for name, difference in differences.items()}
    content = {"predictions": scored, "differences": compared, **settings}
    _write(path, json.dumps(_without_nan(content), indent=1, ensure_ascii=False) + "\n")


def _shown(reports: Sequence[CaptionReport]) -> list[tuple[str, str]]:
    """Name and title of the scores that a report has or lacks, in the order of the table."""
    names = {name for report in reports for name in (*report.corpus, *report.missing)}
    return [(name, title) for name, title in TITLES.items() if name in names]


def _hundredfold(score: float | None) -> str:
    if score is None:
        return "-"
    return "undefined" if math.isnan(score) else f"{100 * score:.2f}"


def _span(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low):
        return ""
    return f"{100 * interval.low:.2f} to {100 * interval.high:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _clip_row(
    clip_id: str, scored: ScoredFile, references: Mapping[str, Sequence[str]], other: ScoredFile | None
) -> dict[str, Any]:
    row: dict[str, Any] = {"id": clip_id, "caption": scored.captions[clip_id]}
    row |= {"references": list(references[clip_id]), "scores": scored.report.per_clip[clip_id]}
    if other is not None:
        row |= {"other_caption": other.captions[clip_id], "other_scores": other.report.per_clip[clip_id]}
    return row


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of JSON for a table: without references, one column per score."""
    flat = {"id": row["id"], "caption": row["caption"], **row["scores"]}
    if "other_scores" in row:
        flat["other_caption"] = row["other_caption"]
        flat |= {f"other_{name}": score for name, score in row["other_scores"].items()}
    return {key: "" if isinstance(value, float) and math.isnan(value) else value for key, value in flat.items()}


def _without_nan(value: Any) -> Any:
    """The same with null for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {path}: {first_line(error)}") from error
