"""How long a sound or video file is, without decoding it."""

from __future__ import annotations

from pathlib import Path

from avcap_zoo.data_modules.media.container import open_container
from avcap_zoo.errors import MediaError

_LONGEST_S = 1e6
"""Headers that declare more than eleven days say nothing of the file."""


def read_duration_s(path: Path, clip_id: str) -> float:
    """Length in seconds as the file's header declares it, or as its last packet shows it.

    Args:
        path: sound or video file.
        clip_id: named in errors.

    Raises:
        MediaError: missing, no media, or without any length.
    """
    import av
    import soundfile

    if not path.is_file():
        raise MediaError(clip_id, path, "no such file")
    try:
        info = soundfile.info(str(path))
        if 0 < info.frames / info.samplerate < _LONGEST_S:
            return float(info.frames / info.samplerate)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: a name that ends in .raw
        pass
    try:
        with open_container(path) as container:
            if not container.streams.audio and not container.streams.video:
                raise MediaError(clip_id, path, "the file has neither sound nor pictures")
            if container.duration is not None and container.duration > 0:
                return float(container.duration / 1e6)
            # Written to a pipe: no length in the header, so look at every packet.
            ends = [
                float((packet.pts + (packet.duration or 0)) * packet.time_base)
                for packet in container.demux()
                if packet.pts is not None and packet.time_base is not None
            ]
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(clip_id, path, f"not readable as sound or video: {reason}") from error
    if not ends or max(ends) <= 0:
        raise MediaError(clip_id, path, "the file has no length")
    return max(ends)
