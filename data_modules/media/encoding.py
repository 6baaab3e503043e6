"""Media as bytes: wav, mp4 and jpg, for what is written to disk or put into a page."""

from __future__ import annotations

import io
import wave
from fractions import Fraction

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image


def encode_wav(samples: NDArray[np.float32], sample_rate_hz: int) -> bytes:
    """A mono PCM16 wav file.

    Args:
        samples: (S,) float32 in [-1, 1]; values outside are clipped.
        sample_rate_hz: written to the header.
    """
    pcm = np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


def encode_mp3(samples: NDArray[np.float32], sample_rate_hz: int) -> bytes:
    """An MP3 file, for pages.

    Args:
        samples: (S,) float32 in [-1, 1].
        sample_rate_hz: one that MP3 knows, such as 16000.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate_hz, format="MP3")
    return buffer.getvalue()


def encode_mp4(
    frames: NDArray[np.uint8],
    fps: int,
    samples: NDArray[np.float32] | None = None,
    sample_rate_hz: int = 16_000,
) -> bytes:
    """A small H.264 (yuv420p) video, with an AAC track when samples are given.

    The track costs about four times the pictures (20 ms for ten seconds), so the AudioCaps folders do without it.

    Args:
        frames: (K, H, W, 3) uint8, RGB; H and W even.
        fps: frames a second.
        samples: (S,) float32 in [-1, 1], or None for a silent film.
        sample_rate_hz: of the samples.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=fps)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.thread_count = 1
        video.options = {"preset": "ultrafast", "crf": "20", "threads": "1"}
        audio = None
        if samples is not None:
            audio = container.add_stream("aac", rate=sample_rate_hz)
            audio.options = {"aac_coder": "fast"}  # six times as fast as the default coder
            audio.layout = "mono"
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            frame.time_base = Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None and samples is not None:
            for start in range(0, len(samples), 1024):
                piece = np.ascontiguousarray(samples[None, start : start + 1024], dtype=np.float32)
                sound = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                sound.sample_rate = sample_rate_hz
                sound.pts = start
                sound.time_base = Fraction(1, sample_rate_hz)
                container.mux(audio.encode(sound))
            container.mux(audio.encode())
    return buffer.getvalue()


def encode_jpg(pixels: NDArray[np.uint8]) -> bytes:
    """A JPEG file of good quality.

    Args:
        pixels: (H, W, 3) uint8, RGB.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()
