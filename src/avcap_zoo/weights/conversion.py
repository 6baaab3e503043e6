"""What a system says about its official checkpoints, so that one command converts those of every system."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from avcap_zoo.errors import WeightsError
from avcap_zoo.weights.fingerprint import fingerprint
from avcap_zoo.weights.load import compare_keys

NEVER = re.compile(r"(?!)")
"""Matches no name."""

_LISTED = 5


@dataclass(frozen=True)
class Conversion:
    """The official names of a system's model and ours; a `systems/<name>/keymap.py` that has one calls it CONVERSION.

    Attributes:
        to_ours: official state dict to names of our model. Names it does not know are passed on as they are, so that
            they are reported.
        to_official: the way back.
        unused: our names that an official file may hold although its model does not use them; left out where our model
            has no place for them.
        ours_alone: our names that have no place in official checkpoints.
    """

    to_ours: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    to_official: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    unused: re.Pattern[str] = NEVER
    ours_alone: re.Pattern[str] = NEVER

    def take(
        self, official: Mapping[str, Tensor], state: Mapping[str, Tensor], held: set[str], origin: str
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Our names for an official state dict, with every name accounted for.

        Args:
            official: what the file holds.
            state: state dict of our model, with its base loaded.
            held: the names of `state` that a checkpoint of ours holds; all must be in the file. The others may be, as
                in a full state dict, and must then be the same weights.
            origin: what the file is, for messages.

        Returns:
            The tensors to hold, and those of the frozen base that the file repeats.

        Raises:
            WeightsError: missing, unknown and mis-shaped names, all at once; or another frozen base.
        """
        ours = {n: t for n, t in self.to_ours(official).items() if n in state or not self.unused.search(n)}
        wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if name in held or name in ours}
        problems = compare_keys(wanted, ours)
        if problems:
            raise WeightsError(f"{origin} does not fit the configured model: {problems}")
        repeated = {name: tensor for name, tensor in ours.items() if name not in held}
        others = [n for n, t in sorted(repeated.items()) if fingerprint({n: t}) != fingerprint({n: state[n]})]
        if others:
            raise WeightsError(
                f"{origin} was made on another base: {len(others)} of its {len(repeated)} frozen tensors differ from "
                f"the configured ones: {', '.join(others[:_LISTED])}{', ...' if len(others) > _LISTED else ''}; "
                f"check the sources of the backbones in model.init_args"
            )
        return {name: tensor for name, tensor in ours.items() if name in held}, repeated

    def give(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An official state dict of our tensors, without those that have no place there."""
        return self.to_official({name: value for name, value in ours.items() if not self.ours_alone.search(name)})
