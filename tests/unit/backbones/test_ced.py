"""The audio encoder: any length up to its positions, and nothing else."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.backbones.audio.ced import CED, SIZES, CEDSettings, CEDTagger, FrontEnd, Pooling, decibel_spectrogram
from avcap_zoo.errors import ConfigError, ShapeError

SETTINGS = CEDSettings(embed_dim=16, depth=2, num_heads=2, num_mel_bins=32, target_length=64)


def ced(settings: CEDSettings = SETTINGS) -> CED:
    torch.manual_seed(0)
    return CED(settings).eval()


@pytest.mark.parametrize(("frames", "patches"), [(16, 1), (31, 1), (32, 2), (50, 3), (63, 3), (64, 4), (70, 4)])
def test_variable_lengths(frames: int, patches: int) -> None:
    model = ced()
    torch.manual_seed(1)
    spectrogram = torch.randn(2, frames, 32)
    tokens = model(spectrogram)
    assert tokens.shape == (2, 2, patches, 16)
    torch.testing.assert_close(tokens, model(spectrogram[:, : patches * 16]))  # an unfinished patch is not seen
    torch.testing.assert_close(tokens[1:], model(spectrogram[1:]), rtol=1e-4, atol=1e-5)


def test_tokens_know_their_place_in_time_and_frequency() -> None:
    tokens = ced()(torch.zeros(1, 64, 32))[0]
    flat = tokens.flatten(0, 1)
    assert min(float((flat[i] - flat[j]).abs().max()) for i in range(8) for j in range(i)) > 1e-4


def test_a_change_of_one_patch_changes_its_token_most() -> None:
    model = ced()
    spectrogram = torch.randn(1, 64, 32)
    changed = spectrogram.clone()
    changed[:, 32:48, 16:] += 3
    moved = (model(changed) - model(spectrogram)).norm(dim=-1)[0]
    assert divmod(int(moved.argmax()), 4) == (1, 2)  # (frequency, time)


@pytest.mark.parametrize("bins", [31, 33, 64])
def test_wrong_number_of_bins(bins: int) -> None:
    with pytest.raises(ShapeError, match=rf"spectrogram is \(1, 64, {bins}\), wanted \(clips, frames, 32\)"):
        ced()(torch.zeros(1, 64, bins))


@pytest.mark.parametrize("frames", [0, 15, 80, 1000])
def test_too_short_or_too_long(frames: int) -> None:
    with pytest.raises(ShapeError, match=rf"spectrogram has {frames} frames, wanted 16 to 64"):
        ced()(torch.zeros(1, frames, 32))


def test_wrong_rank() -> None:
    with pytest.raises(ShapeError, match=r"spectrogram is \(64, 32\)"):
        ced()(torch.zeros(64, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_mel_bins": 40}, "num_mel_bins 40 must be a multiple of the patch size 16, target_length 64 not less"),
        ({"target_length": 15}, "target_length 15 not less than it"),
        ({"num_heads": 3}, "embed_dim 16 is not a multiple of num_heads 3"),
    ],
)
def test_sizes_that_do_not_divide(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CED(CEDSettings(**{**vars(SETTINGS), **change}))


def test_batch_norm_drifts_unless_it_is_frozen() -> None:
    for frozen in (False, True):
        model = ced()
        if frozen:
            model.freeze_batch_norm()
        before = model.init_bn.running_mean.clone()  # type: ignore[union-attr]
        model.train()
        model(torch.randn(4, 32, 32) + 5)
        assert model.training
        assert model.init_bn.training == (not frozen)
        assert torch.equal(model.init_bn.running_mean, before) == frozen  # type: ignore[arg-type]
        model.eval()
        assert not model.init_bn.training


def test_every_parameter_gets_a_gradient() -> None:
    model = ced().train()
    model(torch.randn(2, 64, 32)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not name.endswith("k_proj.bias"):  # softmax does not see it
            assert parameter.grad.abs().sum() > 0, name


def test_default_size_is_ced_base() -> None:
    with torch.device("meta"):
        model = CED(CEDSettings())
        assert model(torch.zeros(1, 1024, 64)).shape == (1, 4, 64, 768)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(85.3e6, rel=0.01)


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 5.5), ("mini", 9.6), ("small", 21.6), ("base", 85.7)]
)  # with the 527 classes, as published
def test_published_sizes(size: str, millions: float) -> None:
    settings = CEDSettings(size=size, target_length=1012, front_end="decibel")
    assert (settings.embed_dim, settings.num_heads) == SIZES[size]
    with torch.device("meta"):
        tagger = CEDTagger(settings)
    assert tagger.encoder.time_pos_embed.shape == (1, settings.embed_dim, 1, 63)
    if size == "base":
        assert sum(p.numel() for p in tagger.parameters()) == 85_711_759
    assert sum(p.numel() for p in tagger.parameters()) == pytest.approx(millions * 1e6, rel=0.015)


def test_explicit_width_goes_before_the_size() -> None:
    assert CEDSettings(size="tiny", embed_dim=32).embed_dim == 32
    assert CEDSettings(size="tiny", embed_dim=32).num_heads == 3
    with pytest.raises(ConfigError, match="CED has no size 'huge', wanted one of tiny, mini, small, base"):
        CEDSettings(size="huge")


# -- front ends --------------------------------------------------------------------------------------------------


def front(front_end: FrontEnd, target_length: int = 64) -> CED:
    return ced(CEDSettings(embed_dim=16, depth=1, num_heads=2, target_length=target_length, front_end=front_end))


@pytest.mark.parametrize("front_end", ["kaldi", "decibel"])
@pytest.mark.parametrize("duration_s", [0.0, 0.001, 0.2, 1.0, 60.0])
def test_clips_of_any_length_have_a_spectrogram_and_tokens(front_end: FrontEnd, duration_s: float) -> None:
    model = front(front_end)
    num_samples = int(duration_s * 16_000)
    waveform = torch.rand(1, max(1, num_samples)) - 0.5
    spectrogram = model.spectrogram(waveform, torch.tensor([num_samples]))
    assert torch.isfinite(spectrogram).all()
    assert 16 <= spectrogram.shape[1] <= 64
    assert torch.isfinite(model(spectrogram)).all()
    if front_end == "kaldi":
        assert spectrogram.shape[1] == 64


def test_decibel_front_end_of_a_batch_is_that_of_its_clips() -> None:
    model = front("decibel")
    torch.manual_seed(0)
    lengths = torch.tensor([9000, 4000, 300])
    waveform = torch.zeros(3, 9000)
    for row, length in enumerate(lengths.tolist()):
        waveform[row, :length] = (torch.rand(length) - 0.5) / 10**row
    together = model.spectrogram(waveform, lengths)
    assert together.shape == (3, 57, 64)
    assert model.num_frames(lengths).tolist() == [57, 26, 2]
    assert model.num_tokens(lengths).tolist() == [4, 2, 1]
    for row, (length, frames) in enumerate([(9000, 57), (4000, 26), (300, 2)]):
        alone = decibel_spectrogram(waveform[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, :frames], alone, rtol=1e-4, atol=1e-3)
        assert (together[row, frames:] == -100).all()


def test_range_over_the_batch_lifts_a_quiet_clip() -> None:
    waveform = torch.stack([torch.randn(8000), torch.zeros(8000)])
    assert decibel_spectrogram(waveform)[1].max() == -100
    assert decibel_spectrogram(waveform, range_over="batch")[1].max() > -100


def test_blank_value_is_silence_or_zero_before_normalisation() -> None:
    assert CEDSettings(front_end="decibel").blank_value == pytest.approx(-100)
    assert CEDSettings().blank_value == pytest.approx(4.346 / 4.332)


# -- classifier --------------------------------------------------------------------------------------------------


def tagger(pooling: Pooling = "mean", target_length: int = 64) -> CEDTagger:
    torch.manual_seed(0)
    settings = CEDSettings(embed_dim=16, depth=1, num_heads=2, target_length=target_length, front_end="decibel")
    return CEDTagger(settings, num_classes=5, pooling=pooling).eval()


@pytest.mark.parametrize("pooling", ["mean", "logit", "dm"])
def test_classes_of_short_and_long_clips(pooling: Pooling) -> None:
    model = tagger(pooling)
    for samples in (2400, 10_000, 30_000):
        found = model(torch.randn(2, samples))
        assert found.shape == (2, 5)
        assert torch.isfinite(found).all()
        if pooling != "logit":
            assert ((found > 0) & (found < 1)).all()


def test_poolings_differ_as_they_should() -> None:
    waveform = torch.randn(2, 10_000)
    found = {pooling: tagger(pooling)(waveform) for pooling in ("mean", "logit", "dm")}
    torch.testing.assert_close(found["mean"], found["logit"].sigmoid())
    assert not torch.allclose(found["dm"], found["mean"])


def test_a_long_clip_is_the_mean_of_its_blocks() -> None:
    model = tagger("logit")
    spectrogram = torch.randn(2, 128, 64) * 10
    blocks = [model.classify(part) for part in spectrogram.split(64, dim=1)]
    torch.testing.assert_close(model.classify(spectrogram), torch.stack(blocks).mean(dim=0))
    # A rest is filled up with zeros behind the BatchNorm, and counts as a whole block.
    rest = model.classify(spectrogram[:, :100])
    assert not torch.allclose(rest, blocks[0])


def test_the_kaldi_front_end_of_the_tagger_cuts() -> None:
    torch.manual_seed(0)
    model = CEDTagger(CEDSettings(embed_dim=16, depth=1, num_heads=2, target_length=64), num_classes=3).eval()
    waveform = torch.randn(1, 20_000)
    torch.testing.assert_close(model(waveform), model(waveform[:, : 400 + 63 * 160]), rtol=1e-3, atol=1e-3)
