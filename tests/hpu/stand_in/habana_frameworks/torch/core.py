"""Where a step ends."""

from __future__ import annotations

from habana_frameworks.torch.device import record


def mark_step() -> None:
    record["marks"] += 1


def is_lazy() -> bool:
    return bool(record["lazy_mode"] == "1")
