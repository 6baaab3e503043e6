"""BuboGPT's texts and mixtures against the rules of the official implementation (tests/golden/bubogpt/rules.json)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from avcap_zoo.data_modules.instructions import QUESTIONS, InstructionSet, clean_caption, negative_answer
from avcap_zoo.systems.bubogpt.prompts import TEMPLATES
from tests.house import tree
from tests.parity.golden import GOLDEN

RULES: dict[str, Any] = json.loads((GOLDEN / "bubogpt/rules.json").read_text(encoding="utf-8"))
KINDS = {
    "vision": "pictures",
    "audio": "sounds",
    "audio_image_localisation": "pairs",
    "audio_image_negative": "negatives",
}


@pytest.mark.parametrize("rule", RULES["caption_clean"], ids=lambda rule: rule["raw"][:12])
def test_captions_are_cleaned(rule: dict[str, str]) -> None:
    assert clean_caption(rule["raw"]) == rule["clean"]


@pytest.mark.parametrize("rule", RULES["negative_pairs"], ids=lambda rule: rule["text_input"][-20:])
def test_negative_answers(rule: dict[str, Any]) -> None:
    answer = negative_answer(
        rule["image_caption"],
        rule["audio_caption"],
        rule["prompt"],
        prefixed=bool(rule["prefix"]),
        separator="",
    )
    assert answer == rule["text_input"]


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_the_published_ones(kind: str) -> None:
    published = RULES["instruction_templates"][kind]
    bare = [prompt.rpartition("</Vision> ")[2].rpartition("</Audio> ")[2].strip() for prompt in published]
    assert [question.strip() for question in QUESTIONS[KINDS[kind]]] == bare
    if kind != "audio_image_negative":
        assert {prompt.strip() for prompt in published} <= {template.strip() for template in TEMPLATES}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_ratios_of_the_configurations(stage: str) -> None:
    content = yaml.safe_load((tree.ROOT / f"configs/bubogpt_{stage}.yaml").read_text(encoding="utf-8"))
    sets = {name: InstructionSet(**values) for name, values in content["data"]["init_args"]["sets"].items()}
    total = sum(wanted.ratio for wanted in sets.values())
    shares = {name: wanted.ratio / total for name, wanted in sets.items()}
    assert shares == pytest.approx(RULES["sampling"][stage])
