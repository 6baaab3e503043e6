from __future__ import annotations

import sys
import types

import pytest
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator

from avcap_zoo.accelerators.hpu import HPUAccelerator, HPUDDPStrategy
from avcap_zoo.accelerators.sharded import ShardedBaseStrategy
from avcap_zoo.cli.devices import check_accelerator, trainer_options
from avcap_zoo.cli.usage import CommandLineError
from avcap_zoo.errors import DeviceError


@pytest.fixture
def gaudi_calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Notes the precision in each question for a Gaudi; there is one."""
    calls: list[object] = []
    module = types.ModuleType("avcap_zoo.accelerators.hpu")
    vars(module)["check_and_register"] = calls.append
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


@pytest.fixture
def nothing_but_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for accelerator in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: False))


@pytest.mark.parametrize("name", ["auto", "cpu", "CPU"])
@pytest.mark.usefixtures("nothing_but_a_cpu")
def test_always_there(name: str, gaudi_calls: list[object]) -> None:
    check_accelerator(name)
    assert gaudi_calls == []
    assert CPUAccelerator.is_available()


def test_gaudi_is_asked_for_by_name_alone(gaudi_calls: list[object]) -> None:
    check_accelerator("HPU", "bf16-mixed")
    assert gaudi_calls == ["bf16-mixed"]


@pytest.mark.parametrize(
    ("strategy", "chosen"), [("auto", "hpu_ddp"), ("ddp", "hpu_ddp"), ("hpu_single", "hpu_single")]
)
def test_lightning_is_told_what_it_would_choose_wrongly(
    strategy: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HPUAccelerator, "auto_device_count", staticmethod(lambda: 8))
    settings = {"accelerator": "hpu", "devices": "auto", "num_nodes": 1, "strategy": strategy}
    assert trainer_options(settings) == {"accelerator": "hpu", "devices": 8, "strategy": chosen}
    assert trainer_options(settings | {"accelerator": "auto"}) == {}


@pytest.mark.parametrize("strategy", ["ddp_find_unused_parameters_true", "fsdp", ShardedBaseStrategy()])
def test_a_strategy_that_no_gaudi_runs(strategy: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HPUAccelerator, "auto_device_count", staticmethod(lambda: 8))
    settings = {"accelerator": "hpu", "devices": 8, "num_nodes": 1, "strategy": strategy}
    with pytest.raises(CommandLineError, match=r"^trainer.strategy is \w+, and a Gaudi runs .*--trainer.strategy auto"):
        trainer_options(settings)
    kept = HPUDDPStrategy(static_graph=True)
    assert trainer_options(settings | {"strategy": kept})["strategy"] is kept


@pytest.mark.parametrize("accelerator", ["auto", "cpu"])
@pytest.mark.usefixtures("nothing_but_a_cpu")
def test_every_gpu_where_there_is_none(accelerator: str) -> None:
    settings = {"accelerator": accelerator, "devices": -1, "num_nodes": 1, "strategy": "ddp"}
    with pytest.raises(DeviceError, match=r"^trainer.devices is -1, .*--trainer.accelerator cpu --trainer.devices 2 "):
        trainer_options(settings)
    assert trainer_options(settings | {"devices": 2}) == {}


@pytest.mark.parametrize("name", ["gpu", "cuda", "mps"])
@pytest.mark.usefixtures("nothing_but_a_cpu")
def test_absent(name: str) -> None:
    with pytest.raises(DeviceError, match=f"^trainer.accelerator is {name}, but there is no such device here.*cpu$"):
        check_accelerator(name)


def test_either_kind_of_gpu_will_do(monkeypatch: pytest.MonkeyPatch, nothing_but_a_cpu: None) -> None:
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    check_accelerator("gpu")
    with pytest.raises(DeviceError):
        check_accelerator("cuda")


def test_unknown() -> None:
    with pytest.raises(CommandLineError, match=r"found 'gpuu', wanted one of auto, cpu, .*; did you mean gpu\?$"):
        check_accelerator("gpuu")
