"""The preparation of self-made parts: what it asks of its data, and what the language model is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from avcap_zoo.batch import Dialogue
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.bubogpt.preparation import PrepareBackbones, sound_task, told_row
from tests.integration.tiny import tiny_lavcap
from tests.integration.tiny_bubogpt import tiny_bubogpt


def test_a_dialogue_is_told_in_words_where_picture_and_sound_would_stand() -> None:
    system = tiny_bubogpt()
    system.configure_model()
    torch.manual_seed(0)
    told = Dialogue("Are they related?", "They seem related.", {"visual": ["dog", "car"], "audio": ["barking"]})
    row = told_row(system.model, told)
    text = system.model.language.tokenizer.decode(row.slices[0]).replace(" ", "")
    assert row.modalities == []
    assert text.startswith("###human:<audio>barking")
    assert text.endswith("</vision>aretheyrelated?###assistant:")
    between = text.split("<vision>")[1].split("</vision>")[0]
    assert between.replace("dog", "").replace("car", "") == ""
    assert {between.count("dog"), between.count("car")} <= {1, 2, 3}
    assert "barking" not in system.model.language.tokenizer.decode(row.answer or [])


def test_it_wants_clips_with_labels_and_dialogues(scenes_root: Path) -> None:
    system = tiny_bubogpt()
    system.configure_model()
    data = ScenesDataModule(str(scenes_root), num_train=4, num_val=1, num_test=1)
    with pytest.raises(ConfigError, match="needs labelled clips and dialogues about them, ScenesDataModule has none"):
        sound_task(system.model, data, 2, torch.device("cpu"))


def test_it_is_for_one_system(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="PrepareBackbones prepares BuboGPT, found LAVCap"):
        PrepareBackbones(cache_dir=str(tmp_path)).on_fit_start(Trainer(logger=False, accelerator="cpu"), tiny_lavcap())
