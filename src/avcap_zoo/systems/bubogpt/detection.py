"""Where the tags of a picture are: Grounding DINO of transformers, or the authors' own package.

Source: Liu et al., "Grounding DINO" (arXiv 2303.05499); thresholds and prompt as BuboGPT's released code has them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.vision.finders import Detection, Detector, file_identity
from avcap_zoo.backbones.vision.swin_tagger import IMAGENET_MEAN, IMAGENET_STD
from avcap_zoo.errors import ConfigError, hub_error, require_extra
from avcap_zoo.ops.picture_resize import resize_pictures

BOX_THRESHOLD = 0.25
TEXT_THRESHOLD = 0.2
MAX_TOKENS = 256
"""Positions of the model's text input."""

Prompt = Literal["sentences", "released"]


@dataclass(frozen=True)
class PromptPart:
    """One text for the model.

    Attributes:
        text: what is given.
        tags: the tags in it, in their order.
    """

    text: str
    tags: tuple[str, ...]


class PromptedDetector(Detector):
    """What both Grounding DINOs share: prompts out of tags, and boxes out of logits.

    Args:
        prompt: `sentences` ends every tag with " . ", the model's own separator, and spreads many tags over several
            prompts; a box gets the tag with the likeliest token. `released` joins all with a comma and cuts at 256
            tokens; a box gets the words above the text threshold, which may be of several tags ("plate platter").
        box_threshold: a box needs a token above it.
        text_threshold: words above it are part of a box's phrase (`released`).
        batch_size: prompts at once.
        identity: further settings of the class.

    Raises:
        ConfigError: a threshold outside 0 to 1.
    """

    def __init__(
        self, prompt: Prompt, box_threshold: float, text_threshold: float, batch_size: int, **identity: Any
    ) -> None:
        for name, value in (("box_threshold", box_threshold), ("text_threshold", text_threshold)):
            if not 0 <= value <= 1:
                raise ConfigError(f"detector.init_args.{name} is {value}, wanted 0 to 1")
        self.prompt: Prompt = prompt
        self.box_threshold, self.text_threshold = box_threshold, text_threshold
        self.batch_size = batch_size
        super().__init__(prompt=prompt, box_threshold=box_threshold, text_threshold=text_threshold, **identity)

    @torch.inference_mode()
    def detect(self, pictures: Sequence[Tensor], tags: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Boxes of each picture, the best first. A picture without tags has none, and is not looked at.

        Raises:
            WeightsError: the model cannot be found or read.
        """
        rows = [
            (number, part)
            for number, words in enumerate(tags)
            for part in (build_prompts(words, self.tokenizer, self.prompt) if words else [])
        ]
        found: list[list[Detection]] = [[] for _ in pictures]
        for batch in self._batches(rows, pictures):
            answers = self.predict([pictures[number] for number, _ in batch], [part.text for _, part in batch])
            for (number, part), (logits, boxes, ids) in zip(batch, answers, strict=True):
                found[number] += self._read(part, logits, boxes, ids, tuple(pictures[number].shape[1:]))
        return [sorted(each, key=lambda detection: -detection.score) for each in found]

    @property
    @abstractmethod
    def tokenizer(self) -> Any:
        """The tokenizer of the text side."""

    @abstractmethod
    def predict(self, pictures: Sequence[Tensor], texts: Sequence[str]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Run the model.

        Args:
            pictures: of one size.
            texts: one for each.

        Returns:
            For each pair (Q, L) logits of the tokens, (Q, 4) centre x, centre y, width, height as shares of the
            picture, and (L,) token ids; on the CPU.
        """

    def _batches(
        self, rows: Sequence[tuple[int, PromptPart]], pictures: Sequence[Tensor]
    ) -> Iterator[list[tuple[int, PromptPart]]]:
        """Pictures of one size share a batch: padding would make what is found depend on the neighbours."""
        by_size: dict[tuple[int, ...], list[tuple[int, PromptPart]]] = {}
        for row in rows:
            by_size.setdefault(tuple(pictures[row[0]].shape), []).append(row)
        for same in by_size.values():
            for start in range(0, len(same), self.batch_size):
                yield same[start : start + self.batch_size]

    def _read(
        self, part: PromptPart, logits: Tensor, boxes: Tensor, ids: Tensor, size: tuple[int, ...]
    ) -> list[Detection]:
        probabilities = logits.float().sigmoid()
        special = torch.isin(ids, torch.tensor(sorted(set(self.tokenizer.all_special_ids))))
        stops = ids == self.tokenizer.convert_tokens_to_ids(".")
        words = probabilities.masked_fill(special | stops if self.prompt == "sentences" else special, 0.0)
        scores, likeliest = words.max(dim=1)
        # As published the threshold is compared with all tokens, separators included.
        kept = (words if self.prompt == "sentences" else probabilities).max(dim=1).values > self.box_threshold
        height, width = size
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        corners = torch.cat([centre - half, centre + half], dim=1).clamp(0, 1)
        corners = corners * torch.tensor([width, height, width, height], dtype=corners.dtype)
        # Which tag a token belongs to: the number of separators before it.
        tag_of_token = stops.long().cumsum(0)
        detections = []
        for query in kept.nonzero()[:, 0].tolist():
            if self.prompt == "sentences":
                phrase = part.tags[int(tag_of_token[likeliest[query]])]
            else:
                above = (probabilities[query] > self.text_threshold) & ~special
                phrase = self.tokenizer.decode(ids[above]).replace(".", "").replace(",", " ")
                phrase = " ".join(phrase.split())
            left, top, right, bottom = corners[query].tolist()
            if phrase and right > left and bottom > top:
                detections.append(Detection(phrase, (left, top, right, bottom), float(scores[query])))
        return detections


class GroundingDino(PromptedDetector):
    """Grounding DINO as transformers has it.

    Args:
        source: hub id or local folder in transformers format.
        prompt: see `PromptedDetector`.
        box_threshold: published value of the demo; an older path of its code has 0.35.
        text_threshold: published value of the demo; an older path of its code has 0.25.
        batch_size: prompts at once.
    """

    def __init__(
        self,
        source: str = "IDEA-Research/grounding-dino-tiny",
        prompt: Prompt = "sentences",
        box_threshold: float = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        batch_size: int = 4,
    ) -> None:
        self.source = source
        super().__init__(prompt, box_threshold, text_threshold, batch_size, source=file_identity(source))

    @property
    def tokenizer(self) -> Any:
        """The one of the processor."""
        return self._processor.tokenizer

    def predict(self, pictures: Sequence[Tensor], texts: Sequence[str]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """See `PromptedDetector`."""
        inputs = self._processor(
            images=list(pictures),
            text=list(texts),
            input_data_format="channels_first",
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        answer = self._model(**inputs)
        results = []
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            length = int(mask.sum())
            results.append(
                (
                    answer.logits[row, :, :length].cpu(),
                    answer.pred_boxes[row].float().cpu(),
                    inputs["input_ids"][row, :length].cpu(),
                )
            )
        return results

    @cached_property
    def _processor(self) -> Any:
        from transformers import AutoProcessor

        from avcap_zoo.backbones.pretrained import load_part

        return load_part(AutoProcessor, self.source, "detector.init_args.source")

    @cached_property
    def _model(self) -> Any:
        from transformers import GroundingDinoForObjectDetection

        from avcap_zoo.backbones.pretrained import load_pretrained

        model = load_pretrained(GroundingDinoForObjectDetection, self.source, "detector.init_args.source")
        return model.to(self.device).eval()


class GroundingDinoPy(PromptedDetector):
    """Grounding DINO of the package `groundingdino-py` (extra `grounding`), for the published weight files.

    The package's wrapper around BERT uses parts that transformers 5 no longer has; ours takes its place while the model
    is built.

    Args:
        weights: `groundingdino_swint_ogc.pth`; None = random weights.
        text_encoder: `bert-base-uncased`, or a local folder in transformers format.
        prompt: see `PromptedDetector`.
        box_threshold: as in `GroundingDino`.
        text_threshold: as in `GroundingDino`.
        batch_size: prompts at once.

    Raises:
        MissingExtraError: the package is not installed.
    """

    def __init__(
        self,
        weights: str | None = "checkpoints/groundingdino_swint_ogc.pth",
        text_encoder: str = "bert-base-uncased",
        prompt: Prompt = "sentences",
        box_threshold: float = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
        batch_size: int = 4,
    ) -> None:
        self._package: Any = require_extra("groundingdino.models.GroundingDINO.groundingdino", "grounding")
        self.weights, self.text_encoder = weights, text_encoder
        super().__init__(
            prompt,
            box_threshold,
            text_threshold,
            batch_size,
            weights=file_identity(weights),
            text_encoder=file_identity(text_encoder),
        )

    @property
    def tokenizer(self) -> Any:
        """The one of the model."""
        return self._model.tokenizer

    def predict(self, pictures: Sequence[Tensor], texts: Sequence[str]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """See `PromptedDetector`. Pictures go in with the shorter side at 800 pixels, the longer at most 1333."""
        answer = self._model(_normalised(torch.stack(list(pictures)).to(self.device)), captions=list(texts))
        read = self.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)
        return [
            (
                answer["pred_logits"][row, :, : len(ids)].float().cpu(),
                answer["pred_boxes"][row].float().cpu(),
                torch.tensor(ids),
            )
            for row, ids in enumerate(read["input_ids"])
        ]

    @cached_property
    def _model(self) -> Any:
        from avcap_zoo.weights.load import load_strictly, load_tensors

        settings = vars(import_module("groundingdino.config.GroundingDINO_SwinT_OGC"))
        settings = {name: value for name, value in settings.items() if not name.startswith("_")}
        settings |= {"use_checkpoint": False, "use_transformer_ckpt": False, "text_encoder_type": self.text_encoder}
        theirs = self._package.BertModelWarper
        self._package.BertModelWarper = _TextEncoder
        try:
            with hub_error(self.text_encoder, "detector.init_args.text_encoder"):
                model = self._package.build_groundingdino(SimpleNamespace(**settings))
        finally:
            self._package.BertModelWarper = theirs
        if self.weights is not None:
            tensors = {name.removeprefix("module."): value for name, value in load_tensors(self.weights).items()}
            tensors.pop("bert.embeddings.position_ids", None)  # a constant of older versions of transformers
            load_strictly(model, tensors, self.weights)
        return model.to(self.device).eval()


class _TextEncoder(nn.Module):
    """BERT under the names that the published weights have, asked with a mask of token pairs."""

    def __init__(self, bert_model: Any) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings, self.encoder, self.pooler = bert_model.embeddings, bert_model.encoder, bert_model.pooler
        self._whole = (bert_model,)  # in a tuple: its parameters are registered above

    def forward(self, *, attention_mask: Tensor, **inputs: Any) -> Any:
        """`attention_mask` is (B, L, L) bool, or (B, L)."""
        (bert,) = self._whole
        if attention_mask.ndim == 3 and not hasattr(bert, "get_head_mask"):  # transformers 5 wants the heads' axis
            attention_mask = attention_mask[:, None]
        return bert(attention_mask=attention_mask, **inputs)


def _normalised(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 as the package wants them: shorter side 800, longer at most 1333, ImageNet's mean and std."""
    height, width = pictures.shape[2:]
    scale = min(800 / min(height, width), 1333 / max(height, width))
    resized = resize_pictures(pictures, (round(height * scale), round(width * scale)), "bilinear").float() / 255
    mean, std = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (resized - mean) / std


def build_prompts(tags: Sequence[str], tokenizer: Any, prompt: Prompt) -> list[PromptPart]:
    """The texts that ask for tags.

    Args:
        tags: one or more; they are lower-cased.
        tokenizer: counts tokens.
        prompt: `released`: "dog,car.", one text of any length. `sentences`: "dog . car .", as many texts of at most
            256 tokens as are needed; dots within a tag become spaces.
    """
    if prompt == "released":
        return [PromptPart(f"{','.join(tags)}.".lower(), tuple(tags))]
    parts: list[PromptPart] = []
    held: list[str] = []
    room = MAX_TOKENS - 2  # [CLS] and [SEP]
    used = 0
    for tag in tags:
        words = " ".join(tag.lower().replace(".", " ").split())
        if not words:
            continue
        needed = len(tokenizer(words, add_special_tokens=False).input_ids) + 1
        if held and used + needed > room:
            parts.append(_part(held))
            held, used = [], 0
        held.append(tag)
        used += needed
    return [*parts, _part(held)] if held else parts


def _part(tags: Sequence[str]) -> PromptPart:
    words = [" ".join(tag.lower().replace(".", " ").split()) for tag in tags]
    return PromptPart(" . ".join(words) + " .", tuple(tags))


def phrase_to_tag(phrase: str, tags: Sequence[str]) -> str:
    """The tag that a detector's phrase stands for.

    The tag of that name; else the one that shares the largest part of its words with the phrase, the longer of two
    with the same part; else the phrase itself.
    """
    wanted = phrase.lower().split()
    by_name = {" ".join(tag.lower().split()): tag for tag in reversed(tags)}
    if " ".join(wanted) in by_name:
        return by_name[" ".join(wanted)]
    best, best_rank = phrase, (0.0, 0)
    for tag in tags:
        words = set(tag.lower().split())
        shared = len(words & set(wanted))
        rank = (shared / len(words), len(words)) if shared else (0.0, 0)
        if rank > best_rank:
            best, best_rank = tag, rank
    return best
