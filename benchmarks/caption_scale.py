"""Captions of tar shards by 1 to 64 processes: clips per second, and what reading, writing and sharing out cost.

    python benchmarks/caption_scale.py [--processes 1 2 4 8 16 32 64] [--seconds_per_batch 0.4]

The code of `avcap caption SHARDS --out FOLDER` runs in so many real processes, on real tar files of JPEG pictures, with
a model that only waits: as long as a device would compute, which this machine has not 64 of. Every process gets the
same number of shards, so with nothing lost the time stays and the clips per second grow with the processes.

Here all of them decode and write on the cores of one machine; 64 devices come with the cores of eight. So two rates
are printed: as measured, and as it would be with a core for each process, in the seconds of the model and the
processor time of everything else. The shares are of that time; what is not the model's is split as it was measured.
What this does not show is a file system that many machines share.

Claim: with a core for each, 64 processes caption at least 90 % of 64 times what one does.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from avcap_zoo.batch import Batch
from avcap_zoo.data_modules.dataset import DecodeSettings
from avcap_zoo.serving.caption import Captioner
from avcap_zoo.serving.loading import Loaded
from avcap_zoo.serving.shards import Place, caption_shards, find_shards
from avcap_zoo.systems.base import OptimizerSettings, Requirements
from avcap_zoo.systems.captions import CaptionSystem, ScoreSettings

CLAIM = 0.9
BATCH_SIZE = 16


class Waiting(CaptionSystem):
    """Takes so many seconds for a batch, and leaves the processor alone meanwhile.

    Args:
        seconds: per batch.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(OptimizerSettings(), ScoreSettings(), {})
        self.seconds = seconds

    @property
    def requirements(self) -> Requirements:
        """Pictures."""
        return Requirements(None, ("visual",))

    def caption(self, batch: Batch) -> list[str]:
        """The same for all."""
        time.sleep(self.seconds)
        return ["a dog barks while a car drives past"] * len(batch)

    def decode_settings(self) -> dict[str, Any]:
        """None."""
        return {}


def write_shards(folder: Path, count: int, pictures: int, side_px: int) -> None:
    """Tar files of JPEG pictures of noise, all of one content."""
    draw = np.random.default_rng(0)
    with tarfile.open(folder / "content", "w") as file:
        for number in range(pictures):
            content = io.BytesIO()
            pixels = draw.integers(0, 256, (side_px // 8, side_px // 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((side_px, side_px)).save(content, "JPEG")
            member = tarfile.TarInfo(f"{number:04d}.jpg")
            member.size = content.tell()
            content.seek(0)
            file.addfile(member, content)
    for shard in range(count):
        (folder / f"{shard:05d}.tar").hardlink_to(folder / "content")


def work(place: Place, shards: list[str], out: Path, options: argparse.Namespace, together: Any, found: Any) -> None:
    """One process: its clips, and its seconds in the model, of reading, of writing, in all, and of processor."""
    torch.set_num_threads(1)
    decode = DecodeSettings(16_000, 1, options.side_px, ("visual",), "skip", prefer_features=False)
    captioner = Captioner(Loaded(Waiting(options.seconds_per_batch).eval(), decode, "32-true", (), "0" * 16), "cpu")
    together.wait()
    started, before = time.perf_counter(), time.process_time()
    reports = list(caption_shards(captioner, find_shards(shards, 1), out, place, batch_size=BATCH_SIZE))
    total, processor = time.perf_counter() - started, time.process_time() - before
    model, writing = (sum(getattr(report, name) for report in reports) for name in ("model_s", "writing_s"))
    inside = sum(report.total_s for report in reports)
    found.put((sum(report.captions for report in reports), model, inside - model - writing, writing, total, processor))


def measure(processes: int, folder: Path, options: argparse.Namespace) -> list[tuple[float, ...]]:
    """What each process found."""
    shards = [str(folder / f"{shard:05d}.tar") for shard in range(processes * options.shards)]
    context = multiprocessing.get_context("fork")
    together, found = context.Barrier(processes), context.Queue()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        places = [Place(rank, processes, rank) for rank in range(processes)]
        ranks = [
            context.Process(target=work, args=(place, shards, Path(out), options, together, found)) for place in places
        ]
        for rank in ranks:
            rank.start()
        rows = [found.get(timeout=600) for _ in ranks]
        for rank in ranks:
            rank.join()
        lines = [line for path in Path(out).glob("*.jsonl") for line in path.read_text().splitlines()]
    assert sum(row[0] for row in rows) == len(lines) == len(shards) * options.pictures  # each once
    return rows


def main() -> None:
    """Measure and print; exit with 1 when the claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--shards", type=int, default=2, help="of each process (%(default)s)")
    parser.add_argument("--pictures", type=int, default=160, help="in a shard (%(default)s)")
    parser.add_argument("--side_px", type=int, default=224, help="of a picture (%(default)s)")
    parser.add_argument(
        "--seconds_per_batch", type=float, default=0.8, help="in the model, of 16 pictures (%(default)s)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        write_shards(Path(root), max(options.processes) * options.shards, options.pictures, options.side_px)
        print(
            f"{options.shards} shards of {options.pictures} pictures of {options.side_px} px per process, "
            f"{options.seconds_per_batch:g} s in the model per {BATCH_SIZE}; {os.cpu_count()} cores"
        )
        print("           as measured             with a core for each process, and shares of its time")
        print("processes  clips/s of linear    clips/s of linear     model   reading   writing sharing out")
        first = first_alone = linear = 0.0
        for processes in options.processes:
            rows = measure(processes, Path(root), options)
            clips = sum(row[0] for row in rows)
            model, reading, writing, total, processor = (sum(part) for part in list(zip(*rows, strict=True))[1:])
            slept = clips / BATCH_SIZE * options.seconds_per_batch
            rate = clips / max(row[4] for row in rows)
            alone = clips / max(slept / processes + row[5] for row in rows)
            first, first_alone = first or rate / processes, first_alone or alone / processes
            linear = alone / (first_alone * processes)
            rest = max(0.0, total - model - reading - writing)
            shares = [part / (reading + writing + rest) * processor for part in (reading, writing, rest)]
            print(
                f"{processes:9}{rate:9.1f}{100 * rate / (first * processes):8.0f} %{alone:11.1f}{100 * linear:8.0f} %"
                + "".join(f"{100 * seconds / (slept + processor):8.2f} %" for seconds in (slept, *shares)),
                flush=True,
            )
    if linear < CLAIM:
        raise SystemExit(f"less than {100 * CLAIM:.0f} % of linear at {options.processes[-1]} processes")


if __name__ == "__main__":
    main()
