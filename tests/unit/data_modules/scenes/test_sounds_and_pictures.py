"""The twelve sounds and thirteen pictures: distinct from each other, and blind to the event they go with."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from avcap_zoo.data_modules.scenes.events import PICTURES, SOUNDS, Loudness, Speed
from avcap_zoo.data_modules.scenes.pictures import (
    BACKGROUNDS,
    COLOURS,
    draw_background,
    draw_icon,
    icon_extent,
    icon_pixels,
)
from avcap_zoo.data_modules.scenes.sounds import LEVEL_RMS, limit_peaks, synthesise_sound
from avcap_zoo.errors import ConfigError


def _spectrum(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean and peak log spectrum over time in 48 bands, and how much it flickers."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, 512)[::320] * np.hanning(512)
    power = np.abs(np.fft.rfft(windows)) ** 2
    edges = np.unique(np.geomspace(1, 257, 49).astype(int))
    bands = np.log(np.add.reduceat(power, edges[:-1], axis=1) + 1e-4)
    return np.concatenate([bands.mean(0), np.quantile(bands, 0.9, axis=0), np.abs(np.diff(bands, axis=0)).mean(0)])


@pytest.mark.parametrize("sound", SOUNDS)
def test_levels_follow_the_adverb(sound: str) -> None:
    levels: list[Loudness] = ["quiet", "normal", "loud"]
    rms = [np.sqrt(np.mean(synthesise_sound(sound, 3.0, loudness=level, seed=(1,)) ** 2)) for level in levels]
    assert rms[1] / rms[0] == pytest.approx(LEVEL_RMS["normal"] / LEVEL_RMS["quiet"], rel=1e-3)
    assert rms[2] / rms[1] == pytest.approx(LEVEL_RMS["loud"] / LEVEL_RMS["normal"], rel=1e-3)
    assert 0.1 * LEVEL_RMS["normal"] < rms[1] < 1.5 * LEVEL_RMS["normal"]


@pytest.mark.parametrize("sound", ["thud", "beep", "horn", "bark", "chirp", "bell"])
def test_strokes_follow_the_adverb(sound: str) -> None:
    def count(speed: Speed, seed: int) -> int:
        samples = synthesise_sound(sound, 8.0, speed=speed, seed=(seed,))
        envelope = np.sqrt(np.convolve(samples**2, np.ones(800) / 800, "same"))[::80]
        rising = envelope[5:] > 1.25 * envelope[:-5]
        loud = envelope[5:] > 0.35 * np.quantile(envelope, 0.98)
        starts = rising & loud
        return int((starts[1:] & ~starts[:-1]).sum())

    slow, normal, fast = (np.mean([count(speed, seed) for seed in range(3)]) for speed in ("slow", "normal", "fast"))
    assert slow < 0.7 * normal < 0.7 * 0.75 * fast


def test_growls_and_sirens_follow_the_adverb() -> None:
    def growls_per_s(speed: Speed, seed: int) -> float:
        power = synthesise_sound("growl", 10.0, speed=speed, seed=(seed,)) ** 2
        swell = np.abs(np.fft.rfft(power - power.mean()))[: 5 * 10]  # below 5 Hz: strokes, not the flutter in them
        return float(swell.argmax()) / 10

    def turns_per_s(speed: Speed, seed: int) -> float:
        clip = synthesise_sound("siren", 10.0, speed=speed, seed=(seed,)).reshape(100, -1)
        pitch = (np.diff(np.signbit(clip), axis=1) != 0).mean(axis=1)  # zero crossings in each tenth of a second
        return float(np.abs(np.fft.rfft(pitch - pitch.mean())).argmax()) / 10

    for rate in (growls_per_s, turns_per_s):
        slow, normal, fast = (max(rate(speed, seed) for seed in range(4)) for speed in ("slow", "normal", "fast"))
        slowest_normal, slowest_fast = (min(rate(speed, seed) for seed in range(4)) for speed in ("normal", "fast"))
        assert 0 < slow < slowest_normal
        assert normal < slowest_fast <= fast


def test_a_nearest_centroid_tells_all_sounds_apart() -> None:
    speeds: list[Speed] = ["normal", "fast", "slow"]
    levels: list[Loudness] = ["normal", "loud", "quiet"]

    def features(sound: str, seed: int) -> NDArray[np.float64]:
        clip = synthesise_sound(sound, 2.0, speed=speeds[seed % 3], loudness=levels[seed // 3 % 3], seed=(seed,))
        return _spectrum(clip / np.sqrt(np.mean(clip**2)))

    centroids = np.stack([np.mean([features(sound, seed) for seed in range(9)], axis=0) for sound in SOUNDS])
    right = [
        int(np.argmin(np.linalg.norm(centroids - features(sound, seed), axis=1))) == number
        for number, sound in enumerate(SOUNDS)
        for seed in range(9, 18)
    ]
    assert np.mean(right) > 0.95


def test_sounds_are_deterministic_and_seeds_differ() -> None:
    for sound in SOUNDS:
        one = synthesise_sound(sound, 1.0, seed=(4, 2))
        assert np.array_equal(one, synthesise_sound(sound, 1.0, seed=(4, 2)))
        assert not np.array_equal(one, synthesise_sound(sound, 1.0, seed=(4, 3)))
        assert np.isfinite(synthesise_sound(sound, 0.05, seed=(1,))).all()


def test_limiter_keeps_small_samples_and_full_scale() -> None:
    samples = np.array([0.1, -0.6, 0.8, -3.0], dtype=np.float32)
    limited = limit_peaks(samples.copy())
    assert limited[:2].tolist() == samples[:2].tolist()
    assert 0.7 < limited[2] < 0.8
    assert -1 < limited[3] < -0.95


def test_icons_are_distinct_at_the_smallest_size() -> None:
    small = [icon_pixels(picture, "red", False, 14) for picture in PICTURES]
    for first in range(len(PICTURES)):
        for second in range(first):
            difference = np.abs(small[first][0] - small[second][0]).mean()
            assert difference > 15, (PICTURES[first], PICTURES[second])


def test_icons_fill_their_square_and_mirror() -> None:
    for picture in PICTURES:
        left, top, right, bottom = icon_extent(picture)
        assert max(right - left, bottom - top) > 0.85
        assert icon_extent(picture, True)[0] == pytest.approx(1 - right, abs=1e-6)
        assert draw_icon(picture, "blue").size == (192, 192)


def test_backgrounds_are_pale_and_scale() -> None:
    for colour in BACKGROUNDS:
        small, large = (draw_background(colour, size, (1, 2)) for size in (32, 64))
        assert large.shape == (64, 64, 3)
        assert large.mean() > 150
        assert np.abs(large.reshape(32, 2, 32, 2, 3).mean((1, 3)) - small).max() < 12


def test_unknown_names_are_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match="hiss"):
        synthesise_sound("moo", 1.0)
    with pytest.raises(ConfigError, match="cloud"):
        draw_icon("cow", "red")
    with pytest.raises(ConfigError, match="purple"):
        draw_icon("dog", "mauve")
    with pytest.raises(ConfigError, match="grey"):
        draw_background("mauve", 32, (0,))
    assert len(COLOURS) == 8
