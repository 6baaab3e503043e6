from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.clip_picture import ClipParts, draw_clip
from avcap_zoo.ops.heat_map import ANCHORS

LEFT, RIGHT = 152, 1016
RED = (250, 10, 20)


def clip(num_frames: int = 5, num_tokens: int = 8) -> ClipParts:
    """Ten seconds; the plan sends each moment of sound to the frame of that moment."""
    frames = np.zeros((num_frames, 3, 16, 16), np.uint8)
    frames[:] = np.array(RED, np.uint8)[:, None, None]
    rows = np.arange(num_tokens) * num_frames // num_tokens
    plan = np.full((num_frames, num_tokens), 0.01)
    plan[rows, np.arange(num_tokens)] = 1.0
    return ClipParts(
        "clip 7",
        "a dog barks",
        duration_s=10.0,
        frames=frames,
        spectrogram=np.random.default_rng(0).normal(size=(64, 100)),
        spectrogram_end_s=10.0,
        plan=plan,
        plan_end_s=10.0,
    )


def columns_with(pixels: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.intp]:
    return np.flatnonzero((pixels == colour).all(axis=-1).any(axis=0))


def test_thumbnails_stand_at_their_times() -> None:
    pixels = draw_clip(replace(clip(4), plan=None, spectrogram=None, plan_end_s=0.0, spectrogram_end_s=0.0))
    runs = np.split(found := columns_with(pixels, RED), np.flatnonzero(np.diff(found) > 1) + 1)
    centres = [(run[0] + run[-1]) / 2 for run in runs]
    assert centres == pytest.approx([LEFT + (RIGHT - LEFT) * (k + 0.5) / 4 for k in range(4)], abs=1)


def test_the_plan_lies_under_the_sound_it_speaks_of() -> None:
    parts = clip(5, 8)
    assert parts.plan is not None
    plan = np.full((5, 8), 0.01)
    plan[:, 3] = [0.01, 0.01, 1.0, 0.01, 0.01]
    pixels = draw_clip(replace(parts, spectrogram=None, frames=None, plan=plan))
    # The brightest cell is that of the fourth token: from 3/8 to 4/8 of the axis.
    bright = columns_with(pixels[:, : RIGHT + 1], ANCHORS[-1])
    assert bright[[0, -1]] == pytest.approx([LEFT + (RIGHT - LEFT) * 3 / 8, LEFT + (RIGHT - LEFT) / 2], abs=2)


def test_a_token_of_padding_does_not_set_the_colours() -> None:
    parts = replace(clip(2, 2), frames=None, spectrogram=None, duration_s=5.5, spectrogram_end_s=0.0)
    plan = np.array([[0.6, 1.0], [0.4, 0.0]])
    pixels = draw_clip(replace(parts, plan=plan))
    assert (pixels == ANCHORS[-1]).all(axis=-1)[:, LEFT:RIGHT].any(axis=0)[: (RIGHT - LEFT) // 2 - 2].all()


def test_every_part_may_be_missing() -> None:
    whole = draw_clip(clip())
    assert whole.dtype == np.uint8
    assert whole.shape[1:] == (1120, 3)
    heights = [whole.shape[0]]
    for missing in ("spectrogram", "frames", "plan"):
        parts: dict[str, Any] = {**vars(clip()), missing: None}
        picture = draw_clip(ClipParts(**parts))
        heights.append(picture.shape[0])
        assert picture.shape[0] < whole.shape[0]
    assert len(set(heights)) == 4
    assert draw_clip(ClipParts("a", "")).shape[0] < 150
    assert draw_clip(ClipParts("a", "b", remark="nothing to show")).shape[0] > draw_clip(ClipParts("a", "b")).shape[0]


def test_without_a_duration_frames_are_numbered_and_all_is_drawn() -> None:
    parts = replace(clip(20), duration_s=None, spectrogram=None, spectrogram_end_s=0.0)
    assert draw_clip(parts).shape[0] > draw_clip(replace(parts, plan=None)).shape[0]


def test_long_captions_take_several_lines() -> None:
    short, long = (draw_clip(ClipParts("a", " ".join(["barking"] * count))) for count in (3, 60))
    assert long.shape[0] > short.shape[0] + 60


def test_a_plan_of_other_frames_is_refused() -> None:
    with pytest.raises(ShapeError, match="the plan has 4 rows, the clip 5 frames"):
        draw_clip(replace(clip(5), plan=np.ones((4, 8))))
