"""Intel Gaudi in Lightning's own plug-in points: one card, eager or compiled.

Lightning 2.6 knows no HPU any more; it takes an accelerator and a strategy of ours from its registries instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from avcap_zoo.errors import DeviceError

STRATEGY = "hpu_single"
DEVICE_TYPE = "hpu"


class HPUAccelerator(Accelerator):
    """A Gaudi card."""

    @override
    def setup_device(self, device: torch.device) -> None:
        """Nothing to set: the bridge has claimed the card when it was imported."""

    @override
    def teardown(self) -> None:
        """Nothing to release: the bridge gives the card back at exit."""

    @staticmethod
    @override
    def parse_devices(devices: Any) -> int:
        """Number of cards asked for; a list of indices counts its entries."""
        if isinstance(devices, list | tuple):
            return len(devices)
        return HPUAccelerator.auto_device_count() if devices in ("auto", -1, "-1") else int(devices)

    @staticmethod
    @override
    def get_parallel_devices(devices: int) -> list[torch.device]:
        """One device per card: each process sees its own as "hpu"."""
        return [torch.device(DEVICE_TYPE)] * devices

    @staticmethod
    @override
    def auto_device_count() -> int:
        """Cards of this machine."""
        return int(_bridge().hpu.device_count())

    @staticmethod
    @override
    def is_available() -> bool:
        """Whether the vendor's bridge is installed and sees a card."""
        try:
            return bool(_bridge().hpu.is_available())
        except ImportError:
            return False

    @staticmethod
    @override
    def name() -> str:
        """Name for `--trainer.accelerator`."""
        return "hpu"


class SingleHPUStrategy(SingleDeviceStrategy):
    """One Gaudi card; tells the bridge where a step ends, which lazy mode needs and eager mode ignores.

    Args:
        options: of Lightning's SingleDeviceStrategy.
    """

    def __init__(self, device: str = DEVICE_TYPE, **options: Any) -> None:
        super().__init__(device=torch.device(device), **options)

    @override
    def post_backward(self, closure_loss: Tensor) -> None:
        """End of the backward pass."""
        super().post_backward(closure_loss)
        _bridge().core.mark_step()

    @override
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Module | Any | None = None, **kwargs: Any
    ) -> Tensor | Any:
        """Step, and end of the optimizer's work."""
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        _bridge().core.mark_step()
        return output


def check_and_register() -> None:
    """Make `hpu` and its strategy known to Lightning.

    Raises:
        DeviceError: the vendor's bridge is not installed, or it sees no card.
    """
    try:
        available = HPUAccelerator.is_available() and HPUAccelerator.auto_device_count() > 0
        installed = available or bool(_bridge())
    except ImportError:
        available = installed = False
    if not installed:
        raise DeviceError(
            "trainer.accelerator is hpu, which needs a Gaudi and the package habana_frameworks: run inside the "
            "vendor's PyTorch container, or use --trainer.accelerator cpu"
        )
    if not available:
        raise DeviceError("trainer.accelerator is hpu, habana_frameworks is installed but sees no Gaudi (try hl-smi)")
    if "hpu" not in AcceleratorRegistry.available_accelerators():
        AcceleratorRegistry.register("hpu", HPUAccelerator, description="Intel Gaudi")
        StrategyRegistry.register(STRATEGY, SingleHPUStrategy, description="one Gaudi card", device=DEVICE_TYPE)


def _bridge() -> Any:
    """`habana_frameworks.torch` with its parts.

    Raises:
        ImportError: not in the vendor's container.
    """
    importlib.import_module("habana_frameworks.torch.core")
    importlib.import_module("habana_frameworks.torch.hpu")
    return importlib.import_module("habana_frameworks.torch")
