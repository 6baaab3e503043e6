"""BLEU-1..4, ROUGE-L, CIDEr, METEOR, SPICE and SPIDEr of plain rows of captions, without any state.

The formulas are those of pycocoevalcap, which the published numbers used; its "CIDEr" is CIDEr-D. Scores are raw: 0-1,
and 0-10 for CIDEr (tables print both x100). What cannot be computed on this machine is left out and named with its
remedy in `missing`; it is never 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.errors import AvcapError, ConfigError, DataError, require_extra
from avcap_zoo.metrics.java import HOW_TO_GET_JAVA, JavaError, find_java
from avcap_zoo.metrics.meteor import shared_meteor
from avcap_zoo.metrics.spice import SpiceInput, find_corenlp, jar_places, score_spice, why_no_spice
from avcap_zoo.metrics.tokenizer import tokenize_ptb, tokenize_python

Tokenizer = Literal["auto", "ptb", "python"]

BLEU_ORDERS = 4
METRICS = ("bleu", "rouge_l", "cider", "meteor", "spice")
_TOKENIZERS = ("auto", "ptb", "python")
_NEED_JAVA = ("meteor", "spice")


class CaptionRow(NamedTuple):
    """One clip to score: its id, the caption under test and all reference captions."""

    clip_id: str
    candidate: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class CaptionReport:
    """What `score_captions` found.

    Attributes:
        corpus: score of the corpus by name: bleu_1 .. bleu_4, rouge_l, cider, meteor, spice, spider.
        per_clip: the same names for each clip id, sorted by id.
        missing: why a metric was left out, and how to get it, by name.
        tokenizer: "ptb" or "python", whichever ran.
        notes: one line for each thing the reader of the numbers should know.
        counts: (clips, numbers) of bleu and meteor, in the order of per_clip: what each clip adds to the corpus, since
            the score of the corpus is no mean of the clips there. See `bootstrap`.
    """

    corpus: dict[str, float]
    per_clip: dict[str, dict[str, float]]
    missing: dict[str, str]
    tokenizer: str
    notes: tuple[str, ...] = ()
    counts: dict[str, NDArray[np.float64]] = field(default_factory=dict, compare=False, repr=False)


@dataclass
class _Scores:
    """Scores as they come in: the corpus, one list per metric over the sorted clips, counts, and what is missing."""

    corpus: dict[str, float] = field(default_factory=dict)
    clips: dict[str, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    counts: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, name: str, corpus: float, clips: Iterable[float]) -> None:
        self.corpus[name] = float(corpus)
        self.clips[name] = [float(score) for score in clips]


def score_captions(
    rows: Iterable[CaptionRow],
    *,
    metrics: Sequence[str] = METRICS,
    tokenizer: Tokenizer = "auto",
    strict: bool = False,
    java: str | Path | None = None,
    spice_jars: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> CaptionReport:
    """Score candidates against their references. The order of the rows does not matter.

    An empty candidate scores 0. References that are empty beside real ones count as pycocoevalcap counts them.
    The corpus SPICE is the mean over the clips that have one; SPIDEr is (CIDEr + SPICE) / 2. CIDEr weighs words by
    how many clips mention them, so for one clip alone it is NaN, and so is SPIDEr.

    Args:
        rows: the clips. A repeated id counts once; see `merge_rows`.
        metrics: any of bleu, rouge_l, cider, meteor, spice. SPIDEr comes with cider and spice together.
        tokenizer: "ptb" as in the papers (needs Java), "python", or "auto": ptb where Java is, else python.
        strict: raise where a metric would be left out.
        java: see `find_java`.
        spice_jars: a folder with the two CoreNLP 3.6.0 jars, looked at last.
        cache_dir: where SPICE keeps parses, and jars in its subfolder spice; None for ~/.cache/avcap_zoo.

    Returns:
        Scores of the corpus and of every clip.

    Raises:
        DataError: no rows; a clip without any word in its references; one id with different references.
        ConfigError: unknown metric or tokenizer, or a java option that does not exist.
        MissingExtraError: pycocoevalcap is not installed.
        JavaError: the tokenizer "ptb" was asked for and failed.
        AvcapError: strict, and a metric is not available.
    Source: pycocoevalcap 1.2 (BLEU, ROUGE-L, CIDEr, jars); SPIDEr after Liu et al. 2017 (arXiv 1612.00370).
    """
    names = check_choices(metrics, tokenizer)
    require_extra("pycocoevalcap.bleu.bleu", "metrics")
    merged, notes = merge_rows(rows)
    if not merged:
        raise DataError("no captions to score: no rank called update() since the last reset()")
    launcher = find_java(java)
    scores = _Scores(missing=unavailable(names, java=java, spice_jars=spice_jars, cache_dir=cache_dir))
    if strict:
        _refuse(scores.missing)

    captions = [row.candidate for row in merged] + [text for row in merged for text in row.references]
    tokens, used = _tokenize(captions, tokenizer, launcher, notes)
    candidates, references = tokens[: len(merged)], _regroup(tokens[len(merged) :], merged)
    _check_references(merged, references)

    _score_in_python(scores, names, candidates, references)
    if launcher is not None:
        if "meteor" in names:
            _score_meteor(scores, candidates, references, launcher)
        if "spice" in names and "spice" not in scores.missing:
            _score_spice(scores, candidates, references, launcher, spice_jars, cache_dir)
    if "cider" in names and "spice" in names:
        _add_spider(scores)

    if strict:
        _refuse(scores.missing)
    if scores.missing:
        notes.append(summary(scores.missing))
    if len(merged) == 1 and "cider" in names:
        notes.append(f"CIDEr and SPIDEr of a single clip ({merged[0].clip_id}) are not defined: NaN")
    per_clip = {
        row.clip_id: {name: values[index] for name, values in scores.clips.items()} for index, row in enumerate(merged)
    }
    return CaptionReport(scores.corpus, per_clip, scores.missing, used, tuple(notes), scores.counts)


def with_scores(report: CaptionReport, scores: Mapping[str, Sequence[float]]) -> CaptionReport:
    """A report with further scores of its clips; that of the corpus is their mean.

    Args:
        report: from `score_captions`.
        scores: by name, one for each clip in the order of `per_clip`; NaN where there is none.
    """
    corpus = {name: mean_without_nan(values) for name, values in scores.items()}
    clips = {
        clip_id: {**own, **{name: float(values[index]) for name, values in scores.items()}}
        for index, (clip_id, own) in enumerate(report.per_clip.items())
    }
    return replace(report, corpus=report.corpus | corpus, per_clip=clips)


def check_choices(metrics: Sequence[str], tokenizer: str) -> tuple[str, ...]:
    """The names of the metrics, each once.

    Raises:
        ConfigError: an unknown name, or no name at all; the known ones are in the message.
    """
    problems = [f"unknown metric {name!r}" for name in metrics if name not in METRICS]
    problems += [] if metrics else ["no metric was named"]
    problems = [f"metrics: {', '.join(problems)}; there are {', '.join(METRICS)}"] if problems else []
    if tokenizer not in _TOKENIZERS:
        problems.append(f"tokenizer: unknown name {tokenizer!r}; there are {', '.join(_TOKENIZERS)}")
    if problems:
        spider = " (spider comes with cider and spice together)" if "spider" in metrics else ""
        raise ConfigError("; ".join(problems) + spider)
    return tuple(dict.fromkeys(metrics))


def unavailable(
    metrics: Sequence[str],
    *,
    java: str | Path | None = None,
    spice_jars: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> dict[str, str]:
    """Which of the metrics cannot be computed on this machine: name to reason and remedy. Starts nothing.

    Raises:
        ConfigError: the java option does not exist.
        MissingExtraError: pycocoevalcap is not installed.
    """
    needy = [name for name in _NEED_JAVA if name in metrics]
    missing: dict[str, str] = {}
    if find_java(java) is None:
        missing = dict.fromkeys(needy, f"needs Java, and {HOW_TO_GET_JAVA}")
    elif "spice" in needy:
        places = jar_places(cache_dir=cache_dir, spice_jars=spice_jars)
        if find_corenlp(places) is None:
            missing = {"spice": why_no_spice(places)}
    if "spice" in missing and "cider" in metrics:
        missing["spider"] = missing["spice"]
    return missing


def merge_rows(rows: Iterable[CaptionRow]) -> tuple[list[CaptionRow], list[str]]:
    """Each clip once, sorted by id, whatever the order of the rows or the number of ranks.

    A distributed sampler repeats clips to fill the last batch. Should a clip have come out with different captions,
    the first in the order of the alphabet stays, and a note says how many clips that was.

    Returns:
        The rows, and notes for the reader.

    Raises:
        DataError: an id came with different references; up to five ids are named.
    """
    merged: dict[str, CaptionRow] = {}
    conflicts: set[str] = set()
    doubtful: set[str] = set()
    for row in rows:
        other = merged.setdefault(row.clip_id, row)
        if other.references != row.references:
            conflicts.add(row.clip_id)
        elif other.candidate != row.candidate:
            doubtful.add(row.clip_id)
            merged[row.clip_id] = min(other, row)
    if conflicts:
        raise DataError(f"different references came with the same clip id: {_some(conflicts)}; ids must be unique")
    notes = [f"{len(doubtful)} clips were captioned twice, and differently: {_some(doubtful)}"] if doubtful else []
    return [merged[clip_id] for clip_id in sorted(merged)], notes


def _some(ids: Iterable[str], limit: int = 5) -> str:
    """The first few ids in order, and how many more there are."""
    ordered = sorted(ids)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


def _tokenize(
    captions: Sequence[str], tokenizer: Tokenizer, java: Path | None, notes: list[str]
) -> tuple[list[str], str]:
    """Tokens of each caption and the tokenizer that made them; "auto" adds a note when it had to do without Java."""
    if tokenizer == "python":
        return tokenize_python(captions), "python"
    if tokenizer == "ptb":
        return tokenize_ptb(captions, java=required_java(java)), "ptb"
    reason = "there is no Java"
    if java is not None:
        try:
            return tokenize_ptb(captions, java=java), "ptb"
        except JavaError as error:
            reason = str(error)
    notes.append(f"captions were split by the Python tokenizer (scores move by up to 0.2 of 100), since {reason}")
    return tokenize_python(captions), "python"


def required_java(java: Path | None) -> Path:
    """The launcher that the tokenizer "ptb" needs.

    Raises:
        JavaError: there is none.
    """
    if java is None:
        raise JavaError(f"tokenizer ptb needs Java, and {HOW_TO_GET_JAVA}; or set tokenizer: python")
    return java


def _regroup(tokens: Sequence[str], rows: Sequence[CaptionRow]) -> list[list[str]]:
    """The flat list of tokenised references, cut into one list for each row."""
    iterator = iter(tokens)
    return [[next(iterator) for _ in row.references] for row in rows]


def _check_references(rows: Sequence[CaptionRow], references: Sequence[Sequence[str]]) -> None:
    """Refuse clips whose references hold no word (none at all, empty, or only punctuation)."""
    wordless = [row.clip_id for row, own in zip(rows, references, strict=True) if not any(own)]
    if wordless:
        raise DataError(f"no word in any reference of clip {_some(wordless)}; leave such clips out")


def _score_in_python(
    scores: _Scores, names: Sequence[str], candidates: Sequence[str], references: Sequence[list[str]]
) -> None:
    """BLEU, ROUGE-L and CIDEr, by pycocoevalcap."""
    truth = dict(enumerate(references))
    tested = {index: [candidate] for index, candidate in enumerate(candidates)}
    if "bleu" in names:
        bleu = require_extra("pycocoevalcap.bleu.bleu_scorer", "metrics").BleuScorer(n=BLEU_ORDERS)
        for candidate, own in zip(candidates, references, strict=True):
            bleu += (candidate, own)
        found = zip(*bleu.compute_score(option="closest", verbose=0), strict=True)
        for order, (corpus, clips) in enumerate(found, 1):
            scores.add(f"bleu_{order}", corpus, clips)
        scores.counts["bleu"] = np.array([_bleu_counts(clip) for clip in bleu.ctest], dtype=np.float64)
    if "rouge_l" in names:
        rouge = require_extra("pycocoevalcap.rouge.rouge", "metrics").Rouge()
        values = rouge.compute_score(truth, tested)[1]
        # An empty reference splits into one empty word there, which an empty candidate would match in full.
        clips = [float(score) if candidate else 0.0 for score, candidate in zip(values, candidates, strict=True)]
        scores.add("rouge_l", sum(clips) / len(clips), clips)
    if "cider" in names and len(candidates) == 1:
        # Every word is in every clip, so no word has a weight; pycocoevalcap would say 0.
        scores.add("cider", math.nan, [math.nan])
    elif "cider" in names:
        scores.add("cider", *require_extra("pycocoevalcap.cider.cider", "metrics").Cider().compute_score(truth, tested))


def _bleu_counts(clip: dict[str, Any]) -> list[float]:
    """A clip as `bleu_of_counts` takes it, from what pycocoevalcap keeps of it."""
    length = clip["testlen"]
    reference = min(clip["reflen"], key=lambda other: (abs(other - length), other))
    return [length, reference, *clip["guess"], *clip["correct"]]


def bleu_of_counts(counts: NDArray[np.float64]) -> list[list[float]]:
    """BLEU-1..4 of corpora by pycocoevalcap's formula.

    Args:
        counts: (D, 10) sums over the clips of each corpus: words, words of the nearest references, n-grams of 1 to 4
            words, and those of them that the references have.

    Returns:
        For each order, D scores.
    """
    bleu = require_extra("pycocoevalcap.bleu.bleu_scorer", "metrics").BleuScorer(n=BLEU_ORDERS)
    # To pycocoevalcap each corpus is one long clip: its formula is the same for both.
    bleu.crefs = [None] * len(counts)
    bleu.ctest = [
        {"testlen": row[0], "reflen": [row[1]], "guess": row[2 : 2 + BLEU_ORDERS], "correct": row[2 + BLEU_ORDERS :]}
        for row in counts.tolist()
    ]
    scores: list[list[float]] = bleu.compute_score(option="closest", verbose=0)[1]
    return scores


def _score_meteor(scores: _Scores, candidates: Sequence[str], references: Sequence[Sequence[str]], java: Path) -> None:
    """METEOR, or the reason why its program failed."""
    try:
        process = shared_meteor(java)
        counts = process.count(candidates, references)
        scores.add("meteor", *process.evaluate(counts))
        scores.counts["meteor"] = np.array(counts, dtype=np.float64)
    except JavaError as error:
        scores.missing["meteor"] = str(error)


def _score_spice(
    scores: _Scores,
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    java: Path,
    spice_jars: str | Path | None,
    cache_dir: str | Path | None,
) -> None:
    """SPICE of the clips with a caption, 0 for the others; or the reason why its program failed."""
    corenlp = find_corenlp(jar_places(cache_dir=cache_dir, spice_jars=spice_jars))
    assert corenlp is not None
    spoken = [index for index, candidate in enumerate(candidates) if candidate]
    clips = [SpiceInput(candidates[index], [text for text in references[index] if text]) for index in spoken]
    try:
        found = score_spice(clips, java=java, corenlp=corenlp, cache_dir=cache_dir)
    except JavaError as error:
        scores.missing["spice"] = str(error)
        return
    values = [0.0] * len(candidates)
    for index, score in zip(spoken, found, strict=True):
        values[index] = score
    scores.add("spice", mean_without_nan(values), values)


def mean_without_nan(values: Sequence[float]) -> float:
    """Mean of the values that are numbers; NaN when none is."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else math.nan


def _add_spider(scores: _Scores) -> None:
    """SPIDEr from CIDEr and SPICE, for the corpus and each clip; never from one of them alone."""
    if "spice" in scores.missing:
        scores.missing["spider"] = scores.missing["spice"]
        return
    pairs = zip(scores.clips["cider"], scores.clips["spice"], strict=True)
    corpus = (scores.corpus["cider"] + scores.corpus["spice"]) / 2
    scores.add("spider", corpus, [(cider + spice) / 2 for cider, spice in pairs])


def summary(missing: dict[str, str]) -> str:
    """What is left out and why, on one line; names with the same reason stand together."""
    names: dict[str, list[str]] = {}
    for name, reason in missing.items():
        names.setdefault(reason, []).append(name)
    return "caption metrics not available: " + "; ".join(f"{', '.join(own)}: {why}" for why, own in names.items())


def _refuse(missing: dict[str, str]) -> None:
    """Raise if something is missing, for those who want all or nothing."""
    if missing:
        raise AvcapError(summary(missing))
