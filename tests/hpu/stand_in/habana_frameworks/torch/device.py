"""The device `hpu` in a torch that has none: whatever is asked of it, the processor does.

What no stand-in of this kind can show is a tensor left behind on the processor; runs on CUDA show that.
"""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._dynamo import register_backend
from torch._dynamo.backends.registry import list_backends
from torch.overrides import TorchFunctionMode

FOLDER = "STAND_IN_RECORD"
"""Variable that names the folder of the record, one file per process."""
undo = ExitStack()
record: dict[str, Any] = {"marks": 0, "autocast": [], "graphs": 0, "lazy_mode": None, "process_group": None}


class HpuIsCpu(TorchFunctionMode):
    """Puts `cpu` where a torch function is told `hpu`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.device:  # the name itself stays
            return func(*args, **(kwargs or {}))
        return func(*map(on_cpu, args), **{name: on_cpu(value) for name, value in (kwargs or {}).items()})


def on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "hpu":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "hpu" else value


def start() -> None:
    """Make the device, the autocast and the compiler of it; write the record at exit."""
    record["lazy_mode"] = os.environ.get("PT_HPU_LAZY_MODE")
    undo.enter_context(HpuIsCpu())
    initialise = torch.autocast.__init__

    # With the parameters of torch's own, which its compiler reads.
    def autocast(
        self: torch.autocast, device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: Any = None
    ) -> None:
        if device_type == "hpu" and enabled and str(dtype) not in record["autocast"]:
            record["autocast"].append(str(dtype))
        initialise(self, on_cpu(device_type), dtype, enabled, cache_enabled)

    undo.enter_context(mock.patch.object(torch.autocast, "__init__", autocast))
    if "hpu_backend" not in list_backends():
        register_backend(count_graph, name="hpu_backend")
    if FOLDER in os.environ:
        atexit.register(write)


def count_graph(graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **_: Any) -> Callable[..., Any]:
    record["graphs"] += 1
    return graph.forward


def write() -> None:
    path = Path(os.environ[FOLDER]) / f"{os.environ.get('LOCAL_RANK', '0')}.json"
    path.write_text(json.dumps(record), encoding="utf-8")
