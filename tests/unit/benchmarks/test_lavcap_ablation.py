"""The ablation limits what captions are learnt from, not what backbones are prepared on, and parses every row."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from avcap_zoo.systems.lavcap.fusion import FusionSettings
from benchmarks.lavcap_ablation import REGIMES, ROWS, FewCaptions, overlay, table


def test_captions_are_learnt_from_the_first_clips_only(scenes_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(scenes_root, tmp_path / "scenes")
    data = FewCaptions(
        5, root=str(root), num_train=24, num_val=6, num_test=6, num_frames=2, image_size_px=16, batch_size=2
    )
    data.prepare_data()
    data.setup("fit")
    learnt = {clip_id for batch in data.train_dataloader() for clip_id in batch.clip_ids}
    prepared = [clip_id for batch in data.plain_loader("train", 8, ("visual",)) for clip_id in batch.clip_ids]
    assert learnt == set(prepared[:5])
    assert len(prepared) == 24


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("row", ROWS)
def test_every_row_names_a_kind_of_fusion(regime: str, row: str, tmp_path: Path) -> None:
    settings = overlay(regime, row, 0, 10, tmp_path)
    fusion = FusionSettings(**settings["model"]["init_args"]["fusion"])
    assert fusion.needs_vision == (settings["data"]["init_args"].get("modalities") != ["audio"])


def test_the_table_says_what_was_not_run_and_over_how_many_seeds() -> None:
    results = {("all_trained", "audio only"): [{"cider": 10.0, "events": 1.0}, {"cider": 12.0, "events": 3.0}]}
    row = table(results).splitlines()[2]
    assert row == "| audio only | 11.0 ± 1.4 (2) | 2.0 ± 1.4 (2) | not run | not run |"
