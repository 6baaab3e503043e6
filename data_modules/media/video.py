"""Videos, and folders of pictures, to a fixed number of frames spread evenly over the clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.data_modules.media.container import open_container
from avcap_zoo.data_modules.media.image import read_image
from avcap_zoo.data_modules.media.limits import DEFAULT_LIMITS, MediaLimits
from avcap_zoo.errors import MediaError

if TYPE_CHECKING:
    from av import VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SEEK_GAP_S = 10.0
"""A wanted time farther ahead is jumped to; nearer ones are reached sooner by decoding on."""


def frame_times_s(duration_s: float, num_frames: int, frames_per_s: float | None = None) -> NDArray[np.float64]:
    """When the frames of a clip are taken, in seconds.

    Args:
        duration_s: of the clip.
        num_frames: K.
        frames_per_s: None spreads K frames: the middle of each of K equal parts. A rate takes the middle of each of
            the first K steps of that rate, fewer where the clip ends before, and always at least one.
    """
    middles: NDArray[np.float64] = np.arange(num_frames, dtype=np.float64) + 0.5
    if frames_per_s is None:
        return middles * duration_s / num_frames
    times_s = middles / frames_per_s
    return times_s[: max(1, int(np.searchsorted(times_s, duration_s)))]


def read_frames(
    path: Path,
    num_frames: int,
    size_px: int,
    clip_id: str,
    window_s: tuple[float, float] | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
    frames_per_s: float | None = None,
    at_s: float | None = None,
) -> NDArray[np.uint8]:
    """Read frames of a video, or of a folder of pictures in name order; a single picture gives K alike.

    A video shows at each of `frame_times_s`, counted from its first frame, what a player would show then. Frames are
    resized to `size_px` on the shorter side and cropped at the centre. Pictures in a folder have no times: K of them
    are taken, spread evenly, whatever the rate.

    Args:
        path: video file, picture file, or folder of jpg, png or webp files.
        num_frames: K.
        size_px: side of the square frames.
        clip_id: named in errors.
        window_s: from and to, in seconds from the video's first frame; None = the whole. Pictures have no time.
        limits: what the file may cost.
        frames_per_s: see `frame_times_s`.
        at_s: take the frame of a video at this second, K times; None = spread them.

    Returns:
        (K, 3, size_px, size_px) uint8; with a rate, fewer for a short video.

    Raises:
        MediaError: missing, without pictures, undecodable, beyond a limit, or ended before `at_s` or `window_s`.
    """
    if path.is_dir():
        # A name with a dot in front, as in "._1.jpg", is some system's note about a picture.
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.name[0] != ".")
        if not pictures:
            raise MediaError(clip_id, path, "the folder holds no pictures")
        chosen = np.minimum(frame_times_s(len(pictures), num_frames).astype(int), len(pictures) - 1)
        return np.stack([read_image(pictures[index], size_px, clip_id, limits) for index in chosen])
    if not path.is_file():
        raise MediaError(clip_id, path, "no such file")
    if path.stat().st_size == 0:
        raise MediaError(clip_id, path, "the file is empty (0 bytes)")
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return np.repeat(read_image(path, size_px, clip_id, limits)[None], num_frames, axis=0)

    def times_s(duration_s: float) -> NDArray[np.float64]:
        if at_s is not None:
            return np.full(num_frames, at_s)
        first_s, last_s = window_s or (0.0, duration_s)
        return first_s + frame_times_s(min(last_s, duration_s) - first_s, num_frames, frames_per_s)

    reached_s = at_s if at_s is not None else window_s[0] if window_s else None
    return np.stack(_read_video(path, clip_id, limits, reached_s, times_s, partial(_square, size_px=size_px)))


def read_still(path: Path, at_s: float, clip_id: str, limits: MediaLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """The whole frame that a video shows at a second, upright.

    Args:
        path: video file.
        at_s: counted from its first frame.
        clip_id: named in errors.
        limits: what the file may cost.

    Returns:
        (H, W, 3) uint8.

    Raises:
        MediaError: as `read_frames`.
    """

    def whole(frame: VideoFrame, reformatter: VideoReformatter) -> NDArray[np.uint8]:
        rgb = reformatter.reformat(frame, frame.width, frame.height, "rgb24").to_ndarray()
        return np.rot90(rgb, round((frame.rotation or 0) / 90)).astype(np.uint8)

    return _read_video(path, clip_id, limits, at_s, lambda _: np.array([at_s]), whole)[0]


def _read_video(
    path: Path,
    clip_id: str,
    limits: MediaLimits,
    reached_s: float | None,
    times_s: Callable[[float], NDArray[np.float64]],
    show: Callable[[VideoFrame, VideoReformatter], NDArray[np.uint8]],
) -> list[NDArray[np.uint8]]:
    """What is shown at `times_s` of the duration; `reached_s`: a second before which the video must not end."""
    import av
    from av.video.reformatter import VideoReformatter

    check_time = limits.stopwatch(clip_id, path)
    shown: list[NDArray[np.uint8]] = []
    try:
        with open_container(path) as container:
            if not container.streams.video:
                raise MediaError(clip_id, path, "the file has no pictures")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise MediaError(clip_id, path, "no decoder for its pictures")
            _check_pixels(stream.codec_context.width, stream.codec_context.height, clip_id, path, limits)
            stream.codec_context.thread_count = 1  # clips are small; data workers are the parallelism
            start_s, end_s = _span_s(container, stream)
            duration_s = end_s - start_s
            if reached_s is None and duration_s > limits.max_duration_s:
                reason = f"declares {duration_s:.0f} s of video, at most {limits.max_duration_s:g} are read"
                raise MediaError(clip_id, path, f"{reason} (limits.max_duration_s)")
            if reached_s is not None and reached_s >= duration_s:
                raise MediaError(clip_id, path, f"ends after {duration_s:g} s, wanted the frame at {reached_s:g} s")
            reformatter = VideoReformatter()  # one scaler for all frames: making it costs more than using it
            last = None
            for frame in _frames_at(container, stream, start_s + times_s(duration_s), check_time):
                if frame is not last:
                    _check_pixels(frame.width, frame.height, clip_id, path, limits)
                    picture = show(frame, reformatter)
                shown.append(picture)
                last = frame
    except (av.error.FFmpegError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise MediaError(clip_id, path, f"not decodable as video: {said}") from error
    if not shown:
        raise MediaError(clip_id, path, "the video holds no frames")
    return shown


def _frames_at(
    container: InputContainer, stream: VideoStream, wanted_s: NDArray[np.float64], check_time: Callable[[], None]
) -> Iterator[VideoFrame]:
    """For each time the frame that a player shows then; the first frame before it has begun, the last at the end.

    Decodes on from frame to frame, and jumps to the key frame before a time that is far ahead.
    """
    frames = container.decode(stream)
    current: VideoFrame | None = None
    upcoming = next(frames, None)
    may_jump = True
    for time_s in wanted_s:
        if may_jump and upcoming is not None and time_s - _time_s(upcoming) > _SEEK_GAP_S:
            container.seek(int(time_s / float(stream.time_base or 1)), stream=stream)
            frames = container.decode(stream)
            current, upcoming = None, next(frames, None)
            if upcoming is None or _time_s(upcoming) > time_s:
                # No index, or a wrong one: from the start again, frame by frame.
                may_jump = False
                container.seek(0)
                frames = container.decode(stream)
                upcoming = next(frames, None)
        while upcoming is not None and (current is None or _time_s(upcoming) <= time_s):
            current, upcoming = upcoming, next(frames, None)
            check_time()
        if current is None:
            return
        yield current


def _time_s(frame: VideoFrame) -> float:
    return float(frame.time or 0.0)


def _check_pixels(width: int, height: int, clip_id: str, path: Path, limits: MediaLimits) -> None:
    if width * height > limits.max_pixels:
        reason = f"{width} x {height} pixels, at most {limits.max_pixels} are read (limits.max_pixels)"
        raise MediaError(clip_id, path, reason)


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


def _square(frame: VideoFrame, reformatter: VideoReformatter, size_px: int) -> NDArray[np.uint8]:
    """(3, size, size) of a decoded frame, upright."""
    scale = size_px / min(frame.width, frame.height)
    width, height = max(size_px, round(frame.width * scale)), max(size_px, round(frame.height * scale))
    rgb = reformatter.reformat(frame, width, height, "rgb24", interpolation="BICUBIC").to_ndarray()
    top, left = (height - size_px) // 2, (width - size_px) // 2
    square = rgb[top : top + size_px, left : left + size_px].transpose(2, 0, 1)
    return np.rot90(square, round((frame.rotation or 0) / 90), axes=(1, 2)).astype(np.uint8)
