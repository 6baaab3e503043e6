"""ImageBind's audio tower: its names, its average over clips, its extra key, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.audio.imagebind import ImageBindAudio, ImageBindAudioSettings, from_imagebind_names
from avcap_zoo.errors import ConfigError, ShapeError, WeightsError
from avcap_zoo.weights.published import load_imagebind_audio

TINY = ImageBindAudioSettings(
    num_mel_bins=36, target_length=26, patch_size=16, patch_stride=10, embed_dim=16, depth=2, num_heads=2
)
OFFICIAL = {
    "cls_token": "modality_preprocessors.audio.cls_token",
    "stem.": "modality_preprocessors.audio.rgbt_stem.proj.",
    "stem_norm.": "modality_preprocessors.audio.rgbt_stem.norm_layer.",
    "pos_embed": "modality_preprocessors.audio.pos_embedding_helper.pos_embed",
    "blocks.": "modality_trunks.audio.blocks.",
    "log_logit_scale": "modality_postprocessors.audio.1.log_logit_scale",
}


def tower(seed: int = 0) -> ImageBindAudio:
    torch.manual_seed(seed)
    return ImageBindAudio(TINY).eval()


def official_file(model: ImageBindAudio) -> dict[str, Tensor]:
    """The tower's tensors as `imagebind_huge.pth` names them, with its head and tensors of other towers."""
    tensors = {}
    for name, value in model.state_dict().items():
        mine = next(prefix for prefix in OFFICIAL if name.startswith(prefix))
        tensors[OFFICIAL[mine] + name[len(mine) :].replace(".norm", ".norm_")] = value
    others = (
        "modality_heads.audio.2.weight",
        "modality_trunks.vision.blocks.0.attn.bias_k",
        "modality_preprocessors.text.token_embedding.weight",
        "modality_postprocessors.imu.1.log_logit_scale",
        "modality_heads.thermal.0.weight",
        "modality_preprocessors.depth.cls_token",
    )
    return tensors | {name: torch.zeros(3) for name in others}


@torch.no_grad()
def test_tokens_have_length_20_and_clips_are_averaged() -> None:
    model, clips = tower(), torch.randn(2, 3, 1, 36, 26)
    assert TINY.num_tokens == 7
    tokens = model(clips)
    assert tokens.shape == (2, 7, 16)
    single = torch.stack([model(clips[:, index : index + 1]) for index in range(3)])
    torch.testing.assert_close(single.norm(dim=-1), torch.full((3, 2, 7), 20.0), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(tokens, single.mean(dim=0), rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_the_scale_stops_at_100() -> None:
    model = tower()
    model.log_logit_scale.fill_(9.0)
    assert float(model(torch.randn(1, 1, 1, 36, 26)).norm(dim=-1).max()) == pytest.approx(100.0, rel=1e-5)


@torch.no_grad()
def test_the_learned_key_and_value_are_read() -> None:
    model, clips = tower(), torch.randn(1, 1, 1, 36, 26)
    before = model(clips)
    model.state_dict()["blocks.0.attn.bias_v"].add_(1.0)
    assert not torch.allclose(before, model(clips), atol=1e-2)


@torch.no_grad()
def test_half_precision_gives_float32_tokens() -> None:
    model, clips = tower(), torch.randn(1, 2, 1, 36, 26)
    want = model(clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(clips)
    for tokens in (autocast, model.bfloat16()(clips)):
        assert tokens.dtype == torch.float32
        assert float((tokens - want).abs().max()) < 0.5


def test_the_official_file_is_read_and_other_towers_are_dropped(tmp_path: Path) -> None:
    source, target = tower(1), tower(2)
    torch.save(official_file(source), tmp_path / "imagebind_huge.pth")
    load_imagebind_audio(target, tmp_path / "imagebind_huge.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_an_unknown_name_a_missing_one_and_another_size_are_all_named(tmp_path: Path) -> None:
    tensors = official_file(tower())
    tensors["modality_trunks.radar.blocks.0.weight"] = torch.zeros(1)
    del tensors["modality_trunks.audio.blocks.1.attn.bias_k"]
    tensors["modality_preprocessors.audio.cls_token"] = torch.zeros(1, 1, 17)
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(WeightsError) as caught:
        load_imagebind_audio(tower(), tmp_path / "x.pth")
    message = str(caught.value)
    assert "1 missing: blocks.1.attn.bias_k" in message
    assert "1 unknown: modality_trunks.radar.blocks.0.weight" in message
    assert "cls_token (1, 1, 17), wanted (1, 1, 16)" in message
    assert "\n" not in message


def test_the_head_is_kept_when_it_is_built() -> None:
    official = {"modality_heads.audio.0.weight": torch.ones(16), "modality_heads.audio.2.weight": torch.ones(5, 16)}
    assert from_imagebind_names(official, TINY) == {}
    headed = ImageBindAudioSettings(head_dim=5)
    assert from_imagebind_names(official, headed).keys() == {"head.0.weight", "head.1.weight"}


@pytest.mark.parametrize("shape", [(2, 1, 36, 26), (2, 3, 1, 26, 36), (2, 3, 2, 36, 26), (2, 0, 1, 36, 26)], ids=str)
def test_clips_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"wanted \(sounds, at least 1 clip, 1, 36, 26\)"):
        tower()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ImageBindAudioSettings(embed_dim=16, num_heads=3), "embed_dim 16 is not a multiple of num_heads 3"),
        (ImageBindAudioSettings(target_length=15), "128 mel bins and 15 frames is smaller than one patch of 16"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: ImageBindAudioSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageBindAudio(settings)
