"""Sound files to mono float32 at one sample rate: soundfile first, PyAV for what it cannot read, soxr to resample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.data_modules.media.container import open_container
from avcap_zoo.errors import MediaError

MAX_DURATION_S = 3600.0
"""Longer sounds are refused: no captioning clip is, and a hostile header may declare anything."""

_TOO_LONG = "holds more than 3600 s of sound, the most that is read"
_RUN_UP_S = 0.2
"""Decoded before a window: codecs need what went before."""
_VALUES_PER_READ = 1 << 22
_UNKNOWN_LENGTH = (1 << 63) - 1
"""What libsndfile says of a flac that was written to a pipe."""


def read_audio(
    path: Path, sample_rate_hz: int, clip_id: str, window_s: tuple[float, float] | None = None
) -> NDArray[np.float32]:
    """Read a sound, the sound track of a video, or a part of one, as mono.

    Channels are averaged; resampling is soxr HQ (about 1 ms for 10 s). A wav or mp3 that breaks off is read so far.

    Args:
        path: wav, flac, ogg, mp3, or anything FFmpeg's libraries decode.
        sample_rate_hz: rate of the result.
        clip_id: named in errors.
        window_s: from and to, in seconds; None = the whole.

    Returns:
        (S,) float32 in [-1, 1].

    Raises:
        MediaError: missing, empty, undecodable, silent by lack of samples, not finite, or (without a window) longer
            than an hour.
    """
    if not path.is_file():
        raise MediaError(clip_id, path, "no such file")
    if path.stat().st_size == 0:
        raise MediaError(clip_id, path, "the file is empty (0 bytes)")
    mono, rate = _decode(path, clip_id, window_s)
    if not len(mono):
        raise MediaError(clip_id, path, "the file holds no samples")
    if not np.isfinite(mono).all():
        raise MediaError(clip_id, path, "the file holds samples that are not finite")
    if rate != sample_rate_hz:
        import soxr

        mono = soxr.resample(mono, rate, sample_rate_hz, quality="HQ")
    clipped: NDArray[np.float32] = np.clip(mono, -1.0, 1.0).astype(np.float32, copy=False)
    return clipped


def _decode(path: Path, clip_id: str, window_s: tuple[float, float] | None) -> tuple[NDArray[np.float32], int]:
    """(S,) mean of the channels, and the sample rate."""
    import soundfile

    parts: list[NDArray[np.float32]] = []
    num_samples = 0
    try:
        with soundfile.SoundFile(path) as file:
            most = int(MAX_DURATION_S * file.samplerate)
            if window_s is not None:
                file.seek(min(round(window_s[0] * file.samplerate), file.frames))
                most = round((window_s[1] - window_s[0]) * file.samplerate)
            elif most < file.frames < _UNKNOWN_LENGTH:
                raise MediaError(clip_id, path, _TOO_LONG)
            # In pieces: a header that lies about its length would make one read ask for all of it at once.
            piece = max(1, _VALUES_PER_READ // file.channels)
            while len(part := file.read(min(piece, most + 1 - num_samples), dtype="float32", always_2d=True)):
                parts.append(part[:, 0] if part.shape[1] == 1 else part.mean(axis=1, dtype=np.float32))
                num_samples += len(part)
                if num_samples > most and window_s is None:
                    raise MediaError(clip_id, path, _TOO_LONG)
            mono = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.float32)
            return mono[:most], file.samplerate
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name that ends in .raw
        return _decode_with_pyav(path, clip_id, window_s)


def _decode_with_pyav(
    path: Path, clip_id: str, window_s: tuple[float, float] | None
) -> tuple[NDArray[np.float32], int]:
    import av

    parts: list[NDArray[np.float32]] = []
    num_samples = 0
    rate, layout, resampler = 0, "", None
    begin_s = 0.0
    try:
        with open_container(path) as container:
            if not container.streams.audio:
                raise MediaError(clip_id, path, "the file has no sound track")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise MediaError(clip_id, path, "no decoder for its sound")
            tick_s = float(stream.time_base or 1)
            start_s = (stream.start_time or 0) * tick_s
            if window_s is not None and window_s[0] > _RUN_UP_S:
                container.seek(round((start_s + window_s[0] - _RUN_UP_S) / tick_s), stream=stream)
            for frame in container.decode(stream):
                if rate and frame.sample_rate != rate:
                    raise MediaError(clip_id, path, f"the sample rate changes from {rate} to {frame.sample_rate} Hz")
                if not rate and window_s is not None:
                    begin_s = float(frame.time or 0.0) - start_s
                if resampler is None or frame.layout.name != layout:
                    rate, layout = frame.sample_rate, frame.layout.name
                    # Planar float per channel: FFmpeg's own down-mix to mono would change the level by 0.707 a channel.
                    resampler = av.AudioResampler(format="fltp", rate=rate)
                for plain in resampler.resample(frame):
                    parts.append(plain.to_ndarray().mean(axis=0, dtype=np.float32))
                    num_samples += plain.samples
                if window_s is not None and num_samples >= (window_s[1] - begin_s) * rate:
                    break
                if window_s is None and num_samples > MAX_DURATION_S * rate:
                    raise MediaError(clip_id, path, _TOO_LONG)
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(clip_id, path, f"not decodable as sound: {reason}") from error
    mono = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if window_s is not None:
        first, last = (max(0, round((time_s - begin_s) * rate)) for time_s in window_s)
        mono = mono[first:last]
    return mono, rate
