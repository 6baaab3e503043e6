"""Small models for ZerAuCap, trained from nothing: a CLAP on sounds with captions, a language model on captions alone.

They stand for the WavCaps model and OPT at toy size. Each is saved in transformers format, where ZerAuCap takes it as
a source like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.backbones.audio_text import CLAP, clap_sample_rate_hz
from avcap_zoo.backbones.language import CausalLanguageModel, LanguageSettings
from avcap_zoo.backbones.pretrained import save_parts
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.base import TEXT_TOKENS, OptimizerSettings, Requirements, StepWork, System
from avcap_zoo.systems.zeraucap.keywords import check_num_keywords, read_keywords
from avcap_zoo.systems.zeraucap.model import AudioTextSettings
from avcap_zoo.systems.zeraucap.prompts import KeywordPromptSettings, build_prompt

_STEM_LETTERS = 4


class CLAPPretraining(System):
    """Trains a CLAP on pairs of a clip and a text, and saves it.

    The text is one of the clip's captions or, as in the training of LAION's and WavCaps' models, a label: here a
    keyword that its captions name (see `named_keywords`). With several processes each compares within its own batch.

    Args:
        audio_text: kind `clap`; a source is trained further, without one the weights are new.
        keywords: see `keywords.read_keywords`.
        keyword_share: share of the texts that are keywords, as far as captions name any.
        save_to: folder of the result; replaced when the run ends.
        optimizer: learning rate and schedule.
    """

    model: CLAP

    def __init__(
        self,
        audio_text: AudioTextSettings,
        keywords: str,
        save_to: str,
        optimizer: OptimizerSettings,
        keyword_share: float = 0.4,
    ) -> None:
        arguments: dict[str, Any] = {
            "audio_text": audio_text,
            "keywords": keywords,
            "save_to": save_to,
            "optimizer": optimizer,
            "keyword_share": keyword_share,
        }
        super().__init__(optimizer, arguments)
        if audio_text.kind != "clap":
            raise ConfigError(
                f"model.init_args.audio_text.kind is {audio_text.kind}, only clap can be saved in transformers format"
            )
        self.audio_text = audio_text
        self.keywords = read_keywords(keywords)
        self.keyword_share = keyword_share
        self.save_to = Path(save_to)

    @property
    def requirements(self) -> Requirements:
        """Sound at the rate of the front end."""
        return Requirements(clap_sample_rate_hz(self.audio_text.clap), ("audio",))

    def configure_model(self) -> None:
        """Build the model once."""
        if not hasattr(self, "model"):
            self.model = CLAP(self.audio_text.clap)

    def settings_in_use(self) -> dict[str, Any]:
        """As in the base, without the other kind of audio-text model."""
        return self.init_args | {"audio_text": self.audio_text.in_use()}

    def step_work(self, num_frames: int) -> StepWork:
        """Patches of the picture of the sound, and a caption."""
        audio = self.model.model.config.audio_config
        patches = (audio.spec_size // audio.patch_size) ** 2
        return StepWork({"model.audio_model": patches, "model.text_model": TEXT_TOKENS})

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Symmetric contrastive loss of the clips and their texts."""
        if batch.waveform is None or batch.num_samples is None:
            raise ConfigError("CLAPPretraining needs sound, the data module gives none")
        pairs = zip(batch.caption, batch.captions, strict=True)
        texts = self.model.embed_texts([self.text(caption, captions) for caption, captions in pairs])
        sounds = self.model.embed_audio(batch.waveform, batch.num_samples)
        towers = self.model.model
        scales = towers.logit_scale_a.exp(), towers.logit_scale_t.exp()
        return {"contrastive": contrastive_loss(sounds, texts, *scales)}

    def text(self, caption: str, captions: Sequence[str]) -> str:
        """A caption, or a keyword that one of the clip's captions names; which of them is drawn."""
        if float(torch.rand(())) >= self.keyword_share:
            return caption
        named = named_keywords(captions, self.keywords)
        return named[int(torch.randint(len(named), ()))] if named else caption

    def on_train_end(self) -> None:
        """Save model, tokenizer and front end."""
        if self.trainer.is_global_zero:
            save_parts(self.save_to, self.model.model, self.model.tokenizer, self.model.front_end)
            rank_zero_info(f"saved to {self.save_to}")


def contrastive_loss(sounds: Tensor, texts: Tensor, sound_scale: Tensor, text_scale: Tensor) -> Tensor:
    """Mean cross-entropy of finding each clip's own text among all, and each text's own clip.

    Args:
        sounds: (B, D) unit vectors.
        texts: (B, D) unit vectors, in the same order.
        sound_scale: scalar, multiplies the cosines in which a clip looks for its text.
        text_scale: the same for a text.

    Source: Wu et al., "Large-scale contrastive language-audio pretraining" (arXiv 2211.06687), Eq. 3.
    """
    cosines = sounds @ texts.T
    own = torch.arange(len(sounds), device=sounds.device)
    return (F.cross_entropy(sound_scale * cosines, own) + F.cross_entropy(text_scale * cosines.T, own)) / 2


class LanguagePretraining(System):
    """Trains a language model on text alone: captions, some of them behind a list of keywords; and saves it.

    OPT has read so much that it can follow a list such as "Objects: dog barking, and a bell ringing." A small model
    has to be shown such texts. Here they are made of captions without any sound: a keyword belongs to a clip if one of
    its captions names it (see `named_keywords`).

    Args:
        language: source None and training `full`.
        keywords: see `keywords.read_keywords`.
        num_keywords: in a list.
        prompts: the text around the keywords, as ZerAuCap will use it.
        bare_share: share of the captions that stand behind the prompt without keywords.
        wrong_share: share of the right keywords that are replaced by drawn ones, since retrieval errs, too.
        save_to: folder of the result; replaced when the run ends.
        optimizer: learning rate and schedule.
    """

    model: CausalLanguageModel

    def __init__(
        self,
        language: LanguageSettings,
        keywords: str,
        num_keywords: int,
        prompts: KeywordPromptSettings,
        save_to: str,
        optimizer: OptimizerSettings,
        bare_share: float = 0.3,
        wrong_share: float = 0.15,
    ) -> None:
        arguments: dict[str, Any] = {
            "language": language,
            "keywords": keywords,
            "num_keywords": num_keywords,
            "prompts": prompts,
            "save_to": save_to,
            "optimizer": optimizer,
            "bare_share": bare_share,
            "wrong_share": wrong_share,
        }
        super().__init__(optimizer, arguments)
        self.language = language
        self.keywords = read_keywords(keywords)
        check_num_keywords(num_keywords, len(self.keywords))
        self.num_keywords = num_keywords
        self.prompts = prompts
        self.bare_share = bare_share
        self.wrong_share = wrong_share
        self.save_to = Path(save_to)

    @property
    def requirements(self) -> Requirements:
        """Captions only."""
        return Requirements(None, ())

    def configure_model(self) -> None:
        """Build the model once."""
        if not hasattr(self, "model"):
            self.model = CausalLanguageModel(self.language)

    def step_work(self, num_frames: int) -> StepWork:
        """A text."""
        return StepWork({"model": TEXT_TOKENS})

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        """Next-token loss over whole texts, prompts included."""
        texts = [self.text(batch.caption[clip], batch.captions[clip]) for clip in range(len(batch))]
        ids, mask = self.model.token_ids(texts)
        begin = torch.full((len(ids), 1), self.model.tokenizer.bos_token_id, device=ids.device)
        ids, mask = torch.cat([begin, ids], dim=1), F.pad(mask, (1, 0), value=True)
        logits = self.model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        targets = ids[:, 1:].masked_fill(~mask[:, 1:], -100)
        return {"language": F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets)}

    def text(self, caption: str, captions: Sequence[str]) -> str:
        """A caption behind a prompt; which keywords stand in it is drawn.

        Args:
            caption: what follows the prompt; a full stop is added.
            captions: all of the clip, in which keywords are looked for.
        """
        chosen: list[str] = []
        if float(torch.rand(())) >= self.bare_share:
            named = named_keywords(captions, self.keywords)[: self.num_keywords]
            chosen = [keyword for keyword in named if float(torch.rand(())) >= self.wrong_share]
            others = [keyword for keyword in self.keywords if keyword not in named]
            drawn = torch.randperm(len(others))[: self.num_keywords - len(chosen)].tolist()
            chosen += [others[index] for index in drawn]
            chosen = [chosen[index] for index in torch.randperm(len(chosen)).tolist()]
        prompt = build_prompt(chosen, self.prompts)
        return f"{prompt}{'' if prompt.endswith(' ') else ' '}{caption.rstrip('. ')}."

    def on_train_end(self) -> None:
        """Save model and tokenizer."""
        if self.trainer.is_global_zero:
            save_parts(self.save_to, self.model.model, self.model.tokenizer)
            rank_zero_info(f"saved to {self.save_to}")


def named_keywords(captions: Sequence[str], keywords: Sequence[str]) -> list[str]:
    """Keywords whose words stand in a caption, one after the other; endings may differ ("dog barking", "dog barks").

    Args:
        captions: of one clip.
        keywords: list to look for.

    Returns:
        Keywords found, in the order of the list.
    """
    texts = [_stems(caption) for caption in captions]
    return [keyword for keyword in keywords if any(_stems(keyword) in text for text in texts)]


def _stems(text: str) -> str:
    """The beginnings of the words, each between spaces."""
    return f" {' '.join(word[:_STEM_LETTERS] for word in re.findall(r'[a-z]+', text.lower()))} "
