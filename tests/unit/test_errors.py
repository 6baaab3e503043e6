"""The error types: one line each, picklable, and with the cause kept."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest

from avcap_zoo import errors
from avcap_zoo.errors import (
    AvcapError,
    DataError,
    MediaError,
    MissingExtraError,
    ShapeError,
    WeightsError,
    first_line,
    free_bytes,
    how_to_get,
    hub_error,
    require_extra,
)

TYPES = [
    thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, AvcapError)
]  # fmt: skip


def test_there_are_a_few() -> None:
    assert len(TYPES) > 6
    assert issubclass(ShapeError, ValueError)
    assert issubclass(MissingExtraError, ImportError)
    assert issubclass(MediaError, DataError)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind is not MediaError])
def test_every_error_survives_pickling(kind: type[AvcapError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what was found")))
    assert type(error) is kind
    assert str(error) == "what was found"


@pytest.mark.parametrize("path", [Path("x/a.wav"), "x/a.wav", None])
def test_media_error(path: Path | str | None) -> None:
    error = MediaError("clip-1", path, "no such file")
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert one.clip_id == "clip-1"
        assert one.path == (None if path is None else "x/a.wav")
        assert one.reason == "no such file"
        assert str(one) == ("clip clip-1: no such file" if path is None else "clip clip-1 (x/a.wav): no such file")


def test_require_extra() -> None:
    assert require_extra("json", "metrics").loads("1") == 1
    with pytest.raises(MissingExtraError, match=r"needs the package 'not_there', .*pip install 'avcap-zoo\[metrics\]'"):
        require_extra("not_there", "metrics")
    with pytest.raises(MissingExtraError, match="'not_there'"):
        require_extra("not_there.inner", "metrics")


def test_a_fault_inside_an_installed_package_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import not_there_either\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_either") as caught:
        require_extra("half_installed", "metrics")
    assert not isinstance(caught.value, AvcapError)


def test_first_line() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("\n\n one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("kind", [OSError, ValueError, FileNotFoundError, pickle.UnpicklingError])
def test_hub_error_names_the_key_in_one_line(kind: type[Exception]) -> None:
    with (
        pytest.raises(WeightsError, match=r"^model.x.source: cannot load 'some/where': gone \(give") as caught,
        hub_error("some/where", "model.x.source"),
    ):
        raise kind("gone\nand more")
    assert isinstance(caught.value.__cause__, kind)
    assert "\n" not in str(caught.value)


def test_hub_error_lets_other_errors_through() -> None:
    with pytest.raises(KeyboardInterrupt), hub_error("a", "b"):
        raise KeyboardInterrupt
    with hub_error("a", "b"):
        pass


def test_only_our_own_missing_models_have_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert how_to_get("runs/pretrained/clip.safetensors") == "make it: lightning fit -c configs/tiny/clip.yaml"
    assert how_to_get("Salesforce/blip2-opt-2.7b") == how_to_get("runs/mine/clip.safetensors") == ""
    Path("runs/pretrained/itm").mkdir(parents=True)
    assert how_to_get("runs/pretrained/itm") == ""


def test_free_bytes_of_a_path_that_is_not_there(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert free_bytes(tmp_path / "not/there") == pytest.approx(free, rel=0.05)
