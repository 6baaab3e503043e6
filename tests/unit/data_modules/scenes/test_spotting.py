"""Objects of the scenes found in the pixels, against the annotations."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from avcap_zoo.data_modules.scenes import boxes, object_masks, render_frames_at, sample_scene
from avcap_zoo.data_modules.scenes.spotting import SceneDetector, SceneSegmenter, SceneTagger, spot_objects
from avcap_zoo.ops.regions import box_iou, mask_iou


def middle(index: int, size_px: int) -> tuple[NDArray[np.uint8], list[str], NDArray[np.float32], NDArray[np.bool_]]:
    """Picture in the middle of a test clip, names of what is visible, boxes in pixels, masks."""
    scene = sample_scene(0, "test", index)
    times_s = np.array([scene.duration_s / 2])
    picture = render_frames_at(scene, times_s, size_px=size_px)[0].transpose(2, 0, 1)
    where = boxes(scene, times_s)[:, 0] * size_px
    seen = [number for number in range(len(scene.objects)) if not np.isnan(where[number, 0])]
    masks = object_masks(scene, times_s, size_px=size_px)[:, 0]
    return np.ascontiguousarray(picture), [scene.objects[n].picture for n in seen], where[seen], masks[seen]


def test_most_objects_are_found_where_they_are() -> None:
    box_scores, mask_scores = [], []
    for index in range(30):
        picture, names, where, masks = middle(index, 64)
        spots = {spot.name: spot for spot in spot_objects(picture)}
        assert len(spots) <= len(names)
        for name, box, mask in zip(names, where, masks, strict=True):
            spot = spots.get(name)
            box_scores.append(0.0 if spot is None else box_iou(spot.box, box.tolist()))
            mask_scores.append(0.0 if spot is None else mask_iou(spot.mask, mask))
    assert np.mean(box_scores) > 0.9
    assert np.mean(mask_scores) > 0.93


def test_the_three_stages_agree() -> None:
    picture, names, _, _ = middle(1, 128)
    pictures = [torch.from_numpy(picture), torch.full((3, 40, 60), 206, dtype=torch.uint8)]
    tags = SceneTagger().tag(pictures)
    assert sorted(tags[0]) == sorted(names)
    assert tags[1] == []
    found = SceneDetector().detect(pictures, [[names[0].upper(), "unicorn"], ["dog"]])
    assert [each.phrase for each in found[0]] == [names[0]]
    assert found[1] == []
    masks = SceneSegmenter().segment(pictures, [[found[0][0].box, (0, 0, 0, 0)], [(0, 0, 5, 5)]])
    assert masks[0].shape == (2, 128, 128)
    assert masks[0][0].any()
    assert not masks[0][1].any()
    assert not masks[1].any()
