"""The benchmark of guided decoding compares like with like."""

from __future__ import annotations

from benchmarks.guided_decoding import CANDIDATES, Race


def test_both_ways_give_the_same_captions_and_only_ours_saves_passes() -> None:
    released, ours = Race(new_tokens=3).measure(3, 1)  # prompts of 16, 14 and 18 tokens: 5, 7 and 3 new ones
    assert [len(caption) for caption in ours.captions] == [5, 7, 3]
    assert released.captions == ours.captions
    assert released.counts["LM tokens"] * 3 == 16 + 14 + 18 + CANDIDATES * (5 + 7 + 3)
    assert ours.counts["LM tokens"] * 3 == 16 + 14 + 18 + (5 + 7 + 3) - 3
    assert (released.counts["LM passes"] * 3, ours.counts["LM passes"] * 3) == (3 + 5 + 7 + 3, 7)
    assert (released.counts["text-encoder calls"] * 3, ours.counts["text-encoder calls"] * 3) == (5 + 7 + 3, 7)
    assert ours.counts["text-encoder tokens"] < released.counts["text-encoder tokens"]
