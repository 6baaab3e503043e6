"""A conversation about one picture and one sound, and where in the picture the things of the last answer are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from avcap_zoo.backbones.language import SamplingSettings
from avcap_zoo.cli.chat import add_audio, add_image
from avcap_zoo.data_modules.media.image import read_whole_image
from avcap_zoo.ops.grounding_picture import DARK
from avcap_zoo.systems.bubogpt.chat import Chat
from avcap_zoo.systems.bubogpt.grounding import Grounder, Grounding
from avcap_zoo.systems.bubogpt.matching import cut_text
from avcap_zoo.systems.bubogpt.model import BuboGPTModel


class Conversation:
    """A chat, what it is about, and the last answer's grounding.

    Args:
        model: on its device.
        image: path of a picture, or None.
        sound: path of a sound, or None; without either it is a conversation about nothing but text.

    Raises:
        MediaError: a file cannot be read.
        ConfigError: the model was built without a modality, or has no room for a conversation.
    """

    def __init__(self, model: BuboGPTModel, image: str | None, sound: str | None) -> None:
        self.media = (image, sound)
        self.chat = Chat(model)
        self.picture = None if image is None else torch.from_numpy(read_whole_image(Path(image), image).copy())
        self.grounding: Grounding | None = None
        if image is not None:
            add_image(self.chat, Path(image))
        if sound is not None:
            add_audio(self.chat, Path(sound))

    def ask(self, question: str, num_beams: int, temperature: float) -> Iterator[list[dict[str, str]]]:
        """Ask, and give the conversation anew with each piece of the answer.

        Args:
            question: any text.
            num_beams: above 1 the answer comes in one piece.
            temperature: of drawing, > 0.

        Yields:
            Messages as Gradio has them, {"role": "user" or "assistant", "content": text}.

        Raises:
            ConfigError: an empty question.
        """
        settings = self.chat.settings
        self.chat.settings = replace(
            settings,
            generation=replace(settings.generation, num_beams=num_beams),
            sampling=SamplingSettings(temperature),
        )
        pieces = self.chat.stream(question)
        self.grounding = None
        answer = ""
        before = [*self.turns(), {"role": "user", "content": question}]
        yield before
        for piece in pieces:
            answer += piece
            yield [*before, {"role": "assistant", "content": answer}]
        yield self.turns()

    def turns(self) -> list[dict[str, str]]:
        """What was said so far, as messages."""
        roles = {"Human": "user", "Assistant": "assistant"}
        return [{"role": roles[each.role], "content": each.text} for each in self.chat.messages if each.text]

    def ground(self, grounder: Grounder) -> Grounding | None:
        """Find what the last answer names; None without a picture, or where nothing was answered.

        Raises:
            AvcapError: a model of the grounder cannot be loaded.
        """
        said = self.turns()
        if self.picture is None or not said or said[-1]["role"] != "assistant":
            return None
        (self.grounding,) = grounder.ground([self.picture], [said[-1]["content"]])
        return self.grounding

    def draw(self, entity: str | None = None) -> Any:
        """The picture with what the last answer names, or with one entity alone, as PIL has it; None ungrounded."""
        if self.grounding is None or self.picture is None:
            return None
        return self.grounding.draw(self.picture, self.grounding.matched if entity is None else [entity])


def highlighted(grounding: Grounding) -> tuple[list[tuple[str, str | None]], dict[str, str]]:
    """The text in pieces, each with the entity that it names or None, and the colour of each entity as #rrggbb."""
    pieces = cut_text(grounding.text or "", grounding.matching.spans, lambda span: span.entity)
    colours = {name: "#{:02x}{:02x}{:02x}".format(*DARK[colour]) for name, colour in grounding.colours.items()}
    return pieces, colours
