from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.tables.missing import clips_present, missing_data, missing_weights, what_is_missing
from avcap_zoo.tables.paper_tables import PaperRow, PaperTable, read_papers
from avcap_zoo.tables.row_runs import merged

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def nothing_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A checkout without data, and an empty cache of the hub."""
    for name in ("configs", "checkpoints"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("*.pt", "*.pth", "*.ckpt"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AVCAP_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def row(system: str, table: str, row_id: str) -> tuple[PaperTable, PaperRow]:
    (found,) = [
        (one, each)
        for paper in read_papers()
        for one in paper.tables
        for each in one.rows
        if (paper.system, one.table_id, each.row_id) == (system, table, row_id)
    ]
    return found


def audiocaps(root: Path | None) -> dict[str, Any]:
    """The data section of ZerAuCap's main row, sound alone."""
    content = merged(("configs/zeraucap.yaml",))
    content["data"]["init_args"] |= {"root": None if root is None else str(root), "num_workers": 0}
    return content


def test_everything_that_is_missing_is_named_with_its_remedy() -> None:
    found = what_is_missing(*row("zeraucap", "ablation", "wavcaps_audioset_chatgpt_on"))
    assert "\n".join(found) == (
        "data audiocaps: no folder is named; give --data ROOT, which holds audiocaps/ "
        "(avcap prepare audiocaps --videos DIR --out ROOT, docs/data.md)\n"
        "weights wavcaps-htsat-bert: checkpoints/HTSAT-BERT-PT.pt does not exist (WavCaps' HTSAT-BERT; none stated for "
        "the model); fetch it from Google Drive folder linked in retrieval/README.md of github.com/XinhaoMei/WavCaps, "
        "and put it at checkpoints/HTSAT-BERT-PT.pt\n"
        "weights bert-base-uncased: bert-base-uncased is not in the hub's cache (the tokenizer of WavCaps' text "
        "encoder; Apache-2.0); hf download bert-base-uncased\n"
        "weights opt-1.3b: facebook/opt-1.3b is not in the hub's cache (OPT 1.3B; Meta's OPT-175B licence); "
        "hf download facebook/opt-1.3b\n"
        "list data/keywords/audioset_and_chatgpt.txt does not exist; the heads of the rows' configurations say what it "
        "holds"
    )


def test_a_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avcap_zoo.tables.missing._has_gpu", lambda: False)
    table, blip2 = row("vlrm", "3", "blip2")
    found = what_is_missing(table, blip2)
    assert found[-1] == "device: this row is too much for a processor; run it on a machine with a GPU"
    assert what_is_missing(replace(table, needs_accelerator=False), blip2) == found[:-1]


def test_what_a_row_does_not_use_is_not_missing() -> None:
    """Sound alone needs no CLIP, though the base configuration names one."""
    content = merged(("configs/lavcap.yaml", "configs/tables/lavcap/audio_only.yaml"))
    found = missing_weights(content, ["ced-base", "llama-2-7b-chat"])
    assert [line.split(":")[0] for line in found] == ["weights ced-base", "weights llama-2-7b-chat"]


def test_a_folder_that_does_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AVCAP_DATA", str(tmp_path / "data"))
    said = missing_data(audiocaps(None), trained=False)
    assert said.startswith(f"data audiocaps: {tmp_path / 'data/audiocaps'} does not exist (avcap prepare audiocaps")


def test_a_folder_with_three_percent_of_its_clips(tmp_path: Path, scenes_root: Path) -> None:
    root = tmp_path / "audiocaps"
    shutil.copytree(scenes_root / "audiocaps", root)
    content = audiocaps(root)
    assert missing_data(content, trained=False) == ""
    assert clips_present(content) == [str(root), 6, 6]
    table = root / "test.csv"
    first, *rows = list(csv.reader(table.open()))
    more = [[str(9000 + n), f"none{n:07d}", "0", "a clip that is gone"] for n in range(194)]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([first, *rows, *more])
    content["data"]["init_args"]["seed"] = 1  # another data module, which reads anew
    said = missing_data(content, trained=False)
    assert said.startswith(
        f"data audiocaps: audiocaps test: only 6 of 200 official clips (3%) are in {root}; the first"
    )
    assert "docs/data.md" in said


def test_a_broken_download_is_named() -> None:
    Path("checkpoints/vlrm-blip2-opt-2.7b.pt").write_bytes(b"too short")
    content = merged(("configs/vlrm.yaml", "configs/tables/vlrm/vlrm.yaml"))
    (said,) = missing_weights({"model": {"captioner": content["model"]["init_args"]["captioner"]}}, ["vlrm-partial"])
    assert said.startswith("weights vlrm-partial: checkpoints/vlrm-blip2-opt-2.7b.pt has 9 bytes")
    assert "a broken download" in said
