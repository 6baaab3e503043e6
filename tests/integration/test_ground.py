"""`avcap ground` from a picture file to JSON and a drawing, and over many scenes against their annotations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from avcap_zoo.cli.main import avcap
from avcap_zoo.data_modules.scenes import boxes, object_masks, render_frames_at, sample_scene, still_captions
from avcap_zoo.data_modules.scenes.spotting import SceneDetector, SceneSegmenter, SceneTagger
from avcap_zoo.ops.regions import box_iou, decode_rle, mask_iou
from avcap_zoo.systems.bubogpt.grounding import Grounder
from tests.integration.tiny_bubogpt import bird_and_phone
from tests.unit.cli.running import Outcome, call

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "configs/tiny/bubogpt_ground.yaml")


@pytest.fixture
def scene_file(tmp_path: Path) -> Path:
    return bird_and_phone(tmp_path)


def ground(capsys: pytest.CaptureFixture[str], *words: object) -> Outcome:
    return call(capsys, avcap, ["ground", *map(str, words)])


def test_a_picture_is_grounded_and_drawn(scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, drawn = tmp_path / "new/out.json", tmp_path / "new/drawn.png"
    text = "A “telephone” rings — loudly; birds sing. É!"
    ran = ground(capsys, scene_file, "--text", text, "-c", TINY, "--out", out, "--picture", drawn)
    assert (ran.code, ran.out) == (0, "")
    assert "2 spans, 2 of 2 entities, 2 boxes" in ran.err
    content = json.loads(out.read_text(encoding="utf-8"))
    assert [(span["text"], span["entity"]) for span in content["spans"]] == [("telephone", "phone"), ("birds", "bird")]
    assert all(text[span["start"] : span["end"]] == span["text"] for span in content["spans"])
    assert sorted(content["tags"]) == ["bird", "phone"]
    assert content["matched_by"] == "rules"
    (bird,) = content["entities"]["bird"]["regions"]
    assert decode_rle(bird["mask"]).shape == (192, 192)
    _, top, right, _ = bird["box"]
    assert right < 120
    assert top > 80
    with Image.open(drawn) as picture:
        assert picture.width == 576
        assert picture.height > 576


def test_without_text_all_things_are_found(scene_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = ground(capsys, scene_file, "-c", TINY)
    content = json.loads(ran.out)
    assert (ran.code, content["text"], content["spans"]) == (0, None, [])
    assert sorted(content["entities"]) == ["bird", "phone"]


def test_nothing_named_and_nothing_seen_are_results(
    scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = ground(capsys, scene_file, "--text", "It is late.", "-c", TINY)
    assert ran.code == 0
    assert "note: the text names none of" in ran.err
    assert json.loads(ran.out)["spans"] == []
    Image.new("RGB", (90, 50), (206, 206, 206)).save(tmp_path / "empty.png")
    ran = ground(capsys, tmp_path / "empty.png", "--text", "A dog.", "-c", TINY)
    assert ran.code == 0
    assert "note: the tagger found nothing in the picture" in ran.err
    ran = ground(capsys, scene_file, "--text", "A dog.", "-c", TINY, "--tagger", "given", "--tagger.tags", '["dog"]')
    assert ran.code == 0
    assert "note: the detector found no box for dog" in ran.err


def test_the_cache_is_used(scene_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [scene_file, "--text", "A bird.", "-c", TINY, "--cache", tmp_path / "kept"]
    first = ground(capsys, *words)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert len(files) == 4
    assert ground(capsys, *words).out == first.out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == files


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["missing.png", "-c", TINY], 1, "missing.png): no such file"),
        (["{broken}", "-c", TINY], 1, "not decodable as a picture"),
        (["{empty}", "-c", TINY], 1, "the file is empty (0 bytes)"),
        (["{scene}", "-c", TINY, "--text", "  "], 2, "--text is empty, wanted words about the picture"),
        (["{scene}", "-c", "missing.yaml"], 2, "missing.yaml does not exist"),
        (["{scene}", "-c"], 2, "-c needs a value"),
        (["{scene}", "--txt", "x"], 2, "no option --txt; did you mean --text?"),
        (["{scene}", "--tager", "x"], 2, "no option --tager; did you mean --tagger?"),
        (["{scene}", "--picture", "x.mp4"], 2, "--picture x.mp4, wanted one of .png"),
        ([], 2, "the following arguments are required: PICTURE"),
        (["{scene}", "--detector", "grounding-dino", "--detector.box_treshold", "1"], 2, "did you mean box_threshold?"),
        (["{scene}", "--detector.box_threshold", "7"], 1, "detector.init_args.box_threshold is 7.0, wanted 0 to 1"),
        (["{scene}", "--tagger", "rams"], 2, "did you mean ram?"),
        (["{scene}", "--nms_iou", "many"], 2, "nms_iou: found 'many', wanted float or null"),
        (["{scene}"], 1, "tagger.init_args.tags: checkpoints/ram_tag_list.txt cannot be read"),
        (["{scene}", "-c", TINY, "--cache", "{scene}/x"], 1, "cache: cannot write to"),
        (["{scene}", "-c", TINY, "--out", "{scene}/x/y.json"], 1, "cannot write"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line(
    words: list[str],
    code: int,
    said: str,
    scene_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "empty.jpg").touch()
    files = {"broken": tmp_path / "broken.jpg", "empty": tmp_path / "empty.jpg", "scene": scene_file}
    ran = ground(capsys, *(word.format(**files) if word.startswith("{") else word for word in words))
    assert ran.code == code
    assert said in ran.err
    assert len(ran.err.splitlines()) == 1


def test_the_defaults_are_the_published_file(capsys: pytest.CaptureFixture[str]) -> None:
    plain = yaml.safe_load(ground(capsys, "x.png", "--print_config").out)
    named = yaml.safe_load(ground(capsys, "x.png", "-c", ROOT / "configs/bubogpt_ground.yaml", "--print_config").out)
    assert plain == named


def test_scenes_are_grounded_end_to_end() -> None:
    """Texts that name every object; a thing that is not found counts as 0."""
    grounder = Grounder(SceneTagger(), SceneDetector(), SceneSegmenter())
    pictures, texts, truths = [], [], []
    for index in range(40):
        scene = sample_scene(0, "test", index)
        times_s = np.array([scene.duration_s / 2])
        frame = render_frames_at(scene, times_s, size_px=64)[0]
        pictures.append(torch.from_numpy(frame.transpose(2, 0, 1).copy()))
        texts.append(still_captions(scene, float(times_s[0]))[-1])
        where = boxes(scene, times_s)[:, 0] * 64
        masks = object_masks(scene, times_s, size_px=64)[:, 0]
        seen = [at for at in range(len(scene.objects)) if not np.isnan(where[at, 0])]
        truths.append([(scene.objects[at].picture, where[at].tolist(), masks[at]) for at in seen])
    box_scores, mask_scores = [], []
    for found, truth in zip(grounder.ground(pictures, texts), truths, strict=True):
        for name, box, mask in truth:
            regions = [each for each in found.regions if each.entity == name and name in found.matched]
            box_scores.append(max((box_iou(each.box, box) for each in regions), default=0.0))
            mask_scores.append(max((mask_iou(each.pixels(), mask) for each in regions), default=0.0))
    assert np.mean(box_scores) > 0.9
    assert np.mean(mask_scores) > 0.93
