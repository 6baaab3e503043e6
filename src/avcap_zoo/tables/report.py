"""The demo's report: one HTML file with everything inside, which opens from disk and never asks a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from avcap_zoo.tables.clip_views import ClipView
from avcap_zoo.tables.page import template_text
from avcap_zoo.tables.pictures import Lane, Line, data_uri, line_chart, matrix_picture, photo_uri
from avcap_zoo.tables.run_results import (
    Annotations,
    ClipResult,
    RunResult,
    clip_count,
    margin,
    shares_by_relation,
    spoken_duration,
)

SHOWN_SCORES = {"cider": "CIDEr", "meteor": "METEOR", "rouge_l": "ROUGE-L", "bleu_4": "BLEU-4"}
"""Scores of the tables, where a run has them, and how they are written."""

KINDS = {"single": "one event", "then": "one event after another", "while": "two events at once"}
"""How the page names the relations of the scenes."""

_FRAMES_SHOWN = 8


@dataclass(frozen=True)
class DemoRecord:
    """Everything that the report tells.

    Attributes:
        audio_visual: the model with pictures.
        audio_only: the same without.
        annotations: of the test clips.
        views: clips to show in full, in order.
        commands: what was run.
        settings: further files to show, by name.
        duration_s: from the start of the demo to the last caption.
        reused: what an earlier demo had left and this one took, in words; empty when it began with nothing.
    """

    audio_visual: RunResult
    audio_only: RunResult
    annotations: Annotations
    views: Sequence[ClipView]
    commands: Sequence[str]
    settings: Mapping[str, str]
    duration_s: float
    reused: str = ""


def write_report(path: Path, record: DemoRecord) -> None:
    """Write the page.

    Args:
        path: the HTML file; its folder is made.
        record: what it tells.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_html(record), encoding="utf-8")


def report_html(record: DemoRecord) -> str:
    """The page as text."""
    template = template_text("demo_report.html")
    first, second = record.audio_visual, record.audio_only
    count = len(first.clips)
    duration = spoken_duration(record.duration_s)
    return Template(template).substitute(
        style=template_text("page.css"),
        num_clips=str(count),
        num_train=f"{clip_count(first.config, 'train'):,}",
        duration=duration,
        tiles=_tiles(first, second, duration),
        margin=f"{100 * max(margin(run.events_share, count) for run in (first, second)):.0f}",
        reused=escape(record.reused),
        first_name=escape(first.title),
        second_name=escape(second.title),
        loss_chart=_chart("Caption loss, training batches", [r.loss for r in (first, second)], record),
        cider_chart=_chart("CIDEr × 100, validation clips", [r.cider for r in (first, second)], record, from_zero=True),
        views="\n".join(_view(view, record) for view in record.views),
        scores=_score_table(first, second),
        kinds=_kind_table(record),
        rows="\n".join(_row(one, two, record) for one, two in zip(first.clips, second.clips, strict=True)),
        verdict=_verdict(first, second),
        commands=escape("\n".join(record.commands)),
        versions=escape(", ".join(f"{name} {number}" for name, number in first.versions.items())),
        configs="\n".join(
            f"<details><summary><code>{escape(name)}</code></summary><pre>{escape(text)}</pre></details>"
            for name, text in record.settings.items()
        ),
    )


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f} %"


def _tiles(first: RunResult, second: RunResult, duration: str) -> str:
    tiles = [
        ("first", percent(first.events_share), "of the clips with exactly the right events, from sound and pictures"),
        ("second", percent(second.events_share), "with exactly the right events, from sound alone"),
        ("first", _score(first, "cider"), f"CIDEr × 100; {_score(second, 'cider')} from sound alone"),
        ("", escape(duration), "for scenes, training of both models and all captions"),
    ]
    return "\n".join(
        f'<div class="tile"><b class="{style}">{value}</b><p>{text}</p></div>' for style, value, text in tiles
    )


def _chart(
    y_label: str, curves: Sequence[Sequence[tuple[int, float]]], record: DemoRecord, *, from_zero: bool = False
) -> str:
    lines = [
        Line(run.title, style, points)
        for run, style, points in zip(
            (record.audio_visual, record.audio_only), ("first", "second"), curves, strict=True
        )
    ]
    return line_chart(lines, x_label="optimizer steps", y_label=y_label, from_zero=from_zero)


def _view(view: ClipView, record: DemoRecord) -> str:
    truth = record.annotations[view.clip_id]
    one, two = (
        next(clip for clip in run.clips if clip.clip_id == view.clip_id)
        for run in (record.audio_visual, record.audio_only)
    )
    shown = sorted({int((index + 0.5) * len(view.frames) / _FRAMES_SHOWN) for index in range(_FRAMES_SHOWN)})
    frames = "".join(
        f'<div><img src="{photo_uri(view.frames[index])}" alt="frame at {view.frame_times_s[index]:.1f} s">'
        f"<span>{view.frame_times_s[index]:.1f} s</span></div>"
        for index in shown
    )
    heard = [Lane(event["label"], event["onset_s"], event["offset_s"]) for event in truth["events"]]
    seen = [
        Lane(
            f"{thing['label']} (silent)" if thing["silent"] else thing["label"],
            thing["onset_s"],
            thing["offset_s"],
            faint=thing["silent"],
        )
        for thing in truth["objects"]
    ]
    spectrogram = matrix_picture(
        view.spectrogram[::-1],
        told="log-mel spectrogram of the clip",
        x_end_s=view.duration_s,
        x_label="seconds",
        y_label="mel bands, low to high",
        below=heard,
    )
    figures = [_figure(spectrogram, "What it hears: the log-mel spectrogram. Below it, the true events.")]
    if view.plan is not None:
        plan = matrix_picture(
            view.plan,
            told="optimal-transport plan between frames and audio tokens",
            x_end_s=view.plan_end_s,
            x_label="sound at, s",
            y_label="picture at, s",
            y_end_s=view.duration_s,
            below=heard,
            beside=seen,
        )
        brightest = float(view.plan.max()) * view.plan.size
        figures.append(
            _figure(
                plan,
                f"What it matches: the transport plan between {view.plan.shape[0]} frames and {view.plan.shape[1]} "
                f"audio tokens. The brightest cell holds {brightest:.1f} times an even share.",
            )
        )
    return (
        f'<article class="clip"><header><h3>{escape(KINDS[truth["relation"]].capitalize())}</h3>'
        f'<span class="note">clip {escape(view.clip_id)}, {view.duration_s:g} s</span></header>'
        f'<div class="frames">{frames}</div>'
        f'<audio controls preload="none" src="{data_uri(view.wav, "audio/wav")}"></audio>'
        f'<dl class="said"><dt>{escape(record.audio_visual.title)}</dt>'
        f'<dd><span class="first">{escape(one.caption)}</span> {_mark(one)}</dd>'
        f"<dt>{escape(record.audio_only.title)}</dt>"
        f'<dd><span class="second">{escape(two.caption)}</span> {_mark(two)}</dd>'
        f"<dt>References</dt><dd>{_references(one)}</dd></dl>"
        f'<div class="pair">{"".join(figures)}</div></article>'
    )


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _mark(clip: ClipResult) -> str:
    if clip.all_right:
        return '<span class="mark good">✓ events and adverbs</span>'
    if clip.events_right:
        return '<span class="mark good">✓ events</span>'
    return '<span class="mark bad">✗ events</span>'


def _folded_references(clip: ClipResult) -> str:
    first, *others = dict.fromkeys(clip.references)
    if not others:
        return escape(first)
    items = "".join(f"<li>{escape(reference)}</li>" for reference in others)
    return f"{escape(first)}<details><summary>{len(others)} more</summary><ul>{items}</ul></details>"


def _references(clip: ClipResult) -> str:
    items = "".join(f"<li>{escape(reference)}</li>" for reference in dict.fromkeys(clip.references))
    return f"<ul>{items}</ul>"


def _score(run: RunResult, name: str) -> str:
    return f"{100 * run.scores[name]:.1f}" if name in run.scores else "–"


def _score_table(first: RunResult, second: RunResult) -> str:
    names = [name for name in SHOWN_SCORES if name in first.scores or name in second.scores]
    heads = ["Right events", "and right adverbs", *(SHOWN_SCORES[name] for name in names), "Clips"]
    rows = [
        [
            f"{100 * run.events_share:.1f} %",
            f"{100 * run.all_share:.1f} %",
            *(_score(run, name) for name in names),
            str(len(run.clips)),
        ]
        for run in (first, second)
    ]
    return _table("Model", heads, {run.title: row for run, row in zip((first, second), rows, strict=True)})


def _kind_table(record: DemoRecord) -> str:
    one, two = (shares_by_relation(run, record.annotations) for run in (record.audio_visual, record.audio_only))
    heads = ["Clips", record.audio_visual.title, record.audio_only.title]
    rows = {
        KINDS[kind].capitalize(): [str(count), f"{100 * share:.1f} %", f"{100 * two[kind][1]:.1f} %"]
        for kind, (count, share) in one.items()
    }
    return _table("Right events by kind of scene", heads, rows)


def _table(corner: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    head = "".join(f'<th class="number">{escape(text)}</th>' for text in heads)
    body = ""
    for name, cells in rows.items():
        numbers = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
        body += f"<tr><td>{escape(name)}</td>{numbers}</tr>"
    return f"<table><thead><tr><th>{escape(corner)}</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(one: ClipResult, two: ClipResult, record: DemoRecord) -> str:
    state = {(True, True): "both", (True, False): "first", (False, True): "second", (False, False): "none"}
    said = "".join(
        f'<td data-of="{escape(run.title, quote=True)}">{escape(clip.caption)}<br>{_mark(clip)}</td>'
        for run, clip in ((record.audio_visual, one), (record.audio_only, two))
    )
    return (
        f'<tr data-right="{state[one.events_right, two.events_right]}"><td><code>{escape(one.clip_id)}</code></td>'
        f'{said}<td data-of="References">{_folded_references(one)}</td></tr>'
    )


def _verdict(first: RunResult, second: RunResult) -> str:
    count = len(first.clips)
    gain = first.events_share - second.events_share
    if gain > margin(first.events_share, count) + margin(second.events_share, count):
        return f"Here the pictures bring {100 * gain:.0f} points of right events, more than chance explains."
    return "In this run the difference between the two models is too small to tell from chance."
