"""Synthesis of the twelve sounds in numpy: noise bands, decaying partials and swept tones.

A sound knows nothing of the event or the picture it goes with, so that events which share a sound cannot be told
apart by ear. All parameters are drawn before any noise, from a generator of their own: the same clip at another
sample rate has the same strokes at the same times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.data_modules.scenes.events import SOUNDS, Loudness, Speed
from avcap_zoo.errors import ConfigError

Samples = NDArray[np.float32]

LEVEL_RMS: Final[dict[Loudness, float]] = {"normal": 0.06, "loud": 0.22, "quiet": 0.015}
"""Root mean square of the sounding parts, full scale = 1."""

RATE_FACTOR: Final[dict[Speed, float]] = {"normal": 1.0, "fast": 2.3, "slow": 0.42}
"""Strokes per second, relative to the ordinary rate of the sound. The three ranges do not touch."""

_LOOP_S: Final = 4.0
_MIN_SAMPLE_RATE_HZ: Final = 8000


def synthesise_sound(
    sound: str,
    duration_s: float,
    *,
    loudness: Loudness = "normal",
    speed: Speed = "normal",
    sample_rate_hz: int = 16000,
    seed: tuple[int, ...] = (0,),
) -> Samples:
    """One sound for a stretch of time.

    Args:
        sound: one of `events.SOUNDS`.
        duration_s: length in seconds, > 0.
        loudness: sets the level (`LEVEL_RMS`).
        speed: sets the strokes per second (`RATE_FACTOR`); sounds without strokes ignore it.
        sample_rate_hz: 8000 or more; content lies below 7 kHz where the rate allows it.
        seed: non-negative integers; the same seed gives the same samples.

    Returns:
        (S,) float32, S = round(duration_s * sample_rate_hz), with 10 ms fades at both ends.

    Raises:
        ConfigError: unknown sound, or sample_rate_hz below 8000.
    """
    if sound not in _SYNTHESISERS:
        raise ConfigError(f"there is no sound {sound!r}; the sounds are {', '.join(SOUNDS)}")
    check_sample_rate(sample_rate_hz)
    num_samples = max(1, round(duration_s * sample_rate_hz))
    parameters = np.random.default_rng([*seed, 0])
    noise = np.random.default_rng([*seed, 1])
    samples = _SYNTHESISERS[sound](_Canvas(num_samples, sample_rate_hz, parameters, noise), RATE_FACTOR[speed])
    samples *= np.float32(LEVEL_RMS[loudness] / max(_sounding_rms(samples, sample_rate_hz), 1e-9))
    fade = min(num_samples // 2, sample_rate_hz // 100)
    if fade:
        ramp = np.linspace(0.0, 1.0, fade, dtype=np.float32)
        samples[:fade] *= ramp
        samples[-fade:] *= ramp[::-1]
    return samples


def check_sample_rate(sample_rate_hz: int) -> None:
    """Refuse rates that cannot hold the sounds.

    Raises:
        ConfigError: below 8000 Hz.
    """
    if sample_rate_hz < _MIN_SAMPLE_RATE_HZ:
        raise ConfigError(f"sample_rate_hz is {sample_rate_hz}; the scenes need {_MIN_SAMPLE_RATE_HZ} or more")


def limit_peaks(samples: Samples, knee: float = 0.7) -> Samples:
    """Bend peaks above `knee` smoothly towards 1, in place; what is below stays as it is."""
    magnitude = np.abs(samples)
    if magnitude.max(initial=0.0) > knee:
        over = magnitude > knee
        room = 0.99 - knee
        bent = knee + room * np.tanh((magnitude[over] - knee) / room)
        samples[over] = np.copysign(bent, samples[over])
    return samples


def _sounding_rms(samples: Samples, sample_rate_hz: int) -> float:
    """Level of the sounding parts: the 90th percentile of the root mean square over 40 ms pieces.

    The mean over everything would make slow strokes louder than fast ones of the same name.
    """
    piece = max(1, sample_rate_hz // 25)
    count = len(samples) // piece
    if count < 2:
        return float(np.sqrt(np.mean(np.square(samples))))
    power = np.mean(np.square(samples[: count * piece].reshape(count, piece)), axis=1)
    return float(np.sqrt(np.quantile(power[power >= 0.05 * power.max()], 0.9)))


class _Canvas:
    """What every synthesiser needs: the length, the rate, and two generators."""

    def __init__(
        self, num_samples: int, sample_rate_hz: int, parameters: np.random.Generator, noise: np.random.Generator
    ) -> None:
        self.num_samples = num_samples
        self.sample_rate_hz = sample_rate_hz
        self.parameters = parameters
        self.noise = noise

    def draw(self, low: float, high: float) -> float:
        """A uniform parameter."""
        return float(self.parameters.uniform(low, high))

    def time(self, duration_s: float | None = None) -> NDArray[np.float64]:
        """Sample times in seconds, of the whole canvas or of a short piece."""
        count = self.num_samples if duration_s is None else max(2, round(duration_s * self.sample_rate_hz))
        return np.arange(count) / self.sample_rate_hz

    def band_noise(self, low_hz: float, high_hz: float, num_samples: int | None = None) -> Samples:
        """Noise between two frequencies, unit RMS. Longer than four seconds it repeats, without a seam."""
        wanted = self.num_samples if num_samples is None else num_samples
        count = min(wanted, round(_LOOP_S * self.sample_rate_hz))
        padded = 1 << max(6, (count - 1).bit_length())
        frequency = np.fft.rfftfreq(padded, 1 / self.sample_rate_hz)
        first, last = np.searchsorted(frequency, (low_hz, high_hz))
        spectrum = np.zeros(len(frequency), dtype=np.complex64)
        width = max(1, int(last - first))
        end = min(first + width, len(frequency))
        values = self.noise.standard_normal((2, width), dtype=np.float32)[:, : end - first]
        spectrum[first:end] = values[0] + 1j * values[1]
        samples = np.fft.irfft(spectrum, padded).astype(np.float32)
        samples /= max(float(np.sqrt(np.mean(np.square(samples)))), 1e-9)
        return np.resize(samples, wanted)

    def slow_curve(self, low: float, high: float, points_per_s: float) -> Samples:
        """A random piecewise linear curve over the whole canvas."""
        duration_s = self.num_samples / self.sample_rate_hz
        count = max(2, int(np.ceil(duration_s * points_per_s)) + 1)
        heights = self.parameters.uniform(low, high, count)
        places = np.linspace(0, self.num_samples - 1, count)
        curve: Samples = np.interp(np.arange(self.num_samples), places, heights).astype(np.float32)
        return curve

    def strokes(self, rate_hz: float, shots: list[Samples], *, spread: float = 0.08) -> Samples:
        """Set short sounds at a nearly even rate; each is one of `shots`, with a slightly different level."""
        result = np.zeros(self.num_samples, dtype=np.float32)
        duration_s = self.num_samples / self.sample_rate_hz
        time_s = self.draw(0.0, min(0.25, 0.3 / rate_hz))
        while time_s < duration_s:
            shot = shots[int(self.parameters.integers(len(shots)))]
            gain = np.float32(self.draw(0.85, 1.0))
            start = int(time_s * self.sample_rate_hz)
            piece = shot[: self.num_samples - start]
            result[start : start + len(piece)] += gain * piece
            time_s += (1 + self.draw(-spread, spread)) / rate_hz
        return result


def _wave_from_table(phase: NDArray[np.float64], harmonics: NDArray[np.float64]) -> Samples:
    """A periodic wave with the given harmonic amplitudes, looked up at `phase` (in turns)."""
    turns = np.arange(2048) / 2048
    order = np.arange(1, len(harmonics) + 1)
    table = (harmonics[:, None] * np.sin(2 * np.pi * order[:, None] * turns)).sum(axis=0).astype(np.float32)
    picked: Samples = table[(phase * 2048).astype(np.int64) & 2047]
    return picked


def _hiss(canvas: _Canvas, rate_factor: float) -> Samples:
    high_hz = canvas.draw(6300, 7000)
    low_hz = canvas.draw(2200, 2800)
    num_crackles = max(3, int(canvas.num_samples / canvas.sample_rate_hz * canvas.draw(10, 16)))
    places = canvas.parameters.random(num_crackles)
    heights = canvas.parameters.uniform(3, 8, num_crackles) * canvas.parameters.choice([-1, 1], num_crackles)
    swell = canvas.slow_curve(0.8, 1.1, 1.5)
    samples = canvas.band_noise(low_hz, high_hz) * swell
    click = np.exp(-canvas.time(0.004) / 0.0008) * np.cos(2 * np.pi * 3800 * canvas.time(0.004))
    for place, height in zip(places, heights, strict=True):
        start = int(place * canvas.num_samples)
        piece = click[: canvas.num_samples - start]
        samples[start : start + len(piece)] += (height * piece).astype(np.float32)
    return samples


def _thud(canvas: _Canvas, rate_factor: float) -> Samples:
    rate_hz = canvas.draw(1.7, 2.2) * rate_factor
    time = canvas.time(0.16)
    shots = []
    for _ in range(3):
        pitch_hz = canvas.draw(75, 115)
        falling = pitch_hz * time + pitch_hz * 0.5 * 0.02 * (1 - np.exp(-time / 0.02))
        body = np.sin(2 * np.pi * falling) * np.exp(-time / 0.045)
        knock = 0.25 * np.sin(2 * np.pi * canvas.draw(300, 420) * time) * np.exp(-time / 0.012)
        shots.append(((body + knock) * np.minimum(1, time / 0.002)).astype(np.float32))
    return canvas.strokes(rate_hz, shots)


def _beep(canvas: _Canvas, rate_factor: float) -> Samples:
    rate_hz = canvas.draw(1.7, 2.2) * rate_factor
    pitch_hz = canvas.draw(950, 1250)
    time = canvas.time(0.14)
    odd = np.array([1 / k if k % 2 and k * pitch_hz < 7000 else 0.0 for k in range(1, 8)])
    shape = np.minimum(1, np.minimum(time / 0.004, (time[-1] - time) / 0.004))
    shot = (_wave_from_table(pitch_hz * time, odd) * shape).astype(np.float32)
    return canvas.strokes(rate_hz, [shot], spread=0.02)


def _hum(canvas: _Canvas, rate_factor: float) -> Samples:
    base_hz = canvas.draw(62, 92)
    drift = canvas.slow_curve(0.94, 1.06, 1.0)
    swell = canvas.slow_curve(0.8, 1.1, 2.0)
    phase = np.cumsum(drift.astype(np.float64)) * (base_hz / canvas.sample_rate_hz)
    harmonics = np.array([1, 0.9, 0.75, 0.6, 0.5, 0.38, 0.3, 0.22, 0.16, 0.12])
    rumble = canvas.band_noise(60, 300)
    return (_wave_from_table(phase, harmonics) + np.float32(0.25) * rumble) * swell


def _horn(canvas: _Canvas, rate_factor: float) -> Samples:
    rate_hz = canvas.draw(1.0, 1.3) * rate_factor
    low_hz = canvas.draw(380, 430)
    time = canvas.time(min(0.5, 0.62 / rate_hz))
    harmonics = np.array([1, 0.7, 0.8, 0.5, 0.45, 0.3, 0.2])
    tone = _wave_from_table(low_hz * time, harmonics) + _wave_from_table(low_hz * 1.26 * time, harmonics)
    shape = np.minimum(1, np.minimum(time / 0.015, (time[-1] - time) / 0.03))
    return canvas.strokes(rate_hz, [(tone * shape).astype(np.float32)], spread=0.05)


def _siren(canvas: _Canvas, rate_factor: float) -> Samples:
    rate_hz = canvas.draw(0.55, 0.7) * rate_factor
    start = canvas.draw(0, 1)
    low_hz, high_hz = canvas.draw(520, 640), canvas.draw(1350, 1600)
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * (rate_hz * canvas.time() + start))
    phase = np.cumsum(low_hz * (high_hz / low_hz) ** swing) / canvas.sample_rate_hz
    return _wave_from_table(phase, np.array([1.0, 0.12, 0.05]))


def _bark(canvas: _Canvas, rate_factor: float) -> Samples:
    rate_hz = canvas.draw(1.5, 1.9) * rate_factor
    time = canvas.time(0.17)
    shots = []
    rough = canvas.band_noise(600, 2200, len(time))
    for _ in range(3):
        top_hz = canvas.draw(560, 680)
        glide = top_hz * (0.55 + 0.45 * np.sin(np.pi * np.minimum(1, time / 0.15)))
        phase = np.cumsum(glide) / canvas.sample_rate_hz
        tone = _wave_from_table(phase, np.array([1, 0.8, 0.6, 0.3, 0.15]))
        shape = np.minimum(1, time / 0.008) * np.exp(-time / 0.06)
        shots.append(((tone + np.float32(0.35) * rough) * shape).astype(np.float32))
    return canvas.strokes(rate_hz, shots, spread=0.12)


def _growl(canvas: _Canvas, rate_factor: float) -> Samples:
    rate_hz = canvas.draw(1.0, 1.25) * rate_factor
    flutter_hz = canvas.draw(24, 32)
    centre_hz = canvas.draw(330, 420)
    time = canvas.time(0.7 / rate_hz)
    noise = canvas.band_noise(centre_hz * 0.5, centre_hz * 1.7, len(time))
    flutter = np.square(0.5 + 0.5 * np.sin(2 * np.pi * flutter_hz * time))
    shape = np.sin(np.pi * np.minimum(1, time / time[-1])) ** 0.5
    return canvas.strokes(rate_hz, [(noise * (0.1 + flutter) * shape).astype(np.float32)])


def _chirp(canvas: _Canvas, rate_factor: float) -> Samples:
    rate_hz = canvas.draw(1.8, 2.3) * rate_factor
    time = canvas.time(0.13)
    shots = []
    for _ in range(3):
        low_hz, rise_hz = canvas.draw(3000, 3600), canvas.draw(1300, 1900)
        glide = low_hz + rise_hz * np.abs(np.sin(2 * np.pi * time / 0.13))
        tone = np.sin(2 * np.pi * np.cumsum(glide) / canvas.sample_rate_hz)
        shots.append((tone * np.sin(np.pi * np.minimum(1, time / time[-1]))).astype(np.float32))
    return canvas.strokes(rate_hz, shots, spread=0.12)


def _bell(canvas: _Canvas, rate_factor: float) -> Samples:
    rate_hz = canvas.draw(1.3, 1.7) * rate_factor
    base_hz = canvas.draw(680, 860)
    time = canvas.time(1.1)
    tone = np.zeros(len(time))
    for ratio, height, decay_s in (
        (1, 1, 0.5),
        (2.02, 0.7, 0.32),
        (2.98, 0.6, 0.22),
        (4.21, 0.45, 0.15),
        (5.43, 0.3, 0.1),
    ):
        tone += height * np.sin(2 * np.pi * base_hz * ratio * time) * np.exp(-time / decay_s)
    tone *= np.minimum(1, time / 0.001)
    return canvas.strokes(rate_hz, [tone.astype(np.float32)], spread=0.04)


def _wind(canvas: _Canvas, rate_factor: float) -> Samples:
    low_hz = canvas.draw(350, 450)
    high_hz = canvas.draw(1000, 1300)
    gusts = canvas.slow_curve(0.25, 1.3, 1.2)
    whistle_level = canvas.slow_curve(0.0, 0.6, 1.2)
    breath = canvas.band_noise(low_hz, high_hz)
    whistle = canvas.band_noise(low_hz * 1.4, low_hz * 1.5)
    return breath * gusts + whistle * whistle_level


def _claps(canvas: _Canvas, rate_factor: float) -> Samples:
    duration_s = canvas.num_samples / canvas.sample_rate_hz
    num_claps = max(8, int(duration_s * canvas.draw(16, 22)))
    places = canvas.parameters.random(num_claps)
    kinds = canvas.parameters.integers(0, 4, num_claps)
    heights = canvas.parameters.uniform(0.4, 1.0, num_claps)
    time = canvas.time(0.05)
    shape = np.exp(-time / 0.008).astype(np.float32)
    shots = [canvas.band_noise(900 + 150 * i, 2600 + 250 * i, len(time)) * shape for i in range(4)]
    result = np.zeros(canvas.num_samples, dtype=np.float32)
    for place, kind, height in zip(places, kinds, heights, strict=True):
        start = int(place * canvas.num_samples)
        piece = shots[kind][: canvas.num_samples - start]
        result[start : start + len(piece)] += np.float32(height) * piece
    return result


_SYNTHESISERS: Final[dict[str, Callable[[_Canvas, float], Samples]]] = {
    "hiss": _hiss,
    "thud": _thud,
    "beep": _beep,
    "hum": _hum,
    "horn": _horn,
    "siren": _siren,
    "bark": _bark,
    "growl": _growl,
    "chirp": _chirp,
    "bell": _bell,
    "wind": _wind,
    "claps": _claps,
}
