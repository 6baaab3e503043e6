"""Which base a checkpoint belongs to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avcap_zoo.weights.fingerprint import fingerprint


@pytest.fixture
def base() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a": torch.randn(4, 5), "b": torch.randn(3), "n": torch.tensor(7), "big": torch.randn(100, 100)}


def test_is_sixteen_digits_and_repeatable(base: dict[str, Tensor]) -> None:
    found = fingerprint(base)
    assert len(found) == 16
    assert int(found, 16) >= 0
    assert found == fingerprint({name: tensor.clone() for name, tensor in base.items()})
    assert found == fingerprint(dict(reversed(base.items())))


def test_names_shapes_and_values_count(base: dict[str, Tensor]) -> None:
    found = {
        fingerprint(base),
        fingerprint({**base, "a": base["a"] + 0.1}),
        fingerprint({**base, "a": base["a"].view(5, 4)}),
        fingerprint({**base, "a": base["a"].flatten()}),
        fingerprint({**base, "a": base["a"].flip(0)}),
        fingerprint({**base, "extra": torch.zeros(1)}),
        fingerprint({"A" if name == "a" else name: tensor for name, tensor in base.items()}),
        fingerprint({name: tensor for name, tensor in base.items() if name != "b"}),
        fingerprint({**base, "a": base["b"], "b": base["a"]}),
        fingerprint({**base, "n": torch.tensor(8)}),
        fingerprint({**base, "big": torch.randn(100, 100)}),
    }
    assert len(found) == 11


def test_one_changed_value_of_a_small_tensor_counts(base: dict[str, Tensor]) -> None:
    changed = base["a"].clone()
    changed[3, 4] += 1
    assert fingerprint({**base, "a": changed}) != fingerprint(base)


def test_dtype_and_memory_layout_do_not_count(base: dict[str, Tensor]) -> None:
    in_bfloat16 = {name: tensor.bfloat16() for name, tensor in base.items()}
    assert fingerprint(in_bfloat16) == fingerprint(base)
    assert fingerprint({name: tensor.double() for name, tensor in base.items()}) == fingerprint(base)
    strided = torch.randn(5, 4).t()
    assert fingerprint({"a": strided}) == fingerprint({"a": strided.contiguous()})
    assert fingerprint({"a": base["a"].clone().requires_grad_()}) == fingerprint({"a": base["a"]})


def test_odd_tensors() -> None:
    assert fingerprint({}) == "none"
    odd = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(1.0), "flag": torch.tensor([True, False])}
    assert len(fingerprint(odd)) == 16
    assert fingerprint({"x": torch.tensor([float("nan")])}) == fingerprint({"x": torch.tensor([float("nan")])})
