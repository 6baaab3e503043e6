from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avcap_zoo.tables.clip_views import ClipView
from avcap_zoo.tables.report import DemoRecord, report_html, write_report
from avcap_zoo.tables.run_results import read_annotations, read_run
from tests.unit.tables.runs import write_run

VOID = {"meta", "img", "br", "input", "link", "hr"}


class Page(HTMLParser):
    """What a page holds: the text, the attributes of every element, and what is opened and never closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1:] == [tag]:
            self.open.pop()
        else:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def attributes(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def view(clip_id: str, plan: bool = True) -> ClipView:
    return ClipView(
        clip_id=clip_id,
        duration_s=5.0,
        wav=b"RIFF....",
        frames=np.zeros((20, 64, 64, 3), dtype=np.uint8),
        frame_times_s=0.25 * np.arange(20, dtype=np.float64),
        spectrogram=np.random.default_rng(0).random((64, 200), dtype=np.float32),
        plan=np.full((20, 13), 1 / 260, dtype=np.float32) if plan else None,
        plan_end_s=5.2,
    )


@pytest.fixture(scope="session")
def truth(scenes_root: Path) -> dict[str, dict[str, Any]]:
    return read_annotations(scenes_root)


@pytest.fixture
def record(tmp_path: Path, truth: dict[str, dict[str, Any]]) -> DemoRecord:
    """The model with pictures is right on all six clips but one, the other on none; one says something rude."""
    references = {clip_id: row["captions"] for clip_id, row in truth.items()}
    right = {clip_id: captions[0] for clip_id, captions in references.items()}
    ids = sorted(truth)
    right[ids[1]] = "<script>alert('bark')</script> & more"
    runs = [
        read_run(title, write_run(tmp_path / title, said, references, cider=cider), truth)
        for title, said, cider in (
            ("Sound and pictures", right, 2.4567),
            ("Sound alone", dict.fromkeys(ids, "a choir sings"), 1.2346),
        )
    ]
    return DemoRecord(
        audio_visual=runs[0],
        audio_only=runs[1],
        annotations=truth,
        views=[view(ids[0]), view(ids[1], plan=False)],
        commands=["avcap fit -c a.yaml", "avcap test -c 'b & c.yaml'"],
        settings={"a.yaml": "seed: <none>\n"},
        duration_s=312.4,
    )


def test_the_page_needs_nothing_but_itself(record: DemoRecord) -> None:
    html = report_html(record)
    page = Page(html)
    assert "http://" not in html
    assert "https://" not in html
    assert page.attributes("link") == []
    assert [attributes for attributes in page.attributes("script") if "src" in attributes] == []
    sources = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in {"src", "href", "poster", "srcset", "data", "action"}
    ]
    assert len(sources) > 20
    assert all(source.startswith("data:") for source in sources)
    assert "url(" not in html
    (policy,) = [meta["content"] for meta in page.attributes("meta") if "http-equiv" in meta]
    assert "default-src 'none'" in policy


def test_the_page_is_well_formed(record: DemoRecord) -> None:
    page = Page(report_html(record))
    assert (page.open, page.crossed) == ([], [])
    assert any(meta.get("name") == "viewport" for meta in page.attributes("meta"))
    assert all(image["alt"] for image in page.attributes("img"))


def test_what_models_say_is_text(record: DemoRecord) -> None:
    page = Page(report_html(record))
    assert len(page.attributes("script")) == 1
    assert "".join(page.texts).count("<script>alert('bark')</script> & more") == 2  # its view and its row
    assert "avcap test -c 'b & c.yaml'" in "".join(page.texts)
    assert "seed: <none>" in "".join(page.texts)


def test_numbers_come_from_the_files(record: DemoRecord) -> None:
    text = " ".join("".join(Page(report_html(record)).texts).split())
    for number in (
        "83 %",
        "83.3 %",
        "0 %",
        "245.7",
        "123.5",
        "12.5",
        "5 min 12 s",
        "6 unseen clips",
        "1,234",
        "torch 8.8",
    ):
        assert number in text, number
    assert "METEOR" not in text  # the runs have none


def test_every_clip_has_a_row_and_its_state(record: DemoRecord) -> None:
    rows = [row["data-right"] for row in Page(report_html(record)).attributes("tr") if "data-right" in row]
    assert sorted(rows) == ["first"] * 5 + ["none"]


def test_every_view_has_sound_frames_and_pictures(record: DemoRecord) -> None:
    page = Page(report_html(record))
    assert len(page.attributes("audio")) == 2
    assert all(audio["src"].startswith("data:audio/wav;base64,") for audio in page.attributes("audio"))
    assert len(page.attributes("img")) == 2 * 8
    assert len(page.attributes("image")) == 2 + 1  # spectrograms, and one plan
    assert len(page.attributes("svg")) == 2 + 2 + 1  # and the learning curves


def test_what_was_reused_is_told(record: DemoRecord) -> None:
    told = DemoRecord(**{**vars(record), "reused": "The scenes were there."})
    assert "The scenes were there." in report_html(told)


def test_a_small_difference_is_not_sold(record: DemoRecord) -> None:
    equal = DemoRecord(**{**vars(record), "audio_only": record.audio_visual})
    assert "too small to tell from chance" in report_html(equal)
    assert "more than chance explains" in report_html(record)


def test_the_page_is_written(tmp_path: Path, record: DemoRecord) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, record)
    assert path.read_text(encoding="utf-8") == report_html(record)
