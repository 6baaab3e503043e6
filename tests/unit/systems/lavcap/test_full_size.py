"""configs/lavcap.yaml at the paper's size, on the meta device: no weight is stored, every shape is real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from avcap_zoo.backbones.audio.ced import CEDSettings
from avcap_zoo.systems.lavcap.keymap import CONVERSION, ced_to_encoder, lavcap_to_model
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


def official_manifest() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released LAVCap model at its default size, without what our keymap drops."""
    width, hidden = 768, 4096
    encoder: dict[str, tuple[int, ...]] = {
        "time_pos_embed": (1, width, 1, 64),
        "freq_pos_embed": (1, width, 4, 1),
        **{f"init_bn.1.{name}": (64,) for name in ("weight", "bias", "running_mean", "running_var")},
        "init_bn.1.num_batches_tracked": (),
        "patch_embed.proj.weight": (width, 1, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(12):
        block = f"blocks.{i}."
        encoder |= {f"{block}norm{n}.{part}": (width,) for n in (1, 2) for part in ("weight", "bias")}
        for linear in ("q_proj.base_layer", "v_proj.base_layer", "k_proj", "proj"):
            encoder |= {f"{block}attn.{linear}.weight": (width, width), f"{block}attn.{linear}.bias": (width,)}
        for linear in ("q_proj", "v_proj"):
            encoder |= {
                f"{block}attn.{linear}.lora_A.default.weight": (8, width),
                f"{block}attn.{linear}.lora_B.default.weight": (width, 8),
            }
        encoder |= {f"{block}mlp.fc1.weight": (4 * width, width), f"{block}mlp.fc1.bias": (4 * width,)}
        encoder |= {f"{block}mlp.fc2.weight": (width, 4 * width), f"{block}mlp.fc2.bias": (width,)}
    decoder: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (32001, hidden),
        "lm_head.weight": (32001, hidden),
        "model.norm.weight": (hidden,),
    }
    for j in range(32):
        layer = f"model.layers.{j}."
        for linear in ("q_proj", "v_proj"):
            decoder |= {
                f"{layer}self_attn.{linear}.base_layer.weight": (hidden, hidden),
                f"{layer}self_attn.{linear}.lora_A.default.weight": (8, hidden),
                f"{layer}self_attn.{linear}.lora_B.default.weight": (hidden, 8),
            }
        decoder |= {f"{layer}self_attn.{linear}.weight": (hidden, hidden) for linear in ("k_proj", "o_proj")}
        decoder |= {f"{layer}mlp.{linear}.weight": (11008, hidden) for linear in ("gate_proj", "up_proj")}
        decoder[f"{layer}mlp.down_proj.weight"] = (hidden, 11008)
        decoder |= {f"{layer}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
    return {
        "logit_scale": (),
        "speech_llama_proj.weight": (hidden, width),
        "speech_llama_proj.bias": (hidden,),
        **{f"audio_encoder.base_model.model.{name}": shape for name, shape in encoder.items()},
        **{f"llama_decoder.base_model.model.{name}": shape for name, shape in decoder.items()},
    }


def test_official_names_and_shapes_follow_the_manifest(system: LAVCap) -> None:
    state = system.model.state_dict()
    official = CONVERSION.give(state)
    assert {name: tuple(tensor.shape) for name, tensor in official.items()} == official_manifest()
    again = CONVERSION.to_ours(official)
    assert all(tensor is state[name] for name, tensor in again.items())
    assert {name.split(".")[0] for name in state.keys() - again.keys()} == {"vision_encoder"}


def test_a_trained_file_of_the_released_code_has_every_name_that_ours_holds(system: LAVCap) -> None:
    state = system.model.state_dict()
    trained = {name for name, parameter in system.model.named_parameters() if parameter.requires_grad}
    held = trained | {
        f"audio_encoder.init_bn.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert held <= {name.removeprefix("model.") for name in system.checkpoint_names()}
    official = CONVERSION.give({name: state[name] for name in held})
    assert len(official) == 3 + 12 * 4 + 3 + 32 * 4
    assert official.keys() <= official_manifest().keys()


def test_names_of_a_qformer_and_of_cross_attention_come_back() -> None:
    official = {
        name: torch.zeros(1)
        for name in (
            "speech_query_tokens",
            "speech_Qformer.bert.embeddings.LayerNorm.weight",
            "speech_Qformer.bert.encoder.layer.0.attention.self.query.weight",
            "speech_Qformer.bert.encoder.layer.1.crossattention.self.key.bias",
            "speech_Qformer.bert.encoder.layer.1.attention.output.LayerNorm.bias",
            "speech_Qformer.bert.encoder.layer.0.intermediate_query.dense.weight",
            "cross_attn.in_proj_weight",
            "ln_aud.weight",
        )
    }
    ours = lavcap_to_model(official)
    assert all(name.startswith("fusion.") for name in ours)
    assert CONVERSION.give(ours).keys() == official.keys()


def test_dtypes(system: LAVCap) -> None:
    assert system.model.language.model.dtype == torch.bfloat16
    assert system.model.projector.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        "audio_encoder.base_model.model.output_layer.0.weight",
        "audio_encoder.output_layer.1.bias",
        "outputlayer.1.weight",
        "front_end.0.mel_scale.fb",
        "front_end.0.spectrogram.window",
        "llama_decoder.base_model.model.model.layers.31.self_attn.rotary_emb.inv_freq",
        "speech_Qformer.cls.predictions.bias",
        "speech_Qformer.bert.embeddings.position_ids",
        "speech_Qformer.bert.encoder.layer.1.output.dense.weight",
    ],
)
def test_what_is_dropped(name: str) -> None:
    assert lavcap_to_model({name: torch.zeros(1)}) == {}
    assert ced_to_encoder({name: torch.zeros(1)}, CEDSettings()) == {}


@pytest.mark.parametrize("name", ["outputlayer.2.weight", "front_end.1.weight", "head.weight", "blocks.0.attn.qkv"])
def test_what_is_not_known_is_passed_on_for_the_report(name: str) -> None:
    assert list(lavcap_to_model({name: torch.zeros(1)})) == [name]
    assert list(ced_to_encoder({name: torch.zeros(1)}, CEDSettings())) == [name]


def test_parts_without_adapters_have_no_prefix() -> None:
    tensors = {
        name: torch.zeros(1)
        for name in (
            "audio_encoder.init_bn.running_mean",
            "audio_encoder.blocks.0.norm1.weight",
            "language.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "projector.bias",
        )
    }
    official = CONVERSION.give(tensors)
    assert set(official) == {
        "audio_encoder.init_bn.1.running_mean",
        "audio_encoder.blocks.0.norm1.weight",
        "llama_decoder.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "speech_llama_proj.bias",
    }
    assert lavcap_to_model(official).keys() == tensors.keys()
    plain = CONVERSION.give({"language.model.lm_head.weight": torch.zeros(1)})
    assert list(plain) == ["llama_decoder.lm_head.weight"]


def test_the_eight_released_prompts_are_there(system: LAVCap) -> None:
    assert len(set(system.prompts.training)) == 8
    assert system.prompts.evaluation in system.prompts.training
