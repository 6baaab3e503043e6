"""From a picture and a text about it to boxes, masks and the words that name them; nothing is trained.

Tags say what to look for, a detector finds boxes, a segmenter masks, a matcher the words. Each is a small class that a
configuration names. Source: BuboGPT (arXiv 2307.08581), section 3.1, and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms

from avcap_zoo.backbones.vision.finders import Box, Detection, Detector, Segmenter, Tagger
from avcap_zoo.errors import ConfigError, DataError, ShapeError
from avcap_zoo.ops.grounding_picture import ColouredEntity, ColouredText, draw_grounding
from avcap_zoo.ops.regions import decode_rle, encode_rle
from avcap_zoo.systems.bubogpt.detection import GroundingDino, phrase_to_tag
from avcap_zoo.systems.bubogpt.matching import Matcher, Matching, RuleMatcher, Span, cut_text, entity_colours
from avcap_zoo.systems.bubogpt.segmentation import SAM
from avcap_zoo.systems.bubogpt.stage_cache import StageCache
from avcap_zoo.systems.bubogpt.tagging import RAMTagger


@dataclass(frozen=True)
class Region:
    """One thing in a picture.

    Attributes:
        entity: its name.
        phrase: what the detector called it.
        box: left, top, right, bottom in pixels.
        score: of the detector, 0 to 1.
        mask: {"size": [H, W], "counts": text}, COCO's compressed run lengths.
    """

    entity: str
    phrase: str
    box: Box
    score: float
    mask: dict[str, Any]

    def pixels(self) -> NDArray[np.bool_]:
        """The mask as (H, W) bool."""
        return decode_rle(self.mask)


@dataclass(frozen=True)
class Grounding:
    """What was found in one picture.

    Attributes:
        size: height and width of the picture.
        tags: what the tagger saw.
        regions: the best first.
        colours: entity to colour, in the order of the entities.
        text: the text that was matched; None if there was none.
        matching: the spans; empty without a text.
        notes: what was not found, or not done as asked for.
    """

    size: tuple[int, int]
    tags: list[str]
    regions: list[Region]
    colours: dict[str, str]
    text: str | None
    matching: Matching
    notes: list[str] = field(default_factory=list)

    @property
    def matched(self) -> list[str]:
        """The entities that the text names, or all of them without a text."""
        if self.text is None:
            return list(self.colours)
        named = {span.entity for span in self.matching.spans}
        return [entity for entity in self.colours if entity in named]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can hold it; docs/ground.md explains the keys."""
        height, width = self.size
        entities = {
            name: {
                "colour": colour,
                "regions": [
                    {key: value for key, value in asdict(region).items() if key != "entity"}
                    for region in self.regions
                    if region.entity == name
                ],
            }
            for name, colour in self.colours.items()
        }
        spans = [{**asdict(span), "colour": self.colours[span.entity]} for span in self.matching.spans]
        return {
            "height": height,
            "width": width,
            "tags": self.tags,
            "entities": entities,
            "text": self.text,
            "spans": spans,
            "matched_by": self.matching.by,
            "answer": self.matching.answer,
            "notes": self.notes,
        }

    def draw(self, picture: Tensor, entities: Sequence[str] | None = None) -> Any:
        """The picture with the entities of `matched` and the highlighted text below, as a PIL picture.

        Args:
            picture: (3, H, W) uint8, the one that was grounded.
            entities: only these, and no text.
        """
        drawn = []
        for name in self.matched if entities is None else entities:
            found = [region for region in self.regions if region.entity == name]
            masks = np.stack([region.pixels() for region in found])
            drawn.append(ColouredEntity(name, self.colours[name], [region.box for region in found], masks))
        spans = self.matching.spans
        pieces = (
            [] if entities is not None else cut_text(self.text or "", spans, lambda span: self.colours[span.entity])
        )
        return draw_grounding(picture.permute(1, 2, 0).numpy(), drawn, ColouredText(pieces))


class Grounder:
    """The pipeline. Models are loaded when a picture first needs them, once.

    Args:
        tagger: what to look for; None = RAM as published.
        detector: where it is; None = Grounding DINO (tiny, as published).
        segmenter: which pixels; None = SAM (ViT-H, as published).
        matcher: which words; None = rules.
        nms_iou: of two boxes of one entity that overlap more, the better stays; None keeps both, as the released code
            does, where this step is commented out at 0.5.
        entity_names: `tags` calls a box by the tag that its phrase stands for, `released` by the phrase itself.
        cache: folder that keeps results between runs; None = none are kept.

    Raises:
        ConfigError: nms_iou outside 0 to 1.
    """

    def __init__(
        self,
        tagger: Tagger | None = None,
        detector: Detector | None = None,
        segmenter: Segmenter | None = None,
        matcher: Matcher | None = None,
        nms_iou: float | None = 0.5,
        entity_names: Literal["tags", "released"] = "tags",
        cache: str | None = None,
    ) -> None:
        if nms_iou is not None and not 0 < nms_iou <= 1:
            raise ConfigError(f"nms_iou is {nms_iou}, wanted above 0 and at most 1, or null")
        self.tagger = tagger or RAMTagger()
        self.detector = detector or GroundingDino()
        self.segmenter = segmenter or SAM()
        self.matcher = matcher or RuleMatcher()
        self.nms_iou, self.entity_names = nms_iou, entity_names
        self._cache = StageCache(None if cache is None else Path(cache))

    def to(self, device: torch.device | str) -> Grounder:
        """Where models will run; call it before the first picture.

        Returns:
            This grounder.
        """
        for stage in (self.tagger, self.detector, self.segmenter, self.matcher):
            stage.device = torch.device(device)
        return self

    def ground(self, pictures: Sequence[Tensor], texts: Sequence[str | None]) -> list[Grounding]:
        """Ground texts in their pictures.

        A text may name nothing of its picture, and a picture may hold nothing that is found: the result is then empty
        and its notes say so.

        Args:
            pictures: (3, H, W) uint8 tensors on the CPU, of any size.
            texts: one per picture; None finds all things and matches nothing.

        Raises:
            ShapeError: a picture of another shape, or another number of texts.
            DataError: an empty text.
            AvcapError: a model cannot be loaded.
        """
        _check(pictures, texts)
        tags = self._tags(pictures)
        detections = self._detections(pictures, tags)
        masks = self._masks(pictures, detections)
        entities = [_names(found) for found in detections]
        matchings = self._matchings(texts, entities)
        results = []
        for picture, text, seen, found, own_masks, names, matching in zip(
            pictures, texts, tags, detections, masks, entities, matchings, strict=True
        ):
            regions = [
                Region(entity, each.phrase, each.box, each.score, mask)
                for (entity, each), mask in zip(found, own_masks, strict=True)
            ]
            notes = _notes(seen, names, text, matching)
            size = (int(picture.shape[1]), int(picture.shape[2]))
            results.append(Grounding(size, seen, regions, entity_colours(names), text, matching, notes))
        return results

    def _tags(self, pictures: Sequence[Tensor]) -> list[list[str]]:
        found: list[list[str]] = self._cache.get(
            self.tagger.identity,
            [[picture] for picture in pictures],
            lambda missing: self.tagger.tag([pictures[at] for at in missing]),
        )
        return found

    def _detections(
        self, pictures: Sequence[Tensor], tags: Sequence[Sequence[str]]
    ) -> list[list[tuple[str, Detection]]]:
        kept = self._cache.get(
            self.detector.identity,
            [[picture, list(words)] for picture, words in zip(pictures, tags, strict=True)],
            lambda missing: [
                [asdict(each) for each in found]
                for found in self.detector.detect([pictures[at] for at in missing], [tags[at] for at in missing])
            ],
        )
        named = []
        for words, found in zip(tags, kept, strict=True):
            detections = [Detection(each["phrase"], tuple(each["box"]), each["score"]) for each in found]
            named.append(self._suppress([(self._entity(each.phrase, words), each) for each in detections]))
        return named

    def _entity(self, phrase: str, tags: Sequence[str]) -> str:
        return phrase_to_tag(phrase, tags) if self.entity_names == "tags" else phrase

    def _suppress(self, found: list[tuple[str, Detection]]) -> list[tuple[str, Detection]]:
        if self.nms_iou is None or not found:
            return found
        names = _names(found)
        kept = batched_nms(
            torch.tensor([each.box for _, each in found], dtype=torch.float32),
            torch.tensor([each.score for _, each in found], dtype=torch.float32),
            torch.tensor([names.index(entity) for entity, _ in found]),
            self.nms_iou,
        )
        return [found[at] for at in kept.tolist()]

    def _masks(
        self, pictures: Sequence[Tensor], detections: Sequence[Sequence[tuple[str, Detection]]]
    ) -> list[list[dict[str, Any]]]:
        boxes = [[each.box for _, each in found] for found in detections]
        found: list[list[dict[str, Any]]] = self._cache.get(
            self.segmenter.identity,
            [[picture, own] for picture, own in zip(pictures, boxes, strict=True)],
            lambda missing: [
                [encode_rle(mask) for mask in masks]
                for masks in self.segmenter.segment([pictures[at] for at in missing], [boxes[at] for at in missing])
            ],
        )
        return found

    def _matchings(self, texts: Sequence[str | None], entities: Sequence[Sequence[str]]) -> list[Matching]:
        asked = [at for at, text in enumerate(texts) if text is not None]
        kept = self._cache.get(
            self.matcher.identity,
            [[texts[at], list(entities[at])] for at in asked],
            lambda missing: [asdict(self.matcher.match(str(texts[asked[at]]), entities[asked[at]])) for at in missing],
        )
        matchings = [Matching((), "nothing")] * len(texts)
        for at, found in zip(asked, kept, strict=True):
            spans = tuple(Span(**span) for span in found["spans"])
            matchings[at] = Matching(spans, found["by"], found["note"], found["answer"])
        return matchings


def _check(pictures: Sequence[Tensor], texts: Sequence[str | None]) -> None:
    if len(pictures) != len(texts):
        raise ShapeError(f"{len(texts)} texts for {len(pictures)} pictures, wanted one each (None for no text)")
    for picture in pictures:
        if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype != torch.uint8 or not picture.numel():
            raise ShapeError(
                f"a picture is {tuple(picture.shape)} {picture.dtype}, wanted (3, height, width) torch.uint8"
            )
    for text in texts:
        if text is not None and not text.strip():
            raise DataError("the text is empty, wanted words about the picture (None: all things are found)")


def _names(found: Sequence[tuple[str, Detection]]) -> list[str]:
    """The entities in the order in which they first come."""
    return list(dict.fromkeys(entity for entity, _ in found))


def _notes(tags: Sequence[str], names: Sequence[str], text: str | None, matching: Matching) -> list[str]:
    notes = []
    if not tags:
        notes.append("the tagger found nothing in the picture")
    elif not names:
        notes.append(f"the detector found no box for {', '.join(tags)}")
    elif missing := [tag for tag in tags if tag not in names]:
        notes.append(f"no box for {', '.join(missing)}")
    if matching.note:
        notes.append(matching.note)
    if names and text is not None and not matching.spans:
        notes.append(f"the text names none of {', '.join(names)}")
    return notes
