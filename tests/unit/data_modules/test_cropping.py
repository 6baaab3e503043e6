from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from avcap_zoo.data_modules.cropping import crop

SOUND: Any = np.arange(10, dtype=np.float32)


@pytest.mark.parametrize(("policy", "first"), [("start", 0), ("centre", 3)])
def test_where_the_part_lies(policy: Any, first: int) -> None:
    assert crop(SOUND, 4, policy, "a").tolist() == list(range(first, first + 4))


@pytest.mark.parametrize("policy", ["start", "centre", "seeded"])
@pytest.mark.parametrize("longest", [10, 11])
def test_short_sounds_stay(policy: Any, longest: int) -> None:
    assert crop(SOUND, longest, policy, "a") is SOUND


def test_seeded_parts_depend_on_the_key_alone_and_reach_both_ends() -> None:
    firsts = [int(crop(SOUND, 4, "seeded", f"0 0 {number}")[0]) for number in range(200)]
    assert firsts == [int(crop(SOUND, 4, "seeded", f"0 0 {number}")[0]) for number in range(200)]
    assert set(firsts) == set(range(7))
    assert crop(SOUND, 4, "seeded", "0 0 young artists").tolist() == [4.0, 5.0, 6.0, 7.0]
