"""Which captions the small models learn from."""

from __future__ import annotations

import pytest

from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.vlrm.pretraining import draw_captions, nearest_captions


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
