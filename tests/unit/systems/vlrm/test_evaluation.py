"""What is measured of captions beside likeness to references."""

from __future__ import annotations

import pytest
import torch

from avcap_zoo.systems.vlrm.evaluation import fluency, wording
from avcap_zoo.systems.vlrm.rewards import read_list
from tests.unit.systems.vlrm import toy


def test_wording_by_hand() -> None:
    found = wording(["A red dog and a red Car and a dog.", "there is a t-shirt in 1993"])
    assert found == {
        "caption_words": (10 + 6) / 2,
        "colour_captions": 0.5,
        "colour_words": 1.0,
        "colour_coverage": pytest.approx(1 / len(read_list("colours.txt"))),
        "repeated_words": (2 + 0) / 2,  # and, dog
        "bad_phrases": (0 + 2) / 2,  # there is, a year
    }
    assert wording([]) == {}


def test_fluency_is_the_reference_reward_of_the_text() -> None:
    captioner = toy.model().captioner
    texts = ["a red dog", "a bell rings and a dog barks", "rain"]
    values = []
    for text in texts:
        tokens = torch.tensor([[*captioner.tokenizer(text, add_special_tokens=False).input_ids, captioner.end_id]])
        values.append(float(captioner.text_log_probs(tokens, torch.ones_like(tokens, dtype=torch.bool)).mean()))
    for batch_size in (1, 2, 256):
        assert fluency(captioner, texts, batch_size) == pytest.approx(sum(values) / 3, rel=1e-4)
