"""Which captions the small models learn from."""

from __future__ import annotations

import pytest

from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.vlrm.pretraining import draw_captions, nearest_captions, told_share, with_a_wrong_word


def test_captions_of_a_style() -> None:
    texts = ["a dog", "a red dog at the left", "a cat"]
    batch = Batch(["a"], [texts], [texts[0]])
    assert {draw_captions(batch, "terse")[0] for _ in range(40)} == {"a dog", "a cat"}
    assert {draw_captions(batch, "all")[0] for _ in range(60)} == set(texts)
    assert draw_captions(batch, "detailed") == [texts[1]]
    with pytest.raises(ConfigError, match="clip a has no caption to learn from"):
        draw_captions(Batch(["a"], [[]], [""]), "all")


def test_the_nearest_caption_shares_most_words() -> None:
    captions = ["a red dog", "a red car", "two birds sing", "a red dog.", "a blue dog and a bird"]
    assert nearest_captions(captions)[0] == "a red car"
    assert nearest_captions(["a dog", "a dog"]) == ["a dog", "a dog"]


def test_one_word_is_exchanged_with_the_nearest_caption_of_the_same_length() -> None:
    captions = ["a red dog at the top", "a blue car at the top", "a red dog at the left", "two birds"]
    changed = with_a_wrong_word(captions)
    assert changed[0] == captions[2]
    assert changed[1] in {"a red car at the top", "a blue dog at the top"}
    assert changed[2] == captions[0]
    assert changed[3] in captions[:3]  # none is of its length: the whole of another
    assert with_a_wrong_word(["a dog", "a dog"]) == ["a dog", "a dog"]


def test_how_much_a_caption_tells() -> None:
    whole = "A red dog at the left."
    assert told_share(whole, whole) == 1
    assert told_share("a dog", whole) == pytest.approx(2 / 6)
    assert told_share("two birds", whole) == 0
    assert told_share("", "") == 0
