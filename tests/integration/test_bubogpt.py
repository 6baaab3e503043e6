"""BuboGPT from the command line: both stages at toy size, chat, and official files into ours and back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from avcap_zoo.cli.main import avcap
from avcap_zoo.serving.loading import load_system
from avcap_zoo.systems.bubogpt import BuboGPT
from avcap_zoo.systems.bubogpt.prompts import answer_ids, assemble, prompt_row
from tests.house import tree
from tests.parity.golden import GOLDEN, GoldenCase, listed_cases
from tests.unit.cli.running import call

TINY = tree.ROOT / "configs/tiny"
SMALL = {
    "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
    "data": {
        "init_args": {
            "num_train": 24,
            "num_val": 6,
            "num_test": 6,
            "batches_per_epoch": 2,
            "batch_size": 3,
            "eval_batch_size": 12,
        }
    },
    "model": {"init_args": {"generation": {"max_new_tokens": 5}}},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    settings: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SMALL))
    settings["data"]["init_args"]["root"] = str(scenes_root)
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def preparation(cache: Path) -> dict[str, Any]:
    """An overlay of stage 1: two steps of every lesson."""
    steps = {"audio_steps": 2, "vision_steps": 2, "language_steps": 2, "batch_size": 3, "cache_dir": str(cache)}
    callbacks = [
        {"class_path": "avcap_zoo.systems.bubogpt.preparation.PrepareBackbones", "init_args": steps},
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"filename": "last", "enable_version_counter": False},
        },
    ]
    return {"trainer": {"callbacks": callbacks}}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory, small: Path) -> tuple[Path, Path]:
    """The checkpoints of two steps of each stage."""
    folder = tmp_path_factory.mktemp("stages")
    first, second = (folder / f"stage{n}/version_0/checkpoints/last.ckpt" for n in (1, 2))
    prepared = folder / "prepared.yaml"
    prepared.write_text(yaml.safe_dump(preparation(folder / "cache")))
    for number, more in ((1, ["-c", str(prepared)]), (2, ["--model.start_from", str(first)])):
        words = ["fit", "-c", str(TINY / f"bubogpt_stage{number}.yaml"), "-c", str(small), *more]
        assert avcap([*words, "--trainer.default_root_dir", str(folder / f"stage{number}")]) == 0
    return first, second


def test_stage_1_holds_what_was_prepared(stages: tuple[Path, Path]) -> None:
    held = torch.load(stages[0], weights_only=True)["state_dict"]
    files = sorted((stages[0].parents[3] / "cache").rglob("*.safetensors"))
    assert [path.name.partition("-")[0] for path in files] == ["audio", "language", "vision"]
    prepared = {name: value for path in files for name, value in load_file(path).items()}
    for name, value in prepared.items():
        assert torch.equal(held[f"model.{name.replace('joiner_qformer', 'joiner.qformer')}"], value), name
    assert {name.split(".")[0] for name in prepared} == {
        *("audio_encoder", "language", "vision_encoder", "vision_joiner_qformer")
    }


def test_stage_2_goes_on_from_stage_1(stages: tuple[Path, Path], small: Path, tmp_path: Path) -> None:
    first, second = (torch.load(path, weights_only=True) for path in stages)
    frozen = {name for name in first["state_dict"] if "encoder." in name or "qformer." in name}
    assert frozen
    assert frozen.isdisjoint(second["state_dict"])
    for name in ("model.audio_joiner.projection.weight", "model.vision_joiner.projection.weight"):
        assert not torch.equal(first["state_dict"][name], second["state_dict"][name])
    words = ["test", "-c", str(TINY / "bubogpt_stage2.yaml"), "-c", str(small), "--ckpt_path", str(stages[1])]
    more = ["--model.start_from", str(stages[0]), "--trainer.default_root_dir", str(tmp_path)]
    assert avcap([*words, *more]) == 0
    (captions,) = tmp_path.rglob("test_captions.jsonl")
    assert len(captions.read_text().splitlines()) > 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A picture, and two seconds of stereo sound at 8 kHz."""
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (50, 30), (10, 200, 30)).save(folder / "a.jpg")
    noise = np.random.default_rng(0).normal(0, 0.1, (16_000, 2)).astype(np.float32)
    soundfile.write(folder / "b.wav", noise, 8_000)
    return folder / "a.jpg", folder / "b.wav"


def test_one_question(stages: tuple[Path, Path], files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "--checkpoint", str(stages[1]), "--image", str(files[0]), "--audio", str(files[1])]
    first = call(capsys, avcap, [*words, "--greedy", "--max_new_tokens", "8", "what is it"])
    assert (first.code, first.err) == (0, "")
    assert first.out.strip()
    drawn = [call(capsys, avcap, [*words, "--seed", seed, "--max_new_tokens", "8", "what"]).out for seed in "112"]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_conversation(
    stages: tuple[Path, Path],
    files: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [
        f"/image {files[0]}",
        "what is it",
        "",
        f"/audio {files[1]}",
        "and this",
        "/audio no.wav",
        "/play",
        "/reset",
    ]
    lines += ["<Audio><ModalityHere></Audio>", "what is it", "/quit", "never asked"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    words = ["chat", "--checkpoint", str(stages[1]), "--greedy", "--max_new_tokens", "4"]
    outcome = call(capsys, avcap, words)
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 3
    told = outcome.err.splitlines()
    assert ["no.wav" in told[0], "/image FILE" in told[1], "add the picture or sound" in told[2]] == [True] * 3


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["what"], 2, "no system given"),
        (["what", "-c", "CONFIG", "--image", "no.jpg"], 2, "no.jpg does not exist"),
        (["what", "-c", "CONFIG", "--temperature", "0"], 2, "--temperature is 0.0"),
        (["what", "-c", "CONFIG", "--beams", "0"], 2, "--beams is 0"),
        (["what", "-c", "CONFIG", "--imag", "x"], 2, "did you mean --image"),
        (["what", "-c", "LAVCAP"], 2, "LAVCap does not chat"),
    ],
)
def test_what_cannot_be_asked(words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"CONFIG": "bubogpt_stage1.yaml", "LAVCAP": "lavcap.yaml"}
    arguments = [str(TINY / names[word]) if word in names else word for word in words]
    outcome = call(capsys, avcap, ["chat", *arguments])
    assert outcome.code == code
    assert said in outcome.err


# -- official files ------------------------------------------------------------------------------------------------


def released(case: GoldenCase, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The case's weights as the files that the released code reads, and a configuration that names them."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = case.config["config"]
    weights = case.weights("weights.")
    llama = {n.removeprefix("llama_model."): w for n, w in weights.items() if n.startswith("llama_model.")}
    sizes = {k: config["llama"][k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")}
    heads = {"num_attention_heads": config["llama"]["num_attention_heads"], "vocab_size": 420}
    language = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    language.load_state_dict({name: value for name, value in llama.items() if "inv_freq" not in name})
    language.save_pretrained(folder / "vicuna")
    AutoTokenizer.from_pretrained(GOLDEN / "bubogpt").save_pretrained(folder / "vicuna")
    encoder = {n.removeprefix("multimodal_encoder."): w for n, w in weights.items() if "multimodal_encoder." in n}
    eva = "modality_trunks.vision."
    save_file({n.removeprefix(eva): w for n, w in encoder.items() if n.startswith(eva)}, folder / "eva.safetensors")
    save_file({n: w for n, w in encoder.items() if ".audio." in n}, folder / "imagebind.safetensors")
    qformer = "multimodal_joiner.modality_qformers.vision."
    blip2 = {n.removeprefix(qformer): w for n, w in weights.items() if n.startswith(qformer)}
    norm = "modality_postprocessors.vision."
    blip2 |= {n.replace(norm, "ln_vision."): w for n, w in encoder.items() if n.startswith(norm)}
    torch.save({"model": blip2}, folder / "blip2.pth")
    trained = {n: w for n, w in weights.items() if n.startswith("multimodal_joiner.") and not n.startswith(qformer)}
    trained["llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(4)
    torch.save({"model": trained, "optimizer": {}, "config": {}, "scaler": {}, "epoch": 9}, folder / "bubogpt.pth")
    vision, audio = config["vision"], config["audio"]
    size = config["qformer"]
    joiner = {"embed_dim": size["hidden"], "depth": size["layers"], "num_heads": size["heads"]}
    joiner |= {"mlp_dim": size["intermediate"], "cross_attention_frequency": size["cross_attention_freq"]}
    content = yaml.safe_load((tree.ROOT / "configs/bubogpt.yaml").read_text())
    arguments = content["model"]["init_args"]
    arguments["language"] |= {"source": str(folder / "vicuna"), "dtype": "float32"}
    mel = {"num_mel_bins": audio["mel_bins"], "target_length": audio["frames"]}
    tower = {"embed_dim": audio["embed_dim"], "depth": audio["blocks"], "num_heads": audio["heads"]}
    arguments["audio"] = {"checkpoint": str(folder / "imagebind.safetensors"), "encoder": mel | tower, "clips": mel}
    eva_size = {"image_size_px": vision["image_size"], "patch_size": vision["patch_size"], "depth": vision["depth"]}
    eva_size |= {"embed_dim": vision["embed_dim"], "num_heads": vision["num_heads"], "mlp_dim": vision["mlp_hidden"]}
    arguments["vision"] = {"checkpoint": str(folder / "eva.safetensors"), "encoder": eva_size}
    arguments["vision"]["norm_checkpoint"] = arguments["vision_joiner"]["qformer_checkpoint"] = str(
        folder / "blip2.pth"
    )
    arguments["audio_joiner"]["qformer"] = joiner | {"num_queries": size["queries_audio"]}
    arguments["vision_joiner"]["qformer"] = joiner | {"num_queries": size["queries_vision"]}
    arguments["prompts"] |= {"released_layout": True, "max_text_tokens": case.config["max_txt_len"]}
    (folder / "bubogpt.yaml").write_text(yaml.safe_dump(content))
    return folder / "bubogpt.yaml", trained


def test_official_files_give_the_official_loss_and_come_back_bit_by_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = listed_cases("bubogpt", "end_to_end_audio_vision", {"": 1e-5})
    config, trained = released(case, tmp_path)
    words = ["convert", "bubogpt", str(tmp_path / "bubogpt.pth"), "--out", str(tmp_path / "b.ckpt"), "-c", str(config)]
    outcome = call(capsys, avcap, words)
    assert outcome.code == 0, outcome.err
    system = load_system(tmp_path / "b.ckpt").system
    assert isinstance(system, BuboGPT)
    model = system.model
    assert model.audio_encoder is not None
    assert model.vision_encoder is not None
    rows = []
    for prompt, answer in zip(case.config["prompts"], case.config["text_input"], strict=True):
        row = prompt_row(model.language, model.prompts, prompt, ("vision", "audio"), True)
        row.answer = answer_ids(model.language, model.prompts, answer)
        rows.append(row)
    with torch.no_grad():
        audio = model.joiners["audio"](model.audio_encoder(case["in.audio"]))
        vision = model.joiners["vision"](model.vision_encoder(case["in.vision"]))
        text = assemble(model.language, rows, {"audio": audio, "vision": vision}, released_layout=True)
        case.check("out.loss", model.language.loss(text)[None])
    words = ["convert", "bubogpt", str(tmp_path / "b.ckpt"), "--out", str(tmp_path / "back.safetensors")]
    assert call(capsys, avcap, [*words, "-c", str(config), "--reverse"]).code == 0
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == trained.keys()
    assert all(torch.equal(back[name], value) for name, value in trained.items())
