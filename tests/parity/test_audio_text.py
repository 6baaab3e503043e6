"""HTSAT, WavCaps' two towers and their front end against numbers of the official classes (tests/golden/zeraucap)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from avcap_zoo.backbones.audio.htsat import HTSAT, HTSATSettings
from avcap_zoo.backbones.audio_text import WavCapsCLAP, WavCapsSettings
from avcap_zoo.ops.fbank import mel_filters
from avcap_zoo.systems.zeraucap.keymap import htsat_to_clap_audio, load_wavcaps_tensors
from avcap_zoo.weights.load import load_strictly
from tests.parity.golden import GOLDEN, compare_within, golden_names

FOLDER = GOLDEN / "zeraucap"
LOG_MEL_TOLERANCE_DB = 2e-4
EMBEDDING_TOLERANCE = 1e-5
TONE_FLOOR_DB = -70.0  # below, a pure tone's level is rounding noise


class Case:
    """A json of settings, its tensors, and weights in official names if it has them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.info: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
        self.tensors = load_file(FOLDER / f"{name}.safetensors")
        weights = FOLDER / f"{name}_weights.safetensors"
        self.weights = load_file(weights) if weights.exists() else {}

    def close(self, name: str, got: Tensor, tolerance: float) -> None:
        compare_within(self.name, name, got, self.tensors[name], tolerance)


def cases(prefix: str) -> pytest.MarkDecorator:
    names = golden_names("zeraucap", prefix)
    assert names, f"no golden case {prefix}"
    return pytest.mark.parametrize("case", [Case(name) for name in names], ids=names)


def htsat_settings(audio: dict[str, Any], model: dict[str, Any], window_samples: int) -> HTSATSettings:
    return HTSATSettings(
        sample_rate_hz=audio["sr"],
        window_s=window_samples / audio["sr"],
        fft_size=audio["n_fft"],
        hop_length=audio["hop_length"],
        num_mel_bins=audio["n_mels"],
        low_hz=audio["f_min"],
        high_hz=audio["f_max"],
        config={
            "spec_size": model["spec_size"],
            "patch_size": model["patch_size"],
            "patch_stride": model["patch_stride"],
            "patch_embeds_hidden_size": model["embed_dim"],
            "depths": model["depths"],
            "num_attention_heads": model["num_heads"],
            "window_size": model["window_size"],
        },
    )


@cases("frontend_")
def test_log_mel(case: Case) -> None:
    htsat = HTSAT(HTSATSettings(config={"patch_embeds_hidden_size": 8, "depths": [1], "num_attention_heads": [1]}))
    filters = mel_filters(64, 1024, 32_000, 50.0, 14_000.0, mel_scale="slaney", area_normalised=True)
    case.close("mel_filterbank", filters, 1e-8)
    for name in [name for name in case.tensors if name.endswith("/waveform")]:
        signal = name.split("/")[0]
        want = case.tensors[f"{signal}/logmel"]
        got = htsat.log_mel(case.tensors[name][None])[0]
        assert got.shape == want.shape
        heard = want > TONE_FLOOR_DB if signal.startswith("sine") else torch.ones_like(want, dtype=torch.bool)
        assert heard.any()
        compare_within(case.name, signal, got[heard], want[heard], LOG_MEL_TOLERANCE_DB)


@cases("htsat_")
def test_htsat(case: Case) -> None:
    waveform = case.tensors["waveform"]
    window_samples = case.info["pad_to"] or waveform.shape[1]
    settings = htsat_settings(case.info["audio_args"], case.info["model_args"], window_samples)
    htsat = HTSAT(settings).eval()
    own = {name: value for name, value in htsat.model.state_dict().items() if "relative_position_index" in name}
    load_strictly(htsat.model, {**own, **htsat_to_clap_audio(case.weights)}, case.name)
    seen: dict[str, Tensor] = {}
    encoder = htsat.model.audio_encoder
    encoder.patch_embed.register_forward_hook(lambda _m, given, output: seen.update(image=given[0], patch_embed=output))
    for index, layer in enumerate(encoder.layers):
        layer.register_forward_hook(lambda _m, _i, output, index=index: seen.update({f"layer{index}_out": output[0]}))
    with torch.no_grad():
        embedding = htsat(waveform)
        log_mel = htsat.log_mel(torch.nn.functional.pad(waveform, (0, window_samples - waveform.shape[1])))[:, None]
    frames = case.tensors["logmel"].shape[2]
    case.close("logmel", log_mel[:, :, :frames], LOG_MEL_TOLERANCE_DB)
    assert log_mel.shape[2] == case.info["frames"]
    # Large cases keep every n-th row, column or token.
    rows = seen["image"].shape[2] // case.tensors["image"].shape[2]
    case.close("image", seen["image"][:, :, ::rows, ::rows], LOG_MEL_TOLERANCE_DB)
    for name in [name for name in seen if name != "image"]:
        step = seen[name].shape[1] // case.tensors[name].shape[1]
        case.close(name, seen[name][:, ::step], 1e-4)
    case.close("embedding", embedding, EMBEDDING_TOLERANCE)


@cases("ase_")
def test_wavcaps(case: Case) -> None:
    info, waveform = case.info, case.tensors["waveform"]
    model = WavCapsCLAP(
        WavCapsSettings(
            audio=htsat_settings(info["htsat"]["audio_args"], info["htsat"]["model_args"], waveform.shape[1]),
            text=info["bert"],
            embed_dim=info["embed_size"],
            tokenizer=str(FOLDER / "bert_tokenizer"),
            max_text_tokens=info["max_length"],
        )
    ).eval()
    load_wavcaps_tensors(model, case.weights, case.name)
    assert model.temperature.item() == pytest.approx(info["temp"])
    rows = model.token_rows(info["texts"])
    want = [
        row[mask.bool()].tolist()
        for row, mask in zip(case.tensors["input_ids"], case.tensors["attention_mask"], strict=True)
    ]
    assert rows == want
    num_samples = torch.full((len(waveform),), waveform.shape[1])
    with torch.no_grad():
        audio = model.embed_audio(waveform, num_samples)
        texts = model.embed_texts(info["texts"])
        case.close("audio_feats", model.audio_encoder(waveform), EMBEDDING_TOLERANCE)
    case.close("audio_embeds", audio, EMBEDDING_TOLERANCE)
    case.close("text_embeds", texts, EMBEDDING_TOLERANCE)
    case.close("cosine", audio @ texts.T, EMBEDDING_TOLERANCE)
    assert torch.equal(texts[-1], texts[-2])  # they differ behind the cut only
