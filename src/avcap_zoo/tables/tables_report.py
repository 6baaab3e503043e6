"""The report of `avcap reproduce`: tables, learning curves, best and worst clips, settings, in one file from disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import yaml

from avcap_zoo.errors import AvcapError
from avcap_zoo.tables.page import template_text
from avcap_zoo.tables.paper_tables import COLUMNS
from avcap_zoo.tables.pictures import Line, data_uri, line_chart
from avcap_zoo.tables.result_tables import (
    NOT_PUBLISHED,
    PROVENANCE,
    TOY_WARNING,
    TableOutcome,
    missing_things,
    papers_of,
)
from avcap_zoo.tables.row_data import ClipMedia, clip_media
from avcap_zoo.tables.row_results import RowOutcome, captions_of
from avcap_zoo.tables.row_runs import RowRun, merged
from avcap_zoo.tables.run_results import FIT_FOLDER, Curve, read_columns

CLIPS_OF_EACH = 2
"""Best and worst clips per table."""
LOSSES = {
    "train/loss_caption": "Caption loss, training batches",
    "train/loss": "Loss, training batches",
    "train/return": "Return per caption, training batches",
}
SCORES = {"val/recall_1": "R@1 × 100, validation clips", "val/cider": "CIDEr × 100, validation clips"}
"""What the curves show, the first that a run has logged, and how it is called."""
_STYLES = 8


def write_tables_report(path: Path, outcomes: Sequence[TableOutcome]) -> None:
    """Write the page.

    Args:
        path: the HTML file; decoded clips are kept in the folder `clips` beside it.
        outcomes: tables in the order shown.
    """
    path.write_text(tables_report(outcomes, path.parent / "clips"), encoding="utf-8")


def tables_report(outcomes: Sequence[TableOutcome], clips: Path) -> str:
    """The page as text."""
    full = [outcome for outcome in outcomes if outcome.track == "full"]
    runs = {run.key: (run, row) for outcome in outcomes for row in outcome.rows for run in row.runs}
    done = sum(1 for run, row in runs.values() if run.key in row.results)
    waiting = sum(1 for outcome in full for row in outcome.rows if row.missing)
    return Template(template_text("tables_report.html")).substitute(
        style=template_text("page.css"),
        lead="Each row of the papers' tables, with the settings that belong to it. What could be run here was run.",
        parts=f"{done} run{'s are' if done != 1 else ' is'} done. "
        + (f"{waiting} rows at full size wait for data, weights or a device. " if waiting else "")
        + escape(TOY_WARNING),
        contents="\n".join(
            f'<a href="#{_anchor(outcome)}">{escape(outcome.heading)}</a>' for outcome in outcomes if outcome.rows
        ),
        missing=_missing(full),
        tables="\n".join(_table(outcome, clips) for outcome in outcomes),
        mark=NOT_PUBLISHED,
        not_published="\n".join(
            f"<h3>{escape(paper.title)}, arXiv {paper.arxiv}</h3>" + _list(paper.not_published)
            for paper in papers_of(outcomes)
        ),
        runs="\n".join(_run(run, row) for run, row in runs.values() if run.key in row.results),
    )


def best_and_worst(rows: Sequence[Mapping[str, Any]], count: int) -> tuple[str, list[str]]:
    """By SPIDEr, or CIDEr where there is none: the `count` best clips and the `count` worst, and by which score.

    Args:
        rows: as `captions_of` gives them.
        count: of each; a clip is never shown twice.
    """
    for name in ("spider", "cider"):
        scored = [(row["scores"][name], row["id"]) for row in rows if name in row["scores"]]
        scored = sorted((-score, clip_id) for score, clip_id in scored if math.isfinite(score))
        if scored:
            ids = [clip_id for _, clip_id in scored]
            return name, list(dict.fromkeys(ids[:count] + ids[-count:]))
    return "", []


def _anchor(outcome: TableOutcome) -> str:
    return f"{outcome.paper.system}-{outcome.table.table_id}-{outcome.track}"


def _missing(outcomes: Sequence[TableOutcome]) -> str:
    found = missing_things(outcomes)
    if not found:
        return ""
    lines = [f"{line} ({len(rows)} row{'s' if len(rows) > 1 else ''})" for line, rows in found.items()]
    return f"<details><summary>What is missing for full size, and how to get it</summary>{_list(lines)}</details>"


def _table(outcome: TableOutcome, clips: Path) -> str:
    toy = outcome.track == "tiny"
    table = outcome.table
    about = (
        f"{TOY_WARNING} {table.toy_note}"
        if toy
        else f"Source: arXiv {outcome.paper.arxiv}, {table.source}. {table.note}"
    )
    notes = outcome.notes()
    return (
        f'<h2 id="{_anchor(outcome)}">{escape(outcome.heading)}</h2><p class="note">{escape(about)}</p>'
        f'<div class="panel table scroll{" toy" if toy else ""}">{_score_table(outcome)}</div>'
        + (f"<details><summary>Notes on its rows</summary>{_list(notes)}</details>" if notes else "")
        + _provenance(outcome)
        + _curves(outcome)
        + _clips(outcome, clips)
    )


def _score_table(outcome: TableOutcome) -> str:
    heads = "".join(f'<th class="number">{escape(COLUMNS[name].label)}</th>' for name in outcome.columns)
    body = ""
    for row in outcome.rows:
        lines = outcome.lines(row)
        body += "<tbody>"
        for number, (what, cells) in enumerate(lines.items()):
            label = f'<td class="wide" rowspan="{len(lines)}">{escape(outcome.label(row))}</td>' if number == 0 else ""
            numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
            style = "ours" if what == "ours" and row.done() else "other"
            body += f'<tr class="{style}">{label}<td class="what">{what}</td>{numbers}</tr>'
        body += "</tbody>"
    return f'<table class="results"><thead><tr><th>setting</th><th></th>{heads}</tr></thead>{body}</table>'


def _provenance(outcome: TableOutcome) -> str:
    """What each row that was run was run with, folded."""
    body = ""
    for row in outcome.rows:
        if row.done():
            cells = "".join(f"<td>{escape(text)}</td>" for text in outcome.provenance(row))
            body += f"<tr><td>{escape(outcome.label(row))}</td>{cells}</tr>"
    if not body:
        return ""
    heads = "".join(f"<th>{escape(text)}</th>" for text in ("setting", *PROVENANCE))
    return (
        f"<details><summary>Clips, checkpoint, configuration, commit, hardware and time</summary>"
        f'<div class="panel table scroll"><table class="provenance"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _curves(outcome: TableOutcome) -> str:
    """Curves of the first seed of each trained row: a loss, and a score."""
    curves: dict[str, dict[str, Curve]] = {}
    for row in outcome.rows:
        if row.runs and row.runs[0].key in row.results:
            curves[outcome.label(row)] = read_columns(row.runs[0].folder / FIT_FOLDER)
    charts = []
    for names, factor in ((LOSSES, 1.0), (SCORES, 100.0)):
        # A run without transport logs its caption loss as its whole loss: each run has a name of its own.
        shown = {label: next((name for name in names if name in found), "") for label, found in curves.items()}
        if any(shown.values()):
            lines = [
                Line(
                    label,
                    f"c{number % _STYLES}",
                    [(step, factor * value) for step, value in found.get(shown[label], [])],
                )
                for number, (label, found) in enumerate(curves.items())
            ]
            told = next(text for name, text in names.items() if name in shown.values())
            charts.append(line_chart(lines, x_label="optimizer steps", y_label=told))
    if not charts:
        return ""
    trained = {label: number for number, (label, found) in enumerate(curves.items()) if found}
    key = "".join(
        f'<span class="c{number % _STYLES}"><i></i>{escape(label)}</span>' for label, number in trained.items()
    )
    panels = "".join(f'<figure class="panel">{chart}</figure>' for chart in charts)
    return f'<p class="key">{key}</p><div class="pair">{panels}</div>'


def _clips(outcome: TableOutcome, folder: Path) -> str:
    """The best and worst clips of the last row that was run, with what every row says about them."""
    done = [(row, row.runs[0]) for row in outcome.rows if row.runs and row.runs[0].key in row.results]
    if not done:
        return ""
    said = {outcome.label(row): {line["id"]: line for line in captions_of(run)} for row, run in done}
    main, run = outcome.label(done[-1][0]), done[-1][1]
    score, ids = best_and_worst(list(said[main].values()), CLIPS_OF_EACH)
    media = _media(outcome, run, ids, folder)
    articles = "".join(_clip(clip_id, said, main, score, media.get(clip_id)) for clip_id in ids)
    if not articles:
        return ""
    return (
        f"<details><summary>Best and worst clips by {COLUMNS[score].label} of “{escape(main)}”</summary>"
        f"{articles}</details>"
    )


def _media(outcome: TableOutcome, run: RowRun, ids: Sequence[str], folder: Path) -> dict[str, ClipMedia]:
    section = merged(run.configs)["data"]
    section = {
        **section,
        "init_args": {**section.get("init_args", {}), **run.settings.get("data", {}).get("init_args", {})},
    }
    if outcome.track == "tiny" and section["class_path"].endswith(".ScenesDataModule"):
        section["init_args"].pop("modalities", None)  # shown with pictures, also where only sound is heard
    try:
        return clip_media(section, ids, folder)
    except AvcapError:
        return {}  # the data were removed since; captions are shown all the same


def _clip(clip_id: str, said: Mapping[str, Mapping[str, Any]], main: str, score: str, media: ClipMedia | None) -> str:
    row = said[main][clip_id]
    pictures = "".join(
        f'<div><img src="{data_uri(picture, "image/jpeg")}" alt="picture {number + 1} of the clip"></div>'
        for number, picture in enumerate(media.pictures if media else ())
    )
    sound = (
        f'<audio controls preload="none" src="{data_uri(media.sound, "audio/mpeg")}"></audio>'
        if media and media.sound
        else ""
    )
    captions = "".join(
        f"<dt>{escape(label)}</dt><dd>{escape(rows[clip_id]['caption'])} "
        f'<span class="note">{_clip_score(rows[clip_id], score)}</span></dd>'
        for label, rows in said.items()
        if clip_id in rows
    )
    references = "".join(f"<li>{escape(text)}</li>" for text in dict.fromkeys(row["references"]))
    return (
        f'<article class="clip"><header><h3>{escape(clip_id)}</h3>'
        f'<span class="note">{COLUMNS[score].label} {_clip_score(row, score)}</span></header>'
        + (f'<div class="frames">{pictures}</div>' if pictures else "")
        + f'{sound}<dl class="said">{captions}<dt>References</dt><dd><ul>{references}</ul></dd></dl></article>'
    )


def _clip_score(row: Mapping[str, Any], name: str) -> str:
    value = row["scores"].get(name)
    return f"{100 * value:.0f}" if value is not None and math.isfinite(value) else "-"


def _run(run: RowRun, row: RowOutcome) -> str:
    commands = "\n".join(row.results[run.key]["commands"])
    settings = yaml.safe_dump(dict(run.settings), sort_keys=False)
    together = yaml.safe_dump(merged(run.configs), sort_keys=False)
    return (
        f"<details><summary>{escape(run.title)} <code>{run.key}</code></summary><pre>{escape(commands)}</pre>"
        f"<p>The row's files, laid over each other:</p><pre>{escape(together)}</pre>"
        f"<p>settings.yaml, which lies over them:</p><pre>{escape(settings)}</pre></details>"
    )


def _list(lines: Sequence[str]) -> str:
    return '<ul class="why">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
