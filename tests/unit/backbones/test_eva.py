"""EVA ViT-g: its names, its image transform, its last norm, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.vision.eva import EVA, EVASettings, from_eva_names, from_lavis_names
from avcap_zoo.errors import ConfigError, ShapeError, WeightsError
from avcap_zoo.weights.published import load_eva

TINY = EVASettings(image_size_px=28, patch_size=14, embed_dim=16, depth=2, num_heads=2, mlp_dim=24)


def official(depth: int = TINY.depth) -> dict[str, Tensor]:
    """Tensors with the names and shapes of `eva_vit_g.pth` at the tiny size."""
    torch.manual_seed(depth)
    width, hidden = TINY.embed_dim, TINY.mlp_dim
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
    }
    for block in (f"blocks.{index}" for index in range(depth)):
        shapes |= {f"{block}.{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        shapes |= {f"{block}.attn.q_bias": (width,), f"{block}.attn.v_bias": (width,)}
        shapes |= {f"{block}.attn.qkv.weight": (3 * width, width), f"{block}.attn.proj.weight": (width, width)}
        shapes |= {f"{block}.attn.proj.bias": (width,), f"{block}.mlp.fc1.weight": (hidden, width)}
        shapes |= {f"{block}.mlp.fc1.bias": (hidden,), f"{block}.mlp.fc2.weight": (width, hidden)}
        shapes |= {f"{block}.mlp.fc2.bias": (width,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


NORM = {"ln_vision.weight": torch.randn(16), "ln_vision.bias": torch.randn(16)}


def test_two_files_one_block_too_many_and_the_own_head(tmp_path: Path) -> None:
    tensors = official(TINY.depth + 1) | {"norm.weight": torch.zeros(16), "head.weight": torch.zeros(3, 16)}
    torch.save(tensors, tmp_path / "eva_vit_g.pth")
    torch.save({"model": {**NORM, "query_tokens": torch.zeros(1)}}, tmp_path / "blip2.pth")
    encoder = EVA(TINY)
    load_eva(encoder, tmp_path / "eva_vit_g.pth", tmp_path / "blip2.pth")
    state = encoder.state_dict()
    assert torch.equal(state["model.post_layernorm.bias"], NORM["ln_vision.bias"])
    bias = state["model.encoder.layers.1.self_attn.qkv.bias"]
    assert torch.equal(bias[:16], tensors["blocks.1.attn.q_bias"])
    assert torch.equal(bias[16:32], torch.zeros(16))
    assert torch.equal(bias[32:], tensors["blocks.1.attn.v_bias"])


def test_one_lavis_file(tmp_path: Path) -> None:
    tensors = {f"visual_encoder.{name}": value for name, value in official().items()}
    torch.save({"model": {**tensors, **NORM, "Qformer.x": torch.zeros(1)}}, tmp_path / "blip2.pth")
    encoder = EVA(TINY)
    load_eva(encoder, tmp_path / "blip2.pth")
    assert torch.equal(encoder.state_dict()["model.post_layernorm.weight"], NORM["ln_vision.weight"])
    assert from_lavis_names(tensors | NORM, TINY).keys() == encoder.state_dict().keys()


def test_a_missing_norm_is_asked_for(tmp_path: Path) -> None:
    torch.save(official(), tmp_path / "eva_vit_g.pth")
    with pytest.raises(WeightsError, match=r"eva_vit_g.pth holds no ln_vision\.\*: give BLIP-2's file"):
        load_eva(EVA(TINY), tmp_path / "eva_vit_g.pth")


def test_unknown_names_and_half_a_bias_are_refused(tmp_path: Path) -> None:
    tensors = official() | NORM | {"rope.freqs": torch.zeros(1)}
    del tensors["blocks.0.attn.v_bias"]
    torch.save(tensors, tmp_path / "x.pth")
    torch.save(NORM, tmp_path / "norm.pth")
    with pytest.raises(WeightsError) as caught:
        load_eva(EVA(TINY), tmp_path / "x.pth", tmp_path / "norm.pth")
    assert "1 missing: model.encoder.layers.0.self_attn.qkv.bias" in str(caught.value)
    assert "model.rope.freqs" in str(caught.value)
    assert "norm.pth" in str(caught.value)


@torch.no_grad()
def test_pictures_of_any_size_are_encoded_in_a_batch() -> None:
    encoder = EVA(TINY).eval()
    pictures = torch.randint(0, 256, (3, 3, 40, 61), dtype=torch.uint8)
    tokens = encoder(pictures)
    assert tokens.shape == (3, 5, 16)
    torch.testing.assert_close(tokens, encoder(encoder.normalise(pictures)))
    torch.testing.assert_close(tokens[1:2], encoder(pictures[1:2]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_last_norm_computes_in_float32() -> None:
    encoder = EVA(TINY).eval().bfloat16()
    large = torch.randn(1, 5, 16).bfloat16() * 300
    want = torch.nn.functional.layer_norm(large.double(), (16,), eps=1e-5).bfloat16()
    assert torch.equal(encoder.model.post_layernorm(large), want)
    assert encoder(torch.zeros(1, 3, 28, 28)).dtype == torch.bfloat16


def test_what_is_no_picture_is_refused() -> None:
    encoder = EVA(TINY)
    for images in (torch.zeros(1, 3, 28, 14), torch.zeros(1, 1, 28, 28), torch.zeros(1, 3, 28, 28).long()):
        with pytest.raises(ShapeError, match=r"wanted \(pictures, 3, height, width\) torch.uint8 or normalised"):
            encoder(images)
    with pytest.raises(ShapeError, match=r"images are \(3, 28, 28\) torch.uint8"):
        encoder(torch.zeros(3, 28, 28, dtype=torch.uint8))


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="image_size_px 30 is not a multiple of patch_size 14"):
        EVA(EVASettings(image_size_px=30))
    with pytest.raises(ConfigError, match="embed_dim 1408 is not a multiple of num_heads 15"):
        EVA(EVASettings(num_heads=15))


def test_names_are_not_made_up() -> None:
    assert from_eva_names({"blocks.0.attn.q_bias": torch.zeros(1)}, TINY).keys() == {
        "model.encoder.layers.0.self_attn.q_bias"
    }
