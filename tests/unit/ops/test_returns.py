"""Returns, whitening and losses where the golden cases do not reach."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.returns import (
    explained_variance,
    mutual_choice,
    policy_loss,
    token_log_probs,
    token_returns,
    token_weights,
    value_loss,
    whiten,
)

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)


def test_padding_earns_nothing_whatever_stands_there() -> None:
    local = torch.where(MASK, -torch.ones(3, 4), torch.full((3, 4), torch.nan))
    returns = token_returns(torch.tensor([1.0, 2.0, 3.0]), local, MASK)
    assert returns.tolist() == [[-2, -1, 0, 0], [1, 0, 0, 0], [-1, 0, 1, 2]]


def test_a_row_without_tokens_earns_nothing() -> None:
    mask = torch.tensor([[False, False]])
    assert token_returns(torch.tensor([5.0]), torch.ones(1, 2), mask).tolist() == [[0, 0]]


def test_shapes_and_discount_are_checked() -> None:
    with pytest.raises(ShapeError, match=r"final \(2,\), local \(3, 4\) and mask \(3, 4\)"):
        token_returns(torch.zeros(2), torch.zeros(3, 4), MASK)
    with pytest.raises(ValueError, match="gamma is 0"):
        token_returns(torch.zeros(3), torch.zeros(3, 4), MASK, gamma=0.0)
    with pytest.raises(ShapeError, match=r"\(3, 2\) and text embeddings \(2, 2\)"):
        mutual_choice(torch.zeros(3, 2), torch.zeros(2, 2))


def test_whitening_of_two_processes_is_that_of_one() -> None:
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    whole = whiten(values, MASK)
    halves = [(values[:1], MASK[:1]), (values[1:], MASK[1:])]
    # What each process adds up, in the order of the two sums that whitening asks for.
    count, mean = MASK.sum().double(), values[MASK].double().mean()
    squares = (values[MASK].double() - mean).square().sum()
    for part, mask in halves:
        answers = iter(
            [torch.stack([count, mean * count]), torch.stack([squares, values[MASK].double().square().sum()])]
        )
        got = whiten(part, mask, total=lambda _, answers=answers: next(answers))  # type: ignore[misc]
        torch.testing.assert_close(got, whole[:1] if len(part) == 1 else whole[1:])


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6])
def test_equal_values_whiten_to_zero(value: float) -> None:
    for dtype in (torch.float32, torch.float64):
        assert whiten(torch.full((3, 4), value, dtype=dtype), MASK).eq(0).all()
    assert whiten(torch.tensor([[value]]), torch.tensor([[True]])).item() == 0


def test_small_but_real_differences_are_kept() -> None:
    values = torch.tensor([[5.0, 5.0001]])
    torch.testing.assert_close(whiten(values, torch.ones(1, 2, dtype=torch.bool)).abs(), torch.full((1, 2), 0.5**0.5))


@pytest.mark.parametrize("reduction", ["caption", "token"])
def test_losses_of_parts_add_up_to_the_whole(reduction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    values, returns = torch.randn(3, 4, generator=generator), torch.randn(3, 4, generator=generator)
    log_probs = -torch.rand(3, 4, generator=generator)

    def losses(rows: slice) -> torch.Tensor:
        weights = token_weights(
            MASK[rows], num_captions=3, num_tokens=8, reduction="token" if reduction == "token" else "caption"
        )
        return torch.stack(
            [value_loss(values[rows], returns[rows], weights), policy_loss(log_probs[rows], returns[rows], weights)]
        )

    whole = losses(slice(None))
    torch.testing.assert_close(losses(slice(0, 1)) + losses(slice(1, 3)), whole)
    per_token = (values - returns).square()
    want = (
        per_token[MASK].mean()
        if reduction == "token"
        else torch.stack([row[mask].mean() for row, mask in zip(per_token, MASK, strict=True)]).mean()
    )
    torch.testing.assert_close(whole[0], want)


def test_padding_with_infinities_gives_no_gradient() -> None:
    log_probs = torch.where(MASK, -torch.ones(3, 4), torch.full((3, 4), -torch.inf)).requires_grad_()
    weights = token_weights(MASK, num_captions=3, num_tokens=8)
    for objective in ("prob", "logprob"):
        loss = policy_loss(log_probs, torch.ones(3, 4), weights, objective="prob" if objective == "prob" else "logprob")
        (gradient,) = torch.autograd.grad(loss, log_probs)
        assert gradient.isfinite().all()
        assert gradient[~MASK].eq(0).all()


def test_log_probs_are_float32_from_half_precision_logits() -> None:
    logits = torch.randn(1, 2, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    chosen, entropy = token_log_probs(logits, torch.tensor([[3, 4]]))
    assert chosen.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(chosen[0], logits.float()[0].log_softmax(-1)[[0, 1], [3, 4]])


def test_entropy_of_an_even_choice() -> None:
    logits = torch.zeros(1, 1, 8)
    torch.testing.assert_close(token_log_probs(logits, torch.tensor([[0]]))[1], torch.tensor(8.0).log().view(1, 1))
    logits[..., :2] = 5
    entropy = token_log_probs(logits, torch.tensor([[0]]), temperature=2.0, top_k=2)[1]
    torch.testing.assert_close(entropy, torch.tensor(2.0).log().view(1, 1))


def test_pairs_that_do_not_differ_have_no_choice() -> None:
    rows = torch.ones(4, 3)
    assert mutual_choice(rows, rows).eq(0).all()


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.zeros(1, 4), returns, mask) == 0
    assert explained_variance(returns, torch.ones(1, 4), mask) == 0
