"""SpecAugment blanks one band and one span per clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avcap_zoo.ops.spec_augment import spec_augment


def blanks(max_bins: int, max_frames: int, *, clips: int = 400, frames: int = 20, bins: int = 12) -> Tensor:
    """(clips, frames, bins) bool: what was blanked."""
    return spec_augment(torch.zeros(clips, frames, bins), max_bins=max_bins, max_frames=max_frames, value=1.0) == 1


def widths(blank: Tensor, axis: int) -> Tensor:
    """Width of the band or span of each clip when only that axis is used, checked to be one stretch."""
    other = 3 - axis
    along = blank.any(dim=other)
    assert torch.equal(along, blank.all(dim=other))
    edges = torch.diff(torch.nn.functional.pad(along.int(), (1, 1)), dim=1).abs().sum(dim=1)
    assert int(edges.max()) <= 2
    return along.sum(dim=1)


@pytest.mark.parametrize(("axis", "widest"), [(1, 7), (2, 5)])
def test_widths_are_uniform_below_the_widest(axis: int, widest: int) -> None:
    torch.manual_seed(0)
    blank = blanks(0, widest) if axis == 1 else blanks(widest, 0)
    counts = torch.bincount(widths(blank, axis), minlength=widest)
    assert len(counts) == widest
    assert int(counts.min()) > 0.5 * 400 / widest
    reached = blank.any(dim=3 - axis).any(dim=0)
    assert bool(reached[:-1].all())  # as in the original, the width is rounded down after the start is drawn


def test_both_axes_at_once() -> None:
    torch.manual_seed(0)
    blank = blanks(6, 8)
    span, band = blank.all(dim=2), blank.all(dim=1)
    assert torch.equal(blank, span[:, :, None] | band[:, None, :])
    assert len({tuple(row) for row in span.tolist()}) > 20  # drawn for each clip


def test_wider_than_the_spectrogram() -> None:
    assert widths(blanks(0, 100), 1).max() < 20
    assert widths(blanks(100, 0), 2).max() < 12


def test_nothing_to_blank() -> None:
    assert not blanks(0, 0).any()
    assert not blanks(1, 1).any()
    assert spec_augment(torch.zeros(0, 4, 4), max_bins=2, max_frames=2, value=1.0).shape == (0, 4, 4)


def test_the_seed_decides_and_the_input_is_untouched() -> None:
    spectrogram = torch.randn(4, 20, 12)
    copy = spectrogram.clone()
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(spec_augment(spectrogram, max_bins=6, max_frames=8, value=-9.0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(spectrogram, copy)
    kept = drawn[0] != -9.0
    assert torch.equal(drawn[0][kept], spectrogram[kept])
