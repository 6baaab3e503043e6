"""The devices of a run: are they there? Asked before anything large is built, answered in one line. And their end."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry

from avcap_zoo.cli.usage import CommandLineError, suggestion
from avcap_zoo.errors import DeviceError

_GPUS = ("cuda", "mps")


def check_accelerator(name: str, precision: str | int | None = None) -> None:
    """Refuse an accelerator that this machine or Lightning does not have; make `hpu` known when it is named.

    Args:
        name: value of `trainer.accelerator`, in any case.
        precision: value of `trainer.precision`.

    Raises:
        DeviceError: the accelerator is known, but not there.
        CommandLineError: there is no such accelerator.
    """
    name = name.lower()
    if name == "hpu":
        from avcap_zoo.accelerators.hpu import check_and_register

        check_and_register(precision)
        return
    known = AcceleratorRegistry.available_accelerators()
    if name not in {"auto", "gpu", *known}:
        raise CommandLineError(
            f"trainer.accelerator: found {name!r}, wanted one of {', '.join(sorted({'auto', 'gpu', 'hpu', *known}))}"
            f"{suggestion(name, {'auto', 'gpu', 'hpu', *known})}"
        )
    candidates = _GPUS if name == "gpu" else (name,)
    if name != "auto" and not _has_one_of(candidates):
        build = (
            "" if torch.version.cuda or "cuda" not in candidates else f"; this torch ({torch.__version__}) has no CUDA"
        )
        raise DeviceError(
            f"trainer.accelerator is {name}, but there is no such device here{build}; use --trainer.accelerator cpu"
        )


def trainer_options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What Lightning would choose wrongly: the strategy of a Gaudi, by the number of cards, and that number.

    `ddp` on Gaudi cards is their own kind of it.

    Args:
        settings: of the Trainer.

    Raises:
        DeviceError: all GPUs are asked for, and the run is on processors; or more Gaudi cards than there are.
        CommandLineError: the strategy is none of a Gaudi's.
    """
    accelerator = str(settings["accelerator"]).lower()
    if str(settings["devices"]) == "-1" and (
        accelerator == "cpu" or (accelerator == "auto" and not _has_one_of(_GPUS))
    ):
        raise DeviceError(
            "trainer.devices is -1, every GPU of the machine, and the run is on processors: give their number, as in "
            "--trainer.accelerator cpu --trainer.devices 2 --trainer.precision 32-true"
        )
    if accelerator != "hpu":
        return {}
    from avcap_zoo.accelerators import hpu

    options = hpu.trainer_options(settings["devices"], settings["num_nodes"])
    strategy = settings["strategy"]
    if strategy in {"auto", "ddp"}:
        return options
    name = strategy if isinstance(strategy, str) else getattr(strategy, "strategy_name", type(strategy).__name__)
    if not name.startswith("hpu"):
        raise CommandLineError(
            f"trainer.strategy is {name}, and a Gaudi runs hpu_single or hpu_ddp: --trainer.strategy auto takes either"
        )
    return options | {"strategy": strategy}


@contextmanager
def process_group_of_run() -> Iterator[None]:
    """Whatever process group is begun within ends with it, unless that fails: then others may still wait for it.

    gloo's threads let go of the last tensors when they get to it. If Python has gone by then, they abort the process,
    whose run was a success (pytorch issue 190489). A group takes its threads along as soon as nothing refers to it.
    """
    distributed = torch.distributed
    if not distributed.is_available() or distributed.is_initialized():
        yield
        return
    try:
        yield
    except SystemExit as stop:
        if distributed.is_initialized():
            traceback.clear_frames(stop.__traceback__)
            _end_process_group()
        raise
    if distributed.is_initialized():
        _end_process_group()


def _end_process_group() -> None:
    gc.collect()  # modules that were wrapped for the group
    torch.distributed.destroy_process_group()


def _has_one_of(accelerators: Sequence[str]) -> bool:
    return any(AcceleratorRegistry.get(each).is_available() for each in accelerators)
