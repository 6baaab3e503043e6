"""The value head's shapes."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.systems.vlrm.value_head import ValueHead, ValueHeadSettings


def test_the_default_has_the_papers_size() -> None:
    with torch.device("meta"):
        head = ValueHead(2560, ValueHeadSettings())
    assert sum(p.numel() for p in head.parameters()) == 275_297_281
    assert [tuple(p.shape) for p in head.parameters() if p.ndim == 2] == [(15360, 2560), (15360, 15360), (1, 15360)]


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (ValueHeadSettings(hidden_sizes=()), 9),
        (ValueHeadSettings(hidden_sizes=(3,)), 8 * 3 + 3 + 4),
        (ValueHeadSettings(hidden_mult=2, depth=1), 8 * 16 + 16 + 17),
        (ValueHeadSettings(hidden_mult=1, depth=3, activation="relu"), 3 * 72 + 9),
    ],
)
def test_width_and_depth_are_free(settings: ValueHeadSettings, count: int) -> None:
    head = ValueHead(8, settings)
    assert sum(p.numel() for p in head.parameters()) == count
    assert head(torch.randn(2, 5, 8)).shape == (2, 5)


def test_values_start_near_zero_and_stay_float32_under_autocast() -> None:
    head = ValueHead(8, ValueHeadSettings())
    states = torch.randn(4, 3, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        values = head(states)
    assert values.dtype == torch.float32
    assert values.abs().max() < 0.1
