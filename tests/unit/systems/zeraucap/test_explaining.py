"""Explanations say what was decided, and nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from avcap_zoo.batch import Batch
from avcap_zoo.systems.zeraucap.explaining import NUM_SHOWN
from avcap_zoo.systems.zeraucap.module import ZerAuCap
from tests.unit.systems.zeraucap.toy import built, sounds, toy_system

NUMBER = r"-?\d+\.\d{3}"


class Balanced(HTMLParser):
    """Fails on a tag that is not closed; gathers rows and words."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows = 0
        self.words = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def read(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> ZerAuCap:
    return built(toy_system(tmp_path_factory.mktemp("toy"), keywords={"num_keywords": 2}))


def test_the_captions_are_those_of_caption(system: ZerAuCap) -> None:
    batch = sounds(0.8, 0.5)
    found = system.explain(batch)
    assert [one.caption for one in found] == system.caption(batch)
    assert [one.clip_id for one in found] == batch.clip_ids
    assert system.explain(Batch([], [], [])) == []


def test_the_table_shows_every_step(system: ZerAuCap) -> None:
    batch = sounds(0.8)
    (clip,) = system.model.describe(batch, trace=True)
    (found,) = system.explain(batch)
    assert clip.text.trace is not None
    steps = len(clip.text.trace)
    lines = found.text.splitlines()
    assert lines[0] == f"caption   {clip.caption}"
    assert lines[1] == "keywords  " + ", ".join(
        f"{word} {cosine:.3f}" for word, cosine in zip(clip.keywords, clip.similarities, strict=True)
    )
    assert lines[2] == f"prompt    {clip.prompt}".rstrip(" ") + " "
    table = lines[4:-1]
    assert len(table) == steps * NUM_SHOWN
    assert all(re.search(rf"{NUMBER} +{NUMBER} +{NUMBER}$", line) for line in table)
    assert [line[:4].strip() for line in table[::NUM_SHOWN]] == [str(step) for step in range(1, steps + 1)]
    assert {line[:4] for place, line in enumerate(table) if place % NUM_SHOWN} == {"    "}
    chosen = [line for line in table if "  >  " in line]
    assert len(chosen) == steps
    assert [table.index(line) % NUM_SHOWN for line in chosen] == [0] * steps
    best = clip.text.trace[0].scores[clip.text.trace[0].chosen]
    assert table[0].endswith(f"{best:.3f}")
    parser = read(found.page)
    assert parser.rows == 1 + steps * NUM_SHOWN
    assert clip.caption in parser.words


def test_without_guidance_there_is_no_similarity(tmp_path: Path) -> None:
    system = built(toy_system(tmp_path, guided={"beta": 0.0}, keywords={"num_keywords": 0}))
    (found,) = system.explain(sounds(0.5))
    assert "keywords  none" in found.text
    table = found.text.splitlines()[4:-1]
    assert all(re.search(rf"{NUMBER} +- +{NUMBER}$", line) for line in table)


def test_a_page_escapes_what_it_shows(tmp_path: Path) -> None:
    words = tmp_path / "marked.txt"
    words.write_text("<b>rain & co\n<i>\n", encoding="utf-8")
    system = built(toy_system(tmp_path, keywords={"source": str(words)}))
    (found,) = system.explain(sounds(0.5))
    assert "<b>rain" not in found.page
    assert "<b>rain & co" in read(found.page).words
