from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from avcap_zoo.tables.pictures import Lane, Line, heat_map_uri, line_chart, matrix_picture, photo_uri


def picture_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_heat_map_has_a_pixel_per_number() -> None:
    picture = picture_of(heat_map_uri(np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])))
    assert (picture.format, picture.size) == ("PNG", (3, 2))
    grey = np.asarray(picture.convert("L"), dtype=int).ravel()
    assert (np.diff(grey) > 0).all()


def test_a_photo_is_a_jpeg() -> None:
    uri = photo_uri(np.full((16, 24, 3), 200, dtype=np.uint8))
    assert uri.startswith("data:image/jpeg;base64,")
    assert picture_of(uri).size == (24, 16)


def test_curves_lie_in_the_chart_and_rise_where_values_rise() -> None:
    lines = [Line("a <b>", "first", [(0, 1.0), (50, 2.0)]), Line("empty", "second", [])]
    svg = ET.fromstring(line_chart(lines, x_label="steps & more", y_label="loss"))
    (curve,) = svg.findall("polyline")
    points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    assert all(0 < x < width and 0 < y < height for x, y in points)
    assert points[0][0] < points[1][0]
    assert points[0][1] > points[1][1]  # SVG counts downwards
    assert "a <b> ends at 2" in svg.attrib["aria-label"]
    assert any(text.text == "steps & more" for text in svg.iter("text"))


def test_an_axis_can_begin_at_zero() -> None:
    line = Line("a", "first", [(0, 70.0), (50, 90.0)])

    def numbers(chart: str) -> list[str]:
        return re.findall(r'text-anchor="end">([\d.]+)<', chart)

    assert "0" in numbers(line_chart([line], x_label="x", y_label="y", from_zero=True))
    assert "0" not in numbers(line_chart([line], x_label="x", y_label="y"))


def test_nothing_to_draw_is_said() -> None:
    assert "nothing was logged" in line_chart([Line("a", "first", [])], x_label="x", y_label="y")


def test_matrix_with_lanes_on_both_sides() -> None:
    svg = ET.fromstring(
        matrix_picture(
            np.eye(4),
            told="a <plan>",
            x_end_s=8.0,
            x_label="s",
            y_label="s",
            y_end_s=4.0,
            below=[Lane("bark", 2.0, 4.0)],
            beside=[Lane("dog", 0.0, 4.0), Lane("cat & co", 1.0, 9.0, faint=True)],
        )
    )
    (image,) = svg.findall("image")
    assert picture_of(image.attrib["href"]).size == (4, 4)
    bars = [(group.find("rect"), group.find("text")) for group in svg.findall("g")]
    assert [text.text for _, text in bars if text is not None] == ["bark", "dog", "cat & co"]
    bark, dog, cat = (rect.attrib for rect, _ in bars if rect is not None)
    width, height = float(image.attrib["width"]), float(image.attrib["height"])
    assert float(bark["x"]) == pytest.approx(width / 4, abs=0.1)
    assert float(bark["width"]) == pytest.approx(width / 4, abs=0.1)
    assert float(dog["width"]) == pytest.approx(height, abs=0.1)
    assert float(cat["x"]) + float(cat["width"]) == pytest.approx(height, abs=0.1)  # cut at the end
    assert "faint" in cat["class"]


def test_matrix_without_time_downwards_has_no_lanes_beside() -> None:
    svg = ET.fromstring(
        matrix_picture(np.eye(2), told="x", x_end_s=1.0, x_label="s", y_label="bands", beside=[Lane("dog", 0, 1)])
    )
    assert svg.findall("g") == []
