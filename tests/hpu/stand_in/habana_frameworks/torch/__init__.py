"""Importing it makes the device, as with the vendor's own."""

from __future__ import annotations

from habana_frameworks.torch import core, hpu
from habana_frameworks.torch.device import start
from habana_frameworks.unused import install

__all__ = ["core", "hpu"]

start()
install()
