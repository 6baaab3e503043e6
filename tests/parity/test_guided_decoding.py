"""Guided decoding, against whole runs of the released decoder and unit cases of its score rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.decoding.guided import CosineScorer, GuidedDecoder, GuidedSettings, GuidedText, score_candidates
from tests.parity.golden import GOLDEN, compare_within, golden_names

FOLDER = GOLDEN / "zeraucap"
TOLERANCE = 2e-6
# `paper` without end penalty is the paper's equation alone.
MODES = {"official": ("released", True), "intended": ("paper", True), "none": ("paper", False)}
WHITESPACE = {9, 10, 11, 12, 13, 32}


class ByteEncoder:
    """The text encoder of the golden runs: position-weighted mean of the vectors of a text's bytes."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def token_rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte for byte in text.lower().encode() if byte not in WHITESPACE] for text in texts]

    def encode_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.stack([self._encode(row) for row in rows])

    def _encode(self, row: Sequence[int]) -> Tensor:
        if not row:
            return torch.zeros(self.table.shape[1])
        weights = torch.arange(1, len(row) + 1, dtype=torch.float32)
        return F.normalize(weights @ self.table[list(row)] / weights.sum(), dim=0)


@lru_cache(maxsize=2)
def read_runs(name: str) -> dict[str, Any]:
    """A set of runs with its tensors, its language model and what its scorer is made of."""
    from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

    runs: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    suffix = name.removeprefix("decode_")
    model = OPTForCausalLM(OPTConfig(**runs["lm_config"])).eval()
    weights = load_file(FOLDER / f"lm_{suffix}.safetensors")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["lm_head.weight"]
    assert not unexpected
    model.tie_weights()
    runs["language"] = model
    runs["tokenizer"] = AutoTokenizer.from_pretrained(str(FOLDER / "tokenizer"))
    runs["clip"] = load_file(FOLDER / f"clip_{suffix}.safetensors")
    runs["tensors"] = load_file(FOLDER / f"{name}.safetensors")
    return runs


def decoder_of(runs: dict[str, Any], case: dict[str, Any]) -> GuidedDecoder:
    mode, penalised = MODES[case["mode"]]
    settings = GuidedSettings(
        mode=mode,  # type: ignore[arg-type]
        num_candidates=case["m"],
        beta=case["beta"],
        temperature=case["temperature"],
        alpha=case["alpha"],
        end_penalty=case["end_penalty"] if penalised else None,
        decoding_length=case["decoding_len"],
        prompt_in_text=case["prompt_in_text"],
    )
    return GuidedDecoder(runs["language"], runs["tokenizer"], settings)


def scorer_of(runs: dict[str, Any], clips: int) -> CosineScorer:
    clip = runs["clip"]
    return CosineScorer(ByteEncoder(clip["byte_table"]), clip["audio_embedding"].expand(clips, -1))


def compare(runs: dict[str, Any], case: dict[str, Any], got: GuidedText) -> None:
    """Ids, texts and choices must be equal, numbers within the tolerance."""
    assert got.prompt_ids == case["prompt_ids"]
    assert got.token_ids == case["generated_ids"]
    assert got.stop == {"break_token": "end_token", "length": "length"}[case["stop"]]
    assert got.trace is not None
    want = {
        key.rsplit("/", 1)[1]: value
        for key, value in runs["tensors"].items()
        if key.startswith(f"{case['case']}/{case['mode']}/")
    }
    assert [step.token_ids for step in got.trace] == want["candidate_ids"].tolist()
    assert [step.chosen for step in got.trace] == want["selected"].tolist()
    if case["beta"] and "candidate_texts" in case:
        assert [step.texts for step in got.trace] == case["candidate_texts"]
    numbers = {"lm_prob": "lm_probs", "raw_score": "raw_scores", "final_score": "scores"}
    if case["beta"]:
        numbers |= {"cosine": "similarities", "magic_softmax": "guidance"}
    if case["alpha"]:
        numbers |= {"degeneration": "degeneration"}
    for name, field in numbers.items():
        value = torch.tensor([getattr(step, field) for step in got.trace])
        compare_within(f"decode_{runs['model']}", f"{case['case']}/{case['mode']}/{name}", value, want[name], TOLERANCE)


RUNS = [
    pytest.param(name, case["case"], case["mode"], id=f"{name}-{case['case']}-{case['mode']}")
    for name in golden_names("zeraucap", "decode_")
    for case in json.loads((FOLDER / f"{name}.json").read_text())["cases"]
]


def find_case(runs: dict[str, Any], name: str, mode: str) -> dict[str, Any]:
    found: dict[str, Any] = next(case for case in runs["cases"] if (case["case"], case["mode"]) == (name, mode))
    return found


def test_there_are_runs() -> None:
    assert len(RUNS) >= 30


@pytest.mark.parametrize(("name", "case", "mode"), RUNS)
def test_run_token_for_token(name: str, case: str, mode: str) -> None:
    runs = read_runs(name)
    wanted = find_case(runs, case, mode)
    decoder = decoder_of(runs, wanted)
    (got,) = decoder.decode([wanted["prompt"]], scorer_of(runs, 1), trace=True)
    compare(runs, wanted, got)


@pytest.mark.parametrize(("name", "case", "mode"), RUNS)
def test_run_in_a_batch_of_other_prompts(name: str, case: str, mode: str) -> None:
    """The same run, left-padded between a longer and a shorter prompt, must not notice them."""
    runs = read_runs(name)
    wanted = find_case(runs, case, mode)
    prompts = [f".{wanted['prompt']}", wanted["prompt"], "a "]
    got = decoder_of(runs, wanted).decode(prompts, scorer_of(runs, 3), trace=True)
    lengths = [len(text.prompt_ids) for text in got]
    assert lengths[0] > lengths[1] > lengths[2]
    compare(runs, wanted, got[1])


def test_score_rule() -> None:
    cases = json.loads((FOLDER / "ranking.json").read_text())["cases"]
    assert len(cases) >= 70
    for number, case in enumerate(cases):
        for golden, (mode, _) in MODES.items():
            if golden == "none":
                continue
            raw, final = score_candidates(
                torch.tensor([case["lm_prob"]]),
                torch.tensor([case["magic"]]),
                torch.tensor([case["degeneration"]]),
                torch.tensor([case["is_end"]]),
                step=case["step"],
                alpha=case["alpha"],
                beta=case["beta"],
                end_penalty=case["end_penalty"],
                mode=mode,  # type: ignore[arg-type]
            )
            torch.testing.assert_close(raw[0], torch.tensor(case["raw"]), atol=TOLERANCE, rtol=0)
            want = torch.tensor(case[f"{golden}_final"])
            torch.testing.assert_close(final[0], want, atol=TOLERANCE, rtol=0, msg=f"case {number}, {mode}")
            assert int(final.argmax()) == case[f"{golden}_pick"], f"case {number}, {mode}"
