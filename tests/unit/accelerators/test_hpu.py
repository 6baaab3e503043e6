"""Gaudi: the errors without one, and short runs on a stand-in for the vendor's package, the only thing mocked.

tests/hpu holds whole commands, on one card and on two, with either Lightning (`make test-hpu`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from packaging.version import Version
from typing_extensions import override

from avcap_zoo.accelerators import hpu
from avcap_zoo.errors import DeviceError

OURS = Version(lightning.__version__) > hpu.LAST_WITH_HABANA
of_ours = pytest.mark.skipif(not OURS, reason="this Lightning has its own Habana accelerator; see tests/hpu")
STAND_IN = Path(__file__).parents[2] / "hpu/stand_in"


def test_without_the_bridge_one_line_says_what_is_needed() -> None:
    with pytest.raises(DeviceError, match=r"needs a Gaudi and the package habana_frameworks") as caught:
        hpu.check_and_register()
    assert "\n" not in str(caught.value)
    assert not hpu.HPUAccelerator.is_available()


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The stand-in with two cards; what it is asked is recorded."""
    monkeypatch.syspath_prepend(str(STAND_IN))
    from habana_frameworks.torch import device

    yield device.record
    device.undo.close()
    for name in [name for name in sys.modules if name.partition(".")[0] in {"habana_frameworks", "habana_dataloader"}]:
        del sys.modules[name]
    AcceleratorRegistry.pop(hpu.DEVICE_TYPE, None)
    for name in (hpu.ONE_CARD, hpu.SEVERAL_CARDS):
        StrategyRegistry.pop(name, None)


class Multiplied(BoringModel):
    """Notes the type in which its layer multiplies."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.multiplied_in = self.layer(batch).dtype
        return super().training_step(batch, batch_idx)


@of_ours
def test_one_card_trains_in_bf16_and_marks_steps(record: dict[str, Any], tmp_path: Path) -> None:
    hpu.check_and_register("bf16-mixed")
    hpu.check_and_register("bf16-mixed")
    trainer = Trainer(
        **hpu.trainer_options(1, 1),
        precision="bf16-mixed",
        max_steps=3,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        val_check_interval=3,
    )
    model = Multiplied()
    before = model.layer.weight.detach().clone()
    trainer.fit(model)
    assert isinstance(trainer.strategy, hpu.SingleHPUStrategy)
    assert trainer.strategy.root_device == torch.device("hpu")
    assert not torch.equal(model.layer.weight, before)
    assert model.multiplied_in == torch.bfloat16
    assert record["autocast"] == ["torch.bfloat16"]
    assert record["marks"] == 2 * 3 + 1


def test_cards_are_counted(record: dict[str, Any]) -> None:
    assert [hpu.HPUAccelerator.parse_devices(asked) for asked in ("auto", -1, 1, "2", [0, 1])] == [2, 2, 1, 2, 2]
    assert hpu.HPUAccelerator.get_parallel_devices(2) == [torch.device("hpu")] * 2


@pytest.mark.parametrize("asked", [[1], "1,0", "1,", "many"])
def test_cards_that_cannot_be_chosen(asked: Any, record: dict[str, Any]) -> None:
    assert hpu.HPUAccelerator.parse_devices("0,1") == 2
    with pytest.raises(DeviceError, match=r"^trainer.devices is .* takes a number of cards: --trainer.devices 8$"):
        hpu.HPUAccelerator.parse_devices(asked)


def test_more_cards_than_there_are(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DeviceError, match=r"^trainer.devices is 3, but this machine has 2 Gaudi cards"):
        hpu.trainer_options(3, 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert hpu.trainer_options(3, 1)["devices"] == 3


@pytest.mark.parametrize(
    ("devices", "num_nodes", "cards", "strategy"),
    [(1, 1, 1, "hpu_single"), ("auto", 1, 2, "hpu_ddp"), (2, 1, 2, "hpu_ddp"), (1, 2, 1, "hpu_ddp")],
)
def test_the_strategy_follows_the_cards(
    devices: Any, num_nodes: int, cards: int, strategy: str, record: dict[str, Any]
) -> None:
    assert hpu.trainer_options(devices, num_nodes) == {"accelerator": "hpu", "devices": cards, "strategy": strategy}


@of_ours
def test_several_cards_are_averaged_by_a_sum(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    hpu.check_and_register()
    strategy = StrategyRegistry.get(hpu.SEVERAL_CARDS)
    strategy.parallel_devices = [torch.device("hpu")] * 2
    asked = []

    def summed(self: Any, tensor: torch.Tensor, group: Any, reduce_op: str) -> torch.Tensor:
        asked.append(reduce_op)
        return tensor * 2

    monkeypatch.setattr(DDPStrategy, "reduce", summed)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(type(strategy), "local_rank", 0)
    assert float(strategy.reduce(torch.tensor(3), reduce_op="mean")) == 3.0
    assert float(strategy.reduce(torch.tensor(3), reduce_op="sum")) == 6.0
    assert strategy.reduce("a word") == "a word"
    assert asked == ["sum", "sum"]
    assert strategy.process_group_backend == "hccl"


def test_bridge_without_a_card_says_so(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_CARDS", "0")
    with pytest.raises(DeviceError, match="is installed but sees no Gaudi"):
        hpu.check_and_register()


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "64"])
def test_precision_of_another_device(precision: str, record: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match=f"^trainer.precision is {precision}, .*--trainer.precision bf16-mixed$"):
        hpu.check_and_register(precision)


@of_ours
def test_lightning_without_its_habana_package(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning, "__version__", "2.5.5")
    with pytest.raises(
        DeviceError, match=r"lightning 2\.5\.5 runs it through .* not installed: pip install -c"
    ) as caught:
        hpu.check_and_register()
    assert "\n" not in str(caught.value)


@of_ours
def test_habana_package_that_does_not_fit(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lightning_habana.py").write_text("raise ImportError('no LRScheduler')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(lightning, "__version__", "2.5.5")
    with pytest.raises(DeviceError, match=r"which cannot be imported \(no LRScheduler\): pip install -c"):
        hpu.check_and_register()
