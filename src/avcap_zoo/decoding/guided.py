"""Decoding in which a scorer has a say: the language model proposes tokens, a scorer of texts re-ranks them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.language import is_shared_out, largest_of_processes
from avcap_zoo.errors import ConfigError, DataError, ShapeError

RELEASED_STOP_TEXT = ". ! ?"
"""What the released code encodes to get its end tokens; in most vocabularies `.`, ` !` and ` ?`."""

_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class CandidateScorer(Protocol):
    """What judges candidate texts: any object with this method."""

    def score(self, texts: Sequence[str], clip_index: Tensor) -> Tensor:
        """Similarity of each text to its clip.

        Args:
            texts: N texts, of all clips that are still being decoded; may be empty strings.
            clip_index: (N,) int64, on the language model's device: which clip each text is for, counted in the
                order of the prompts given to `GuidedDecoder.decode`.

        Returns:
            (N,) finite floats, usually cosines.
        """


class TextEncoder(Protocol):
    """What `CosineScorer` needs of a text encoder."""

    def token_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as the encoder sees them: special tokens in, cut at the encoder's longest input."""

    def encode_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """(U, D) embeddings of U rows of ids; they need not have unit length."""


class CosineScorer:
    """Cosine between the embedding of a text and that of its clip.

    Texts are compared after tokenising: what the encoder cannot tell apart (case, a cut at its longest input, the
    same text of another clip) is encoded once. Rows go to the encoder in one call, sorted by length, so that an
    encoder that splits them pads little.

    Args:
        encoder: see `TextEncoder`.
        clip_embeddings: (B, D), one per clip, of any length.

    Raises:
        ShapeError: `clip_embeddings` is not 2-D or has too few rows, or text embeddings have another width.

    Source: ZerAuCap (arXiv 2311.08396), cosine between audio and text embeddings.
    """

    def __init__(self, encoder: TextEncoder, clip_embeddings: Tensor) -> None:
        if clip_embeddings.ndim != 2:
            raise ShapeError(f"clip embeddings are {tuple(clip_embeddings.shape)}, wanted (clips, width)")
        self.encoder = encoder
        self.clip_embeddings = F.normalize(clip_embeddings.float(), dim=1)

    def score(self, texts: Sequence[str], clip_index: Tensor) -> Tensor:
        """(N,) float32 cosines; a text with a zero embedding has cosine 0."""
        if int(clip_index.max()) >= len(self.clip_embeddings):  # on a GPU indexing would end the process
            raise ShapeError(
                f"there are {len(self.clip_embeddings)} clip embeddings, and a text for clip {int(clip_index.max())}"
            )
        rows = [tuple(row) for row in self.encoder.token_rows(texts)]
        unique = sorted(set(rows), key=lambda row: (len(row), row))
        encoded = self.encoder.encode_rows(unique)
        if encoded.shape != (len(unique), self.clip_embeddings.shape[1]):
            raise ShapeError(
                f"the text encoder gave {tuple(encoded.shape)}, wanted {(len(unique), self.clip_embeddings.shape[1])}: "
                f"(texts, width of the clip embeddings)"
            )
        place = {row: index for index, row in enumerate(unique)}
        index = torch.tensor([place[row] for row in rows], device=encoded.device)
        clips = self.clip_embeddings.to(encoded.device)[clip_index.to(encoded.device)]
        return (F.normalize(encoded.float(), dim=1)[index] * clips).sum(dim=1)


@dataclass
class GuidedSettings:
    """How guided decoding chooses tokens. Defaults are the published settings of ZerAuCap.

    Args:
        mode: where the end penalty lands. `paper`: on end tokens, as meant. `released`: as the released code applies
            it, on the candidate whose place among the language model's candidates equals the end token's place in
            the order of scores. Take `released` to compare with published numbers. They differ in nothing else.
        num_candidates: best tokens of the language model that are scored (m), at least 1. 1 = greedy.
        beta: weight of the scorer, >= 0. 0 = the scorer is never asked.
        temperature: multiplies (!) the similarities before the softmax over the candidates, > 0 (kappa).
        alpha: weight of the degeneration penalty, 0 to 1. Above 0 all candidates go through the language model.
        end_penalty: an end token's score is multiplied by `end_penalty` * step (gamma), step counted from 0. None =
            no penalty: the paper's equation alone. 0 keeps the factor 0 throughout, as in the released code.
        decoding_length: longest sequence in tokens, prompt and its begin token included, as released.
        prompt_in_text: True shows the prompt, begin token included, to the scorer.
        max_text_tokens: the scorer sees the last so many tokens.
    """

    mode: Literal["paper", "released"] = "paper"
    num_candidates: int = 45
    beta: float = 0.5
    temperature: float = 10.0
    alpha: float = 0.0
    end_penalty: float | None = 0.1
    decoding_length: int = 78
    prompt_in_text: bool = False
    max_text_tokens: int = 77


@dataclass
class TraceStep:
    """One decision: lists over the m candidates, most probable first.

    Attributes:
        token_ids: candidates of the language model.
        texts: what the scorer was shown, or would have been with beta above 0.
        lm_probs: probabilities over the whole vocabulary.
        similarities: from the scorer; empty when it was not asked.
        guidance: softmax of the scaled similarities; empty when the scorer was not asked.
        degeneration: largest cosine with an earlier hidden state; empty when alpha is 0.
        raw_scores: before the end penalty.
        scores: after it; the largest is chosen.
        chosen: index of the chosen candidate.
    """

    token_ids: list[int]
    texts: list[str]
    lm_probs: list[float]
    similarities: list[float]
    guidance: list[float]
    degeneration: list[float]
    raw_scores: list[float]
    scores: list[float]
    chosen: int

    def best(self, count: int) -> list[int]:
        """Indices of the `count` candidates with the best scores, best first."""
        return sorted(range(len(self.scores)), key=lambda index: -self.scores[index])[:count]


@dataclass
class GuidedText:
    """A decoded continuation.

    Attributes:
        prompt_ids: the prompt as the language model saw it, begin token first.
        token_ids: what was generated, the end token included.
        stop: `end_token`, or `length` when `decoding_length` was reached.
        trace: one entry per token, when asked for.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    stop: Literal["end_token", "length"]
    trace: list[TraceStep] | None


def clean_up_spaces(text: str) -> str:
    """Remove the spaces that decoding leaves before punctuation and contractions.

    transformers 4 did this by default; from some point of version 5 on its byte-level tokenizers no longer do, even
    when asked. Published captions depend on it.
    """
    for spaced, tight in _CLEAN_UP:
        text = text.replace(spaced, tight)
    return text


def stop_token_ids(tokenizer: Any, text: str = RELEASED_STOP_TEXT) -> set[int]:
    """Ids that end a caption: the begin and end tokens, and every token of `text`.

    The released code encodes ". ! ?" with the begin token, which OPT and GPT-2 also use as end token. So a full stop
    ends a caption only when no space stands before it, and the two other marks only when one does.

    Raises:
        ConfigError: the tokenizer has no begin token.
    """
    special = {_begin_token(tokenizer), tokenizer.eos_token_id} - {None}
    return special | set(tokenizer(text, add_special_tokens=False).input_ids)


def score_candidates(
    lm_prob: Tensor,
    guidance: Tensor | None,
    degeneration: Tensor | None,
    is_end: Tensor,
    *,
    step: int,
    alpha: float,
    beta: float,
    end_penalty: float | None,
    mode: Literal["paper", "released"],
) -> tuple[Tensor, Tensor]:
    """Scores of the candidates: (1 - alpha) p - alpha d + beta f, then the end penalty.

    Args:
        lm_prob: (B, m) probabilities p, most probable candidate first.
        guidance: (B, m) f, or None for 0.
        degeneration: (B, m) d, or None for 0.
        is_end: (B, m) bool, candidates that are end tokens.
        step: tokens generated so far.
        alpha: weight of the degeneration penalty.
        beta: weight of the guidance.
        end_penalty: gamma; an end token's score is multiplied by gamma * step. None = never.
        mode: see `GuidedSettings`.

    Returns:
        (B, m) scores before and after the end penalty.

    Source: ZerAuCap (arXiv 2311.08396); the end penalty is in the released code only.
    """
    raw = (1 - alpha) * lm_prob
    if degeneration is not None:
        raw = raw - alpha * degeneration
    if guidance is not None:
        raw = raw + beta * guidance
    if end_penalty is None:
        return raw, raw
    if mode == "released":
        # Released code: walks the candidates in the order of their scores, but multiplies by place among the model's.
        order = torch.argsort(raw, dim=1, descending=True, stable=True)
        is_end = is_end.gather(1, order)
    return raw, torch.where(is_end, raw * (end_penalty * step), raw)


class GuidedDecoder:
    """Decodes the continuations of a batch of prompts in lockstep, each token chosen with the help of a scorer.

    Every prompt goes through the language model once; after that each clip costs one token per step (m with
    alpha > 0), nothing after its last one. Finished clips leave the batch. The prompts are padded on the left.

    Args:
        model: a transformers causal language model that takes `position_ids` and a `DynamicCache` (OPT, GPT-2,
            Llama and their kin). It is used as it is: put it in evaluation mode.
        tokenizer: its tokenizer; needs a begin token, which is put in front of each prompt.
        settings: see `GuidedSettings`.
        stop_tokens: ids that end a caption; None = `stop_token_ids(tokenizer)`. Empty = decode to `decoding_length`.

    Raises:
        ConfigError: a setting out of range, more candidates than the vocabulary has, a tokenizer without begin token.
    """

    def __init__(
        self, model: Any, tokenizer: Any, settings: GuidedSettings, *, stop_tokens: Collection[int] | None = None
    ) -> None:
        _check_settings(settings, model.config.get_text_config().vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.begin_token = _begin_token(tokenizer)
        self.stop_tokens = frozenset(stop_token_ids(tokenizer) if stop_tokens is None else stop_tokens)
        self._stack = next(p for p in model.modules() if any(isinstance(c, nn.ModuleList) for c in p.children()))
        # The prompt's logits are needed at its last place only; OPT cannot be told before transformers 5.
        spare = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._last_logits = {"logits_to_keep": 1} if spare else {}

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of each prompt, begin token first. A trailing space is kept: it changes what the model says next.

        Raises:
            ConfigError: a prompt leaves no room below `decoding_length`, or the model has too few positions.
        """
        rows = [[self.begin_token, *self.tokenizer(prompt, add_special_tokens=False).input_ids] for prompt in prompts]
        length = self.settings.decoding_length
        for clip, row in enumerate(rows):
            if len(row) >= length:
                raise ConfigError(
                    f"prompt {clip} has {len(row)} tokens, decoding_length is {length}: nothing is left to generate; "
                    f"raise decoding_length or shorten the prompt"
                )
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and length - 1 > positions:
            raise ConfigError(
                f"decoding_length is {length}, the language model has {positions} positions: "
                f"lower decoding_length to {positions + 1}"
            )
        return rows

    @torch.no_grad()
    def decode(
        self, prompts: Sequence[str], scorer: CandidateScorer | None, *, trace: bool = False
    ) -> list[GuidedText]:
        """Continue each prompt.

        Args:
            prompts: B prompts.
            scorer: see `CandidateScorer`; may be None with beta 0. It is called once per step.
            trace: keep each step's candidates and their scores.

        Returns:
            One `GuidedText` per prompt. They do not depend on the other prompts but for rounding. Where layers of the
            model are shared out, a process that is finished waits here for the others; each needs a prompt.

        Raises:
            ConfigError: see `prompt_ids`; or no scorer although beta > 0.
            ShapeError: the scorer gave something else than one similarity per text.
            DataError: the scorer gave a similarity that is not finite; names the clip and the text.
        """
        settings = self.settings
        if scorer is None and settings.beta > 0:
            raise ConfigError(f"beta is {settings.beta:g}, but there is no scorer; give one or set beta to 0")
        rows = self.prompt_ids(prompts)
        results = [GuidedText(row, [], "length", [] if trace else None) for row in rows]
        if not rows:
            return results
        shared = is_shared_out(self.model)
        state = self._read_prompts(rows)
        stop_tokens = torch.tensor(sorted(self.stop_tokens), dtype=torch.long, device=state.logits.device)
        room = torch.tensor([settings.decoding_length - len(row) for row in rows], device=state.logits.device)
        step = 0
        while True:
            ids = state.logits.topk(settings.num_candidates, dim=1).indices
            lm_prob = state.logits.float().softmax(dim=1).gather(1, ids)
            texts = self._texts(state.clips, results, ids) if settings.beta > 0 or trace else []
            similarity = None
            if scorer is not None and settings.beta > 0:
                similarity = _ask(scorer, texts, state.clips, ids, step)
            guidance = None if similarity is None else (settings.temperature * similarity).softmax(dim=1)
            ahead = self._read_candidates(state, ids) if settings.alpha > 0 else None
            degeneration = None if ahead is None else state.degeneration(ahead.hidden)
            raw, scores = score_candidates(
                lm_prob,
                guidance,
                degeneration,
                torch.isin(ids, stop_tokens),
                step=step,
                alpha=settings.alpha,
                beta=settings.beta,
                end_penalty=settings.end_penalty,
                mode=settings.mode,
            )
            chosen = scores.argmax(dim=1)
            tokens = ids.gather(1, chosen[:, None])
            for clip, token in zip(state.clips.tolist(), tokens[:, 0].tolist(), strict=True):
                results[clip].token_ids.append(token)
                if token in self.stop_tokens:
                    results[clip].stop = "end_token"
            if trace:
                values = (similarity, guidance, degeneration, raw, scores)
                _write_trace(results, state.clips, ids, texts, lm_prob, values, chosen)
            step += 1
            going = ~torch.isin(tokens[:, 0], stop_tokens) & (step < room[state.clips])
            kept = going.nonzero()[:, 0]
            anyone_goes_on = shared and bool(largest_of_processes(len(kept), kept.device))
            if len(kept) == 0:
                if anyone_goes_on:
                    self._accompany(kept.device)
                return results
            if ahead is not None:
                state.follow(ahead, kept, chosen)
            else:
                if len(kept) < len(going):
                    state.keep(kept)
                self._read_tokens(state, tokens[kept])

    def _read_prompts(self, rows: list[list[int]]) -> _State:
        """First pass: all prompts, padded on the left."""
        device = self.model.get_input_embeddings().weight.device
        width = max(len(row) for row in rows)
        # Padding is masked; any id will do there.
        ids = torch.tensor([[self.begin_token] * (width - len(row)) + row for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        columns = torch.arange(width, device=device)[None, :]
        mask = columns >= width - lengths[:, None]
        positions = (columns - (width - lengths[:, None])).clamp_min(0)
        cache = _empty_cache()
        logits, states = self._forward(ids, mask, positions, cache, **self._last_logits)
        context = F.normalize(states.float(), dim=2) if self.settings.alpha > 0 else None
        clips = torch.arange(len(rows), device=device)
        return _State(clips, cache, mask, lengths, logits, context)

    def _accompany(self, device: torch.device) -> None:
        """Run shared-out layers as often as the processes do that have not finished; what comes of it is nothing."""
        token = torch.tensor([[self.begin_token]], device=device)
        while True:
            self.model(input_ids=token, use_cache=False)
            if not largest_of_processes(0, device):
                return

    def _read_tokens(self, state: _State, tokens: Tensor) -> None:
        """One more token of each clip. tokens: (A, 1)."""
        mask = F.pad(state.mask, (0, 1), value=True)
        logits, _ = self._forward(tokens, mask, state.lengths[:, None], state.cache)
        state.mask, state.lengths, state.logits = mask, state.lengths + 1, logits

    def _read_candidates(self, state: _State, ids: Tensor) -> _Ahead:
        """One token of each of the m candidates of each clip, in one pass over a widened cache. ids: (A, m)."""
        count = ids.shape[1]
        state.cache.batch_repeat_interleave(count)
        mask = F.pad(state.mask, (0, 1), value=True).repeat_interleave(count, dim=0)
        positions = state.lengths.repeat_interleave(count)[:, None]
        logits, states = self._forward(ids.reshape(-1, 1), mask, positions, state.cache)
        hidden = F.normalize(states.float(), dim=2)
        return _Ahead(logits.view(*ids.shape, -1), hidden.view(*ids.shape, -1))

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, **options: int
    ) -> tuple[Tensor, Tensor]:
        """(B, V) logits of the last place, and (B, L, C) last hidden states of all."""
        states: list[Tensor] = []
        # Not output_hidden_states: for layers that are shared out transformers gives none.
        watch = self._stack.register_forward_hook(lambda *seen: states.append(seen[-1].last_hidden_state))
        try:
            output = self.model(
                input_ids=ids,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **options,
            )
        finally:
            watch.remove()
        return output.logits[:, -1], states[0]

    def _texts(self, clips: Tensor, results: list[GuidedText], ids: Tensor) -> list[str]:
        """Text of each candidate of each clip, A * m of them, as shown to the scorer: special tokens stay."""
        settings = self.settings
        rows = []
        for clip, candidates in zip(clips.tolist(), ids.tolist(), strict=True):
            said = results[clip].prompt_ids * settings.prompt_in_text + results[clip].token_ids
            rows += [[*said, token][-settings.max_text_tokens :] for token in candidates]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return [clean_up_spaces(text) for text in texts]


@dataclass
class _Ahead:
    """What the language model said about each candidate.

    Attributes:
        logits: (A, m, V).
        hidden: (A, m, C), unit length.
    """

    logits: Tensor
    hidden: Tensor


@dataclass
class _State:
    """The A clips that are still being decoded.

    Attributes:
        clips: (A,) their places among the prompts.
        cache: keys and values of the language model.
        mask: (A, W) bool, True = real.
        lengths: (A,) tokens so far, the position of the next one.
        logits: (A, V) for the next token.
        context: (A, W, C) hidden states of all tokens so far, unit length; None when alpha is 0.
    """

    clips: Tensor
    cache: Any
    mask: Tensor
    lengths: Tensor
    logits: Tensor
    context: Tensor | None

    def degeneration(self, hidden: Tensor) -> Tensor:
        """(A, m) largest cosine of each candidate's (A, m, C) hidden state with one of its clip's earlier ones."""
        assert self.context is not None
        cosine = hidden @ self.context.transpose(1, 2)
        return cosine.masked_fill(~self.mask[:, None, :], -torch.inf).amax(dim=2)

    def keep(self, kept: Tensor) -> None:
        """Drop all clips but these rows."""
        self.cache.batch_select_indices(kept)
        self.clips, self.mask, self.lengths = self.clips[kept], self.mask[kept], self.lengths[kept]

    def follow(self, ahead: _Ahead, kept: Tensor, chosen: Tensor) -> None:
        """Drop all clips but these rows, and of these all candidates but the chosen ones, which have been read."""
        assert self.context is not None
        picked = chosen[kept]
        self.cache.batch_select_indices(kept * ahead.hidden.shape[1] + picked)
        self.context = torch.cat([self.context[kept], ahead.hidden[kept, picked][:, None]], dim=1)
        self.clips, self.lengths = self.clips[kept], self.lengths[kept] + 1
        self.mask = F.pad(self.mask[kept], (0, 1), value=True)
        self.logits = ahead.logits[kept, picked]


def _empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def _begin_token(tokenizer: Any) -> int:
    if tokenizer.bos_token_id is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} has no begin token, and every prompt starts with one: "
            f"set tokenizer.bos_token, often to its end token {tokenizer.eos_token!r}"
        )
    return int(tokenizer.bos_token_id)


def _check_settings(settings: GuidedSettings, vocabulary_size: int) -> None:
    """Raise one ConfigError that names every setting out of range."""
    wanted = {
        "mode": (settings.mode in ("paper", "released"), "paper or released"),
        "num_candidates": (
            1 <= settings.num_candidates <= vocabulary_size,
            f"1 to {vocabulary_size}, the size of the vocabulary",
        ),
        "beta": (0 <= settings.beta < math.inf, "0 or more"),
        "temperature": (0 < settings.temperature < math.inf, "more than 0"),
        "alpha": (0 <= settings.alpha <= 1, "0 to 1"),
        "end_penalty": (
            settings.end_penalty is None or 0 <= settings.end_penalty < math.inf,
            "0 or more, or null for none",
        ),
        "decoding_length": (settings.decoding_length >= 1, "1 or more"),
        "max_text_tokens": (settings.max_text_tokens >= 1, "1 or more"),
    }
    problems = [
        f"{name} is {getattr(settings, name)!r}, wanted {text}" for name, (good, text) in wanted.items() if not good
    ]
    if problems:
        raise ConfigError(f"guided decoding: {'; '.join(problems)}")


def _ask(scorer: CandidateScorer, texts: list[str], clips: Tensor, ids: Tensor, step: int) -> Tensor:
    """(A, m) float32 similarities on the language model's device, checked."""
    similarity = scorer.score(texts, clips.repeat_interleave(ids.shape[1]))
    if similarity.shape != (len(texts),):
        raise ShapeError(f"the scorer gave {tuple(similarity.shape)}, wanted ({len(texts)},): one number per text")
    bad = (~similarity.isfinite()).nonzero()[:, 0].tolist()
    if bad:
        clip, text = int(clips[bad[0] // ids.shape[1]]), texts[bad[0]]
        raise DataError(
            f"the scorer gave {float(similarity[bad[0]])} for {text!r} of clip {clip} at step {step} "
            f"({len(bad)} of {len(texts)} similarities are not finite): look at the clip's embedding"
        )
    return similarity.float().view(ids.shape).to(ids.device)


def _write_trace(
    results: list[GuidedText],
    clips: Tensor,
    ids: Tensor,
    texts: list[str],
    lm_prob: Tensor,
    values: tuple[Tensor | None, ...],
    chosen: Tensor,
) -> None:
    """Append one step to the trace of each clip."""
    count = ids.shape[1]
    similarity, guidance, degeneration, raw, scores = (
        [[]] * len(clips) if value is None else value.tolist() for value in values
    )
    for row, clip in enumerate(clips.tolist()):
        trace = results[clip].trace
        assert trace is not None
        trace.append(
            TraceStep(
                token_ids=ids[row].tolist(),
                texts=texts[row * count : (row + 1) * count],
                lm_probs=lm_prob[row].tolist(),
                similarities=similarity[row],
                guidance=guidance[row],
                degeneration=degeneration[row],
                raw_scores=raw[row],
                scores=scores[row],
                chosen=int(chosen[row]),
            )
        )
