"""Importing it makes the device, as with the vendor's own."""

from __future__ import annotations

from habana_frameworks.torch import core, hpu
from habana_frameworks.torch.device import start

__all__ = ["core", "hpu"]

start()
