"""What one media file may cost at most: a header may declare anything, and somebody else wrote it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from avcap_zoo.errors import ConfigError, MediaError


@dataclass(frozen=True)
class MediaLimits:
    """Files beyond these are refused by name and reason, before they take memory or time.

    Args:
        max_duration_s: of a sound or a video.
        max_channels: of a sound.
        max_pixels: of a picture or a frame.
        max_decode_s: wall time for one file, looked at between two reads.

    Raises:
        ConfigError: a limit that lets nothing pass.
    """

    max_duration_s: float = 3600.0
    max_channels: int = 32
    max_pixels: int = 100_000_000
    max_decode_s: float = 120.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ConfigError(f"data.init_args.limits.{field.name} is {value}, wanted more than 0")

    def stopwatch(self, clip_id: str, path: Path) -> Callable[[], None]:
        """A function to call between two reads; it raises MediaError once `max_decode_s` have passed."""
        end = time.monotonic() + self.max_decode_s

        def check() -> None:
            if time.monotonic() > end:
                reason = f"decoding takes more than {self.max_decode_s:g} s (limits.max_decode_s)"
                raise MediaError(clip_id, path, reason)

        return check


DEFAULT_LIMITS = MediaLimits()
