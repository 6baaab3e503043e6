"""Talk with a BuboGPT model about text, pictures and sounds, over several turns, token by token.

Source: released demo (spec bubogpt.md, section 7). Beyond it: questions without picture or sound, and an end that is
recognised whatever the tokenizer makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import Queue
from typing import Any, Literal

import torch
from torch import Tensor

from avcap_zoo.backbones.joiner import Modality
from avcap_zoo.backbones.language import CausalLanguageModel, GenerationSettings, PrefixedText, SamplingSettings
from avcap_zoo.errors import ConfigError, ShapeError
from avcap_zoo.ops.resample import resample
from avcap_zoo.systems.bubogpt.model import BuboGPTModel
from avcap_zoo.systems.bubogpt.prompts import MARKER, SEPARATOR, WORDS, Row, answer_of, assemble

Role = Literal["Human", "Assistant"]
SYSTEM_TEXT = (
    "Give the following image: <Vision>ImageContent</Vision> or audio: <Audio>AudioContent</Audio>. You will be able "
    "to see the image/audio once I provide it to you. Please answer my questions."
)
_SEPARATORS = re.compile(r"#{3,}")


@dataclass
class Message:
    """One turn, or one upload.

    Attributes:
        role: who speaks.
        text: what is said; "" for an upload that no question followed yet.
        media: what is shown or played before the text: modality and its (1, queries, C) tokens.
    """

    role: Role
    text: str
    media: tuple[tuple[Modality, Tensor], ...] = ()

    def spelled(self) -> str:
        """The message as it stands in the prompt."""
        tags = [f"<{WORDS[modality]}>{MARKER}</{WORDS[modality]}>" for modality, _ in self.media]
        return " ".join([*tags, *([self.text] if self.text else [])])


@dataclass
class ChatSettings:
    """How the model is spoken to, and how it answers; the defaults are the released demo's.

    Args:
        system: text in front of every conversation.
        generation: length and beams. With more than one beam an answer comes in one piece.
        sampling: draw tokens; None = the likeliest.
        max_context_tokens: positions for the conversation and the answer together; the oldest are dropped.
    """

    system: str = SYSTEM_TEXT
    generation: GenerationSettings = field(default_factory=lambda: GenerationSettings(num_beams=1, max_new_tokens=300))
    sampling: SamplingSettings | None = field(default_factory=SamplingSettings)
    max_context_tokens: int = 2000


def chat_prompt(messages: Sequence[Message], system: str = SYSTEM_TEXT) -> str:
    """The conversation as one text with markers, ending where the assistant is to speak."""
    turns = "".join(f"{message.role}: {message.spelled()}{SEPARATOR}" for message in messages)
    return f"{system}{SEPARATOR}{turns}Assistant:"


def context_of(
    language: CausalLanguageModel, messages: Sequence[Message], system: str = SYSTEM_TEXT
) -> tuple[Row, dict[Modality, Tensor]]:
    """Token ids of a conversation, slice by slice, and the tokens of its media by modality."""
    slices = chat_prompt(messages, system).split(MARKER)
    media = [shown for message in messages for shown in message.media]
    ids: list[list[int]] = [language.tokenizer(text, add_special_tokens=False).input_ids for text in slices]
    tokens: dict[Modality, Tensor] = {
        modality: torch.cat([tokens for kind, tokens in media if kind == modality])
        for modality in WORDS
        if any(kind == modality for kind, _ in media)
    }
    return Row(ids, [modality for modality, _ in media]), tokens


class Chat:
    """One conversation with a model. Several may share a model, but only one may speak at a time.

    Args:
        model: on its device; set to evaluation mode.
        settings: see `ChatSettings`.

    Raises:
        ConfigError: no position is left for the conversation.
    """

    def __init__(self, model: BuboGPTModel, settings: ChatSettings | None = None) -> None:
        self.model = model.eval()
        self.settings = settings or ChatSettings()
        self.messages: list[Message] = []
        limit = getattr(model.language.model.config, "max_position_embeddings", self.settings.max_context_tokens)
        self._room = min(self.settings.max_context_tokens, limit) - self.settings.generation.max_new_tokens
        if self._room < 1:
            raise ConfigError(
                f"answers of {self.settings.generation.max_new_tokens} tokens leave no room for a question in "
                f"{min(self.settings.max_context_tokens, limit)} positions: lower max_new_tokens"
            )

    def reset(self) -> None:
        """Forget what was said, shown and played."""
        self.messages = []

    @torch.no_grad()
    def add_image(self, image: Tensor) -> None:
        """Show a picture; it belongs to the next question.

        Args:
            image: (3, H, W) uint8, RGB.

        Raises:
            ConfigError: the model was built without vision.
            ShapeError: no such picture.
        """
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
            raise ShapeError(f"image is {tuple(image.shape)} {image.dtype}, wanted (3, height, width) torch.uint8")
        tokens = self.model.encode_vision(image[None].to(self.model.language.device))
        self.messages.append(Message("Human", "", (("vision", tokens),)))

    @torch.no_grad()
    def add_audio(self, waveform: Tensor, sample_rate_hz: int) -> None:
        """Play a sound; it belongs to the next question. Channels are averaged, short sounds repeated.

        Args:
            waveform: (S,) or (channels, S) floats in [-1, 1].
            sample_rate_hz: of the waveform.

        Raises:
            ConfigError: the model was built without audio.
            ShapeError: no such waveform, or no samples.
        """
        if waveform.ndim not in (1, 2) or not waveform.is_floating_point() or not waveform.numel():
            raise ShapeError(
                f"waveform is {tuple(waveform.shape)} {waveform.dtype}, wanted (samples,) or (channels, samples) floats"
            )
        mono = waveform if waveform.ndim == 1 else waveform.mean(dim=0)
        mono = mono[None].to(self.model.language.device)
        length = torch.tensor([mono.shape[1]], device=mono.device)
        mono, length = resample(mono, length, sample_rate_hz, self.model.audio_settings.clips.sample_rate_hz)
        self.messages.append(Message("Human", "", (("audio", self.model.encode_audio(mono, length)),)))

    def ask(self, question: str) -> str:
        """Ask, and wait for the whole answer; errors as in `stream`."""
        for _ in self.stream(question):
            continue
        return self.messages[-1].text

    def stream(self, question: str) -> Iterator[str]:
        """Ask, and give the answer piece by piece as it comes.

        Question and answer then stand in `messages`; so does what came of an answer that was not waited for. Runs of
        three or more `#` in the question, which separate turns, become a space.

        Args:
            question: any text.

        Yields:
            Pieces of the answer, none empty.

        Raises:
            ConfigError: an empty question, or one that holds the marker of a picture or sound.
        """
        if MARKER in question:
            raise ConfigError(f"the question holds {MARKER}: add the picture or sound itself, before the question")
        said = " ".join(_SEPARATORS.sub(" ", question).split(" ")).strip()
        if not said:
            raise ConfigError("the question is empty")
        return self._stream(said)

    def _stream(self, question: str) -> Iterator[str]:
        messages = list(self.messages)
        if messages and messages[-1].role == "Human" and messages[-1].media and not messages[-1].text:
            messages[-1] = Message("Human", question, messages[-1].media)
        else:
            messages.append(Message("Human", question))
        row, tokens = context_of(self.model.language, messages, self.settings.system)
        with torch.no_grad():
            text = assemble(self.model.language, [row], tokens, last=self._room)
        given = whole = ""
        end = self.model.end_of(SEPARATOR)
        try:
            for whole in self._texts(text):
                stable = _stable(whole, end)
                if len(stable) > len(given):
                    piece, given = stable[len(given) :], stable
                    yield piece
            answer = answer_of(whole, end)
            if answer.startswith(given) and len(answer) > len(given):
                yield answer[len(given) :]
        except GeneratorExit:
            self.messages = [*messages, Message("Assistant", given)]
            raise
        self.messages = [*messages, Message("Assistant", answer)]

    def _texts(self, text: PrefixedText) -> Iterator[str]:
        """What has been generated so far, after each token; at the end the whole."""
        language = self.model.language
        generate = partial(
            language.generate,
            text,
            self.settings.generation,
            sampling=self.settings.sampling,
            stop=language.end_sequences(SEPARATOR),
        )
        if self.settings.generation.num_beams > 1:
            yield _decoded(language, generate()[0].tolist())
            return
        streamer = _Streamer()
        ids_so_far: list[int] = []
        with ThreadPoolExecutor(max_workers=1) as pool:
            future = pool.submit(generate, streamer=streamer)
            future.add_done_callback(lambda _: streamer.queue.put(None))
            try:
                while (ids := streamer.queue.get()) is not None:
                    ids_so_far += ids
                    yield _decoded(language, ids_so_far)
            finally:
                streamer.closed = True
            future.result()


class _Streamer:
    """Hands tokens over to another thread, as transformers' generate gives them."""

    def __init__(self) -> None:
        self.queue: Queue[list[int] | None] = Queue()
        self.closed = False

    def put(self, ids: Tensor) -> None:
        """Take new ids.

        Raises:
            InterruptedError: nobody reads them any more.
        """
        if self.closed:
            raise InterruptedError
        if ids.numel():
            self.queue.put(ids.flatten().tolist())

    def end(self) -> None:
        """Called at the end; the thread says so itself."""


def _decoded(language: CausalLanguageModel, ids: list[int]) -> str:
    text: Any = language.tokenizer.decode(ids, skip_special_tokens=True)
    return str(text)


def _stable(text: str, end: str) -> str:
    """The part of an unfinished answer that further tokens will not change."""
    if end in text:
        return answer_of(text, end)
    longest = next((n for n in range(len(end) - 1, 0, -1) if text.endswith(end[:n])), 0)
    # A character of several bytes is a replacement sign until its last byte has come.
    return text[: len(text) - longest].rstrip("\ufffd").strip()
