"""Each kind of fusion: what reaches the projector, what is trained, what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch.nn import functional as F

from avcap_zoo.backbones.qformer import QFormerSettings
from avcap_zoo.errors import ConfigError, DataError, ShapeError
from avcap_zoo.ops.masking import length_mask
from avcap_zoo.systems.lavcap.fusion import Fusion, FusionSettings
from avcap_zoo.systems.lavcap.fusion_kinds import RECIPES, FusionKind, PlainKind, ReleasedKind


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 8, generator=generator), torch.randn(2, 3, 8, generator=generator)


def fuse(kind: FusionKind, **options: object) -> Fusion:
    return Fusion(FusionSettings(kind=kind, **options), 8, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "length"), [("audio_only", 5), ("visual_only", 3), ("concatenation", 8)])
def test_kinds_without_transport_pass_unit_norm_tokens_on(
    tokens: tuple[torch.Tensor, torch.Tensor], kind: FusionKind, length: int
) -> None:
    fused = fuse(kind)(*tokens)
    assert fused.tokens.shape == (2, length, 8)
    assert fused.mask.all()
    assert fused.ot_loss is None
    assert fused.log_plan is None
    torch.testing.assert_close(fused.tokens.norm(dim=-1), torch.ones(2, length))
    assert not list(fuse(kind).parameters())


def test_raw_features_keep_the_encoders_scale(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    fused = fuse("concatenation", features="raw")(*tokens)
    assert torch.equal(fused.tokens, torch.cat(tokens, dim=1))


def test_concatenation_with_transport_adds_only_a_loss(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain, transported = fuse("concatenation")(*tokens), fuse("concatenation_ot", loss_weight=2.0)(*tokens)
    assert torch.equal(plain.tokens, transported.tokens)
    assert transported.log_plan.shape == (2, 3, 5)
    half = fuse("concatenation_ot", loss_weight=1.0)(*tokens)
    torch.testing.assert_close(transported.ot_loss, 2 * half.ot_loss)


SMALL_QFORMER = QFormerSettings(2, embed_dim=64, depth=1, num_heads=2, mlp_dim=32, cross_attention_frequency=1)


def wide(kind: str, **options: Any) -> Fusion:
    """A fusion of width 64, with windows of two or three tokens."""
    torch.manual_seed(3)
    window_s = 0.3 if RECIPES[kind].transport else 0.06
    options = {"qformer": SMALL_QFORMER, "window_s": window_s, "stride_s": window_s, "layer_norm": True, **options}
    return Fusion(FusionSettings(kind=kind, **options), 64, 64).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", RECIPES)
def test_masked_tokens_change_nothing(kind: str) -> None:
    fusion = wide(kind)
    audio, visual = torch.randn(3, 14, 64), torch.randn(3, 6, 64)
    audio_mask, visual_mask = length_mask(torch.tensor([14, 9, 11]), 14), length_mask(torch.tensor([6, 4, 5]), 6)
    # Not only at the end: the third clip lacks tokens in the middle.
    audio_mask[2], visual_mask[2] = audio_mask[2].roll(5), visual_mask[2].roll(2)
    together = fusion(audio, visual, audio_mask, visual_mask)
    for clip in range(3):
        alone = fusion(audio[clip : clip + 1, audio_mask[clip]], visual[clip : clip + 1, visual_mask[clip]])
        assert alone.mask.all()
        torch.testing.assert_close(together.tokens[clip, together.mask[clip]], alone.tokens[0], rtol=1e-4, atol=2e-5)
        if alone.log_plan is not None:
            plan = together.log_plan[clip]
            torch.testing.assert_close(plan[torch.isfinite(plan)], alone.log_plan.flatten(), rtol=1e-4, atol=1e-4)
    padded = fusion(audio[1:2], visual[1:2], audio_mask[1:2], visual_mask[1:2])
    alone = fusion(audio[1:2, :9], visual[1:2, :4])
    if alone.ot_loss is not None:
        torch.testing.assert_close(padded.ot_loss, alone.ot_loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", RECIPES)
def test_gradient_goes_into_everything_that_is_used_and_not_through_the_plan(kind: str) -> None:
    fusion = wide(kind, layer_norm=False).train()
    audio, visual = torch.randn(2, 12, 64, requires_grad=True), torch.randn(2, 3, 64, requires_grad=True)
    fused = fusion(audio, visual)
    assert fused.tokens.shape[2] == fusion.width
    assert (fused.ot_loss is not None) == (fused.log_plan is not None) == RECIPES[kind].transport
    assert fused.log_plan is None or not fused.log_plan.requires_grad
    loss = fused.tokens.square().mul(torch.randn(fusion.width)).sum()
    (loss if fused.ot_loss is None else loss + fused.ot_loss).backward()
    assert [name for name, parameter in fusion.named_parameters() if parameter.grad is None] == []
    for needed, tokens in ((RECIPES[kind].audio, audio), (RECIPES[kind].visual, visual)):
        assert (tokens.grad is not None) == needed


@pytest.mark.parametrize("kind", [kind for kind, recipe in RECIPES.items() if recipe.audio and recipe.visual])
def test_two_widths_meet_in_the_plain_kinds_only(kind: str) -> None:
    if RECIPES[kind].released:
        with pytest.raises(ConfigError, match=f"{kind} needs audio and visual tokens of one width, found 64 and 48"):
            Fusion(FusionSettings(kind=kind, qformer=SMALL_QFORMER), 64, 48)  # type: ignore[arg-type]
        return
    fusion = Fusion(FusionSettings(kind=kind, qformer=SMALL_QFORMER), 64, 48)  # type: ignore[arg-type]
    fused = fusion(torch.randn(2, 9, 64), torch.randn(2, 5, 48))
    assert fused.tokens.shape[2] == fusion.width == 64
    fused.tokens.sum().backward()
    gradient = fusion.visual_projection.weight.grad
    assert gradient is not None
    assert (gradient != 0).any()


def test_cross_attention_and_joint_encoder_let_sound_see(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = tokens
    for kind, length in (("cross_attention", 5), ("joint_encoder", 8)):
        fusion = fuse(kind)  # type: ignore[arg-type]
        before, after = fusion(audio, visual), fusion(audio, visual.flip(2))
        assert before.tokens.shape == (2, length, 8)
        assert not torch.allclose(before.tokens[:, :5], after.tokens[:, :5], atol=1e-4)
    same_frames_in_another_order = fuse("cross_attention")
    torch.testing.assert_close(
        same_frames_in_another_order(audio, visual).tokens, same_frames_in_another_order(audio, visual.flip(1)).tokens
    )


@pytest.mark.parametrize(
    ("kind", "length"), [("qformer", 2 * 6 + 3), ("released_qformer_ot_tempcat", 2 * 4 + 3), ("released_crossattn", 11)]
)
def test_the_released_qformer_loses_the_end(kind: str, length: int) -> None:
    assert wide(kind)(torch.randn(1, 11, 64), torch.randn(1, 3, 64)).tokens.shape[1] == length


def test_windows_are_counted_as_released() -> None:
    assert FusionSettings(kind="released_qformer_ot_tempcat").num_tokens(0.333333) == 2
    assert FusionSettings(kind="released_qformer_ot_tempcat").num_tokens(0.5) == 3
    assert FusionSettings(kind="released_qformer_tempcat_bfQF").num_tokens(0.333333) == 17
    assert FusionSettings(kind="qformer").num_tokens(0.01) == 1


def test_tolerance_reaches_the_transport(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    exact, stopped = fuse("ot_attention")(*tokens), fuse("ot_attention", tolerance=0.01)(*tokens)
    assert not torch.equal(exact.log_plan, stopped.log_plan)
    torch.testing.assert_close(stopped.log_plan.exp(), exact.log_plan.exp(), rtol=0.03, atol=1e-3)


def test_scale_is_clamped_where_it_is_used_and_exponentiated_on_request(
    tokens: tuple[torch.Tensor, torch.Tensor],
) -> None:
    fusion = fuse("concatenation_ot")
    fusion.logit_scale.data.fill_(9.0)
    fusion(*tokens)
    assert float(fusion.logit_scale.detach()) == pytest.approx(4.6052, abs=1e-4)
    plain, exponential = fuse("concatenation_ot"), fuse("concatenation_ot", exponentiate_scale=True)
    exponential.logit_scale.data.fill_(float(torch.tensor(2.6593).log()))
    torch.testing.assert_close(plain(*tokens).ot_loss, exponential(*tokens).ot_loss, rtol=1e-4, atol=1e-4)


def test_transport_stays_in_float32_under_autocast(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = tokens
    wanted = fuse("ot_attention")(audio, visual)
    with torch.autocast("cpu", torch.bfloat16):
        found = fuse("ot_attention")(audio, visual)
    assert found.log_plan.dtype == found.ot_loss.dtype == torch.float32
    assert torch.equal(found.log_plan, wanted.log_plan)
    torch.testing.assert_close(found.ot_loss, wanted.ot_loss)


@pytest.mark.parametrize("kind", RECIPES)
def test_every_kind_runs_under_autocast(kind: str) -> None:
    fusion = wide(kind)
    audio, visual = torch.randn(2, 12, 64), torch.randn(2, 3, 64)
    wanted = fusion(audio, visual)
    with torch.autocast("cpu", torch.bfloat16):
        found = fusion(audio.bfloat16(), visual, length_mask(torch.tensor([12, 9]), 12))
    assert found.mask[0].all()
    torch.testing.assert_close(found.tokens[0].float(), wanted.tokens[0], rtol=0.1, atol=0.1)
    if found.ot_loss is not None:
        assert found.ot_loss.dtype == found.log_plan.dtype == torch.float32


def test_layer_norm_comes_before_normalisation(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = tokens
    fused = fuse("concatenation", layer_norm=True)(audio, visual)
    wanted = torch.cat([F.normalize(F.layer_norm(part, (8,)), dim=-1) for part in (audio, visual)], dim=1)
    torch.testing.assert_close(fused.tokens, wanted)


def test_every_name_has_a_recipe() -> None:
    assert {*get_args(PlainKind), *get_args(ReleasedKind)} == set(RECIPES)
    assert {kind for kind, recipe in RECIPES.items() if recipe.released} == set(get_args(ReleasedKind))


def test_what_does_not_fit_is_refused(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = tokens
    with pytest.raises(ConfigError, match="concatenation needs visual tokens, the batch has none"):
        fuse("concatenation")(audio, None)
    with pytest.raises(ConfigError, match="visual_only needs visual tokens, the batch has none"):
        fuse("visual_only")(audio, None)
    with pytest.raises(ConfigError, match=r"fusion\.kind 'ot_atention' is not known: did you mean ot_attention"):
        FusionSettings(kind="ot_atention")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'x' is not known: wanted one of audio_only, visual_only"):
        FusionSettings(kind="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="heads of width 64: token width 200 does not divide into 3"):
        Fusion(FusionSettings(kind="cross_attention"), 200, 200)
    with pytest.raises(ShapeError, match=r"visual_mask is \(2, 5\) torch.bool, wanted \(2, 3\)"):
        fuse("concatenation")(audio, visual, None, torch.ones(2, 5, dtype=torch.bool))


@pytest.mark.parametrize("kind", RECIPES)
def test_a_clip_without_a_real_token_is_named(kind: str) -> None:
    audio, visual = torch.randn(2, 12, 64), torch.randn(2, 3, 64)
    nothing = torch.tensor([[True], [False]])
    if RECIPES[kind].audio:
        with pytest.raises(DataError, match=f"clip 1 of the batch has no real audio token, fusion.kind {kind} needs"):
            wide(kind)(audio, visual, nothing.expand(2, 12), None)
    if RECIPES[kind].visual:
        with pytest.raises(DataError, match=f"clip 1 of the batch has no real visual token, fusion.kind {kind} needs"):
            wide(kind)(audio, visual, None, nothing.expand(2, 3))


def test_too_few_tokens_are_refused() -> None:
    few = torch.randn(1, 2, 64)
    with pytest.raises(ShapeError, match="a clip has 2 tokens, the Q-Former's windows need at least 4"):
        wide("released_qformer_ot_tempcat")(few, few)
    with pytest.raises(ShapeError, match=r"clip 0 has 2 audio and 3 visual tokens; .* take fewer frames"):
        wide("released_ot_chancat")(few, torch.randn(1, 3, 64))
    assert wide("qformer")(few[:, :1], few).tokens.shape == (1, 4, 64)
