"""The audio encoder: any length up to its positions, and nothing else."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.backbones.audio.ced import CED, CEDSettings
from avcap_zoo.errors import ShapeError

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
        ({"num_mel_bins": 40}, "num_mel_bins 40 and target_length 64 must be multiples of the patch size 16"),
        ({"target_length": 100}, "target_length 100 must be multiples"),
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
