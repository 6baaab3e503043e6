from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from avcap_zoo.errors import ConfigError
from avcap_zoo.tables.missing import clips_present, manifest_entry, missing_data, missing_weights, what_is_missing
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
        "weights wavcaps-htsat-bert: checkpoints/HTSAT-BERT-PT.pt does not exist; from Google Drive folder linked in "
        "retrieval/README.md of github.com/XinhaoMei/WavCaps (checkpoints/README.md)\n"
        "weights bert-base-uncased: bert-base-uncased is not in the hub's cache; hf download bert-base-uncased\n"
        "weights opt-1.3b: facebook/opt-1.3b is not in the hub's cache; hf download facebook/opt-1.3b\n"
        "file data/keywords/audioset_and_chatgpt.txt: does not exist; the heads of the rows' configurations say what "
        "it holds"
    )


def test_an_extra_and_a_device_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("avcap_zoo.tables.missing.MODULE_OF_EXTRA", {"clip": "no_such_module"})
    monkeypatch.setattr("avcap_zoo.tables.missing._has_accelerator", lambda: False)
    table, blip2 = row("vlrm", "3", "blip2")
    found = what_is_missing(table, blip2)
    assert "extra clip: pip install 'avcap-zoo[clip]'" in found
    assert found[-1] == "device: this row is too much for a processor; run it on a machine with a GPU or HPU"
    assert len(what_is_missing(replace(table, extra="", needs_accelerator=False), blip2)) == len(found) - 2


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


def test_weights_in_the_hubs_cache_are_there(tmp_path: Path) -> None:
    assert "hf download facebook/opt-1.3b" in missing_weights("opt-1.3b")
    snapshot = tmp_path / "hub/models--facebook--opt-1.3b/snapshots/abc"
    snapshot.mkdir(parents=True)
    assert "hf download" in missing_weights("opt-1.3b")
    (snapshot / "config.json").touch()
    assert missing_weights("opt-1.3b") == ""


def test_a_broken_download_is_named() -> None:
    path = Path("checkpoints/vlrm-blip2-opt-2.7b.pt")
    path.write_bytes(b"too short")
    said = missing_weights("vlrm-partial")
    assert said.startswith("weights vlrm-partial: checkpoints/vlrm-blip2-opt-2.7b.pt has 9 bytes")
    assert "a broken download" in said
    listing = Path("checkpoints/manifest.yaml")
    content = yaml.safe_load(listing.read_text())
    next(entry for entry in content["weights"] if entry["id"] == "vlrm-partial")["size_bytes"] = 9
    listing.write_text(yaml.safe_dump(content))
    assert missing_weights("vlrm-partial") == ""


def test_names_that_the_manifest_lacks() -> None:
    with pytest.raises(ConfigError, match="lists no weights 'gpt-9'"):
        manifest_entry("gpt-9")
    Path("checkpoints/manifest.yaml").unlink()
    with pytest.raises(ConfigError, match="run avcap reproduce in a checkout"):
        manifest_entry("opt-1.3b")
