"""What runs survive, measured: kill -9 in the midst of a save, SIGTERM, and 500 steps in the same memory.

    python -m benchmarks.reliability            all of it
    python -m benchmarks.reliability kills      one part: kills, sigterm or memory

kills: a process saves checkpoints of --megabytes one after the other, its temporary files on another disk (--tmp), and
is killed at a random moment of a save, --times times; each time the newest checkpoint must load, whole.
sigterm: `avcap fit -c configs/tiny/clap.yaml` is told to end in training and in validation; the time until the
checkpoint is there, and until the process is gone.
memory: resident memory in training after 100 steps and after 600, each system in a process of its own: LAVCap as in
configs/tiny/lavcap.yaml, ZerAuCap's CLAP, VLRM and BuboGPT's second stage of the sizes at which the tests build them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.systems.base import System
from avcap_zoo.systems.signals import CHECKPOINT_NAME
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO

ROOT = Path(__file__).parents[1]
PARTS = ("kills", "sigterm", "memory")
SYSTEMS = ("LAVCap", "ZerAuCap's CLAP", "VLRM", "BuboGPT, stage 2")
TINY = {"num_train": 64, "num_val": 16, "num_test": 2, "batch_size": 2}


def checkpoint(number: int, megabytes: int) -> dict[str, object]:
    """Ten tensors that all hold one number."""
    numbers = {f"w{k}": torch.full((megabytes * 25_000,), float(number)) for k in range(10)}
    return {"number": number, "state_dict": numbers}


def save_for_ever(folder: Path, megabytes: int, told: int) -> None:
    """Save checkpoint after checkpoint under one name; each is announced in a pipe before it is begun."""
    for number in range(1, 1_000_000):
        content = checkpoint(number, megabytes)
        os.write(told, b".")
        AtomicCheckpointIO().save_checkpoint(content, folder / "last.ckpt")


def measure_kills(folder: Path, megabytes: int, times: int, tmp: str, seed: int) -> tuple[int, float]:
    """How often the newest checkpoint was whole, and seconds of one save.

    Args:
        folder: of the checkpoint.
        megabytes: its size.
        times: kills.
        tmp: folder of temporary files, on another disk.
        seed: of the moments.
    """
    moments, whole = random.Random(seed), 0
    content = checkpoint(0, megabytes)
    begun = time.perf_counter()
    AtomicCheckpointIO().save_checkpoint(content, folder / "last.ckpt")
    save_s = time.perf_counter() - begun
    tempfile.tempdir = os.environ["TMPDIR"] = tmp
    for _ in range(times):
        news, told = os.pipe()
        child = os.fork()
        if child == 0:
            save_for_ever(folder, megabytes, told)
        os.close(told)
        for _ in range(2):
            os.read(news, 1)
        time.sleep(moments.uniform(0, save_s))  # in the second save
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        announced = 2 + len(os.read(news, 1_000))
        os.close(news)
        content = AtomicCheckpointIO().load_checkpoint(folder / "last.ckpt")
        number = content["number"]
        same = all(bool((tensor == number).all()) for tensor in content["state_dict"].values())
        whole += same and number in {announced - 1, announced}
    return whole, save_s


def measure_sigterm(folder: Path, phase: str) -> tuple[float, float]:
    """Seconds from SIGTERM until the checkpoint is there, and until the process is gone.

    Args:
        folder: of the run.
        phase: `training`, or `validation`: then nearly all the time goes there.
    """
    run = folder / phase
    data = [f"--data.init_args.{key}={value}" for key, value in TINY.items()]
    often = ["--trainer.val_check_interval", "2" if phase == "validation" else "1000000"]
    command = [sys.executable, "-m", "avcap_zoo", "fit", "-c", str(ROOT / "configs/tiny/clap.yaml")]
    command += ["--trainer.default_root_dir", str(run), "--trainer.max_steps", "1000000"]
    command += ["--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false", *often, *data]
    command += ["--data.init_args.root", str(folder / "scenes"), "--data.init_args.eval_batch_size", "2"]
    command += ["--model.init_args.keywords", str(ROOT / "configs/tiny/scene_keywords.txt")]
    command += ["--model.init_args.save_to", str(folder / "clap"), "--trainer.accelerator", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as child:
        metrics = run / "version_0/metrics.csv"
        while child.poll() is None and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 5):
            time.sleep(0.05)
        begun = time.time()
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate()
        gone_s = time.time() - begun
    if child.returncode != 128 + signal.SIGTERM:
        raise SystemExit(f"the run ended with {child.returncode}:\n{said}")
    path = run / "version_0/checkpoints" / CHECKPOINT_NAME
    AtomicCheckpointIO().load_checkpoint(path)
    return path.stat().st_mtime - begun, gone_s


def resident_mb() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def tiny_system(name: str, folder: Path) -> tuple[System, CaptionDataModule]:
    """One of `SYSTEMS` with its data in a folder."""
    if name == "LAVCap":
        from avcap_zoo.cli.parser import BuildOnly, run

        data = [f"--data.init_args.{key}={value}" for key, value in TINY.items()]
        words = ["fit", "-c", str(ROOT / "configs/tiny/lavcap.yaml"), *data, "--trainer.accelerator", "cpu"]
        built = run("lightning", [*words, "--data.init_args.root", str(folder / "scenes")], BuildOnly)
        return built.model, built.datamodule
    from tests.integration.test_resume import captions_by_rewards, clap, stage_2

    build = {"ZerAuCap's CLAP": clap, "VLRM": captions_by_rewards, "BuboGPT, stage 2": stage_2}[name]
    return build(folder / "small_scenes", folder)


def measure_memory(name: str, folder: Path, first: int, last: int) -> tuple[float, float]:
    """Resident MB of a system in training after so many steps and after so many."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    found: dict[int, float] = {}

    class Watch(Callback):
        """Notes the memory."""

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
            found[trainer.global_step] = resident_mb()

    system, data = tiny_system(name, folder)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder / "memory",
        max_steps=last,
        limit_val_batches=0,
        callbacks=[Watch()],  # no preparation of backbones
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
    )
    trainer.fit(system, datamodule=data)
    return found[first], found[last]


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        yield Path(name)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=PARTS)
    parser.add_argument("--megabytes", type=int, default=90, help="size of a checkpoint (LAVCap's at the paper's size)")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--tmp", default="/dev/shm", help="another disk than this folder's")  # noqa: S108
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process waits for ever for threads that its parent had
    with _folder() as folder:
        if "kills" in options.parts:
            whole, save_s = measure_kills(folder, options.megabytes, options.times, options.tmp, options.seed)
            print(
                f"kill -9 in a save of {options.megabytes} MB ({save_s:.2f} s), temporary files in {options.tmp}: "
                f"the newest checkpoint is whole {whole} times of {options.times}"
            )
        if "sigterm" in options.parts:
            for phase in ("training", "validation"):
                saved_s, gone_s = measure_sigterm(folder, phase)
                print(f"SIGTERM in {phase}: checkpoint after {saved_s:.2f} s, process gone after {gone_s:.1f} s")
        if "memory" in options.parts:
            for name in SYSTEMS:
                with multiprocessing.get_context("spawn").Pool(1) as process:
                    before, after = process.apply(measure_memory, (name, folder, 100, 600))
                print(
                    f"{name}: resident memory after 100 and 600 steps {before:.1f} MB, {after:.1f} MB "
                    f"({after - before:+.1f})"
                )


if __name__ == "__main__":
    main()
