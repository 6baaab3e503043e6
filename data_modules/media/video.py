"""Videos, and folders of pictures, to a fixed number of frames spread evenly over the clip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.data_modules.media.container import open_container
from avcap_zoo.data_modules.media.image import read_image
from avcap_zoo.errors import MediaError

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

MAX_DURATION_S = 3600.0
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def frame_times_s(duration_s: float, num_frames: int) -> NDArray[np.float64]:
    """Middle of each of `num_frames` equal parts of a clip, in seconds."""
    return (np.arange(num_frames) + 0.5) * duration_s / num_frames


def read_frames(
    path: Path, num_frames: int, size_px: int, clip_id: str, window_s: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Read K frames spread evenly over a video, a part of it, or a folder of pictures in name order.

    A single picture is seen K times.

    A video shows at each of `frame_times_s`, counted from its first frame, what a player would show then. Frames are
    resized to `size_px` on the shorter side and cropped at the centre.

    Args:
        path: video file, or folder of jpg, png or webp files.
        num_frames: K.
        size_px: side of the square frames.
        clip_id: named in errors.
        window_s: from and to, in seconds from the video's first frame; None = the whole. Pictures have no time.

    Returns:
        (K, 3, size_px, size_px) uint8.

    Raises:
        MediaError: missing, without pictures, undecodable, or (without a window) longer than an hour.
    """
    if path.is_dir():
        # A name with a dot in front, as in "._1.jpg", is some system's note about a picture.
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.name[0] != ".")
        if not pictures:
            raise MediaError(clip_id, path, "the folder holds no pictures")
        chosen = np.minimum(frame_times_s(len(pictures), num_frames).astype(int), len(pictures) - 1)
        return np.stack([read_image(pictures[index], size_px, clip_id) for index in chosen])
    if not path.is_file():
        raise MediaError(clip_id, path, "no such file")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return np.repeat(read_image(path, size_px, clip_id)[None], num_frames, axis=0)
    return _read_video(path, num_frames, size_px, clip_id, window_s)


def _read_video(
    path: Path, num_frames: int, size_px: int, clip_id: str, window_s: tuple[float, float] | None
) -> NDArray[np.uint8]:
    import av
    from av.video.reformatter import VideoReformatter

    try:
        with open_container(path) as container:
            if not container.streams.video:
                raise MediaError(clip_id, path, "the file has no pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise MediaError(clip_id, path, "no decoder for its pictures")
            stream.codec_context.thread_count = 1  # clips are small; data workers are the parallelism
            start_s, end_s = _span_s(container, stream)
            if window_s is not None:
                start_s, end_s = start_s + window_s[0], min(end_s, start_s + window_s[1])
                if window_s[0] > 0:  # to the key frame before it; what is shown until then is passed over below
                    container.seek(round(start_s / (stream.time_base or 1)), stream=stream)
            if end_s - start_s > MAX_DURATION_S:
                raise MediaError(clip_id, path, f"declares {end_s - start_s:.0f} s of video, at most 3600 are read")
            wanted_s = start_s + frame_times_s(end_s - start_s, num_frames)
            reformatter = VideoReformatter()  # one scaler for all frames: making it costs more than using it
            shown: list[NDArray[np.uint8]] = []
            current = None
            for frame in container.decode(stream):
                repeats = int(np.searchsorted(wanted_s, float(frame.time or 0.0))) - len(shown)
                if current is not None and repeats > 0:
                    shown += [_square(current, size_px, reformatter)] * repeats
                if len(shown) == num_frames:
                    break
                current = frame
            if current is not None and len(shown) < num_frames:
                shown += [_square(current, size_px, reformatter)] * (num_frames - len(shown))
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(clip_id, path, f"not decodable as video: {reason}") from error
    if not shown:
        raise MediaError(clip_id, path, "the video holds no frames")
    return np.stack(shown)


def _span_s(container: InputContainer, stream: VideoStream) -> tuple[float, float]:
    """When the first frame is shown and when the last one ends, in seconds."""
    tick_s = float(stream.time_base or 0)
    start_s = (stream.start_time or 0) * tick_s
    if stream.duration is not None:
        return start_s, start_s + stream.duration * tick_s
    if container.duration is not None:
        return start_s, max(start_s, ((container.start_time or 0) + container.duration) / 1e6)
    # Written to a pipe: no length in the header, so look at every packet.
    ends = [p.pts + (p.duration or 0) for p in container.demux(stream) if p.pts is not None]
    container.seek(0)
    return start_s, max(ends, default=0) * tick_s


def _square(frame: VideoFrame, size_px: int, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """(3, size, size) of a decoded frame, upright."""
    scale = size_px / min(frame.width, frame.height)
    width, height = max(size_px, round(frame.width * scale)), max(size_px, round(frame.height * scale))
    rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    top, left = (height - size_px) // 2, (width - size_px) // 2
    square = rgb[top : top + size_px, left : left + size_px].transpose(2, 0, 1)
    return np.rot90(square, round((frame.rotation or 0) / 90), axes=(1, 2)).astype(np.uint8)
