"""Entity matching against the official implementation: every case of `entity_match` in the rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from avcap_zoo.systems.bubogpt.matching import build_messages, entity_colours, highlight_released
from tests.parity.golden import GOLDEN

CASES: list[dict[str, Any]] = [
    case
    for path in sorted((GOLDEN / "bubogpt").glob("rules*.json"))
    for case in json.loads(path.read_text(encoding="utf-8")).get("entity_match", [])
]


def test_there_are_cases() -> None:
    assert len(CASES) >= 5


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["text"])[:24])
def test_an_answer_is_read_as_published(case: dict[str, Any]) -> None:
    found = highlight_released(case["text"], case["response"], case["entity_colors"])
    assert [list(piece) for piece in found.pieces] == case["highlight"]
    assert found.match_state == case["match_state"]
    assert found.colours == case["color_map"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["text"])[:24])
def test_the_question_is_put_as_published(case: dict[str, Any]) -> None:
    messages = build_messages(case["text"], case["entities"], "released")
    assert len(messages) == case["n_messages"]
    assert messages[-1] == {"role": "user", "content": case["user_message"]}
    assert entity_colours(case["entities"]) == case["entity_colors"]
