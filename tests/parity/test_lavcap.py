"""LAVCap against numbers of the official implementation (tests/golden/lavcap)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.backbones.adapters import LoRASettings, set_training_mode
from avcap_zoo.backbones.audio.ced import CED, CEDSettings, CEDTagger, decibel_spectrogram
from avcap_zoo.backbones.language import GenerationSettings, LanguageSettings
from avcap_zoo.backbones.qformer import QFormerSettings
from avcap_zoo.backbones.vision.clip import CLIPSettings
from avcap_zoo.ops.fbank import kaldi_fbank, normalised_fbank
from avcap_zoo.ops.optimal_transport import LossConvention, alignment_logits, alignment_loss, sinkhorn_log_plan
from avcap_zoo.systems.base import OptimizerSettings, learning_rate_share
from avcap_zoo.systems.lavcap.fusion import LARGEST_LOGIT_SCALE, Fusion, FusionSettings
from avcap_zoo.systems.lavcap.fusion_kinds import FusionKind
from avcap_zoo.systems.lavcap.keymap import ced_to_encoder, ced_to_tagger, lavcap_to_model
from avcap_zoo.systems.lavcap.model import AudioSettings, LAVCapModel, PromptSettings
from avcap_zoo.weights.load import load_strictly
from tests.parity.golden import GoldenCase, golden_names, load_case


def case_of(prefix: str, wanted: Callable[[dict[str, Any]], bool] = lambda config: True) -> pytest.MarkDecorator:
    cases = [load_case("lavcap", name) for name in golden_names("lavcap", prefix)]
    cases = [case for case in cases if wanted(case.config)]
    assert cases, f"no golden case {prefix}"
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@case_of("sinkhorn_")
def test_sinkhorn_plan(case: GoldenCase) -> None:
    log_plan = sinkhorn_log_plan(
        case["similarity"], epsilon=case.config["epsilon"], num_iterations=case.config["iterations"]
    )
    case.check("log_assignment", log_plan)
    case.check("assignment", log_plan.exp())


@case_of("ot_loss_")
def test_alignment_loss_and_gradients(case: GoldenCase) -> None:
    audio, visual = case["audio"].requires_grad_(), case["visual"].requires_grad_()
    scale = case["logit_scale"].requires_grad_()
    with torch.no_grad():
        scale.clamp_(0, LARGEST_LOGIT_SCALE)
    similarity = F.normalize(visual, dim=-1) @ F.normalize(audio, dim=-1).transpose(1, 2)
    log_plan = sinkhorn_log_plan(similarity, epsilon=case.config["epsilon"], num_iterations=case.config["iterations"])
    convention: LossConvention = "released_exp"
    if case.config["assignment_in_loss"].startswith("log"):
        convention = "released"
    logits_visual, logits_audio = alignment_logits(similarity, log_plan, scale, convention=convention)
    case.check("logits_visual", logits_visual)
    case.check("logits_audio", logits_audio)
    visual_loss, audio_loss = alignment_loss(similarity, log_plan, scale, convention=convention)
    weight = case.config["ot_loss_weight"]
    loss = weight * visual_loss + weight * audio_loss
    loss.backward()
    case.check("loss_visual", weight * visual_loss)
    case.check("loss_audio", weight * audio_loss)
    case.check("loss", loss)
    for name, leaf in (("grad_audio", audio), ("grad_visual", visual), ("grad_logit_scale", scale)):
        assert leaf.grad is not None
        case.check(name, leaf.grad)


def test_paper_convention_normalises_over_the_similarities() -> None:
    case = load_case("lavcap", "ot_loss_expq_16x6_peaked")
    similarity = F.normalize(case["visual"], dim=-1) @ F.normalize(case["audio"], dim=-1).transpose(1, 2)
    log_plan = sinkhorn_log_plan(similarity, epsilon=case.config["epsilon"], num_iterations=50)
    # The manifest's other direction keeps Q unscaled, so undo the paper convention's factor through the scale.
    visual_only = alignment_loss(similarity, log_plan, case["logit_scale"] / 6, convention="paper")[0]
    audio_only = alignment_loss(similarity, log_plan, case["logit_scale"] / 16, convention="paper")[1]
    torch.testing.assert_close(visual_only + audio_only, case["loss_if_softmax_over_axis_2"], rtol=1e-5, atol=1e-5)


@case_of("fbank_")
def test_kaldi_fbank(case: GoldenCase) -> None:
    waveform = case["waveform"][None]
    case.check("fbank_raw", kaldi_fbank(waveform - waveform.mean())[0])
    case.check("spec", normalised_fbank(waveform, torch.tensor([waveform.shape[1]]))[0])


def encoder_of(case: GoldenCase) -> CED:
    config = case.config
    settings = CEDSettings(
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        target_length=config["target_length"],
    )
    encoder = CED(settings)
    weights = {f"audio_encoder.base_model.model.{name}": value for name, value in case.weights().items()}
    renamed = {name.removeprefix("audio_encoder."): value for name, value in lavcap_to_model(weights).items()}
    load_strictly(encoder, renamed, case.name)
    return encoder


@case_of("ced_tiny_")
def test_ced_encoder(case: GoldenCase) -> None:
    encoder = encoder_of(case)
    encoder.train(case.config["mode"] == "train")
    case.check("tokens", encoder(case["spec"]).flatten(1, 2))
    for name in [name for name in case.tolerance if name.startswith("after.")]:
        case.check(name, encoder.state_dict()[name.removeprefix("after.").replace("init_bn.1.", "init_bn.")])


def test_frozen_batch_norm_does_not_drift_when_told_so() -> None:
    case = load_case("lavcap", "ced_tiny_train_bn")
    encoder = encoder_of(case)
    encoder.freeze_batch_norm()
    encoder.train()
    before = encoder.init_bn.running_mean
    assert before is not None
    before = before.clone()
    encoder(case["spec"])
    assert encoder.init_bn.running_mean is not None
    assert torch.equal(encoder.init_bn.running_mean, before)
    assert encoder.blocks[0].training


@case_of("ced_checkpoint")
def test_ced_checkpoint_conversion(case: GoldenCase) -> None:
    settings = CEDSettings(
        embed_dim=case.config["embed_dim"],
        depth=case.config["depth"],
        num_heads=case.config["heads"],
        target_length=case.config["target_length_model"],
    )
    converted = ced_to_encoder(case.weights("ced."), settings)
    case.check("converted.time_pos_embed", converted["time_pos_embed"])
    case.check("converted.freq_pos_embed", converted["freq_pos_embed"])
    encoder = CED(settings).eval()
    load_strictly(encoder, converted, case.name)
    case.check("tokens", encoder(case["spec"]).flatten(1, 2))


@case_of("lr_schedule_")
def test_released_learning_rates(case: GoldenCase) -> None:
    config = case.config
    total = config["max_epoch"] * config["iters_per_epoch"]
    cuda = OptimizerSettings(
        lr=config["init_lr"],
        warmup_start_share=config["warmup_start_lr"] / config["init_lr"],
        schedule="cosine",
        decay_from="start",
        min_lr_share=config["min_lr"] / config["init_lr"],
    )
    gaudi = OptimizerSettings(lr=config["init_lr"], warmup_start_share=0.0, schedule="linear")
    for name, settings, warmup in (
        ("warmup_cosine", cuda, config["warmup_epochs"] * config["iters_per_epoch"]),
        ("warmup_linear", gaudi, math.ceil(config["warmup_ratio"] * total)),
    ):
        rates = [settings.lr * learning_rate_share(step, total, warmup, settings) for step in range(total)]
        case.check(name, torch.tensor(rates, dtype=torch.float64))


def front_end_of(case: GoldenCase, *, range_over: Literal["clip", "batch"]) -> Tensor:
    """(B, F, T) dB."""
    return decibel_spectrogram(case["waveform"], range_over=range_over).transpose(1, 2)


@case_of("ced_front_end_")
def test_ced_front_end(case: GoldenCase) -> None:
    case.check("mel_db", front_end_of(case, range_over="batch"))
    case.check("mel_db_each_item_alone", front_end_of(case, range_over="clip"))


@case_of("ced_classifier_")
def test_ced_classifier(case: GoldenCase) -> None:
    config = case.config
    settings = CEDSettings(
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        target_length=config["target_length"],
        front_end="decibel",
        range_over="batch",
    )
    tagger = CEDTagger(settings, config["outputdim"], config["pooling"]).eval()
    load_strictly(tagger, ced_to_tagger(case.weights(), settings), case.name)
    case.check("mel_db", front_end_of(case, range_over="batch"))
    case.check("output", tagger(case["waveform"]))


PLAIN_TWINS: dict[str, FusionKind] = {
    "ot_tempcat_QAV_add": "ot_attention",
    "ot_tempcat": "concatenation_ot",
    "ot_crossattn": "cross_attention",
    "tempcat_afQF": "concatenation",
}
"""Released `fusion_type` values that a kind of the paper's tables equals."""


def fusion_of(case: GoldenCase, kind: str, features: Literal["normalised", "raw"]) -> tuple[Fusion, torch.nn.Linear]:
    """Fusion and projector as a fusion case describes them, with its weights."""
    config = case.config
    settings = FusionSettings(
        kind=kind,  # type: ignore[arg-type]
        features=features,
        epsilon=config["epsilon"],
        num_iterations=config["iterations"],
        loss_convention="released_exp" if config.get("assignment_in_loss") == "probabilities" else "released",
        layer_norm=config.get("av_embed_norm", False),
    )
    if "qformer" in config:
        size = config["qformer"]
        assert size["cross_attention"] == "every layer"
        settings.window_s, settings.stride_s = config["second_per_window"], config["second_stride"]
        settings.qformer = QFormerSettings(
            num_queries=config["query_tokens"],
            embed_dim=size["hidden"],
            depth=size["layers"],
            num_heads=size["heads"],
            mlp_dim=size["ffn"],
            cross_attention_frequency=1,
            dropout=size["dropout"],
        )
    fusion = Fusion(settings, config["channels"], config["channels"])
    renamed = lavcap_to_model(case.weights())
    if not settings.recipe.transport:
        del renamed["fusion.logit_scale"]  # the released code makes one that it does not use
    parts = {"fusion": fusion, "projector": torch.nn.Linear(fusion.width, config["llm_width"])}
    for name, part in parts.items():
        load_strictly(part, {k.removeprefix(f"{name}."): v for k, v in renamed.items() if k.startswith(name)}, name)
    return fusion, parts["projector"]  # type: ignore[return-value]


def audio_tokens_of(case: GoldenCase) -> Tensor:
    """The case's audio, averaged over frequency where it says so; a leaf that collects gradients is `case["audio"]`."""
    audio = case["audio"].requires_grad_()
    if not case.config["frequency_mean_pool"]:
        return audio
    pooled: Tensor = audio.unflatten(1, (-1, case.config["n_audio"])).mean(dim=1)
    return pooled


def check_fusion(case: GoldenCase, kind: str) -> None:
    """Compare tokens, mask, OT loss and gradients, as far as the case records them."""
    features: Literal["normalised", "raw"] = "normalised" if "ot" in case.config["fusion_type"] else "raw"
    fusion, projector = fusion_of(case, kind, features)
    case.tensors["audio"].grad = case.tensors["visual"].grad = None
    fused = fusion(audio_tokens_of(case), case["visual"].requires_grad_())
    # The released Q-Former without transport is recorded with one row for each window.
    case.check("fused_before_projection", fused.tokens.reshape(case["fused_before_projection"].shape))
    case.check("fused_projected", projector(fused.tokens))
    if "attention_mask" in case.tolerance:
        case.check("attention_mask", fused.mask)
    assert (fused.ot_loss is None) == ("ot_loss" not in case.tolerance)
    if fused.ot_loss is not None:
        case.check("ot_loss", fused.ot_loss)
    if "cotangent" in case.tensors:
        (fused.tokens * case["cotangent"]).sum().backward()
        for name in ("audio", "visual"):
            gradient = case[name].grad
            assert gradient is not None
            case.check(f"grad_{name}", gradient)


@case_of("fusion_")
def test_released_fusion(case: GoldenCase) -> None:
    check_fusion(case, f"released_{'qformer_' if 'qformer' in case.config else ''}{case.config['fusion_type']}")


@case_of("fusion_", lambda config: "qformer" not in config and config["fusion_type"] in PLAIN_TWINS)
def test_rows_of_the_tables_that_equal_a_released_fusion(case: GoldenCase) -> None:
    check_fusion(case, PLAIN_TWINS[case.config["fusion_type"]])


def test_plain_qformer_is_the_released_one_with_its_last_window() -> None:
    case = load_case("lavcap", "fusion_qformer_ot_tempcat")
    fused = fusion_of(case, "qformer", "normalised")[0](audio_tokens_of(case), case["visual"])
    released = case["fused_before_projection"]
    assert fused.tokens.shape[1] == released.shape[1] + 1
    num_audio = released.shape[1] - case["visual"].shape[1]
    torch.testing.assert_close(fused.tokens[:, :num_audio], released[:, :num_audio], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.tokens[:, num_audio + 1 :], released[:, num_audio:], rtol=1e-4, atol=1e-5)


def model_of(case: GoldenCase) -> LAVCapModel:
    config, llama = case.config, case.config["llama"]
    lora = LoRASettings(rank=4, alpha=16, dropout=0.0)
    model = LAVCapModel(
        audio=AudioSettings(
            encoder=CEDSettings(
                embed_dim=config["embed_dim"], depth=config["encoder_depth"], num_heads=config["encoder_heads"]
            ),
            training="lora",
            lora=lora,
        ),
        vision=CLIPSettings(
            source=None,
            config={
                "projection_dim": config["embed_dim"],
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "image_size": 8,
                "patch_size": 8,
            },
        ),
        language=LanguageSettings(
            source=None,
            config={
                "model_type": "llama",
                "vocab_size": llama["vocab_size_after_pad_token"],
                "hidden_size": llama["hidden_size"],
                "intermediate_size": llama["intermediate_size"],
                "num_hidden_layers": llama["num_hidden_layers"],
                "num_attention_heads": llama["num_attention_heads"],
                "rms_norm_eps": llama["rms_norm_eps"],
                "tie_word_embeddings": False,
            },
            dtype="float32",
            training="lora",
            lora=lora,
        ),
        fusion=FusionSettings(),
        prompts=PromptSettings(released_gap=True),
        generation=GenerationSettings(),
    )
    vision = {k: v for k, v in model.state_dict().items() if k.startswith("vision_encoder.")}
    # The golden vocabulary is smaller than that of the built-in tokenizer, which is not used here.
    model.language.model.resize_token_embeddings(llama["vocab_size_after_pad_token"])
    load_strictly(model, lavcap_to_model(case.weights()) | vision, case.name)
    return model.eval()


@pytest.fixture(scope="module")
def end_to_end() -> tuple[GoldenCase, LAVCapModel]:
    case = load_case("lavcap", "lavcap_tiny_end_to_end")
    return case, model_of(case)


def fused_prefix(case: GoldenCase, model: LAVCapModel, rows: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    audio = model.encode_spectrogram(case["spec"][rows])
    fused = model.fusion(audio, case["clip_feat"][rows])
    return model.projector(fused.tokens), fused.mask, fused.ot_loss


def test_end_to_end_training_pass(end_to_end: tuple[GoldenCase, LAVCapModel]) -> None:
    case, model = end_to_end
    prefix, mask, ot_loss = fused_prefix(case, model, slice(None))
    case.check("av_embeds", prefix)
    before_ids = case["prompt_before_ids"]
    text = model.language.wrap(
        prefix,
        mask,
        (before_ids, torch.ones_like(before_ids, dtype=torch.bool)),
        (case["prompt_after_ids"], case["prompt_after_mask"].bool()),
        (case["label_ids"], case["label_mask"].bool()),
        keep_gaps=True,
    )
    case.check("inputs_embeds", text.inputs_embeds)
    case.check("attention_mask", text.attention_mask)
    case.check("targets", text.labels)
    case.check("logits", model.language.logits(text))
    caption_loss = model.language.loss(text)
    assert ot_loss is not None
    total = caption_loss + ot_loss
    case.check("loss_ce", caption_loss)
    case.check("loss_ot", ot_loss)
    case.check("loss_total", total)
    model.zero_grad()
    total.backward()
    parameters = dict(model.named_parameters())
    checked = [name for name in case.tolerance if name.startswith("grad.")]
    assert len(checked) == 6
    for name in checked:
        (ours,) = lavcap_to_model({name.removeprefix("grad."): torch.zeros(())})
        gradient = parameters[ours].grad
        assert gradient is not None
        case.check(name, gradient)


def test_without_gap_a_batch_equals_its_clips_one_by_one(end_to_end: tuple[GoldenCase, LAVCapModel]) -> None:
    case, model = end_to_end

    def loss_of(rows: slice, *, cut: bool) -> float:
        after_mask, label_mask = case["prompt_after_mask"][rows].bool(), case["label_mask"][rows].bool()
        num_after = int(after_mask.sum()) if cut else after_mask.shape[1]
        num_labels = int(label_mask.sum()) if cut else label_mask.shape[1]
        before_ids = case["prompt_before_ids"][rows]
        prefix, mask, _ = fused_prefix(case, model, rows)
        text = model.language.wrap(
            prefix,
            mask,
            (before_ids, torch.ones_like(before_ids, dtype=torch.bool)),
            (case["prompt_after_ids"][rows][:, :num_after], after_mask[:, :num_after]),
            (case["label_ids"][rows][:, :num_labels], label_mask[:, :num_labels]),
        )
        return model.language.loss(text).item()

    lengths = case["label_mask"].sum(dim=1)
    one_by_one = sum(loss_of(slice(i, i + 1), cut=True) * int(lengths[i]) for i in range(3)) / int(lengths.sum())
    together = loss_of(slice(None), cut=False)
    assert together == pytest.approx(one_by_one, abs=1e-5)
    assert together < float(case["loss_ce"]) - 0.02  # the released gap costs


@pytest.mark.parametrize("num_beams", [1, 4])
def test_end_to_end_generation(end_to_end: tuple[GoldenCase, LAVCapModel], num_beams: int) -> None:
    case, model = end_to_end
    prefix, mask, _ = fused_prefix(case, model, slice(0, 1))
    before_ids, after_ids = case["prompt_before_ids"][:1], case["generation.prompt_after_ids"]
    text = model.language.wrap(
        prefix,
        mask,
        (before_ids, torch.ones_like(before_ids, dtype=torch.bool)),
        (after_ids, torch.ones_like(after_ids, dtype=torch.bool)),
    )
    ids = model.language.generate(text, GenerationSettings(num_beams=num_beams, max_new_tokens=12))
    case.check(f"generation.beams{num_beams}_ids", ids)


def test_adapters_refuse_a_model_without_their_layers() -> None:
    from avcap_zoo.errors import ConfigError

    with pytest.raises(ConfigError, match=r"audio\.lora\.targets: no linear layer is named to_q; this model has"):
        set_training_mode(
            CED(CEDSettings(embed_dim=16, depth=1, num_heads=2)), "lora", LoRASettings(targets=("to_q",)), "audio"
        )
