"""soxr, which reads our sounds, against FFmpeg's swresample: time, fidelity and rejection, in one run.

python benchmarks/resampling.py
"""

from __future__ import annotations

import time
from typing import Any

import av
import numpy as np
import soxr

SECONDS = 10
TONES_HZ = (200, 1000, 3000, 5000, 6500)
TOO_HIGH_HZ = 10_000


def by_soxr(samples: Any, rate_hz: int, wanted_hz: int) -> Any:
    """As `media.audio` does."""
    return soxr.resample(samples, rate_hz, wanted_hz, quality="HQ")


def by_swresample(samples: Any, rate_hz: int, wanted_hz: int) -> Any:
    """PyAV's resampler in planar float."""
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=wanted_hz)
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate_hz
    return np.concatenate([part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]])


def tones(rate_hz: int, frequencies_hz: tuple[int, ...]) -> Any:
    """Sum of sines, float32."""
    time_s = np.arange(SECONDS * rate_hz) / rate_hz
    return sum(0.15 * np.sin(2 * np.pi * hz * time_s) for hz in frequencies_hz).astype(np.float32)


def decibels(power: float, reference: float) -> float:
    """10 log10 of a ratio."""
    return 10 * np.log10(max(power, 1e-30) / reference)


def main() -> None:
    """Measure and print."""
    print("| from, to | resampler | ms for 10 s | signal to error, dB | 10 kHz tone left, dB |\n|---|---|---|---|---|")
    for rate_hz, wanted_hz in ((44_100, 16_000), (48_000, 16_000)):
        for name, resample in (("soxr HQ", by_soxr), ("swresample", by_swresample)):
            samples = tones(rate_hz, TONES_HZ)
            spent = []
            for _ in range(15):
                started = time.perf_counter()
                found = resample(samples, rate_hz, wanted_hz)
                spent.append(time.perf_counter() - started)
            # The filters differ in delay by whole samples at most: the best of a few shifts counts.
            wanted = tones(wanted_hz, TONES_HZ)
            middle = slice(wanted_hz, (SECONDS - 1) * wanted_hz)
            errors = []
            for shift in range(-20, 21):
                moved = found[middle.start + shift : middle.stop + shift]
                errors.append(float(np.mean((moved - wanted[middle]) ** 2)))
            fidelity = -decibels(min(errors), float(np.mean(wanted[middle] ** 2)))
            high = tones(rate_hz, (TOO_HIGH_HZ,))
            left = resample(high, rate_hz, wanted_hz)[middle]
            rejection = decibels(float(np.mean(left**2)), float(np.mean(high**2)))
            print(f"| {rate_hz}, {wanted_hz} | {name} | {1000 * min(spent):.1f} | {fidelity:.0f} | {rejection:.0f} |")


if __name__ == "__main__":
    main()
