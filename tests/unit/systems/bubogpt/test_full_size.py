"""The published sizes on the meta device: no weight is stored, every shape is real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from avcap_zoo.systems.bubogpt.keymap import CONVERSION, bubogpt_to_model
from avcap_zoo.systems.bubogpt.module import BuboGPT
from tests.house import tree
from tests.parity.test_bubogpt import official_names

VICUNA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
PROJECTION = 768 * 4096 + 4096
TRAINED = official_names("bubogpt_7b.expected_trained_keys")


def build(name: str, *overlays: str) -> BuboGPT:
    settings: dict[str, Any] = yaml.safe_load((tree.ROOT / f"configs/{name}.yaml").read_text())["model"]["init_args"]
    for overlay in overlays:
        path: Path = tree.ROOT / f"configs/tables/bubogpt/{overlay}.yaml"
        for part, values in yaml.safe_load(path.read_text())["model"]["init_args"].items():
            settings[part] = {**settings[part], **values} if isinstance(values, dict) else values
    tokenizer = str(tree.ROOT / "tests/golden/bubogpt")
    settings["language"] |= {"source": None, "config": VICUNA_7B, "tokenizer": tokenizer}
    for part, keys in {
        "audio": ("checkpoint",),
        "vision": ("checkpoint", "norm_checkpoint"),
        "vision_joiner": ("qformer_checkpoint", "projection_checkpoint"),
    }.items():
        settings[part] |= dict.fromkeys(keys)
    settings.pop("start_from", None)
    parser = ArgumentParser()
    parser.add_class_arguments(BuboGPT, "model")
    built = parser.instantiate(parser.parse_object({"model": settings})).model
    assert isinstance(built, BuboGPT)
    with torch.device("meta"):
        built.configure_model()
    return built


def num_trained(system: BuboGPT) -> int:
    return sum(p.numel() for p in system.parameters() if p.requires_grad)


def text_branch() -> int:
    """Parameters of the audio Q-Former that the released code trains and never uses, the tied ones once."""
    unused = {
        name: value
        for name, value in TRAINED.items()
        if not bubogpt_to_model({name: value}) and not re.search(r"position_ids$|cls\.predictions\.decoder\.", name)
    }
    return sum(value.numel() for value in unused.values())


def test_stage_1_trains_what_the_released_code_trains_but_its_unused_text_branch() -> None:
    system = build("bubogpt_stage1")
    assert num_trained(system) == 102_413_824
    assert num_trained(system) + text_branch() == 183_558_202


def test_stage_1_as_released_trains_the_published_number_of_parameters() -> None:
    system = build("bubogpt_stage1", "stage1_released")
    assert num_trained(system) == 183_558_202
    assert not any("text_branch" in name for name in system.checkpoint_names())


def test_stage_2_trains_both_projections() -> None:
    assert num_trained(build("bubogpt_stage2")) == 2 * PROJECTION == 6_299_648


def test_stage_1_of_pictures_trains_the_projection() -> None:
    assert num_trained(build("bubogpt_stage1", "stage1_vision")) == PROJECTION


@pytest.fixture(scope="module")
def released() -> BuboGPT:
    """The published model, where everything but the Q-Former of sound and the projections has a file."""
    system = build("bubogpt")
    system.model.self_made = ["audio_joiner.qformer", "audio_joiner.projection", "vision_joiner.projection"]
    return system


def test_the_official_checkpoint_fits(released: BuboGPT) -> None:
    held = {name.removeprefix("model.") for name in released.checkpoint_names()}
    taken, repeated = CONVERSION.take(TRAINED, released.model.state_dict(), held, "bubogpt_7b.pth")
    assert (len(taken), len(repeated)) == (259, 0)
    assert taken.keys() == held
    back = CONVERSION.give(taken)
    assert back.keys() == TRAINED.keys() - {name for name in TRAINED if not bubogpt_to_model({name: TRAINED[name]})}
    assert all(back[name].shape == TRAINED[name].shape for name in back)


def test_an_unknown_or_missing_name_is_told(released: BuboGPT) -> None:
    held = {name.removeprefix("model.") for name in released.checkpoint_names()}
    wrong: dict[str, Tensor] = {**TRAINED, "multimodal_joiner.other.weight": torch.zeros(1)}
    del wrong["multimodal_joiner.modality_post_projectors.audio.fc.bias"]
    with pytest.raises(Exception, match=r"1 missing: audio_joiner.projection.bias; 1 unknown: multimodal_joiner"):
        CONVERSION.take(wrong, released.model.state_dict(), held, "x")
