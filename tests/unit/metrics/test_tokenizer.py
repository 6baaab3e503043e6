from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from avcap_zoo.metrics import tokenizer
from avcap_zoo.metrics.java import JavaError, jar_folder
from avcap_zoo.metrics.tokenizer import collapse_whitespace, tokenize_ptb, tokenize_python

from .clips import CANDIDATES, REFERENCES

# What pycocoevalcap's tokenizer takes for the end of a line, which shifts all later captions.
LINE_ENDS = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1d", "\x1e", "\u2028", "\u2029"]
HARMLESS = ["\x85", "\xa0", "\t", "\0", "\u200b", "\U0001f600", "e\u0301", "\u201cx\u201d", "|||", "\ud800", "汉字"]


@pytest.mark.parametrize("character", LINE_ENDS)
def test_whitespace_becomes_one_space(character: str) -> None:
    assert collapse_whitespace(f"{character}a {character} b{character}") == "a b"


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A dog barks, loudly!", "a dog barks loudly"),
        ("An engine revs (very) loudly!", "an engine revs very loudly"),
        ("A vehicle's engine revving", "a vehicle's engine revving"),
        ("1234 56.7 %", "1234 56 7"),
        ("Café naïve 汉字", "café naïve 汉字"),
        ("low_pitched hum-ming", "low_pitched hum ming"),
        ("a|||b", "a b"),
        ("x\ry\u2028z", "x y z"),
        ("...", ""),
        ("", ""),
        ("\ud800", ""),
    ],
)
def test_python_tokens(caption: str, tokens: str) -> None:
    assert tokenize_python(["before", caption, "after"]) == ["before", tokens, "after"]


@pytest.mark.parametrize("tokenize", ["ptb", "python"])
def test_no_captions(tokenize: str) -> None:
    assert (tokenize_python([]) if tokenize == "python" else tokenize_ptb([], java=Path("no/java"))) == []


def test_ptb_tokens(java: Path) -> None:
    expected = {
        "A dog barks, loudly!": "a dog barks loudly",
        "An engine revs (very) loudly!": "an engine revs -lrb- very -rrb- loudly",
        "A vehicle's engine revving": "a vehicle 's engine revving",
        "1234 56.7 %": "1234 56.7 %",
        "Café naïve 汉字": "café naïve 汉字",
        "a|||b": "a | | | b",
        "...": "",
        "": "",
    }
    assert tokenize_ptb(list(expected), java=java) == list(expected.values())


def test_no_character_shifts_ptb_captions(java: Path) -> None:
    odd = [f"left {character} right" for character in LINE_ENDS + HARMLESS]
    alone = LINE_ENDS + HARMLESS
    captions = [text for pair in zip(odd, alone, strict=True) for text in (*pair, "a marker")]
    tokens = tokenize_ptb(["first", *captions, "last", "\r"], java=java)
    assert len(tokens) == len(captions) + 3
    assert (tokens[0], tokens[-2], tokens[-1]) == ("first", "last", "")
    assert tokens[3:-2:3] == ["a marker"] * len(odd)
    assert tokens[1 : 1 + 3 * len(LINE_ENDS) : 3] == ["left right"] * len(LINE_ENDS)


def test_ptb_takes_very_long_captions(java: Path) -> None:
    tokens = tokenize_ptb(["word " * 3000, "x" * 100_000, "end"], java=java)
    assert [len(text.split()) for text in tokens] == [3000, 1, 1]


def test_ptb_equals_pycocoevalcap(java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access(jar_folder() / "tokenizer", os.W_OK):
        pytest.skip("pycocoevalcap's own tokenizer writes into its package, which is read-only here")
    ptb = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    monkeypatch.setenv("PATH", str(java.parent), prepend=os.pathsep)
    captions = CANDIDATES + [text for own in REFERENCES for text in own]
    captions += [
        'He said "stop", then 1/2 o\'clock...',
        "U.S. made; can't -- won't: don't?",
        "e.g. [a] {b} `c`",
        "…",
        "",
    ]
    theirs = ptb.PTBTokenizer().tokenize({"all": [{"caption": text} for text in captions]})
    assert tokenize_ptb(captions, java=java) == theirs["all"]


def test_ptb_leaves_no_file_behind(java: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted((jar_folder() / "tokenizer").iterdir())
    tokenize_ptb(["a dog"], java=java)
    with pytest.raises(JavaError):
        tokenize_ptb(["a dog"], java=tmp_path / "gone")
    assert list(tmp_path.iterdir()) == []
    assert sorted((jar_folder() / "tokenizer").iterdir()) == before


@pytest.mark.parametrize("output", [b"a\n", b"a\nb\nc\n", b""])
def test_a_wrong_number_of_lines_is_an_error(monkeypatch: pytest.MonkeyPatch, output: bytes) -> None:
    monkeypatch.setattr(tokenizer, "run_java", lambda *_, **__: output)
    with pytest.raises(JavaError, match=f"gave {output.count(bytes([10]))} lines for 2 captions"):
        tokenize_ptb(["a", "b"], java=Path("java"))
