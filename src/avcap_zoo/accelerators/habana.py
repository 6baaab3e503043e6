"""lightning-habana's accelerator and strategies, with what newer versions of torch need; for Lightning 2.5.0 to 2.5.5."""

from __future__ import annotations

from lightning_habana import HPUAccelerator, HPUDDPStrategy as _HPUDDPStrategy, SingleHPUStrategy

from avcap_zoo.accelerators.hpu import UnboundProcessGroup

__all__ = ["HPUAccelerator", "HPUDDPStrategy", "SingleHPUStrategy"]


class HPUDDPStrategy(UnboundProcessGroup, _HPUDDPStrategy):
    """lightning-habana's, whose process group torch would refuse."""
