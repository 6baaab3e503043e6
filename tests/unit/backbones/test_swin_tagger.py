"""RAM's tagger: words, thresholds, names of two transformers versions, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.vision.swin_tagger import SwinTagger, SwinTaggerSettings, from_ram_names
from avcap_zoo.errors import ConfigError, ShapeError, WeightsError
from avcap_zoo.weights.published import load_tagger
from tests.parity.golden import listed_cases

TINY = SwinTaggerSettings(
    image_size_px=32,
    embed_dim=8,
    depths=(2, 2),
    num_heads=(2, 4),
    window_size=4,
    num_tags=9,
    label_dim=16,
    head_dim=24,
    head_depth=2,
    head_heads=4,
    head_mlp_dim=48,
)


def official() -> dict[str, Tensor]:
    return listed_cases("bubogpt", "ram_tagging_", {"": 0.0})[0].weights("weights.")


def test_old_files_and_the_text_part(tmp_path: Path) -> None:
    tensors = {name.replace("tagging_head", "vision_multi"): value for name, value in official().items()}
    tensors |= {"tag_encoder.encoder.layer.0.x": torch.zeros(1), "text_decoder.cls.bias": torch.zeros(1)}
    torch.save({"model": tensors}, tmp_path / "ram.pth")
    tagger = SwinTagger(TINY)
    load_tagger(tagger, tmp_path / "ram.pth")
    assert torch.equal(tagger.label_embed, tensors["label_embed"])
    assert torch.equal(
        tagger.state_dict()["layers.1.fc2.bias"], tensors["vision_multi.encoder.layer.1.output.dense.bias"]
    )


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    torch.save(official() | {"image_prompt.weight": torch.zeros(1)}, tmp_path / "ram.pth")
    with pytest.raises(WeightsError, match=r"ram.pth does not fit the model: 1 unknown: image_prompt.weight"):
        load_tagger(SwinTagger(TINY), tmp_path / "ram.pth")


class _StateOfTransformers4(SwinTagger):
    """A tagger whose state dict spells one name as transformers 4 does, which is what the key map looks at."""

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:  # type: ignore[override]
        return {"visual_encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index": torch.zeros(1)}


def test_names_of_transformers_4() -> None:
    ours = from_ram_names(official(), _StateOfTransformers4(TINY))
    block = "visual_encoder.encoder.layers.1.blocks.0."
    assert {name[len(block) :] for name in ours if name.startswith(block)} == {
        f"{part}.{kind}"
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
            "layernorm_before",
            "layernorm_after",
        )
        for kind in ("weight", "bias")
    } | {"attention.self.relative_position_bias_table"}
    assert "visual_encoder.encoder.layers.0.blocks.0.attention.self.relative_position_index" in ours


@torch.no_grad()
def test_a_tag_is_given_above_its_own_threshold() -> None:
    torch.manual_seed(0)
    words = [f"tag{index}" for index in range(9)]
    pictures = torch.randint(0, 256, (2, 3, 50, 41), dtype=torch.uint8)
    tagger = SwinTagger(TINY, words).eval()
    probabilities = tagger(pictures).sigmoid()
    assert tagger.thresholds.tolist() == pytest.approx([0.68] * 9)
    tagger.thresholds.copy_(probabilities[0])  # strictly above: the first picture shows nothing
    tagger.thresholds[4] = 0.0
    assert tagger.tags(pictures)[0] == ["tag4"]
    tagger.thresholds.fill_(1.0)
    assert tagger.tags(pictures) == [[], []]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match=r"2 tags for 9 labels \(num_tags\)"):
        SwinTagger(TINY, ["a", "b"])
    with pytest.raises(ConfigError, match="1 thresholds for 9 labels"):
        SwinTagger(TINY, thresholds=[0.5])
    with pytest.raises(ConfigError, match="head_dim 768 must be a multiple of head_heads 7"):
        SwinTagger(SwinTaggerSettings(head_heads=7))
    tagger = SwinTagger(TINY)
    with pytest.raises(ConfigError, match="no list of tags was given"):
        tagger.tags(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ShapeError, match=r"images are \(1, 3, 31, 32\) torch.float32"):
        tagger(torch.zeros(1, 3, 31, 32))
