"""The transport plan and what is made of it: masked equals unmasked on the real tokens, always in float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.masking import length_mask
from avcap_zoo.ops.optimal_transport import (
    AttentionConvention,
    LossConvention,
    alignment_logits,
    alignment_loss,
    sinkhorn_log_plan,
    transport_attention,
)

ROWS, COLUMNS = torch.tensor([5, 3, 1]), torch.tensor([7, 2, 4])


@pytest.fixture
def similarity() -> Tensor:
    torch.manual_seed(0)
    return torch.rand(3, 5, 7) * 2 - 1


@pytest.fixture
def masks() -> dict[str, Tensor]:
    return {"row_mask": length_mask(ROWS, 5), "column_mask": length_mask(COLUMNS, 7)}


def parts(batch: Tensor) -> list[Tensor]:
    """The real tokens of each clip, as batches of one."""
    return [batch[i : i + 1, :n, :m] for i, (n, m) in enumerate(zip(ROWS.tolist(), COLUMNS.tolist(), strict=True))]


# -- plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 1.0])
def test_masked_plan_is_the_plan_of_the_real_tokens(
    similarity: Tensor, masks: dict[str, Tensor], epsilon: float
) -> None:
    plan = sinkhorn_log_plan(similarity, epsilon=epsilon, **masks)  # type: ignore[arg-type]
    for masked, alone in zip(parts(plan), parts(similarity), strict=True):
        torch.testing.assert_close(masked, sinkhorn_log_plan(alone, epsilon=epsilon), rtol=1e-5, atol=2e-5)
    real = masks["row_mask"][:, :, None] & masks["column_mask"][:, None, :]
    assert (plan[~real] == -math.inf).all()
    assert torch.isfinite(plan[real]).all()


def test_masked_entries_may_hold_anything(similarity: Tensor, masks: dict[str, Tensor]) -> None:
    plan = sinkhorn_log_plan(similarity, **masks)  # type: ignore[arg-type]
    real = masks["row_mask"][:, :, None] & masks["column_mask"][:, None, :]
    for junk in (1e9, -math.inf, math.nan):
        torch.testing.assert_close(sinkhorn_log_plan(similarity.masked_fill(~real, junk), **masks), plan)  # type: ignore[arg-type]


def test_marginals_are_uniform_over_real_tokens(similarity: Tensor, masks: dict[str, Tensor]) -> None:
    plan = sinkhorn_log_plan(similarity, num_iterations=300, **masks).exp()  # type: ignore[arg-type]
    for part, n, m in zip(parts(plan), ROWS.tolist(), COLUMNS.tolist(), strict=True):
        torch.testing.assert_close(part.sum(dim=2), torch.full((1, n), 1 / n), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(part.sum(dim=1), torch.full((1, m), 1 / m), rtol=1e-4, atol=1e-6)
        assert float(part.sum()) == pytest.approx(1, abs=1e-4)


def test_a_sharp_plan_assigns_like_to_like() -> None:
    plan = sinkhorn_log_plan(torch.eye(4)[None], epsilon=0.02).exp()
    torch.testing.assert_close(plan[0], torch.eye(4) / 4, rtol=1e-4, atol=1e-4)


def test_transposed_problem_has_the_transposed_plan(similarity: Tensor) -> None:
    plan = sinkhorn_log_plan(similarity, num_iterations=500)
    turned = sinkhorn_log_plan(similarity.transpose(1, 2), num_iterations=500)
    torch.testing.assert_close(plan.exp(), turned.transpose(1, 2).exp(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_computed_in_float32(similarity: Tensor, dtype: torch.dtype) -> None:
    rounded = similarity.to(dtype)
    plan = sinkhorn_log_plan(rounded)
    assert plan.dtype == torch.float32
    assert torch.equal(plan, sinkhorn_log_plan(rounded.float()))


def test_autocast_changes_nothing(similarity: Tensor) -> None:
    log_plan = sinkhorn_log_plan(similarity)
    expected: list[Any] = [log_plan, *_all_uses(similarity, log_plan)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [sinkhorn_log_plan(similarity), *_all_uses(similarity, log_plan)]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def _all_uses(similarity: Tensor, log_plan: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    tokens = torch.randn(3, 5, 4), torch.randn(3, 7, 4)
    return [
        *alignment_logits(similarity, log_plan, 10.0),
        *alignment_loss(similarity, log_plan, 10.0),
        *transport_attention(*tokens, log_plan),
    ]


def _count_updates(monkeypatch: pytest.MonkeyPatch, similarity: Tensor, **options: Any) -> tuple[int, Tensor]:
    calls = 0
    original = torch.logsumexp

    def counted(*arguments: Any, **keywords: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "logsumexp", counted)
        plan = sinkhorn_log_plan(similarity, **options)
    return calls // 2, plan


def test_tolerance_stops_early_with_the_same_plan(
    similarity: Tensor, masks: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epsilon": 0.5, "num_iterations": 200, **masks}
    full, exact = _count_updates(monkeypatch, similarity, **options)
    few, rough = _count_updates(monkeypatch, similarity, tolerance=1e-3, **options)
    more, close = _count_updates(monkeypatch, similarity, tolerance=1e-5, **options)
    never, never_plan = _count_updates(monkeypatch, similarity, tolerance=0.0, **{**options, "num_iterations": 2})
    assert full == 200
    assert 2 < few < more < 60
    assert never == 2
    torch.testing.assert_close(rough.exp(), exact.exp(), rtol=5e-3, atol=1e-4)
    torch.testing.assert_close(close.exp(), exact.exp(), rtol=1e-4, atol=1e-5)
    for found, count in ((rough, few), (close, more), (never_plan, never)):
        assert torch.equal(found, sinkhorn_log_plan(similarity, **{**options, "num_iterations": count}))  # type: ignore[arg-type]
    for part, n in zip(parts(rough.exp()), ROWS.tolist(), strict=True):
        assert (part.sum(dim=2) * n - 1).abs().max() <= 1.1e-3
    one_less = sinkhorn_log_plan(similarity, **{**options, "num_iterations": few - 1}).exp()  # type: ignore[arg-type]
    errors = [(p.sum(dim=2) * n - 1).abs().max() for p, n in zip(parts(one_less), ROWS.tolist(), strict=True)]
    assert max(errors) > 1e-3  # so it did not stop late


class CountReads(TorchDispatchMode):
    """Counts the numbers that Python reads from tensors: each waits for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("tolerance", "masked", "reads"), [(None, False, 0), (None, True, 2), (0.0, False, 49)])
def test_the_device_is_waited_for_only_on_request(
    similarity: Tensor, masks: dict[str, Tensor], tolerance: float | None, masked: bool, reads: int
) -> None:
    options: Any = masks if masked else {}
    with CountReads() as count:
        sinkhorn_log_plan(similarity, epsilon=0.02, num_iterations=50, tolerance=tolerance, **options)
    assert count.reads == reads


def test_one_token_on_a_side() -> None:
    plan = sinkhorn_log_plan(torch.randn(2, 1, 4)).exp()
    torch.testing.assert_close(plan, torch.full((2, 1, 4), 0.25))


def test_no_gradient_flows_through_the_plan(similarity: Tensor) -> None:
    assert not sinkhorn_log_plan(similarity.requires_grad_()).requires_grad


def test_refusals_name_the_shapes(similarity: Tensor) -> None:
    with pytest.raises(ShapeError, match=r"similarity is \(5, 7\), wanted \(clips, rows, columns\)"):
        sinkhorn_log_plan(similarity[0])
    with pytest.raises(ShapeError, match=r"row_mask is \(3, 4\) torch.bool, wanted \(3, 5\)"):
        sinkhorn_log_plan(similarity, row_mask=torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"column_mask is \(3, 7\) torch.float32, wanted \(3, 7\) torch.bool"):
        sinkhorn_log_plan(similarity, column_mask=torch.ones(3, 7))
    for epsilon in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"epsilon is {epsilon}, wanted a number > 0"):
            sinkhorn_log_plan(similarity, epsilon=epsilon)
    with pytest.raises(ValueError, match="num_iterations is 0, wanted at least 1"):
        sinkhorn_log_plan(similarity, num_iterations=0)
    with pytest.raises(ValueError, match=r"similarity is \(3, 0, 7\)"):
        sinkhorn_log_plan(similarity[:, :0])


@pytest.mark.parametrize("side", ["row_mask", "column_mask"])
def test_a_clip_without_a_real_token_is_named(similarity: Tensor, masks: dict[str, Tensor], side: str) -> None:
    masks[side][1] = False
    with pytest.raises(ValueError, match="clip 1 of the batch has no real token"):
        sinkhorn_log_plan(similarity, **masks)  # type: ignore[arg-type]


# -- loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["released", "released_exp", "paper"])
def test_masked_loss_is_the_loss_of_the_real_tokens(
    similarity: Tensor, masks: dict[str, Tensor], convention: LossConvention
) -> None:
    scale = 5.0
    plan = sinkhorn_log_plan(similarity, **masks)  # type: ignore[arg-type]
    found = alignment_loss(similarity, plan, scale, convention=convention)
    rows, columns = [], []
    for alone in parts(similarity):
        losses = alignment_loss(alone, sinkhorn_log_plan(alone), scale, convention=convention)
        rows.append(losses[0] * alone.shape[1])
        columns.append(losses[1] * alone.shape[2])
    torch.testing.assert_close(found[0], torch.stack(rows).sum() / ROWS.sum(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], torch.stack(columns).sum() / COLUMNS.sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("convention", ["released", "released_exp", "paper"])
def test_loss_gradients_are_finite_and_leave_masked_tokens_alone(
    similarity: Tensor, masks: dict[str, Tensor], convention: LossConvention
) -> None:
    plan = sinkhorn_log_plan(similarity, **masks)  # type: ignore[arg-type]
    scale = torch.tensor(5.0, requires_grad=True)
    torch.stack(alignment_loss(similarity.requires_grad_(), plan, scale, convention=convention)).sum().backward()
    assert similarity.grad is not None
    assert scale.grad is not None
    assert torch.isfinite(similarity.grad).all()
    assert torch.isfinite(scale.grad)
    real = masks["row_mask"][:, :, None] & masks["column_mask"][:, None, :]
    assert (similarity.grad[~real] == 0).all()
    assert (similarity.grad[0] != 0).any()


def test_logits_are_sums_of_weights_times_similarities(similarity: Tensor) -> None:
    log_plan = sinkhorn_log_plan(similarity)
    released = alignment_logits(similarity, log_plan, 2.0)
    exponential = alignment_logits(similarity, log_plan, 2.0, convention="released_exp")
    paper = alignment_logits(similarity, log_plan, 2.0, convention="paper")
    assert (released[0].shape, released[1].shape) == ((3, 5, 5), (3, 7, 7))
    by_hand = 2 * sum(float(log_plan[1, 2, m] * similarity[1, 4, m]) for m in range(7))
    assert float(released[0][1, 2, 4]) == pytest.approx(by_hand, rel=1e-5)
    by_hand = 2 * sum(float(log_plan[1, n, 6].exp() * similarity[1, n, 3]) for n in range(5))
    assert float(exponential[1][1, 6, 3]) == pytest.approx(by_hand, rel=1e-5)
    torch.testing.assert_close(paper[0], exponential[0] * 5)
    torch.testing.assert_close(paper[1], exponential[1] * 7)


@pytest.mark.parametrize("convention", ["released_exp", "paper"])
def test_matched_tokens_lose_less_than_mismatched(convention: LossConvention) -> None:
    plan = sinkhorn_log_plan(torch.eye(4)[None], epsilon=0.05)
    matched = alignment_loss(torch.eye(4)[None], plan, 20.0, convention=convention)
    mismatched = alignment_loss(torch.eye(4).roll(1, 0)[None], plan, 20.0, convention=convention)
    assert float(matched[0]) < float(mismatched[0])
    assert float(matched[1]) < float(mismatched[1])


# -- attention ---------------------------------------------------------------------------------------------------


def test_row_normalised_weights_sum_to_one(similarity: Tensor, masks: dict[str, Tensor]) -> None:
    plan = sinkhorn_log_plan(similarity, num_iterations=2, **masks)  # type: ignore[arg-type]
    rows, columns = transport_attention(torch.zeros(3, 5, 1), torch.ones(3, 7, 1), plan, convention="row_normalised")
    torch.testing.assert_close(rows[..., 0], masks["row_mask"].float())
    assert (columns == 1).all()
    rows, columns = transport_attention(torch.ones(3, 5, 1), torch.zeros(3, 7, 1), plan, convention="row_normalised")
    torch.testing.assert_close(columns[..., 0], masks["column_mask"].float())


@pytest.mark.parametrize("convention", ["released", "row_normalised"])
def test_masked_attention_is_that_of_the_real_tokens(
    similarity: Tensor, masks: dict[str, Tensor], convention: AttentionConvention
) -> None:
    row_tokens, column_tokens = torch.randn(3, 5, 4), torch.randn(3, 7, 4)
    plan = sinkhorn_log_plan(similarity, **masks)  # type: ignore[arg-type]
    rows, columns = transport_attention(row_tokens, column_tokens, plan, convention=convention)
    for index, alone in enumerate(parts(similarity)):
        n, m = alone.shape[1:]
        pair = row_tokens[index : index + 1, :n], column_tokens[index : index + 1, :m]
        expected = transport_attention(*pair, sinkhorn_log_plan(alone), convention=convention)
        torch.testing.assert_close(rows[index : index + 1, :n], expected[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(columns[index : index + 1, :m], expected[1], rtol=1e-4, atol=1e-5)
        assert torch.equal(rows[index, n:], row_tokens[index, n:])


def test_attention_keeps_the_dtype_of_the_tokens(similarity: Tensor) -> None:
    plan = sinkhorn_log_plan(similarity)
    rows, columns = transport_attention(torch.randn(3, 5, 4).bfloat16(), torch.randn(3, 7, 4), plan)
    assert (rows.dtype, columns.dtype) == (torch.bfloat16, torch.float32)
