"""Which things a picture shows: Recognize Anything as published, or CLIP over a list of words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avcap_zoo.backbones.vision.finders import Tagger, file_identity
from avcap_zoo.backbones.vision.swin_tagger import SwinTagger, SwinTaggerSettings
from avcap_zoo.errors import ConfigError


class RAMTagger(Tagger):
    """Recognize Anything (arXiv 2306.03514), the published tagger.

    Args:
        weights: `ram_swin_large_14m.pth`.
        tags: text file with one tag a line, in the order of the weights (`ram_tag_list.txt` of the authors).
        thresholds: text file with one probability a line (`ram_tag_list_threshold.txt`); None = 0.68 for all.
        settings: sizes; the defaults are those of the published weights.
        batch_size: pictures at once.
    """

    def __init__(
        self,
        weights: str = "checkpoints/ram_swin_large_14m.pth",
        tags: str = "checkpoints/ram_tag_list.txt",
        thresholds: str | None = "checkpoints/ram_tag_list_threshold.txt",
        settings: SwinTaggerSettings | None = None,
        batch_size: int = 8,
    ) -> None:
        self.weights, self.tags, self.thresholds = weights, tags, thresholds
        self.settings = settings or SwinTaggerSettings()
        self.batch_size = batch_size
        super().__init__(
            weights=file_identity(weights),
            tags=file_identity(tags),
            thresholds=file_identity(thresholds),
            settings=repr(self.settings),
        )

    def tag(self, pictures: Sequence[Tensor]) -> list[list[str]]:
        """Tags above their own threshold, in the order of the list; doubled words of the list once.

        Raises:
            ConfigError: a list is missing or has another length than the model.
            WeightsError: the weights are missing or do not fit.
        """
        model = self._model
        found: list[list[str]] = []
        for start in range(0, len(pictures), self.batch_size):
            pixels = [model.normalise(each[None].to(self.device)) for each in pictures[start : start + self.batch_size]]
            found += model.tags(torch.cat(pixels))
        return [list(dict.fromkeys(tags)) for tags in found]

    @cached_property
    def _model(self) -> SwinTagger:
        from avcap_zoo.weights.published import load_tagger

        words = read_lines(self.tags, "tagger.init_args.tags")
        limits = None
        if self.thresholds is not None:
            try:
                limits = [float(line) for line in read_lines(self.thresholds, "tagger.init_args.thresholds")]
            except ValueError as error:
                raise ConfigError(f"tagger.init_args.thresholds: {self.thresholds} holds more than numbers") from error
        model = SwinTagger(self.settings, words, limits)
        load_tagger(model, self.weights)
        return model.to(self.device).eval()


class CLIPTagger(Tagger):
    """CLIP, zero shot: the words whose sentence is likeliest among all of a list.

    Args:
        tags: the words, or a text file with one a line.
        source: hub id or local folder of a CLIP model with its processor, in transformers format.
        template: sentence of a word.
        threshold: least probability (softmax over the list).
        max_tags: most tags of a picture.
        batch_size: pictures at once.
    """

    def __init__(
        self,
        tags: list[str] | str,
        source: str = "openai/clip-vit-large-patch14",
        template: str = "a photo of a {}.",
        threshold: float = 0.1,
        max_tags: int = 10,
        batch_size: int = 8,
    ) -> None:
        if "{}" not in template:
            raise ConfigError(f"tagger.init_args.template is {template!r}, wanted a sentence with {{}} for the word")
        self.words = read_lines(tags, "tagger.init_args.tags") if isinstance(tags, str) else list(tags)
        if not self.words:
            raise ConfigError("tagger.init_args.tags is empty, wanted one word or more")
        self.source, self.template, self.threshold, self.max_tags = source, template, threshold, max_tags
        self.batch_size = batch_size
        super().__init__(
            tags=self.words, source=file_identity(source), template=template, threshold=threshold, max_tags=max_tags
        )

    @torch.inference_mode()
    def tag(self, pictures: Sequence[Tensor]) -> list[list[str]]:
        """The likeliest words, the likeliest first.

        Raises:
            WeightsError: the model cannot be found or read.
        """
        processor, model, read = self._loaded
        found = []
        for start in range(0, len(pictures), self.batch_size):
            batch = list(pictures[start : start + self.batch_size])
            inputs = processor(images=batch, input_data_format="channels_first", return_tensors="pt")
            seen = _pooled(model.get_image_features(pixel_values=inputs["pixel_values"].to(self.device)))
            logits = torch.nn.functional.normalize(seen, dim=-1) @ read.T * model.logit_scale.exp()
            for row in logits.float().softmax(dim=-1):
                best = row.topk(min(self.max_tags, len(self.words)))
                likely = zip(best.values.tolist(), best.indices.tolist(), strict=True)
                found.append([self.words[index] for probability, index in likely if probability > self.threshold])
        return found

    @cached_property
    def _loaded(self) -> tuple[Any, Any, Tensor]:
        """Image processor, model, and (V, C) unit vectors of the sentences."""
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        from avcap_zoo.backbones.pretrained import load_part, load_pretrained

        key = "tagger.init_args.source"
        processor, tokenizer = (load_part(part, self.source, key) for part in (AutoImageProcessor, AutoTokenizer))
        model = load_pretrained(CLIPModel, self.source, key).to(self.device).eval()
        sentences = [self.template.format(word) for word in self.words]
        read = []
        with torch.inference_mode():
            for start in range(0, len(sentences), 256):
                # Some tokenizers would add token types, which CLIP of transformers 4 does not take.
                options = {"padding": True, "truncation": True, "return_tensors": "pt", "return_token_type_ids": False}
                batch = tokenizer(sentences[start : start + 256], **options)
                read.append(_pooled(model.get_text_features(**batch.to(self.device))))
        return processor, model, torch.nn.functional.normalize(torch.cat(read), dim=-1)


class GivenTags(Tagger):
    """The same words for every picture, for where it is known what to look for.

    Args:
        tags: the words.
    """

    def __init__(self, tags: list[str]) -> None:
        self.words = list(dict.fromkeys(tags))
        super().__init__(tags=self.words)

    def tag(self, pictures: Sequence[Tensor]) -> list[list[str]]:
        """All words, for each picture."""
        return [list(self.words) for _ in pictures]


def read_lines(path: str, key: str) -> list[str]:
    """The lines of a text file without blanks.

    Raises:
        ConfigError: it is missing, not UTF-8, or holds nothing.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}; checkpoints/README.md lists it") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path} is not a text file in UTF-8") from error
    lines = [line for line in lines if line]
    if not lines:
        raise ConfigError(f"{key}: {path} is empty, wanted one entry a line")
    return lines


def _pooled(features: Any) -> Tensor:
    """The projected features: an output object of transformers 5 holds them, transformers 4 gives them as they are."""
    return features if isinstance(features, Tensor) else features.pooler_output
