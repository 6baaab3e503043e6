"""VLRM against float64 reference numbers and the LAVIS forward pass (tests/golden/vlrm)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from avcap_zoo.backbones.adapters import LoRASettings
from avcap_zoo.ops.returns import (
    Spread,
    mutual_choice,
    policy_loss,
    token_log_probs,
    token_returns,
    token_weights,
    value_loss,
    whiten,
)
from avcap_zoo.systems.vlrm.alignment import align, find_phrases, find_words, find_years
from avcap_zoo.systems.vlrm.captioner import Captioner, CaptionerSettings
from avcap_zoo.systems.vlrm.keymap import lavis_to_transformers
from avcap_zoo.systems.vlrm.matcher import LAVIS_NORM_EPS, Matcher, match_scores
from avcap_zoo.systems.vlrm.module import warm_up_share
from avcap_zoo.systems.vlrm.rewards import BadPhrases, RepeatedWords, mean_log_prob
from avcap_zoo.weights.load import load_strictly
from tests.parity.golden import GOLDEN, golden_names

FOLDER = GOLDEN / "vlrm"


def manifest(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return content


def files_of(prefix: str) -> list[str]:
    names = golden_names("vlrm", prefix)
    assert names, f"no golden case {prefix}"
    return names


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got.detach().double(), want.double(), rtol=tolerance, atol=tolerance)


# -- returns ------------------------------------------------------------------------------------------------------

RETURNS = {
    f"{name}-{case['name']}": (case, manifest(name)["exempt"])
    for name in files_of("returns")
    for case in manifest(name)["cases"]
}


def word_list(tmp_path: Path, name: str, words: list[str]) -> str:
    path = tmp_path / name
    path.write_text("\n".join(words), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(("case", "exempt"), RETURNS.values(), ids=RETURNS)
def test_returns_of_a_worked_case(case: dict[str, Any], exempt: dict[str, list[str]], tmp_path: Path) -> None:
    aligned = align([bytes.fromhex(piece) for piece in case["token_bytes_hex"]])
    assert aligned.text == case["text"]
    length = len(case["token_bytes_hex"])

    full = case["bad_phrases"] == "FULL"
    bad_phrases = BadPhrases(None if full else word_list(tmp_path, "bad", case["bad_phrases"]))
    bad = aligned.tokens_within(bad_phrases.find(aligned.compared))
    assert [int(mark) for mark in bad] == case["bad"]
    found = [[m.what, m.start, m.end] for m in find_phrases(aligned.compared, bad_phrases.phrases)]
    found += [["<year>", m.start, m.end] for m in find_years(aligned.compared)]
    assert sorted(found) == sorted(case["bad_matches"])

    repeated_words = RepeatedWords([word_list(tmp_path, key, words) for key, words in exempt.items()])
    matches = repeated_words.find(aligned.compared)
    repeat = aligned.tokens_within(matches)
    assert [int(mark) for mark in repeat] == case["repeat"]
    words = [[m.what, m.start, m.end, int(m in matches)] for m in find_words(aligned.compared)]
    assert words == case["words"]

    mask = torch.ones(1, length, dtype=torch.bool)
    log_probs = torch.tensor([case["ref_logprobs"]], dtype=torch.float64)
    ref = mean_log_prob(log_probs, mask)
    assert float(ref) == pytest.approx(case["ref"], abs=1e-9)
    spoken = torch.tensor([[index != case["eos_index"] for index in range(length)]])
    assert float(mean_log_prob(log_probs, spoken)) == pytest.approx(case["ref_excluding_eos"], abs=1e-9)

    noeos = case["eos_index"] is None
    assert int(noeos) == case["noeos"]
    local = -torch.tensor([bad]).double() - torch.tensor([repeat]).double()
    got = token_returns(case["sim"] + ref - float(noeos), local, mask, gamma=case["gamma"])
    close(got[0], torch.tensor(case["returns"], dtype=torch.float64), 1e-9)


# -- losses, advantages, retrieval term ----------------------------------------------------------------------------


def numeric(kind: str) -> list[Any]:
    found = []
    for name in files_of("numeric"):
        cases = {key: case for key, case in manifest(name)["cases"].items() if case["kind"] == kind}
        tensors = load_file(FOLDER / f"{name}.safetensors") if cases else {}
        for key in cases:
            own = {n.removeprefix(f"{key}."): t for n, t in tensors.items() if n.startswith(f"{key}.")}
            found.append(pytest.param(own, id=f"{name}-{key}"))
    assert found, f"no case of kind {kind}"
    return found


@pytest.mark.parametrize("case", numeric("rl"))
def test_advantages_and_losses(case: dict[str, Tensor]) -> None:
    mask = case["mask"]
    captions, tokens = len(mask), int(mask.sum())
    weights = token_weights(mask, num_captions=captions, num_tokens=tokens, dtype=torch.float64)
    values = case["values"].requires_grad_()
    loss = value_loss(values, case["returns"], weights)
    close(loss, case["value_loss"], 1e-9)
    (gradient,) = torch.autograd.grad(loss, values)
    close(gradient, case["value_grad"], 1e-9)
    even = token_weights(mask, num_captions=captions, num_tokens=tokens, reduction="token", dtype=torch.float64)
    by_token = value_loss(values, case["returns"], even)
    close(by_token, case["value_loss_token_mean"], 1e-9)
    close(torch.autograd.grad(by_token, values)[0], case["value_grad_token_mean"], 1e-9)

    advantages = case["returns"] - values.detach()
    for spread in ("unbiased", "biased"):
        choice: Spread = "unbiased" if spread == "unbiased" else "biased"
        close(whiten(advantages, mask, spread=choice), case[f"m_{spread}"], 1e-9)
    leaked = whiten(advantages, torch.ones_like(mask))
    close(leaked[mask], case["wrong_m_unmasked_unbiased"][mask], 1e-9)
    assert not torch.allclose(leaked[mask], case["m_unbiased"][mask], atol=1e-3)

    logits = case["logits"].requires_grad_()
    log_probs, _ = token_log_probs(logits, case["actions"])
    close(log_probs.exp()[mask], case["probs"][mask], 1e-9)
    whitened = case["m_unbiased"]
    loss = policy_loss(log_probs, whitened, weights)
    close(loss, case["policy_loss"], 1e-9)
    close(torch.autograd.grad(loss, logits, retain_graph=True)[0], case["policy_grad_logits"], 1e-9)
    loss = policy_loss(log_probs, whitened, weights, objective="logprob")
    close(loss, case["logprob_loss"], 1e-9)
    close(torch.autograd.grad(loss, logits)[0], case["logprob_grad_logits"], 1e-9)

    log_probs, _ = token_log_probs(logits, case["actions"], temperature=2.0, top_k=3)
    close(log_probs.exp()[mask], case["probs_T2_top3"][mask], 1e-9)
    for objective, name in (("prob", "policy"), ("logprob", "logprob")):
        loss = policy_loss(log_probs, whitened, weights, objective="prob" if objective == "prob" else "logprob")
        close(loss, case[f"{name}_loss_T2_top3"], 1e-9)
        gradient = torch.autograd.grad(loss, logits, retain_graph=True)[0]
        close(gradient, case[f"{name}_grad_logits_T2_top3"], 1e-9)


@pytest.mark.parametrize("case", numeric("phi"))
def test_retrieval_term(case: dict[str, Tensor]) -> None:
    images, texts = case["image_embeds"].double(), case["text_embeds"].double()
    for suffix, scale in (("", 1.0), ("_scale100", 100.0)):
        if f"phi_unbiased{suffix}" not in case:
            continue
        phi = mutual_choice(images, texts, scale=scale)
        close(phi, case[f"phi_unbiased{suffix}"], 1e-9)
        close(mutual_choice(images, texts, scale=scale, spread="biased"), case[f"phi_biased{suffix}"], 1e-9)
    phi = mutual_choice(case["image_embeds"], case["text_embeds"])
    assert phi.dtype == torch.float32
    close(phi, case["phi_unbiased"], 1e-5)
    close((case["itm"] + 0.3 * phi).float(), case["sim"], 1e-5)


@pytest.mark.parametrize("name", files_of("numeric"))
def test_equal_advantages_clipping_and_warm_up(name: str) -> None:
    content = manifest(name)
    case = content["degenerate"]
    advantages = torch.tensor(case["returns"]) - torch.tensor(case["values"])
    got = whiten(advantages, torch.tensor(case["mask"], dtype=torch.bool))
    assert torch.equal(got, torch.tensor(case["expected_m"]).float())

    case = content["gradient_clamp"]
    for kind in ("by_value_1", "by_norm_1"):
        parameters = [nn.Parameter(torch.zeros(len(row))) for row in case["input"]]
        for parameter, row in zip(parameters, case["input"], strict=True):
            parameter.grad = torch.tensor(row)
        if kind == "by_value_1":
            nn.utils.clip_grad_value_(parameters, 1.0)
        else:
            assert float(nn.utils.clip_grad_norm_(parameters, 1.0)) == pytest.approx(case["global_norm"])
        for parameter, row in zip(parameters, case[kind], strict=True):
            assert parameter.grad is not None
            assert parameter.grad.tolist() == pytest.approx(row, abs=1e-6)

    case = content["lr_schedule"]
    rates = [case["peak"] * warm_up_share(step, case["warmup_steps"]) for step in case["steps"]]
    assert rates == pytest.approx(case["lr_zero_based"])


# -- image-text matching --------------------------------------------------------------------------------------------


def matching_config(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "vision_config": {
            "hidden_size": config["vision_hidden"],
            "intermediate_size": config["vision_intermediate"],
            "num_hidden_layers": config["vision_layers"],
            "num_attention_heads": config["vision_heads"],
            "image_size": config["image_size"],
            "patch_size": config["patch_size"],
        },
        "qformer_config": {
            "vocab_size": config["vocab_size"],
            "hidden_size": config["qformer_hidden"],
            "num_hidden_layers": config["qformer_layers"],
            "num_attention_heads": config["qformer_heads"],
            "intermediate_size": config["qformer_intermediate"],
            "max_position_embeddings": config["max_position_embeddings"],
            "cross_attention_frequency": config["cross_attention_freq"],
        },
        "num_query_tokens": config["num_query"],
        "image_text_hidden_size": config["embed_dim"],
    }


def matcher_of(case: dict[str, Any], norm_eps: float) -> Matcher:
    checkpoint = str(FOLDER / case["files"]["weights_lavis_names"])
    return Matcher(None, matching_config(case["config"]), checkpoint, None, 32, norm_eps, None, "itm")


@pytest.mark.parametrize("name", files_of("itm"))
def test_matching_model_from_lavis_weights(name: str) -> None:
    case = manifest(name)
    io = load_file(FOLDER / case["files"]["io"])
    matcher = matcher_of(case, LAVIS_NORM_EPS).double()
    mask = io["attention_mask"].bool()
    features = matcher.encode_pixels(io["pixel_values"].double())
    close(matcher.norm(features), io["image_embeds"], 1e-9)
    logits = matcher(features, io["input_ids"], mask)
    close(logits, io["itm_logits_per_query"], 1e-9)
    close(match_scores(logits, "positive_logit"), io["itm_positive_logit"], 1e-9)
    close(match_scores(logits, "probability"), io["itm_prob_match_mean_of_probs"], 1e-9)
    difference = io["itm_logits"][:, 1] - io["itm_logits"][:, 0]
    close(match_scores(logits, "logit_difference"), difference, 1e-9)
    for image in range(len(mask)):
        pairs = matcher(features[image].expand(len(mask), -1, -1), io["input_ids"], mask)
        close(pairs.mean(dim=1), io["itm_logits_all_pairs"][image], 1e-9)

    single = matcher_of(case, LAVIS_NORM_EPS)
    logits = single(single.encode_pixels(io["pixel_values"]), io["input_ids"], mask)
    close(match_scores(logits, "positive_logit"), io["itm_positive_logit"], case["tolerance"]["float32"])


@pytest.mark.parametrize("name", files_of("itm"))
def test_transformers_own_epsilon_shifts_the_logits_a_little(name: str) -> None:
    case = manifest(name)
    io = load_file(FOLDER / case["files"]["io"])
    matcher = matcher_of(case, 1e-6).double()
    logits = matcher(matcher.encode_pixels(io["pixel_values"].double()), io["input_ids"], io["attention_mask"].bool())
    close(logits.mean(dim=1), io["itm_logits_transformers_eps1e6"], 1e-9)


@pytest.mark.parametrize("name", files_of("itm"))
def test_lavis_names_become_those_of_transformers(name: str) -> None:
    case = manifest(name)
    official = load_file(FOLDER / case["files"]["weights_lavis_names"])
    official |= {"temp": torch.ones(()), "Qformer.bert.embeddings.position_ids": torch.zeros(1, 3)}
    renamed = lavis_to_transformers(official)
    for key, want in load_file(FOLDER / case["files"]["weights_transformers_names"]).items():
        assert torch.equal(renamed[key], want), key
    assert "temp" not in renamed


# -- policy pass ----------------------------------------------------------------------------------------------------


def captioner_of(name: str) -> Captioner:
    case = manifest(name)
    weights = load_file(FOLDER / f"{name}_weights.safetensors")
    config = dict(case["config"])
    captioner = Captioner(
        CaptionerSettings(
            source=None, config=config, dtype="float32", lora=LoRASettings(2, 4, 0.0, ("q_proj", "v_proj"))
        )
    )
    if case["lm_head_tied_and_omitted"]:
        weights["language_model.lm_head.weight"] = weights["language_model.model.decoder.embed_tokens.weight"]
    own = captioner.blip.state_dict()
    adapters = {key: value for key, value in own.items() if "lora_" in key}
    renamed = {key.replace("_proj.base_layer.", "_proj."): key for key in own}
    load_strictly(captioner.blip, {renamed.get(key, key): value for key, value in weights.items()} | adapters, name)
    return captioner.eval()


@pytest.mark.parametrize("name", files_of("policy"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_policy_value_states_and_reference(name: str, dtype: torch.dtype) -> None:
    case = manifest(name)
    io = load_file(FOLDER / f"{name}_io.safetensors")
    captioner = captioner_of(name).to(dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 5e-6
    tokens, mask = io["generated"], io["mask"]
    features = captioner.encode_pixels(io["pixel_values"].to(dtype))
    prefix = captioner.project(features)
    close(prefix, io["projected_queries"], tolerance)
    states = captioner.states(prefix, tokens, mask)
    close(states[:, :-1][mask], io["value_states"][mask], tolerance)
    logits = captioner.logits(states)
    close(logits[mask], io["token_logits"][mask], tolerance)
    log_probs, _ = token_log_probs(logits, tokens)
    close(log_probs.exp()[mask], io["token_probs"][mask], tolerance)

    reference = captioner.text_log_probs(tokens, mask)
    close(reference[mask], io["ref_logprobs"][mask], tolerance)
    close(mean_log_prob(reference, mask), io["ref"], tolerance)

    weights = token_weights(mask, num_captions=len(mask), num_tokens=int(mask.sum()), dtype=dtype)
    loss = policy_loss(log_probs, io["M"].to(dtype), weights)
    close(loss, io["policy_loss"], tolerance)
    loss.backward()
    trained = [p for p in captioner.policy_parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == case["num_trainable"]
    gradients = [p.grad for p in trained if p.grad is not None]
    assert len(gradients) == len(trained)
    close(captioner.blip.query_tokens.grad, io["grad_query_tokens"], tolerance)
    close(captioner.blip.language_projection.weight.grad, io["grad_language_projection_weight"], tolerance)
    close(nn.utils.get_total_norm(gradients), io["grad_global_norm"], tolerance)
