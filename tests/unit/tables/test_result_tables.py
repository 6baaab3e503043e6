from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from avcap_zoo.tables.result_tables import (
    TOY_WARNING,
    csv_text,
    markdown,
    missing_things,
    print_missing,
    print_tables,
)
from tests.unit.tables.outcomes import both_tracks


def printed(width: int, tmp_path: Path) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_tables(console, both_tracks(tmp_path))
    print_missing(console, both_tracks(tmp_path))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_has_paper_ours_and_difference(tmp_path: Path) -> None:
    lines = [line.split() for line in printed(120, tmp_path).splitlines()]
    first = next(number for number, line in enumerate(lines) if line[:3] == ["sound", "alone", "paper"])
    assert lines[first][3:] == ["24.6", "77.9", "17.4", "47.6"]
    assert lines[first + 1] == ["ours", "25.5", "±", "0.7", "79.0", "±", "1.4", "-", "-"]
    assert lines[first + 2] == ["difference", "+0.9", "+1.1", "-", "-"]
    assert ["weights", "ced-base:", "not", "|", "there", "[1", "row]"] in lines
    assert ["sound", "alone", "ours", "40.0", "50.0", "-", "250.0"] in lines


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_cuts_no_number(width: int, tmp_path: Path) -> None:
    text = printed(width, tmp_path)
    assert "25.5 ± 0.7" in text
    assert "79.0 ± 1.4" in text
    tables = text.split("Tables that")[0]
    assert all(len(line) <= width for line in tables.splitlines() if "±" in line)


def test_markdown_has_provenance_and_reasons(tmp_path: Path) -> None:
    text = markdown(both_tracks(tmp_path))
    assert (
        "|  | ours | 25.5 ± 0.7 | 79.0 ± 1.4 | - | - | 900 of 944 | trained here | "
        "configs/lavcap.yaml + configs/tables/lavcap/audio_only.yaml | 0123456789 | a processor, 2 threads | "
        "3 min 20 s for 2 seeds |" in text
    )
    assert "- sound and pictures: failed: boom <here>" in text
    assert "- sound, pictures, OT loss: weights ced-base: not | there" in text
    assert "|  | ours | not run |  |  |  |" in text
    assert "Source: arXiv 2501.09291, Table II." in text
    assert "## LAVCap: not published as text (n/p)" in text


def test_toy_numbers_and_the_papers_share_no_table(tmp_path: Path) -> None:
    full, toy = markdown(both_tracks(tmp_path)).split(
        "## LAVCap, table II: pictures and the transport loss, toy models"
    )
    assert TOY_WARNING not in full
    assert TOY_WARNING in toy
    assert "250.0" in toy
    assert "250.0" not in full
    assert "77.9" not in toy
    assert "difference" not in toy


def test_csv_has_a_line_per_setting_and_score(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(both_tracks(tmp_path)))))
    assert len(rows) == 3 * 4 + 4
    (cider,) = [row for row in rows if (row["row"], row["track"], row["score"]) == ("audio_only", "full", "cider")]
    assert [cider[key] for key in ("paper", "ours", "spread", "seeds", "difference", "clips used of official")] == [
        "77.9",
        "79.000",
        "1.414",
        "2",
        "+1.100",
        "900 of 944",
    ]
    assert {row["paper"] for row in rows if row["track"] == "tiny"} == {""}
    assert {row["why not"] for row in rows if row["row"] == "concatenation"} == {"failed: boom <here>"}


def test_a_resumed_run_took_at_least_so_long(tmp_path: Path) -> None:
    outcome = both_tracks(tmp_path)[0]
    first = outcome.rows[0]
    first.done()[0]["resumed"] = True  # type: ignore[index]
    assert outcome.provenance(first)[-1] == "at least 3 min 20 s for 2 seeds"


def test_a_missing_thing_is_said_once(tmp_path: Path) -> None:
    twice = [both_tracks(tmp_path)[0], both_tracks(tmp_path)[0]]
    assert missing_things(twice) == {"weights ced-base: not | there": ["LAVCap II: sound, pictures, OT loss"] * 2}
