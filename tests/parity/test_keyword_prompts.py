"""Keywords, prompts, captions read from ids, and crops, as the released code has them."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from avcap_zoo.ops.windows import choose_starts, round_to_int16
from avcap_zoo.systems.zeraucap.keywords import nearest_keywords, read_keywords, split_labels
from avcap_zoo.systems.zeraucap.prompts import KeywordPromptSettings, build_prompt, full_text, read_caption
from tests.parity.golden import GOLDEN, golden_names

FOLDER = GOLDEN / "zeraucap"
RULES: dict[str, Any] = json.loads((FOLDER / "text_and_prep.json").read_text())
RELEASED = KeywordPromptSettings(caption="released")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(FOLDER / "tokenizer"))


def test_audioset_gives_the_published_keywords() -> None:
    keywords = read_keywords("audioset")
    assert (len(keywords), len(set(keywords))) == (614, 611)
    assert hashlib.sha256("\n".join(keywords).encode()).hexdigest() == (
        "154248bf38a970f6c063b8f6236eefa46989776939cf198c1719e876e5f6e78f"
    )
    assert sum(keyword[0] in "aeiouAEIOU" for keyword in keywords) == 66
    assert keywords[:5] == ["Speech", "Male speech", "man speaking", "Female speech", "woman speaking"]
    assert keywords.count("Inside") == 3
    assert keywords.count("Outside") == 2
    assert "Roaring cats (lions" in keywords


@pytest.mark.parametrize("case", RULES["prompt_format"], ids=lambda case: str(len(case["keywords"])))
def test_prompt(case: dict[str, Any]) -> None:
    assert build_prompt(case["keywords"], RELEASED) == case["prompt"]


@pytest.mark.parametrize("name", golden_names("zeraucap", "decode_"))
def test_keywords_and_prompts_of_the_runs(name: str, tokenizer: Any) -> None:
    runs = json.loads((FOLDER / f"{name}.json").read_text())
    assert split_labels(runs["labels"]) == runs["keywords"]
    similarities = load_file(FOLDER / f"clip_{name.removeprefix('decode_')}.safetensors")["keyword_similarities"]
    # Unit vectors whose cosines are the stored similarities.
    columns = len(runs["keywords"])
    clip, keywords = torch.tensor([[1.0, 0.0]]), torch.stack([similarities, (1 - similarities**2).sqrt()], dim=1)
    assert keywords.shape == (columns, 2)
    for count, wanted in runs["prompts"].items():
        indices = nearest_keywords(clip, keywords, int(count))[0].tolist()
        assert indices == (wanted["keyword_indices"] or [])
        prompt = build_prompt([runs["keywords"][index] for index in indices], RELEASED)
        assert prompt == wanted["prompt"]
        assert [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids] == wanted["prompt_ids"]


@pytest.mark.parametrize("name", golden_names("zeraucap", "decode_"))
def test_captions_of_the_runs(name: str, tokenizer: Any) -> None:
    runs = json.loads((FOLDER / f"{name}.json").read_text())
    for case in runs["cases"]:
        ids = [*case["prompt_ids"], *case["generated_ids"]]
        assert full_text(tokenizer, ids) == case["full_text"], case["name"]
        assert read_caption(tokenizer, case["prompt_ids"], case["generated_ids"], RELEASED) == case["caption"]


@pytest.mark.parametrize("case", RULES["postprocess"], ids=lambda case: str(case["caption"]))
def test_caption_from_ids(case: dict[str, Any], tokenizer: Any) -> None:
    assert full_text(tokenizer, case["ids"]) == case["full_text"]
    num_prompt = 1 + len(tokenizer(case["prompt"], add_special_tokens=False).input_ids)
    prompt, new = case["ids"][:num_prompt], case["ids"][num_prompt:]
    assert read_caption(tokenizer, prompt, new, RELEASED) == case["caption"]


def test_released_crops_in_file_order() -> None:
    rule = RULES["preprocess"]["wavcaps"]
    sequence = random.Random(rule["python_random_seed"])
    starts = choose_starts(rule["lengths"], rule["target_samples"], "released", sequence=sequence)
    assert starts == [[start or 0] for start in rule["crop_starts"]]
    assert [start is None for start in rule["crop_starts"]] == [
        length <= rule["target_samples"] for length in rule["lengths"]
    ]


def test_sixteen_bits() -> None:
    rule = RULES["preprocess"]["clap"]
    rounded = round_to_int16(torch.tensor(rule["input"]))
    assert (rounded * 32767).round().int().tolist() == rule["int16"]
    assert rounded.tolist() == rule["output"]
