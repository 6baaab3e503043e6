"""Weight files beside a list of what they should be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
import yaml

from avcap_zoo.errors import WeightsError
from avcap_zoo.weights.load import load_tensors


def listed(folder: Path, **entry: object) -> Path:
    path = folder / "x.pth"
    torch.save({"a": torch.randn(2000)}, path)
    weights = [{"id": "other", "hub_id": "a/b"}, {"id": "x", "file": "x.pth", **entry}]
    (folder / "manifest.yaml").write_text(yaml.safe_dump({"weights": weights}))
    return path


def test_a_broken_download_is_named_before_it_is_read(tmp_path: Path) -> None:
    path = listed(tmp_path, size_bytes=1_234_567)
    size = path.stat().st_size
    with pytest.raises(
        WeightsError, match=rf"x.pth has {size:,} bytes, .*manifest.yaml lists 1,234,567: a broken down"
    ):
        load_tensors(path)


def test_another_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="lists 17: another file; fetch it again"):
        load_tensors(listed(tmp_path, size_bytes=17))


def test_the_hash_is_compared_where_it_is_known(tmp_path: Path) -> None:
    path = listed(tmp_path, sha256="0" * 64)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=f"x.pth has sha256 {found}, .* lists {'0' * 64}"):
        load_tensors(path)
    entry = {"file": "x.pth", "size_bytes": path.stat().st_size, "sha256": found.upper()}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({"weights": [entry]}))
    assert load_tensors(path)["a"].shape == (2000,)


@pytest.mark.parametrize("content", ["", "[1, 2]", "weights: 3", "weights: [x, {file: y.pth, size_bytes: 1}]"])
def test_a_list_that_says_nothing_of_the_file_is_passed_over(tmp_path: Path, content: str) -> None:
    path = listed(tmp_path)
    (tmp_path / "manifest.yaml").write_text(content)
    assert load_tensors(path)["a"].shape == (2000,)


def test_an_unreadable_list_is_an_error(tmp_path: Path) -> None:
    path = listed(tmp_path)
    (tmp_path / "manifest.yaml").write_text("weights: [")
    with pytest.raises(WeightsError, match=r"the list of weights, is not readable YAML"):
        load_tensors(path)


def test_a_truncated_file_without_a_list_says_how_long_it_is(tmp_path: Path) -> None:
    path = listed(tmp_path)
    (tmp_path / "manifest.yaml").unlink()
    path.write_bytes(path.read_bytes()[:4321])
    with pytest.raises(WeightsError, match=r"x.pth cannot be read as weights \(truncated\?\), it has 4,321 bytes: "):
        load_tensors(path)
