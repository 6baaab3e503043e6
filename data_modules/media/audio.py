"""Sound files to mono float32 at one sample rate: soundfile first, PyAV for what it cannot read, soxr to resample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.errors import MediaError

MAX_DURATION_S = 3600.0
"""Longer sounds are refused: no captioning clip is, and a hostile header may declare anything."""


def read_audio(path: Path, sample_rate_hz: int, clip_id: str) -> NDArray[np.float32]:
    """Read a sound, or the sound track of a video, as mono.

    Channels are averaged; resampling is soxr HQ (about 1 ms for 10 s).

    Args:
        path: wav, flac, ogg, mp3, or anything FFmpeg's libraries decode.
        sample_rate_hz: rate of the result.
        clip_id: named in errors.

    Returns:
        (S,) float32 in [-1, 1].

    Raises:
        MediaError: missing, empty, undecodable, silent by lack of samples, not finite, or longer than an hour.
    """
    if not path.is_file():
        raise MediaError(clip_id, path, "no such file")
    if path.stat().st_size == 0:
        raise MediaError(clip_id, path, "the file is empty (0 bytes)")
    channels_last, rate = _decode(path, clip_id)
    if channels_last.shape[0] == 0 or channels_last.shape[1] == 0:
        raise MediaError(clip_id, path, "the file holds no samples")
    mono = channels_last.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise MediaError(clip_id, path, "the file holds samples that are not finite")
    if rate != sample_rate_hz:
        import soxr

        mono = soxr.resample(mono, rate, sample_rate_hz, quality="HQ")
    return np.clip(mono, -1.0, 1.0).astype(np.float32, copy=False)


def _decode(path: Path, clip_id: str) -> tuple[NDArray[np.float32], int]:
    """(S, channels) samples and their rate."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            if file.frames > MAX_DURATION_S * file.samplerate:
                raise MediaError(
                    clip_id, path, f"declares {file.frames / file.samplerate:.0f} s of sound, at most 3600 are read"
                )
            return file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError:
        return _decode_with_pyav(path, clip_id)


def _decode_with_pyav(path: Path, clip_id: str) -> tuple[NDArray[np.float32], int]:
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise MediaError(clip_id, path, "the file has no sound track")
            rate = int(container.streams.audio[0].rate)
            # Planar float per channel: FFmpeg's own down-mix to mono would change the level by 0.707 per channel.
            resampler = av.AudioResampler(format="fltp", rate=rate)
            parts: list[NDArray[np.float32]] = []
            num_samples = 0
            for frame in container.decode(audio=0):
                for plain in resampler.resample(frame):
                    parts.append(plain.to_ndarray())
                    num_samples += plain.samples
                if num_samples > MAX_DURATION_S * rate:
                    raise MediaError(clip_id, path, "more than 3600 s of sound, at most 3600 are read")
    except av.error.FFmpegError as error:
        raise MediaError(clip_id, path, f"not decodable as sound: {error.strerror or error}") from error
    if not parts:
        raise MediaError(clip_id, path, "the sound track holds no samples")
    return np.concatenate(parts, axis=1).T, rate
