"""A causal language model that continues a text with a stretch of foreign embeddings in it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

from avcap_zoo.backbones.adapters import LoRASettings, TrainingMode, set_training_mode
from avcap_zoo.backbones.pretrained import dtype_option, load_part, load_pretrained
from avcap_zoo.errors import ConfigError, ShapeError, first_line, require_extra
from avcap_zoo.ops.masking import bucket_of, left_align

_LONGEST_REASON = 120
_BEFORE_AN_END = ("a", ".", "!", "?", ",", '"', ")", "\n")


@dataclass
class LanguageSettings:
    """Where the language model comes from and what of it is trained.

    Args:
        source: hub id or local folder in transformers format; None = random weights from `config`.
        config: keys of the transformers config, `model_type` among them; used only without `source`.
        tokenizer: hub id or folder; None = that of `source`, or the built-in word pieces without a source.
        words: whole words that the built-in word pieces have beside their own; the fewer pieces, the sooner a small
            model learns.
        pad_with_end: True pads with the end token where the tokenizer has no padding token, and leaves the vocabulary
            as it is; False adds a token.
        dtype: dtype of the frozen weights. Trained ones are float32.
        training: `frozen`, `lora` or `full`.
        lora: adapters of mode `lora`.
        gradient_checkpointing: recompute activations in the backward pass, for memory.
        quantisation: of the linear layers of a frozen base, by bitsandbytes (`frozen` or `lora`, with a source):
            `4bit` is NF4, `8bit` is LLM.int8().
    """

    source: str | None = "meta-llama/Llama-2-7b-chat-hf"
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    words: tuple[str, ...] = ()
    pad_with_end: bool = False
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    training: TrainingMode = "lora"
    lora: LoRASettings = field(default_factory=LoRASettings)
    gradient_checkpointing: bool = False
    quantisation: Literal["none", "4bit", "8bit"] = "none"


@dataclass
class GenerationSettings:
    """How captions are decoded (transformers' generate).

    Args:
        num_beams: 1 = greedy.
        max_new_tokens: longest caption.
        min_length: shortest caption, in tokens.
        repetition_penalty: 1 = none.
        length_penalty: exponent of the length in the score of a beam.
        no_repeat_ngram_size: no run of so many tokens comes twice; 0 = no such rule.
    """

    num_beams: int = 4
    max_new_tokens: int = 200
    min_length: int = 1
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


@dataclass
class SamplingSettings:
    """How tokens are drawn instead of taking the likeliest.

    Args:
        temperature: divides the logits; above 1 is bolder.
        top_p: only the likeliest tokens that together have this probability are drawn from.
        top_k: only so many of the likeliest are drawn from; 0 = all.
    """

    temperature: float = 1.0
    top_p: float = 0.9
    top_k: int = 50


@dataclass
class PrefixedText:
    """Input of the language model, and the labels of its caption part.

    Attributes:
        inputs_embeds: (B, L, C).
        attention_mask: (B, L) bool.
        labels: (B, L) int64 token ids, -100 where nothing is predicted.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    labels: Tensor


class CausalLanguageModel(nn.Module):
    """Any transformers causal language model with a tokenizer, fed with prompt, foreign embeddings, prompt, caption.

    Args:
        settings: see `LanguageSettings`.

    Raises:
        WeightsError: source or tokenizer cannot be found or read.
        ConfigError: no known model type, a tokenizer without end token, no layer for the adapters, or a quantisation
            that does not go with the rest.
        MissingExtraError: quantisation without bitsandbytes.
    """

    def __init__(self, settings: LanguageSettings) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = _load_tokenizer(settings)
        self.model = _load_model(settings, len(self.tokenizer))
        set_training_mode(self.model, settings.training, settings.lora, "model.init_args.language")
        if settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.embed_dim: int = self.model.get_input_embeddings().embedding_dim
        self.length_buckets: tuple[int, ...] = ()
        """Lengths to which captions are padded; not empty = shapes are kept few in every way."""
        self.last_shape: tuple[int, ...] = ()
        """(B, L) of the last sequences that logits were asked for."""

    def token_ids(
        self, texts: Sequence[str], *, end: bool = False, max_tokens: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Tokenise without begin token, padded to the right.

        Args:
            texts: B strings.
            end: add the end token, also to a caption that had to be cut; such texts are padded to `length_buckets`.
            max_tokens: longest sequence, the end token included; None = no limit.

        Returns:
            (B, L) ids and (B, L) bool mask, on the model's device.
        """
        rows: list[list[int]] = [self.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        room = None if max_tokens is None else max_tokens - end
        rows = [row[:room] + [self.tokenizer.eos_token_id] * end for row in rows]
        length = max((len(row) for row in rows), default=0)
        if end and self.length_buckets:
            length = bucket_of(length, self.length_buckets)
        ids = torch.tensor(
            [row + [self.tokenizer.pad_token_id] * (length - len(row)) for row in rows], dtype=torch.long
        )
        mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows], dtype=torch.bool)
        return ids.view(len(rows), length).to(self.device), mask.view(len(rows), length).to(self.device)

    def padded_length(self, length: int) -> int:
        """To how many positions whole sequences are padded: `length` itself without `length_buckets`."""
        if not self.length_buckets:
            return length
        room = self._check_room(length)
        return min(bucket_of(length, self.length_buckets), length + room)

    @property
    def device(self) -> torch.device:
        """Where the input embeddings lie."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def wrap(
        self,
        prefix: Tensor,
        prefix_mask: Tensor,
        before: tuple[Tensor, Tensor],
        after: tuple[Tensor, Tensor],
        caption: tuple[Tensor, Tensor] | None = None,
        *,
        keep_gaps: bool = False,
    ) -> PrefixedText:
        """Put together: begin token, text, foreign embeddings, text, caption.

        A tokenizer without begin token (Qwen) has none in front.

        Args:
            prefix: (B, N, C) embeddings in the model's width.
            prefix_mask: (B, N) bool.
            before: ids and mask of the text in front, (B, L1) each.
            after: ids and mask of the text behind, (B, L2) each.
            caption: ids and mask of what is to be predicted, end token included; None when generating.
            keep_gaps: True leaves masked positions where they are, as released; False moves them all to the right.

        Returns:
            The sequence; labels are -100 everywhere but on the caption.

        Raises:
            ConfigError: more positions than the language model has.
        """
        embed = self.model.get_input_embeddings()
        token = self.tokenizer.bos_token_id
        begin = torch.full((len(prefix), 1 if token is not None else 0), token or 0, device=prefix.device)
        texts = [embed(begin), embed(before[0]), prefix.to(embed.weight.dtype), embed(after[0])]
        masks = [torch.ones_like(begin, dtype=torch.bool), before[1], prefix_mask, after[1]]
        if caption is not None:
            texts.append(embed(caption[0]))
            masks.append(caption[1])
        embeds, mask = torch.cat(texts, dim=1), torch.cat(masks, dim=1)
        labels = torch.full_like(mask, -100, dtype=torch.long)
        if caption is not None:
            labels[:, -caption[0].shape[1] :] = caption[0].masked_fill(~caption[1], -100)
        if not keep_gaps:
            mask, embeds, labels = left_align(mask, embeds, labels)
        self._check_room(mask.shape[1])
        return PrefixedText(embeds, mask, labels)

    def interleave(
        self, ids: Tensor, mask: Tensor, labels: Tensor, foreign: Mapping[int, Tensor], *, last: int | None = None
    ) -> PrefixedText:
        """Embed token ids, and put foreign embeddings where negative codes stand.

        Args:
            ids: (B, L) token ids; a code of `foreign` holds the place of one embedding.
            mask: (B, L) bool.
            labels: (B, L), -100 where nothing is predicted.
            foreign: code to (..., C) embeddings in the model's width, in the order of their places row by row.
            last: only so many positions at the end of the sequences are kept; None = all.

        Raises:
            ShapeError: another number of embeddings than places.
            ConfigError: more positions than the language model has.
        """
        embed = self.model.get_input_embeddings()
        embeds: Tensor = embed(ids.clamp_min(0))
        for code, tokens in foreign.items():
            places = ids == code
            rows = tokens.reshape(-1, tokens.shape[-1])
            if int(places.sum()) != len(rows):
                raise ShapeError(f"{len(rows)} foreign embeddings for {int(places.sum())} places")
            embeds = embeds.masked_scatter(places[..., None], rows.to(embeds.dtype))
        if last is not None:
            embeds, mask, labels = embeds[:, -last:], mask[:, -last:], labels[:, -last:]
        self._check_room(mask.shape[1])
        return PrefixedText(embeds, mask, labels)

    def _check_room(self, num_tokens: int) -> int:
        """Positions of the model that are left behind so many tokens."""
        limit = getattr(self.model.config, "max_position_embeddings", None)
        room = sys.maxsize if limit is None else limit - num_tokens
        if room < 0:
            raise ConfigError(
                f"{num_tokens} tokens do not fit into the {limit} positions of the language model: shorten the "
                f"prompts, lower prompts.max_caption_tokens, or give model.init_args.language a longer model"
            )
        return room

    def logits(self, text: PrefixedText) -> Tensor:
        """(B, L, V) next-token logits."""
        self.last_shape = tuple(text.inputs_embeds.shape[:2])
        output: Tensor = self.model(
            inputs_embeds=text.inputs_embeds, attention_mask=text.attention_mask.long(), use_cache=False
        ).logits
        return output

    def loss(
        self,
        text: PrefixedText,
        *,
        label_smoothing: float = 0.0,
        mean_count: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Mean cross-entropy over all caption tokens of the batch, in float32.

        Args:
            text: from `wrap` with a caption.
            label_smoothing: share of the target spread over the vocabulary.
            mean_count: gives the mean of a number over the processes that train together; the mean of their losses
                then counts every token alike, whichever process has it. None = this process alone.
        """
        targets = text.labels[:, 1:]
        chosen = targets != -100
        logits = self.logits(text)[:, :-1]
        if self.length_buckets:  # picking the caption's positions would give another shape for each batch
            loss = F.cross_entropy(
                logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, label_smoothing=label_smoothing
            )
        else:
            loss = F.cross_entropy(logits[chosen].float(), targets[chosen], label_smoothing=label_smoothing)
        if mean_count is None:
            return loss
        count = chosen.sum()
        return loss * (count / mean_count(count))

    def end_sequences(self, end: str) -> tuple[tuple[int, ...], ...]:
        """Every way in which generated ids may spell `end`: alone, and behind a word or a sign."""
        found = set()
        for before in ("", *_BEFORE_AN_END):
            whole: list[int] = self.tokenizer(before + end, add_special_tokens=False).input_ids
            head: list[int] = self.tokenizer(before, add_special_tokens=False).input_ids
            found.add(tuple(whole[shared_length(whole, head) :]))
        return tuple(sorted(found - {()}))

    @torch.no_grad()
    def generate(
        self,
        text: PrefixedText,
        settings: GenerationSettings,
        *,
        sampling: SamplingSettings | None = None,
        stop: Sequence[Sequence[int]] = (),
        streamer: Any = None,
    ) -> Tensor:
        """Continue each sequence until its end token.

        Args:
            text: from `wrap` without a caption; masked positions may stand anywhere.
            settings: decoding.
            sampling: draw tokens; None = greedy or beam search.
            stop: id sequences that also end a sequence, each row for itself.
            streamer: of transformers, told every token as it comes; for one sequence and one beam.

        Returns:
            (B, T) new token ids, right-padded with the pad token after each end token; T at most max_new_tokens and
            at most what the model has positions for; where layers are shared out, what it has for every process.

        Raises:
            ConfigError: not a single position is left.
        """
        from transformers import GenerationConfig, StoppingCriteriaList

        # generate() wants padding on the left: flip, align, flip back.
        flipped = left_align(text.attention_mask.flip(1), text.inputs_embeds.flip(1))
        options = asdict(settings)
        # Of min_length transformers would take the length of inputs_embeds.
        options["min_new_tokens"] = options.pop("min_length")
        room = self._check_room(text.attention_mask.shape[1] + 1) + 1
        options["max_new_tokens"] = min(options["max_new_tokens"], room)
        shared = is_shared_out(self.model)
        if shared:  # who is finished goes on as long as anyone writes, and must have the positions for it
            options["max_new_tokens"] = -largest_of_processes(-options["max_new_tokens"], self.device)
        if sampling is not None:
            options |= asdict(sampling)
        if self.length_buckets:
            # The model sees two shapes, prompt and single token: keys and values have room for the longest caption.
            options["cache_implementation"] = "static"
        config = GenerationConfig(
            **options,
            do_sample=sampling is not None,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        # transformers 4 puts a model's own defaults, such as sampling, in the place of values equal to the class's.
        switch = "use_model_defaults"
        own = {switch: False} if switch in inspect.signature(self.model.generate).parameters else {}
        criteria = StoppingCriteriaList([lambda ids, scores, **_: ends_with(ids, stop)] if stop else [])
        embeds = flipped[1].flip(1)
        # Autocast would give keys and values different types, and a static cache has one.
        with torch.autocast(embeds.device.type, enabled=False) if self.length_buckets else nullcontext():
            ids: Tensor = self.model.generate(
                inputs_embeds=embeds,
                attention_mask=flipped[0].flip(1).long(),
                generation_config=config,
                stopping_criteria=criteria,
                streamer=streamer,
                synced_gpus=shared,
                **own,
            )
        # Beam search fills up with the end token where the pad token's id is 0.
        ends = ids == self.tokenizer.eos_token_id
        return ids.masked_fill(ends.cumsum(dim=1) > ends, self.tokenizer.pad_token_id)

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of generated ids, without special tokens; a caption without end token is kept whole."""
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]


def is_shared_out(module: nn.Module) -> bool:
    """Whether layers of a module are shared out: all processes must then run it equally often."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def largest_of_processes(number: int, device: torch.device) -> int:
    """The largest of the numbers that the processes have; all of them must ask."""
    largest = torch.tensor(number, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def ends_with(ids: Tensor, sequences: Sequence[Sequence[int]]) -> Tensor:
    """(B,) bool: whether each row of (B, T) ids ends with one of the sequences."""
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for sequence in sequences:
        if len(sequence) <= ids.shape[1]:
            ended |= (ids[:, -len(sequence) :] == torch.tensor(sequence, device=ids.device)).all(dim=1)
    return ended


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of ids with which both sequences begin."""
    pairs = zip(left, right, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def _load_tokenizer(settings: LanguageSettings) -> Any:
    name = settings.tokenizer or settings.source
    if name is None:
        tokenizer = word_piece_tokenizer(settings.words)
    else:
        from transformers import AutoTokenizer

        tokenizer = load_part(AutoTokenizer, name, "model.init_args.language.tokenizer")
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"model.init_args.language.tokenizer: {name} has no eos token, and captions could not end; "
            f"set eos_token in its tokenizer_config.json, or name another tokenizer"
        )
    if tokenizer.pad_token_id is None and settings.pad_with_end:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    return tokenizer


def _load_model(settings: LanguageSettings, vocabulary_size: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = getattr(torch, "float32" if settings.training == "full" else settings.dtype)
    options = {**dtype_option(dtype), **_quantisation_options(settings, dtype)}
    if settings.source is None:
        keys = dict(settings.config)
        model_type = keys.pop("model_type", None)
        if model_type is None:
            raise ConfigError("model.init_args.language: give a source, or a config with a model_type such as llama")
        keys.setdefault("vocab_size", vocabulary_size)
        try:
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **keys), **dtype_option(dtype))
        except ValueError as error:
            raise ConfigError(f"model.init_args.language.config: {_shortened(error)}") from error
    else:
        key = "model.init_args.language.source"
        model = load_pretrained(AutoModelForCausalLM, settings.source, key, **options)
    known = model.get_input_embeddings().num_embeddings
    if known < vocabulary_size:
        # The released code appends "[PAD]" and resizes; the new row is never trained nor attended to. Zero, so that a
        # base is the same base each time it is loaded.
        model.resize_token_embeddings(vocabulary_size, mean_resizing=False)
        with torch.no_grad():
            for embeddings in (model.get_input_embeddings(), model.get_output_embeddings()):
                embeddings.weight[known:] = 0
    return model


def _quantisation_options(settings: LanguageSettings, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told beside the dtype."""
    if settings.quantisation == "none":
        return {}
    key = "model.init_args.language.quantisation"
    if settings.source is None or settings.training == "full":
        wanted = "a source" if settings.source is None else "training frozen or lora"
        raise ConfigError(
            f"{key}: {settings.quantisation} is for a frozen base from a file; give {wanted}, or quantisation none"
        )
    require_extra("bitsandbytes", "quantisation")
    from transformers import BitsAndBytesConfig

    if settings.quantisation == "8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    }


def _shortened(error: Exception) -> str:
    """First line of an error, without transformers' list of all models there are."""
    text = first_line(error)
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


@lru_cache(maxsize=1)
def built_in_words() -> list[str]:
    """Whole words of the built-in tokenizer: those of the embedded scenes' captions and of the prompts."""
    return files("avcap_zoo.backbones").joinpath("words.txt").read_text(encoding="utf-8").split()


def word_piece_tokenizer(words: Sequence[str] = ()) -> Any:
    """The tokenizer of models built from a config alone: whole words, and single characters for anything else.

    Args:
        words: in lower case, beside the built-in ones.

    Returns:
        A transformers fast tokenizer, lower-casing; ids 0-3 are pad, begin, end and unknown.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *characters, *(f"##{c}" for c in characters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys([*pieces, *built_in_words(), *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>", max_input_chars_per_word=200))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
