from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from avcap_zoo.cli.config_files import Located, locate, merge, nested, read_config
from avcap_zoo.cli.usage import CommandLineError, closest, suggestion


def located(text: str, layer: int = 0) -> Located:
    found = locate(text, "a.yaml", layer)
    assert found is not None
    return found


def test_values_know_their_line() -> None:
    found = located("model:\n  a: 1\n  b:\n    - x\n    - {y: 2}\n")
    b = found.get("model", "b")
    assert b is not None
    assert b.where == "a.yaml:3"
    assert isinstance(b.content, list)
    assert [item.where for item in b.content] == ["a.yaml:4", "a.yaml:5"]
    assert found.plain() == {"model": {"a": 1, "b": ["x", {"y": 2}]}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("5", 5),
        ("2001-01-02", "2001-01-02"),
        ("null", None),
        ("yes", True),
        ("'1'", "1"),
    ],
)
def test_scalars_are_read_as_the_parser_reads_them(text: str, value: object) -> None:
    assert located(f"a: {text}").plain() == {"a": value}


def test_dotted_keys_and_appending_keys_are_unfolded() -> None:
    found = located("model.lr: 1\nmodel:\n  seed: 2\ntrainer.callbacks+: [x]\n")
    assert found.plain() == {"model": {"lr": 1, "seed": 2}, "trainer": {"callbacks": ["x"]}}


def test_anchors_and_merge_keys() -> None:
    found = located("base: &base {a: 1, b: 2}\nmodel:\n  <<: *base\n  b: 3\n")
    assert found.plain() == {"base": {"a": 1, "b": 2}, "model": {"a": 1, "b": 3}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: &a [1, 2]\n" + "".join(f"{k}: &{k} [*{b}, *{b}]\n" for b, k in pairwise("abcdefghijklmnopqrst")),
            "more than",
        ),
        ("a: " + "[" * 3000 + "]" * 3000, "lists or keys within each other deeper than Python can follow"),
    ],
    ids=["aliases of aliases", "depth"],
)
def test_texts_that_would_grow_without_end(text: str, message: str) -> None:
    with pytest.raises(CommandLineError, match=rf"^a.yaml: {message}"):
        located(text)


def test_value_within_itself_is_refused() -> None:
    with pytest.raises(CommandLineError, match=r"a.yaml:1: the value contains itself"):
        locate("a: &a [*a]", "a.yaml")


def test_unsafe_tags_are_refused() -> None:
    with pytest.raises(CommandLineError, match=r"a.yaml:1:4: not valid YAML: could not determine a constructor"):
        locate("a: !!python/object/apply:os.system [ls]", "a.yaml")


def test_merge_goes_key_by_key_and_replaces_lists() -> None:
    merged = merge(located("a: {b: 1, c: [1, 2]}\nd: 4"), located("a: {c: [3]}\ne: {f: 5}", layer=1))
    assert merged.plain() == {"a": {"b": 1, "c": [3]}, "d": 4, "e": {"f": 5}}
    changed = merged.get("a", "c")
    assert changed is not None
    assert changed.layer == 1


def test_nested_and_get() -> None:
    found = nested(["a", "b"], Located(1, "command line"))
    assert found.plain() == {"a": {"b": 1}}
    assert found.get("a", "x", "y") is None


def test_empty_text_is_none() -> None:
    assert locate("# only this\n", "a.yaml") is None


def test_unreadable_place(tmp_path: Path) -> None:
    with pytest.raises(CommandLineError, match="there is no folder"):
        read_config(str(tmp_path / "no" / "a.yaml"))
    (tmp_path / "b.yaml").write_text("x: 1")
    with pytest.raises(CommandLineError, match=r"xyz\.yaml does not exist; .* holds b\.yaml$"):
        read_config(str(tmp_path / "xyz.yaml"))


@pytest.mark.parametrize(
    ("word", "match"),
    [("max_step", "max_steps"), ("MAX_EPOCS", "max_epochs"), ("acc", "accelerator"), ("zzz", None)],
)
def test_closest(word: str, match: str | None) -> None:
    assert closest(word, ["max_steps", "max_epochs", "accelerator"]) == match


def test_suggestion_lists_a_few_and_stays_silent_on_many() -> None:
    assert suggestion("zzz", ["b", "a"]) == "; known: a, b"
    assert suggestion("zzz", [f"k{i}" for i in range(13)]) == ""
    assert suggestion("zzz", []) == ""
