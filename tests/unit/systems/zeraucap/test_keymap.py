"""The official checkpoint of WavCaps: what is dropped, and what is said of a wrong file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.audio.htsat import HTSATSettings
from avcap_zoo.backbones.audio_text import WavCapsCLAP, WavCapsSettings
from avcap_zoo.errors import WeightsError
from avcap_zoo.systems.zeraucap.keymap import load_wavcaps, wavcaps_to_model

HTSAT_PREFIX, BERT_PREFIX = "audio_encoder.audio_enc.", "text_encoder.text_encoder."
BACK = (
    ("batch_norm.", "bn0."),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.output.dense", "attn.proj"),
    ("attention.self.relative_position_bias_table", "attn.relative_position_bias_table"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def model_of(seed: int = 0) -> WavCapsCLAP:
    torch.manual_seed(seed)
    config = {"patch_embeds_hidden_size": 4, "depths": [2, 1], "num_attention_heads": [1, 2], "spec_size": 64}
    audio = HTSATSettings(
        sample_rate_hz=16_000, window_s=0.5, fft_size=256, num_mel_bins=16, high_hz=7000.0,
        config={**config, "window_size": 4},
    )  # fmt: skip
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return WavCapsCLAP(WavCapsSettings(audio=audio, text=text, embed_dim=6, tokenizer=None)).eval()


def official(model: WavCapsCLAP) -> dict[str, Tensor]:
    """The model's state dict in official names, with what the file holds beside it."""
    state = model.state_dict()
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("audio_encoder.model.audio_encoder."):
            plain = name.removeprefix("audio_encoder.model.audio_encoder.")
            if ".key." in plain or ".value." in plain or "relative_position_index" in plain:
                continue
            if ".query." in plain:
                parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
                found[HTSAT_PREFIX + plain.replace("attention.self.query", "attn.qkv")] = torch.cat(parts)
                continue
            for ours, theirs in BACK:
                plain = plain.replace(ours, theirs)
            found[HTSAT_PREFIX + plain] = value
        elif name.startswith("text_encoder."):
            found[BERT_PREFIX + name.removeprefix("text_encoder.")] = value
        else:
            found["temp" if name == "temperature" else name] = value
    constants = {
        "audio_feats_extractor.mel_trans.stft.conv_real.weight": (129, 1, 256),
        "audio_feats_extractor.log_trans.melW": (129, 16),
        "layers.0.blocks.1.attn_mask": (16, 16, 16),
        "layers.0.blocks.0.attn.relative_position_index": (16, 16),
        "tscam_conv.weight": (7, 8, 2, 3),
        "head.bias": (7,),
    }
    found |= {HTSAT_PREFIX + name: torch.zeros(shape) for name, shape in constants.items()}
    found[f"{BERT_PREFIX}embeddings.position_ids"] = torch.arange(512)[None]
    return {name: value.clone() for name, value in found.items()}


def save(tensors: dict[str, Tensor], path: Path) -> Path:
    """As the training script saves: beside the optimizer, the settings and the epoch."""
    torch.save({"model": tensors, "optimizer": {"state": {}}, "config": {"lr": 5e-5}, "epoch": 3}, path)
    return path


def test_every_value_finds_its_place(tmp_path: Path) -> None:
    source, target = model_of(0), model_of(1)
    assert not torch.equal(source.audio_proj.state_dict()["0.weight"], target.audio_proj.state_dict()["0.weight"])
    with torch.no_grad():
        source.temperature.fill_(0.03)
        source.audio_encoder.model.audio_encoder.batch_norm.running_mean.uniform_()
    load_wavcaps(target, save(official(source), tmp_path / "HTSAT-BERT-PT.pt"))
    wanted, found = source.state_dict(), target.state_dict()
    assert wanted.keys() == found.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []


def test_the_names_of_the_map() -> None:
    renamed = wavcaps_to_model({f"{HTSAT_PREFIX}layers.2.blocks.5.attn.qkv.bias": torch.arange(6.0)})
    prefix = "audio_encoder.model.audio_encoder.layers.2.blocks.5.attention.self."
    assert {name.removeprefix(prefix): value.tolist() for name, value in renamed.items()} == {
        "query.bias": [0, 1], "key.bias": [2, 3], "value.bias": [4, 5],
    }  # fmt: skip


def test_all_that_is_wrong_with_a_file(tmp_path: Path) -> None:
    tensors = official(model_of())
    del tensors["audio_proj.2.bias"]
    tensors["text_proj.0.bias"] = torch.zeros(9)
    tensors[f"{HTSAT_PREFIX}layers.0.blocks.0.attn.extra"] = torch.zeros(1)
    tensors["decoder.weight"] = torch.zeros(1)
    with pytest.raises(
        WeightsError,
        match=r"wrong\.pt does not fit the model: 1 missing: audio_proj\.2\.bias; 2 unknown: "
        r"audio_encoder\.model\.audio_encoder\.layers\.0\.blocks\.0\.attn\.extra, decoder\.weight; "
        r"1 other shape: text_proj\.0\.bias \(9,\), wanted \(6,\)$",
    ):
        load_wavcaps(model_of(), save(tensors, tmp_path / "wrong.pt"))


def test_a_file_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"\d+ missing: .*; 1 unknown: encoder\.weight"):
        load_wavcaps(model_of(), save({"encoder.weight": torch.zeros(2)}, tmp_path / "other.pt"))
    with pytest.raises(WeightsError, match="does not exist"):
        load_wavcaps(model_of(), tmp_path / "missing.pt")
