"""BuboGPT's prompts, labels, loss and chat against numbers of the official implementation (tests/golden/bubogpt).

A case may come without the weights of its language model; then ids, masks and labels are compared alone.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.audio.imagebind import ImageBindAudioSettings
from avcap_zoo.backbones.language import (
    CausalLanguageModel,
    GenerationSettings,
    LanguageSettings,
    PrefixedText,
    ends_with,
)
from avcap_zoo.backbones.qformer import QFormerSettings
from avcap_zoo.backbones.vision.eva import EVASettings
from avcap_zoo.ops.audio_clips import AudioClipSettings
from avcap_zoo.systems.base import OptimizerSettings, learning_rate_share
from avcap_zoo.systems.bubogpt.chat import Message, chat_prompt, context_of
from avcap_zoo.systems.bubogpt.keymap import bubogpt_to_model
from avcap_zoo.systems.bubogpt.model import AudioSettings, BuboGPTModel, JoinerSettings, VisionSettings
from avcap_zoo.systems.bubogpt.prompts import (
    PromptSettings,
    answer_ids,
    answer_of,
    assemble,
    matching_templates,
    prompt_row,
)
from avcap_zoo.weights.load import load_strictly
from tests.parity.golden import GOLDEN, GoldenCase, listed_cases

FOLDER = GOLDEN / "bubogpt"
RULES: dict[str, Any] = json.loads((FOLDER / "rules.json").read_text(encoding="utf-8"))


def cases(prefix: str) -> list[GoldenCase]:
    found = listed_cases("bubogpt", prefix, {"": 2e-5})
    assert found, f"no golden case {prefix}"
    for case in found:
        for name in case.tensors:
            loose = 1e-5 if name.startswith("grad.") or name.endswith("loss") else 2e-5
            case.tolerance[name] = {"rtol": 0.0, "atol": loose}
    return found


def language_settings(config: dict[str, Any]) -> LanguageSettings:
    sizes = {key: config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")}
    heads = {"num_attention_heads": config["num_attention_heads"], "vocab_size": 420}
    return LanguageSettings(
        source=None,
        config={"model_type": "llama", **sizes, **heads},
        tokenizer=str(FOLDER),
        pad_with_end=True,
        dtype="float32",
        training="frozen",
    )


def language_of(case: GoldenCase) -> CausalLanguageModel:
    language = CausalLanguageModel(language_settings(case.config["llama"])).eval()
    weights = {n: value for n, value in case.weights("weights.llama.").items() if not n.endswith("inv_freq")}
    if weights:
        load_strictly(language.model, weights, case.name)
    return language


def check_real(case: GoldenCase, name: str, text: PrefixedText) -> None:
    """Compare embeddings where they are not masked; padding is another token there."""
    real = text.attention_mask[..., None]
    case.tensors[name] = case[name] * real
    case.check(name, text.inputs_embeds * real)


WRAPS = [(case, name) for case in cases("prompt_wrap") for name in case.config["cases"]]


@pytest.mark.parametrize(("case", "name"), WRAPS, ids=[f"{case.name}-{name}" for case, name in WRAPS])
def test_prompts_labels_and_loss(case: GoldenCase, name: str) -> None:
    wrap = case.config["cases"][name]
    language = language_of(case)
    settings = PromptSettings(
        templates=tuple(wrap["prompt_list"] or ()),
        wrapper=wrap["template"],
        end=wrap["end_sym"],
        max_text_tokens=wrap["max_txt_len"],
        released_layout=True,
    )
    present = wrap["modalities"]
    answers = wrap["text_input"]
    fitting = matching_templates(settings.templates, present)
    prompts = wrap["prompts"] or [fitting[0] if fitting else None] * len(answers)
    rows = [prompt_row(language, settings, prompt, present, wrap["prompts"] is not None) for prompt in prompts]
    for number, row in enumerate(rows):
        wanted = wrap["target_ids_untruncated"][number]
        row.answer = answer_ids(language, settings, answers[number])
        assert row.answer == wanted[: settings.max_text_tokens]
        if wrap["slice_ids"] is not None:
            slices = wrap["slice_ids"][min(number, len(wrap["slice_ids"]) - 1)]
            own = wrap["prompts"] is not None
            assert row.slices == [ids[: settings.max_text_tokens] if own else ids for ids in slices]
    tokens = {modality: case[f"in.{modality}_tokens"] for modality in present}
    text = assemble(language, rows, tokens, released_layout=True)
    assert text.inputs_embeds.shape[1] == wrap["seq_len"]
    assert torch.equal(text.attention_mask.long(), case[f"{name}.attention_mask"])
    assert torch.equal(text.labels, case[f"{name}.labels"])
    if f"{name}.inputs_embeds" in case.tensors:
        check_real(case, f"{name}.inputs_embeds", text)
        case.check(f"{name}.loss", language.loss(text)[None])


CHATS = [(case, name) for case in cases("chat_context") for name in case.config["cases"]]


@pytest.mark.parametrize(("case", "name"), CHATS, ids=[f"{case.name}-{name}" for case, name in CHATS])
def test_chat_context(case: GoldenCase, name: str) -> None:
    chat = case.config["cases"][name]
    language = language_of(case)
    kinds = [("vision", "in.image"), ("audio", "in.audio")]
    given = [(kind, key) for kind, key in kinds if f"<{kind.capitalize()}><Modality" in chat["prompt"]]
    messages = []
    for kind, key in given:
        shown = case.tensors.get(key, torch.zeros(1, 4, language.embed_dim))
        messages.append(Message("Human", "", ((kind, shown),)))  # type: ignore[arg-type]
    messages[-1].text = chat["questions"][0]
    assert chat_prompt(messages) == chat["prompt"]
    row, tokens = context_of(language, messages)
    assert [[1, *row.slices[0]], *row.slices[1:]] == chat["segment_ids"]
    text = assemble(language, [row], tokens)
    if f"{name}.context_embeds" not in case.tensors:
        return
    assert text.inputs_embeds.shape[1] == chat["context_len"]
    case.check(f"{name}.context_embeds", text.inputs_embeds)
    wanted = case[f"{name}.greedy_ids"][:, 1:]  # the old code put a begin token in front
    settings = GenerationSettings(num_beams=1, max_new_tokens=wanted.shape[1], min_length=wanted.shape[1])
    with torch.no_grad():
        assert torch.equal(language.generate(text, settings), wanted)


def settings_of(case: GoldenCase) -> dict[str, Any]:
    config = case.config["config"]
    vision, audio, qformer = config["vision"], config["audio"], config["qformer"]

    def joiner(modality: str) -> JoinerSettings:
        return JoinerSettings(
            qformer=QFormerSettings(
                num_queries=qformer[f"queries_{modality}"],
                embed_dim=qformer["hidden"],
                depth=qformer["layers"],
                num_heads=qformer["heads"],
                mlp_dim=qformer["intermediate"],
                cross_attention_frequency=qformer["cross_attention_freq"],
            )
        )

    return {
        "language": language_settings(config["llama"]),
        "audio": AudioSettings(
            encoder=ImageBindAudioSettings(
                num_mel_bins=audio["mel_bins"],
                target_length=audio["frames"],
                patch_size=audio["kernel"],
                patch_stride=audio["stride"],
                embed_dim=audio["embed_dim"],
                depth=audio["blocks"],
                num_heads=audio["heads"],
            ),
            clips=AudioClipSettings(num_mel_bins=audio["mel_bins"], target_length=audio["frames"]),
        ),
        "audio_joiner": joiner("audio"),
        "vision": VisionSettings(
            encoder=EVASettings(
                image_size_px=vision["image_size"],
                patch_size=vision["patch_size"],
                embed_dim=vision["embed_dim"],
                depth=vision["depth"],
                num_heads=vision["num_heads"],
                mlp_dim=vision["mlp_hidden"],
            )
        ),
        "vision_joiner": joiner("vision"),
        "prompts": PromptSettings(
            templates=(),
            wrapper=case.config["template"],
            end=case.config["end_sym"],
            max_text_tokens=case.config["max_txt_len"],
            released_layout=True,
        ),
        "generation": GenerationSettings(),
    }


@pytest.mark.parametrize("case", cases("end_to_end_"), ids=lambda case: case.name)
def test_end_to_end(case: GoldenCase) -> None:
    """Official names in, tokens, sequence, loss and gradients out."""
    model = BuboGPTModel(**settings_of(case)).eval()
    load_strictly(model, bubogpt_to_model(case.weights("weights.")), case.name)
    tokens: dict[Any, Tensor] = {}
    if "in.vision" in case.tensors:
        assert model.vision_encoder is not None
        assert model.vision_joiner is not None
        encoded = model.vision_encoder(case["in.vision"])
        case.check("out.encoder_vision", encoded)
        tokens["vision"] = model.vision_joiner(encoded)
        case.check("out.llm_tokens_vision", tokens["vision"])
    if "in.audio" in case.tensors:
        assert model.audio_encoder is not None
        assert model.audio_joiner is not None
        encoded = model.audio_encoder(case["in.audio"])
        case.check("out.encoder_audio", encoded)
        tokens["audio"] = model.audio_joiner(encoded)
        case.check("out.llm_tokens_audio", tokens["audio"])
    rows = []
    for prompt, answer in zip(case.config["prompts"], case.config["text_input"], strict=True):
        row = prompt_row(model.language, model.prompts, prompt, list(tokens), True)
        row.answer = answer_ids(model.language, model.prompts, answer)
        rows.append(row)
    text = assemble(model.language, rows, tokens, released_layout=True)
    assert torch.equal(text.attention_mask.long(), case["out.attention_mask"])
    assert torch.equal(text.labels, case["out.labels"])
    if "out.inputs_embeds" in case.tensors:
        check_real(case, "out.inputs_embeds", text)
    loss = model.language.loss(text)
    case.check("out.loss", loss[None])
    loss.backward()
    parameters = dict(model.named_parameters())
    wanted = bubogpt_to_model(case.weights("grad."))
    assert len(wanted) == len(case.weights("grad."))
    for name, gradient in wanted.items():
        case.tensors[name], case.tolerance[name] = gradient, {"rtol": 0.0, "atol": 1e-5}
        got = parameters[name].grad
        assert got is not None, name
        case.check(name, got)


@pytest.mark.parametrize("rule", RULES["stop_criterion"], ids=lambda rule: str(rule["ids"]))
def test_stop(rule: dict[str, Any]) -> None:
    """As released the first row decides; ours stops each row for itself."""
    assert bool(ends_with(torch.tensor(rule["ids"]), [(835,), (2277, 29937)])[0]) == rule["stop"]


@pytest.mark.parametrize("rule", RULES["answer_postprocess"], ids=lambda rule: rule["decoded"][:20])
def test_answer(rule: dict[str, Any]) -> None:
    assert answer_of(rule["decoded"]) == rule["answer"]


@pytest.mark.parametrize("schedule", RULES["lr_schedule"], ids=lambda schedule: schedule["name"])
def test_learning_rate(schedule: dict[str, Any]) -> None:
    peak, per_epoch = schedule["init_lr"], schedule["iters_per_epoch"]
    settings = OptimizerSettings(
        lr=peak,
        warmup_steps=schedule["warmup_steps"],
        warmup_start_share=schedule["warmup_lr"] / peak,
        warmup_restart_steps=per_epoch,
        decay_from="start",
        min_lr_share=schedule["min_lr"] / peak,
    )
    total = schedule["max_epoch"] * per_epoch
    for epoch, step, rate in schedule["epoch_step_lr"]:
        share = learning_rate_share(epoch * per_epoch + step, total, schedule["warmup_steps"], settings)
        assert peak * share == pytest.approx(rate, rel=1e-9)
