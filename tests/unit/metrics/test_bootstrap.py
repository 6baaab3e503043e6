from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from avcap_zoo.errors import DataError
from avcap_zoo.metrics import bootstrap
from avcap_zoo.metrics.bootstrap import bootstrap_intervals, compare, describe
from avcap_zoo.metrics.scores import CaptionReport, CaptionRow, bleu_of_counts, score_captions, with_scores

from .clips import CANDIDATES, IDS, REFERENCES

ROWS = [CaptionRow(*row) for row in zip(IDS, CANDIDATES, map(tuple, REFERENCES), strict=True)]
WITHOUT_JAVA = ("bleu", "rouge_l", "cider")


def _report(rows: list[CaptionRow] = ROWS) -> CaptionReport:
    return score_captions(rows, metrics=WITHOUT_JAVA, tokenizer="python")


def _worse(rows: list[CaptionRow]) -> list[CaptionRow]:
    return [row._replace(candidate=row.candidate.split()[-1]) for row in rows]


def _many(count: int) -> list[CaptionRow]:
    """The four clips over and over, each time without one of the words."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        row = ROWS[rng.integers(4)]
        words = row.candidate.split()
        del words[rng.integers(len(words))]
        rows.append(CaptionRow(f"clip{index:03}", " ".join(words), row.references))
    return rows


def test_all_clips_once_give_the_scores_of_the_corpus() -> None:
    report = _report()
    sums = bootstrap._Sums(report)
    found = sums.scores(sums.values.sum(axis=0, keepdims=True), None)
    assert {name: scores.tolist() for name, scores in found.items()} == {
        name: [pytest.approx(score, abs=1e-12)] for name, score in report.corpus.items()
    }


def test_meteor_of_summed_counts_is_that_of_the_corpus(java: Path) -> None:
    report = score_captions(ROWS, metrics=("meteor",), java=java)
    sums = bootstrap._Sums(report)
    twice = np.stack([sums.values.sum(axis=0), sums.values[:2].sum(axis=0)])
    found = sums.scores(twice, java)["meteor"]
    assert found[0] == pytest.approx(report.corpus["meteor"], abs=1e-12)
    assert found[1] == pytest.approx(score_captions(ROWS[:2], metrics=("meteor",), java=java).corpus["meteor"])
    interval = bootstrap_intervals(report, num_draws=200, java=java)["meteor"]
    assert interval.low < report.corpus["meteor"] < interval.high


def test_bleu_of_a_draw_is_bleu_of_these_clips() -> None:
    """A drawn corpus scored from sums, and the same clips scored anew by pycocoevalcap."""
    rows = _many(20)
    report = _report(rows)
    drawn = [3, 3, 7, 0, 19, 7]
    scored = _report([rows[index]._replace(clip_id=f"{place}") for place, index in enumerate(drawn)])
    found = bleu_of_counts(report.counts["bleu"][drawn].sum(axis=0, keepdims=True))
    assert [score for (score,) in found] == pytest.approx([scored.corpus[f"bleu_{order}"] for order in range(1, 5)])


def test_intervals_hold_the_score_shrink_with_clips_and_follow_the_seed() -> None:
    few, many = _report(_many(16)), _report(_many(256))
    narrow = bootstrap_intervals(many)
    wide_intervals = bootstrap_intervals(few)
    assert list(wide_intervals) == list(few.corpus)
    for name in ("bleu_1", "bleu_2", "rouge_l"):
        wide = wide_intervals[name]
        assert wide.low < few.corpus[name] < wide.high
        # A sixteenth of the clips: four times as wide.
        assert 2.5 < (wide.high - wide.low) / (narrow[name].high - narrow[name].low) < 6
    assert bootstrap_intervals(many) == narrow
    assert bootstrap_intervals(many, seed=1) != narrow


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(5).normal(0.5, 0.1, size=400)
    plain = CaptionReport({}, {f"{index:03}": {} for index in range(400)}, {}, "python")
    report = with_scores(plain, {"x": values.tolist()})
    interval = bootstrap_intervals(report, num_draws=4000)["x"]
    error = values.std() / math.sqrt(400)
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_equal_captions_do_not_differ() -> None:
    report = _report(_many(16))
    for difference in compare(report, report, num_draws=100).values():
        assert (difference.value, difference.p_value) == (0, 1)
        assert difference.interval.low == difference.interval.high == 0


def test_a_clear_difference_is_found_and_its_sign_turns_with_the_files() -> None:
    good, bad = _report(_many(64)), _report(_worse(_many(64)))
    forward, backward = compare(good, bad), compare(bad, good)
    for name, difference in forward.items():
        assert difference.value == pytest.approx(bad.corpus[name] - good.corpus[name])
        assert backward[name].value == -difference.value
        assert backward[name].interval.low == pytest.approx(-difference.interval.high)
    assert forward["cider"].p_value == pytest.approx(1 / 1001)
    assert forward["cider"].interval.high < 0


def test_p_values_of_files_that_differ_by_chance_are_uniform() -> None:
    """Under no difference, 10 % of the p-values are below 0.1."""
    rng = np.random.default_rng(1)
    plain = CaptionReport({}, {f"{index:02}": {} for index in range(40)}, {}, "python")
    found = []
    for seed in range(200):
        one, other = (with_scores(plain, {"x": rng.normal(size=40).tolist()}) for _ in range(2))
        found.append(compare(one, other, num_draws=200, seed=seed)["x"].p_value)
    assert 0.05 < np.mean(np.array(found) < 0.1) < 0.15


def test_undefined_scores_of_clips_are_left_out_of_means_and_spider_follows() -> None:
    spice = [0.2, math.nan, 0.4, 0.6]
    report = with_scores(_report(), {"spice": spice})
    report = with_scores(report, {"spider": [0.0] * 4})
    report.corpus["spider"] = (report.corpus["cider"] + report.corpus["spice"]) / 2
    sums = bootstrap._Sums(report)
    found = sums.scores(sums.values.sum(axis=0, keepdims=True), None)
    assert found["spice"][0] == pytest.approx(0.4)
    assert found["spider"][0] == pytest.approx(report.corpus["spider"])


def test_what_cannot_be_resampled_is_refused() -> None:
    with pytest.raises(DataError, match="a bootstrap needs 2 clips or more, found 1"):
        bootstrap_intervals(_report(ROWS[:1]))
    with pytest.raises(DataError, match="on the same clips only"):
        compare(_report(), _report(ROWS[:3]))


def test_the_settings_are_told() -> None:
    assert describe(1000, 0, ["bleu_1"]) == "intervals: 95%, percentile bootstrap over clips, 1000 draws, seed 0"
    assert describe(200, 3, ["cider"]).endswith("200 draws, seed 3; CIDEr with the word weights of all clips")
