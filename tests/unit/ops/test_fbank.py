"""The filter bank: a batch of different lengths equals its clips one by one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.fbank import (
    KALDI_LOG_FLOOR,
    MelScale,
    decibels,
    kaldi_fbank,
    mel_filters,
    mel_spectrogram,
    normalised_fbank,
    num_centred_frames,
    num_kaldi_frames,
)

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


# -- centred frames ----------------------------------------------------------------------------------------------


def centred(waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
    return mel_spectrogram(
        waveform, sample_rate_hz=RATE_HZ, fft_size=512, hop_length=160, num_mel_bins=64, num_samples=num_samples
    )


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_mel_filters(scale: MelScale) -> None:
    filters = mel_filters(40, 1024, 32_000, 50.0, 14_000.0, mel_scale=scale)
    hz = torch.linspace(0, 16_000, 513)
    assert filters.shape == (513, 40)
    assert (filters[(hz < 50) | (hz > 14_000)] == 0).all()
    assert ((filters >= 0) & (filters <= 1)).all()
    # Straight triangles that meet: between the first and last peak they sum to one.
    peaks = filters.argmax(dim=0)
    torch.testing.assert_close(filters.sum(dim=1)[int(peaks[0]) + 1 : int(peaks[-1])].mean(), torch.tensor(1.0))
    area = mel_filters(40, 1024, 32_000, 50.0, 14_000.0, mel_scale=scale, area_normalised=True).sum(dim=0) * 31.25
    torch.testing.assert_close(area[20:], torch.ones(20), rtol=0.02, atol=0)


def test_the_two_scales_have_their_published_points() -> None:
    # The only peak lies half way on the mel scale.
    # Slaney: 2 kHz is mel 15 + 27 ln 2 / ln 6.4, half of which lies on the straight part.
    points: tuple[tuple[MelScale, float, float], ...] = (
        ("htk", 8000.0, 700 * (math.sqrt(1 + 8000 / 700) - 1)),
        ("slaney", 2000.0, (15 + 27 * math.log(2) / math.log(6.4)) / 2 * 200 / 3),
    )
    for scale, high_hz, middle_hz in points:
        mel = mel_filters(1, 1 << 14, RATE_HZ, 0.0, high_hz, mel_scale=scale)
        assert float(mel.argmax()) * RATE_HZ / (1 << 14) == pytest.approx(middle_hz, abs=1.0)


@pytest.mark.parametrize("num_samples", [1, 2, 100, 160, 511, 4000])
def test_centred_frames_of_any_length(num_samples: int) -> None:
    frames = centred(torch.rand(2, num_samples))
    assert frames.shape == (2, 1 + num_samples // 160, 64)
    assert num_centred_frames(torch.tensor([num_samples]), 160).tolist() == [frames.shape[1]]
    assert torch.isfinite(frames).all()


def test_ends_are_reflected() -> None:
    waveform = torch.randn(1, 2000)
    by_hand = torch.nn.functional.pad(waveform, (256, 256), mode="reflect").unfold(1, 512, 160)
    power = torch.fft.rfft(by_hand * torch.hann_window(512)).abs().square()
    expected = power @ mel_filters(64, 512, RATE_HZ, 0.0, 8000.0)
    torch.testing.assert_close(centred(waveform), expected)


def test_a_padded_batch_is_reflected_at_each_clips_own_end() -> None:
    lengths = [4000, 3999, 700, 90, 1]
    waveform = torch.zeros(5, 4000)
    for row, length in enumerate(lengths):
        waveform[row, :length] = torch.rand(length) - 0.5
    together = centred(waveform, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = centred(waveform[row : row + 1, :length])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)
    assert (together[3:, 6:] == 0).all()


def test_decibels() -> None:
    loud, quiet = torch.full((1, 3, 4), 100.0), torch.full((1, 3, 4), 1e-30)
    loud[0, 0, 0] = 1e-9
    both = torch.cat([loud, quiet])
    assert decibels(both)[0, 0, 0] == pytest.approx(-90)
    assert decibels(both)[1].max() == -100
    assert decibels(both, range_db=80)[0, 0, 0] == 20 - 80
    assert decibels(both, range_db=80)[1].max() == -100
    assert decibels(both, range_db=80, range_over="batch")[1].max() == 20 - 80
    assert decibels(both[:, :0], range_db=80).shape == (2, 0, 4)


def test_centred_frames_are_float32_under_autocast() -> None:
    waveform = torch.randn(1, 4000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decibels(centred(waveform.bfloat16().float()))
    assert found.dtype == torch.float32
    assert torch.equal(found, decibels(centred(waveform.bfloat16())))


@pytest.mark.parametrize("shape", [(800,), (1, 2, 800), (2, 0)])
def test_wrong_shape_for_centred_frames(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"wanted \(clips, samples\) with at least one sample"):
        centred(torch.zeros(shape))
