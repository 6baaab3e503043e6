"""Guided decoding: what it costs, what a batch changes, and what it says to bad input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from avcap_zoo.backbones.language import word_piece_tokenizer
from avcap_zoo.decoding.guided import (
    CosineScorer,
    GuidedDecoder,
    GuidedSettings,
    GuidedText,
    clean_up_spaces,
    score_candidates,
    stop_token_ids,
)
from avcap_zoo.errors import AvcapError, ConfigError, DataError, ShapeError

PROMPTS = ["a", "a dog barking and a bell", "rain and wind", "the car"]
SETTINGS = GuidedSettings(num_candidates=6, decoding_length=16)
KINDS = ("opt", "gpt2", "llama")


@lru_cache(maxsize=len(KINDS))
def language_model(kind: str) -> Any:
    """A tiny model of each way to know positions: offset and learned, learned, rotary."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    torch.manual_seed(1)
    shared = {"vocab_size": len(word_piece_tokenizer()), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "opt":
        config = OPTConfig(
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=40,
            init_std=0.3,
            **shared,
        )
        return OPTForCausalLM(config).eval()
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=40, initializer_range=0.3, **shared)
        return GPT2LMHeadModel(config).eval()
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=40,
        initializer_range=0.3,
        **shared,
    )
    return LlamaForCausalLM(config).eval()


class LetterEncoder:
    """A text encoder that knows the first 12 letters of a text, ignoring case; remembers what it was given."""

    def __init__(self) -> None:
        self.table = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))
        self.seen: list[list[list[int]]] = []

    def token_rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) % 300 for letter in text.lower()[:12]] for text in texts]

    def encode_rows(self, rows: Sequence[Sequence[int]]) -> Tensor:
        self.seen.append([list(row) for row in rows])
        weights = [torch.arange(1.0, len(row) + 1) for row in rows]
        return torch.stack([w @ self.table[list(row)] for w, row in zip(weights, rows, strict=True)])


class FixedScorer:
    """Gives what a function makes of the number of texts."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        self.make = make

    def score(self, texts: Sequence[str], clip_index: Tensor) -> Tensor:
        return self.make(len(texts))


def clip_embeddings(count: int) -> Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(3))


def decoder(kind: str = "opt", stop_tokens: Sequence[int] | None = None, **changes: Any) -> GuidedDecoder:
    settings = replace(SETTINGS, **changes)
    return GuidedDecoder(language_model(kind), word_piece_tokenizer(), settings, stop_tokens=stop_tokens)


def decode(guided: GuidedDecoder, prompts: Sequence[str] = PROMPTS) -> list[GuidedText]:
    return guided.decode(prompts, CosineScorer(LetterEncoder(), clip_embeddings(len(prompts))), trace=True)


def some_stop_tokens(kind: str) -> list[int]:
    """Tokens that end the clips of PROMPTS at different steps."""
    free = decode(decoder(kind, stop_tokens=(), end_penalty=None))
    return [free[0].token_ids[5], free[1].token_ids[2], free[2].token_ids[8]]


# -- what a batch changes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_does_not_notice_the_others(kind: str, alpha: float) -> None:
    guided = decoder(kind, some_stop_tokens(kind), alpha=alpha, end_penalty=0.4)
    embeddings = clip_embeddings(len(PROMPTS))
    together = decode(guided)
    assert len({len(text.token_ids) for text in together}) > 1, "all clips end at once: nothing leaves the batch"
    for index, prompt in enumerate(PROMPTS):
        scorer = CosineScorer(LetterEncoder(), embeddings[index : index + 1])
        (alone,) = guided.decode([prompt], scorer, trace=True)
        got = together[index]
        assert (got.prompt_ids, got.token_ids, got.stop) == (alone.prompt_ids, alone.token_ids, alone.stop)
        assert got.trace is not None
        assert alone.trace is not None
        for mine, theirs in zip(got.trace, alone.trace, strict=True):
            assert (mine.token_ids, mine.texts, mine.chosen) == (theirs.token_ids, theirs.texts, theirs.chosen)
            for name in ("lm_probs", "similarities", "guidance", "degeneration", "raw_scores", "scores"):
                numbers = torch.tensor(getattr(mine, name)), torch.tensor(getattr(theirs, name))
                torch.testing.assert_close(*numbers, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_and_hidden_states_are_those_of_whole_sequences(kind: str, alpha: float) -> None:
    """What the cache, the positions and the padding yield is what the model says of the text alone, from its start."""
    guided = decoder(kind, some_stop_tokens(kind), alpha=alpha)
    for text in decode(guided):
        assert text.trace is not None
        for step, entry in enumerate(text.trace):
            ids = torch.tensor([text.prompt_ids + text.token_ids[:step]])
            with torch.no_grad():
                prob = guided.model(input_ids=ids).logits[0, -1].softmax(dim=0)
            torch.testing.assert_close(torch.tensor(entry.lm_probs), prob[entry.token_ids], atol=2e-6, rtol=1e-5)
            assert entry.lm_probs == sorted(entry.lm_probs, reverse=True)
            if alpha:
                rows = torch.tensor([[*ids[0].tolist(), candidate] for candidate in entry.token_ids])
                with torch.no_grad():
                    output = guided.model(input_ids=rows, output_hidden_states=True)
                states = F.normalize(output.hidden_states[-1], dim=2)
                want = (states[:, :-1] @ states[:, -1:].transpose(1, 2)).amax(dim=(1, 2))
                torch.testing.assert_close(torch.tensor(entry.degeneration), want, atol=5e-6, rtol=1e-5)


# -- what it costs -------------------------------------------------------------------------------------------------


class Counter:
    """Counts passes and real tokens of a language model while it is attached."""

    def __init__(self, model: Any) -> None:
        self.passes = self.tokens = 0
        self.rows: list[int] = []
        self.handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, _model: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        new = kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :]
        self.passes += 1
        self.tokens += int(new.sum())
        self.rows.append(len(new))

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_each_clip_costs_its_prompt_and_its_tokens_but_the_last(kind: str) -> None:
    guided = decoder(kind, some_stop_tokens(kind), end_penalty=None)
    encoder = LetterEncoder()
    with Counter(guided.model) as counter:
        texts = guided.decode(PROMPTS, CosineScorer(encoder, clip_embeddings(len(PROMPTS))))
    steps = [len(text.token_ids) for text in texts]
    assert counter.tokens == sum(len(text.prompt_ids) + len(text.token_ids) - 1 for text in texts)
    assert counter.passes == max(steps)
    assert counter.rows == [sum(count > step for count in steps) for step in range(max(steps))]
    assert len(encoder.seen) == max(steps)


def test_alpha_costs_every_candidate_once() -> None:
    guided = decoder(stop_tokens=some_stop_tokens("opt"), alpha=0.2)
    with Counter(guided.model) as counter:
        texts = decode(guided)
    assert counter.tokens == sum(len(text.prompt_ids) + 6 * len(text.token_ids) for text in texts)
    assert counter.passes == 1 + max(len(text.token_ids) for text in texts)


def test_without_beta_no_text_is_encoded() -> None:
    encoder = LetterEncoder()
    guided = decoder(beta=0.0)
    with_scorer = guided.decode(PROMPTS, CosineScorer(encoder, clip_embeddings(len(PROMPTS))), trace=True)
    assert encoder.seen == []
    assert guided.decode(PROMPTS, None, trace=True) == with_scorer
    assert with_scorer[0].trace is not None
    assert with_scorer[0].trace[0].similarities == []
    assert len(with_scorer[0].trace[0].texts) == 6


def test_texts_that_the_encoder_cannot_tell_apart_are_encoded_once_and_short_ones_first() -> None:
    encoder = LetterEncoder()
    embeddings = clip_embeddings(2)
    texts = ["A dog barks loudly", "rain", "a dog barks loud", "Rain", "", "wind"]
    index = torch.tensor([0, 0, 1, 1, 1, 1])
    got = CosineScorer(encoder, embeddings).score(texts, index)
    (rows,) = encoder.seen
    assert [len(row) for row in rows] == [0, 4, 4, 12]
    want = F.cosine_similarity(encoder.encode_rows(encoder.token_rows(texts)), embeddings[index])
    torch.testing.assert_close(got, want)
    assert got[4] == 0


def test_once_the_encoder_cuts_all_texts_alike_one_per_clip_is_encoded() -> None:
    encoder = LetterEncoder()
    texts = decoder(stop_tokens=()).decode(PROMPTS, CosineScorer(encoder, clip_embeddings(4)), trace=True)
    assert len(encoder.seen[0]) == 6 * 4 - _duplicates(texts, 0)
    assert texts[0].trace is not None
    assert len(encoder.seen[-1]) == 1
    assert texts[0].trace[-1].guidance == pytest.approx([1 / 6] * 6)


def _duplicates(texts: list[GuidedText], step: int) -> int:
    shown = [text for entry in texts if entry.trace for text in entry.trace[step].texts]
    return len(shown) - len({text.lower()[:12] for text in shown})


# -- the rule ------------------------------------------------------------------------------------------------------


def penalised(mode: Any, step: int, penalty: float | None = 0.1) -> list[float]:
    _, final = score_candidates(
        torch.tensor([[0.40, 0.30, 0.15, 0.10, 0.05]]),
        torch.tensor([[0.02, 0.08, 0.10, 0.70, 0.10]]),
        None,
        torch.tensor([[True, False, False, False, False]]),
        step=step,
        alpha=0.0,
        beta=0.5,
        end_penalty=penalty,
        mode=mode,
    )
    return [round(value, 6) for value in final[0].tolist()]


def test_the_end_penalty_lands_on_the_end_token_in_mode_paper_only() -> None:
    assert penalised("paper", 0) == [0.0, 0.34, 0.20, 0.45, 0.10]
    assert penalised("released", 0) == [0.41, 0.0, 0.20, 0.45, 0.10]
    assert penalised("paper", 15) == [0.615, 0.34, 0.20, 0.45, 0.10]
    assert penalised("released", 15) == [0.41, 0.51, 0.20, 0.45, 0.10]


def test_no_end_penalty_is_not_a_penalty_of_zero() -> None:
    assert penalised("paper", 3, None) == penalised("released", 3, None) == [0.41, 0.34, 0.20, 0.45, 0.10]
    assert penalised("paper", 3, 0.0)[0] == 0


def test_one_candidate_is_greedy_decoding() -> None:
    guided = decoder(num_candidates=1, stop_tokens=())
    ids = torch.tensor([guided.prompt_ids(["rain"])[0]])
    want = guided.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_length=16, eos_token_id=None, pad_token_id=0
    )
    (got,) = guided.decode(["rain"], CosineScorer(LetterEncoder(), clip_embeddings(1)), trace=True)
    assert got.prompt_ids + got.token_ids == want[0].tolist()
    assert got.trace is not None
    assert got.trace[0].guidance == [1.0]


def test_without_stop_tokens_every_caption_has_the_full_length() -> None:
    for text in decode(decoder(stop_tokens=())):
        assert len(text.prompt_ids) + len(text.token_ids) == 16
        assert text.stop == "length"


def test_an_end_token_at_the_last_place_is_an_end() -> None:
    (free,) = decode(decoder(stop_tokens=(), end_penalty=None, decoding_length=3), ["rain"])
    (last,) = decode(decoder(stop_tokens=free.token_ids, end_penalty=None, decoding_length=3), ["rain"])
    assert len(free.token_ids) == 1
    assert last.token_ids == free.token_ids
    assert (free.stop, last.stop) == ("length", "end_token")


def test_stop_tokens_are_begin_end_and_the_marks() -> None:
    tokenizer = word_piece_tokenizer()
    assert stop_token_ids(tokenizer) == {1, 2, *tokenizer.convert_tokens_to_ids([".", "!", "?"])}
    assert stop_token_ids(tokenizer, "") == {1, 2}


def test_the_scorer_sees_the_last_tokens_and_the_prompt_only_when_asked_to() -> None:
    plain = decode(decoder(stop_tokens=()), ["rain and wind"])[0]
    shown = decode(decoder(stop_tokens=(), prompt_in_text=True), ["rain and wind"])[0]
    short = decode(decoder(stop_tokens=(), max_text_tokens=2), ["rain and wind"])[0]
    assert plain.trace is not None
    assert shown.trace is not None
    assert short.trace is not None
    tokenizer = word_piece_tokenizer()
    for trace, ids in (
        (plain.trace[3], plain.token_ids[:3]),
        (shown.trace[3], shown.prompt_ids + shown.token_ids[:3]),
        (short.trace[3], short.token_ids[2:3]),
    ):
        want = [clean_up_spaces(tokenizer.decode([*ids, token])) for token in trace.token_ids]
        assert trace.texts == want
    assert shown.trace[0].texts[0].startswith("<s>")


def test_spaces_are_cleaned_up_as_transformers_4_did() -> None:
    assert clean_up_spaces("a dog , it 's here . do n't ! we 've , they 're , I 'm ?") == (
        "a dog, it's here. don't! we've, they're, I'm?"
    )
    assert clean_up_spaces("rock ' n") == "rock'n"


def test_the_trace_is_plain_and_absent_unless_asked_for() -> None:
    guided = decoder(alpha=0.1)
    scorer = CosineScorer(LetterEncoder(), clip_embeddings(4))
    traced, untraced = guided.decode(PROMPTS, scorer, trace=True), guided.decode(PROMPTS, scorer)
    assert [text.token_ids for text in traced] == [text.token_ids for text in untraced]
    assert all(text.trace is None for text in untraced)
    for text in traced:
        assert text.trace is not None
        assert len(text.trace) == len(text.token_ids)
        for token, step in zip(text.token_ids, text.trace, strict=True):
            assert step.token_ids[step.chosen] == token
            assert step.best(1) == [step.chosen]
            ordered = [step.scores[index] for index in step.best(4)]
            assert ordered == sorted(step.scores, reverse=True)[:4]
            assert all(type(value) is float for value in step.scores + step.similarities + step.degeneration)


def test_no_prompts_give_no_texts() -> None:
    assert decoder().decode([], CosineScorer(LetterEncoder(), clip_embeddings(0))) == []


# -- bad input -----------------------------------------------------------------------------------------------------


def test_settings_out_of_range_are_named_together() -> None:
    size = len(word_piece_tokenizer())
    with pytest.raises(ConfigError) as error:
        decoder(num_candidates=size + 1, beta=-1.0, alpha=1.5, temperature=0.0, end_penalty=-0.1, mode="official")
    for part in (
        f"num_candidates is {size + 1}, wanted 1 to {size}, the size of the vocabulary",
        "beta is -1.0, wanted 0 or more",
        "alpha is 1.5, wanted 0 to 1",
        "temperature is 0.0, wanted more than 0",
        "end_penalty is -0.1, wanted 0 or more, or null for none",
        "mode is 'official', wanted paper or released",
    ):
        assert part in str(error.value)


def test_counts_start_at_one() -> None:
    with pytest.raises(ConfigError) as error:
        decoder(num_candidates=0, decoding_length=0, max_text_tokens=0)
    assert str(error.value).count("is 0, wanted 1 ") == 3


def test_as_many_candidates_as_words_are_fine() -> None:
    (text,) = decode(decoder(num_candidates=len(word_piece_tokenizer()), decoding_length=5), ["rain"])
    assert text.trace is not None
    assert sum(text.trace[0].lm_probs) == pytest.approx(1, abs=1e-5)


def test_a_tokenizer_without_begin_token() -> None:
    tokenizer = word_piece_tokenizer()
    tokenizer.bos_token = None
    for stop_tokens in (None, ()):
        with pytest.raises(ConfigError, match=r"no begin token.*set tokenizer\.bos_token.*'</s>'"):
            GuidedDecoder(language_model("opt"), tokenizer, SETTINGS, stop_tokens=stop_tokens)


def test_a_prompt_as_long_as_the_decoding_length() -> None:
    prompt = " ".join(["rain"] * 15)
    with pytest.raises(ConfigError, match="prompt 1 has 16 tokens, decoding_length is 16: nothing is left"):
        decode(decoder(), ["rain", prompt])
    (text,) = decode(decoder(decoding_length=17), [prompt])
    assert len(text.token_ids) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_than_the_model_has_positions(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"decoding_length is 42, the language model has 40 positions: .* to 41"):
        decode(decoder(kind, decoding_length=42))
    texts = decode(decoder(kind, decoding_length=41, stop_tokens=()), ["rain"])
    assert len(texts[0].prompt_ids) + len(texts[0].token_ids) == 41


def test_guidance_without_a_scorer() -> None:
    with pytest.raises(ConfigError, match=r"beta is 0\.5, but there is no scorer"):
        decoder().decode(PROMPTS, None)


BAD_SCORES: list[tuple[Callable[[int], Tensor], type[AvcapError], str]] = [
    (lambda count: torch.zeros(count - 1), ShapeError, r"the scorer gave \(23,\), wanted \(24,\): one number per text"),
    (lambda count: torch.zeros(count, 1), ShapeError, r"the scorer gave \(24, 1\), wanted \(24,\)"),
    (
        lambda count: torch.zeros(count).index_fill(0, torch.tensor([7, 9]), torch.nan),
        DataError,
        r"gave nan for '.*' of clip 1 at step 0 \(2 of 24 similarities are not finite\)",
    ),
    (lambda count: torch.full((count,), -torch.inf), DataError, r"gave -inf for '.*' of clip 0 at step 0 \(24 of 24"),
]


@pytest.mark.parametrize(("make", "kind", "message"), BAD_SCORES, ids=["short", "2-D", "nan", "inf"])
def test_a_scorer_that_gives_nonsense(make: Callable[[int], Tensor], kind: type[AvcapError], message: str) -> None:
    with pytest.raises(kind, match=message):
        decoder().decode(PROMPTS, FixedScorer(make))


def test_embeddings_that_do_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"clip embeddings are \(8,\), wanted \(clips, width\)"):
        CosineScorer(LetterEncoder(), torch.zeros(8))
    with pytest.raises(ShapeError, match=r"the text encoder gave \(1, 8\), wanted \(1, 9\)"):
        CosineScorer(LetterEncoder(), torch.zeros(2, 9)).score(["a"], torch.tensor([1]))
    with pytest.raises(ShapeError, match="there are 2 clip embeddings, and a text for clip 3"):
        decoder().decode(PROMPTS, CosineScorer(LetterEncoder(), clip_embeddings(2)))
