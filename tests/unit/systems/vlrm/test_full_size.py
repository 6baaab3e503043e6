"""VLRM at the paper's size, on the meta device: no weight is stored, every shape is real."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.backbones.language import GenerationSettings
from avcap_zoo.errors import WeightsError
from avcap_zoo.systems.vlrm import VLRMModel
from avcap_zoo.systems.vlrm.captioner import CaptionerSettings, SamplingSettings
from avcap_zoo.systems.vlrm.model import UpdateSettings
from avcap_zoo.systems.vlrm.rewards import ImageTextMatching, RewardSettings
from avcap_zoo.systems.vlrm.value_head import ValueHeadSettings

# The public configuration of Salesforce/blip2-opt-2.7b; what is not named is transformers' default.
OPT_2_7B = {
    "model_type": "opt",
    "hidden_size": 2560,
    "word_embed_proj_dim": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "ffn_dim": 10240,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "bos_token_id": 2,
    "eos_token_id": 50118,
    "pad_token_id": 1,
}
BERT = {"vocab_size": 30523}


@pytest.fixture(scope="module")
def model() -> VLRMModel:
    matching = {"source": None, "config": {"qformer_config": BERT}}
    with torch.device("meta"):
        return VLRMModel(
            CaptionerSettings(source=None, config={"text_config": OPT_2_7B}),
            SamplingSettings(),
            ValueHeadSettings(),
            {"itm": RewardSettings("itm", options=matching), "reference": RewardSettings("reference")},
            UpdateSettings(),
            GenerationSettings(num_beams=5, max_new_tokens=60, min_length=4, no_repeat_ngram_size=2),
        )


def test_the_policy_trains_as_many_parameters_as_the_paper_releases(model: VLRMModel) -> None:
    assert sum(p.numel() for p in model.policy_parameters()) == 107_130_880
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.policy_parameters())


def test_the_value_function_trains_adapters_and_head(model: VLRMModel) -> None:
    assert sum(p.numel() for p in model.captioner.value_parameters()) == 5_242_880
    assert sum(p.numel() for p in model.value_head.parameters()) == 275_297_281
    trained = {p for p in model.parameters() if p.requires_grad}
    assert trained == {*model.policy_parameters(), *model.value_parameters()}


def test_the_frozen_parts_have_the_published_sizes(model: VLRMModel) -> None:
    blip = model.captioner.blip
    assert sum(p.numel() for p in blip.vision_model.parameters()) == 985_952_256
    adapters = sum(p.numel() for p in model.captioner.value_parameters())
    assert sum(p.numel() for p in blip.language_model.parameters()) - adapters == 2_651_596_800
    matching = dict(model.reward_items())["itm"]
    assert isinstance(matching, ImageTextMatching)
    assert sum(p.numel() for p in matching.matcher.qformer.parameters()) == 161_825_280
    assert sum(p.numel() for p in matching.matcher.embeddings.parameters()) == 23_834_880
    assert matching.matcher.tower is None


def test_a_released_partial_file_has_257_tensors_in_16_bit(model: VLRMModel) -> None:
    partial = model.captioner.export_partial()
    assert len(partial) == 257
    assert sum(tensor.numel() * tensor.element_size() for tensor in partial.values()) == 214_261_760
    assert partial["query_tokens"].shape == (1, 32, 768)
    assert partial["language_projection.weight"].shape == (2560, 768)
    assert partial["qformer.encoder.layer.10.crossattention.attention.key.weight"].shape == (768, 1408)
    model.captioner.load_partial(partial, "vlrm-blip2-opt-2.7b.pt")
    del partial["qformer.layernorm.bias"]
    with pytest.raises(WeightsError, match=r"does not fit the captioner: 1 missing: qformer.layernorm.bias"):
        model.captioner.load_partial(partial, "vlrm-blip2-opt-2.7b.pt")


def test_captions_end_with_the_line_feed(model: VLRMModel) -> None:
    assert (model.captioner.begin_id, model.captioner.end_id, model.captioner.pad_id) == (2, 50118, 1)


def test_switches_default_to_the_paper() -> None:
    update = UpdateSettings()
    assert (update.policy_objective, update.prob_distribution, update.advantage_std) == ("prob", "plain", "unbiased")
    assert (update.value_position, update.loss_reduction, update.optimizers) == ("before", "caption", "per_part")
    assert (update.gradient_clip, update.gradient_clip_val, update.gamma) == ("norm", 1.0, 1.0)
    matching = ImageTextMatching()
    assert (matching.itm_score, matching.arguments[4]) == ("positive_logit", 32)
    sampling = SamplingSettings()
    assert (sampling.top_k, sampling.temperature, sampling.min_new_tokens, sampling.max_new_tokens) == (6, 2.0, 4, 60)
