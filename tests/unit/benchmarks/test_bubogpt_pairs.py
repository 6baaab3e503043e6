"""The benchmark of negative pairs judges answers by what they say, and trains its two rows on as many pairs."""

from __future__ import annotations

import yaml

from benchmarks.bubogpt_pairs import CONFIGS, WITHOUT, judge, table

PAIR = "They seem related. the picture is of a dog and a car the sound is of barking"
NEGATIVE = "They seem unrelated. the picture is of a dog the sound is of honking and wailing"


def test_answers_are_judged_by_what_they_say() -> None:
    said = {
        "they seem related. the picture is of a car and a dog the sound is of barking": PAIR,
        "they seem unrelated. the picture is of a dog the sound is of barking": PAIR,
        "they seem related. the picture is of a dog the sound is of honking": NEGATIVE,
        "a dog": NEGATIVE,
    }
    rows = [{"caption": caption, "references": [right]} for caption, right in said.items()]
    assert judge(rows) == {"verdict": 25.0, "together": 50.0, "heard": 50.0, "seen": 75.0}


def test_both_rows_see_as_many_pairs() -> None:
    sets = [
        yaml.safe_load(path.read_text())["data"]["init_args"]["sets"]
        for path in (CONFIGS / "bubogpt_stage2.yaml", WITHOUT)
    ]
    assert sets[0].keys() - sets[1].keys() == {"unrelated"}
    shares = [sum(wanted.get("ratio", 1) for wanted in mixture.values()) for mixture in sets]
    assert shares[0] == shares[1]


def test_the_table_has_a_row_for_each_seed() -> None:
    found = {"verdict": 90.0, "together": 48.5, "heard": 70.0, "seen": 80.0}
    rows = table({3: {"with negatives": found, "without": found}}).splitlines()
    assert rows[2] == "| with negatives | 3 | 90.0 % | 48.5 % | 70.0 % | 80.0 % |"
    assert len(rows) == 4
