"""The estimate of a step, against counts made by hand and by torch."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avcap_zoo.batch import Batch
from avcap_zoo.cli.step_cost import model_size, operations_per_s, step_cost
from avcap_zoo.systems.base import StepWork
from tests.integration.tiny import tiny_lavcap


def test_operations_of_a_part_by_hand() -> None:
    system = tiny_lavcap()
    system.configure_model()
    projector = system.model.projector
    numbers = projector.weight.numel()
    cost = step_cost(system, StepWork({"projector": 10}), 3, torch.float32)
    assert cost.operations == 2 * numbers * 10 * 3 * 3  # forward, and a backward pass to input and to weight
    assert cost.activation_bytes == sum(projector.weight.shape) * 10 * 3 * 4
    at_once = step_cost(system, StepWork({"projector": 10}, clips_at_once=1), 3, torch.bfloat16)
    assert at_once.activation_bytes == cost.activation_bytes / 6
    projector.requires_grad_(False)
    assert step_cost(system, StepWork({"projector": 10}), 3, torch.float32).operations == 2 * numbers * 30
    behind = step_cost(system, StepWork({"projector": 10}, behind=("projector",)), 3, torch.float32)
    assert behind.operations == 2 * 2 * numbers * 30


def test_size() -> None:
    system = tiny_lavcap(training="lora")
    system.configure_model()
    size = model_size(system)
    assert size.trained == sum(p.numel() for p in system.parameters() if p.requires_grad)
    assert size.trained + size.frozen == sum(p.numel() for p in system.parameters())
    assert size.state_bytes == 12 * size.trained
    assert size.num_bytes > 4 * size.frozen


def test_a_step_of_lavcap_is_estimated_within_a_factor_of_two() -> None:
    system = tiny_lavcap()
    system.configure_model()
    texts = ["a dog barks and then rain falls on the roof while a bell rings far away in the wind"] * 2
    batch = Batch(
        clip_ids=["a", "b"],
        captions=[[text] for text in texts],
        caption=texts,
        waveform=torch.randn(2, 160_000) * 0.1,
        num_samples=torch.tensor([160_000] * 2),
        frames=torch.randint(0, 255, (2, 4, 3, 32, 32), dtype=torch.uint8),
        frame_mask=torch.ones(2, 4, dtype=torch.bool),
    )
    with FlopCounterMode(display=False) as counted:
        torch.stack(list(system.training_loss(batch).values())).sum().backward()
    estimate = step_cost(system, system.step_work(4), 2, torch.float32).operations
    assert counted.get_total_flops() / 2 < estimate < counted.get_total_flops() * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_speed_is_measured(dtype: torch.dtype) -> None:
    assert 1e8 < operations_per_s(torch.device("cpu"), dtype) < 1e14
