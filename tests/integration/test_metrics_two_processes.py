"""CaptionScores in two processes: same numbers as in one, whatever the split, and no rank left waiting."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from avcap_zoo.errors import AvcapError, DataError
from avcap_zoo.metrics import captions
from avcap_zoo.metrics.captions import CaptionScores

Clip = tuple[str, str, list[str]]

CLIPS: list[Clip] = [
    ("a", "a dog is barking and rain falls", ["A dog barks loudly while rain falls.", "A dog barking in the rain"]),
    ("b", "a man speaks then a door closes", ["A man speaks followed by a door closing."]),
    ("c", "birds are chirping", ["Birds chirp in the distance", "Birds tweeting continuously"]),
    ("d", "", ["A car engine accelerates"]),
    ("e", "a car engine is revving loudly", ["An engine revs (very) loudly!", "A car engine accelerates"]),
]


def _metric() -> CaptionScores:
    return CaptionScores(("bleu", "rouge_l", "cider"), tokenizer="python")


def _update(metric: CaptionScores, clips: list[Clip]) -> None:
    for clip_id, candidate, references in clips:
        metric.update([clip_id], [candidate], [references])


def _state(metric: CaptionScores) -> tuple[Any, ...]:
    return metric.per_clip, metric.num_clips, metric.tokenizer_used, metric.missing


def _error(metric: CaptionScores) -> tuple[str, str]:
    try:
        metric.compute()
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def _work(rank: int, folder: str) -> None:
    """All cases in one pair of processes; the findings of each rank go into a file."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {}
    metric = _metric()

    # Every second clip, with the last batch filled up by repeating the first clips, as a sampler does.
    _update(metric, (CLIPS + CLIPS[:1])[rank::2])
    found["split"] = (metric.compute(), *_state(metric))
    found["again"] = (metric.compute(), *_state(metric))

    # One rank goes on while the other would have its numbers ready.
    if rank == 0:
        _update(metric, [("f", "rain", ["Rain falls"])])
    found["more_on_one_rank"] = (metric.compute(), *_state(metric))

    for name, empty_rank in (("first_empty", 0), ("second_empty", 1)):
        metric.reset()
        _update(metric, [] if rank == empty_rank else CLIPS)
        found[name] = (metric.compute(), *_state(metric))

    metric.reset()
    found["no_rows"] = _error(metric)

    _update(metric, [("a", "a dog", ["A dog" if rank == 0 else "A cat"]), ("b", "x", ["y"])])
    found["conflict"] = _error(metric)

    metric.reset()
    _update(metric, CLIPS)
    scorer = captions.score_captions
    for name, failure in (("crash", ZeroDivisionError("boom")), ("ours", DataError("bad"))):
        captions.score_captions = _raiser(failure) if rank == 0 else _must_not_run  # type: ignore[assignment]
        found[name] = _error(metric)
    captions.score_captions = scorer
    found["after_failures"] = (metric.compute(), *_state(metric))

    captions.score_captions = _must_not_run  # type: ignore[assignment]
    found["cached"] = (metric.compute(), *_state(metric))
    captions.score_captions = scorer

    (Path(folder) / f"found{rank}").write_text(repr(found), encoding="utf-8")
    dist.destroy_process_group()


def _raiser(failure: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise failure

    return fail


def _must_not_run(*_: object, **__: object) -> None:
    sys.exit("this rank must not score now")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_work, args=(str(folder),), nprocs=2, join=True)  # type: ignore[attr-defined, no-untyped-call]
    return [eval((folder / f"found{rank}").read_text(encoding="utf-8"), {"nan": float("nan")}) for rank in (0, 1)]


def _alone(clips: list[Clip]) -> tuple[Any, ...]:
    metric = _metric()
    _update(metric, clips)
    return (metric.compute(), *_state(metric))


@pytest.mark.parametrize("case", ["split", "again", "first_empty", "second_empty", "after_failures", "cached"])
def test_both_ranks_have_the_numbers_of_one_process(found: list[dict[str, Any]], case: str) -> None:
    expected = _alone(CLIPS)
    assert expected[2] == 5
    assert found[0][case] == expected
    assert found[1][case] == expected


def test_a_clip_that_only_one_rank_added_counts(found: list[dict[str, Any]]) -> None:
    expected = _alone([*CLIPS, ("f", "rain", ["Rain falls"])])
    assert found[0]["more_on_one_rank"] == found[1]["more_on_one_rank"] == expected


@pytest.mark.parametrize(
    ("case", "words"), [("no_rows", "no captions to score"), ("conflict", "same clip id: a;"), ("ours", "bad")]
)
def test_an_error_of_ours_reaches_both_ranks(found: list[dict[str, Any]], case: str, words: str) -> None:
    assert found[0][case] == found[1][case]
    name, message = found[1][case]
    assert name == DataError.__name__
    assert words in message


def test_any_other_failure_on_rank_0_reaches_rank_1(found: list[dict[str, Any]]) -> None:
    assert found[0]["crash"] == ("ZeroDivisionError", "boom")
    expected = "scoring the captions failed on rank 0: ZeroDivisionError: boom"
    assert found[1]["crash"] == (AvcapError.__name__, expected)
