"""Is the accelerator that was asked for there? Asked before anything large is built, answered in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        DeviceError: all GPUs are asked for, and the run is on processors.
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
    return options if settings["strategy"] in {"auto", "ddp"} else options | {"strategy": settings["strategy"]}


def _has_one_of(accelerators: Sequence[str]) -> bool:
    return any(AcceleratorRegistry.get(each).is_available() for each in accelerators)
