from __future__ import annotations

import io

import numpy as np
import soundfile

from avcap_zoo.data_modules.media.encoding import encode_mp3

RATE_HZ = 16_000


def test_an_mp3_sounds_like_what_went_in() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE_HZ) / RATE_HZ).astype(np.float32)
    content = encode_mp3(tone, RATE_HZ)
    assert len(content) < 20_000
    heard, rate_hz = soundfile.read(io.BytesIO(content))
    assert rate_hz == RATE_HZ
    assert abs(len(heard) - len(tone)) < 2_500  # the format's padding
    spectrum = np.abs(np.fft.rfft(heard))
    assert round(float(np.argmax(spectrum)) * rate_hz / len(heard)) == 440
