"""One picture of a clip: its frames, its spectrogram, and which frame each moment of sound was assigned to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avcap_zoo.errors import ShapeError
from avcap_zoo.ops.axes import ticks_within
from avcap_zoo.ops.heat_map import heat_map

_WIDTH = 1120
_MARGIN = 24
_LEFT, _RIGHT = 152, 1016
_PAGE, _INK, _MUTED, _RULE, _BLANK = (255, 255, 255), (29, 31, 36), (102, 106, 115), (214, 214, 208), (238, 238, 234)
_TITLE_PX, _CAPTION_PX, _LABEL_PX = 15, 22, 14
_WIDEST_THUMBNAIL = 104
_SPECTROGRAM_HEIGHT = 150
_LEAST_GAP_PX = 26


@dataclass(frozen=True)
class ClipParts:
    """What is known of a clip; what is not is None and is left out of the picture.

    Attributes:
        title: small, above the caption; such as the clip's id.
        caption: large.
        duration_s: length of the clip; None when it has no sound to measure, then frames are numbered.
        frames: (K, 3, H, W) uint8, in the middle of K equal parts of the clip.
        spectrogram: (F, T) energies, lowest band first.
        spectrogram_end_s: where the last column ends.
        highest_hz: upper edge of the highest band.
        plan: (K, N) transport plan, frames by audio tokens; any scale.
        plan_end_s: where the last token ends.
        remark: a line below, such as why something is missing.
    """

    title: str
    caption: str
    duration_s: float | None = None
    frames: NDArray[np.uint8] | None = None
    spectrogram: NDArray[Any] | None = None
    spectrogram_end_s: float = 0.0
    highest_hz: float = 8000.0
    plan: NDArray[Any] | None = None
    plan_end_s: float = 0.0
    remark: str = ""


def draw_clip(parts: ClipParts) -> NDArray[np.uint8]:
    """Draw a clip with one time axis, in seconds, under its frames, its spectrogram and its transport plan.

    The plan is shown as the share of each audio token that goes to each frame (a column sums to 100 %), with the frames
    again beside their rows. A dotted line marks where sound and frame are of the same moment.

    Args:
        parts: see `ClipParts`.

    Returns:
        (H, 1120, 3) uint8, RGB.

    Raises:
        ShapeError: the plan does not have one row per frame.
    """
    if parts.plan is not None and parts.frames is not None and len(parts.plan) != len(parts.frames):
        raise ShapeError(f"the plan has {len(parts.plan)} rows, the clip {len(parts.frames)} frames")
    sheet = _Sheet(parts)
    sheet.heading()
    if parts.frames is not None:
        sheet.frames(parts.frames)
    if parts.spectrogram is not None:
        sheet.spectrogram(parts.spectrogram)
    if parts.plan is not None:
        sheet.plan(parts.plan)
    if parts.remark:
        sheet.lines(parts.remark, _LABEL_PX, _MUTED)
    return sheet.cut()


class _Sheet:
    """A page that is filled from the top."""

    def __init__(self, parts: ClipParts) -> None:
        self.parts = parts
        ends_s = (parts.duration_s or 0.0, parts.spectrogram_end_s, parts.plan_end_s)
        self.end_s = max(ends_s) if parts.duration_s is not None else None
        rows = 0 if parts.plan is None else len(parts.plan)
        self.image = Image.new("RGB", (_WIDTH, 1200 + 40 * rows), _PAGE)
        self.draw = ImageDraw.Draw(self.image)
        self.y = _MARGIN

    def heading(self) -> None:
        """Title and caption."""
        self.lines(self.parts.title, _TITLE_PX, _MUTED)
        self.lines(self.parts.caption or "(no words)", _CAPTION_PX, _INK)
        self.y += 10

    def lines(self, text: str, size_px: int, colour: tuple[int, int, int]) -> None:
        """Text over the whole width, in as many lines as it needs."""
        font = _font(size_px)
        line = ""
        for word in [*text.split(), None]:
            longer = line if word is None else f"{line} {word}".strip()
            if line and (word is None or font.getlength(longer) > _WIDTH - 2 * _MARGIN):
                self.draw.text((_MARGIN, self.y), line, font=font, fill=colour)
                self.y += round(1.35 * size_px)
                longer = word or ""
            line = longer

    def frames(self, frames: NDArray[np.uint8]) -> None:
        """Thumbnails centred at their times."""
        lane = (self._x_of_share(1.0) - _LEFT) / len(frames)
        if self.end_s and self.parts.duration_s:
            lane *= self.parts.duration_s / self.end_s
        # Where lanes are narrow, thumbnails take turns in two rows and stay large enough to be seen.
        num_rows = 2 if lane < _WIDEST_THUMBNAIL / 2 else 1
        side = int(min(_WIDEST_THUMBNAIL, num_rows * lane - 3))
        centres = [_LEFT + lane * (index + 0.5) for index in range(len(frames))]
        bottom = self.y + num_rows * (side + 4)
        for index, (frame, centre) in enumerate(zip(frames, centres, strict=True)):
            left, top = round(centre - side / 2), self.y + (index % num_rows) * (side + 4)
            if num_rows == 2:
                self.draw.line([(centre, top + side), (centre, bottom + 4)], fill=_RULE)
            self.image.paste(_thumbnail(frame, side), (left, top))
            self.draw.line([(centre, bottom), (centre, bottom + 4)], fill=_MUTED)
        self._label(_MARGIN, self.y + num_rows * (side + 4) / 2, "frames", "lm")
        self.y = bottom + 8
        if self.parts.spectrogram is None and self.parts.plan is None:
            self._frame_axis(centres)

    def spectrogram(self, spectrogram: NDArray[Any]) -> None:
        """Energies over time and frequency."""
        right = self._x_of_time(self.parts.spectrogram_end_s)
        size = (max(1, right - _LEFT), _SPECTROGRAM_HEIGHT)
        low, high = np.quantile(spectrogram, (0.01, 0.999))
        pixels = heat_map(np.clip(spectrogram, low, max(high, low))[::-1])
        self._blank(_SPECTROGRAM_HEIGHT)
        self.image.paste(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR), (_LEFT, self.y))
        self._label(_MARGIN, self.y + _SPECTROGRAM_HEIGHT / 2, "sound (kHz)", "lm")
        for hertz in (500, 1000, 2000, 4000, 8000):
            if hertz <= self.parts.highest_hz:
                share = _mel(hertz) / _mel(self.parts.highest_hz)
                y = self.y + _SPECTROGRAM_HEIGHT * (1 - share)
                self.draw.line([(_LEFT - 5, y), (_LEFT - 1, y)], fill=_MUTED)
                self._label(_LEFT - 9, y + (6 if share == 1 else 0), f"{hertz / 1000:g}", "rm")
        self.y += _SPECTROGRAM_HEIGHT
        if self.parts.plan is None:
            self._time_axis()
        else:
            self.y += 8

    def plan(self, plan: NDArray[Any]) -> None:
        """Share of each audio token per frame, beside the frames."""
        num_frames, num_tokens = plan.shape
        row = min(36, max(22, 360 // num_frames))
        height = row * num_frames
        totals = plan.sum(axis=0, keepdims=True)
        shares = plan / np.where(totals > 0, totals, 1.0)
        right = self._x_of_time(self.parts.plan_end_s) if self.end_s else _RIGHT
        # A last token may hear hardly more than padding: it is shown, but does not set the range of the colours.
        heard = num_tokens
        if self.end_s and self.parts.duration_s:
            heard = max(1, round(num_tokens * min(1.0, self.parts.duration_s / self.parts.plan_end_s)))
        low, high = float(shares[:, :heard].min()), float(shares[:, :heard].max())
        pixels = heat_map(shares.clip(low, high))
        self._blank(height)
        cells = Image.fromarray(pixels).resize((max(1, right - _LEFT), height), Image.Resampling.NEAREST)
        self.image.paste(cells, (_LEFT, self.y))
        top = self.y
        for index in range(num_frames):
            centre = top + row * (index + 0.5)
            if self.parts.frames is not None:
                corner = (_LEFT - row - 2, round(centre - row / 2 + 1))
                self.image.paste(_thumbnail(self.parts.frames[index], row - 2), corner)
            self._label(_LEFT - row - 9, centre, self._frame_name(index, num_frames), "rm", size_px=12)
        if self.end_s and self.parts.duration_s:
            self._same_moment(top, height, self.parts.duration_s)
        self._label(_MARGIN, top + height / 2, "frame" if self.end_s is None else "frame at", "lm")
        self._colour_bar(top, height, low, high)
        self.y = top + height
        self._time_axis()
        self.lines(
            "Colour: share of each moment of sound that the transport plan assigns to a frame; a column sums to 100 %."
            + (" Dotted: sound and frame of the same moment." if self.end_s else ""),
            _LABEL_PX,
            _MUTED,
        )

    def cut(self) -> NDArray[np.uint8]:
        """The page as far as it was used."""
        return np.asarray(self.image.crop((0, 0, _WIDTH, self.y + _MARGIN)))

    def _same_moment(self, top: int, height: int, duration_s: float) -> None:
        right = self._x_of_time(min(duration_s, self.parts.plan_end_s))
        for x in range(_LEFT, right, 9):
            y = top + height * (x - _LEFT) / (self._x_of_time(duration_s) - _LEFT)
            self.draw.ellipse([x - 1.6, y - 1.6, x + 1.6, y + 1.6], fill=(255, 255, 255), outline=(60, 60, 60))

    def _colour_bar(self, top: int, height: int, low: float, high: float) -> None:
        left, bar_height = _RIGHT + 14, min(height, 160)
        ramp = heat_map(np.linspace(high, low, bar_height)[:, None] if high > low else np.zeros((bar_height, 1)))
        self.image.paste(Image.fromarray(ramp).resize((14, bar_height)), (left, top))
        self._label(left + 20, top + 6, f"{100 * high:.1f} %", "lm", size_px=12)
        self._label(left + 20, top + bar_height - 6, f"{100 * low:.1f} %", "lm", size_px=12)

    def _frame_name(self, index: int, num_frames: int) -> str:
        if self.end_s is None or not self.parts.duration_s:
            return str(index + 1)
        return f"{(index + 0.5) * self.parts.duration_s / num_frames:.2f} s"

    def _frame_axis(self, centres: Sequence[float]) -> None:
        if self.end_s is not None:
            self._time_axis()
            return
        every = -(-_LEAST_GAP_PX * len(centres) // (_RIGHT - _LEFT))
        for index in range(0, len(centres), every):
            self._label(centres[index], self.y, str(index + 1), "ma")
        self.y += 24

    def _time_axis(self) -> None:
        if self.end_s is None:
            self._label(_RIGHT, self.y + 6, "sound, from its start to its end", "ra")
            self.y += 34
            return
        self.draw.line([(_LEFT, self.y + 4), (_RIGHT, self.y + 4)], fill=_MUTED)
        for tick in ticks_within(self.end_s, 10):
            x = self._x_of_time(tick)
            self.draw.line([(x, self.y + 4), (x, self.y + 9)], fill=_MUTED)
            self._label(x, self.y + 12, f"{tick:g}", "ma")
        self._label(_RIGHT + 12, self.y + 12, "seconds", "la")
        self.y += 40

    def _blank(self, height: int) -> None:
        self.draw.rectangle([_LEFT, self.y, _RIGHT, self.y + height - 1], fill=_BLANK)

    def _x_of_time(self, time_s: float) -> int:
        return self._x_of_share(time_s / self.end_s if self.end_s else 1.0)

    @staticmethod
    def _x_of_share(share: float) -> int:
        return round(_LEFT + (_RIGHT - _LEFT) * share)

    def _label(self, x: float, y: float, text: str, anchor: str, size_px: int = _LABEL_PX) -> None:
        self.draw.text((x, y), text, font=_font(size_px), fill=_MUTED, anchor=anchor)


def _thumbnail(frame: NDArray[np.uint8], side: int) -> Image.Image:
    method = Image.Resampling.NEAREST if frame.shape[-1] < side else Image.Resampling.LANCZOS
    return Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))).resize((side, side), method)


def _font(size_px: int) -> Any:
    return ImageFont.load_default(size_px)


def _mel(hertz: float) -> float:
    return float(np.log1p(hertz / 700.0))
