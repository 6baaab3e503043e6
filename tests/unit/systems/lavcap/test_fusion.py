"""Each kind of fusion: what reaches the projector, what is trained, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.lavcap.fusion import Fusion, FusionKind, FusionSettings


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


def test_masked_tokens_change_nothing(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = tokens
    short = fuse("ot_attention")(audio[:, :4], visual[:, :2])
    audio_mask, visual_mask = torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 3, dtype=torch.bool)
    audio_mask[:, 4:], visual_mask[:, 2:] = False, False
    masked = fuse("ot_attention")(audio, visual, audio_mask, visual_mask)
    assert masked.mask.tolist() == [[True] * 4 + [False] + [True] * 2 + [False]] * 2
    torch.testing.assert_close(masked.tokens[masked.mask], short.tokens.flatten(0, 1))
    torch.testing.assert_close(masked.ot_loss, short.ot_loss)


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


def test_layer_norm_comes_before_normalisation(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = tokens
    fused = fuse("concatenation", layer_norm=True)(audio, visual)
    wanted = torch.cat([F.normalize(F.layer_norm(part, (8,)), dim=-1) for part in (audio, visual)], dim=1)
    torch.testing.assert_close(fused.tokens, wanted)


def test_what_does_not_fit_is_refused(tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    with pytest.raises(ConfigError, match="ot_attention needs audio and visual tokens of one width, found 8 and 6"):
        Fusion(FusionSettings(), 8, 6)
    with pytest.raises(ConfigError, match="concatenation needs visual tokens, the batch has none"):
        fuse("concatenation")(tokens[0], None)
