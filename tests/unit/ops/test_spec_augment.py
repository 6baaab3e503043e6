"""SpecAugment blanks one band and one span per clip."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from avcap_zoo.ops.spec_augment import mix_stripes, spec_augment


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


def test_mixed_stripes_come_half_from_another_clip_of_the_same_sound() -> None:
    torch.manual_seed(0)
    # Clip s of sound b holds 100 b + 2^s everywhere: each mean of two clips of a sound can be told from every other.
    clips = (100.0 * torch.arange(2)[:, None] + 2.0 ** torch.arange(4))[:, :, None, None, None].expand(2, 4, 1, 16, 30)
    before = clips.clone()
    only_frames = mix_stripes(clips, max_bins=0, max_frames=12)
    assert torch.equal(clips, before)
    for sound in range(2):
        own = clips[sound, :, 0, 0, 0]
        # A second stripe over the first mixes again with the same partner.
        allowed = {float(a * (1 - w) + b * w) for a in own for b in own for w in (0, 0.5, 0.75)}
        assert set(only_frames[sound].unique().tolist()) <= allowed
    changed = only_frames != clips
    assert bool(changed.any())
    assert bool((changed == changed[:, :, :, :1]).all()), "a stripe over frames covers every bin"
    assert int(changed[:, :, 0, 0].sum(dim=2).max()) <= 22
    only_bins = mix_stripes(clips, max_bins=6, max_frames=0) != clips
    assert bool(only_bins.any())
    assert bool((only_bins == only_bins[..., :1]).all())
    assert int(only_bins[:, :, 0, :, 0].sum(dim=2).max()) <= 10


def test_no_stripes_and_one_clip_change_nothing() -> None:
    clips = torch.randn(2, 3, 1, 8, 9)
    assert torch.equal(mix_stripes(clips, max_bins=0, max_frames=0), clips)
    alone = torch.randn(2, 1, 1, 8, 9)
    torch.testing.assert_close(mix_stripes(alone, max_bins=8, max_frames=9), alone)


def test_stripes_wider_than_the_clip_fit() -> None:
    clips = torch.randn(1, 3, 1, 4, 5)
    assert mix_stripes(clips, max_bins=50, max_frames=50).shape == clips.shape
