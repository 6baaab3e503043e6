"""Sound files to mono float32 at one sample rate: soundfile first, PyAV for what it cannot read, soxr to resample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.data_modules.media.container import open_container
from avcap_zoo.data_modules.media.limits import DEFAULT_LIMITS, MediaLimits
from avcap_zoo.errors import MediaError

_VALUES_PER_READ = 1 << 22
_LEAD_S = 0.2
"""A compressed stream is entered so much early: its first block after a jump is not yet right."""
_UNKNOWN_LENGTH = (1 << 63) - 1
"""What libsndfile says of a flac that was written to a pipe."""


def read_audio(
    path: Path,
    sample_rate_hz: int,
    clip_id: str,
    window_s: tuple[float, float] | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> NDArray[np.float32]:
    """Read a sound, the sound track of a video, or a part of one, as mono.

    Channels are averaged; resampling is soxr HQ (about 1 ms for 10 s). A wav or mp3 that breaks off is read so far.

    Args:
        path: wav, flac, ogg, mp3, or anything FFmpeg's libraries decode.
        sample_rate_hz: rate of the result.
        clip_id: named in errors.
        window_s: from and to, in seconds; None = the whole.
        limits: what the file may cost.

    Returns:
        (S,) float32 in [-1, 1].

    Raises:
        MediaError: missing, empty, undecodable, silent by lack of samples, not finite, beyond a limit,
            or ended before `window_s`.
    """
    if not path.is_file():
        raise MediaError(clip_id, path, "no such file")
    if path.stat().st_size == 0:
        raise MediaError(clip_id, path, "the file is empty (0 bytes)")
    mono, rate = _decode(path, clip_id, limits, window_s)
    if window_s is not None and not len(mono):
        raise MediaError(clip_id, path, f"ends before {window_s[0]:g} s, where the clip begins")
    if not len(mono):
        raise MediaError(clip_id, path, "the file holds no samples")
    if not np.isfinite(mono).all():
        raise MediaError(clip_id, path, "the file holds samples that are not finite")
    if rate != sample_rate_hz:
        import soxr

        mono = soxr.resample(mono, rate, sample_rate_hz, quality="HQ")
    clipped: NDArray[np.float32] = np.clip(mono, -1.0, 1.0).astype(np.float32, copy=False)
    return clipped


def _decode(
    path: Path, clip_id: str, limits: MediaLimits, window_s: tuple[float, float] | None
) -> tuple[NDArray[np.float32], int]:
    """(S,) mean of the channels, and the sample rate."""
    import soundfile

    parts: list[NDArray[np.float32]] = []
    num_samples = 0
    check_time = limits.stopwatch(clip_id, path)
    try:
        with soundfile.SoundFile(path) as file:
            _check_channels(file.channels, clip_id, path, limits)
            left = _UNKNOWN_LENGTH
            if window_s is not None and file.seekable():
                file.seek(min(file.frames, round(window_s[0] * file.samplerate)))
                left = round((window_s[1] - window_s[0]) * file.samplerate)
            elif file.frames < _UNKNOWN_LENGTH:
                _check_length(file.frames, file.samplerate, clip_id, path, limits)
            # In pieces: a header that lies about its length would make one read ask for all of it at once.
            most = max(1, _VALUES_PER_READ // file.channels)
            while len(part := file.read(min(most, left - num_samples), dtype="float32", always_2d=True)):
                parts.append(part[:, 0] if part.shape[1] == 1 else part.mean(axis=1, dtype=np.float32))
                num_samples += len(part)
                _check_length(num_samples, file.samplerate, clip_id, path, limits)
                check_time()
            mono = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, np.float32)
            return mono, file.samplerate
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name that ends in .raw
        return _decode_with_pyav(path, clip_id, limits, window_s)


def _decode_with_pyav(
    path: Path, clip_id: str, limits: MediaLimits, window_s: tuple[float, float] | None
) -> tuple[NDArray[np.float32], int]:
    import av

    parts: list[NDArray[np.float32]] = []
    num_samples = 0
    rate, layout, resampler = 0, "", None
    check_time = limits.stopwatch(clip_id, path)
    try:
        with open_container(path) as container:
            if not container.streams.audio:
                raise MediaError(clip_id, path, "the file has no sound track")
            if container.streams.audio[0].codec_context is None:
                raise MediaError(clip_id, path, "no decoder for its sound")
            stream = container.streams.audio[0]
            start_s = float((stream.start_time or 0) * (stream.time_base or 0))
            if window_s is not None and window_s[0] > _LEAD_S:
                container.seek(int((start_s + window_s[0] - _LEAD_S) / float(stream.time_base or 1)), stream=stream)
            for frame in container.decode(stream):
                if window_s is not None and (frame.time or 0.0) - start_s >= window_s[1]:
                    break
                if not parts:
                    first_s = (frame.time or 0.0) - start_s
                if rate and frame.sample_rate != rate:
                    raise MediaError(clip_id, path, f"the sample rate changes from {rate} to {frame.sample_rate} Hz")
                if resampler is None or frame.layout.name != layout:
                    _check_channels(frame.layout.nb_channels, clip_id, path, limits)
                    rate, layout = frame.sample_rate, frame.layout.name
                    # Planar float per channel: FFmpeg's own down-mix to mono would change the level by 0.707 a channel.
                    resampler = av.AudioResampler(format="fltp", rate=rate)
                for plain in resampler.resample(frame):
                    parts.append(plain.to_ndarray().mean(axis=0, dtype=np.float32))
                    num_samples += plain.samples
                _check_length(num_samples, rate, clip_id, path, limits)
                check_time()
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(clip_id, path, f"not decodable as sound: {reason}") from error
    mono = np.concatenate(parts) if parts else np.empty(0, np.float32)
    if window_s is not None and parts:
        first = max(0, round((window_s[0] - first_s) * rate))
        mono = mono[first : first + round((window_s[1] - window_s[0]) * rate)]
    return mono, rate


def _check_channels(channels: int, clip_id: str, path: Path, limits: MediaLimits) -> None:
    if channels > limits.max_channels:
        reason = f"{channels} channels, at most {limits.max_channels} are read (limits.max_channels)"
        raise MediaError(clip_id, path, reason)


def _check_length(num_samples: int, rate_hz: int, clip_id: str, path: Path, limits: MediaLimits) -> None:
    if num_samples > limits.max_duration_s * rate_hz:
        reason = f"more than {limits.max_duration_s:g} s of sound, the most that is read (limits.max_duration_s)"
        raise MediaError(clip_id, path, reason)
