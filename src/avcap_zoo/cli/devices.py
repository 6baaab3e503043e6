"""Is the accelerator that was asked for there? Asked before anything large is built, answered in one line."""

from __future__ import annotations

import torch
from lightning.pytorch.accelerators import AcceleratorRegistry

from avcap_zoo.cli.usage import CommandLineError, suggestion
from avcap_zoo.errors import DeviceError

HPU_STRATEGY = "hpu_single"
"""The strategy of one Gaudi card; Lightning's own choice refuses the device."""


def check_accelerator(name: str) -> None:
    """Refuse an accelerator that this machine or Lightning does not have; make `hpu` known when it is named.

    Args:
        name: value of `trainer.accelerator`, in any case.

    Raises:
        DeviceError: the accelerator is known, but not there.
        CommandLineError: there is no such accelerator.
    """
    name = name.lower()
    if name == "hpu":
        from avcap_zoo.accelerators.hpu import check_and_register

        check_and_register()
        return
    known = AcceleratorRegistry.available_accelerators()
    if name not in {"auto", "gpu", *known}:
        raise CommandLineError(
            f"trainer.accelerator: found {name!r}, wanted one of {', '.join(sorted({'auto', 'gpu', 'hpu', *known}))}"
            f"{suggestion(name, {'auto', 'gpu', 'hpu', *known})}"
        )
    candidates = ("cuda", "mps") if name == "gpu" else (name,)
    if name != "auto" and not any(AcceleratorRegistry.get(each).is_available() for each in candidates):
        build = (
            "" if torch.version.cuda or "cuda" not in candidates else f"; this torch ({torch.__version__}) has no CUDA"
        )
        raise DeviceError(
            f"trainer.accelerator is {name}, but there is no such device here{build}; use --trainer.accelerator cpu"
        )
