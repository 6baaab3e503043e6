"""Clips of sounds of every length: where they begin, what a batch does to them, and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.errors import ConfigError, ShapeError
from avcap_zoo.ops.audio_clips import AudioClipSettings, even_starts, mel_clips, random_starts, repeat_to_length
from avcap_zoo.ops.fbank import kaldi_fbank

SETTINGS = AudioClipSettings(num_clips=3, clip_duration_s=0.5, num_mel_bins=16, target_length=20)
CLIP = 8_000


def tone(num_samples: int, pitch_hz: float = 440.0, offset: float = 0.0) -> Tensor:
    time = torch.arange(num_samples) / 16_000
    return 0.3 * torch.sin(2 * torch.pi * pitch_hz * time * (1 + time)) + offset


def lengths(*values: int) -> Tensor:
    return torch.tensor(values)


def padded(*sounds: Tensor) -> tuple[Tensor, Tensor]:
    longest = max(len(sound) for sound in sounds)
    return torch.stack([F.pad(s, (0, longest - len(s))) for s in sounds]), lengths(*(len(s) for s in sounds))


def test_short_sounds_are_repeated_and_long_ones_stay() -> None:
    waveform, num_samples = padded(torch.tensor([1.0, 2, 3]), torch.arange(1.0, 8))
    repeated, new = repeat_to_length(waveform, num_samples, 5)
    assert repeated.tolist() == [[1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 4, 5, 6, 7]]
    assert new.tolist() == [5, 7]
    stereo, _ = repeat_to_length(torch.tensor([[[1.0, 2], [3, 4]]]), lengths(2), 3)
    assert stereo.tolist() == [[[1, 2, 1], [3, 4, 3]]]


def test_even_starts_reach_the_end_or_not() -> None:
    num_samples = lengths(80_000, 192_000, 80_001)
    assert even_starts(num_samples, 6, 80_000).tolist() == [
        [0] * 6,
        [0, 22_400, 44_800, 67_200, 89_600, 112_000],
        [0, 0, 0, 0, 0, 1],
    ]
    assert even_starts(num_samples, 6, 80_000, reach_end=False)[1].tolist() == [
        0, 18_666, 37_333, 56_000, 74_666, 93_333
    ]  # fmt: skip
    assert even_starts(num_samples, 1, 80_000).tolist() == [[0]] * 3


def test_random_starts_rise_fit_and_differ() -> None:
    torch.manual_seed(0)
    starts = random_starts(lengths(80_000, 160_000, 9_600_000), 6, 80_000)
    assert starts[0].tolist() == [0] * 6
    assert bool((starts.diff(dim=1) >= 0).all())
    assert bool((starts <= torch.tensor([[0], [80_000], [9_520_000]])).all())
    assert len(set(starts[2].tolist())) == 6
    assert not torch.equal(starts, random_starts(lengths(80_000, 160_000, 9_600_000), 6, 80_000))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("shared_mean", [False, True])
def test_a_batch_equals_its_sounds_one_by_one(antialias: bool, shared_mean: bool) -> None:
    settings = replace(SETTINGS, antialias=antialias, shared_mean=shared_mean)
    sounds = [tone(16_000, offset=0.2), tone(4_800), tone(40_000, 300.0), tone(8_000)]
    together = mel_clips(*padded(*sounds), settings)
    assert together.shape == (4, 4, 1, 16, 20)
    for sound, mels in zip(sounds, together, strict=True):
        alone = mel_clips(sound[None], lengths(len(sound)), settings)[0]
        torch.testing.assert_close(mels, alone, rtol=1e-4, atol=1e-4)


def test_clips_are_the_filter_bank_of_their_place_resized() -> None:
    sound = tone(20_000, offset=0.1)
    mels = mel_clips(sound[None], lengths(20_000), SETTINGS)[0, :, 0]
    for index, (first, last) in enumerate(((0, CLIP), (6_000, 14_000), (12_000, 20_000), (0, 20_000))):
        clip = sound[first:last]
        bank = kaldi_fbank((clip - clip.mean())[None], num_mel_bins=16).transpose(1, 2)[None]
        want = F.interpolate(bank, (16, 20), mode="bilinear", antialias=False)[0, 0]
        torch.testing.assert_close(mels[index], (want + 4.268) / 9.138, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize(("target", "frames"), [(48, 48), (60, 48)])
def test_clips_that_need_no_shrinking_are_kept_and_padded(antialias: bool, target: int, frames: int) -> None:
    # 0.5 s are 48 frames. The released code loses an axis where the two are equal.
    settings = replace(SETTINGS, target_length=target, antialias=antialias)
    sound = tone(CLIP)
    mels = mel_clips(sound[None], lengths(CLIP), settings)[0, 0, 0]
    bank = kaldi_fbank((sound - sound.mean())[None], num_mel_bins=16)[0].T
    torch.testing.assert_close(mels[:, :frames], (bank + 4.268) / 9.138, rtol=1e-4, atol=1e-4)
    assert torch.allclose(mels[:, frames:], torch.tensor(4.268 / 9.138))


def test_the_clips_end_where_the_sound_ends_unless_released() -> None:
    quiet_then_loud = torch.cat([tone(24_000) * 1e-3, tone(2_000, 2000.0)])
    for reach_end, louder in ((True, True), (False, False)):
        mels = mel_clips(quiet_then_loud[None], lengths(26_000), replace(SETTINGS, reach_end=reach_end))[0]
        assert bool(mels[2].max() > mels[0].max() + 0.2) is louder


def test_training_adds_the_whole_sound_and_draws_anew() -> None:
    sound, length = tone(64_000)[None], lengths(64_000)
    torch.manual_seed(0)
    first, second = (mel_clips(sound, length, SETTINGS, training=True) for _ in range(2))
    assert first.shape == (1, 4, 1, 16, 20)
    assert not torch.equal(first[:, :3], second[:, :3])
    assert torch.equal(first[:, 3], second[:, 3])
    assert mel_clips(sound, length, AudioClipSettings.released(), training=True).shape[1] == 7
    assert mel_clips(sound, length, AudioClipSettings.released()).shape[1] == 6


def test_stereo_is_the_mean_of_its_channels_or_released_the_first() -> None:
    left, right = tone(16_000), tone(16_000, 900.0, offset=0.5)
    both, length = torch.stack([left, right])[None], lengths(16_000)
    mean = mel_clips(((left + right) / 2)[None], length, SETTINGS)
    torch.testing.assert_close(mel_clips(both, length, SETTINGS), mean, rtol=1e-4, atol=1e-4)
    first = mel_clips(both, length, replace(SETTINGS, first_channel=True))
    # The filter bank removes each frame's own mean, so what the mean of both channels changes is next to nothing.
    torch.testing.assert_close(first, mel_clips(left[None], length, SETTINGS), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(first, mean, atol=0.05)


def test_a_shared_mean_changes_later_clips_alone_and_never_the_input() -> None:
    drifting = (tone(20_000) * 0.001 + torch.linspace(0, 1, 20_000) ** 2)[None]
    before = drifting.clone()
    own, shared = (mel_clips(drifting, lengths(20_000), replace(SETTINGS, shared_mean=s))[0] for s in (False, True))
    assert torch.equal(drifting, before)
    torch.testing.assert_close(own[0], shared[0], rtol=1e-4, atol=1e-4)
    assert float((own[1] - shared[1]).abs().max()) > 0.05


@pytest.mark.parametrize("num_samples", [1, 4_800, 80_000, 9_600_000], ids=["one sample", "0.3 s", "5 s", "10 min"])
def test_every_length_gives_finite_clips(num_samples: int) -> None:
    mels = mel_clips(tone(num_samples)[None], lengths(num_samples), AudioClipSettings(), training=True)
    assert mels.shape == (1, 7, 1, 128, 204)
    assert bool(mels.isfinite().all())


def test_silence_is_the_floor() -> None:
    mels = mel_clips(torch.zeros(1, 100), lengths(100), SETTINGS)
    torch.testing.assert_close(mels, torch.full_like(mels, (-15.9424 + 4.268) / 9.138), rtol=1e-4, atol=1e-4)


def test_autocast_changes_nothing() -> None:
    sound, length = tone(16_000)[None], lengths(16_000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mels = mel_clips(sound, length, replace(SETTINGS, antialias=True))
    assert torch.equal(mels, mel_clips(sound, length, replace(SETTINGS, antialias=True)))


@pytest.mark.parametrize(
    ("waveform", "num_samples", "message"),
    [
        (torch.zeros(2, 9), lengths(9), r"\(2, 9\) torch.float32 with num_samples \(1,\)"),
        (torch.zeros(9), lengths(9), r"wanted \(sounds, samples\) or \(sounds, channels, samples\) floats"),
        (torch.zeros(1, 9, dtype=torch.int16), lengths(9), "torch.int16"),
        (torch.zeros(3, 9), lengths(9, 0, 9), "sound 1 of the batch has 0 samples, wanted 1 to 9"),
        (torch.zeros(2, 9), lengths(9, 10), "sound 1 of the batch has 10 samples, wanted 1 to 9"),
    ],
)
def test_what_is_no_sound_is_refused(waveform: Tensor, num_samples: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        mel_clips(waveform, num_samples, SETTINGS)


@pytest.mark.parametrize("change", [{"num_clips": 0}, {"clip_duration_s": 0.02}])
def test_clips_that_cannot_be_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"at least one clip of 0.025 s is wanted \(num_clips, clip_duration_s\)"):
        mel_clips(tone(9_000)[None], lengths(9_000), replace(SETTINGS, **change))  # type: ignore[arg-type]
