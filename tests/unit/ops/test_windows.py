"""Windows of long clips, and what fills a window that a clip does not."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.windows import choose_starts, cut_windows, mean_direction, repeat_whole, round_to_int16


@pytest.mark.parametrize("policy", ["seeded", "centre", "windows_mean", "released"])
def test_a_clip_that_fits_has_one_window_at_its_start(policy: str) -> None:
    sequence = random.Random(0)
    before = sequence.getstate()
    starts = choose_starts([0, 1, 99, 100], 100, policy, clip_ids=list("abcd"), sequence=sequence)  # type: ignore[arg-type]
    assert starts == [[0]] * 4
    assert sequence.getstate() == before


def test_seeded_depends_on_id_and_seed_alone() -> None:
    lengths, ids = [1000, 5000, 1001, 5000], ["a", "b", "c", "d"]
    together = choose_starts(lengths, 300, "seeded", clip_ids=ids, seed=4182)
    for length, clip_id, start in zip(lengths, ids, together, strict=True):
        assert choose_starts([length], 300, "seeded", clip_ids=[clip_id], seed=4182) == [start]
        assert 0 <= start[0] <= length - 300
    assert choose_starts(lengths[::-1], 300, "seeded", clip_ids=ids[::-1], seed=4182) == together[::-1]
    assert choose_starts(lengths, 300, "seeded", clip_ids=ids, seed=1) != together
    assert together[1] != together[3]


def test_seeded_reaches_both_ends() -> None:
    starts = {choose_starts([12], 10, "seeded", clip_ids=[str(n)])[0][0] for n in range(60)}
    assert starts == {0, 1, 2}


def test_centre() -> None:
    assert choose_starts([101, 104, 1000], 100, "centre") == [[0], [2], [450]]


@pytest.mark.parametrize(
    ("length", "starts"),
    [(101, [0, 1]), (200, [0, 100]), (201, [0, 50, 101]), (250, [0, 75, 150]), (400, [0, 100, 200, 300])],
)
def test_windows_cover_a_clip(length: int, starts: list[int]) -> None:
    assert choose_starts([length], 100, "windows_mean") == [starts]
    assert {place for start in starts for place in range(start, start + 100)} == set(range(length))


def test_what_a_policy_needs() -> None:
    with pytest.raises(ValueError, match="policy seeded needs the id of each of 2 clips, 1 are given"):
        choose_starts([1, 2], 10, "seeded", clip_ids=["a"])
    with pytest.raises(ValueError, match="policy released needs the generator"):
        choose_starts([1, 2], 10, "released")


def ramp(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Clip b is 100 b + 1, 100 b + 2, ..."""
    waveform = torch.zeros(len(lengths), max(lengths))
    for clip, length in enumerate(lengths):
        waveform[clip, :length] = torch.arange(1, length + 1) + 100.0 * clip
    return waveform, torch.tensor(lengths)


def test_windows_are_cut_where_they_begin() -> None:
    waveform, num_samples = ramp([7, 3, 0])
    windows = cut_windows(waveform, num_samples, [[0, 2], [0], [0]], 5)
    assert windows.waveform.tolist() == [[1, 2, 3, 4, 5], [3, 4, 5, 6, 7], [101, 102, 103, 0, 0], [0] * 5]
    assert windows.num_samples.tolist() == [5, 5, 3, 0]
    assert windows.clip.tolist() == [0, 0, 1, 2]


def test_a_window_longer_than_the_batch_ends_in_zeros() -> None:
    waveform, num_samples = ramp([3, 2])
    windows = cut_windows(waveform, num_samples, [[0], [0]], 5)
    assert windows.waveform.tolist() == [[1, 2, 3, 0, 0], [101, 102, 0, 0, 0]]


def test_what_lies_behind_a_clip_is_not_heard() -> None:
    waveform, _ = ramp([5, 5])
    windows = cut_windows(waveform, torch.tensor([5, 2]), [[0], [0]], 4)
    assert windows.waveform[1].tolist() == [101, 102, 0, 0]


def test_windows_of_other_clips_are_refused() -> None:
    waveform, num_samples = ramp([5, 5])
    with pytest.raises(ShapeError, match=r"waveform is \(2, 5\), num_samples \(2,\), starts are of 1 clips"):
        cut_windows(waveform, num_samples, [[0]], 4)
    with pytest.raises(ShapeError, match=r"num_samples \(1,\)"):
        cut_windows(waveform, num_samples[:1], [[0], [0]], 4)


def test_mean_direction() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    found = mean_direction(embeddings, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [0.6, 0.8]]))


@pytest.mark.parametrize(
    ("length", "wanted"),
    [(2, [1, 2, 1, 2, 1, 2, 0]), (3, [1, 2, 3, 1, 2, 3, 0]), (4, [1, 2, 3, 4, 0, 0, 0]), (7, [1, 2, 3, 4, 5, 6, 7]),
     (9, [1, 2, 3, 4, 5, 6, 7]), (0, [0] * 7), (1, [1] * 7)],
)  # fmt: skip
def test_whole_repeats(length: int, wanted: list[float]) -> None:
    waveform, num_samples = ramp([9, length])
    waveform[1] -= 100 * (waveform[1] > 0)
    assert repeat_whole(waveform, num_samples, 7)[1].tolist() == wanted
    assert repeat_whole(waveform[1:, : max(1, length)], num_samples[1:], 7)[0].tolist() == wanted


def test_sixteen_bits_change_what_they_must() -> None:
    already = torch.arange(-32767, 32768) / 32767
    torch.testing.assert_close(round_to_int16(already), already, rtol=0, atol=1 / 32767)
    assert round_to_int16(torch.tensor([3.0, -3.0, 1e-6])).tolist() == [1.0, -1.0, 0.0]
