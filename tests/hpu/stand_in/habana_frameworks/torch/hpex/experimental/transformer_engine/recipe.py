"""A name that lightning-habana imports."""

from __future__ import annotations


class DelayedScaling:
    """Scaling of eight-bit numbers."""
