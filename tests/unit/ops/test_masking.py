"""Masks and left alignment."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.masking import check_token_mask, left_align, length_mask


def test_length_mask() -> None:
    mask = length_mask(torch.tensor([0, 2, 3, 9]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3, [True] * 3]
    assert length_mask(torch.tensor([], dtype=torch.long), 3).shape == (0, 3)
    assert length_mask(torch.tensor([1]), 0).shape == (1, 0)


def test_check_token_mask() -> None:
    check_token_mask(None, (2, 3), "row_mask")
    check_token_mask(torch.ones(2, 3, dtype=torch.bool), (2, 3), "row_mask")
    with pytest.raises(ShapeError, match=r"row_mask is \(2, 4\) torch.bool, wanted \(2, 3\) torch.bool"):
        check_token_mask(torch.ones(2, 4, dtype=torch.bool), (2, 3), "row_mask")
    with pytest.raises(ShapeError, match=r"row_mask is \(2, 3\) torch.int64, wanted"):
        check_token_mask(torch.ones(2, 3, dtype=torch.long), (2, 3), "row_mask")


def test_left_align_keeps_the_order_of_real_and_of_masked_positions() -> None:
    torch.manual_seed(0)
    mask = torch.rand(6, 9) < 0.5
    mask[0], mask[1] = True, False
    numbers = torch.arange(54).view(6, 9)
    vectors = torch.randn(6, 9, 4)
    aligned, moved, moved_vectors = left_align(mask, numbers, vectors)
    for row in range(6):
        real, rest = numbers[row][mask[row]], numbers[row][~mask[row]]
        assert moved[row].tolist() == [*real.tolist(), *rest.tolist()]
        assert aligned[row].tolist() == [True] * len(real) + [False] * len(rest)
        torch.testing.assert_close(moved_vectors[row], vectors[row][moved[row] - 9 * row])


def test_left_align_of_full_rows_changes_nothing() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    vectors = torch.randn(2, 3, 4)
    aligned, moved = left_align(mask, vectors)
    assert torch.equal(aligned, mask)
    assert torch.equal(moved, vectors)


def test_left_align_passes_gradients() -> None:
    mask = torch.tensor([[False, True, True]])
    vectors = torch.randn(1, 3, 2, requires_grad=True)
    left_align(mask, vectors)[1][:, 0].sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[0].tolist() == [[0, 0], [1, 1], [0, 0]]
