"""Files in, captions out: what `avcap caption` and `avcap_zoo.load` share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from avcap_zoo.batch import Batch, SkippedClip
from avcap_zoo.data_modules.dataset import ClipDataset, collate_or_error
from avcap_zoo.data_modules.images import PicturesOfShard
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords
from avcap_zoo.data_modules.sampling import ClipLoader, EpochSampler, leave_process_group
from avcap_zoo.errors import ConfigError, DataError, DeviceError, MediaError
from avcap_zoo.serving.inputs import Inputs, cut_into_windows, with_modalities
from avcap_zoo.serving.loading import Loaded, load_system
from avcap_zoo.systems.captions import CaptionSystem, Explanation

Device = Literal["auto", "cpu", "cuda", "hpu"]
_WORKER_TIMEOUT_S = 600.0


class _FileLoader(ClipLoader):
    """Batches of files that were named on a command line."""

    workers_option = "--num_workers"
    patience = ""


class Captioner:
    """A loaded system on a device.

    Args:
        loaded: from `loading.load_system`.
        device: `auto` takes a GPU if there is one.

    Raises:
        DeviceError: the device is not there.
    """

    def __init__(self, loaded: Loaded, device: Device = "auto") -> None:
        self.loaded = loaded
        self.device = choose_device(device)
        self.system: CaptionSystem = loaded.system.to(self.device)
        self.busy_s = 0.0
        """Seconds spent in the system so far."""

    @classmethod
    def load(
        cls,
        checkpoint: str | PathLike[str] | None = None,
        configs: Sequence[str | Path] = (),
        *,
        device: Device = "auto",
        num_frames: int | None = None,
        image_size_px: int | None = None,
    ) -> Captioner:
        """Rebuild a system and put it on a device; arguments and errors as in `loading.load_system`."""
        return cls(load_system(checkpoint, configs, num_frames=num_frames, image_size_px=image_size_px), device)

    def caption(self, paths: Sequence[str | Path], *, batch_size: int = 8, num_workers: int = 0) -> list[str]:
        """One caption per file, in order.

        Args:
            paths: media files.
            batch_size: files that are captioned together.
            num_workers: decoding processes; 0 = decode in this one.

        Raises:
            DataError: a file is missing, cannot be read, or lacks what the system needs; the first such is named.
        """
        return [clip.caption for clip in self._each(paths, batch_size, num_workers, explain=False)]

    def explain(self, paths: Sequence[str | Path], *, batch_size: int = 8, num_workers: int = 0) -> list[Explanation]:
        """One caption per file with what the system shows of how it came about; otherwise as `caption`."""
        return self._each(paths, batch_size, num_workers, explain=True)

    def fit(self, found: Inputs, windows_s: tuple[float, float] | None = None) -> Inputs:
        """The inputs as this system can take them, cut into windows on request.

        Args:
            found: from `inputs.find_inputs`.
            windows_s: length of a window, and from the beginning of one to that of the next.
        """
        fitting = with_modalities(found, self.system.requirements.modalities)
        return fitting if windows_s is None else cut_into_windows(fitting, *windows_s)

    def stream(
        self,
        records: Sequence[ClipRecord],
        *,
        batch_size: int = 8,
        num_workers: int = 0,
        explain: bool = False,
        on_error: Literal["skip", "raise"] = "skip",
    ) -> Iterator[tuple[list[Explanation], list[SkippedClip]]]:
        """Captions batch by batch, as they come.

        Args:
            records: clips, in the order in which they are captioned.
            batch_size: clips per batch.
            num_workers: decoding processes.
            explain: whether explanations hold more than the captions.
            on_error: whether a clip that cannot be read is left out and reported, or ends everything.

        Yields:
            What was captioned, and what could not be read.

        Raises:
            MediaError: with `on_error="raise"`.
            ConfigError: sizes out of range.
        """
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise ConfigError(f"{name} is {value}, wanted at least {least}")
        if not records:
            return
        decode = replace(self.loaded.decode, on_error=on_error)
        dataset = ClipDataset(PackedRecords(records), decode, seed=0, training=False)
        loader = self._loader(dataset, num_workers, sampler=EpochSampler(len(records)), batch_size=batch_size)
        for batch in loader:
            yield (self._caption_batch(batch, explain) if len(batch) else []), batch.skipped

    def stream_shard(
        self, path: str, done: set[str], *, batch_size: int = 8, num_workers: int = 0
    ) -> Iterator[tuple[list[Explanation], list[SkippedClip]]]:
        """Captions of the pictures in a tar shard, batch by batch, as they come.

        Args:
            path: of the shard.
            done: ids that are passed over without being read.
            batch_size: pictures per batch.
            num_workers: decoding processes; each reads its share of the shard.

        Yields:
            What was captioned, and what could not be read.

        Raises:
            DataError: there is no such shard, or the system needs more than pictures.
        """
        if "audio" in self.system.requirements.modalities:
            raise DataError(f"{path} holds pictures, and {type(self.system).__name__} listens: give it lists of files")
        decode = self.loaded.decode
        pictures = PicturesOfShard(path, done, batch_size, decode.num_frames, decode.image_size_px, decode.limits)
        for batch in self._loader(pictures, num_workers, batch_size=None):
            yield (self._caption_batch(batch, explain=False) if len(batch) else []), batch.skipped

    def _loader(self, dataset: Any, num_workers: int, **options: Any) -> ClipLoader:
        return _FileLoader(
            dataset,
            collate_fn=partial(collate_or_error, num_frames=self.loaded.decode.num_frames),
            num_workers=num_workers,
            timeout=_WORKER_TIMEOUT_S if num_workers else 0,
            worker_init_fn=leave_process_group,
            pin_memory=self.device.type == "cuda",
            **options,
        )

    def provenance(self) -> dict[str, Any]:
        """What is written beside every caption: system, decode settings, versions."""
        return self.system.provenance()

    def _caption_batch(self, batch: Batch, explain: bool) -> list[Explanation]:
        started = time.perf_counter()
        batch = batch.to(self.device)
        with torch.inference_mode(), self._autocast():
            if explain:
                explained = self.system.explain(batch)
            else:
                captions = zip(batch.clip_ids, self.system.caption(batch), strict=True)
                explained = [Explanation(clip_id, caption) for clip_id, caption in captions]
        self.busy_s += time.perf_counter() - started
        return explained

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision of the run, on an accelerator; a processor computes in the precision of the weights."""
        kinds = {"bf": torch.bfloat16, "16": torch.float16}
        dtype = kinds.get(self.loaded.precision[:2])
        if dtype is None or self.device.type == "cpu":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=dtype)

    def _each(
        self, paths: Sequence[str | Path], batch_size: int, num_workers: int, *, explain: bool
    ) -> list[Explanation]:
        if isinstance(paths, str | Path):
            raise ConfigError(f"found one path ({paths}), wanted a list of paths: [{str(paths)!r}]")
        words = [str(path) for path in paths]
        folders = [word for word in words if Path(word).is_dir()]
        if folders:
            raise DataError(f"{folders[0]} is a folder, wanted files; list them, or use avcap caption")
        records = [ClipRecord(word, [], audio=word, visual=word) for word in dict.fromkeys(words)]
        fitting = with_modalities(Inputs(clips=records), self.system.requirements.modalities)
        if fitting.problems:
            first = fitting.problems[0]
            raise MediaError(first.clip_id, None, first.reason)
        found: dict[str, Explanation] = {}
        for clips, _ in self.stream(
            fitting.clips, batch_size=batch_size, num_workers=num_workers, explain=explain, on_error="raise"
        ):
            found |= {clip.clip_id: clip for clip in clips}
        return [found[word] for word in words]


def choose_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: `auto`, `cpu`, `cuda` or `hpu`.

    Raises:
        DeviceError: it is not there.
        ConfigError: no such name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda":
        if not torch.cuda.is_available():
            build = "" if torch.version.cuda else f"; this torch ({torch.__version__}) has no CUDA"
            raise DeviceError(f"device is cuda, but there is no such device here{build}; use --device cpu")
        return torch.device("cuda")
    if name == "hpu":
        from avcap_zoo.accelerators.hpu import HPUAccelerator

        if not HPUAccelerator.is_available():
            raise DeviceError("device is hpu, but no Gaudi is seen here (its container, hl-smi); use --device cpu")
        return torch.device("hpu")
    raise ConfigError(f"device is {name!r}, wanted auto, cpu, cuda or hpu")
