"""Gaudi: the error without one, and a training run on a stand-in for the vendor's package, the only thing mocked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import StrategyRegistry

from avcap_zoo.accelerators import hpu
from avcap_zoo.errors import DeviceError


def test_without_the_bridge_one_line_says_what_is_needed() -> None:
    with pytest.raises(DeviceError, match=r"needs a Gaudi and the package habana_frameworks") as caught:
        hpu.check_and_register()
    assert "\n" not in str(caught.value)
    assert not hpu.HPUAccelerator.is_available()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A stand-in bridge with two cards; its marks are collected."""
    marks: list[str] = []
    bridge = ModuleType("habana_frameworks.torch")
    bridge.hpu = SimpleNamespace(is_available=lambda: True, device_count=lambda: 2)  # type: ignore[attr-defined]
    bridge.core = SimpleNamespace(mark_step=lambda: marks.append("step"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "habana_frameworks", ModuleType("habana_frameworks"))
    monkeypatch.setitem(sys.modules, "habana_frameworks.torch", bridge)
    monkeypatch.setitem(sys.modules, "habana_frameworks.torch.core", bridge.core)
    monkeypatch.setitem(sys.modules, "habana_frameworks.torch.hpu", bridge.hpu)
    monkeypatch.setattr(hpu, "DEVICE_TYPE", "cpu")
    yield marks
    AcceleratorRegistry.pop("hpu", None)
    StrategyRegistry.pop(hpu.STRATEGY, None)


def test_with_a_card_it_registers_trains_and_marks_steps(steps: list[str], tmp_path: Path) -> None:
    hpu.check_and_register()
    hpu.check_and_register()
    trainer = Trainer(
        accelerator="hpu",
        strategy=hpu.STRATEGY,
        devices=1,
        max_steps=3,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    model = BoringModel()
    before = model.layer.weight.detach().clone()
    trainer.fit(model)
    assert isinstance(trainer.strategy, hpu.SingleHPUStrategy)
    assert not torch.equal(model.layer.weight, before)
    assert len(steps) == 2 * 3


def test_cards_are_counted(steps: list[str]) -> None:
    assert [hpu.HPUAccelerator.parse_devices(asked) for asked in ("auto", -1, 1, "2", [0, 1])] == [2, 2, 1, 2, 2]
    assert hpu.HPUAccelerator.get_parallel_devices(2) == [torch.device("cpu")] * 2


def test_bridge_without_a_card_says_so(steps: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["habana_frameworks.torch"], "hpu", SimpleNamespace(is_available=lambda: False))
    with pytest.raises(DeviceError, match="is installed but sees no Gaudi"):
        hpu.check_and_register()
