"""Weight files: no code is run, nothing is missing, and every problem is in one message."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from avcap_zoo.errors import WeightsError
from avcap_zoo.weights.load import compare_keys, load_strictly, load_tensors
from tests.unit.weights.hostile import Hostile

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(1, dtype=torch.long)}


def check(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    content: Any = TENSORS if wrapper is None else {wrapper: TENSORS, "epoch": 3, "note": "x"}
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    check(load_tensors(tmp_path / "x.pt"))
    check(load_tensors(str(tmp_path / "x.pt")))


def test_safetensors(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors")
    check(load_tensors(tmp_path / "x.safetensors"))


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    hostile = {"a": torch.ones(1), "b": Hostile(marker)}
    for name, write in (
        ("zip.pt", lambda path: torch.save(hostile, path)),
        ("old.pt", lambda path: torch.save(hostile, path, _use_new_zipfile_serialization=False)),
        ("plain.pt", lambda path: path.write_bytes(pickle.dumps(Hostile(marker)))),
        ("nested.pt", lambda path: torch.save({"model": hostile}, path)),
        ("x.safetensors", lambda path: torch.save(hostile, path)),
    ):
        write(tmp_path / name)
        with pytest.raises(WeightsError, match=name) as caught:
            load_tensors(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert not marker.exists(), name
    pickle.loads(pickle.dumps(Hostile(marker)))
    assert marker.exists(), "the trap itself must work"


def test_other_objects_are_refused(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "args": argparse.Namespace(lr=1)}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"holds Python objects beside tensors .* ask its author for safetensors"):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], {"a": 1}, {"model": {"a": torch.ones(1), "b": "x"}}, torch.ones(2)]
)
def test_no_flat_dict_of_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x.pt is not a flat dict of tensors"):
        load_tensors(tmp_path / "x.pt")


def half(path: Path, **options: Any) -> None:
    torch.save({"a": torch.randn(1000)}, path, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def half_safetensors(path: Path) -> None:
    save_file({"a": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.pt", half, r"cannot be read as weights \(truncated\?\)"),
        ("x.pt", lambda path: half(path, _use_new_zipfile_serialization=False), r"cannot be read as weights \(trunc"),
        ("x.safetensors", half_safetensors, r"cannot be read as weights \(truncated\?\)"),
        ("x.pt", lambda path: path.touch(), r"cannot be read as weights \(truncated\?\)"),
        ("x.safetensors", lambda path: path.touch(), r"cannot be read as weights"),
        ("x.safetensors", lambda path: path.write_text("<html>"), r"cannot be read as weights"),
        (
            "x.pt",
            lambda path: path.write_text("<!DOCTYPE html>"),
            r"is no weight file, it begins with b'<!DOCTYPE html>'",
        ),
        ("x.pt", lambda path: path.write_text("version https://git-lfs"), r"is no weight file, .*b'version https://'"),
        ("x.pt", lambda path: None, r"does not exist; checkpoints/README.md says"),
        ("x.pt", lambda path: path.mkdir(), r"does not exist"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, write: Callable[[Path], object], message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=message) as caught:
        load_tensors(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)


def test_strict_loading_copies_everything() -> None:
    torch.manual_seed(0)
    source, target = Model(), Model()
    load_strictly(target, source.state_dict(), "a file")
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_all_key_problems_are_listed_at_once_and_nothing_is_loaded() -> None:
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {name: tensor + 1 for name, tensor in before.items()}
    tensors["first.weight"] = torch.zeros(3, 4)
    tensors["first.bias"] = torch.zeros(3, 1)
    del tensors["norm.weight"], tensors["norm.running_var"]
    tensors["head.weight"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        load_strictly(model, tensors, "the file x.pt")
    assert str(caught.value) == (
        "the file x.pt does not fit the model: 2 missing: norm.running_var, norm.weight; 1 unknown: head.weight; "
        "2 other shape: first.bias (3, 1), wanted (3,), first.weight (3, 4), wanted (3, 2)"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("shard", ["x.index.json", "../other.safetensors", "/other.safetensors", None, ["a"], 5])
def test_a_shard_is_a_weight_file_beside_its_index(tmp_path: Path, shard: object) -> None:
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(WeightsError, match="as a shard, wanted the name of a weight file beside it"):
        load_tensors(index)


def test_long_lists_are_cut() -> None:
    text = compare_keys({f"k{n:02d}": (1,) for n in range(20)}, {})
    assert text == "20 missing: k00, k01, k02, k03, k04, k05, k06, k07, ..."
    assert compare_keys({"a": (2, 3)}, {"a": torch.zeros(2, 3)}) == ""


def test_shards_of_an_index_are_one_file(tmp_path: Path) -> None:
    parts = {"one.safetensors": {"a": torch.ones(2)}, "two.safetensors": {"b": torch.zeros(3), "c": torch.ones(1)}}
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    files = {name: file for file, tensors in parts.items() for name in tensors}
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    loaded = load_tensors(index)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {"a": (2,), "b": (3,), "c": (1,)}

    index.write_text(json.dumps({"weight_map": {**files, "d": "two.safetensors"}}))
    with pytest.raises(WeightsError, match="does not fit its shards: 1 missing: d"):
        load_tensors(index)
    index.write_text(json.dumps({"weight_map": {**files, "d": "three.safetensors"}}))
    with pytest.raises(WeightsError, match=r"three\.safetensors does not exist"):
        load_tensors(index)
    for broken in ("[]", "{}", "{"):
        index.write_text(broken)
        with pytest.raises(WeightsError, match="is no index of a sharded checkpoint: it has no readable 'weight_map'"):
            load_tensors(index)
