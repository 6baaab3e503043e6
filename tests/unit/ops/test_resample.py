"""The windowed sinc: pitches stay, lengths follow, batches equal their sounds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.resample import resample


def tone(num_samples: int, sample_rate_hz: int, pitch_hz: float = 440.0) -> Tensor:
    return torch.sin(2 * torch.pi * pitch_hz * torch.arange(num_samples) / sample_rate_hz)


@pytest.mark.parametrize("from_hz", [8_000, 22_050, 44_100, 48_000])
def test_a_tone_keeps_its_pitch_and_level(from_hz: int) -> None:
    waveform, num_samples = resample(tone(from_hz, from_hz)[None], torch.tensor([from_hz]), from_hz, 16_000)
    assert waveform.shape == (1, 16_000)
    assert num_samples.tolist() == [16_000]
    torch.testing.assert_close(waveform[0, 200:-200], tone(16_000, 16_000)[200:-200], rtol=0, atol=5e-3)


def test_what_the_new_rate_cannot_hold_is_filtered_out() -> None:
    waveform, _ = resample(tone(48_000, 48_000, 12_000.0)[None], torch.tensor([48_000]), 48_000, 16_000)
    assert float(waveform[0, 200:-200].abs().max()) < 0.01


def test_a_batch_equals_its_sounds_and_ends_in_silence() -> None:
    waveform = torch.zeros(2, 2, 1_000)
    waveform[0], waveform[1, :, :333] = torch.randn(2, 1_000), torch.randn(2, 333)
    together, lengths = resample(waveform, torch.tensor([1_000, 333]), 44_100, 16_000)
    assert lengths.tolist() == [363, 121]  # rounded up
    alone, _ = resample(waveform[1:, :, :333], torch.tensor([333]), 44_100, 16_000)
    torch.testing.assert_close(together[1:, :, :121], alone)
    assert not together[1, :, 121:].any()


def test_the_same_rate_changes_nothing() -> None:
    waveform, lengths = torch.randn(2, 50), torch.tensor([50, 20])
    same, kept = resample(waveform, lengths, 16_000, 16_000)
    assert torch.equal(same, waveform)
    assert torch.equal(kept, lengths)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="cannot resample from 0 Hz to 16000 Hz"):
        resample(torch.zeros(1, 5), torch.tensor([5]), 0, 16_000)
    with pytest.raises(ShapeError, match=r"waveform is \(1, 5\) torch.int16"):
        resample(torch.zeros(1, 5, dtype=torch.int16), torch.tensor([5]), 8_000, 16_000)
    with pytest.raises(ShapeError, match=r"num_samples \(2,\)"):
        resample(torch.zeros(1, 5), torch.tensor([5, 5]), 8_000, 16_000)
