from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from avcap_zoo.cli.main import avcap
from avcap_zoo.cli.reproduce import _with_needs, parse_options, places
from tests.unit.cli.running import call
from tests.unit.tables.outcomes import run

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sistem lavcap", "no option --sistem; did you mean --system?"),
        ("--seeds 0", "argument --seeds: found 0, wanted at least 1"),
        ("--data /no/such/folder", "argument --data: /no/such/folder is no folder; docs/data.md shows what it holds"),
        ("--system lavcup", "argument --system: no system 'lavcup'; did you mean lavcap?"),
        ("--table 99 --system vlrm", "argument --table: no table '99', there are: vlrm: 3"),
    ],
)
def test_wrong_options_are_refused_in_one_line(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["reproduce", *words.split()])
    assert (outcome.code, outcome.out, outcome.err) == (2, "", f"avcap reproduce: {said}\n")


def test_a_folder_without_configurations_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call(capsys, avcap, ["reproduce"])
    assert outcome.code == 1
    assert "run avcap reproduce in a checkout of avcap-zoo" in outcome.err


def test_two_at_once_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with FileLock(tmp_path / ".lock"):
        outcome = call(capsys, avcap, ["reproduce", "--out", str(tmp_path), "--table", "VII"])
    assert outcome.code == 1
    assert f"another avcap reproduce is at work in {tmp_path}" in outcome.err


def test_a_table_without_rows_to_run_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    outcome = call(capsys, avcap, ["reproduce", "--out", str(tmp_path), "--table", "VII"])
    assert (outcome.code, outcome.err) == (0, "")
    assert "audio-visual" in outcome.out
    assert "4.08" in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == [
        "report.html",
        "tables.csv",
        "tables.md",
    ]


def test_data_becomes_the_folder_of_the_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVCAP_DATA", "before")
    options = parse_options(["--data", str(tmp_path), "--track", "full", "--seeds", "4"])
    assert os.environ["AVCAP_DATA"] == str(tmp_path)
    assert (options.track, options.seeds, options.out) == ("full", 4, Path("runs/reproduce"))


def test_small_models_come_before_all_rows(tmp_path: Path) -> None:
    import dataclasses

    base, middle, alone, top = (run(tmp_path, key) for key in "bmat")
    middle = dataclasses.replace(middle, needs=(base,))
    top = dataclasses.replace(top, needs=(middle, base))
    assert [one.key for one in _with_needs([alone, top, alone])] == ["b", "m", "a", "t"]


def test_toy_models_have_one_thread_and_no_more_places_than_cores() -> None:
    found = places("tiny")
    assert 1 <= len(found) <= (os.cpu_count() or 1)
    assert all(one == {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} for one in found)


def test_help_answers_without_torch() -> None:
    script = (
        "import sys\nfrom avcap_zoo.cli.main import avcap\n"
        "try:\n    avcap(['reproduce', '--help'])\nexcept SystemExit as stop:\n"
        "    sys.exit(99 if {'torch', 'numpy'} & set(sys.modules) else stop.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--track {full,tiny}" in done.stdout
