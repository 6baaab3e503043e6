"""Tests run on one thread, offline, and cannot leave the machine."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest
import torch


def test_one_thread_and_no_hub() -> None:
    assert torch.get_num_threads() == 1
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("address", [("203.0.113.7", 443), ("2001:db8::7", 443, 0, 0), ("example.org", 80)])
def test_a_foreign_address_is_refused_by_name(address: tuple[str, int]) -> None:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family) as opened:
        with pytest.raises(RuntimeError, match=address[0]):
            opened.connect(address)
        with pytest.raises(RuntimeError, match=address[0]):
            opened.connect_ex(address)
    with socket.socket(family, socket.SOCK_DGRAM) as opened, pytest.raises(RuntimeError, match=address[0]):
        opened.sendto(b"x", address)


def test_a_foreign_name_is_not_looked_up() -> None:
    with pytest.raises(RuntimeError, match=r"example\.org"):
        socket.create_connection(("example.org", 80), timeout=1)
    with pytest.raises(RuntimeError, match=r"example\.org"):
        socket.getaddrinfo("example.org", 80)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_this_machine_can_be_reached(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        answer = threading.Thread(target=lambda: server.accept()[0].sendall(b"here"))
        answer.start()
        with socket.create_connection((host, server.getsockname()[1]), timeout=10) as client:
            assert client.recv(4) == b"here"
        answer.join()


def test_unix_sockets_work() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.sendall(b"here")
        assert other.recv(4) == b"here"


def test_the_shared_clips_are_there(scenes_root: Path) -> None:
    sounds = list(scenes_root.rglob("*.wav"))
    assert len({path.name for path in sounds}) >= 36
    assert not list(scenes_root.parent.glob("scenes/scenes"))
