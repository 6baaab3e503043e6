"""Clips per second of the data modules: sound, video with 20 frames, cached features; and memory over 5,000 clips.

    python benchmarks/data_loading.py

Makes its files in a temporary folder: sounds of 10 s at 16 kHz, H.264 videos of 10 s at 25 frames a second and
320x240, features of 20 x 768 in bfloat16. Prints one table.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import torch

from avcap_zoo.batch import Batch, FrozenEncoder, Split
from avcap_zoo.data_modules.base import CaptionDataModule, ClipRecord, SplitIndex

NUM_FRAMES = 20
WIDTH = 768
NUM_FILES = 8


class Clips(CaptionDataModule):
    """`num_clips` clips over a few files."""

    name = "benchmark"

    def __init__(self, root: Path, num_clips: int, **options: Any) -> None:
        super().__init__(str(root), image_size_px=224, num_frames=NUM_FRAMES, batch_size=16, **options)
        self.num_clips = num_clips

    def read_split(self, split: Split) -> SplitIndex:
        """The same few files again and again, under ids of their own."""
        return SplitIndex(
            [
                ClipRecord(
                    f"clip{number}",
                    ["a caption of some words"],
                    audio=str(self.root / f"{number % NUM_FILES}.wav"),
                    visual=str(self.root / f"{number % NUM_FILES}.mp4"),
                )
                for number in range(self.num_clips)
            ]
        )


def write_media(root: Path) -> None:
    """A few sounds and videos of noise that moves, so that the codec has something to do."""
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (480, 640, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    for number in range(NUM_FILES):
        soundfile.write(root / f"{number}.wav", 0.1 * random.standard_normal(160_000), 16_000)
        with av.open(str(root / f"{number}.mp4"), "w") as file:
            stream = file.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = 320, 240, "yuv420p", 1
            stream.options = {"preset": "veryfast", "crf": "28", "threads": "1"}
            for index in range(250):
                left, top = 2 * index + number, index
                pixels = np.ascontiguousarray(picture[top : top + 240, left : left + 320])
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 25)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())


def fill_cache(root: Path, num_clips: int) -> Path:
    """Random features for every clip, as a frozen encoder would store them."""
    data = Clips(root, num_clips, modalities=("visual",))

    def encode(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(batch), NUM_FRAMES, WIDTH)
        return torch.randn(shape), torch.ones(shape[:2], dtype=torch.bool)

    encoder = FrozenEncoder("visual", torch.nn.Identity(), encode, "random")
    # Nothing is decoded here: the features do not depend on the pictures.
    data.decode.modalities = ()
    data._decoding_loader = (
        lambda split, size, modalities, draws, **_: [  # type: ignore[method-assign,assignment]
            Batch([f"clip{row}" for _, row in draws[start : start + size]], [], [])  # type: ignore[index]
            for start in range(0, num_clips, size)
        ]
    )
    data.cache_features(encoder, root / "cache", ("train",), device=torch.device("cpu"), dtype="bfloat16")
    return root / "cache"


def clips_per_s(data: Clips, *, seconds: float) -> float:
    """Speed of the training loader, after the first batches."""
    loader = data.train_dataloader()
    batches = endless(loader)
    for _ in range(2 * max(1, data.num_workers) + 1):
        next(batches)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        count += len(next(batches))
    return count / (time.perf_counter() - started)


def endless(loader: Any) -> Any:
    """Epoch after epoch."""
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def private_mb(pids: list[int]) -> float:
    """Memory of processes that no file stands behind."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1])
    return total / 1024


def memory_over(data: Clips, marks: tuple[int, ...]) -> list[float]:
    """Private memory of this process and its workers, in MB, after so many clips."""
    loader = data.train_dataloader()
    batches, count, found = endless(loader), 0, []
    for mark in marks:
        while count < mark:
            count += len(next(batches))
        workers = [worker.pid for worker in loader._iterator._workers] if data.num_workers else []
        found.append(private_mb([os.getpid(), *workers]))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="per measurement (%(default)s)")
    parser.add_argument("--cached-clips", type=int, default=2000, help="clips in the cache (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_media(root)
        cache = str(fill_cache(root, options.cached_clips))
        kinds: dict[str, dict[str, Any]] = {
            "wav, 10 s": {"modalities": ("audio",), "num_clips": 512},
            "mp4, 20 frames": {"modalities": ("visual",), "num_clips": 512},
            "cached features": {"modalities": ("visual",), "num_clips": options.cached_clips, "visual_cache": cache},
        }
        print("| what is read | clips/s, one process | clips/s, two workers |\n|---|---|---|")
        two: dict[str, float] = {}
        for name, settings in kinds.items():
            alone = clips_per_s(Clips(root, **settings), seconds=options.seconds)
            two[name] = clips_per_s(Clips(root, num_workers=2, **settings), seconds=options.seconds)
            print(f"| {name} | {alone:,.0f} | {two[name]:,.0f} |")
        print(f"\ncached features / mp4, two workers: {two['cached features'] / two['mp4, 20 frames']:.0f}x")
        marks = (1000, 2000, 3000, 4000, 5000)
        for name in ("wav, 10 s", "cached features"):
            data = Clips(root, num_workers=2, **kinds[name])
            memory = ", ".join(f"{mb:.0f}" for mb in memory_over(data, marks))
            print(f"private memory with two workers after {', '.join(map(str, marks))} clips ({name}): {memory} MB")


if __name__ == "__main__":
    main()
