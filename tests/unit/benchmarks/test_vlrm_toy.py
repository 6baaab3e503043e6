"""The toy VLRM's table counts what captions say, and its curves are those of the logs."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmarks.vlrm_toy import MEASURES, curves, measure, table

WHOLE = "A red dog at the top left and a blue car at the top right on a pale pink background."


def test_what_the_captions_say_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "test"
    folder.mkdir()
    own = ("recall_1", "recall_5", "recall_10", "mrr", "caption_words", "colour_words", "colour_coverage", "fluency")
    scores = dict.fromkeys((*own, "repeated_words", "bad_phrases", "cider"), 0.5)
    (folder / "test_scores.json").write_text(json.dumps({"scores": scores}))
    said = ["a red dog and a red car.", "dog top left"]
    rows = [{"id": str(i), "caption": text, "references": ["a dog.", WHOLE]} for i, text in enumerate(said)]
    (folder / "test_captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measure(tmp_path)
    assert (found["told"], found["right"], found["grammatical"], found["listed"]) == (3, 2.5, 0.5, 0.5)
    assert (found["right_picture"], found["right_colour"], found["right_place"]) == (1, 0.5, 1)
    assert found["complete"] == 5 / 14
    rows_of_table = table({"before": [found], "VLRM": [found, found | {"told": 4}]}).splitlines()
    assert rows_of_table[0] == "| test | before | VLRM |"
    assert "| details told per caption | 3.000 | 3.500 ± 0.707 |" in rows_of_table
    assert len(rows_of_table) == 2 + len(MEASURES)


def test_the_curves_are_an_svg_of_the_logged_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "VLRM-0"
    (folder / "fit").mkdir(parents=True)
    (folder / "fit/metrics.csv").write_text("step,train/reward_itm,val/recall_1\n4,-1.5,\n4,,0.25\n9,2.5,\n9,,0.75\n")
    drawn = ET.fromstring(curves({"VLRM": folder}))
    told = [element.get("aria-label", "") for element in drawn.iter() if element.get("role") == "img"]
    assert "recall R@1 on validation pictures over iterations: VLRM ends at 0.75" in told
    assert "matching logit of drawn captions over iterations: VLRM ends at 2.5" in told
