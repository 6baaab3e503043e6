"""`avcap serve` up to where the page begins."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from avcap_zoo.cli.main import avcap
from avcap_zoo.cli.serve import address_of, listen
from avcap_zoo.errors import ConfigError
from tests.unit.cli.running import call

CONFIG = str(Path(__file__).parents[3] / "configs/tiny/lavcap.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no system given, wanted --checkpoint FILE (or -c FILE for one that needs no training)"),
        (["-c", "gone.yaml"], "gone.yaml does not exist"),
        (["-c", CONFIG, "--ground", "gone.yaml"], "gone.yaml does not exist"),
        (["-c", CONFIG, "--port", "70000"], "--port is 70000, wanted 0 (any that is free) to 65535"),
        (["-c", CONFIG, "--share"], "no option --share"),
    ],
)
def test_a_command_that_cannot_be_used(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = call(capsys, avcap, ["serve", *words])
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address_of(taken) == f"http://127.0.0.1:{port}"
        ran = call(capsys, avcap, ["serve", "-c", CONFIG, "--port", str(port)])
    assert ran.code == 1
    assert ran.err.startswith(f"avcap serve: cannot listen on 127.0.0.1, port {port}: ")
    assert ran.err.rstrip().endswith("choose another --port or --host")


def test_an_address_of_the_new_kind() -> None:
    try:
        listener = listen("::1", 0)
    except ConfigError:
        pytest.skip("no IPv6 here")
    with listener:
        assert listener.family == socket.AF_INET6
        assert address_of(listener).startswith("http://[::1]:")


def test_without_gradio(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    ran = call(capsys, avcap, ["serve", "-c", CONFIG, "--port", "0"])
    said = "avcap serve: this needs the package 'gradio', which is not installed: pip install 'avcap-zoo[app]'\n"
    assert (ran.code, ran.err) == (1, said)
