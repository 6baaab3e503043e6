"""Golden cases: inputs, weights and outputs computed with the official implementations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Comparison:
    """One tensor that was compared. `benchmarks/parity_table.py` prints them.

    Attributes:
        case: name of the case.
        tensor: what was compared.
        tolerance: relative and absolute, both 0 for exact equality.
        difference: the largest absolute one.
        used: the largest share of the tolerance that an entry uses; 1 = at the limit.
    """

    case: str
    tensor: str
    tolerance: tuple[float, float]
    difference: float
    used: float


COMPARISONS: list[Comparison] = []
"""All of this process."""


@dataclass
class GoldenCase:
    """One case: its config, tensors and tolerances."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tolerance: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def weights(self, prefix: str = "weight.") -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}

    def check(self, name: str, got: Tensor) -> None:
        """Compare with the case's own rule: abs(got - want) <= atol + rtol * abs(want), or exact."""
        want, tolerance = self.tensors[name], self.tolerance[name]
        if tolerance == "exact":
            assert torch.equal(got.to(want.dtype), want), f"{self.name}: {name} differs"
            COMPARISONS.append(Comparison(self.name, name, (0, 0), 0, 0))
            return
        assert got.shape == want.shape, f"{self.name}: {name} is {tuple(got.shape)}, wanted {tuple(want.shape)}"
        difference = (got.detach() - want).abs()
        allowed = tolerance["atol"] + tolerance["rtol"] * want.abs()
        largest, used = float(difference.max()), float((difference / allowed.clamp_min(1e-30)).max())
        assert float((difference - allowed).max()) <= 0, f"{self.name}: {name} is off by {largest:.3g}"
        COMPARISONS.append(Comparison(self.name, name, (tolerance["rtol"], tolerance["atol"]), largest, used))


def compare_within(case: str, name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    """Compare with one absolute tolerance for every entry; 0 = exact."""
    assert got.shape == want.shape, f"{case}: {name} is {tuple(got.shape)}, wanted {tuple(want.shape)}"
    largest = float((got.detach().double() - want.double()).abs().max()) if want.numel() else 0.0
    assert largest <= tolerance, f"{case}: {name} is off by {largest:.3g}"
    COMPARISONS.append(Comparison(case, name, (0, tolerance), largest, largest / tolerance if tolerance else 0))


def golden_names(system: str, prefix: str) -> list[str]:
    """Names of the cases of one kind, sorted."""
    return sorted(path.stem for path in (GOLDEN / system).glob(f"{prefix}*.json"))


def load_case(system: str, name: str) -> GoldenCase:
    """Read one case."""
    manifest = json.loads((GOLDEN / system / f"{name}.json").read_text())
    tensors = load_file(GOLDEN / system / manifest["file"])
    return GoldenCase(name, manifest["config"], tensors, manifest["tolerance"])


def listed_cases(system: str, prefix: str, tolerance: dict[str, float]) -> list[GoldenCase]:
    """Cases of one kind in a folder whose `manifest.json` describes all of them.

    Args:
        system: name of the folder.
        prefix: how the files of the kind are named.
        tolerance: absolute, of each output by its name without `out.`; outputs that are not named have that of "".
    """
    folder = GOLDEN / system
    listed: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    cases = []
    for path in sorted(folder.glob(f"{prefix}*.safetensors")):
        tensors = load_file(path)
        outputs = [name for name in tensors if name.startswith("out.")]
        allowed = {n: {"rtol": 0.0, "atol": tolerance.get(n.removeprefix("out."), tolerance[""])} for n in outputs}
        cases.append(GoldenCase(path.stem, listed[path.name], tensors, allowed))
    return cases
