"""The pipeline with the real code of every stage: tiny random models, and the scenes' own shapes."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from avcap_zoo.backbones.vision.finders import Box, Detection, Detector, Segmenter, Tagger
from avcap_zoo.backbones.vision.swin_tagger import SwinTaggerSettings
from avcap_zoo.errors import AvcapError, ConfigError, DataError, MissingExtraError, ShapeError, WeightsError
from avcap_zoo.systems.bubogpt.detection import (
    MAX_TOKENS,
    GroundingDino,
    GroundingDinoPy,
    build_prompts,
    phrase_to_tag,
)
from avcap_zoo.systems.bubogpt.grounding import Grounder
from avcap_zoo.systems.bubogpt.segmentation import SAM, SegmentAnything
from avcap_zoo.systems.bubogpt.stage_cache import MOST_HELD, StageCache
from avcap_zoo.systems.bubogpt.tagging import CLIPTagger, GivenTags, RAMTagger
from tests.parity.golden import listed_cases
from tests.unit.systems.bubogpt.tiny_finders import bert_tokenizer, save_clip, save_dino, save_sam

PICTURES = [
    torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))
    for height, width in ((50, 80), (90, 60))
]


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_sam(tmp_path_factory.mktemp("sam"))


class OneBox(Detector):
    """A plain detector of one's own: boxes as given, for every tag."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        super().__init__(boxes=list(boxes))
        self.boxes = list(boxes)
        self.calls = 0

    def detect(self, pictures: Sequence[Tensor], tags: Sequence[Sequence[str]]) -> list[list[Detection]]:
        self.calls += 1
        return [
            [Detection(tag, box, 0.9 - at / 10) for tag in own for at, box in enumerate(self.boxes)] for own in tags
        ]


class FilledBox(Segmenter):
    """The box itself as its mask."""

    def segment(self, pictures: Sequence[Tensor], boxes: Sequence[Sequence[Box]]) -> list[NDArray[np.bool_]]:
        found = []
        for picture, own in zip(pictures, boxes, strict=True):
            masks = np.zeros((len(own), *picture.shape[1:]), dtype=np.bool_)
            for mask, (left, top, right, bottom) in zip(masks, own, strict=True):
                mask[int(top) : int(bottom), int(left) : int(right)] = True
            found.append(masks)
        return found


def grounder(tags: list[str], boxes: Sequence[Box], **options: Any) -> Grounder:
    return Grounder(GivenTags(tags), OneBox(boxes), FilledBox(), **options)


# -- the stages ---------------------------------------------------------------------------------------------------


def test_grounding_dino_finds_the_same_alone_and_in_a_batch(dino: str) -> None:
    detector = GroundingDino(dino, box_threshold=0.0)
    together = detector.detect([*PICTURES, PICTURES[0]], [["dog", "car"], ["bell"], ["tree"]])
    alone = [detector.detect([PICTURES[0]], [["dog", "car"]])[0], detector.detect([PICTURES[1]], [["bell"]])[0]]
    for got, want in zip(together[:2], alone, strict=True):
        assert [each.phrase for each in got] == [each.phrase for each in want]
        assert [each.score for each in got] == pytest.approx([each.score for each in want], abs=1e-4)
        assert np.allclose([each.box for each in got], [each.box for each in want], atol=1e-2)
    assert {each.phrase for each in together[0]} <= {"dog", "car"}
    height, width = PICTURES[1].shape[1:]
    for left, top, right, bottom in (each.box for each in together[1]):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
    scores = [each.score for each in together[0]]
    assert scores == sorted(scores, reverse=True)


def test_a_threshold_leaves_no_box_and_no_tags_ask_nothing(dino: str) -> None:
    assert GroundingDino(dino, box_threshold=1.0).detect(PICTURES[:1], [["dog"]]) == [[]]
    assert GroundingDino("missing", box_threshold=1.0).detect(PICTURES, [[], []]) == [[], []]


def test_the_released_prompt_merges_phrases(dino: str) -> None:
    detector = GroundingDino(dino, prompt="released", box_threshold=0.0, text_threshold=0.0)
    (found,) = detector.detect(PICTURES[:1], [["Dog", "car"]])
    assert {each.phrase for each in found} == {"dog car"}


def test_prompts(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(tmp_path)
    (released,) = build_prompts(["Dog", "car"], tokenizer, "released")
    assert released.text == "dog,car."
    (part,) = build_prompts(["Dog", " .", "St. car"], tokenizer, "sentences")
    assert part.text == "dog . st car ."
    assert part.tags == ("Dog", "St. car")
    many = build_prompts(["dog"] * 500, tokenizer, "sentences")
    assert sum(len(each.tags) for each in many) == 500
    assert max(len(tokenizer(each.text).input_ids) for each in many) <= MAX_TOKENS
    assert len(many) == 4
    assert build_prompts(["."], tokenizer, "sentences") == []


@pytest.mark.parametrize(
    ("phrase", "tag"),
    [("dog", "Dog"), ("brown dog", "brown dog"), ("plate platter", "plate"), ("cup coffee", "coffee cup"), ("x", "x")],
)
def test_a_phrase_stands_for_a_tag(phrase: str, tag: str) -> None:
    assert phrase_to_tag(phrase, ["Dog", "brown dog", "plate", "coffee cup", "coffee"]) == tag


def test_sam_gives_a_mask_per_box(sam: str) -> None:
    boxes: list[list[Box]] = [[(1, 2, 30, 40), (0, 0, 80, 50)], []]
    two, none = SAM(sam, hole_area_px=0).segment(PICTURES, boxes)
    assert two.shape == (2, 50, 80)
    assert none.shape == (0, 90, 60)
    filled, _ = SAM(sam, hole_area_px=5000).segment(PICTURES, boxes)
    assert (filled >= two).all()
    assert filled.sum() > two.sum()


def test_three_pixels_are_not_taken_for_three_channels(dino: str, sam: str) -> None:
    thin = torch.zeros(3, 200, 3, dtype=torch.uint8)
    (found,) = GroundingDino(dino, box_threshold=0.0).detect([thin], [["dog"]])
    assert max(each.box[3] for each in found) > 3
    (masks,) = SAM(sam).segment([thin], [[found[0].box]])
    assert masks.shape == (1, 200, 3)


def test_clip_says_the_likeliest_words(tmp_path: Path) -> None:
    words = ["dog", "car", "bell"]
    source = save_clip(tmp_path)
    every = CLIPTagger(words, source, threshold=0.0).tag(PICTURES)
    assert [sorted(tags) for tags in every] == [sorted(words)] * 2
    assert [len(tags) for tags in CLIPTagger(words, source, threshold=0.0, max_tags=2).tag(PICTURES)] == [2, 2]
    assert CLIPTagger(words, source, threshold=0.99).tag(PICTURES) == [[], []]
    listed = tmp_path / "tags.txt"
    listed.write_text("dog\n\ncar\nbell\n", encoding="utf-8")
    assert CLIPTagger(str(listed), source, threshold=0.0).tag(PICTURES) == every


def test_ram_reads_the_published_kind_of_files(tmp_path: Path) -> None:
    """Weights under the official names, with a list of words and one of limits beside them."""
    (case, *_) = listed_cases("bubogpt", "ram_tagging_", {"": 0.0})
    swin, head = case.config["config"]["swin"], case.config["config"]["head"]
    settings = SwinTaggerSettings(
        *(swin["image_size"], swin["patch_size"], swin["embed_dim"], tuple(swin["depths"]), tuple(swin["num_heads"])),
        *(swin["window_size"], len(case.config["tag_list"]), head["encoder_width"], head["hidden"], head["layers"]),
        *(head["heads"], head["intermediate"]),
    )
    (tmp_path / "tags.txt").write_text("\n".join(["dog", "car", *["dog"] * 7]), encoding="utf-8")
    (tmp_path / "limits.txt").write_text("\n".join(["0.0", "1.0", *["0.0"] * 7]), encoding="utf-8")
    torch.save({"model": case.weights("weights.")}, tmp_path / "ram.pth")
    weights, tags, limits = (str(tmp_path / name) for name in ("ram.pth", "tags.txt", "limits.txt"))
    assert RAMTagger(weights, tags, limits, settings, batch_size=1).tag(PICTURES) == [["dog"], ["dog"]]
    with pytest.raises(ConfigError, match=r"tagger.init_args.tags: .*nothing.txt cannot be read"):
        RAMTagger(weights, str(tmp_path / "nothing.txt"), limits, settings).tag(PICTURES)
    (tmp_path / "limits.txt").write_text("high\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds more than numbers"):
        RAMTagger(weights, tags, limits, settings).tag(PICTURES)
    with pytest.raises(ConfigError, match="9 tags for 4585 labels"):
        RAMTagger(weights, tags, None).tag(PICTURES)
    with pytest.raises(WeightsError, match="does not exist"):
        RAMTagger(str(tmp_path / "no.pth"), tags, None, settings).tag(PICTURES)


@pytest.mark.skipif(find_spec("segment_anything") is not None, reason="the package is here")
def test_segment_anything_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"avcap-zoo\[sam\]"):
        SegmentAnything()


@pytest.mark.skipif(find_spec("groundingdino") is not None, reason="the package is here")
def test_groundingdino_py_names_its_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"avcap-zoo\[grounding\]"):
        GroundingDinoPy()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("segment_anything") is None, reason="needs avcap-zoo[sam]")
def test_segment_anything_runs() -> None:
    (masks,) = SegmentAnything(None, "vit_b").segment(PICTURES[:1], [[(1, 2, 30, 40), (0, 0, 80, 50)]])
    assert masks.shape == (2, 50, 80)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("groundingdino") is None, reason="needs avcap-zoo[grounding]")
def test_groundingdino_py_runs_beside_this_transformers(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    bert_tokenizer(tmp_path).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=66, max_position_embeddings=256, **sizes)).save_pretrained(tmp_path)
    (found,) = GroundingDinoPy(None, str(tmp_path), box_threshold=0.0).detect(PICTURES[:1], [["dog", "car"]])
    assert len(found) == 900


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: GroundingDino(box_threshold=2), "detector.init_args.box_threshold is 2, wanted 0 to 1"),
        (lambda: GroundingDino(text_threshold=-1), "detector.init_args.text_threshold is -1"),
        (lambda: SAM(hole_area_px=-1), "segmenter.init_args.hole_area_px is -1"),
        (lambda: CLIPTagger([]), "tagger.init_args.tags is empty"),
        (lambda: CLIPTagger(["dog"], template="a photo"), "tagger.init_args.template is 'a photo'"),
        (lambda: Grounder(nms_iou=0), "nms_iou is 0, wanted above 0"),
        (lambda: SAM("no/such").segment(PICTURES[:1], [[(0, 0, 5, 5)]]), "segmenter.init_args.source: cannot load"),
        (lambda: GroundingDino("no/such").detect(PICTURES[:1], [["dog"]]), "detector.init_args.source: cannot load"),
        (lambda: CLIPTagger(["dog"], "no/such").tag(PICTURES), "tagger.init_args.source: cannot load"),
    ],
)
def test_wrong_settings_and_missing_models_are_named(make: Any, said: str) -> None:
    with pytest.raises(AvcapError, match=said):
        make()


# -- the pipeline -------------------------------------------------------------------------------------------------


def test_real_models_run_from_picture_to_json(dino: str, sam: str) -> None:
    made = Grounder(GivenTags(["dog", "car"]), GroundingDino(dino), SAM(sam))
    first, second = made.ground(PICTURES, ["A dog near two cars.", None])
    assert {region.entity for region in first.regions} <= {"dog", "car"}
    content = first.to_json()
    assert content["spans"][0]["entity"] in {"dog", "car"}
    for entity in content["entities"].values():
        for region in entity["regions"]:
            assert region["mask"]["size"] == [50, 80]
    assert second.matched == list(second.colours)
    assert first.draw(PICTURES[0]).size[0] == 480


def test_spans_boxes_masks_and_colours() -> None:
    (found,) = grounder(["dog", "cat"], [(10, 10, 30, 40)]).ground(PICTURES[:1], ["Two cats."])
    assert [(span.text, span.entity) for span in found.matching.spans] == [("cats", "cat")]
    assert found.matched == ["cat"]
    assert found.colours == {"dog": "red", "cat": "pink"}
    assert found.regions[0].pixels().sum() == 20 * 30
    assert found.notes == []


def test_of_boxes_that_overlap_the_better_stays() -> None:
    boxes: list[Box] = [(0, 0, 40, 40), (1, 1, 41, 41), (45, 0, 80, 40)]
    assert [len(each.regions) for each in grounder(["dog"], boxes).ground(PICTURES[:1], [None])] == [2]
    # Other entities may share a box: synonyms among the tags.
    (both,) = grounder(["dog", "pet"], boxes).ground(PICTURES[:1], [None])
    assert len(both.regions) == 4
    (kept,) = grounder(["dog"], boxes, nms_iou=None).ground(PICTURES[:1], [None])
    assert len(kept.regions) == 3


def test_nothing_found_is_a_result_that_says_so() -> None:
    (blind,) = grounder([], [(0, 0, 5, 5)]).ground(PICTURES[:1], ["A dog."])
    assert blind.notes == ["the tagger found nothing in the picture"]
    assert blind.to_json()["spans"] == []
    (boxless,) = grounder(["dog", "cat"], []).ground(PICTURES[:1], ["A dog."])
    assert boxless.notes == ["the detector found no box for dog, cat"]
    (other,) = grounder(["dog"], [(0, 0, 5, 5)]).ground(PICTURES[:1], ["Rain falls."])
    assert other.notes == ["the text names none of dog"]
    assert other.matched == []
    assert other.draw(PICTURES[0]).size[0] == 480


def test_what_cannot_be_grounded_is_refused() -> None:
    made = grounder(["dog"], [])
    with pytest.raises(DataError, match="the text is empty"):
        made.ground(PICTURES[:1], [" \n"])
    with pytest.raises(ShapeError, match="1 texts for 2 pictures"):
        made.ground(PICTURES, ["A dog."])
    with pytest.raises(ShapeError, match=r"a picture is \(50, 80\)"):
        made.ground([PICTURES[0][0]], [None])
    with pytest.raises(ShapeError, match="float32"):
        made.ground([PICTURES[0].float()], [None])


class Counting(Tagger):
    """Counts the pictures it is asked about."""

    def __init__(self, setting: int) -> None:
        super().__init__(setting=setting)
        self.seen = 0

    def tag(self, pictures: Sequence[Tensor]) -> list[list[str]]:
        self.seen += len(pictures)
        return [["dog"] for _ in pictures]


def test_results_are_kept_by_content(tmp_path: Path) -> None:
    def run(setting: int, pictures: Sequence[Tensor]) -> int:
        tagger = Counting(setting)
        made = Grounder(tagger, OneBox([(0, 0, 9, 9)]), FilledBox(), cache=str(tmp_path / "kept"))
        results = made.ground(pictures, [None] * len(pictures))
        assert all(len(each.regions) == 1 for each in results)
        return tagger.seen

    assert run(1, [PICTURES[0], PICTURES[0].clone(), PICTURES[1]]) == 2
    assert run(1, PICTURES) == 0
    assert run(2, PICTURES) == 2
    assert run(1, [PICTURES[0].flip(2)]) == 1
    for file in (tmp_path / "kept").glob("*.json"):
        file.write_text("{cut", encoding="utf-8")
    assert run(1, PICTURES) == 2
    assert not list((tmp_path / "kept").glob("*.part"))


def test_a_cache_in_memory_computes_once() -> None:
    cache, asked = StageCache(), []

    def compute(missing: list[int]) -> list[int]:
        asked.append(missing)
        return [7 for _ in missing]

    assert cache.get({"a": 1}, [["x"], ["y"], ["x"]], compute) == [7, 7, 7]
    assert cache.get({"a": 1}, [["y"]], compute) == [7]
    assert asked == [[0, 1]]
    assert len(cache.get({"a": 2}, [[number] for number in range(MOST_HELD + 5)], compute)) == MOST_HELD + 5
    assert cache.get({"a": 2}, [[0], [MOST_HELD]], compute) == [7, 7]
    assert asked[2:] == [[0]]
