"""BuboGPT's frozen parts against numbers of the official implementation (tests/golden/bubogpt).

A mel case may hold every so many values only; its manifest entry then says which (`kept`).
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from avcap_zoo.backbones.audio.imagebind import ImageBindAudio, ImageBindAudioSettings, from_imagebind_names
from avcap_zoo.backbones.joiner import Joiner, Modality, from_blip2_file, from_joiner_names, unknown_joiner_names
from avcap_zoo.backbones.qformer import QFormer, QFormerSettings, from_blip2_names
from avcap_zoo.backbones.vision.eva import EVA, EVASettings, ImageFit, from_eva_names, from_lavis_names
from avcap_zoo.backbones.vision.swin_tagger import SwinTagger, SwinTaggerSettings, from_ram_names
from avcap_zoo.ops.audio_clips import AudioClipSettings, even_starts, mel_clips, repeat_to_length
from avcap_zoo.ops.fbank import kaldi_fbank
from avcap_zoo.ops.resample import resample
from avcap_zoo.weights.load import compare_keys, load_strictly
from tests.parity.golden import GOLDEN, GoldenCase, listed_cases


def case_of(prefix: str, **tolerance: float) -> pytest.MarkDecorator:
    cases = listed_cases("bubogpt", prefix, {"": tolerance.pop("other", 2e-5), **tolerance})
    assert cases, f"no golden case {prefix}"
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


# -- encoders ------------------------------------------------------------------------------------------------------


@case_of("audio_tower_")
@torch.no_grad()
def test_audio_tower(case: GoldenCase) -> None:
    config, clips = case.config["config"], case["in.mel_clips"]
    settings = ImageBindAudioSettings(
        num_mel_bins=config["mel_bins"],
        target_length=config["frames"],
        patch_size=config["kernel"],
        patch_stride=config["stride"],
        embed_dim=config["embed_dim"],
        depth=config["blocks"],
        num_heads=config["heads"],
    )
    tower = ImageBindAudio(settings).eval()
    load_strictly(tower, from_imagebind_names(case.weights("weights."), settings), case.name)
    assert math.isclose(float(tower.log_logit_scale.exp()), config["logit_scale"], rel_tol=1e-5)
    case.check("out.tokens_before_trunk", tower.embed(clips.flatten(0, 1)))
    case.check("out.trunk", tower.encode(clips.flatten(0, 1)))
    case.check("out.post_per_clip", tower(clips.flatten(0, 1)[:, None]))
    case.check("out.audio_features", tower(clips))
    headed = ImageBindAudio(replace(settings, head_dim=config["head_dim_out"])).eval()
    load_strictly(headed, from_imagebind_names(case.weights("weights."), headed.settings), case.name)
    case.check("out.audio_features_with_head", headed(clips))


@case_of("eva_vit_")
@torch.no_grad()
def test_eva_and_the_norm_behind_it(case: GoldenCase) -> None:
    config = case.config["config"]
    settings = EVASettings(
        image_size_px=config["image_size"],
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        mlp_dim=config["mlp_hidden"],
    )
    encoder = EVA(settings).eval()
    load_strictly(encoder, from_lavis_names(case.weights("weights."), settings), case.name)
    entering: list[Tensor] = []
    encoder.model.post_layernorm.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    seen = encoder.model(case["in.pixel_values"], output_hidden_states=True).hidden_states
    case.check("out.visual_encoder", entering[0])
    for layer in range(config["depth"]):
        case.check(f"out.block_{layer}", entering[0] if layer == config["depth"] - 1 else seen[layer + 1])
    case.check("out.ln_vision", encoder(case["in.pixel_values"]))


@case_of("image_eval_transform_", other=1e-5)
def test_image_transforms(case: GoldenCase) -> None:
    image = case["in.image_hwc_uint8"].permute(2, 0, 1)[None]
    size = case.config["image_size"]
    names: dict[ImageFit, str] = {"crop": "out.imagebind_vision_eval", "stretch": "out.blip2_image_eval"}
    assert names.keys() == set(get_args(ImageFit))
    for fit, name in names.items():
        settings = EVASettings(
            image_size_px=size, patch_size=size, embed_dim=8, depth=1, num_heads=2, mlp_dim=8, fit=fit
        )
        case.check(name, EVA(settings).normalise(image)[0])


@case_of("qformer_")
@torch.no_grad()
def test_qformer(case: GoldenCase) -> None:
    config = case.config["config"]
    settings = QFormerSettings(
        num_queries=config["num_query_token"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        cross_attention_frequency=config["cross_attention_freq"],
    )
    qformer = QFormer(settings, config["encoder_width"]).eval()
    load_strictly(qformer, from_blip2_file(case.weights("weights.")), case.name)
    tokens, mask = case["in.encoder_states"], case["in.encoder_mask_padded"].bool()
    case.check("out.last_hidden_state", qformer(tokens))
    case.check("out.last_hidden_state_padded", qformer(tokens, mask))
    states = [qformer.model.layernorm(qformer.queries).expand(len(tokens), -1, -1)]
    for layer in qformer.model.encoder.layer:
        layer.register_forward_hook(
            lambda _, __, output: states.append(output if isinstance(output, Tensor) else output[0])
        )
    qformer(tokens)
    for index, state in enumerate(states):
        case.check(f"out.hidden_{index}", state)


@case_of("qformer_")
@torch.no_grad()
def test_joiner_is_the_qformer_and_one_linear_layer(case: GoldenCase) -> None:
    config = case.config["config"]
    settings = QFormerSettings(
        num_queries=config["num_query_token"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
    )
    joiner = Joiner(settings, config["encoder_width"], config["hidden_size"]).eval()
    prefix = "multimodal_joiner.modality_qformers.audio."
    official = {f"{prefix}{name}": value for name, value in case.weights("weights.").items()}
    linear = "multimodal_joiner.modality_post_projectors.audio.fc."
    official |= {f"{linear}weight": 2 * torch.eye(config["hidden_size"]), f"{linear}bias": torch.ones(())}
    official[f"{linear}bias"] = torch.ones(config["hidden_size"])
    load_strictly(joiner, from_joiner_names(official, "audio"), case.name)
    assert unknown_joiner_names(official) == []
    case.check("out.last_hidden_state", (joiner(case["in.encoder_states"]) - 1) / 2)


@case_of("ram_tagging_")
@torch.no_grad()
def test_tagger(case: GoldenCase) -> None:
    swin, head = case.config["config"]["swin"], case.config["config"]["head"]
    words = case.config["tag_list"]
    settings = SwinTaggerSettings(
        image_size_px=swin["image_size"],
        patch_size=swin["patch_size"],
        embed_dim=swin["embed_dim"],
        depths=tuple(swin["depths"]),
        num_heads=tuple(swin["num_heads"]),
        window_size=swin["window_size"],
        num_tags=len(words),
        label_dim=head["encoder_width"],
        head_dim=head["hidden"],
        head_depth=head["layers"],
        head_heads=head["heads"],
        head_mlp_dim=head["intermediate"],
    )
    tagger = SwinTagger(settings, words, case["in.class_threshold"].tolist()).eval()
    load_strictly(tagger, from_ram_names(case.weights("weights."), tagger), case.name)
    last: list[Tensor] = []
    tagger.layers[-1].register_forward_hook(lambda _, __, output: last.append(output))
    case.check("out.visual_encoder", tagger.encode(case["in.image"]))
    case.check("out.image_proj", tagger.image_projection(tagger.encode(case["in.image"])))
    case.check("out.logits", tagger(case["in.image"]))
    case.check("out.tagging_hidden", last[0])
    assert [" | ".join(row) for row in tagger.tags(case["in.image"])] == case.config["tags"]


# -- sound ---------------------------------------------------------------------------------------------------------


def sound_of(case: GoldenCase) -> tuple[Tensor, Tensor]:
    waveform = case["in.waveform_int16"].float()[None] / 32768
    if waveform.shape[1] == 1:
        waveform = waveform[:, 0]
    return resample(waveform, torch.tensor([waveform.shape[-1]]), case.config["sample_rate"], 16_000)


@case_of("mel_", other=2e-3, fbank_first5s=1e-2, resampled_tiled_0ch=2e-5)
def test_mel_clips(case: GoldenCase) -> None:
    config, kept = case.config["config"], case.config.get("kept", {})
    clips = kept.get("clips", list(range(config["clips"] + 1)))
    bins = slice(kept.get("first_bin", 0), None, kept.get("bin_step", 1))
    settings = AudioClipSettings(
        num_clips=config["clips"],
        clip_duration_s=config["clip_duration"],
        sample_rate_hz=config["target_sr"],
        num_mel_bins=config["mel_bins"],
        target_length=config["target_length"],
        feature_mean=config["mean"],
        feature_std=config["std"],
        reach_end=False,
        first_channel=True,
    )
    waveform, num_samples = sound_of(case)
    tiled, tiled_samples = repeat_to_length(waveform, num_samples, settings.clip_samples)
    starts = even_starts(tiled_samples, config["clips"], settings.clip_samples, reach_end=False)
    assert starts[0].tolist() == [first for first, _ in case.config["sample_ranges"]]
    channels = tiled[0] if tiled.ndim == 3 else tiled
    case.check("out.resampled_tiled_0ch", channels[:1, :: kept.get("samples", 1)])
    first = channels[:, : settings.clip_samples]
    bank = kaldi_fbank(first[:1] - first.mean(), num_mel_bins=config["mel_bins"])[0]
    case.check("out.fbank_first5s", bank[:, bins])
    for shared, clean in ((True, ""), (False, "_clean")):
        mels = mel_clips(waveform, num_samples, replace(settings, shared_mean=shared))[0]
        case.check(f"out.mel_noaa{clean}", mels[clips][:, :, bins])
        smooth = mel_clips(waveform, num_samples, replace(settings, shared_mean=shared, antialias=True))[0]
        case.check(f"out.mel_aa{clean}_first_and_global", smooth[[0, -1]][:, :, bins])


@case_of("mel_", other=2e-3)
def test_released_evaluation_leaves_the_whole_sound_out(case: GoldenCase) -> None:
    waveform, num_samples = sound_of(case)
    released = mel_clips(waveform, num_samples, AudioClipSettings.released())
    assert released.shape[1] == case.config["evaluation_clips"]
    assert mel_clips(waveform, num_samples, AudioClipSettings()).shape[1] == case.config["train_style_clips"]
    whole = mel_clips(waveform, num_samples, replace(AudioClipSettings.released(), whole_in_evaluation=True))
    assert torch.equal(released, whole[:, :-1])


# -- names and sizes of the full models ----------------------------------------------------------------------------


def official_names(kind: str) -> dict[str, Tensor]:
    """Names of a published file with tensors that have a shape alone; `state_dict_names.json` lists them in ranges."""
    rows = json.loads((GOLDEN / "bubogpt/state_dict_names.json").read_text(encoding="utf-8"))[kind]["keys"]
    return {
        template.format(*numbers): torch.empty(shape, device="meta")
        for template, ranges, shape in rows
        for numbers in product(*ranges)
    }


def assert_fits(module: nn.Module, ours: dict[str, Tensor]) -> None:
    assert compare_keys({name: tuple(value.shape) for name, value in module.state_dict().items()}, ours) == ""


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_imagebind_at_full_size() -> None:
    official = official_names("imagebind_huge.audio") | official_names("imagebind_huge.vision")
    with torch.device("meta"):
        for settings in (ImageBindAudioSettings(), ImageBindAudioSettings(head_dim=1024)):
            tower = ImageBindAudio(settings)
            assert_fits(tower, from_imagebind_names(official, settings))
    assert ImageBindAudioSettings().num_tokens == 229
    assert num_parameters(tower) == 86_235_648


def test_eva_at_full_size() -> None:
    with torch.device("meta"):
        encoder = EVA(EVASettings())
    ours = from_eva_names(official_names("eva_vit_g.instantiated"), encoder.settings)
    norm = from_lavis_names(official_names("blip2_pretrained_flant5xxl"), encoder.settings)
    assert norm.keys() == {"model.post_layernorm.weight", "model.post_layernorm.bias"}
    assert_fits(encoder, ours | norm)
    zero_key_biases = encoder.settings.depth * encoder.settings.embed_dim
    assert num_parameters(encoder) - zero_key_biases == 985_894_528 + 2_816


def test_tagger_at_full_size() -> None:
    with torch.device("meta"):
        tagger = SwinTagger(SwinTaggerSettings())
    assert_fits(tagger, from_ram_names(official_names("ram_swin_large_14m.tagging_part"), tagger))
    assert num_parameters(tagger.visual_encoder) == 195_198_516
    assert num_parameters(tagger.layers) == 13_389_312


def test_joiners_at_full_size() -> None:
    trained = official_names("bubogpt_7b.expected_trained_keys")
    assert unknown_joiner_names(trained) == []
    widths: dict[Modality, int] = {"audio": 768, "vision": 1408}
    with torch.device("meta"):
        joiners = {name: Joiner(QFormerSettings(), width, 4096) for name, width in widths.items()}
    audio, vision = from_joiner_names(trained, "audio"), from_joiner_names(trained, "vision")
    assert_fits(joiners["audio"], audio)
    assert vision.keys() == {"projection.weight", "projection.bias"}
    assert len(audio) + len(vision) == 259
    assert_fits(joiners["vision"].qformer, from_blip2_file(official_names("blip2_pretrained_flant5xxl")))
    live = from_joiner_names(official_names("bubogpt_7b.vision_qformer_keys_in_live_model"), "vision")
    assert_fits(joiners["vision"], live | vision)
    stage_2: Any = [joiner.projection for joiner in joiners.values()]
    assert sum(map(num_parameters, stage_2)) == 6_299_648


def test_both_ways_to_name_a_qformer_agree() -> None:
    official = official_names("blip2_pretrained_flant5xxl")
    assert from_blip2_names(official, "query_tokens", "Qformer.bert.").keys() == from_blip2_file(official).keys()
