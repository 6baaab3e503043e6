"""How sure a score is: bootstrap intervals of one set of captions, and a paired comparison of two.

Nothing is scored again. Every score of a corpus is a function of sums over its clips, so a draw of clips is a weighted
sum: BLEU from n-gram counts, METEOR from its own counts (its program turns sums into scores), all others from the
scores of the clips. CIDEr's word weights stay those of all clips, as if the references were a fixed corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.errors import DataError
from avcap_zoo.metrics.java import find_java
from avcap_zoo.metrics.meteor import shared_meteor
from avcap_zoo.metrics.scores import CaptionReport, bleu_of_counts, required_java

Floats = NDArray[np.float64]
CONFIDENCE = 0.95
FEWEST_CLIPS = 2
"""A single clip drawn with replacement is always the same."""

_ROUNDING = 1e-12
"""Differences that are smaller than this are equal: sums in another order differ in their last bits."""


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of a score over the draws."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """What the second captions score above the first.

    Attributes:
        value: score of the second minus score of the first.
        interval: of the value, over draws of clips that are the same for both.
        p_value: share of random exchanges of the two captions of each clip (this one counted) that make a difference
            at least as large, in either direction.
    """

    value: float
    interval: Interval
    p_value: float


def bootstrap_intervals(
    report: CaptionReport, *, num_draws: int = 1000, seed: int = 0, java: str | Path | None = None
) -> dict[str, Interval]:
    """Percentile bootstrap over clips, of every score of the corpus.

    Args:
        report: from `score_captions`.
        num_draws: how many corpora of the same size are drawn, with replacement.
        seed: of the draws.
        java: see `find_java`; used for METEOR.

    Returns:
        An interval by name; NaN where a score is.

    Raises:
        DataError: fewer than two clips.
        JavaError: METEOR's program failed.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    _check_clips(report)
    sums = _Sums(report)
    scores = sums.scores(_drawn_sums(sums.values, num_draws, seed), java)
    return {name: _interval(scores[name]) for name in report.corpus}


def compare(
    first: CaptionReport,
    second: CaptionReport,
    *,
    num_draws: int = 1000,
    seed: int = 0,
    java: str | Path | None = None,
) -> dict[str, Difference]:
    """Compare two sets of captions of the same clips: paired bootstrap, and a paired permutation test.

    Args:
        first: from `score_captions`.
        second: of the same clips, with the same tokenizer.
        num_draws: corpora drawn for the interval, and exchanges tried for the p-value.
        seed: of both.
        java: see `find_java`; used for METEOR.

    Returns:
        Differences by name, of the scores that both have.

    Raises:
        DataError: fewer than two clips, or other clips in one than in the other.
        JavaError: METEOR's program failed.
    Source: Koehn 2004 (paired bootstrap); Noreen 1989, Computer-Intensive Methods (approximate randomisation).
    """
    _check_clips(first)
    if list(first.per_clip) != list(second.per_clip):
        raise DataError("two sets of captions can be compared on the same clips only; these differ in their ids")
    names = [name for name in first.corpus if name in second.corpus]
    ours, theirs = _Sums(first), _Sums(second)
    width = ours.values.shape[1]
    drawn = _drawn_sums(np.concatenate([ours.values, theirs.values], axis=1), num_draws, seed)
    before, after = ours.scores(drawn[:, :width], java), theirs.scores(drawn[:, width:], java)
    moved = _exchanged_sums(theirs.values - ours.values, num_draws, seed)
    swapped = ours.scores(ours.values.sum(axis=0) + moved, java)
    kept = theirs.scores(theirs.values.sum(axis=0) - moved, java)
    found = {}
    for name in names:
        value = second.corpus[name] - first.corpus[name]
        by_chance = np.abs(kept[name] - swapped[name]) >= abs(value) - _ROUNDING
        p_value = (1 + int(by_chance.sum())) / (1 + num_draws) if np.isfinite(value) else float("nan")
        found[name] = Difference(value, _interval(after[name] - before[name]), p_value)
    return found


class _Sums:
    """What the clips of a report add up to its scores: (N, K) values, and which columns are whose."""

    def __init__(self, report: CaptionReport) -> None:
        parts = dict(report.counts)
        for name in report.corpus:
            if name not in report.counts and name != "spider" and not name.startswith("bleu_"):
                scores = np.array([clip[name] for clip in report.per_clip.values()])
                known = ~np.isnan(scores)
                parts[name] = np.stack([np.where(known, scores, 0.0), known], axis=1).astype(np.float64)
        self.names = tuple(report.corpus)
        self.values: Floats = np.concatenate(list(parts.values()), axis=1)
        ends = np.cumsum([part.shape[1] for part in parts.values()]).tolist()
        self._columns = {
            name: slice(end - part.shape[1], end) for (name, part), end in zip(parts.items(), ends, strict=True)
        }

    def scores(self, sums: Floats, java: str | Path | None) -> dict[str, Floats]:
        """Scores of corpora by name, (D,) each, from the (D, K) sums of their clips."""
        found: dict[str, Floats] = {}
        for name, columns in self._columns.items():
            own = sums[:, columns]
            if name == "bleu":
                found |= {f"bleu_{order}": np.array(bleu) for order, bleu in enumerate(bleu_of_counts(own), 1)}
            elif name == "meteor":
                found[name] = np.array(shared_meteor(required_java(find_java(java))).evaluate(own.tolist())[1])
            else:
                with np.errstate(invalid="ignore"):
                    found[name] = own[:, 0] / own[:, 1]
        if "spider" in self.names:
            found["spider"] = (found["cider"] + found["spice"]) / 2
        return found


def _check_clips(report: CaptionReport) -> None:
    if len(report.per_clip) < FEWEST_CLIPS:
        raise DataError(f"a bootstrap needs {FEWEST_CLIPS} clips or more, found {len(report.per_clip)}")


def _drawn_sums(values: Floats, num_draws: int, seed: int) -> Floats:
    """(D, K) sums over N rows drawn with replacement, D times."""
    rng = np.random.default_rng(seed)
    count = len(values)
    return np.stack([np.bincount(rng.integers(count, size=count), minlength=count) @ values for _ in range(num_draws)])


def _exchanged_sums(values: Floats, num_draws: int, seed: int) -> Floats:
    """(D, K) sums over a random half of the rows, D times."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(2, size=len(values)) @ values for _ in range(num_draws)])


def _interval(scores: Floats) -> Interval:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return Interval(float(low), float(high))


def describe(num_draws: int, seed: int, names: Sequence[str]) -> str:
    """One line on how the intervals of these scores were made."""
    fixed = "; CIDEr with the word weights of all clips" if "cider" in names else ""
    return f"intervals: {CONFIDENCE:.0%}, percentile bootstrap over clips, {num_draws} draws, seed {seed}{fixed}"
