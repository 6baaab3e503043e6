"""Intel Gaudi: Lightning's own Habana accelerator where there is one, else ours in Lightning's plug-in points.

Lightning 2.5.0 to 2.5.5 takes accelerator, precision and strategies from lightning-habana. Later ones know no HPU any
more, but take ours from their registries. Either way the names are `hpu`, `hpu_single` (one card) and `hpu_ddp`
(several, one process each, gradients over the vendor's HCCL).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.fabric.utilities.distributed import _init_dist_connection
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy, StrategyRegistry
from packaging.version import Version
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from avcap_zoo.accelerators.launchers import LAUNCHERS
from avcap_zoo.errors import DeviceError, first_line

DEVICE_TYPE = "hpu"
ONE_CARD = "hpu_single"
SEVERAL_CARDS = "hpu_ddp"
BACKEND = "hccl"
PRECISIONS = ("32-true", "bf16-mixed")
"""What both accelerators compute in."""
LAST_WITH_HABANA = Version("2.5.5")
"""The last Lightning that knows lightning-habana."""
MENDING = "pip install -c constraints-hpu.txt -e '.[hpu]', or take lightning 2.6, which does without"


class HPUAccelerator(Accelerator):
    """Gaudi cards."""

    @override
    def setup_device(self, device: torch.device) -> None:
        """Nothing to set: the bridge has claimed the card when it was imported."""

    @override
    def teardown(self) -> None:
        """Nothing to release: the bridge gives the card back at exit."""

    @staticmethod
    @override
    def parse_devices(devices: Any) -> int:
        """Number of cards asked for; a list of indices counts its entries.

        Raises:
            DeviceError: no number, or a list of others than the first cards: no process can choose its own.
        """
        if devices in ("auto", -1, "-1"):
            return HPUAccelerator.auto_device_count()
        indices = devices.split(",") if isinstance(devices, str) and "," in devices else devices
        try:
            if not isinstance(indices, list | tuple):
                return int(indices)
            if [int(index) for index in indices] == list(range(len(indices))):
                return len(indices)
        except ValueError:
            pass
        raise DeviceError(f"trainer.devices is {devices}, and a Gaudi run takes a number of cards: --trainer.devices 8")

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


if TYPE_CHECKING:
    _Strategy = Strategy
else:
    _Strategy = object


class _GaudiSteps(_Strategy):
    """Tells the bridge where a step ends, which lazy mode needs and eager mode ignores; casts on the right device."""

    @override
    def setup(self, trainer: Trainer) -> None:
        """Lightning takes every mixed precision off a processor for one on CUDA."""
        if isinstance(self.precision_plugin, MixedPrecision):
            self.precision_plugin.device = DEVICE_TYPE
        super().setup(trainer)

    @override
    def post_backward(self, closure_loss: Tensor) -> None:
        """End of the backward pass."""
        super().post_backward(closure_loss)
        _bridge().core.mark_step()

    @override
    def optimizer_step(
        self, optimizer: Optimizer, closure: Callable[[], Any], model: Module | Any | None = None, **kwargs: Any
    ) -> Any:
        """Step, and end of the optimizer's work."""
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        _bridge().core.mark_step()
        return output

    @override
    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Step, and its end."""
        output = super().validation_step(*args, **kwargs)
        _bridge().core.mark_step()
        return output

    @override
    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Step, and its end."""
        output = super().test_step(*args, **kwargs)
        _bridge().core.mark_step()
        return output

    @override
    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Step, and its end."""
        output = super().predict_step(*args, **kwargs)
        _bridge().core.mark_step()
        return output


class SingleHPUStrategy(_GaudiSteps, SingleDeviceStrategy):
    """One Gaudi card.

    Args:
        options: of Lightning's SingleDeviceStrategy.
    """

    strategy_name = ONE_CARD

    def __init__(self, device: str = DEVICE_TYPE, **options: Any) -> None:
        super().__init__(device=torch.device(device), **options)


class UnboundProcessGroup(DDPStrategy):
    """A DDP strategy whose process group is not bound to a device.

    Lightning, lightning-habana's strategy included, would bind it to "hpu", of which every process has its own; torch
    (2.9 and 2.12 were looked at) refuses a device without an index.
    """

    @override
    def setup_distributed(self) -> None:
        """Make the process group before Lightning does, which keeps one that is there."""
        assert self.cluster_environment is not None
        self.set_world_ranks()
        _init_dist_connection(self.cluster_environment, BACKEND, timeout=self._timeout)
        super().setup_distributed()


class HPUDDPStrategy(_GaudiSteps, UnboundProcessGroup):
    """Several Gaudi cards, one process each.

    Args:
        options: of Lightning's DDPStrategy.
    """

    strategy_name = SEVERAL_CARDS

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"process_group_backend": BACKEND} | options)

    @override
    def setup_environment(self) -> None:
        """Give this process its card and make the process group."""
        environment = self.cluster_environment
        assert environment is not None
        # Importing it makes the backend known to torch.
        hccl = importlib.import_module("habana_frameworks.torch.distributed.hccl")
        hccl.initialize_distributed_hpu(
            world_size=environment.world_size(), rank=environment.global_rank(), local_rank=environment.local_rank()
        )
        super().setup_environment()

    @override
    def determine_ddp_device_ids(self) -> None:
        """DDP is not told: a process has one card."""

    @override
    def reduce(self, tensor: Any, group: Any | None = None, reduce_op: Any = "mean") -> Any:
        """Over all processes; HCCL has no mean, so that is a sum and a division."""
        if not isinstance(tensor, Tensor):
            return tensor
        tensor = tensor.to(self.root_device)
        if reduce_op not in ("mean", "avg", torch.distributed.ReduceOp.AVG):
            return super().reduce(tensor, group, reduce_op)
        return super().reduce(tensor, group, "sum") / torch.distributed.get_world_size(group)


def check_and_register(precision: str | int | None = None) -> None:
    """Make `hpu` and its strategies known to Lightning.

    Args:
        precision: of the run; None = not known yet.

    Raises:
        DeviceError: the vendor's bridge is not installed or sees no card, Lightning is one that needs lightning-habana
            and that cannot be imported, or a Gaudi does not compute in this precision.
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
    wanted = {"32": "32-true", "bf16": "bf16-mixed"}.get(str(precision), precision)
    if wanted is not None and wanted not in PRECISIONS:
        raise DeviceError(
            f"trainer.precision is {precision}, but a Gaudi runs in {' or '.join(PRECISIONS)}: "
            f"--trainer.precision bf16-mixed"
        )
    accelerator, *strategies = (
        (HPUAccelerator, SingleHPUStrategy, HPUDDPStrategy)
        if Version(lightning.__version__) > LAST_WITH_HABANA
        else _lightnings_own()
    )
    if DEVICE_TYPE not in AcceleratorRegistry:
        AcceleratorRegistry.register(DEVICE_TYPE, accelerator, description="Intel Gaudi")
    for strategy in strategies:
        if strategy.strategy_name not in StrategyRegistry:
            StrategyRegistry.register(strategy.strategy_name, strategy, description="Intel Gaudi")


def trainer_options(devices: Any, num_nodes: int) -> dict[str, Any]:
    """What the Trainer is told where the user said no more than `hpu`.

    Args:
        devices: value of `trainer.devices`; `auto` and -1 = all cards of the machine.
        num_nodes: machines of the run.

    Raises:
        DeviceError: no number, or fewer cards here; a process that was launched may see its own only, and is not asked.
    """
    cards = HPUAccelerator.parse_devices(devices)
    there = HPUAccelerator.auto_device_count()
    if cards > there and not any(local_rank in os.environ for _, _, local_rank in LAUNCHERS):
        raise DeviceError(f"trainer.devices is {devices}, but this machine has {there} Gaudi cards (try hl-smi)")
    several = cards * num_nodes > 1
    return {"accelerator": DEVICE_TYPE, "devices": cards, "strategy": SEVERAL_CARDS if several else ONE_CARD}


def _lightnings_own() -> tuple[Any, ...]:
    """Accelerator and strategies of lightning-habana.

    Raises:
        DeviceError: it is not installed, or does not go with what is.
    """
    found = f"trainer.accelerator is hpu, and lightning {lightning.__version__} runs it through lightning-habana 1.6.0"
    if importlib.util.find_spec("lightning_habana") is None:
        raise DeviceError(f"{found}, which is not installed: {MENDING}")
    try:
        habana = importlib.import_module("avcap_zoo.accelerators.habana")
    except Exception as error:
        raise DeviceError(f"{found}, which cannot be imported ({first_line(error)}): {MENDING}") from error
    return (habana.HPUAccelerator, habana.SingleHPUStrategy, habana.HPUDDPStrategy)


def _bridge() -> Any:
    """`habana_frameworks.torch` with its parts.

    Raises:
        ImportError: not in the vendor's container.
    """
    importlib.import_module("habana_frameworks.torch.core")
    importlib.import_module("habana_frameworks.torch.hpu")
    return importlib.import_module("habana_frameworks.torch")
