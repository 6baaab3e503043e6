"""The picture of guided decoding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.systems.zeraucap.step_picture import ShownCandidate, draw_steps

TAKEN = (128, 203, 196)


def step(*scores: float, chosen: int = 0) -> list[ShownCandidate]:
    return [ShownCandidate(f"w{place}", score, place == chosen) for place, score in enumerate(scores)]


def taken_px(picture: NDArray[np.uint8]) -> int:
    return int((picture == TAKEN).all(axis=2).sum())


def test_the_taken_candidate_is_marked_and_longer_bars_are_better() -> None:
    best, worst = draw_steps("a dog barks", "", [step(0.9, 0.5, 0.1)]), draw_steps("a dog barks", "", [
        step(0.9, 0.5, 0.1, chosen=2)
    ])  # fmt: skip
    assert best.dtype == np.uint8
    assert taken_px(best) > 3 * taken_px(worst) > 0


def test_steps_beyond_eight_stand_below() -> None:
    eight, nine = (draw_steps("x", "keywords: a", [step(0.2, 0.1)] * count) for count in (8, 9))
    assert nine.shape[1] == eight.shape[1]
    assert nine.shape[0] > eight.shape[0]


def test_what_does_not_fit_is_cut_and_equal_scores_are_whole_bars() -> None:
    long = [ShownCandidate("word" * 20, 0.5, chosen=True), ShownCandidate("x", 0.5, chosen=False)]
    picture = draw_steps("caption " * 60, "keywords " * 60, [long])
    assert taken_px(picture) > 500
    assert (picture[:, -14:] == 255).all()  # nothing runs over the margin
