"""CIDEr-D with the word weights of a fixed corpus."""

from __future__ import annotations

import pytest
from pycocoevalcap.cider.cider import Cider

from avcap_zoo.errors import DataError
from avcap_zoo.metrics.cider import CorpusCIDEr

REFERENCES = [
    ["a dog barks at a red car", "the dog is barking"],
    ["a red bell rings twice", "a bell"],
    ["rain falls on a roof", "it is raining hard on the roof of a car"],
]
CANDIDATES = ["a dog barks at a bell", "a bell rings twice", ""]


def test_scores_are_those_of_pycocoevalcap_on_the_same_corpus() -> None:
    corpus = CorpusCIDEr(REFERENCES)
    got = [corpus.score(c, r) for c, r in zip(CANDIDATES, REFERENCES, strict=True)]
    _, want = Cider().compute_score(dict(enumerate(REFERENCES)), {i: [c] for i, c in enumerate(CANDIDATES)})
    assert got == pytest.approx(list(want))
    assert min(got[:2]) > 0 == got[2]


def test_a_clip_without_references_scores_nothing() -> None:
    assert CorpusCIDEr(REFERENCES).score("a bell", []) == 0


def test_a_corpus_is_needed() -> None:
    with pytest.raises(DataError, match="needs reference captions"):
        CorpusCIDEr([])
