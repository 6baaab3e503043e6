"""What a conversion takes, refuses and gives back."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from avcap_zoo.errors import WeightsError
from avcap_zoo.weights.conversion import Conversion

CONVERSION = Conversion(
    to_ours=lambda official: {n.removeprefix("their."): t for n, t in official.items() if "constant" not in n},
    to_official=lambda ours: {f"their.{n}": t for n, t in ours.items()},
    unused=re.compile(r"^idle$"),
    ours_alone=re.compile(r"^eyes\."),
)
STATE: dict[str, Tensor] = {"head": torch.ones(2, 3), "frozen": torch.arange(4.0), "eyes.x": torch.zeros(1)}


def take(official: Mapping[str, Tensor], held: set[str] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return CONVERSION.take(official, STATE, {"head"} if held is None else held, "file.pth")


def test_held_and_repeated_tensors_are_told_apart() -> None:
    head = torch.randn(2, 3)
    official = {"their.head": head, "their.frozen": torch.arange(4.0), "their.constant": torch.zeros(1)}
    taken, repeated = take(official)
    assert taken == {"head": head}
    assert list(repeated) == ["frozen"]
    assert list(take({"their.head": head, "their.idle": head})[0]) == ["head"]


@pytest.mark.parametrize(
    ("official", "message"),
    [
        ({}, "file.pth does not fit the configured model: 1 missing: head"),
        ({"their.head": torch.ones(3, 2)}, r"1 other shape: head \(3, 2\), wanted \(2, 3\)"),
        ({"their.head": torch.ones(2, 3), "their.tail": torch.ones(1)}, "1 unknown: tail"),
        (
            {"their.tail": torch.ones(1), "their.frozen": torch.ones(1)},
            "1 missing: head; 1 unknown: tail; 1 other",
        ),
        (
            {"their.head": torch.ones(2, 3), "their.frozen": torch.ones(4)},
            "file.pth was made on another base: 1 of its 1 frozen tensors differ from the configured ones: frozen;",
        ),
    ],
)
def test_what_does_not_fit_is_refused(official: dict[str, Tensor], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        take(official)


def test_a_part_that_only_we_have_is_missed_and_left_out() -> None:
    with pytest.raises(WeightsError, match=r"1 missing: eyes\.x"):
        take({"their.head": torch.ones(2, 3)}, {"head", "eyes.x"})
    assert CONVERSION.give(STATE).keys() == {"their.head", "their.frozen"}
