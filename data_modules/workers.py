"""Work that is spread over processes, and what happens when one of them ends early."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import TypeVar

from avcap_zoo.errors import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def run_in_workers(
    function: Callable[[Task], Result], tasks: Sequence[Task], num_workers: int, *, writes_to: Path, option: str
) -> Iterator[tuple[Task, Result]]:
    """Call a function on every task, and give the results as they come.

    Args:
        function: of a task; can be pickled.
        tasks: each worth the trouble of sending it.
        num_workers: processes; 0 or 1 = none beside this one, and the order of the tasks is kept.
        writes_to: folder that the function writes to, for the message.
        option: what sets one worker, for the message.

    Raises:
        DataError: a process ended early.
    """
    if num_workers <= 1:
        for task in tasks:
            yield task, function(task)
        return
    # Spawned, not forked: the caller may hold threads of torch, whose locks a fork would copy in any state.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=end_with_parent) as pool:
        with without_main_module():
            futures = {pool.submit(function, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"a worker that writes to {writes_to} ended early, perhaps for lack of memory; call again to go on "
                f"where it stopped, if need be with {option}"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def end_with_parent() -> None:
    """In a process that `multiprocessing` started: be killed when the one that started it ends, however it does.

    Otherwise a worker whose result nobody takes waits forever.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    Thread(target=watch, daemon=True).start()


@contextmanager
def without_main_module() -> Iterator[None]:
    """Start processes that do not run the caller's script again.

    A spawned process imports the main module first. Without a `__name__` guard it would call the same function once
    more, and wait for locks that this process holds; a script read from standard input cannot be imported at all.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
