"""Whatever is trained here goes on in mid-epoch as if it had never stopped; LAVCap in test_signals.py."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from avcap_zoo.backbones.audio_text import CLAPSettings
from avcap_zoo.backbones.language import CausalLanguageModel, LanguageSettings
from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.data_modules.instructions import InstructionSet
from avcap_zoo.data_modules.scenes.instructions import SceneInstructionsDataModule
from avcap_zoo.systems.base import OptimizerSettings, System
from avcap_zoo.systems.vlrm.module import MonitorSettings
from avcap_zoo.systems.zeraucap.pretraining import CLAPPretraining
from tests.integration.test_lavcap import assert_same, load
from tests.integration.tiny import LANGUAGE, tiny_data, tiny_lavcap, tiny_trainer
from tests.integration.tiny_bubogpt import tiny_bubogpt
from tests.unit.systems.vlrm import toy as vlrm
from tests.unit.systems.zeraucap.test_pretraining import language_pretraining
from tests.unit.systems.zeraucap.toy import AUDIO_TEXT, SAMPLE_RATE_HZ, TOWER, keyword_file

Parts = tuple[System, CaptionDataModule]
STEPS_AN_EPOCH = 5
CLAP = {
    "embed_dim": 16,
    "front_end": {
        "sampling_rate": SAMPLE_RATE_HZ,
        "feature_size": 16,
        "fft_window_size": 256,
        "hop_length": 640,
        "max_length_s": 10,
        "frequency_max": 7000,
    },
    "audio": TOWER | {"patch_size": 4, "patch_stride": [4, 4], "num_mel_bins": 16},
    "text": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
}


def clap(root: Path, folder: Path) -> Parts:
    """What is trained for ZerAuCap: its ears."""
    settings = replace(AUDIO_TEXT, kind="clap", clap=CLAPSettings(source=None, config=CLAP, max_text_tokens=12))
    system = CLAPPretraining(settings, str(keyword_file(folder)), str(folder / "clap"), OptimizerSettings(lr=1e-3))
    return system, tiny_data(root, modalities=("audio",))


def language(root: Path, folder: Path) -> Parts:
    """What is trained for ZerAuCap: its language model."""
    return language_pretraining(folder, bare_share=0.3, wrong_share=0.2), tiny_data(root, modalities=("audio",))


def captions_by_rewards(root: Path, folder: Path) -> Parts:
    """VLRM, whose optimisation is manual."""
    system = vlrm.system(vlrm.CHEAP, MonitorSettings(every_n_steps=4, num_images=2))
    return system, tiny_data(root, num_frames=1, image_size_px=16, modalities=("visual",))


def instructions(root: Path, *names: str) -> SceneInstructionsDataModule:
    known = {"pictures": InstructionSet("scene_pictures"), "sounds": InstructionSet("scene_sounds")}
    known["unrelated"] = InstructionSet("negatives", pictures="pictures", sounds="sounds")
    return SceneInstructionsDataModule(
        str(root),
        sets={name: known[name] for name in names},
        batches_per_epoch=STEPS_AN_EPOCH,
        num_train=24,
        num_val=6,
        num_test=6,
        image_size_px=28,
        batch_size=3,
    )


def stage_1(root: Path, folder: Path) -> Parts:
    """BuboGPT's first stage: Q-Former and projection of sound."""
    return tiny_bubogpt(vision="frozen", audio="full"), instructions(root, "sounds")


def stage_2(root: Path, folder: Path) -> Parts:
    """BuboGPT's second stage: the projections, from a checkpoint of the first."""
    torch.manual_seed(7)
    first = tiny_bubogpt(vision="full", audio="full")
    first.configure_model()
    content = {"state_dict": first.state_dict()}
    first.on_save_checkpoint(content)
    torch.save(content, folder / "stage1.ckpt")
    seed_everything(1, verbose=False)
    system = tiny_bubogpt(audio="projection", start_from=str(folder / "stage1.ckpt"))
    return system, instructions(root, "pictures", "sounds", "unrelated")


@pytest.mark.parametrize("parts", [clap, language, captions_by_rewards, stage_1, stage_2])
def test_a_run_of_some_epochs_goes_on_in_mid_epoch(
    parts: Callable[[Path, Path], Parts], scenes_root: Path, tmp_path: Path
) -> None:
    def run(name: str, ckpt_path: Path | None = None) -> dict[str, Any]:
        seed_everything(1, verbose=False)
        system, data = parts(scenes_root, tmp_path)
        options: dict[str, Any] = {"max_epochs": 2, "limit_val_batches": 1}
        tiny_trainer(tmp_path / name, every=1, **options).fit(system, datamodule=data, ckpt_path=ckpt_path)
        return load(tmp_path / name / f"checkpoints/step={2 * STEPS_AN_EPOCH}.ckpt")

    whole, stopped_at = run("whole"), STEPS_AN_EPOCH + 2
    middle = tmp_path / f"whole/checkpoints/step={stopped_at}.ckpt"
    resumed = run("resumed", middle)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "avcap_zoo"):
        assert_same(resumed[key], whole[key], key)
    before = load(middle)["state_dict"]
    assert any(not torch.equal(before[name], value) for name, value in whole["state_dict"].items())


class Draws(Callback):
    """Puts a random number of each process and step in a file."""

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        folder = Path(trainer.default_root_dir)
        (folder / f"drawn-{trainer.global_step}-{trainer.global_rank}").write_text(
            f"{random.random()} {torch.rand(())}"
        )


def test_processes_draw_random_numbers_of_their_own_and_again_when_a_run_goes_on(
    scenes_root: Path, tmp_path: Path
) -> None:
    def run(name: str, ckpt_path: Path | None = None) -> tuple[dict[str, Any], dict[str, str]]:
        seed_everything(1, verbose=False)
        system, data = tiny_lavcap(training="lora"), tiny_data(scenes_root, batch_size=3)
        options: dict[str, Any] = {"devices": 2, "strategy": "ddp_fork", "limit_val_batches": 0, "callbacks": [Draws()]}
        tiny_trainer(tmp_path / name, max_steps=4, every=1, **options).fit(system, datamodule=data, ckpt_path=ckpt_path)
        drawn = {path.name: path.read_text() for path in (tmp_path / name).glob("drawn-*")}
        return load(tmp_path / name / "checkpoints/step=4.ckpt"), drawn

    whole, drawn = run("whole")
    assert len(set(drawn.values())) == len(drawn) == 8
    resumed, again = run("resumed", tmp_path / "whole/checkpoints/step=2.ckpt")
    assert again == {name: numbers for name, numbers in drawn.items() if name[len("drawn-")] in "23"}
    for key in ("state_dict", "optimizer_states", "loops", "avcap_zoo"):
        assert_same(resumed[key], whole[key], key)


@pytest.mark.parametrize(
    "config",
    [
        LANGUAGE | {"tie_word_embeddings": True},
        {"model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48}
        | {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 128},
    ],
    ids=["llama", "opt"],
)
def test_a_fully_trained_language_model_with_a_tied_head_fits_its_checkpoint(
    config: dict[str, Any], tmp_path: Path
) -> None:
    made = CausalLanguageModel(LanguageSettings(source=None, config=config, dtype="float32", training="full"))
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)

    def built(bubogpt: bool) -> System:
        torch.manual_seed(0)
        system = tiny_bubogpt() if bubogpt else tiny_lavcap(training="full")
        system.language.source, system.language.training = str(tmp_path), "full"
        system.configure_model()
        return system

    for bubogpt in (True, False):
        trained = built(bubogpt)
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.1 * parameter.requires_grad)
        content: dict[str, Any] = {"state_dict": trained.state_dict()}
        trained.on_save_checkpoint(content)
        again = built(bubogpt)
        again.on_load_checkpoint(content)
        again.load_state_dict(content["state_dict"], strict=False)
        assert_same(again.state_dict(), trained.state_dict())
