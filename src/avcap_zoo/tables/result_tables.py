"""Result tables as text: for the terminal, as Markdown, and as CSV.

The papers' numbers and those of toy models never share a column: each track has a table of its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from avcap_zoo.tables.paper_tables import COLUMNS, Paper, PaperTable, Track
from avcap_zoo.tables.row_results import RowOutcome, Spread
from avcap_zoo.tables.run_results import spoken_duration

if TYPE_CHECKING:
    from rich.console import Console

NOT_PUBLISHED = "n/p"
"""In place of a number that the paper does not have as text."""
TOY_WARNING = (
    "Toy models on generated clips: they show that the code of each row runs and learns. "
    "They are no reproduction, and their scores cannot be compared with the paper's."
)
_LABEL_WIDTH = 36
_SCORE_WIDTH = 15
PROVENANCE = ("clips used of official", "checkpoint", "config", "commit", "hardware", "time")


@dataclass(frozen=True)
class TableOutcome:
    """A table on one track, with what became of its rows."""

    paper: Paper
    table: PaperTable
    track: Track
    rows: tuple[RowOutcome, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Scores that it shows."""
        return self.table.columns if self.track == "full" else self.table.toy_columns

    @property
    def heading(self) -> str:
        """Paper, table and what it shows."""
        size = "" if self.track == "full" else ", toy models"
        return f"{self.paper.title}, table {self.table.table_id}: {self.table.title}{size}"

    def label(self, row: RowOutcome) -> str:
        """Name of a row on this track."""
        return row.row.label if self.track == "full" else row.row.toy_label

    def lines(self, row: RowOutcome) -> dict[str, list[str]]:
        """Cells under the scores, by what they are: paper, ours, difference; of toy models only ours."""
        ours = {name: row.spread(name) for name in self.columns}
        found: dict[str, list[str]] = {}
        if self.track == "full":
            found["paper"] = [
                _published(value, COLUMNS[name].digits) for name, value in zip(self.columns, row.row.paper, strict=True)
            ]
        if any(ours.values()):
            found["ours"] = [_spread(ours[name], COLUMNS[name].digits) for name in self.columns]
            if self.track == "full":
                found["difference"] = [
                    _difference(ours[name], value, COLUMNS[name].digits)
                    for name, value in zip(self.columns, row.row.paper, strict=True)
                ]
        elif row.row.configs(self.track):
            found["ours"] = ["not run", *[""] * (len(self.columns) - 1)]
        return found

    def notes(self) -> list[str]:
        """One line per row of which something is to be said; rows of which the same is said share it."""
        said: dict[str, list[str]] = {}
        for row in self.rows:
            if reasons := self.why_not(row):
                said.setdefault("; ".join(reasons), []).append(self.label(row))
        return [f"{' / '.join(labels)}: {text}" for text, labels in said.items()]

    def provenance(self, row: RowOutcome) -> list[str]:
        """Cells under `PROVENANCE`; empty where nothing was run."""
        results = row.done()
        if not results:
            return [""] * len(PROVENANCE)
        used = sorted({result["clips_scored"] for result in results})
        official = self.table.official_clips if self.track == "full" else results[0]["clips_official"]
        seconds = sum(result["seconds"] for result in results)
        more = "at least " if any(result["resumed"] for result in results) else ""
        commits = sorted({(result["commit"] or "no commit")[:10] + _dirty(result["commit"]) for result in results})
        return [
            f"{' or '.join(map(str, used))} of {official}",
            results[0]["checkpoint"],
            " + ".join(row.row.configs(self.track)),
            ", ".join(commits),
            ", ".join(sorted({result["hardware"] for result in results})),
            f"{more}{spoken_duration(seconds)}" + (f" for {len(results)} seeds" if len(results) > 1 else ""),
        ]

    def why_not(self, row: RowOutcome) -> list[str]:
        """Why a row has no numbers of ours, or not all of them, and what else is to be said of it."""
        reasons = [f"failed: {text}" for text in row.failures.values()]
        reasons += row.missing
        reasons += {f"{name}: {text}" for result in row.done() for name, text in result["missing_scores"].items()}
        return [*reasons, row.row.note] if row.row.note else reasons


def print_tables(console: Console, outcomes: Sequence[TableOutcome]) -> None:
    """Print the scores; provenance is in the files."""
    from rich import box
    from rich.table import Table

    for outcome in outcomes:
        console.print(f"\n{outcome.heading}", style="bold", highlight=False)
        labels = max(len(outcome.label(row)) for row in outcome.rows)
        fitting = max(1, (console.width - min(labels, _LABEL_WIDTH) - len("difference") - 4) // _SCORE_WIDTH)
        for first in range(0, len(outcome.columns), fitting):
            shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            shown.add_column("setting", no_wrap=True, max_width=_LABEL_WIDTH)
            shown.add_column("", no_wrap=True)
            for name in outcome.columns[first : first + fitting]:
                shown.add_column(COLUMNS[name].label, justify="right", no_wrap=True)
            for row in outcome.rows:
                for number, (what, cells) in enumerate(outcome.lines(row).items()):
                    label = outcome.label(row) if number == 0 else ""
                    shown.add_row(label, what, *cells[first : first + fitting])
            console.print(shown)
    for paper in papers_of(outcomes):
        console.print(f"{paper.title} (arXiv {paper.arxiv}), not published as text ({NOT_PUBLISHED}):", highlight=False)
        for text in paper.not_published:
            console.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


def papers_of(outcomes: Sequence[TableOutcome]) -> list[Paper]:
    """The papers of some tables, each once."""
    return list({outcome.paper.system: outcome.paper for outcome in outcomes}.values())


def print_missing(console: Console, outcomes: Sequence[TableOutcome]) -> None:
    """Say once for each missing thing what it is, how to get it, and how many rows wait for it."""
    for line, rows in missing_things(outcomes).items():
        count = f"{len(rows)} row{'s' if len(rows) > 1 else ''}"
        console.print(f"  {line}  [{count}]", markup=False, highlight=False, soft_wrap=True)


def missing_things(outcomes: Sequence[TableOutcome]) -> dict[str, list[str]]:
    """Each missing thing, and the rows that wait for it."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        for row in outcome.rows:
            for line in row.missing:
                found.setdefault(line, []).append(f"{outcome.paper.title} {outcome.table.table_id}: {row.row.label}")
    return found


def markdown(outcomes: Sequence[TableOutcome]) -> str:
    """All tables with provenance, and below each what is not published or not run, and why."""
    parts = ["# Tables\n"]
    for outcome in outcomes:
        parts.append(f"## {outcome.heading}\n")
        if outcome.track == "tiny":
            parts.append(f"{TOY_WARNING} {outcome.table.toy_note}\n")
        else:
            parts.append(f"Source: arXiv {outcome.paper.arxiv}, {outcome.table.source}. {outcome.table.note}\n")
        heads = ["setting", "", *(COLUMNS[name].label for name in outcome.columns), *PROVENANCE]
        parts += [_md_row(heads), _md_row(["---"] * len(heads))]
        for row in outcome.rows:
            for number, (what, cells) in enumerate(outcome.lines(row).items()):
                tail = outcome.provenance(row) if what == "ours" else [""] * len(PROVENANCE)
                parts.append(_md_row([outcome.label(row) if number == 0 else "", what, *cells, *tail]))
        parts.append("")
        parts += [f"- {text}" for text in outcome.notes()]
        parts.append("")
    for paper in papers_of(outcomes):
        parts += [
            f"## {paper.title}: not published as text ({NOT_PUBLISHED})\n",
            *(f"- {text}" for text in paper.not_published),
            "",
        ]
    return "\n".join(parts)


def csv_text(outcomes: Sequence[TableOutcome]) -> str:
    """One line per setting and score."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    heads = ("system", "table", "row", "track", "score", "paper", "ours", "spread", "seeds", "difference")
    writer.writerow([*heads, *PROVENANCE, "why not"])
    for outcome in outcomes:
        for row in outcome.rows:
            published = row.row.paper if outcome.track == "full" else (None,) * len(outcome.columns)
            for name, paper in zip(outcome.columns, published, strict=True):
                ours = row.spread(name)
                numbers: list[Any] = ["" if paper is None else paper]
                numbers += ["", "", ""] if ours is None else [f"{ours.mean:.3f}", _plain(ours.deviation), ours.seeds]
                numbers.append("" if ours is None or paper is None else f"{ours.mean - paper:+.3f}")
                place = (outcome.paper.system, outcome.table.table_id, row.row.row_id, outcome.track, name)
                writer.writerow([*place, *numbers, *outcome.provenance(row), "; ".join(outcome.why_not(row))])
    return buffer.getvalue()


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _published(value: float | None, digits: int) -> str:
    if value is None:
        return NOT_PUBLISHED
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def _spread(value: Spread | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value.mean:.{digits}f}" + ("" if value.deviation is None else f" ± {value.deviation:.{digits}f}")


def _difference(ours: Spread | None, paper: float | None, digits: int) -> str:
    return "-" if ours is None or paper is None else f"{ours.mean - paper:+.{digits}f}"


def _dirty(commit: str | None) -> str:
    return "-dirty" if commit is not None and commit.endswith("-dirty") else ""


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
