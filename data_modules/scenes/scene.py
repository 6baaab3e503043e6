"""One scene: what happens in a clip, and how it sounds, looks and reads.

A scene is a pure function of (seed, split, index). It is small; sound, frames, masks and captions are made from it on
demand and are the same every time.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from avcap_zoo.data_modules.scenes.events import (
    EVENT_NAMES,
    EVENTS,
    PICTURES,
    RELATIONS,
    SOUNDS_OF_PICTURE,
    SPLITS,
    Loudness,
    Relation,
    Speed,
    Split,
)
from avcap_zoo.data_modules.scenes.grammar import (
    PLACES,
    EventMention,
    ObjectMention,
    detailed_text,
    picture_captions,
    terse_caption,
)
from avcap_zoo.data_modules.scenes.pictures import BACKGROUNDS, COLOURS, draw_background, icon_extent, icon_pixels
from avcap_zoo.data_modules.scenes.sounds import check_sample_rate, limit_peaks, synthesise_sound
from avcap_zoo.errors import ConfigError

SCENES_VERSION: Final = 1
"""Rises whenever the same (seed, split, index) gives another clip than before."""

MAX_DURATION_S: Final = 10.0
RELATION_SHARES: Final[dict[Relation, float]] = {"single": 0.3, "then": 0.4, "while": 0.3}
DISTRACTOR_SHARE: Final = 0.3

_JITTER_STEP_S: Final = 0.5
_JITTER: Final = 2 / 64  # of the side: two pixels at 64 px
_LONE_SIDE: Final = (0.45, 0.62)
_CROWDED_SIDE: Final = (0.42, 0.5)
_MAX_INDEX: Final = 1 << 40


@dataclass(frozen=True)
class SceneEvent:
    """One event of a scene. Times are seconds from the start of the clip; the sound lasts from onset to offset."""

    name: str
    loudness: Loudness
    speed: Speed
    onset_s: float
    offset_s: float

    @property
    def sound(self) -> str:
        """One of `events.SOUNDS`."""
        return EVENTS[self.name].sound

    @property
    def picture(self) -> str:
        """One of `events.PICTURES`."""
        return EVENTS[self.name].picture


@dataclass(frozen=True)
class SceneObject:
    """One visible object.

    Attributes:
        picture: one of `events.PICTURES`.
        colour: one of `pictures.COLOURS`.
        place: one of `grammar.PLACES`.
        mirrored: whether it looks the other way.
        side: side of its square, as a fraction of the picture's side.
        centre_x: of the square, before the jitter, as a fraction from the left.
        centre_y: the same from the top.
        onset_s: seconds from the start of the clip at which it appears.
        offset_s: at which it is gone.
        events: positions in `Scene.events` of the events it makes; empty for a silent object.
    """

    picture: str
    colour: str
    place: str
    mirrored: bool
    side: float
    centre_x: float
    centre_y: float
    onset_s: float
    offset_s: float
    events: tuple[int, ...]

    @property
    def silent(self) -> bool:
        """Whether none of the sounds comes from it."""
        return not self.events


@dataclass(frozen=True)
class Scene:
    """A clip before it is rendered.

    Attributes:
        seed: of the whole data set.
        split: "train", "val" or "test".
        index: number within the split.
        clip_id: eleven characters, as on YouTube.
        start_time_s: whole seconds; a made-up position in the "full video", as AudioCaps and VGGSound have.
        duration_s: 3 to 10, a multiple of 0.5.
        relation: how the events follow one another.
        events: one for "single", else two, in the order in which they start.
        objects: everything visible, later ones in front; the silent distractor, if any, is the last.
        background: one of `pictures.BACKGROUNDS`.
        noise_rms: of the faint noise under everything.
        stream: the random stream of the scene; everything rendered derives from it.
    """

    seed: int
    split: Split
    index: int
    clip_id: str
    start_time_s: int
    duration_s: float
    relation: Relation
    events: tuple[SceneEvent, ...]
    objects: tuple[SceneObject, ...]
    background: str
    noise_rms: float
    stream: tuple[int, ...]

    @property
    def distractor(self) -> SceneObject | None:
        """The silent object, or None."""
        last = self.objects[-1]
        return last if last.silent else None

    @property
    def mentions(self) -> tuple[EventMention, ...]:
        """The events as the grammar needs them."""
        return tuple(EventMention(event.name, event.loudness, event.speed) for event in self.events)

    @property
    def media_stem(self) -> str:
        """`<clip_id>_<start in milliseconds>`, the file name without ending in AudioCaps folders."""
        return f"{self.clip_id}_{self.start_time_s * 1000}"


def sample_scene(seed: int, split: Split, index: int, *, relation: Relation | None = None) -> Scene:
    """Draw one scene.

    Splits are disjoint by construction: each has random streams and clip ids of its own.

    Args:
        seed: of the data set, 0 or more.
        split: "train", "val" or "test".
        index: number within the split, 0 or more.
        relation: forces the relation; None draws it by `RELATION_SHARES`. A forced scene has a clip id of its own.

    Returns:
        The scene; equal for equal arguments.

    Raises:
        ConfigError: a split or relation that does not exist, or a negative seed or index.
    """
    if split not in SPLITS:
        raise ConfigError(f"there is no split {split!r}; the splits are {', '.join(SPLITS)}")
    if relation is not None and relation not in RELATIONS:
        raise ConfigError(f"there is no relation {relation!r}; the relations are {', '.join(RELATIONS)}")
    if seed < 0 or not 0 <= index < _MAX_INDEX:
        raise ConfigError(f"seed and index must be 0 or more (index below 2**40), got seed {seed} and index {index}")
    forced = 0 if relation is None else 1 + RELATIONS.index(relation)
    stream = (seed, SPLITS.index(split), forced, index)
    generator = np.random.default_rng([*stream, 0])
    if relation is None:
        shares = list(RELATION_SHARES.values())
        relation = tuple(RELATION_SHARES)[int(generator.choice(len(shares), p=shares))]
    shortest_s = 3.0 if relation == "single" else 5.0
    duration_s = 0.5 * int(generator.integers(round(2 * shortest_s), round(2 * MAX_DURATION_S) + 1))
    events, switch_s = _sample_events(relation, duration_s, generator)
    return Scene(
        seed=seed,
        split=split,
        index=index,
        clip_id=_clip_id(seed, SPLITS.index(split), forced, index),
        start_time_s=10 * int(generator.integers(0, 36)),
        duration_s=duration_s,
        relation=relation,
        events=events,
        objects=_sample_objects(events, relation, duration_s, switch_s, generator),
        background=_choose(tuple(BACKGROUNDS), generator),
        noise_rms=float(10 ** generator.uniform(-3.3, -2.7)),
        stream=stream,
    )


def render_waveform(scene: Scene, sample_rate_hz: int = 16000) -> NDArray[np.float32]:
    """The sound of a scene.

    Args:
        scene: what to render.
        sample_rate_hz: 8000 or more; strokes fall at the same times at every rate.

    Returns:
        (S,) float32 in (-1, 1), S = round(duration_s * sample_rate_hz).

    Raises:
        ConfigError: sample_rate_hz below 8000.
    """
    check_sample_rate(sample_rate_hz)
    num_samples = round(scene.duration_s * sample_rate_hz)
    generator = np.random.default_rng([*scene.stream, 1])
    samples = generator.standard_normal(num_samples, dtype=np.float32)
    samples *= np.float32(scene.noise_rms)
    for number, event in enumerate(scene.events):
        sound = synthesise_sound(
            event.sound,
            event.offset_s - event.onset_s,
            loudness=event.loudness,
            speed=event.speed,
            sample_rate_hz=sample_rate_hz,
            seed=(*scene.stream, 2 + number),
        )
        start = round(event.onset_s * sample_rate_hz)
        sound = sound[: num_samples - start]
        samples[start : start + len(sound)] += sound
    return limit_peaks(samples)


def frame_times(scene: Scene, *, num_frames: int | None = None, fps: float | None = None) -> NDArray[np.float64]:
    """Times of evenly spread frames: the middle of each frame's stretch of the clip.

    Args:
        scene: gives the duration.
        num_frames: that many frames over the whole clip; or
        fps: frames a second, as many as begin before the end. Exactly one of the two must be given.

    Returns:
        (K,) seconds from the start of the clip, float64.

    Raises:
        ConfigError: both or neither were given, or one is not above 0.
    """
    if (num_frames is None) == (fps is None):
        raise ConfigError(f"give num_frames or fps, one of them; got num_frames {num_frames} and fps {fps}")
    if num_frames is not None:
        if num_frames < 1:
            raise ConfigError(f"num_frames must be 1 or more, got {num_frames}")
        return (np.arange(num_frames, dtype=np.float64) + 0.5) * np.float64(scene.duration_s / num_frames)
    assert fps is not None
    if fps <= 0:
        raise ConfigError(f"fps must be above 0, got {fps}")
    count = max(1, int(np.ceil(scene.duration_s * fps - 1e-6)))
    times_s: NDArray[np.float64] = np.minimum((np.arange(count) + 0.5) / fps, scene.duration_s)
    return times_s


def render_frames(
    scene: Scene, *, num_frames: int | None = None, fps: float | None = None, size_px: int = 64
) -> NDArray[np.uint8]:
    """The pictures of a scene at evenly spread times (see `frame_times`).

    Args:
        scene: what to render.
        num_frames: that many over the clip; or
        fps: frames a second.
        size_px: side of the square frames, 16 or more.

    Returns:
        (K, size_px, size_px, 3) uint8, RGB.

    Raises:
        ConfigError: both or neither of num_frames and fps, or a value out of range.
    """
    return render_frames_at(scene, frame_times(scene, num_frames=num_frames, fps=fps), size_px=size_px)


def render_frames_at(scene: Scene, times_s: NDArray[np.float64], *, size_px: int = 64) -> NDArray[np.uint8]:
    """The pictures of a scene at any times.

    Args:
        scene: what to render.
        times_s: (K,) seconds from the start of the clip.
        size_px: side of the square frames, 16 or more.

    Returns:
        (K, size_px, size_px, 3) uint8, RGB.

    Raises:
        ConfigError: size_px below 16.
    """
    _check_size(size_px)
    background = draw_background(scene.background, size_px, (*scene.stream, 4))
    frames = np.empty((len(times_s), size_px, size_px, 3), dtype=np.uint8)
    last_key: tuple[int, tuple[bool, ...]] | None = None
    for number, time_s in enumerate(times_s):
        key = (_jitter_step(float(time_s)), tuple(_is_visible(scene, thing, float(time_s)) for thing in scene.objects))
        if key == last_key:
            frames[number] = frames[number - 1]
            continue
        last_key = key
        canvas = background.copy()
        for position, thing in enumerate(scene.objects):
            if key[1][position]:
                left, top, side = _square_px(scene, position, float(time_s), size_px)
                colours, opacity = icon_pixels(thing.picture, thing.colour, thing.mirrored, side)
                patch = canvas[top : top + side, left : left + side]
                patch *= 1 - opacity
                patch += colours
        frames[number] = (canvas + np.float32(0.5)).astype(np.uint8)
    return frames


def boxes(scene: Scene, times_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """Where each object is.

    Args:
        scene: whose objects.
        times_s: (K,) seconds from the start of the clip.

    Returns:
        (O, K, 4) float32: left, top, right, bottom as fractions of the picture's side, tight around what is drawn
        (within a pixel when rendered); NaN where the object is not visible.
    """
    result = np.full((len(scene.objects), len(times_s), 4), np.nan, dtype=np.float32)
    for position, thing in enumerate(scene.objects):
        extent = np.array(icon_extent(thing.picture, thing.mirrored))
        for number, time_s in enumerate(times_s):
            if _is_visible(scene, thing, float(time_s)):
                left, top = _corner(scene, position, float(time_s))
                result[position, number] = np.array([left, top, left, top]) + thing.side * extent
    return result


def object_masks(scene: Scene, times_s: NDArray[np.float64], *, size_px: int = 64) -> NDArray[np.bool_]:
    """Which pixels show which object.

    Args:
        scene: whose objects.
        times_s: (K,) seconds from the start of the clip.
        size_px: side of the square frames, 16 or more.

    Returns:
        (O, K, size_px, size_px) bool; True where the object covers more than half of the pixel and nothing in front
        of it does. No pixel is True for two objects; all are False where the object is not visible.

    Raises:
        ConfigError: size_px below 16.
    """
    _check_size(size_px)
    masks = np.zeros((len(scene.objects), len(times_s), size_px, size_px), dtype=np.bool_)
    for number, time_s in enumerate(times_s):
        for position, thing in enumerate(scene.objects):
            if not _is_visible(scene, thing, float(time_s)):
                continue
            left, top, side = _square_px(scene, position, float(time_s), size_px)
            shape = icon_pixels(thing.picture, thing.colour, thing.mirrored, side)[1][..., 0] > 0.5
            masks[:position, number, top : top + side, left : left + side] &= ~shape
            masks[position, number, top : top + side, left : left + side] = shape
    return masks


def terse_captions(scene: Scene, n: int = 5) -> list[str]:
    """Short captions of sound and picture together, as AudioCaps has them.

    The first k are the same for every n >= k. Two may be equal where the grammar has few ways to say it.

    Args:
        scene: what to describe.
        n: number of captions.

    Returns:
        n strings, lower case, without punctuation.
    """
    generator = np.random.default_rng([*scene.stream, 5])
    return [terse_caption(scene.mentions, scene.relation, generator) for _ in range(n)]


def detailed_caption(scene: Scene) -> str:
    """A paragraph: what is heard, what is seen, where, when, and for how long."""
    generator = np.random.default_rng([*scene.stream, 6])
    objects = [_mention(scene, thing) for thing in scene.objects]
    return detailed_text(scene.mentions, scene.relation, objects, scene.background, scene.duration_s, generator)


def still_captions(scene: Scene, time_s: float, n: int = 5) -> list[str]:
    """Captions of one frame alone: objects, colours, places; nothing of the sound. The last one is detailed.

    Args:
        scene: what to describe.
        time_s: seconds from the start of the clip.
        n: number of captions, 1 or more.

    Raises:
        ValueError: n < 1.
    """
    generator = np.random.default_rng([*scene.stream, 7])
    visible = [_mention(scene, thing) for thing in scene.objects if _is_visible(scene, thing, time_s)]
    return picture_captions(visible, scene.background, generator, n)


def _sample_events(
    relation: Relation, duration_s: float, generator: np.random.Generator
) -> tuple[tuple[SceneEvent, ...], float]:
    """The events with their times, and the time at which the picture switches (for "then")."""
    switch_s = duration_s * generator.uniform(0.42, 0.58)
    gap_s = generator.uniform(0.05, 0.3)
    late_s = generator.uniform(0.0, 0.1) * duration_s
    early_s = generator.uniform(0.0, 0.05) * duration_s
    if relation == "single":
        spans = [(late_s, duration_s - early_s)]
    elif relation == "then":
        spans = [(0.0, switch_s - gap_s / 2), (switch_s + gap_s / 2, duration_s)]
    else:
        spans = [(0.0, duration_s - early_s), (late_s, duration_s)]
    names = [_choose(EVENT_NAMES, generator)]
    if relation != "single":
        first = EVENTS[names[0]]
        # Two sources of one sound at once cannot be told apart; one after the other they can, by the picture.
        others = [
            name
            for name, kind in EVENTS.items()
            if name != first.name and (relation == "then" or kind.sound != first.sound)
        ]
        names.append(_choose(others, generator))
    events = []
    for name, (onset_s, offset_s) in zip(names, spans, strict=True):
        loudness: Loudness = _LOUDNESS_DRAWS[int(generator.integers(4))]
        speed: Speed = _SPEED_DRAWS[int(generator.integers(4))]
        events.append(
            SceneEvent(
                name, loudness, speed if EVENTS[name].repeatable else "normal", round(onset_s, 3), round(offset_s, 3)
            )
        )
    return tuple(events), round(switch_s, 3)


_LOUDNESS_DRAWS: Final[tuple[Loudness, ...]] = ("normal", "normal", "loud", "quiet")
_SPEED_DRAWS: Final[tuple[Speed, ...]] = ("normal", "normal", "fast", "slow")


def _sample_objects(
    events: tuple[SceneEvent, ...],
    relation: Relation,
    duration_s: float,
    switch_s: float,
    generator: np.random.Generator,
) -> tuple[SceneObject, ...]:
    makers: dict[str, list[int]] = {}  # two events of one picture come from one object
    for number, event in enumerate(events):
        makers.setdefault(event.picture, []).append(number)
    things: list[tuple[str, float, float, tuple[int, ...]]] = []
    for picture, numbers in makers.items():
        onset_s = switch_s if relation == "then" and numbers == [1] else 0.0
        offset_s = switch_s if relation == "then" and numbers == [0] else duration_s
        things.append((picture, onset_s, offset_s, tuple(numbers)))
    if generator.random() < DISTRACTOR_SHARE:
        heard = {event.sound for event in events}
        silent = [picture for picture in PICTURES if picture not in makers and not heard & SOUNDS_OF_PICTURE[picture]]
        things.append((_choose(silent, generator), 0.0, duration_s, ()))
    crowded = len(things) > 1 and (relation != "then" or len(things) > len(makers))
    places = generator.permutation(len(PLACES))
    colours = generator.permutation(len(COLOURS))
    objects = []
    for number, (picture, onset_s, offset_s, made) in enumerate(things):
        place = int(places[number])
        side = float(generator.uniform(*(_CROWDED_SIDE if crowded else _LONE_SIDE)))
        margin = side / 2 + _JITTER
        objects.append(
            SceneObject(
                picture=picture,
                colour=tuple(COLOURS)[int(colours[number])],
                place=PLACES[place],
                mirrored=bool(generator.random() < 0.5),
                side=side,
                centre_x=_centre(place % 2, margin, crowded, generator),
                centre_y=_centre(place // 2, margin, crowded, generator),
                onset_s=onset_s,
                offset_s=offset_s,
                events=made,
            )
        )
    return tuple(objects)


def _centre(half: int, margin: float, crowded: bool, generator: np.random.Generator) -> float:
    """A coordinate in the first or second half of the side, so far from the edge that the jitter stays inside."""
    inner = max(margin, 0.28 if crowded else 0.36)
    value = float(generator.uniform(margin, inner))
    return 1 - value if half else value


def _choose(choices: tuple[str, ...] | list[str], generator: np.random.Generator) -> str:
    return choices[int(generator.integers(len(choices)))]


def _mention(scene: Scene, thing: SceneObject) -> ObjectMention:
    part = "all"
    if thing.offset_s < scene.duration_s:
        part = "first"
    elif thing.onset_s > 0:
        part = "last"
    return ObjectMention(thing.picture, thing.colour, thing.place, silent=thing.silent, part=part)


def _is_visible(scene: Scene, thing: SceneObject, time_s: float) -> bool:
    return thing.onset_s <= time_s and (time_s < thing.offset_s or thing.offset_s >= scene.duration_s)


def _jitter_step(time_s: float) -> int:
    return max(0, int(time_s / _JITTER_STEP_S))


@lru_cache(maxsize=64)
def _jitter(stream: tuple[int, ...], num_objects: int) -> NDArray[np.float64]:
    """(objects, half seconds, 2) shifts as fractions of the side."""
    steps = int(MAX_DURATION_S / _JITTER_STEP_S) + 1
    shifts: NDArray[np.int64] = np.random.default_rng([*stream, 3]).integers(-2, 3, (num_objects, steps, 2))
    return shifts.astype(np.float64) * np.float64(_JITTER / 2)


def _corner(scene: Scene, position: int, time_s: float) -> tuple[float, float]:
    """Left and top of an object's square, as fractions of the picture's side."""
    thing = scene.objects[position]
    shifts = _jitter(scene.stream, len(scene.objects))[position]
    shift = shifts[min(_jitter_step(time_s), len(shifts) - 1)]
    return thing.centre_x - thing.side / 2 + float(shift[0]), thing.centre_y - thing.side / 2 + float(shift[1])


def _square_px(scene: Scene, position: int, time_s: float, size_px: int) -> tuple[int, int, int]:
    """Left, top and side of an object's square in whole pixels, inside the picture."""
    side = max(4, round(scene.objects[position].side * size_px))
    left, top = _corner(scene, position, time_s)
    room = size_px - side
    return min(max(round(left * size_px), 0), room), min(max(round(top * size_px), 0), room), side


def _check_size(size_px: int) -> None:
    if size_px < 16:
        raise ConfigError(f"size_px is {size_px}; objects cannot be told apart below 16")


def _clip_id(seed: int, split_number: int, forced: int, index: int) -> str:
    """Eleven characters that differ for all (split, forced, index) of a seed: a keyed permutation of 64 bits."""
    left = (split_number << 30) | (forced << 28) | (index >> 32)
    right = index & 0xFFFFFFFF
    for turn in range(4):
        digest = hashlib.sha256(f"avcap-zoo scenes {seed} {turn} {right}".encode()).digest()
        left, right = right, left ^ int.from_bytes(digest[:4], "big")
    return base64.urlsafe_b64encode(((left << 32) | right).to_bytes(8, "big")).decode().rstrip("=")
