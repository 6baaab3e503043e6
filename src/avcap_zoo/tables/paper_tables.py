"""What the papers print, read from `paper_numbers/*.yaml`: tables, rows, and the settings that each row is run with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from avcap_zoo.cli.usage import CommandLineError, suggestion
from avcap_zoo.errors import ConfigError

NUMBERS = Path(__file__).parent / "paper_numbers"
"""One file per paper."""

Track = Literal["full", "tiny"]
"""The papers' sizes on real data, or toy models on the embedded data."""


class Column(NamedTuple):
    """How a score is shown: its heading, the factor from what our tests write to what papers print, and digits."""

    label: str
    factor: float = 100.0
    digits: int = 1


COLUMNS = {
    "bleu_1": Column("BLEU-1"),
    "bleu_2": Column("BLEU-2"),
    "bleu_3": Column("BLEU-3"),
    "bleu_4": Column("BLEU-4"),
    "meteor": Column("METEOR"),
    "rouge_l": Column("ROUGE-L"),
    "cider": Column("CIDEr"),
    "spice": Column("SPICE"),
    "spider": Column("SPIDEr"),
    "nlg_mean": Column("mean of 9"),
    "mrr": Column("MRR"),
    "recall_1": Column("R@1"),
    "recall_5": Column("R@5"),
    "recall_10": Column("R@10"),
    "caption_words": Column("words", 1.0),
    "bad_phrases": Column("bad phrases", 1.0, 2),
    "events": Column("right events"),
    "related": Column("rightly (un)related"),
    "mos": Column("opinion", 1.0, 2),
    "mos_margin": Column("±", 1.0, 2),
}


@dataclass(frozen=True)
class PaperRow:
    """One setting of a table.

    Attributes:
        row_id: unique in its table.
        label: what the setting is.
        toy_label: the same for the toy models.
        paper: a number per column of the table; None where the paper has none.
        full: configuration files of the run at full size, later ones on top; empty = it cannot be run.
        toy: the same at toy size.
        trained: whether the run at full size begins with `fit`.
        toy_trained: the same at toy size.
        weights: ids in checkpoints/manifest.yaml that the run at full size needs.
        note: what a reader should know, or "".
    """

    row_id: str
    label: str
    toy_label: str
    paper: tuple[float | None, ...]
    full: tuple[str, ...]
    toy: tuple[str, ...]
    trained: bool
    toy_trained: bool
    weights: tuple[str, ...]
    note: str

    def configs(self, track: Track) -> tuple[str, ...]:
        """The configuration files of a track."""
        return self.full if track == "full" else self.toy

    def is_trained(self, track: Track) -> bool:
        """Whether a run of this track begins with `fit`."""
        return self.trained if track == "full" else self.toy_trained


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        table_id: unique in its paper; what `--table` takes.
        title: what it shows.
        source: where the numbers stand.
        note: what a reader should know, or "".
        test_set: data set and split, or "" where nothing was measured on clips.
        official_clips: clips of the test set that the paper counts, or None.
        columns: of the paper's numbers, keys of `COLUMNS`.
        toy_columns: shown of the toy models; empty = the table has no toy counterpart.
        toy_note: what the toy models are.
        needs_accelerator: whether a processor is too slow for full size.
        rows: in the paper's order.
    """

    table_id: str
    title: str
    source: str
    note: str
    test_set: str
    official_clips: int | None
    columns: tuple[str, ...]
    toy_columns: tuple[str, ...]
    toy_note: str
    needs_accelerator: bool
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True)
class Maker:
    """A small model that toy rows stand on, trained once: its configuration, and the name by which others call it."""

    configs: tuple[str, ...]
    makes: str


@dataclass(frozen=True)
class Paper:
    """One paper: its tables, and what of it is not published as text."""

    system: str
    title: str
    arxiv: str
    not_published: tuple[str, ...]
    makers: Mapping[str, Maker]
    tables: tuple[PaperTable, ...]


def read_papers(folder: Path = NUMBERS) -> list[Paper]:
    """Every paper of a folder, in order of file name.

    Raises:
        ConfigError: a file lacks a key, has one too many, or a row has another number of values than its table columns.
    """
    return [_paper(path, yaml.safe_load(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.yaml"))]


def choose(papers: Sequence[Paper], system: str | None, table: str | None) -> list[tuple[Paper, PaperTable]]:
    """The tables that were asked for.

    Args:
        papers: all of them.
        system: name of one; None = all.
        table: id of one, in any case; None = all.

    Raises:
        CommandLineError: there is none of this name; names those there are.
    """
    names = [paper.system for paper in papers]
    if system is not None and system.lower() not in names:
        raise CommandLineError(f"argument --system: no system {system!r}{suggestion(system, names)}")
    chosen = [paper for paper in papers if system is None or paper.system == system.lower()]
    tables = [(paper, found) for paper in chosen for found in paper.tables]
    if table is None:
        return tables
    wanted = [(paper, found) for paper, found in tables if found.table_id.lower() == table.lower()]
    if not wanted:
        known = "; ".join(f"{paper.system}: {', '.join(one.table_id for one in paper.tables)}" for paper in chosen)
        raise CommandLineError(f"argument --table: no table {table!r}, there are: {known}")
    return wanted


def _paper(path: Path, content: Any) -> Paper:
    values = _values(content, path.name, ("system", "title", "arxiv", "not_published", "makers", "tables"))
    return Paper(
        system=values["system"],
        title=values["title"],
        arxiv=values["arxiv"],
        not_published=tuple(values["not_published"]),
        makers={
            name: Maker(tuple(given["configs"]), given["makes"])
            for name, found in values["makers"].items()
            for given in [_values(found, f"{path.name}: maker {name}", ("configs", "makes"))]
        },
        tables=tuple(_table(path.name, table) for table in values["tables"]),
    )


def _table(file: str, content: Any) -> PaperTable:
    where = f"{file}: table {content.get('id') if isinstance(content, dict) else content}"
    defaults: dict[str, Any] = {
        "note": "",
        "test_set": "",
        "official_clips": None,
        "toy_columns": [],
        "toy_note": "",
        "needs_accelerator": False,
        "trained": False,
        "toy_trained": False,
        "weights": [],
    }
    values = _values(content, where, ("id", "title", "source", "columns", "rows"), defaults)
    unknown = [name for name in (*values["columns"], *values["toy_columns"]) if name not in COLUMNS]
    if unknown:
        raise ConfigError(f"{where}: no columns {', '.join(unknown)}, known: {', '.join(COLUMNS)}")
    rows = tuple(_row(where, row, values) for row in values["rows"])
    return PaperTable(
        table_id=values["id"],
        rows=rows,
        **{key: values[key] for key in ("title", "source", "note", "test_set", "official_clips", "toy_note")},
        columns=tuple(values["columns"]),
        toy_columns=tuple(values["toy_columns"]),
        needs_accelerator=values["needs_accelerator"],
    )


def _row(table: str, content: Any, of_table: Mapping[str, Any]) -> PaperRow:
    where = f"{table}, row {content.get('id') if isinstance(content, dict) else content}"
    inherited = {key: of_table[key] for key in ("trained", "toy_trained", "weights")}
    defaults = {"toy_label": None, "full": [], "toy": [], "note": "", **inherited}
    values = _values(content, where, ("id", "label", "paper"), defaults)
    if len(values["paper"]) != len(of_table["columns"]):
        raise ConfigError(f"{where}: {len(values['paper'])} numbers for {len(of_table['columns'])} columns")
    return PaperRow(
        row_id=values["id"],
        label=values["label"],
        toy_label=values["toy_label"] or values["label"],
        **{key: tuple(values[key]) for key in ("paper", "full", "toy", "weights")},
        trained=values["trained"],
        toy_trained=values["toy_trained"],
        note=values["note"],
    )


def _values(
    content: Any, where: str, wanted: Sequence[str], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The mapping with its defaults filled in; refused where keys are missing or unknown."""
    given = content if isinstance(content, dict) else {}
    lacking = [key for key in wanted if key not in given]
    unknown = [key for key in given if key not in wanted and key not in (defaults or {})]
    if lacking or unknown:
        raise ConfigError(
            f"{where}: keys missing: {', '.join(lacking) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
        )
    return {**(defaults or {}), **given}
