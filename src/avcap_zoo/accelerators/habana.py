"""lightning-habana's accelerator and strategies, with what a newer torch needs; for Lightning 2.5.0 to 2.5.5."""

from __future__ import annotations

from lightning_habana import HPUAccelerator, SingleHPUStrategy
from lightning_habana import HPUDDPStrategy as _HPUDDPStrategy

from avcap_zoo.accelerators.hpu import UnboundProcessGroup

__all__ = ["HPUAccelerator", "HPUDDPStrategy", "SingleHPUStrategy"]


class HPUDDPStrategy(UnboundProcessGroup, _HPUDDPStrategy):
    """lightning-habana's, whose process group torch would refuse."""
