"""CIDEr-D of single captions, with word weights of a fixed corpus: a reward wants a score for each caption at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from avcap_zoo.errors import DataError
from avcap_zoo.metrics.tokenizer import tokenize_python

_LONGEST = 4
_SIGMA = 6.0

_Vector = list[dict[tuple[str, ...], float]]


class CorpusCIDEr:
    """CIDEr-D against a corpus that does not change.

    Args:
        documents: the reference captions of each clip of the corpus; n-grams are weighted by how many clips have them.

    Raises:
        DataError: no documents.
    Source: Vedantam et al. 2015 (arXiv 1411.5726), as pycocoevalcap 1.2 computes it; the tokenizer is our own.
    """

    def __init__(self, documents: Iterable[Sequence[str]]) -> None:
        self.frequency: Counter[tuple[str, ...]] = Counter()
        self.num_documents = 0
        for references in documents:
            self.num_documents += 1
            self.frequency.update({gram for text in tokenize_python(references) for gram in _ngrams(text)})
        if not self.num_documents:
            raise DataError("CIDEr needs reference captions to weigh words by; the data module has none")
        self._log_documents = math.log(self.num_documents)

    def score(self, candidate: str, references: Sequence[str]) -> float:
        """CIDEr-D (0 to 10) of one caption; 0 without references or without a word."""
        if not references:
            return 0.0
        vector, norms, length = self._vector(tokenize_python([candidate])[0])
        total = 0.0
        for text in tokenize_python(references):
            other, other_norms, other_length = self._vector(text)
            penalty = math.exp(-((length - other_length) ** 2) / (2 * _SIGMA**2))
            for grams, other_grams, norm, other_norm in zip(vector, other, norms, other_norms, strict=True):
                shared = sum(min(w, other_grams.get(g, 0.0)) * other_grams.get(g, 0.0) for g, w in grams.items())
                total += penalty * (shared / (norm * other_norm) if norm and other_norm else shared)
        return 10.0 * total / _LONGEST / len(references)

    def _vector(self, text: str) -> tuple[_Vector, list[float], int]:
        """Weights of the n-grams for each n, their norms, and the number of pairs of words."""
        vector: _Vector = [{} for _ in range(_LONGEST)]
        counts = _ngrams(text)
        for gram, count in counts.items():
            weight = self._log_documents - math.log(max(1, self.frequency[gram]))
            vector[len(gram) - 1][gram] = count * weight
        norms = [math.sqrt(sum(weight**2 for weight in grams.values())) for grams in vector]
        return vector, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


def _ngrams(text: str) -> Counter[tuple[str, ...]]:
    words = text.split()
    return Counter(
        tuple(words[start : start + n]) for n in range(1, _LONGEST + 1) for start in range(len(words) - n + 1)
    )
