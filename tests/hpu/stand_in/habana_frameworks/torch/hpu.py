"""The cards: two, or as many as the variable says."""

from __future__ import annotations

import os


def is_available() -> bool:
    return device_count() > 0


def device_count() -> int:
    return int(os.environ.get("STAND_IN_CARDS", "2"))


def get_device_name() -> str:
    return "GAUDI2"
