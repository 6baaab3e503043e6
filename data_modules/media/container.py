"""Opening of sound and video files by FFmpeg's libraries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer

_FORMATS = (
    "aac,ac3,aiff,amr,apng,asf,au,avi,caf,dv,eac3,flac,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,ogg,rm,tta,w64,wav,wv"
)


def open_container(path: Path) -> InputContainer:
    """Open a file that holds its own sound and pictures.

    Playlists (HLS, DASH, concat) are refused whatever they are called: they would make FFmpeg open other files.
    Titles and tags that are no UTF-8 do not matter.

    Args:
        path: file to open.

    Raises:
        av.error.FFmpegError: missing, unreadable, or in none of the formats that hold media.
    """
    import av

    container: InputContainer = av.open(str(path), metadata_errors="ignore", options={"format_whitelist": _FORMATS})
    return container
