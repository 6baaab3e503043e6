"""VLRM trains, resumes, is scored, captions and runs in two processes, on real files."""

from __future__ import annotations

import csv
import gc
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import yaml
from lightning.pytorch import LightningModule, Trainer, seed_everything
from PIL import Image
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

from avcap_zoo.batch import Batch
from avcap_zoo.cli.main import lightning
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.errors import ConfigError, NonFiniteLossError
from avcap_zoo.systems.signals import SaveOnSignal
from avcap_zoo.systems.vlrm import VLRM
from avcap_zoo.systems.vlrm.model import Rollout
from avcap_zoo.systems.vlrm.module import MonitorSettings, warm_up_share
from avcap_zoo.systems.vlrm.rewards import RewardSettings
from tests.integration.tiny import tiny_trainer
from tests.unit.systems.vlrm import toy


def scenes(root: Path, **options: Any) -> ScenesDataModule:
    settings: dict[str, Any] = {"num_frames": 1, "image_size_px": 16, "batch_size": 5, "modalities": ("visual",)}
    return ScenesDataModule(str(root), num_train=24, num_val=6, num_test=6, **settings | options)


def fit(root: Path, folder: Path, system: VLRM | None = None, ckpt_path: Path | None = None, **options: Any) -> VLRM:
    seed_everything(1, verbose=False)
    system = system or toy.system(toy.ALL, MonitorSettings(every_n_steps=2, num_images=2))
    tiny_trainer(folder, **options).fit(system, datamodule=scenes(root), ckpt_path=ckpt_path)
    return system


def loader(*batches: Batch) -> DataLoader[Batch]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


def train(system: VLRM, folder: Path, *batches: Batch, **options: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=bool(options.get("callbacks")),
        enable_model_summary=False,
        max_epochs=1,
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(system, loader(*batches))
    return trainer


def trained_tensors(system: VLRM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in system.named_parameters() if p.requires_grad}


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=2e-5, msg=name)


def seeded_system(**update: Any) -> VLRM:
    """A system whose captions do not depend on random numbers: only the likeliest token is drawn from."""
    torch.manual_seed(0)
    system = toy.system(toy.ALL, **update)
    system.sampling.top_k = 1
    system.configure_model()
    return system


# -- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resumed_run_is_bitwise_the_uninterrupted_one(scenes_root: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 6, "val_check_interval": 4, "check_val_every_n_epoch": None}
    fit(scenes_root, tmp_path / "whole", every=1, **options)
    whole = torch.load(tmp_path / "whole/checkpoints/step=6.ckpt", weights_only=True)
    middle = tmp_path / "whole/checkpoints/step=3.ckpt"
    fit(scenes_root, tmp_path / "resumed", every=1, ckpt_path=middle, **options)
    resumed = torch.load(tmp_path / "resumed/checkpoints/step=6.ckpt", weights_only=True)
    assert whole["global_step"] == resumed["global_step"] == 6
    assert len(whole["optimizer_states"]) == 2
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], tensor), name
    assert torch.equal(resumed["avcap_zoo"]["shown"]["frames"], whole["avcap_zoo"]["shown"]["frames"])
    assert resumed["avcap_zoo"]["shown"]["before"] == whole["avcap_zoo"]["shown"]["before"]

    with (tmp_path / "whole/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == list(range(6))
    logged = {
        "reward_itm reward_retrieval reward_reference reward_bad_phrases reward_repeated_words reward_missing_end",
        "missing_end caption_length return value entropy share_rare explained_variance",
        "loss_value loss_policy grad_norm_value grad_norm_policy",
    }
    for name in " ".join(logged).split():
        assert all(torch.tensor(float(row[f"train/{name}"])).isfinite() for row in rows), name
    assert 2 < float(rows[0]["train/caption_length"]) <= 8
    assert float(rows[0]["train/missing_end"]) == -float(rows[0]["train/reward_missing_end"])
    pictures = sorted((tmp_path / "whole/figures").glob("captions-*.png"))
    assert [path.name for path in pictures] == [f"captions-{step:06d}.png" for step in (2, 4, 6)]
    assert Image.open(pictures[0]).size[0] > 400


def test_checkpoint_of_a_model_with_files_of_its_own_holds_the_trained_tensors_only(tmp_path: Path) -> None:
    system = toy.system()
    system.configure_model()
    system.model.self_made = []  # as with captioner.source
    held = system.checkpoint_names()
    assert held == {name for name, p in system.named_parameters() if p.requires_grad}
    assert not any("vision_model" in name or "base_layer" in name for name in held)


def test_from_the_command_line(scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = toy.parts()
    captioner = parts["captioner"]
    rewards = {
        name: {"kind": term.kind, "weight": term.weight, "options": term.options}
        for name, term in (toy.ALL | {"cider": RewardSettings("cider", 0.5)}).items()
    }
    config = {
        "seed_everything": 1,
        "trainer": {
            "max_steps": 2,
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path),
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
        },
        "model": {
            "class_path": "vlrm",
            "init_args": {
                "captioner": {"source": None, "config": captioner.config, "dtype": "float32", "lora": {"rank": 2}},
                "sampling": {"max_new_tokens": 6},
                "rewards": rewards,
                "value_head": {"hidden_sizes": [8]},
                "update": {"micro_batch_size": 4, "optimizers": "joint"},
                "policy_optimizer": {"lr": 1.0e-3},
                "value_optimizer": {"lr": 1.0e-3},
                "generation": {"num_beams": 1, "max_new_tokens": 5},
                "scores": {"validation": ["bleu"], "test": ["bleu"], "tokenizer": "python"},
                "monitor": {"every_n_steps": 0},
            },
        },
        "data": {
            "class_path": "scenes",
            "init_args": {
                "root": str(scenes_root),
                "num_train": 24,
                "num_val": 6,
                "num_test": 6,
                "num_frames": 1,
                "image_size_px": 16,
                "batch_size": 6,
                "modalities": ["visual"],
            },
        },
    }
    path = tmp_path / "vlrm.yaml"
    path.write_text(yaml.safe_dump(config))
    assert lightning(["fit", "-c", str(path)]) in {0, None}, capsys.readouterr().err
    (checkpoint,) = tmp_path.glob("version_0/checkpoints/*.ckpt")
    assert lightning(["test", "-c", str(path), "--ckpt_path", str(checkpoint)]) in {0, None}
    (scores,) = tmp_path.glob("version_*/test_scores.json")
    summary = json.loads(scores.read_text())
    assert summary["system"] == "VLRM"
    assert summary["decode"]["no_repeat_ngram_size"] == 0
    path.write_text(yaml.safe_dump(config | {"trainer": config["trainer"] | {"gradient_clip_val": 1.0}}))  # type: ignore[operator]
    assert lightning(["fit", "-c", str(path)]) not in {0, None}
    assert "gradient" in capsys.readouterr().err


# -- one update -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", [{"optimizers": "joint"}, {"micro_batch_size": 2}, {"gradient_clip": "value"}])
def test_an_iteration_is_one_step_of_both_parts(update: dict[str, Any], tmp_path: Path) -> None:
    system = seeded_system(**update)
    before = trained_tensors(system)
    frozen = {n: p.detach().clone() for n, p in system.named_parameters() if not p.requires_grad}
    trainer = train(system, tmp_path, toy.batch(4), toy.batch(4, seed=1))
    assert trainer.global_step == 2
    moved = {name for name, value in trained_tensors(system).items() if not torch.equal(value, before[name])}
    still = set(before) - moved
    assert not still, still
    for name, parameter in system.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name])


@pytest.mark.parametrize("size", [1, 3])
def test_any_micro_batch_size_gives_the_same_update(size: int, tmp_path: Path) -> None:
    whole, parts = seeded_system(), seeded_system(micro_batch_size=size)
    for system in (whole, parts):
        train(system, tmp_path, toy.batch(5), toy.batch(5, seed=1))
    assert_close(trained_tensors(parts), trained_tensors(whole))


def test_one_optimizer_with_two_groups_is_two_optimizers(tmp_path: Path) -> None:
    systems = [seeded_system(optimizers=kind) for kind in ("per_part", "joint")]
    for system in systems:
        system.part_optimizers[1].lr = 3e-3
        train(system, tmp_path, toy.batch(4), toy.batch(4, seed=1))
    assert_close(trained_tensors(systems[1]), trained_tensors(systems[0]))


def test_the_first_learning_rate_is_zero(tmp_path: Path) -> None:
    system = seeded_system()
    for settings in system.part_optimizers:
        settings.warmup_steps = 2
    before = trained_tensors(system)
    train(system, tmp_path, toy.batch(4))
    assert all(torch.equal(value, before[name]) for name, value in trained_tensors(system).items())
    assert [warm_up_share(step, 2) for step in range(4)] == [0, 0.5, 1, 1]


@pytest.mark.parametrize(("kind", "limit"), [("norm", 1e-3), ("value", 1e-4)])
def test_gradients_are_clipped_in_each_part(kind: str, limit: float, tmp_path: Path) -> None:
    system = seeded_system(gradient_clip=kind, gradient_clip_val=limit)
    found: list[dict[str, Tensor]] = []

    def watch(optimizer: Any, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        found.append({"norm": torch.nn.utils.get_total_norm(gradients), "value": max(g.abs().max() for g in gradients)})

    handle = register_optimizer_step_pre_hook(watch)
    try:
        trainer = train(system, tmp_path, toy.batch(4))
    finally:
        handle.remove()
    assert len(found) == 2
    for name, numbers in zip(("value", "policy"), found, strict=True):
        assert float(numbers[kind]) == pytest.approx(limit, rel=1e-3)
        assert float(trainer.callback_metrics[f"train/grad_norm_{name}"]) > float(numbers["norm"])


class ExplodingSystem(VLRM):
    """Judges the second batch to be worth more than float32 can hold when squared."""

    def configure_model(self) -> None:
        super().configure_model()
        judge = self.model.judge

        def exploding(*args: Any) -> Rollout:
            rollout = judge(*args)
            rollout.returns *= 1e30 if self.global_step else 1
            return rollout

        self.model.judge = exploding  # type: ignore[method-assign,assignment]


def exploding(**update: Any) -> ExplodingSystem:
    plain = toy.system()
    return ExplodingSystem(
        **toy.parts(**update),
        policy_optimizer=plain.part_optimizers[0],
        value_optimizer=plain.part_optimizers[1],
        scores=plain.score_settings,
        monitor=plain.monitor,
    )


def test_a_loss_that_is_not_finite_takes_no_step(tmp_path: Path) -> None:
    system = exploding()
    with pytest.raises(NonFiniteLossError, match=r"not finite at step 1: loss_value inf.* on clips clip1-0, clip1-1"):
        train(system, tmp_path, toy.batch(2), toy.batch(2, seed=1))
    assert system.global_step == 1
    assert all(value.isfinite().all() for value in trained_tensors(system).values())


def test_a_loss_that_is_not_finite_is_skipped_by_option(tmp_path: Path) -> None:
    system = exploding(on_non_finite_loss="skip")
    with pytest.warns(UserWarning, match=r"step 1: loss_value inf.* on clips clip1-0, clip1-1; the batch is skipped"):
        train(system, tmp_path, toy.batch(2), toy.batch(2, seed=1))
    assert system.global_step == 1


def test_skipped_captions_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.systems.vlrm import test_rewards

    monkeypatch.setitem(__import__("sys").modules, "toy_broken", test_rewards)
    rewards = toy.CHEAP | {"odd": RewardSettings("toy_broken.Broken")}
    system = toy.system(rewards, on_non_finite_reward="skip")
    with pytest.warns(UserWarning, match="step 0: 1 captions left out, their rewards are not finite"):
        trainer = train(system, tmp_path, toy.batch(3))
    assert trainer.callback_metrics["train/reward_odd"].isfinite()


def test_what_cannot_be_trained_so_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision 16-true; use bf16-mixed"):
        train(toy.system(), tmp_path, toy.batch(2), precision="16-true")


def test_training_in_bf16(tmp_path: Path) -> None:
    system = seeded_system()
    trainer = train(system, tmp_path, toy.batch(3), precision="bf16-mixed")
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_captions_are_explained_with_a_picture() -> None:
    system = seeded_system()
    explanations = system.explain(toy.batch(2))
    assert [e.clip_id for e in explanations] == ["clip0-0", "clip0-1"]
    for explanation in explanations:
        assert explanation.picture is not None
        assert explanation.picture.ndim == 3


# -- two processes --------------------------------------------------------------------------------------------------

SHARES = (slice(0, 4), slice(4, 6))


def rows_of(batch: Batch, rows: slice) -> Batch:
    assert batch.frames is not None
    return Batch(batch.clip_ids[rows], batch.captions[rows], batch.caption[rows], frames=batch.frames[rows])


class TellToSave(SaveOnSignal):
    """Tells the second process to save as the second step begins; it has one micro-batch, and the first has two."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == batch_idx == 1:
            os.kill(os.getpid(), signal.SIGUSR1)


def work(rank: int, folder: str, port: int) -> None:
    """One of two processes, each with its share of every batch."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    system = seeded_system(micro_batch_size=3)
    batches = [rows_of(toy.batch(6, seed=seed), SHARES[rank]) for seed in range(2)]
    batches.append(rows_of(toy.batch(2), slice(0, 2 - 2 * rank)))  # none on the second: left out
    told = TellToSave()
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False, "callbacks": [told]}
    trainer = train(system, Path(folder), *batches, **options)
    assert told.path is not None
    assert torch.load(told.path, weights_only=True)["global_step"] == 1  # given up, and done again
    assert trainer.global_step == 2
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    torch.save({"tensors": trained_tensors(system), "logged": logged}, Path(folder) / f"{rank}.pt")
    del trainer
    gc.collect()  # or the threads of the process group outlive Python, and abort the process now and then
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(work, args=(str(tmp_path), port), nprocs=2)  # type: ignore[attr-defined,no-untyped-call]
    system = seeded_system()
    trainer = train(system, tmp_path, *(toy.batch(6, seed=seed) for seed in range(2)))
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert_close(found[0]["tensors"], found[1]["tensors"])
    assert_close(found[0]["tensors"], trained_tensors(system))
    for name, value in found[0]["logged"].items():
        if not name.endswith("clips_per_s"):
            assert value == pytest.approx(float(trainer.callback_metrics[name]), rel=2e-3, abs=1e-5), name
