"""The benchmark of the transport plan compares like with like."""

from __future__ import annotations

import torch

from benchmarks.optimal_transport import measure, plan_batched, plan_clip_by_clip


def test_both_ways_give_one_plan() -> None:
    similarity = torch.rand(3, 4, 6) * 2 - 1
    torch.testing.assert_close(plan_clip_by_clip(similarity), plan_batched(similarity), rtol=1e-5, atol=1e-5)


def test_a_measurement_at_a_small_size() -> None:
    result = measure(4, 3, 5, 8, repeats=1)
    assert result.ratio > 0
    assert result.ours_error < 1e-4 < result.loop_error
    assert result.ours_error <= result.ours_error_rounded
