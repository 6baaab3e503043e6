"""configs/lavcap.yaml at the paper's size, on the meta device: no weight is stored, every shape is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from avcap_zoo.systems.lavcap.module import LAVCap

CONFIG = Path(__file__).parents[4] / "configs/lavcap.yaml"
ROWS = CONFIG.parent / "tables/lavcap"
# The public configurations of the two models that the file names.
CLIP_VIT_L_14 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 768,
}
LLAMA_2_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32001,
    "tie_word_embeddings": False,
}


def build(*overlays: Path) -> LAVCap:
    settings: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["model"]["init_args"]
    settings["audio"]["checkpoint"] = None
    settings["vision"] = {"source": None, "config": CLIP_VIT_L_14}
    settings["language"] |= {"source": None, "config": LLAMA_2_7B}
    for overlay in overlays:
        for part, values in yaml.safe_load(overlay.read_text())["model"]["init_args"].items():
            settings[part] |= values
    parser = ArgumentParser()
    parser.add_class_arguments(LAVCap, "model")
    built = parser.instantiate_classes(parser.parse_object({"model": settings})).model
    assert isinstance(built, LAVCap)
    with torch.device("meta"):
        built.configure_model()
    return built


@pytest.fixture(scope="module")
def system() -> LAVCap:
    return build()


ENCODER_LORA, DECODER_LORA, PROJECTOR, LOGIT_SCALE = 294_912, 4_194_304, 3_149_824, 1
ENCODER = 85_712_527 - (2 * 768 + 768 * 527 + 527)  # CED-base without its classifier
ATTENTION = 4 * (768 * 768 + 768)
MLP = 2 * 768 * 3072 + 3072 + 768
NORM = 2 * 768
TRAINED = {
    "audio_only": ENCODER_LORA + DECODER_LORA + PROJECTOR,
    "concatenation": ENCODER_LORA + DECODER_LORA + PROJECTOR,
    "concatenation_ot": ENCODER_LORA + DECODER_LORA + PROJECTOR + LOGIT_SCALE,
    # Two layers of self-attention, cross-attention and feed-forward, each with its norm; the first norm; one query.
    "qformer": ENCODER_LORA
    + DECODER_LORA
    + PROJECTOR
    + LOGIT_SCALE
    + 2 * (2 * ATTENTION + MLP + 3 * NORM)
    + NORM
    + 768,
    "joint_encoder": ENCODER_LORA + DECODER_LORA + PROJECTOR + LOGIT_SCALE + ATTENTION + MLP + 3 * NORM,
    "cross_attention": ENCODER_LORA + DECODER_LORA + PROJECTOR + LOGIT_SCALE + ATTENTION,
    "encoder_full_decoder_frozen": ENCODER + PROJECTOR + LOGIT_SCALE,
    "encoder_lora_decoder_frozen": ENCODER_LORA + PROJECTOR + LOGIT_SCALE,
    "encoder_full_decoder_lora": ENCODER + DECODER_LORA + PROJECTOR + LOGIT_SCALE,
    "prompt_1": 7_639_041,
    "prompt_2": 7_639_041,
}
"""Trained parameters of every row of the paper's tables that has a file."""


@pytest.mark.parametrize("row", sorted(path.stem for path in ROWS.glob("*.yaml")))
def test_a_row_of_the_tables_trains_what_it_says(row: str) -> None:
    model = build(ROWS / f"{row}.yaml").model
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TRAINED[row]
    assert hasattr(model, "vision_encoder") == (row != "audio_only")


def test_trained_parameters_are_those_of_the_paper(system: LAVCap) -> None:
    trained = {name: p.numel() for name, p in system.model.named_parameters() if p.requires_grad}
    parts = {
        "audio_encoder": sum(n for name, n in trained.items() if name.startswith("audio_encoder.")),
        "language": sum(n for name, n in trained.items() if name.startswith("language.")),
        "projector": sum(n for name, n in trained.items() if name.startswith("projector.")),
        "fusion": sum(n for name, n in trained.items() if name.startswith("fusion.")),
    }
    assert parts == {"audio_encoder": 294_912, "language": 4_194_304, "projector": 3_149_824, "fusion": 1}
    assert sum(trained.values()) == 7_639_041


def test_frozen_encoder_is_ced_base_without_its_classifier(system: LAVCap) -> None:
    frozen = sum(p.numel() for p in system.model.audio_encoder.parameters() if not p.requires_grad)
    assert frozen == ENCODER


def test_shapes_follow_the_manifest(system: LAVCap) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in system.model.state_dict().items()}
    assert shapes["audio_encoder.time_pos_embed"] == (1, 768, 1, 64)
    assert shapes["audio_encoder.blocks.11.attn.v_proj.lora_B.default.weight"] == (768, 8)
    assert shapes["language.model.model.layers.31.self_attn.q_proj.lora_A.default.weight"] == (8, 4096)
    assert shapes["language.model.model.embed_tokens.weight"] == (32001, 4096)
    assert shapes["projector.weight"] == (4096, 768)
    assert system.model.language.model.dtype == torch.bfloat16
    assert system.model.projector.weight.dtype == torch.float32


def test_the_eight_released_prompts_are_there(system: LAVCap) -> None:
    assert len(set(system.prompts.training)) == 8
    assert system.prompts.evaluation in system.prompts.training
