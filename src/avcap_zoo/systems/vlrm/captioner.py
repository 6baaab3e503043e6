"""BLIP-2 with an OPT language model, taken apart: what is encoded once, what is trained, what is passed through."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.adapters import LoRASettings, adapters_off, set_training_mode
from avcap_zoo.backbones.language import GenerationSettings, is_shared_out, word_piece_tokenizer
from avcap_zoo.backbones.pretrained import load_part, load_pretrained
from avcap_zoo.backbones.vision.clip import CLIP_MEAN, CLIP_STD, normalise_images
from avcap_zoo.errors import ConfigError, ShapeError, WeightsError, first_line, hub_error
from avcap_zoo.ops.masking import bucket_of, length_mask
from avcap_zoo.ops.returns import token_log_probs
from avcap_zoo.systems.vlrm.keymap import captioner_to_partial, is_partial
from avcap_zoo.weights.load import compare_keys, load_tensors

_DROPOUTS = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "layerdrop",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
)
_KEY = "model.init_args.captioner"


def opt_lora() -> LoRASettings:
    """Adapters of the value function: the paper gives neither rank nor targets."""
    return LoRASettings(rank=16, alpha=32, dropout=0.0, targets=("q_proj", "v_proj"))


@dataclass
class CaptionerSettings:
    """Where the captioner comes from.

    Args:
        source: hub id or local folder in transformers format; None = random weights from `config`.
        config: keys of transformers' Blip2Config (vision_config, qformer_config, text_config ...), without `source`.
        tokenizer: hub id or folder; None = that of `source`, or the built-in word pieces without a source.
        weights: a released partial file (`vlrm-blip2-opt-2.7b.pt`) or one that `export` wrote, on top of `source`.
        dtype: of the frozen image encoder and language model. What is trained is float32.
        lora: adapters of the language model for the value function; off for everything else.
        gradient_checkpointing: recompute the language model in the backward pass, for memory.
    """

    source: str | None = "Salesforce/blip2-opt-2.7b"
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    weights: str | None = None
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    lora: LoRASettings = field(default_factory=opt_lora)
    gradient_checkpointing: bool = False


@dataclass
class SamplingSettings:
    """How captions are drawn in training.

    Args:
        top_k: only so many most likely tokens are drawn from.
        temperature: divides the logits.
        min_new_tokens: the end token cannot be drawn before.
        max_new_tokens: longest caption, the end token included.
    """

    top_k: int = 6
    temperature: float = 2.0
    min_new_tokens: int = 4
    max_new_tokens: int = 60


class Captioner(nn.Module):
    """transformers' BLIP-2 as the iteration needs it. Dropout is 0 everywhere but in the adapters.

    Args:
        settings: see `CaptionerSettings`.

    Raises:
        WeightsError: source, tokenizer or partial file cannot be found, read, or does not fit.
        ConfigError: a config that builds no model, or no layer for the adapters.
    """

    def __init__(self, settings: CaptionerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = load_tokenizer(settings)
        self.blip = load_blip(settings, self.tokenizer)
        if settings.weights is not None:
            self.load_partial(load_tensors(settings.weights), settings.weights)
        self.blip.requires_grad_(False)
        dtype = getattr(torch, settings.dtype)
        self.blip.vision_model.to(dtype)
        self.language_model.to(dtype)
        set_training_mode(self.language_model, "lora", settings.lora, _KEY)
        for part in (self.blip.qformer, self.blip.language_projection):
            part.to(torch.float32).requires_grad_(True)
        self.blip.query_tokens.data = self.blip.query_tokens.data.to(torch.float32)
        self.blip.query_tokens.requires_grad_(True)
        if settings.gradient_checkpointing:
            self.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        text = self.blip.config.text_config
        self.begin_id: int = text.bos_token_id
        self.end_id: int = text.eos_token_id
        """What ends a caption; for OPT that is the line feed, not the tokenizer's own end token."""
        self.pad_id: int = text.pad_token_id
        self.num_queries: int = self.blip.query_tokens.shape[1]
        self.width: int = self.language_model.get_output_embeddings().weight.shape[1]
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD).view(3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor
        self.length_buckets: tuple[int, ...] = ()
        """Lengths in tokens to which drawn captions are padded; with none, to the longest of them."""

    @property
    def language_model(self) -> Any:
        """The causal language model within."""
        return self.blip.language_model

    def policy_parameters(self) -> list[nn.Parameter]:
        """Query tokens, Q-Former and language projection."""
        return [parameter for name, parameter in self.blip.named_parameters() if is_partial(name)]

    def value_parameters(self) -> list[nn.Parameter]:
        """The language model's adapters."""
        return [parameter for name, parameter in self.language_model.named_parameters() if "lora_" in name]

    # Images

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Image tokens before the tower's last layer norm, which captioner and matcher each have of their own.

        Args:
            images: (B, 3, H, W) uint8.

        Returns:
            (B, P, C) in the tower's dtype, without gradient.

        Raises:
            ShapeError: images is something else.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ShapeError(
                f"images is {tuple(images.shape)} {images.dtype}, wanted (clips, 3, height, width) torch.uint8"
            )
        return self.encode_pixels(normalise_images(images, self.image_size_px, self.mean, self.std))

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The same of (B, 3, H, W) normalised pixels."""
        tower = self.blip.vision_model
        embedded = tower.embeddings(pixels.to(tower.embeddings.patch_embedding.weight.dtype))
        features: Tensor = tower.encoder(inputs_embeds=embedded).last_hidden_state
        return features

    @property
    def image_size_px(self) -> int:
        """Side of the pictures that the tower sees."""
        size = self.blip.config.vision_config.image_size
        return int(size if isinstance(size, int) else size[0])

    def project(self, features: Tensor) -> Tensor:
        """(B, Q, H) image embeddings in the language model's space, with gradient to all that the policy trains.

        Args:
            features: (B, P, C) from `encode_images`.
        """
        tokens = self.blip.vision_model.post_layernorm(features)
        queries = self.blip.query_tokens.expand(len(features), -1, -1)
        output = self.blip.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        prefix: Tensor = self.blip.language_projection(output.to(self.blip.language_projection.weight.dtype))
        return prefix

    # Text

    def states(self, prefix: Tensor | None, tokens: Tensor, mask: Tensor) -> Tensor:
        """Hidden states, after the final layer norm, of the begin token and of each caption token.

        Args:
            prefix: (B, Q, H) image embeddings in front, or None for the language model alone.
            tokens: (B, T) ids, padded to the right.
            mask: (B, T) bool.

        Returns:
            (B, 1 + T, H): index k is what token k (from 0) is predicted from, index k + 1 is the state after it.
        """
        embed = self.language_model.get_input_embeddings()
        ids = torch.cat([tokens.new_full((len(tokens), 1), self.begin_id), tokens], dim=1)
        embeds, real = embed(ids), torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        if prefix is not None:
            embeds = torch.cat([prefix.to(embeds.dtype), embeds], dim=1)
            real = torch.cat([real.new_ones(prefix.shape[:2]), real], dim=1)
        hidden: Tensor = self.language_model.base_model(
            inputs_embeds=embeds, attention_mask=real.long(), use_cache=False
        ).last_hidden_state
        return hidden[:, -ids.shape[1] :]

    def logits(self, states: Tensor) -> Tensor:
        """(B, T, V) logits of the tokens that come after the first T of (B, 1 + T, H) states."""
        logits: Tensor = self.language_model.get_output_embeddings()(states[:, :-1])
        return logits

    @torch.no_grad()
    def text_log_probs(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T) log-probabilities of captions under the language model alone: no image, adapters off."""
        with adapters_off(self.language_model):
            return token_log_probs(self.logits(self.states(None, tokens, mask)), tokens)[0]

    @torch.no_grad()
    def sample(self, prefix: Tensor, sampling: SamplingSettings) -> tuple[Tensor, Tensor, Tensor]:
        """Draw one caption per image, adapters off, with a cache of keys and values.

        Args:
            prefix: (B, Q, H).
            sampling: the law of the draw.

        Returns:
            tokens (B, T) padded on the right, mask (B, T) True up to and with the end token, and ended (B,) bool:
            whether there was an end token.
        """
        options = {"do_sample": True, "num_beams": 1, "top_p": 1.0, **asdict(sampling)}
        return self.cut_at_end(self._generate(prefix, options))

    def cut_at_end(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is real of (B, T) generated ids: tokens, mask and ended as `sample` gives them."""
        ends = tokens == self.end_id
        ended = ends.any(dim=1)
        lengths = torch.where(ended, ends.int().argmax(dim=1) + 1, tokens.shape[1])
        mask = length_mask(lengths, tokens.shape[1])
        return tokens.masked_fill(~mask, self.pad_id), mask, ended

    @torch.no_grad()
    def caption_ids(self, prefix: Tensor, generation: GenerationSettings) -> Tensor:
        """(B, T) ids of decoded captions, adapters off."""
        options = asdict(generation)
        options["min_new_tokens"] = options.pop("min_length")
        return self._generate(prefix, {"do_sample": False, **options})

    def _generate(self, prefix: Tensor, options: dict[str, Any]) -> Tensor:
        from transformers import GenerationConfig

        embed = self.language_model.get_input_embeddings()
        begin = embed(torch.full((len(prefix), 1), self.begin_id, device=prefix.device))
        embeds = torch.cat([prefix.to(begin.dtype), begin], dim=1)
        config = GenerationConfig(
            **options,
            use_cache=True,
            bos_token_id=self.begin_id,
            eos_token_id=self.end_id,
            pad_token_id=self.pad_id,
        )
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        with adapters_off(self.language_model), warnings.catch_warnings():
            # Only new tokens count for repeated n-grams, which is what is wanted here.
            warnings.filterwarnings("ignore", message=r"Passing `no_repeat_ngram_size` with `inputs_embeds`")
            ids: Tensor = self.language_model.generate(
                inputs_embeds=embeds,
                attention_mask=mask,
                generation_config=config,
                synced_gpus=is_shared_out(self.language_model),
            )
        return ids

    def padded_length(self, length: int) -> int:
        """To how many tokens drawn captions are padded: `length` itself without `length_buckets`."""
        if not self.length_buckets:
            return length
        room: int = self.blip.config.text_config.max_position_embeddings - self.num_queries - 1
        return max(length, min(bucket_of(length, self.length_buckets), room))

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of generated ids, one line each; a caption without end token is kept whole."""
        rows = [[t for t in row if t != self.end_id] for row in ids.tolist()]
        return [" ".join(text.split()) for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """The language model in training mode, which checkpointing and the adapters' dropout ask for."""
        self.language_model.train()
        try:
            yield
        finally:
            self.language_model.eval()

    # Weights

    def load_partial(self, tensors: dict[str, Tensor], origin: str) -> None:
        """Take over the tensors of a released partial file, all of them and nothing else.

        Raises:
            WeightsError: names or shapes differ; all are listed.
        """
        own = {name: tensor for name, tensor in self.blip.state_dict().items() if is_partial(name)}
        problems = compare_keys({name: tuple(tensor.shape) for name, tensor in own.items()}, tensors)
        if problems:
            raise WeightsError(f"{_KEY}.weights: {origin} does not fit the captioner: {problems}")
        self.blip.load_state_dict(tensors, strict=False)

    def export_partial(self, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
        """What was trained, as a released partial file holds it."""
        return captioner_to_partial(self.blip.state_dict(), dtype)


def load_tokenizer(settings: CaptionerSettings) -> Any:
    """The language model's tokenizer."""
    name = settings.tokenizer or settings.source
    if name is None:
        return word_piece_tokenizer()
    from transformers import AutoTokenizer

    return load_part(AutoTokenizer, name, f"{_KEY}.tokenizer")


def load_blip(settings: CaptionerSettings, tokenizer: Any) -> Any:
    """Blip2ForConditionalGeneration without dropout, as the settings say, in float32."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    if settings.source is not None:
        with hub_error(settings.source, f"{_KEY}.source"):
            config = Blip2Config.from_pretrained(settings.source)
        _without_dropout(config)
        key = f"{_KEY}.source"
        return load_pretrained(Blip2ForConditionalGeneration, settings.source, key, config=config)
    keys = dict(settings.config)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    keys["text_config"] = {"model_type": "opt", "vocab_size": len(tokenizer), **ids, **keys.get("text_config", {})}
    try:
        config = Blip2Config(**keys)
        _without_dropout(config)
        model = Blip2ForConditionalGeneration(config)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{_KEY}.config: {first_line(error)}") from error
    nn.init.normal_(model.query_tokens, std=config.initializer_range)  # transformers leaves zeros: all queries alike
    return model


def _without_dropout(config: Any) -> None:
    """What is sampled must be what is trained, and recomputed activations want training mode: no dropout anywhere."""
    for part in (config.vision_config, config.qformer_config, config.text_config):
        for name in _DROPOUTS:
            if hasattr(part, name):
                setattr(part, name, 0.0)
