"""The filter bank: a batch of different lengths equals its clips one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.fbank import KALDI_LOG_FLOOR, kaldi_fbank, normalised_fbank, num_kaldi_frames

RATE_HZ = 16_000
SILENCE = math.log(KALDI_LOG_FLOOR)


def tone(hz: float, num_samples: int = RATE_HZ) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(num_samples) / RATE_HZ)


@pytest.mark.parametrize(
    ("num_samples", "frames"), [(0, 0), (160, 0), (399, 0), (400, 1), (559, 1), (560, 2), (16_000, 98), (160_000, 998)]
)
def test_number_of_whole_frames(num_samples: int, frames: int) -> None:
    assert num_kaldi_frames(torch.tensor([num_samples])).tolist() == [frames]
    if num_samples:
        assert kaldi_fbank(torch.zeros(1, num_samples)).shape == (1, frames, 64)


def test_silence_has_the_floor() -> None:
    assert pytest.approx(-15.942, abs=1e-3) == SILENCE
    torch.testing.assert_close(kaldi_fbank(torch.zeros(1, 800)), torch.full((1, 3, 64), SILENCE))
    constant = kaldi_fbank(torch.full((1, 800), 0.5))  # the mean of each frame is removed
    assert float(constant.max()) < SILENCE + 1


@pytest.mark.parametrize("hz", [200, 1000, 3000, 6000])
def test_a_tone_is_loudest_in_its_mel_bin(hz: float) -> None:
    loudest = int(kaldi_fbank(tone(hz)[None]).mean(dim=1).argmax())
    low, high = (1127 * math.log1p(edge / 700) for edge in (20, 8000))
    centre = (1127 * math.log1p(hz / 700) - low) / (high - low) * 65 - 1
    assert abs(loudest - centre) <= 1


def test_louder_by_ten_decibels() -> None:
    quiet, loud = kaldi_fbank(torch.stack([tone(1000), tone(1000) * 10**0.5]))
    loudest = quiet.mean(dim=0).argmax()
    torch.testing.assert_close(
        loud[:, loudest] - quiet[:, loudest], torch.full((98,), math.log(10)), rtol=1e-3, atol=1e-3
    )


def test_batch_of_different_lengths_equals_one_by_one() -> None:
    torch.manual_seed(0)
    lengths = [16_000, 9_999, 400, 160, 8_000]
    waveform = torch.zeros(5, 16_000)
    for row, length in enumerate(lengths):
        waveform[row, :length] = torch.rand(length) * 0.2 + 0.1 * row  # means differ
    num_samples = torch.tensor(lengths)
    for pad_with_silence in (False, True):
        options = {"target_length": 112, "pad_with_silence": pad_with_silence}
        together = normalised_fbank(waveform, num_samples, **options)  # type: ignore[arg-type]
        for row, length in enumerate(lengths):
            alone = normalised_fbank(waveform[row : row + 1, :length], num_samples[row : row + 1], **options)  # type: ignore[arg-type]
            torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_samples", [1, 160, 399])
def test_a_clip_shorter_than_a_frame_is_all_padding(num_samples: int) -> None:
    spectrogram = normalised_fbank(torch.full((1, num_samples), 0.1), torch.tensor([num_samples]), target_length=16)
    torch.testing.assert_close(spectrogram, torch.full((1, 16, 64), 4.346 / 4.332))


def test_padding_value_and_cut() -> None:
    short, num_samples = torch.randn(1, 800), torch.tensor([800])
    released = normalised_fbank(short, num_samples, target_length=16)
    silent = normalised_fbank(short, num_samples, target_length=16, pad_with_silence=True)
    assert torch.equal(released[:, :3], silent[:, :3])
    torch.testing.assert_close(released[:, 3:], torch.full((1, 13, 64), 1.0032), rtol=0, atol=1e-4)
    torch.testing.assert_close(silent[:, 3:], torch.full((1, 13, 64), (SILENCE + 4.346) / 4.332))
    whole = torch.randn(1, RATE_HZ)
    long = normalised_fbank(whole, torch.tensor([RATE_HZ]), target_length=16)
    assert torch.equal(long, normalised_fbank(whole, torch.tensor([RATE_HZ]), target_length=98)[:, :16])


def test_an_empty_clip_is_finite() -> None:
    assert torch.isfinite(normalised_fbank(torch.zeros(1, 400), torch.tensor([0]), target_length=16)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_gives_float32(dtype: torch.dtype) -> None:
    waveform = tone(500)[None].to(dtype)
    found = kaldi_fbank(waveform)
    assert found.dtype == torch.float32
    assert torch.equal(found, kaldi_fbank(waveform.float()))


def test_autocast_changes_nothing() -> None:
    waveform, num_samples = torch.randn(2, 4000), torch.tensor([4000, 3000])
    expected = normalised_fbank(waveform, num_samples, target_length=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = normalised_fbank(waveform, num_samples, target_length=32)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_gradient_reaches_the_waveform() -> None:
    waveform = (torch.randn(2, 2000) * 0.1).requires_grad_()
    normalised_fbank(waveform, torch.tensor([2000, 1000]), target_length=16).sum().backward()
    assert waveform.grad is not None
    assert torch.isfinite(waveform.grad).all()
    assert (waveform.grad[0] != 0).float().mean() > 0.8


def test_wrong_shape() -> None:
    with pytest.raises(ShapeError, match=r"waveform is \(1, 2, 800\), wanted \(clips, samples\)"):
        kaldi_fbank(torch.zeros(1, 2, 800))


def test_meta_tensors_have_the_right_shape() -> None:
    with torch.device("meta"):
        assert kaldi_fbank(torch.zeros(2, 100)).shape == (2, 0, 64)
