"""Scenes: the same every time, disjoint over splits, and what is drawn, heard and annotated fits together."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from avcap_zoo.data_modules.scenes.events import EVENTS, PICTURES, RELATIONS, SOUNDS, SOUNDS_OF_PICTURE, SPLITS
from avcap_zoo.data_modules.scenes.scene import (
    RELATION_SHARES,
    Scene,
    boxes,
    detailed_caption,
    frame_times,
    object_masks,
    render_frames,
    render_frames_at,
    render_waveform,
    sample_scene,
    still_captions,
    terse_captions,
)
from avcap_zoo.errors import ConfigError


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(0, "train", index) for index in range(1500)]


def test_everything_about_a_scene_is_deterministic() -> None:
    for index in range(3):
        one, two = sample_scene(3, "val", index), sample_scene(3, "val", index)
        assert one == two
        assert np.array_equal(render_waveform(one), render_waveform(two))
        assert np.array_equal(render_frames(one, num_frames=4), render_frames(two, num_frames=4))
        assert terse_captions(one, 3) == terse_captions(two)[:3]
        assert detailed_caption(one) == detailed_caption(two)


def test_seeds_splits_and_forced_relations_give_other_scenes() -> None:
    base = sample_scene(0, "train", 5)
    for other in (
        sample_scene(1, "train", 5),
        sample_scene(0, "test", 5),
        sample_scene(0, "train", 6),
        sample_scene(0, "train", 5, relation=base.relation),
    ):
        assert other.clip_id != base.clip_id
        assert render_frames(other, num_frames=1).tobytes() != render_frames(base, num_frames=1).tobytes()
        assert render_waveform(other)[:100].tobytes() != render_waveform(base)[:100].tobytes()


def test_clip_ids_look_like_youtube_and_never_repeat() -> None:
    ids = [
        sample_scene(0, split, index, relation=relation).clip_id
        for split in SPLITS
        for relation in (None, *RELATIONS)
        for index in range(150)
    ]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{11}", clip_id) for clip_id in ids)


def test_shares_and_durations_are_as_specified(scenes: list[Scene]) -> None:
    relations = Counter(scene.relation for scene in scenes)
    for relation, share in RELATION_SHARES.items():
        assert abs(relations[relation] / len(scenes) - share) < 0.05
    assert abs(sum(scene.distractor is not None for scene in scenes) / len(scenes) - 0.3) < 0.05
    events = Counter(event.name for scene in scenes for event in scene.events)
    assert set(events) == set(EVENTS)
    assert max(events.values()) < 1.5 * min(events.values())
    for scene in scenes:
        assert (3 if scene.relation == "single" else 5) <= scene.duration_s <= 10
        assert all(0 <= event.onset_s < event.offset_s <= scene.duration_s for event in scene.events)
        assert all(event.speed == "normal" or EVENTS[event.name].repeatable for event in scene.events)
        if scene.relation == "then":
            assert scene.events[0].offset_s < scene.events[1].onset_s


def test_same_sound_never_plays_twice_at_once_and_the_distractor_could_not_make_it(scenes: list[Scene]) -> None:
    for scene in scenes:
        heard = [event.sound for event in scene.events]
        if scene.relation == "while":
            assert len(set(heard)) == 2
        if scene.distractor is not None:
            assert not SOUNDS_OF_PICTURE[scene.distractor.picture] & set(heard)
            assert scene.distractor.picture not in {event.picture for event in scene.events}
        assert sorted(number for thing in scene.objects for number in thing.events) == list(range(len(scene.events)))


def test_neither_modality_is_enough() -> None:
    assert len(EVENTS) == 16
    assert {kind.sound for kind in EVENTS.values()} == set(SOUNDS)
    assert {kind.picture for kind in EVENTS.values()} == set(PICTURES)
    assert (len(SOUNDS), len(PICTURES)) == (12, 13)
    sounds = Counter(kind.sound for kind in EVENTS.values())
    pictures = Counter(kind.picture for kind in EVENTS.values())
    assert sum(sounds[kind.sound] > 1 for kind in EVENTS.values()) == 8
    assert sum(pictures[kind.picture] > 1 for kind in EVENTS.values()) == 6
    assert sum(kind.repeatable for kind in EVENTS.values()) == 10


def test_frames_have_the_size_asked_for_and_times_are_the_middles() -> None:
    scene = sample_scene(0, "train", 0)
    frames = render_frames(scene, num_frames=5, size_px=32)
    assert frames.shape == (5, 32, 32, 3)
    assert frames.dtype == np.uint8
    assert len(render_frames(scene, fps=2)) == round(2 * scene.duration_s)
    assert frame_times(scene, fps=2)[:2].tolist() == [0.25, 0.75]
    assert np.allclose(frame_times(scene, num_frames=2), [scene.duration_s / 4, 3 * scene.duration_s / 4])


def test_waveform_is_float32_within_full_scale_at_every_rate() -> None:
    for index in range(8):
        scene = sample_scene(0, "train", index)
        low, high = render_waveform(scene), render_waveform(scene, 44100)
        assert low.dtype == np.float32
        assert low.shape == (round(16000 * scene.duration_s),)
        assert high.shape == (round(44100 * scene.duration_s),)
        assert max(np.abs(low).max(), np.abs(high).max()) < 1
        assert 0.5 < np.sqrt(np.mean(low**2)) / np.sqrt(np.mean(high**2)) < 2


def test_masks_lie_in_boxes_and_cover_what_is_drawn() -> None:
    size_px = 64
    for index in range(12):
        scene = sample_scene(0, "train", index)
        times = frame_times(scene, fps=1)
        masks, where = object_masks(scene, times, size_px=size_px), boxes(scene, times)
        assert masks.shape == (len(scene.objects), len(times), size_px, size_px)
        assert (masks.sum(axis=0) <= 1).all()
        visible = ~np.isnan(where[..., 0])
        assert (masks.any(axis=(2, 3)) == visible).all()
        assert visible.any(axis=1).all()
        for mask, box in zip(masks[visible], where[visible] * size_px, strict=True):
            rows, columns = np.nonzero(mask)
            assert columns.min() >= box[0] - 1.5
            assert rows.min() >= box[1] - 1.5
            assert columns.max() + 1 <= box[2] + 1.5
            assert rows.max() + 1 <= box[3] + 1.5
        assert np.nanmin(where) >= 0
        assert np.nanmax(where) <= 1


def test_last_object_is_in_front_and_its_box_is_tight() -> None:
    scene = next(s for s in (sample_scene(0, "train", i) for i in range(50)) if s.distractor is not None)
    times = frame_times(scene, fps=1)
    mask = object_masks(scene, times)[-1, 0]
    box = boxes(scene, times)[-1, 0] * 64
    rows, columns = np.nonzero(mask)
    tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(tight - box).max() <= 1.5


def test_picture_switches_with_the_sound_in_sequences() -> None:
    scene = next(
        s
        for s in (sample_scene(0, "train", i, relation="then") for i in range(50))
        if len(s.objects) == 2 and s.distractor is None
    )
    shown = ~np.isnan(boxes(scene, np.array([0.1, scene.duration_s - 0.1]))[..., 0])
    assert shown.tolist() == [[True, False], [False, True]]
    assert scene.events[0].offset_s <= scene.objects[0].offset_s <= scene.events[1].onset_s


def test_two_events_of_one_picture_come_from_one_object(scenes: list[Scene]) -> None:
    same = [s for s in scenes if len(s.events) == 2 and s.events[0].picture == s.events[1].picture]
    assert same
    for scene in same:
        assert scene.objects[0].events == (0, 1)
        assert scene.objects[0].offset_s == scene.duration_s


def test_still_captions_name_what_is_visible_and_nothing_else(scenes: list[Scene]) -> None:
    for scene in scenes[:60]:
        time_s = scene.duration_s / 2
        shown = ~np.isnan(boxes(scene, np.array([time_s]))[:, 0, 0])
        captions = still_captions(scene, time_s)
        assert len(captions) == 5
        for thing, visible in zip(scene.objects, shown, strict=True):
            assert (f"{thing.colour} {thing.picture} at the {thing.place}" in captions[-1].lower()) == visible


def test_wrong_arguments_are_refused_by_name() -> None:
    scene = sample_scene(0, "train", 0)
    with pytest.raises(ConfigError, match="train, val, test"):
        sample_scene(0, "dev", 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="single, then, while"):
        sample_scene(0, "train", 0, relation="before")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed -1"):
        sample_scene(-1, "train", 0)
    with pytest.raises(ConfigError, match="one of them"):
        render_frames(scene)
    with pytest.raises(ConfigError, match="num_frames"):
        render_frames(scene, num_frames=0)
    with pytest.raises(ConfigError, match="fps"):
        render_frames(scene, fps=0.0)
    with pytest.raises(ConfigError, match="8000"):
        render_waveform(scene, 4000)
    with pytest.raises(ConfigError, match="16"):
        render_frames_at(scene, np.array([0.0]), size_px=8)
