"""`avcap convert lavcap`: both official checkpoint forms into ours and back, and files that do not fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from avcap_zoo.cli.main import avcap, lightning
from tests.parity.golden import load_case
from tests.unit.cli.running import Outcome, call

DECODER = "llama_decoder.base_model.model."
ENCODER = "audio_encoder.base_model.model."


@dataclass
class Released:
    """A tiny released LAVCap on disk: its base, its configuration, and its weights under official names."""

    folder: Path
    config: Path
    weights: dict[str, Tensor]

    @property
    def trained_and_buffers(self) -> dict[str, Tensor]:
        """The form that the CUDA trainer saves."""
        parts = ("lora_", "logit_scale", "speech_llama_proj", "running_", "num_batches_tracked", "inv_freq")
        return {name: value for name, value in self.weights.items() if any(part in name for part in parts)}


def base_of(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The frozen part below a prefix, under the names it had before adapters."""
    return {
        name.removeprefix(prefix).replace(".base_layer", ""): value.clone()
        for name, value in weights.items()
        if name.startswith(prefix) and "lora_" not in name and "inv_freq" not in name
    }


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Released:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("released")
    case = load_case("lavcap", "lavcap_tiny_end_to_end")
    weights, llama = case.weights(), case.config["llama"]
    # What a real file holds beside them: constants that nobody needs.
    weights |= {
        f"{DECODER}model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(4)
        for layer in range(llama["num_hidden_layers"])
    }
    num_words = llama["vocab_size_after_pad_token"] - 4
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(num_words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "llama")
    sizes = {key: value for key, value in llama.items() if key != "vocab_size_after_pad_token"}
    decoder = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes))
    decoder.load_state_dict(base_of(weights, DECODER))
    decoder.save_pretrained(folder / "llama")
    torch.save({"model": base_of(weights, ENCODER)}, folder / "ced.pt")
    torch.manual_seed(0)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(**vision, image_size=16, patch_size=8, projection_dim=case.config["embed_dim"])
    ).save_pretrained(folder / "clip")
    lora = {"rank": 4, "alpha": 16, "dropout": 0.0}
    settings: dict[str, Any] = {
        "model": {
            "class_path": "lavcap",
            "init_args": {
                "audio": {
                    "encoder": {
                        "embed_dim": case.config["embed_dim"],
                        "depth": case.config["encoder_depth"],
                        "num_heads": case.config["encoder_heads"],
                    },
                    "checkpoint": str(folder / "ced.pt"),
                    "lora": lora,
                },
                "vision": {"source": str(folder / "clip")},
                "language": {"source": str(folder / "llama"), "dtype": "float32", "lora": lora},
                "generation": {"num_beams": 2, "max_new_tokens": 5},
                "scores": {"test": ["bleu"], "tokenizer": "python"},
            },
        },
        "data": {
            "class_path": "scenes",
            "init_args": {
                "root": str(scenes_root),
                "num_train": 24,
                "num_val": 6,
                "num_test": 6,
                "num_frames": 4,
                "image_size_px": 16,
                "eval_batch_size": 6,
            },
        },
        "trainer": {"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    }
    config = folder / "lavcap.yaml"
    config.write_text(yaml.safe_dump(settings))
    return Released(folder, config, weights)


def convert(capsys: pytest.CaptureFixture[str], released: Released, file: Path, out: Path, *more: str) -> Outcome:
    return call(capsys, avcap, ["convert", "lavcap", str(file), "--out", str(out), "-c", str(released.config), *more])


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype, name
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("form", ["trained", "everything"])
def test_both_official_forms_come_and_go_bit_by_bit(
    released: Released, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official = released.trained_and_buffers if form == "trained" else released.weights
    if form == "trained":
        content = {"model": official, "optimizer": {"state": {}}, "config": {"run": {}}, "scaler": None, "epoch": 3}
        torch.save(content, tmp_path / "official.pth")
        source = tmp_path / "official.pth"
    else:  # in two shards, as transformers' trainer saves a large model
        names = sorted(official)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for shard, held in shards.items():
            save_file({name: official[name] for name in held}, tmp_path / shard)
        index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
        source = tmp_path / "model.safetensors.index.json"
        source.write_text(json.dumps(index))
    ours = tmp_path / "converted.ckpt"
    done = convert(capsys, released, source, ours)
    assert done.code == 0, done.err
    kept = sum("inv_freq" in name or "output_layer" in name for name in official)
    assert f"{kept} are kept aside for --reverse" in done.out
    assert f"lightning test -c {released.config} --ckpt_path {ours}" in done.out
    state = torch.load(ours, weights_only=True)["state_dict"]
    assert torch.equal(state["model.projector.weight"], official["speech_llama_proj.weight"])
    assert not any("language" in name and "lora_" not in name for name in state)

    for suffix in ("pth", "safetensors"):
        back = tmp_path / f"back.{suffix}"
        assert convert(capsys, released, ours, back, "--reverse").code == 0
        again = load_file(back) if suffix == "safetensors" else torch.load(back, weights_only=True)["model"]
        assert_equal(again, official)


def test_a_converted_checkpoint_runs(
    released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(released.trained_and_buffers, tmp_path / "official.pth")
    ours = tmp_path / "converted.ckpt"
    assert convert(capsys, released, tmp_path / "official.pth", ours).code == 0
    monkeypatch.chdir(tmp_path)
    tested = call(capsys, lightning, ["test", "-c", str(released.config), "--ckpt_path", str(ours)])
    assert tested.code == 0, tested.err
    (written,) = tmp_path.rglob("test_captions.jsonl")
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(rows) == 6
    assert all(row["caption"] for row in rows)


def test_names_that_do_not_fit_are_listed_at_once(
    released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = dict(released.trained_and_buffers)
    wrong["speech_projector.x"] = wrong.pop("logit_scale")
    wrong["speech_llama_proj.weight"] = wrong["speech_llama_proj.weight"].T.contiguous()
    torch.save({"model": wrong}, tmp_path / "wrong.pth")
    refused = convert(capsys, released, tmp_path / "wrong.pth", tmp_path / "out.ckpt")
    assert refused.code == 1
    line = refused.err.strip().splitlines()[-1]
    for part in (
        "wrong.pth does not fit the configured model",
        "1 missing: fusion.logit_scale",
        "1 unknown: speech_projector.x",
        "1 other shape: projector.weight (",
    ):
        assert part in line
    assert not (tmp_path / "out.ckpt").exists()


def test_a_checkpoint_on_another_base_is_refused(
    released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = dict(released.weights)
    name = f"{DECODER}model.layers.1.mlp.up_proj.weight"
    other[name] = other[name] + 0.5
    torch.save(other, tmp_path / "other.pth")
    refused = convert(capsys, released, tmp_path / "other.pth", tmp_path / "out.ckpt")
    assert refused.code == 1
    assert "was made on another base: 1 of its " in refused.err
    assert "language.model.model.layers.1.mlp.up_proj.weight" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["lavcup", "x.pth", "--out", "y.ckpt"], "no system 'lavcup'; did you mean lavcap?", 2),
        (["lavcap", "x.pth", "--out", "x.pth"], "--out x.pth is the file that is read, wanted another name", 2),
        (["lavcap", "x.pth"], "the following arguments are required: --out", 2),
        (["lavcap", "x.pth", "--out", "y", "--revers"], "no option --revers; did you mean --reverse?", 2),
        (["lavcap", "x.pth", "--out", "y", "-c", "none.yaml"], "none.yaml does not exist", 2),
        (["lavcap", "x.pth", "--out", "y", "-c", "other.yaml"], "other.yaml: model is None, wanted avcap_zoo.", 2),
        (["lavcap", "x.pth", "--out", "y", "-c", "typo.yaml"], "model: ", 2),
        (["lavcap", "no.pth", "--out", "y", "-c", "RELEASED"], "no.pth does not exist", 2),
        (["lavcap", "x.pth", "--out", "y", "-c", "RELEASED"], "x.pth is no weight file, it begins with b'weights'", 1),
    ],
)
def test_commands_that_cannot_be_used(
    released: Released,
    arguments: list[str],
    message: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.pth").write_text("weights")
    Path("other.yaml").write_text("trainer: {}\n")
    Path("typo.yaml").write_text("model: {class_path: lavcap, init_args: {fusoin: {kind: audio_only}}}\n")
    refused = call(capsys, avcap, ["convert", *(str(released.config) if a == "RELEASED" else a for a in arguments)])
    assert refused.code == code
    assert message in refused.err.splitlines()[-1]
    assert "Traceback" not in refused.err


def test_a_released_model_without_transport_keeps_its_idle_scale_aside(
    released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(released.config.read_text())
    settings["model"]["init_args"]["fusion"] = {"kind": "concatenation"}
    plain = Released(released.folder, tmp_path / "plain.yaml", released.weights)
    plain.config.write_text(yaml.safe_dump(settings))
    official = released.trained_and_buffers
    torch.save(official, tmp_path / "official.pth")
    assert convert(capsys, plain, tmp_path / "official.pth", tmp_path / "ours.ckpt").code == 0
    assert "model.fusion.logit_scale" not in torch.load(tmp_path / "ours.ckpt", weights_only=True)["state_dict"]
    assert convert(capsys, plain, tmp_path / "ours.ckpt", tmp_path / "back.pth", "--reverse").code == 0
    assert_equal(torch.load(tmp_path / "back.pth", weights_only=True)["model"], official)
