"""The order in which clips are drawn: a function of seed and epoch alone, so that a run resumes in mid-epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader, DistributedSampler

from avcap_zoo.batch import Batch
from avcap_zoo.errors import DataError, first_line

Draw = tuple[int, int]
"""(epoch, position in the order of that epoch)."""


def epoch_order(num_clips: int, seed: int, epoch: int) -> torch.Tensor:
    """(num_clips,) permutation of clip indices that every process and worker computes alike."""
    return torch.randperm(num_clips, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


class EpochSampler(DistributedSampler[Draw]):
    """Gives each process its share of an epoch's positions, from any starting position.

    Every process gets equally many draws, also if a run goes on with another number of processes; positions beyond the
    end wrap around.

    Args:
        num_clips: clips in the split.
        rank: this process.
        world_size: number of processes.
        whole_batches_of: clips per batch and process; positions that fill no batch on every process are left to the
            next epoch, whose order is another. None = every position is drawn.
        filled_batches_of: clips per batch; the last batch of every process is filled up with positions from the start.
    """

    def __init__(
        self,
        num_clips: int,
        rank: int = 0,
        world_size: int = 1,
        whole_batches_of: int | None = None,
        *,
        filled_batches_of: int = 1,
    ) -> None:
        # Lightning leaves samplers of this type alone. Its own __init__ wants a data set we do not need.
        together = 1 if whole_batches_of is None else whole_batches_of * world_size
        self.num_clips = num_clips // together * together
        self.rank = rank
        self.world_size = world_size
        self.filled = filled_batches_of
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch (Lightning calls this); a start set by `resume` holds for its own epoch only."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def resume(self, epoch: int, consumed: int) -> None:
        """Start within `epoch` after `consumed` clips over all processes; a finished epoch leads to the next."""
        if consumed >= self.num_clips:
            epoch, consumed = epoch + 1, 0
        self.epoch, self.start = epoch, consumed

    def __iter__(self) -> Iterator[Draw]:
        """Draws of this process from the starting position on."""
        epoch, start = self.epoch, self.start
        for turn in range(self._draws(self.num_clips - start)):
            yield epoch, (start + turn * self.world_size + self.rank) % self.num_clips

    def __len__(self) -> int:
        """Draws of this process in a whole epoch, wherever it starts."""
        return self._draws(self.num_clips)

    def _draws(self, positions: int) -> int:
        return -(-positions // (self.world_size * self.filled)) * self.filled


def leave_process_group(worker: int) -> None:
    """Initialise a data worker: a signal to the whole process group is for the run, which ends its workers itself."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


class ClipLoader(DataLoader[Batch]):
    """A DataLoader that raises our own errors as they were raised in a worker.

    torch would raise a worker's error anew with a traceback for its text, or as a RuntimeError. So the data set's
    `__getitems__` and the collate function return a `DataError` in place of a batch.
    """

    workers_option: ClassVar[str] = "data.init_args.num_workers"
    """What sets the number of workers, for the messages."""
    patience: ClassVar[str] = "; data.init_args.worker_timeout_s lets them take longer"
    """What sets how long they may take, for the message."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches.

        Raises:
            DataError: what a worker met; or a worker hangs or was killed.
        """
        batches = super().__iter__()
        try:
            while True:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                except RuntimeError as error:
                    if str(error).startswith("DataLoader timed out"):
                        raise DataError(
                            f"no batch came from the {self.num_workers} data workers within {self.timeout:g} s: a disk "
                            f"that does not answer, or a file that takes for ever. {self.workers_option} 0 shows "
                            f"where{self.patience}"
                        ) from error
                    if "DataLoader worker (pid" in str(error):
                        raise DataError(
                            f"a data worker ended by itself: {first_line(error)} Out of memory? Lower "
                            f"{self.workers_option} or batch_size"
                        ) from error
                    raise
                if isinstance(batch, DataError):
                    raise batch
                yield batch
        finally:
            # The error's traceback holds this frame. Workers that are forked later would inherit, and end, these.
            del batches


class ResumableLoader(ClipLoader):
    """A loader that Lightning saves and restores in mid-epoch.

    The Trainer counts batches, which say how many clips are behind only while the number of processes and the batch
    size stay the same. So clips are counted here, and a run that goes on with other numbers is told how many batches
    of the new kind are behind.

    Args:
        sampler: the `EpochSampler` in use.
        progress: gives (epoch, batches trained in it by this process).
        move_progress: sets the batches that count as trained in this epoch.
        options: of torch's DataLoader.
    """

    def __init__(
        self,
        *,
        sampler: EpochSampler,
        progress: Callable[[], tuple[int, int]],
        move_progress: Callable[[int], None],
        **options: Any,
    ) -> None:
        super().__init__(sampler=sampler, **options)
        self._epoch_sampler = sampler
        self._progress = progress
        self._move_progress = move_progress
        self._resumed = (-1, 0, 0)

    def state_dict(self) -> dict[str, int]:
        """Epoch, and clips consumed in it over all processes."""
        epoch, batches = self._progress()
        assert self.batch_size is not None
        resumed_epoch, batches_then, consumed_then = self._resumed
        if epoch != resumed_epoch:
            batches_then = consumed_then = 0
        consumed = (batches - batches_then) * self.batch_size * self._epoch_sampler.world_size
        return {"epoch": epoch, "consumed": consumed_then + consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken."""
        sampler = self._epoch_sampler
        sampler.resume(state["epoch"], state["consumed"])
        if sampler.start:
            assert self.batch_size is not None
            left = -(-(sampler.num_clips - sampler.start) // sampler.world_size)
            batches = len(self) - -(-left // self.batch_size)
            self._resumed = (sampler.epoch, batches, sampler.start)
            self._move_progress(batches)
