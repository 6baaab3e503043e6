"""Pictures inside a page: data URIs, and line charts and matrices as SVG that takes its colours from the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avcap_zoo.data_modules.media.encoding import encode_jpg
from avcap_zoo.ops.axes import nice_ticks, ticks_within
from avcap_zoo.ops.heat_map import heat_map

# All sizes are in the units of the drawing, which a page shows at about one pixel each.
_CHART = (440, 250)
_MATRIX = (430, 190)
_LEFT, _TOP, _RIGHT = 46, 10, 12
_LANE = 17
_TICK = 18
_LABEL = 18


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Attributes:
        name: told to those who cannot see it.
        style: CSS class that gives the colour.
        points: (x, y) in order of x.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Lane:
    """A stretch of time beside a matrix: what is heard or seen from `onset_s` to `offset_s`."""

    label: str
    onset_s: float
    offset_s: float
    faint: bool = False


def data_uri(content: bytes, media_type: str) -> str:
    """Bytes as a URI that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def heat_map_uri(values: NDArray[Any]) -> str:
    """A matrix as a PNG, one pixel per number, dark to light."""
    buffer = io.BytesIO()
    Image.fromarray(heat_map(values)).save(buffer, format="PNG", optimize=True)
    return data_uri(buffer.getvalue(), "image/png")


def photo_uri(pixels: NDArray[np.uint8]) -> str:
    """A (H, W, 3) picture as a JPEG."""
    return data_uri(encode_jpg(pixels), "image/jpeg")


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str, from_zero: bool = False) -> str:
    """Curves over common axes.

    Args:
        lines: one or more; those without points are left out.
        x_label: below the axis.
        y_label: above the axis.
        from_zero: whether the vertical axis begins at 0.

    Returns:
        An `<svg>` element, or a paragraph where there is nothing to draw.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return '<p class="note">nothing was logged</p>'
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points]
    x_ticks = nice_ticks(0, max(xs), 4)
    y_ticks = nice_ticks(0 if from_zero else min(ys), max(ys))
    width, height = _CHART
    top, bottom = _TOP + _LABEL, height - _TICK - _LABEL

    def x_at(x: float) -> float:
        return _LEFT + (width - _LEFT - _RIGHT) * x / x_ticks[-1]

    def y_at(y: float) -> float:
        return bottom - (bottom - top) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    parts = [_text(0, _TOP + 4, y_label, "start")]
    for tick in y_ticks:
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y_at(tick):.1f}" y2="{y_at(tick):.1f}"/>'
        )
        parts.append(_text(_LEFT - 7, y_at(tick) + 4, f"{tick:g}", "end"))
    parts += [_text(x_at(tick), bottom + _TICK, f"{tick:g}", "middle") for tick in x_ticks]
    parts.append(_text(width - _RIGHT, height - 2, x_label, "end"))
    for line in drawn:
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="curve {line.style}" points="{path}"/>')
        if len(line.points) <= 12:
            parts += [
                f'<circle class="dot {line.style}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3"/>'
                for x, y in line.points
            ]
    told = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in drawn)
    return _svg(width, height, f"{y_label} over {x_label}: {told}", parts)


def matrix_picture(
    values: NDArray[Any],
    *,
    told: str,
    x_end_s: float,
    x_label: str,
    y_label: str,
    y_end_s: float | None = None,
    below: Sequence[Lane] = (),
    beside: Sequence[Lane] = (),
) -> str:
    """A matrix as a heat map, with time to the right and perhaps downwards, and what happens when along its sides.

    Args:
        values: (rows, columns); the first row is drawn at the top.
        told: what it is, for those who cannot see it.
        x_end_s: time at the right edge.
        x_label: below the axis.
        y_label: along the left side.
        y_end_s: time at the lower edge; None leaves the vertical axis without numbers.
        below: drawn under the map, on its horizontal axis.
        beside: drawn right of the map, on its vertical axis; needs `y_end_s`.
    """
    width, plot_height = _MATRIX
    right, bottom = width - _RIGHT - _LANE * len(beside), _TOP + plot_height
    plot_width = right - _LEFT
    axis = bottom + _LANE * len(below) + (4 if below else 0)
    height = axis + _TICK + _LABEL
    size = f'x="{_LEFT}" y="{_TOP}" width="{plot_width}" height="{plot_height}"'
    turn = f"translate(12 {_TOP + plot_height / 2:.0f}) rotate(-90)"
    parts = [
        f'<image class="cells" href="{heat_map_uri(values)}" {size} preserveAspectRatio="none"/>',
        f'<text class="label" text-anchor="middle" transform="{turn}">{escape(y_label)}</text>',
    ]
    for tick in ticks_within(x_end_s):
        x = _LEFT + plot_width * tick / x_end_s
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{axis}" y2="{axis + 4}"/>')
        parts.append(_text(x, axis + _TICK - 1, f"{tick:g}", "middle"))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{axis}" y2="{axis}"/>')
    parts.append(_text(right, height - 3, x_label, "end"))
    if y_end_s is not None:
        for tick in ticks_within(y_end_s):
            y = _TOP + plot_height * tick / y_end_s
            parts.append(f'<line class="axis" x1="{_LEFT - 4}" x2="{_LEFT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(_LEFT - 7, y + 4, f"{tick:g}", "end"))
    for number, lane in enumerate(below):
        parts.append(_lane(lane, plot_width / x_end_s, plot_width, f"translate({_LEFT} {bottom + 4 + _LANE * number})"))
    for number, lane in enumerate(beside if y_end_s is not None else ()):
        # Turned by a right angle: along the lane is downwards, across it is to the left.
        corner = f"translate({right + 4 + _LANE * (number + 1)} {_TOP}) rotate(90)"
        parts.append(_lane(lane, plot_height / (y_end_s or 1.0), plot_height, corner))
    return _svg(width, height, told, parts)


def _lane(lane: Lane, scale: float, length: float, where: str) -> str:
    start = max(0.0, lane.onset_s * scale)
    end = min(length, lane.offset_s * scale)
    # A label may be longer than its bar: it then runs towards the middle of the picture.
    anchor, x = ("end", end - 5) if (start + end) / 2 > 0.6 * length else ("start", start + 5)
    return (
        f'<g transform="{where}"><rect class="lane{" faint" if lane.faint else ""}" x="{start:.1f}" y="1" '
        f'width="{max(2.0, end - start):.1f}" height="{_LANE - 3}" rx="3"/>'
        f'<text class="lane-label" x="{x:.1f}" y="{_LANE - 6}" text-anchor="{anchor}">{escape(lane.label)}</text></g>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: float, height: float, told: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(told, quote=True)}">'
        + "".join(parts)
        + "</svg>"
    )
