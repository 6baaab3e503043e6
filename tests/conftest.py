"""Every test runs on one thread, without a hub and without a network; some share generated clips."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch and the hub's client are imported, and for the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

import filelock
import pytest
import torch

torch.set_num_threads(1)
# A shell lets what it starts in the background ignore Ctrl-C; tests send it to themselves and to what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine. Not an OSError: code that retries or falls back must not swallow it."""


def is_on_this_machine(family: int, address: object) -> bool:
    """Whether a socket address, or a bare host name, stays on this machine."""
    if family == getattr(socket, "AF_UNIX", None):
        return True
    host = address[0] if isinstance(address, tuple) and address else address
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host in {None, "", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()}:
        return True
    try:
        parsed = ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return parsed.is_loopback or parsed.is_unspecified


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Let Python's sockets reach this machine only; gloo on 127.0.0.1 and unix sockets work."""

    def guarded(function: Callable[..., Any], address_at: int) -> Callable[..., Any]:
        def call(self: socket.socket, *arguments: Any) -> Any:
            address = arguments[address_at]
            if not is_on_this_machine(self.family, address):
                raise NetworkBlockedError(f"a test tried to reach {address}; tests run without a network")
            return function(self, *arguments)

        return call

    look_up = socket.getaddrinfo

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if not is_on_this_machine(socket.AF_INET, host):
            raise NetworkBlockedError(f"a test tried to look up {host}; tests run without a network")
        return look_up(host, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect, 0))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex, 0))
        patch.setattr(socket.socket, "sendto", guarded(socket.socket.sendto, -1))
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield


@pytest.fixture(autouse=True)
def port_of_its_own() -> Iterator[None]:
    """Forget the port that Lightning leaves in the environment: the next run would take it, and it may be in use."""
    yield
    os.environ.pop("MASTER_PORT", None)


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 + 6 + 6 generated clips in every format, made once per run, whatever the number of processes. Read only."""
    from avcap_zoo.data_modules.scenes.export import generate_scenes

    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # the one that the processes share
    root = folder / "scenes"
    with filelock.FileLock(folder / "scenes.lock"):
        done = folder / "scenes.done"
        if not done.exists():
            counts = {"train": 24, "val": 6, "test": 6}
            generate_scenes(root, counts=counts, formats=["all"], seed=0, num_workers=0, progress=False)
            done.touch()
    return root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    ) if os.name == "posix" else None  # fmt: skip
    if mounted is None or mounted.returncode:
        pytest.skip("this user cannot mount a disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
