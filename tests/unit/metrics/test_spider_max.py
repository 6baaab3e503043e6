from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.errors import ConfigError
from avcap_zoo.metrics import scores
from avcap_zoo.metrics.scores import CaptionRow, score_captions
from avcap_zoo.metrics.spice import SpiceInput
from avcap_zoo.metrics.spider_max import score_spider_max

from .clips import CANDIDATES, IDS, REFERENCES

REFERENCES_BY_ID = dict(zip(IDS, REFERENCES, strict=True))


def _share_of_words(clips: Sequence[SpiceInput], **_: Any) -> list[float]:
    """Stands in for SPICE, whose parser is in no package: words that the references have; no number for one word."""
    found = []
    for clip in clips:
        words = clip.candidate.split()
        known = {word for text in clip.references for word in text.split()}
        found.append(sum(word in known for word in words) / len(words) if len(words) > 1 else math.nan)
    return found


@pytest.fixture
def _spice(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "find_corenlp", lambda _: [Path("a"), Path("b")])
    monkeypatch.setattr(scores, "score_spice", _share_of_words)


def _spiders(candidates: Sequence[str]) -> list[float]:
    rows = [CaptionRow(*row) for row in zip(IDS, candidates, map(tuple, REFERENCES), strict=True)]
    report = score_captions(rows, metrics=("cider", "spice"), tokenizer="python")
    return [clip["spider"] for clip in report.per_clip.values()]


@pytest.mark.usefixtures("_spice")
def test_the_best_candidate_of_each_clip_counts() -> None:
    others = ["rain", "a man speaks followed by a door closing", "several birds", "an engine"]
    candidates = {key: [own, other] for key, own, other in zip(IDS, CANDIDATES, others, strict=True)}
    del candidates["clip3"][1]
    found, missing = score_spider_max(candidates, REFERENCES_BY_ID, tokenizer="python")
    first, second = _spiders(CANDIDATES), _spiders([*others[:2], CANDIDATES[2], others[3]])
    assert math.isnan(second[0])  # one word
    assert found == [first[0], max(first[1], second[1]), first[2], max(first[3], second[3])]
    assert missing == {}
    assert found[1] == second[1] > first[1]


def test_without_spice_it_is_missing_with_the_reason(no_java: None) -> None:
    found, missing = score_spider_max({key: ["a", "b"] for key in IDS}, REFERENCES_BY_ID, tokenizer="python")
    assert found == []
    assert list(missing) == ["spider_max"]
    assert "needs Java" in missing["spider_max"]


def test_one_candidate_each_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"spider_max needs several candidates per clip, found one for each: write"):
        score_spider_max({key: ["a"] for key in IDS}, REFERENCES_BY_ID)
