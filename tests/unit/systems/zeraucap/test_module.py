"""The LightningModule: what it asks of the data, what it refuses, what it records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from avcap_zoo.errors import ConfigError, WeightsError
from tests.integration.tiny import tiny_data, tiny_trainer
from tests.unit.systems.zeraucap.toy import AUDIO_TEXT, SAMPLE_RATE_HZ, built, toy_system


def test_it_asks_for_sound_at_the_rate_of_its_ears(tmp_path: Path) -> None:
    assert toy_system(tmp_path).requirements.sample_rate_hz == SAMPLE_RATE_HZ
    assert toy_system(tmp_path).requirements.modalities == ("audio",)
    clap = replace(AUDIO_TEXT.clap, source=None, config={"front_end": {"sampling_rate": 24_000}})
    named = toy_system(tmp_path, audio_text=replace(AUDIO_TEXT, kind="clap", clap=clap))
    assert named.requirements.sample_rate_hz == 24_000
    absent = replace(AUDIO_TEXT.clap, source=str(tmp_path / "absent"))
    with pytest.raises(WeightsError, match=r"audio_text\.clap\.source"):
        _ = toy_system(tmp_path, audio_text=replace(AUDIO_TEXT, kind="clap", clap=absent)).requirements


def test_sound_at_another_rate_is_refused(scenes_root: Path, tmp_path: Path) -> None:
    data = tiny_data(scenes_root, modalities=("audio",), sample_rate_hz=32_000)
    with pytest.raises(ConfigError, match=r"listens at 16000 Hz, data\.init_args\.sample_rate_hz is 32000"):
        tiny_trainer(tmp_path).test(toy_system(tmp_path), datamodule=data, verbose=False)


def test_fit_is_refused_before_anything_is_loaded(scenes_root: Path, tmp_path: Path) -> None:
    system = toy_system(tmp_path)
    with pytest.raises(ConfigError, match=r"^ZerAuCap is not trained: use test .* or predict"):
        tiny_trainer(tmp_path, max_steps=1).fit(system, datamodule=tiny_data(scenes_root, modalities=("audio",)))
    assert not hasattr(system, "model")


def test_predictions_hold_what_they_depend_on(scenes_root: Path, tmp_path: Path) -> None:
    system = built(toy_system(tmp_path))
    data = tiny_data(scenes_root, modalities=("audio",))
    tiny_trainer(tmp_path).predict(system, datamodule=data, return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    decode = rows[0]["decode"]
    assert decode["beta"] == 2.0
    assert decode["keywords"] == system.keywords.source
    assert decode["num_keywords"] == 2
    assert decode["crop"] == {"policy": "seeded", "seed": 4182}
    assert decode["prompts"]["grammar"] == "released"
    assert decode["audio_text"] == "wavcaps: None"
