"""Two processes (gloo) train, score and caption like one: same losses, same weights, same metrics, same captions.

VLRM's update is in test_vlrm.py, ZerAuCap from the command line in test_zeraucap.py.
"""

from __future__ import annotations

import csv
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from avcap_zoo.accelerators.sharded import ShardedBaseStrategy, language_models
from avcap_zoo.backbones.language import GenerationSettings, PrefixedText
from avcap_zoo.batch import Batch
from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.base import System
from avcap_zoo.systems.bubogpt import BuboGPT
from avcap_zoo.systems.captions import CaptionSystem
from avcap_zoo.systems.lavcap import LAVCap
from avcap_zoo.systems.lavcap.preparation import PrepareBackbones
from avcap_zoo.systems.vlrm import VLRM
from avcap_zoo.systems.vlrm.module import MonitorSettings
from avcap_zoo.systems.zeraucap import ZerAuCap
from tests.integration.tiny import tiny_data, tiny_lavcap, tiny_trainer
from tests.integration.tiny_bubogpt import mixed_batch, tiny_bubogpt
from tests.unit.systems.vlrm import toy
from tests.unit.systems.zeraucap import toy as zeraucap_toy

pytestmark = pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")

Trained = TypeVar("Trained", bound=System)


def processes(number: int) -> dict[str, Any]:
    """Options of a Trainer with Lightning's own checkpoints."""
    return {"devices": number, "strategy": "ddp_fork", "plugins": []} if number > 1 else {"devices": 1}


def with_plain_steps(system: Trained) -> Trained:
    """The system with its model, and SGD: where a gradient is 0 but for rounding, Adam makes a full step."""
    system.configure_model()
    trained = [p for p in system.parameters() if p.requires_grad]
    system.configure_optimizers = lambda: torch.optim.SGD(trained, lr=0.1)  # type: ignore[method-assign]
    return system


def still_lavcap() -> LAVCap:
    """A LAVCap whose step draws no random numbers: clips that are shared out otherwise would draw others."""
    torch.manual_seed(0)
    system = tiny_lavcap(training="lora")
    system.audio.lora.dropout = system.language.lora.dropout = 0.0
    system.audio.augment_bins = system.audio.augment_frames = 0
    system.audio.encoder.frozen_batch_norm = "eval"
    system.prompts.training = (system.prompts.evaluation,)
    return with_plain_steps(system)


def ends_often(model: Any, end: int, factor: int = 4) -> None:
    """Make the end token likely, so that captions end at different times."""
    with torch.no_grad():
        model.get_output_embeddings().weight[end] *= factor


def still_bubogpt() -> BuboGPT:
    """A BuboGPT whose step draws no random numbers."""
    torch.manual_seed(0)
    system = tiny_bubogpt()
    system.audio.mix_bins = system.audio.mix_frames = 0
    system.vision.augment = False
    system.audio.clips.clip_duration_s = 2.0  # of the longest sound: nothing to draw
    for joiner in (system.audio_joiner, system.vision_joiner):
        joiner.qformer.dropout = 0.0
    return with_plain_steps(system)


def trained_tensors(system: System) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in system.named_parameters() if p.requires_grad}


def steps(folder: Path) -> list[dict[str, float]]:
    """What was logged, by step; rates of clips apart."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if v and not k.endswith("clips_per_s")} for row in rows]


def rows(path: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["caption"]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())]


def assert_same_run(one: Path, two: Path, systems: tuple[System, System]) -> None:
    alone, together = steps(one), steps(two)
    assert len(alone) == len(together) > 1
    for wanted, found in zip(alone, together, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    wanted_tensors, found_tensors = map(trained_tensors, systems)
    assert wanted_tensors.keys() == found_tensors.keys()
    for name, tensor in wanted_tensors.items():
        torch.testing.assert_close(found_tensors[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_lavcap(scenes_root: Path, tmp_path: Path) -> None:
    systems = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        system = still_lavcap()
        # Captions of different lengths: a mean of the processes' means would weigh their words differently.
        data = tiny_data(scenes_root, batch_size=4 // number, eval_batch_size=4)
        trainer = tiny_trainer(folder, max_steps=3, val_check_interval=3, **processes(number))
        trainer.fit(system, datamodule=data)
        tiny_trainer(folder / "test", **processes(number)).test(system, datamodule=data, verbose=False)
        tiny_trainer(folder / "predict", **processes(number)).predict(system, datamodule=data, return_predictions=False)
        systems.append(system)
    one, two = tmp_path / "1", tmp_path / "2"
    assert any("val/cider" in row for row in steps(one))
    assert_same_run(one, two, (systems[0], systems[1]))
    for kind in ("test/test_captions.jsonl", "predict/predictions.jsonl"):
        assert rows(two / kind) == rows(one / kind)
        assert len(rows(one / kind)) == 6
    alone, together = (json.loads((folder / "test/test_scores.json").read_text()) for folder in (one, two))
    assert together["scores"] == pytest.approx(alone["scores"], abs=1e-9)


# What each of two processes has: first everything, then sounds on one and pictures on the other, then nothing but text,
# at last that on one of them.
MIXTURES = [
    (("picture", "both"), ("sound", "none")),
    (("picture", "picture"), ("sound", "sound")),
    (("none", "none"), ("none", "none")),
    (("sound", "picture"), ("both", "none")),
    (("picture", "sound"), ("none", "none")),
]


def part_of(batch: Batch, share: slice) -> Batch:
    values: dict[str, Any] = {n: value[share] for n, value in vars(batch).items() if isinstance(value, list | Tensor)}
    return replace(batch, **values)


class Keeper(Callback):
    """Saves a checkpoint at the end of a fit, and what of the gradients of the adapters is 0."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        adapters = {name: p.grad for name, p in pl_module.named_parameters() if "lora_B" in name}
        still = [name for name, gradient in adapters.items() if gradient is None or not gradient.any()]
        if trainer.global_step == 0 and trainer.is_global_zero:
            self.path.with_suffix(".json").write_text(json.dumps([len(adapters), still]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class Shares:
    """Each process has its share of every batch; of two the first has so many clips, or half of them."""

    def __init__(self, batches: list[Batch], system: System, *firsts: int) -> None:
        self.batches = batches
        self.system = system
        self.firsts = firsts or tuple(len(batch) // 2 for batch in batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        trainer = self.system.trainer
        for batch, first in zip(self.batches, self.firsts, strict=True):
            share = slice(first, None) if trainer.global_rank else slice(first)
            yield batch if trainer.world_size == 1 else part_of(batch, share)


def run_bubogpt(folder: Path, options: Callable[[], dict[str, Any]]) -> BuboGPT:
    """Fits and predicts."""
    batches = [mixed_batch([*first, *second]) for first, second in MIXTURES]
    for number, batch in enumerate(batches):
        batch.caption = ["a dog", "a dog barks and rain falls", "it rains", "a"][number:] + ["a red car"] * number
    system = still_bubogpt()
    ends_often(system.model.language.model, system.model.language.tokenizer.eos_token_id)
    tiny_trainer(folder, max_steps=5, **options()).fit(system, Shares(batches, system))
    tiny_trainer(folder / "predict", **options()).predict(system, Shares(batches[:1], system), return_predictions=False)
    return system


def test_bubogpt_on_batches_that_lack_a_modality_on_one_process(tmp_path: Path) -> None:
    systems = [run_bubogpt(tmp_path / str(number), partial(processes, number)) for number in (1, 2)]
    assert_same_run(tmp_path / "1", tmp_path / "2", (systems[0], systems[1]))
    alone, together = (rows(tmp_path / str(number) / "predict/predictions.jsonl") for number in (1, 2))
    assert alone == together
    assert len(alone) == 4


def vlrm_data(root: Path) -> ScenesDataModule:
    counts = {"num_train": 24, "num_val": 6, "num_test": 6}
    return ScenesDataModule(
        str(root), num_frames=1, image_size_px=16, eval_batch_size=4, modalities=("visual",), **counts
    )


def test_vlrm_is_scored_and_captions(scenes_root: Path, tmp_path: Path) -> None:
    found = []
    for number in (1, 2):
        torch.manual_seed(0)
        system = toy.system()
        system.configure_model()
        trainer = tiny_trainer(tmp_path / str(number), **processes(number))
        scores = trainer.test(system, datamodule=vlrm_data(scenes_root), verbose=False)
        found.append((rows(tmp_path / str(number) / "test_captions.jsonl"), scores))
    assert len(found[0][0]) == 6
    assert found[0][0] == found[1][0]
    assert found[1][1][0] == pytest.approx(found[0][1][0], abs=1e-6)


# -- frozen layers that are shared out: every system, in every verb that it has ----------------------------------------

Options = Callable[[], dict[str, Any]]


def predict(system: CaptionSystem, folder: Path, batches: list[Batch], options: Options) -> None:
    """Predict on batches of which the first of two processes has nothing, and one clip."""
    shares = Shares(batches, system, 0, 1)
    tiny_trainer(folder / "predict", **options()).predict(system, shares, return_predictions=False)


def fit_lavcap(folder: Path, root: Path, options: Options) -> LAVCap:
    system = still_lavcap()
    ends_often(system.model.language.model, system.model.language.tokenizer.eos_token_id)
    of_trainer = options()
    data = tiny_data(root, batch_size=4 // of_trainer["devices"], eval_batch_size=2)
    keeper = Keeper(folder / "end.ckpt")
    tiny_trainer(folder, max_steps=2, val_check_interval=2, callbacks=[keeper], **of_trainer).fit(system, data)
    return system


def fit_vlrm(folder: Path, options: Options) -> VLRM:
    torch.manual_seed(2)
    monitor = MonitorSettings(every_n_steps=1, num_images=2)
    update = {"gradient_checkpointing": True, "micro_batch_size": 2, "sampling_batch_size": 1}
    system = toy.system(toy.CHEAP, monitor, **update)
    system.sampling.top_k = 1  # captions that depend on no random numbers
    system.configure_model()
    ends_often(system.model.captioner.language_model, system.model.captioner.end_id, factor=8)
    batches = [toy.batch(4, seed=seed) for seed in range(2)]
    trainer = tiny_trainer(folder, max_steps=2, callbacks=[Keeper(folder / "end.ckpt")], **options())
    trainer.fit(system, Shares(batches, system, 3, 1), Shares(batches, system, 1, 3))
    predict(system, folder, batches, options)
    return system


def run_zeraucap(folder: Path, options: Options) -> ZerAuCap:
    """Test, and predict with a look ahead at all candidates; the system of the latter."""
    own = folder / str(os.getpid())  # for its list of keywords
    own.mkdir(parents=True)
    batches = [zeraucap_toy.sounds(0.8, 0.5, 0.9, seed=seed) for seed in range(2)]
    for number, batch in enumerate(batches):
        batch.clip_ids = [f"{number}-{clip_id}" for clip_id in batch.clip_ids]
        batch.captions = [["a dog barks"] for _ in batch.clip_ids]
    plain, ahead = (
        zeraucap_toy.built(zeraucap_toy.toy_system(own, guided={"alpha": alpha, "decoding_length": 30}))
        for alpha in (0.0, 0.3)
    )
    tiny_trainer(folder / "test", **options()).test(plain, Shares(batches, plain, 1, 2), verbose=False)
    predict(ahead, folder, batches, options)
    return ahead


def run_all(folder: Path, root: Path, options: Options) -> list[CaptionSystem]:
    return [
        fit_lavcap(folder / "lavcap", root, options),
        run_bubogpt(folder / "bubogpt", options),
        fit_vlrm(folder / "vlrm", options),
        run_zeraucap(folder / "zeraucap", options),
    ]


def shared_out() -> dict[str, Any]:
    return {"devices": 2, "strategy": ShardedBaseStrategy(min_layer_parameters=1000, timeout=timedelta(seconds=60))}


def share_layers(rank: int, folder: str, root: str, port: int) -> None:
    """One of two processes."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    systems = run_all(Path(folder), Path(root), shared_out)
    for system in systems:
        (model,) = language_models(system)
        (stack,) = (part for name, part in model.named_modules() if name.endswith(".layers"))
        own = sum(p.to_local().numel() for p in stack.parameters() if isinstance(p, DTensor))
        whole = sum(p.numel() for p in stack.parameters() if not p.requires_grad)
        assert own * 2 == whole > 0
    # Who is finished goes on with the others: all stop where the first of them has no positions left.
    lavcap = systems[0]
    assert isinstance(lavcap, LAVCap)
    embeds = torch.zeros(1, (120, 10)[rank], 32)
    text = PrefixedText(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), torch.empty(0))
    ids = lavcap.model.language.generate(text, GenerationSettings(num_beams=1, max_new_tokens=50, min_length=8))
    assert ids.shape == (1, 8)


def test_frozen_layers_that_are_shared_out(scenes_root: Path, tmp_path: Path) -> None:
    run_all(tmp_path / "1", scenes_root, lambda: processes(1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (str(tmp_path / "2"), str(scenes_root), port)
    mp.start_processes(share_layers, args=arguments, nprocs=2, start_method="fork")  # type: ignore[attr-defined,no-untyped-call]
    one, two = tmp_path / "1", tmp_path / "2"
    for name, num_adapters, rel in (("lavcap", 4, 1e-5), ("bubogpt", 0, 1e-5), ("vlrm", 4, 1e-3)):
        for wanted, found in zip(steps(one / name), steps(two / name), strict=True):
            assert found == pytest.approx(wanted, rel=rel, abs=1e-5), name
        if not num_adapters:
            continue
        assert json.loads((two / name / "end.json").read_text()) == [num_adapters, []]  # every lora_B has a gradient
        # The checkpoint is that of one device, with the weights of the toy base, which exist nowhere else.
        alone, together = (torch.load(folder / name / "end.ckpt", weights_only=True) for folder in (one, two))
        assert together["avcap_zoo"]["frozen"] == alone["avcap_zoo"]["frozen"]
        assert together["state_dict"].keys() == alone["state_dict"].keys()
        for key, tensor in alone["state_dict"].items():
            torch.testing.assert_close(together["state_dict"][key], tensor, rtol=rel, atol=2e-5, msg=key)
    shown = "figures/captions-000001.png"
    assert (one / "vlrm" / shown).read_bytes() == (two / "vlrm" / shown).read_bytes()
    assert any("val/fluency" in row for row in steps(two / "vlrm"))
    for name in (
        "bubogpt/predict/predictions",
        "vlrm/predict/predictions",
        "zeraucap/predict/predictions",
        "zeraucap/test/test_captions",
    ):
        captions = rows(one / f"{name}.jsonl")
        assert rows(two / f"{name}.jsonl") == captions
        assert len({len(caption.split()) for _, caption in captions}) > 1, "all end alike: nobody waits"


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """Removes what a Trainer of one process leaves behind: a process group, and its place in the environment."""
    before = dict(os.environ)
    yield
    torch.distributed.destroy_process_group()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]


@pytest.mark.usefixtures("group_of_one")
def test_what_cannot_be_shared_out(scenes_root: Path, tmp_path: Path) -> None:
    preparing = PrepareBackbones(audio_steps=1, vision_steps=0, language_steps=1, batch_size=2)
    trainer = tiny_trainer(tmp_path, strategy=shared_out()["strategy"], callbacks=[preparing])
    with pytest.raises(
        ConfigError, match=r"PrepareBackbones prepares audio_encoder, language on one process, .*strategy ddp"
    ):
        trainer.fit(still_lavcap(), tiny_data(scenes_root))
    strategy = ShardedBaseStrategy()
    with pytest.raises(ConfigError, match="LAVCap has none of 20000000 parameters: use --trainer"):
        tiny_trainer(tmp_path, strategy=strategy).test(still_lavcap(), tiny_data(scenes_root), verbose=False)
