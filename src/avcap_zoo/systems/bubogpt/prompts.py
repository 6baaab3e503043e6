"""Prompts: where picture and sound stand in a text, how it is cut into tokens, and what of it is learned.

A sequence is `[BOS] slice MODALITY slice MODALITY slice answer end`. Slices are tokenised on their own. Nothing but
the answer and its end is learned.

Source: BuboGPT (arXiv 2307.08581), section 3; released code (spec bubogpt.md, sections 5 and 12).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avcap_zoo.backbones.joiner import Modality
from avcap_zoo.backbones.language import CausalLanguageModel, PrefixedText, shared_length
from avcap_zoo.errors import ConfigError, ShapeError

MARKER = "<ModalityHere>"
SEPARATOR = "###"
WORDS: dict[Modality, str] = {"vision": "Vision", "audio": "Audio"}
CODES: dict[Modality, int] = {"vision": -1, "audio": -2}
_NAMED = re.compile(r"<(Vision|Audio)><ModalityHere></\1>")
_ORDER_WITHOUT_PROMPT: tuple[Modality, ...] = ("vision", "audio")
_ORDER_IN_PROMPT: tuple[Modality, ...] = ("audio", "vision")

_VISION = "<Vision><ModalityHere></Vision> "
_AUDIO = "<Audio><ModalityHere></Audio> "
_TELL_WHERE = "Pay attention to the given audio and image, and tell me where is the sound coming from in this picture."
TEMPLATES: tuple[str, ...] = (
    f"{_VISION}Describe this image in detail.",
    f"{_VISION}Take a look at this image and describe what you notice.",
    f"{_VISION}Please provide a detailed description of the picture.",
    f"{_VISION}Could you describe the contents of this image for me?",
    f"{_AUDIO}Describe this audio in detail.",
    f"{_AUDIO}Pay attention to this audio and describe what you notice.",
    f"{_AUDIO}Please provide a detailed description of the sound.",
    f"{_AUDIO}Could you describe the contents of this audio for me? ",
    f"{_AUDIO}{_VISION}Please find the source that emits the given sound in this image.",
    f"{_AUDIO}{_VISION}{_TELL_WHERE}",
    f"{_AUDIO}{_VISION}Which part of this scene is the source of the given sound?",
)
"""The published prompts of clips that bring no question; the first of its modalities is the one of evaluation."""


@dataclass
class PromptSettings:
    """Text around pictures and sounds.

    Args:
        templates: prompts for clips without a question. One that names exactly the modalities of the clip is drawn in
            training; the first such is taken in evaluation. Without one, the tokens stand alone before the answer.
        wrapper: turns of the dialogue, with `{}` for the prompt; empty = no wrapper.
        end: written behind every answer, and where generation stops.
        max_text_tokens: longest slice of a clip's own question, and longest answer.
        released_layout: True: shorter slices are padded in the middle of the sequence, and what is too long loses its
            end, be it the assistant's tag or `end` (all clips of a batch must have the same modalities). False: no
            gaps, and the tag and `end` survive.
    """

    templates: tuple[str, ...] = TEMPLATES
    wrapper: str = "###Human: {} ###Assistant: "
    end: str = SEPARATOR
    max_text_tokens: int = 196
    released_layout: bool = False


@dataclass
class Row:
    """One clip's sequence before it is put together.

    Attributes:
        slices: token ids of the text; the modality of the same index follows each but the last.
        modalities: one fewer than slices.
        answer: token ids of what is learned; None when generating.
    """

    slices: list[list[int]]
    modalities: list[Modality]
    answer: list[int] | None = field(default=None)


def modalities_in(prompt: str) -> list[Modality]:
    """The modalities that a prompt names, in its order.

    Raises:
        ConfigError: the marker stands outside its tags, or a modality is named twice.
    """
    named = [word.lower() for word in _NAMED.findall(prompt)]
    if len(named) != prompt.count(MARKER) or len(set(named)) < len(named):
        raise ConfigError(
            f"{prompt!r}: {MARKER} may stand once in <Vision>{MARKER}</Vision> and once in <Audio>{MARKER}</Audio>"
        )
    return [modality for word in named for modality in CODES if modality == word]


def with_markers(question: str, present: Sequence[Modality]) -> str:
    """A question with its modalities in front, sound before picture; one that names them already stays as it is."""
    if MARKER in question:
        return question
    tags = (f"<{WORDS[m]}>{MARKER}</{WORDS[m]}> " for m in _ORDER_IN_PROMPT if m in present)
    return "".join(tags) + question


def matching_templates(templates: Sequence[str], present: Sequence[Modality]) -> list[str]:
    """The templates that name exactly these modalities."""
    return [template for template in templates if set(modalities_in(template)) == set(present)]


def prompt_row(
    language: CausalLanguageModel, settings: PromptSettings, prompt: str | None, present: Sequence[Modality], own: bool
) -> Row:
    """Tokenise a prompt slice by slice.

    Args:
        language: its tokenizer.
        settings: see `PromptSettings`.
        prompt: with markers, without wrapper; None = no text at all.
        present: the modalities of the clip, for `None`.
        own: whether the prompt is the clip's own: only such are cut to `max_text_tokens`.

    Raises:
        ConfigError: no room is left for the question.
    """
    if prompt is None:
        order: list[Modality] = [modality for modality in _ORDER_WITHOUT_PROMPT if modality in present]
        return Row([[] for _ in range(len(order) + 1)], order)
    slices = (settings.wrapper or "{}").replace("{}", prompt).split(MARKER)
    limit = settings.max_text_tokens if own else None
    tail = settings.wrapper.partition("{}")[2]
    tokens = [_tokens(language, text, "", None) for text in slices[:-1]]
    if limit is not None:
        tokens = [ids[:limit] for ids in tokens]
    last = slices[-1].removesuffix(tail) if tail else slices[-1]
    if settings.released_layout:
        tokens.append(_tokens(language, slices[-1], "", None)[:limit])
    else:
        tokens.append(_tokens(language, last, tail, limit))
    return Row(tokens, modalities_in(prompt))


def answer_ids(language: CausalLanguageModel, settings: PromptSettings, answer: str) -> list[int]:
    """Tokens of an answer and its end, at most `max_text_tokens`."""
    if settings.released_layout:
        return _tokens(language, answer + settings.end, "", None)[: settings.max_text_tokens]
    return _tokens(language, answer, settings.end, settings.max_text_tokens)


def _tokens(language: CausalLanguageModel, text: str, tail: str, limit: int | None) -> list[int]:
    """Tokens of text and tail; what is too long is cut in front of the tail."""
    ids: list[int] = language.tokenizer(text + tail, add_special_tokens=False).input_ids
    if limit is None or len(ids) <= limit:
        return ids
    alone: list[int] = language.tokenizer(text, add_special_tokens=False).input_ids
    kept = len(ids) - shared_length(ids, alone)
    if kept >= limit:
        raise ConfigError(
            f"model.init_args.prompts.max_text_tokens is {limit}, {tail!r} alone takes {kept}: give it more"
        )
    return ids[: limit - kept] + ids[len(ids) - kept :]


def assemble(
    language: CausalLanguageModel,
    rows: Sequence[Row],
    tokens: Mapping[Modality, Tensor],
    *,
    released_layout: bool = False,
    last: int | None = None,
) -> PrefixedText:
    """Put the sequences of a batch together. Each row may have other modalities.

    Args:
        language: embeds the text.
        rows: of B clips.
        tokens: by modality (places, N, C): tokens of every place that the rows name, row by row.
        released_layout: see `PromptSettings`.
        last: only so many positions at the end of the sequences are kept; None = all.

    Returns:
        The sequences; labels are -100 everywhere but on the answers.

    Raises:
        ConfigError: more positions than the language model has, or rows of different modalities in released layout.
        ShapeError: another number of tokens than the rows name.
    """
    gap = language.tokenizer.pad_token_id
    if released_layout and len({tuple(row.modalities) for row in rows}) > 1:
        raise ConfigError("model.init_args.prompts.released_layout wants clips of the same modalities in a batch")
    widths = (
        [max(map(len, column)) for column in zip(*(row.slices for row in rows), strict=True)] if released_layout else []
    )
    begin = language.tokenizer.bos_token_id
    counts = {modality: found.shape[1] for modality, found in tokens.items()}
    ids: list[list[int]] = []
    masks: list[list[bool]] = []
    labels: list[list[int]] = []
    for row in rows:
        line: list[int] = []
        mask: list[bool] = []
        for number, part in enumerate(row.slices):
            lacking = widths[number] - len(part) if released_layout else 0
            line += part + [gap] * lacking
            mask += [True] * len(part) + [False] * lacking
            if number < len(row.modalities):
                modality = row.modalities[number]
                if modality not in counts:
                    raise ShapeError(f"a prompt names {modality}, and no tokens of it are given")
                line += [CODES[modality]] * counts[modality]
                mask += [True] * counts[modality]
        answer = row.answer or []
        if begin is not None:
            # As released: the begin token is masked where the first slice is empty and those of others are not.
            line, mask = [begin, *line], [mask[0] if mask and released_layout else True, *mask]
        ids.append(line + answer)
        masks.append(mask + [True] * len(answer))
        labels.append([-100] * len(line) + answer)
    device = language.device
    length = max(map(len, ids), default=0)
    if last is None:
        length = language.padded_length(length)
    return language.interleave(
        _padded(ids, gap, length).to(device),
        _padded(masks, False, length).to(device),
        _padded(labels, -100, length).to(device),
        {CODES[modality]: found for modality, found in tokens.items()},
        last=last,
    )


def _padded(rows: Sequence[Sequence[int]], value: int, length: int) -> Tensor:
    """(B, L) of rows of different lengths, none longer than L."""
    kind = torch.bool if value is False else torch.long
    padded = torch.tensor([[*row, *([value] * (length - len(row)))] for row in rows], dtype=kind)
    return padded.view(len(rows), length)


def answer_of(text: str, end: str = SEPARATOR) -> str:
    """What a model said: up to the first `end`, after the last "Assistant:", without white space around it."""
    return text.split(end)[0].split("Assistant:")[-1].strip()
