"""Every clip once an epoch, over one process or several, from any starting point."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, DistributedSampler

from avcap_zoo.data_modules.sampling import ClipLoader, EpochSampler, ResumableLoader, epoch_order, leave_process_group
from avcap_zoo.errors import DataError, MediaError


def draws(num_clips: int, world_size: int, *, epoch: int = 0, consumed: int = 0) -> list[list[tuple[int, int]]]:
    """Draws of every process."""
    shares = []
    for rank in range(world_size):
        sampler = EpochSampler(num_clips, rank, world_size)
        sampler.set_epoch(epoch)
        if consumed:
            sampler.resume(epoch, consumed)
        shares.append(list(sampler))
    return shares


def woven(shares: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    """Draws in the order in which all processes together take them."""
    return [draw for turn in zip(*shares, strict=True) for draw in turn]


@pytest.mark.parametrize(("world_size", "length"), [(1, 12), (2, 8), (3, 4)])
def test_batches_of_evaluation_are_filled(world_size: int, length: int) -> None:
    shares = [list(EpochSampler(10, rank, world_size, filled_batches_of=4)) for rank in range(world_size)]
    assert [len(share) for share in shares] == [length] * world_size
    assert {place for _, place in woven(shares)[:10]} == set(range(10))
    assert {place for _, place in woven(shares)[10:]} <= set(range(10))


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 1, 7) for epoch in range(4)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len(set(orders.values())) == len(orders)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert tuple(epoch_order(50, 7, 2).tolist()) == orders[7, 2]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_clips", [1, 2, 3, 10, 11])
def test_one_process_takes_every_position_once(num_clips: int) -> None:
    (share,) = draws(num_clips, 1, epoch=4)
    assert share == [(4, position) for position in range(num_clips)]
    assert len(EpochSampler(num_clips)) == num_clips


@pytest.mark.parametrize("world_size", [2, 3, 8])
@pytest.mark.parametrize("num_clips", [1, 2, 7, 10, 11])
def test_processes_share_evenly_and_wrap_around(num_clips: int, world_size: int) -> None:
    shares = draws(num_clips, world_size)
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) == len(EpochSampler(num_clips, 0, world_size))
    counts = Counter(position for _, position in woven(shares))
    assert set(counts) == set(range(num_clips))
    extra = -num_clips % world_size
    assert sum(counts.values()) == num_clips + extra
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("num_clips", [1, 7, 10])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_resuming_gives_the_tail(num_clips: int, world_size: int) -> None:
    whole = woven(draws(num_clips, world_size, epoch=3))
    for consumed in range(0, num_clips, world_size):
        assert woven(draws(num_clips, world_size, epoch=3, consumed=consumed)) == whole[consumed:]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (3, 2), (2, 4)])
def test_another_number_of_processes_goes_on_where_the_old_ones_stopped(before: int, after: int) -> None:
    for num_clips in (10, 11):
        for consumed in range(before, num_clips, before):
            shares = draws(num_clips, after, consumed=consumed)
            assert len({len(share) for share in shares}) == 1, "one process would wait for ever"
            positions = [position for _, position in woven(shares)]
            rest = num_clips - consumed
            assert positions[:rest] == list(range(consumed, num_clips))
            assert len(positions) - rest < after


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("num_clips", [12, 24, 60])
def test_nothing_is_repeated_or_lost_over_a_stop(num_clips: int, before: int, after: int) -> None:
    batch_size = 2
    for batches in range(1, num_clips // (batch_size * before)):
        head = [share[: batches * batch_size] for share in draws(num_clips, before, epoch=1)]
        tail = draws(num_clips, after, epoch=1, consumed=batches * batch_size * before)
        counts = Counter(draw for share in [*head, *tail] for draw in share)
        extra = sum(counts.values()) - num_clips
        assert set(counts) == {(1, position) for position in range(num_clips)}
        assert extra == -(num_clips - batches * batch_size * before) % after, "only the last turn may wrap around"


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_whole_batches_leave_the_rest_to_the_next_epoch(world_size: int) -> None:
    for num_clips in (5, 13, 24, 25):
        samplers = [EpochSampler(num_clips, rank, world_size, whole_batches_of=4) for rank in range(world_size)]
        positions = [draw for sampler in samplers for draw in sampler]
        wanted = num_clips // (4 * world_size) * 4 * world_size
        assert sorted(positions) == [(0, position) for position in range(wanted)]
        assert all(len(sampler) * world_size == wanted for sampler in samplers)
        for sampler in samplers:
            sampler.resume(2, wanted)
            assert (sampler.epoch, sampler.start) == (3, 0)


def test_a_finished_epoch_leads_to_the_next() -> None:
    sampler = EpochSampler(10, 0, 2)
    for consumed in (10, 12):
        sampler.resume(4, consumed)
        assert (sampler.epoch, sampler.start) == (5, 0)
        assert next(iter(sampler)) == (5, 0)


def test_a_start_holds_for_its_own_epoch() -> None:
    sampler = EpochSampler(10)
    sampler.resume(2, 6)
    sampler.set_epoch(2)
    assert list(sampler) == [(2, 6), (2, 7), (2, 8), (2, 9)]
    sampler.set_epoch(3)
    assert len(list(sampler)) == 10
    sampler.set_epoch(2)
    assert len(list(sampler)) == 10


def test_an_iterator_keeps_its_epoch() -> None:
    sampler = EpochSampler(3)
    iterator = iter(sampler)
    first = next(iterator)
    sampler.set_epoch(1)
    assert [first, *iterator] == [(0, 0), (0, 1), (0, 2)]


def test_lightning_takes_it_for_a_distributed_sampler() -> None:
    assert isinstance(EpochSampler(3), DistributedSampler)


class Draws(Dataset[Any]):
    """Gives back what was drawn; position 5 is an error."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __len__(self) -> int:
        return 10

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Any:
        return self.error if self.error and (0, 5) in wanted else wanted


def test_loader_saves_and_restores_its_place() -> None:
    progress = [0, 0]
    moved: list[int] = []

    def loader(world_size: int = 1) -> Any:
        return ResumableLoader(
            dataset=Draws(),
            sampler=EpochSampler(10, 0, world_size),
            progress=lambda: (progress[0], progress[1]),
            move_progress=moved.append,
            batch_size=3,
            collate_fn=list,
        )

    whole = [list(batch) for batch in loader()]
    for epoch, batches in ((0, 0), (0, 1), (0, 3), (6, 2)):
        progress[:] = [epoch, batches]
        state = loader().state_dict()
        assert state == {"epoch": epoch, "consumed": 3 * batches}
        resumed = loader()
        resumed.load_state_dict(state)
        rest = [[(0, position) for _, position in batch] for batch in resumed]
        assert rest == whole[batches:]
    progress[:] = [0, 4]
    resumed = loader()
    resumed.load_state_dict(loader().state_dict())
    assert next(iter(resumed)) == [(1, 0), (1, 1), (1, 2)]
    progress[:] = [0, 1]
    assert loader(world_size=2).state_dict() == {"epoch": 0, "consumed": 6}
    # Four clips are behind, two processes go on: three clips each are left, one batch of the two.
    moved.clear()
    other = loader(world_size=2)
    other.load_state_dict({"epoch": 3, "consumed": 4})
    assert moved == [1]
    progress[:] = [3, 2]
    assert other.state_dict() == {"epoch": 3, "consumed": 4 + 6}
    progress[:] = [4, 1]
    assert other.state_dict() == {"epoch": 4, "consumed": 6}


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("error", [MediaError("c", Path("a.wav"), "no such file"), DataError("twenty in a row")])
def test_errors_leave_the_workers_as_they_are(error: DataError, num_workers: int) -> None:
    loader = ClipLoader(
        Draws(error), sampler=EpochSampler(10), batch_size=2, num_workers=num_workers, collate_fn=_as_it_is
    )
    batches = iter(loader)
    next(batches)
    next(batches)
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)


class Trouble(Draws):
    """Does something in a data worker at the second batch."""

    def __init__(self, what: Callable[[], object]) -> None:
        super().__init__()
        self.what = what

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Any:
        if (0, 2) in wanted:
            self.what()
        return wanted


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: time.sleep(1000), "no batch came from the 1 data workers within 1 s: a disk that does not answer"),
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            r"a data worker ended by itself: DataLoader worker \(pid.*memory",
        ),
    ],
    ids=["hangs", "is killed"],
)
def test_a_worker_that_is_lost_ends_the_run(what: Callable[[], object], message: str) -> None:
    loader = ClipLoader(
        Trouble(what), sampler=EpochSampler(10), batch_size=2, num_workers=1, timeout=1, collate_fn=_as_it_is
    )
    with pytest.raises(DataError, match=message):
        list(loader)
    for worker in multiprocessing.active_children():
        worker.terminate()  # as at the end of a process
        worker.join(timeout=10)
        assert not worker.is_alive(), "the process could not end"


class Groups(Draws):
    """Gives the process group that it is read in."""

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Any:
        return [os.getpgrp()]


def test_workers_leave_signals_for_the_group_to_the_run() -> None:
    options: dict[str, Any] = {"sampler": EpochSampler(4), "batch_size": 2, "collate_fn": _as_it_is}
    groups: list[Any] = [
        next(iter(ClipLoader(Groups(), num_workers=1, worker_init_fn=init, **options)))
        for init in (None, leave_process_group)
    ]
    assert groups[0] == [os.getpgrp()]
    assert groups[1] != groups[0]


def _as_it_is(batch: Any) -> Any:
    return batch
