"""`avcap reproduce` on a private table of one row: killed in the middle, resumed, and shown again from what is kept."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
TABLE = """
system: lavcap
title: LAVCap
arxiv: "2501.09291"
not_published: ["nothing else"]
makers: {{}}
tables:
  - id: II
    title: two steps
    source: Table II
    official_clips: 944
    columns: [cider]
    toy_columns: [events, cider]
    toy_trained: true
    trained: true
    weights: [ced-base]
    rows:
      - id: audio_only
        label: sound alone
        paper: [77.9]
        full: [configs/lavcap.yaml, configs/tables/lavcap/audio_only.yaml]
        toy:
          - configs/tiny/lavcap.yaml
          - configs/tiny/audio_only.yaml
          - configs/tiny/smoke.yaml
      - id: broken
        label: unreadable checkpoint
        paper: [null]
        toy: [configs/tiny/lavcap.yaml, configs/tiny/smoke.yaml, {broken}]
"""
BROKEN = "model: {init_args: {audio: {checkpoint: %s}}}\n"
SCRIPT = """
import sys
from pathlib import Path
from avcap_zoo.cli.reproduce import parse_options, reproduce
from avcap_zoo.tables.paper_tables import read_papers
sys.exit(reproduce(parse_options(sys.argv[2:]), read_papers(Path(sys.argv[1]))))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The command line of `avcap reproduce` with a private table in place of the papers'."""
    papers = tmp_path / "papers"
    papers.mkdir()
    (tmp_path / "weights.pt").write_bytes(b"no weights at all")
    (tmp_path / "broken.yaml").write_text(BROKEN % (tmp_path / "weights.pt"))
    (papers / "lavcap.yaml").write_text(TABLE.format(broken=tmp_path / "broken.yaml"))
    (tmp_path / "run.py").write_text(SCRIPT)
    return [sys.executable, str(tmp_path / "run.py"), str(papers), "--out", str(tmp_path / "out"), "--seeds", "1"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """No data, and a cache of prepared backbones of its own."""
    kept = {name: value for name, value in os.environ.items() if name != "AVCAP_DATA"}
    return {**kept, "HOME": str(tmp_path / "home")}


def go_on(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def runs_below(out: Path) -> list[str]:
    """Open files of the processes that still write into a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            file = str(path.readlink())
        except OSError:
            continue
        if file.startswith(str(out / "rows")):
            found.append(f"{path}: {file}")
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_resumed_and_kept(command: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL) as first:
        try:
            deadline = time.monotonic() + 600
            while not list(out.glob("rows/*/fit.done")):
                assert first.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            first.send_signal(signal.SIGKILL)
    (done,) = out.glob("rows/*/fit.done")
    folder = done.parent
    assert not (folder / "result.json").exists()
    deadline = time.monotonic() + 30
    while runs_below(out):
        assert time.monotonic() < deadline, "a run outlived the process that started it"
        time.sleep(0.1)
    trained = (folder / "fit/checkpoints/last.ckpt").stat().st_mtime_ns

    second = go_on(command, environment)
    assert second.returncode == 1, second.stdout + second.stderr  # for the row with the unreadable checkpoint
    assert (folder / "fit/checkpoints/last.ckpt").stat().st_mtime_ns == trained
    result = json.loads((folder / "result.json").read_text())
    assert [line.split()[1] for line in result["commands"]] == ["fit", "test"]
    assert result["clips_scored"] == 4
    assert 0 <= result["scores"]["events"] <= 1
    assert "data audiocaps: no folder is named" in second.stdout
    assert "weights.pt" in second.stdout
    rows = list(csv.DictReader((out / "tables.csv").open()))
    assert {row["paper"] for row in rows if row["track"] == "full"} == {"77.9", ""}
    (cider,) = [row for row in rows if (row["row"], row["track"], row["score"]) == ("audio_only", "tiny", "cider")]
    assert float(cider["ours"]) == pytest.approx(100 * result["scores"]["cider"], abs=1e-3)
    assert cider["clips used of official"] == "4 of 4"
    (why,) = {row["why not"] for row in rows if row["row"] == "broken" and row["track"] == "tiny"}
    assert why.startswith("failed: ")
    assert (out / "report.html").read_text(encoding="utf-8").count("<audio") == 4

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    (tmp_path / "papers/lavcap.yaml").write_text(
        TABLE.split("      - id: broken")[0].format()  # what failed would be tried again
    )
    third = go_on(command, environment)
    assert third.returncode == 0, third.stdout + third.stderr
    assert "1 runs, 1 of them done before." in third.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
