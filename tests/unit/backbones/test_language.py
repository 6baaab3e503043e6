"""The language model between two prompts: tokens, labels, gaps, generation, adapters."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.adapters import LoRASettings
from avcap_zoo.backbones.language import (
    CausalLanguageModel,
    GenerationSettings,
    LanguageSettings,
    SamplingSettings,
    built_in_words,
    ends_with,
    word_piece_tokenizer,
)
from avcap_zoo.data_modules.scenes.grammar import split_words, vocabulary
from avcap_zoo.data_modules.scenes.scene import detailed_caption, sample_scene, still_captions, terse_captions
from avcap_zoo.errors import ConfigError, MissingExtraError, ShapeError, WeightsError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def language(**options: Any) -> CausalLanguageModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"source": None, "config": LLAMA, "dtype": "float32", "training": "frozen"}
    return CausalLanguageModel(LanguageSettings(**{**settings, **options})).eval()


@pytest.fixture(scope="module")
def tiny() -> CausalLanguageModel:
    """Only for tests that leave it as it is."""
    return language()


# -- the built-in tokenizer --------------------------------------------------------------------------------------


def test_every_word_of_the_grammar_is_one_token() -> None:
    tokenizer = word_piece_tokenizer()
    for word in [*vocabulary(), *built_in_words()]:
        (token,) = tokenizer(word, add_special_tokens=False).input_ids
        assert token > 3
        assert tokenizer.convert_ids_to_tokens(token) == word


def test_captions_of_the_scenes_come_back() -> None:
    tokenizer = word_piece_tokenizer()
    for index in range(40):
        scene = sample_scene(0, "train", index)
        for caption in (*terse_captions(scene), detailed_caption(scene), *still_captions(scene, 1.0)):
            tokens = tokenizer(caption, add_special_tokens=False).input_ids
            assert tokenizer.decode(tokens) == caption.lower()
            assert len(tokens) <= len(split_words(caption)) + caption.count(".") + caption.count(",")


def test_other_words_fall_back_to_characters() -> None:
    tokenizer = word_piece_tokenizer()
    for text in ("zebra xylophones", "user: <speech> 12.5%", "can't", "(a) b_c #d"):
        tokens = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens).replace(" ", "") == text.replace(" ", "")
    assert tokenizer.decode(tokenizer("Zèbra", add_special_tokens=False).input_ids) == "zebra"
    assert tokenizer("犬", add_special_tokens=False).input_ids == [tokenizer.unk_token_id]


def test_words_of_a_setting_are_whole_and_come_last() -> None:
    settings = LanguageSettings(source=None, config=LLAMA, training="full", words=("zebra", "dog"))
    language = CausalLanguageModel(settings)
    size = len(word_piece_tokenizer())
    assert language.tokenizer("zebra", add_special_tokens=False).input_ids == [size]
    assert language.tokenizer("a dog barks").input_ids == word_piece_tokenizer()("a dog barks").input_ids
    assert language.model.get_input_embeddings().num_embeddings == size + 1


def test_special_ids() -> None:
    tokenizer = word_piece_tokenizer()
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert special == (0, 1, 2, 3)
    assert tokenizer.decode([1, 4, 2, 0], skip_special_tokens=True) == "!"


# -- token_ids ---------------------------------------------------------------------------------------------------


def test_token_ids_are_padded_to_the_right(tiny: CausalLanguageModel) -> None:
    ids, mask = tiny.token_ids(["a dog barks", "rain", ""], end=True)
    assert ids.shape == mask.shape == (3, 4)
    assert mask.sum(dim=1).tolist() == [4, 2, 1]
    assert [ids[row][mask[row]][-1].item() for row in range(3)] == [2, 2, 2]
    assert (ids[~mask] == tiny.tokenizer.pad_token_id).all()
    assert (ids != tiny.tokenizer.bos_token_id).all()


def test_token_ids_cut_but_keep_the_end_token(tiny: CausalLanguageModel) -> None:
    ids, mask = tiny.token_ids(["a dog barks " * 100, "rain"], end=True, max_tokens=10)
    assert ids.shape == (2, 10)
    assert ids[0, -1] == ids[1, 1] == 2
    plain, _ = tiny.token_ids(["a dog barks " * 100], max_tokens=10)
    assert torch.equal(plain[0, :9], ids[0, :9])
    assert plain[0, 9] != 2
    assert mask[1].tolist() == [True] * 2 + [False] * 8


def test_token_ids_of_nothing(tiny: CausalLanguageModel) -> None:
    assert tiny.token_ids([])[0].shape == (0, 0)
    assert tiny.token_ids(["", ""])[0].shape == (2, 0)


# -- wrap --------------------------------------------------------------------------------------------------------


def inputs(model: CausalLanguageModel, captions: list[str] | None = None) -> dict[str, Any]:
    torch.manual_seed(1)
    masks = torch.tensor([[True, True, True, True], [True, False, True, False], [False, False, False, True]])
    return {
        "prefix": torch.randn(3, 4, model.embed_dim),
        "prefix_mask": masks,
        "before": model.token_ids(["user: a", "user: a dog", "user:"]),
        "after": model.token_ids([" assistant:", " describe the sound:", ""]),
        "caption": None if captions is None else model.token_ids(captions, end=True),
    }


def rows_alone(parts: dict[str, Any], row: int) -> dict[str, Any]:
    """One clip of the batch, without any masked position."""
    alone: dict[str, Any] = {}
    mask = parts["prefix_mask"][row]
    alone["prefix"], alone["prefix_mask"] = parts["prefix"][row : row + 1, mask], mask[mask][None]
    for name in ("before", "after", "caption"):
        if parts[name] is None:
            alone[name] = None
        else:
            ids, real = parts[name][0][row], parts[name][1][row]
            alone[name] = (ids[real][None], real[real][None])
    return alone


CAPTIONS = ["a dog barks", "rain falls loudly on", "bell"]


@pytest.mark.parametrize("keep_gaps", [True, False])
def test_wrap_puts_the_parts_in_order(tiny: CausalLanguageModel, keep_gaps: bool) -> None:
    parts = inputs(tiny, CAPTIONS)
    text = tiny.wrap(**parts, keep_gaps=keep_gaps)
    embed = tiny.model.get_input_embeddings()
    assert text.inputs_embeds.shape[:2] == text.attention_mask.shape == text.labels.shape
    for row in range(3):
        alone = rows_alone(parts, row)
        wanted = [embed(torch.tensor([1])), embed(alone["before"][0][0]), alone["prefix"][0]]
        wanted += [embed(alone["after"][0][0]), embed(alone["caption"][0][0])]
        real = text.attention_mask[row]
        torch.testing.assert_close(text.inputs_embeds[row][real], torch.cat(wanted))
        labels = text.labels[row]
        assert labels[labels != -100].tolist() == alone["caption"][0][0].tolist()
        assert (labels[~real] == -100).all()
        assert labels[real][-len(alone["caption"][0][0]) :].tolist() == alone["caption"][0][0].tolist()
        if not keep_gaps:
            assert real.tolist() == [True] * int(real.sum()) + [False] * int((~real).sum())
    if keep_gaps:
        assert text.attention_mask[:, 0].all()
        assert not text.attention_mask[2, 3:6].any()


def test_wrap_without_caption_has_no_labels(tiny: CausalLanguageModel) -> None:
    assert (tiny.wrap(**inputs(tiny)).labels == -100).all()


@pytest.mark.parametrize("keep_gaps", [True, False])
def test_wrap_passes_gradients_to_the_prefix(tiny: CausalLanguageModel, keep_gaps: bool) -> None:
    parts = inputs(tiny, CAPTIONS)
    parts["prefix"].requires_grad_()
    tiny.loss(tiny.wrap(**parts, keep_gaps=keep_gaps)).backward()
    gradient = parts["prefix"].grad.abs().sum(dim=2)
    assert torch.equal(gradient > 0, parts["prefix_mask"])


# -- loss --------------------------------------------------------------------------------------------------------


def test_loss_of_a_padded_batch_is_that_of_its_tokens(tiny: CausalLanguageModel) -> None:
    parts = inputs(tiny, CAPTIONS)
    for smoothing in (0.0, 0.1):
        total, count = torch.zeros(()), 0
        for row in range(3):
            alone = rows_alone(parts, row)
            tokens = alone["caption"][0].shape[1]
            total = total + tokens * tiny.loss(tiny.wrap(**alone), label_smoothing=smoothing)
            count += tokens
        torch.testing.assert_close(tiny.loss(tiny.wrap(**parts), label_smoothing=smoothing), total / count)


def test_loss_is_float32_on_a_bfloat16_model() -> None:
    model = language(dtype="bfloat16")
    loss = model.loss(model.wrap(**inputs(model, CAPTIONS)))
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


# -- generate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("keep_gaps", [True, False])
def test_padding_does_not_change_what_is_generated(tiny: CausalLanguageModel, num_beams: int, keep_gaps: bool) -> None:
    settings = GenerationSettings(num_beams=num_beams, max_new_tokens=6)
    parts = inputs(tiny)
    together = tiny.generate(tiny.wrap(**parts, keep_gaps=keep_gaps), settings)
    for row in range(3):
        alone = tiny.generate(tiny.wrap(**rows_alone(parts, row)), settings)[0]
        found = together[row][: len(alone)]
        assert found.tolist() == alone.tolist()
        assert (together[row][len(alone) :] == 0).all()


def biased(model: CausalLanguageModel, favourites: dict[int, float]) -> CausalLanguageModel:
    """A model that prefers some tokens whatever it reads."""
    bias = torch.zeros(model.model.config.vocab_size)
    for token, value in favourites.items():
        bias[token] = value
    model.model.lm_head.register_forward_hook(lambda module, args, logits: logits * 0 + bias)
    return model


@pytest.mark.parametrize("num_beams", [1, 4])
def test_a_caption_is_never_empty(num_beams: int) -> None:
    model = biased(language(), {2: 9.0, 50: 5.0})  # would end at once
    text = model.wrap(**inputs(model))
    for shortest in (1, 3):
        ids = model.generate(text, GenerationSettings(num_beams=num_beams, max_new_tokens=8, min_length=shortest))
        assert ids[0].tolist() == [50] * shortest + [2]
        assert len(model.decode(ids)[0].split()) == shortest


@pytest.mark.parametrize("num_beams", [1, 4])
def test_every_clip_stops_on_its_own(num_beams: int) -> None:
    model = biased(language(), {50: 5.0})

    def end_the_second_clip(module: Any, args: Any, logits: Tensor) -> Tensor:
        logits[num_beams : 2 * num_beams, -1, 2] = 9.0
        return logits

    model.model.lm_head.register_forward_hook(end_the_second_clip)
    ids = model.generate(model.wrap(**inputs(model)), GenerationSettings(num_beams=num_beams, max_new_tokens=5))
    assert ids.tolist() == [[50] * 5, [50, 2, 0, 0, 0], [50] * 5]


def test_a_caption_without_end_token_is_kept_whole() -> None:
    model = biased(language(), {50: 5.0})
    ids = model.generate(model.wrap(**inputs(model)), GenerationSettings(num_beams=2, max_new_tokens=5))
    assert ids.tolist() == [[50] * 5] * 3
    word = model.tokenizer.decode([50])
    assert [text.replace(" ", "") for text in model.decode(ids)] == [word * 5] * 3


def test_decode_leaves_out_special_tokens_and_double_spaces(tiny: CausalLanguageModel) -> None:
    ids = tiny.token_ids(["a dog barks"])[0]
    noisy = torch.cat([torch.tensor([[1]]), ids, torch.tensor([[2, 0, 0]])], dim=1)
    assert tiny.decode(noisy) == ["a dog barks"]
    assert tiny.decode(torch.zeros(2, 0, dtype=torch.long)) == ["", ""]


def test_generation_ignores_training_settings_of_the_model(tiny: CausalLanguageModel) -> None:
    model = language()
    model.model.generation_config.update(do_sample=True, temperature=5.0, top_k=3)
    text = model.wrap(**inputs(model))
    settings = GenerationSettings(num_beams=1, max_new_tokens=6)
    expected = tiny.generate(tiny.wrap(**inputs(tiny)), settings)
    for _ in range(3):
        assert torch.equal(model.generate(text, settings), expected)


def test_every_row_stops_at_a_sequence_of_its_own() -> None:
    model = language()
    calls = {"so far": 0}

    def say(module: Any, args: Any, logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -9.0)
        calls["so far"] += 1
        for row, tokens in enumerate(([50, 51, 52, 53, 54], [52, 51, 50, 51, 52], [60, 61, 62, 63, 64])):
            forced[row, -1, tokens[calls["so far"] - 1]] = 9.0
        return forced

    model.model.lm_head.register_forward_hook(say)
    settings = GenerationSettings(num_beams=1, max_new_tokens=5)
    ids = model.generate(model.wrap(**inputs(model)), settings, stop=[(51, 52), (99,)])
    assert ids.tolist() == [[50, 51, 52, 0, 0], [52, 51, 50, 51, 52], [60, 61, 62, 63, 64]]
    assert ends_with(torch.tensor([[1, 2], [2, 1]]), [(1,), (1, 2, 3)]).tolist() == [False, True]


def test_drawn_tokens_follow_the_generator_and_the_settings(tiny: CausalLanguageModel) -> None:
    text = tiny.wrap(**inputs(tiny))
    settings = GenerationSettings(num_beams=1, max_new_tokens=6)

    def drawn(seed: int, **sampling: Any) -> Tensor:
        torch.manual_seed(seed)
        return tiny.generate(text, settings, sampling=SamplingSettings(**sampling))

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert torch.equal(drawn(0, top_k=1), drawn(1, top_p=1e-6))
    assert torch.equal(drawn(0, top_k=1), tiny.generate(text, settings))


def test_an_end_is_known_in_every_spelling(tiny: CausalLanguageModel) -> None:
    (sign,) = tiny.tokenizer("#", add_special_tokens=False).input_ids
    behind = tiny.tokenizer("a#", add_special_tokens=False).input_ids[1]
    spelled = tiny.end_sequences("##")
    assert {sequence[0] for sequence in spelled} <= {sign, behind}
    assert all(len(sequence) == 2 for sequence in spelled)
    assert tiny.end_sequences("\n") == ()


def test_foreign_embeddings_stand_where_their_codes_do(tiny: CausalLanguageModel) -> None:
    ids = torch.tensor([[5, -1, -1, 6], [-2, 7, -1, 8]])
    one, two = torch.randn(3, 16), torch.randn(1, 1, 16, requires_grad=True)
    text = tiny.interleave(ids, ids != 0, ids, {-1: one, -2: two})
    known = tiny.model.get_input_embeddings()(torch.tensor([5, 6, 7, 8]))
    assert torch.equal(text.inputs_embeds[0], torch.stack([known[0], one[0], one[1], known[1]]))
    assert torch.equal(text.inputs_embeds[1], torch.stack([two[0, 0], known[2], one[2], known[3]]))
    text.inputs_embeds.sum().backward()
    assert two.grad is not None
    assert torch.equal(two.grad, torch.ones_like(two))
    assert torch.equal(tiny.interleave(ids, ids != 0, ids, {-1: one, -2: two}, last=2).labels, ids[:, -2:])
    with pytest.raises(ShapeError, match="2 foreign embeddings for 3 places"):
        tiny.interleave(ids, ids != 0, ids, {-1: one[:2], -2: two})


# -- building ----------------------------------------------------------------------------------------------------


def save_tokenizer(folder: Path, *left_out: str) -> str:
    from transformers import PreTrainedTokenizerFast

    whole = word_piece_tokenizer()
    kinds = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    kept = {kind: token for kind, token in kinds.items() if kind not in left_out}
    PreTrainedTokenizerFast(tokenizer_object=whole.backend_tokenizer, **kept).save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_without_pad_token_gets_one_and_the_embeddings_grow(tmp_path: Path) -> None:
    size = len(word_piece_tokenizer())
    model = language(tokenizer=save_tokenizer(tmp_path, "pad_token"), config={**LLAMA, "vocab_size": size})
    assert model.tokenizer.pad_token_id == size
    assert model.model.get_input_embeddings().num_embeddings == size + 1
    assert model.model.get_output_embeddings().out_features == size + 1
    ids, mask = model.token_ids(["a dog barks", "rain"])
    assert ids[~mask].tolist() == [size, size]
    assert torch.isfinite(model.loss(model.wrap(**inputs(model, CAPTIONS))))


def test_a_tokenizer_without_pad_token_may_pad_with_its_end(tmp_path: Path) -> None:
    size = len(word_piece_tokenizer())
    folder = save_tokenizer(tmp_path, "pad_token")
    model = language(tokenizer=folder, config={**LLAMA, "vocab_size": size}, pad_with_end=True)
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    assert model.model.get_input_embeddings().num_embeddings == size
    assert language(pad_with_end=True).tokenizer.pad_token == "<pad>"


def test_a_tokenizer_without_end_token_is_refused(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, "eos_token")
    with pytest.raises(ConfigError, match=r"language.tokenizer: .* has no eos token, and captions could not end; set "):
        language(tokenizer=folder)


def test_a_tokenizer_without_begin_token_starts_with_the_prompt(tmp_path: Path, tiny: CausalLanguageModel) -> None:
    model = language(tokenizer=save_tokenizer(tmp_path, "bos_token"))
    with_begin, without = tiny.wrap(**inputs(tiny, CAPTIONS)), model.wrap(**inputs(model, CAPTIONS))
    torch.testing.assert_close(without.inputs_embeds, with_begin.inputs_embeds[:, 1:])
    assert torch.equal(without.labels, with_begin.labels[:, 1:])
    assert torch.isfinite(model.loss(without))
    ids = model.generate(model.wrap(**inputs(model)), GenerationSettings(num_beams=2, max_new_tokens=4))
    assert all(model.decode(ids))


def test_a_pad_token_that_is_the_end_token_is_still_learned(tmp_path: Path) -> None:
    # As users of Llama 3 and GPT-2 set it; the released rule, no label on pad ids, would never teach the end.
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=word_piece_tokenizer().backend_tokenizer, pad_token="</s>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    model = language(tokenizer=str(tmp_path))
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id
    text = model.wrap(**inputs(model, CAPTIONS))
    assert (text.labels == model.tokenizer.eos_token_id).sum(dim=1).tolist() == [1, 1, 1]


def test_from_a_folder(tiny: CausalLanguageModel, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    again = language(source=str(tmp_path))
    text = tiny.wrap(**inputs(tiny, CAPTIONS))
    torch.testing.assert_close(again.loss(text), tiny.loss(text))
    assert again.tokenizer("a dog barks").input_ids == tiny.tokenizer("a dog barks").input_ids
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"^model.init_args.language.tokenizer: cannot load"):
        language(source=str(tmp_path))
    with pytest.raises(WeightsError, match=r"^model.init_args.language.source: cannot load"):
        language(source="no/such-model", tokenizer=save_tokenizer(tmp_path / "other"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, r"give a source, or a config with a model_type such as llama"),
        ({"hidden_size": 8}, r"give a source, or a config with a model_type"),
        ({"model_type": "nope"}, r"language.config: Unrecognized model identifier: nope"),
        ({"model_type": "clip"}, r"language.config: Unrecognized configuration class"),
    ],
)
def test_configs_that_are_no_language_model(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        language(config=config)
    assert len(str(caught.value)) < 250


def test_a_model_without_lora_targets_says_what_it_has() -> None:
    config = {"model_type": "ctrl", "n_embd": 8, "dff": 8, "n_layer": 1, "n_head": 2}
    with pytest.raises(
        ConfigError,
        match=r"model.init_args.language.lora.targets: .* named q_proj or v_proj; this model has .*Wk, Wq, Wv",
    ):
        language(config=config, training="lora")
    assert trained(language(config=config, training="lora", lora=LoRASettings(rank=2, targets=("Wq",))))


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama-2": {"model_type": "llama", "intermediate_size": 24, **SMALL},
    "llama-3": {
        "model_type": "llama",
        "intermediate_size": 24,
        "num_key_value_heads": 1,
        "rope_theta": 500_000.0,
        "rms_norm_eps": 1e-5,
        **SMALL,
    },
    "qwen2": {"model_type": "qwen2", "intermediate_size": 24, "num_key_value_heads": 1, **SMALL},
    "qwen3": {"model_type": "qwen3", "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, **SMALL},
    "mistral": {"model_type": "mistral", "intermediate_size": 24, "num_key_value_heads": 1, **SMALL},
    "opt": {"model_type": "opt", "ffn_dim": 24, "word_embed_proj_dim": 16, "dropout": 0.0, **SMALL},
    "gpt2": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "gpt_neox": {"model_type": "gpt_neox", "intermediate_size": 24, **SMALL},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_and_captions_behind_a_prefix(family: str) -> None:
    model = language(config=FAMILIES[family], training="lora", lora=LORA)
    parts = inputs(model, CAPTIONS)
    parts["prefix"].requires_grad_()
    loss = model.loss(model.wrap(**parts))
    loss.backward()
    assert torch.equal(parts["prefix"].grad.abs().sum(dim=2) > 0, parts["prefix_mask"])
    adapters = trained(model)
    assert len(adapters) in (2 * 2, 2 * 2 * 2)  # two layers with one or two adapted linears
    for name, parameter in adapters.items():
        assert parameter.grad is not None
        assert "lora_A" in name or parameter.grad.abs().sum() > 0, name
    total = sum(
        model.loss(model.wrap(**rows_alone(parts, row))).item() * int(parts["caption"][1][row].sum())
        for row in range(3)
    )
    assert loss.item() == pytest.approx(total / int(parts["caption"][1].sum()), rel=1e-4)
    prompts = {**parts, "caption": None}
    for num_beams in (1, 4):
        settings = GenerationSettings(num_beams=num_beams, max_new_tokens=5)
        together = model.generate(model.wrap(**prompts), settings)
        assert all(model.decode(together))
        for row in range(3):
            alone = model.generate(model.wrap(**rows_alone(prompts, row)), settings)[0]
            assert together[row][: len(alone)].tolist() == alone.tolist(), (family, num_beams)


@pytest.mark.parametrize("family", ["llama-2", "gpt2", "opt"])
def test_a_sequence_longer_than_the_model(family: str) -> None:
    model = language(config=FAMILIES[family])
    long = inputs(model, ["a dog barks " * 30] * 3)
    with pytest.raises(
        ConfigError, match=r"^1\d\d tokens do not fit into the 64 positions of the language model: shorten"
    ):
        model.wrap(**long)
    nearly = {**inputs(model), "after": model.token_ids(["a dog barks " * 16] * 3)}
    text = model.wrap(**nearly)
    room = 64 - text.attention_mask.shape[1]
    assert 0 < room < 10
    biased(model, {50: 5.0})
    assert model.generate(text, GenerationSettings(num_beams=1, max_new_tokens=20)).shape == (3, room)
    with pytest.raises(ConfigError, match="65 tokens do not fit into the 64 positions"):
        model.generate(
            model.wrap(**{**nearly, "before": model.token_ids(["a " * (len(nearly["before"][0][0]) + room)] * 3)}),
            GenerationSettings(),
        )


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "is for a frozen base from a file; give a source, or quantisation none"),
        ({"source": "x", "training": "full"}, ".* give training frozen or lora, or quantisation none"),
    ],
)
def test_quantisation_that_does_not_go_with_the_rest(
    options: dict[str, Any], message: str, bits: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"^model.init_args.language.quantisation: {bits} {message}"):
        language(quantisation=bits, tokenizer=save_tokenizer(tmp_path), **options)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantisation_without_its_package_names_the_extra(tiny: CausalLanguageModel, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path)
    tiny.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(MissingExtraError, match=r"'bitsandbytes', which is not installed: .*avcap-zoo\[quantisation\]"):
        language(source=str(tmp_path), quantisation="4bit")


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the extra quantisation")
@pytest.mark.parametrize(("bits", "dtype"), [("4bit", torch.uint8), ("8bit", torch.int8)])
def test_quantised_is_close_and_trains_adapters(bits: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = {**LLAMA, "hidden_size": 128, "intermediate_size": 192}
    whole = language(config=config)
    whole.model.save_pretrained(tmp_path)
    whole.tokenizer.save_pretrained(tmp_path)
    model = language(source=str(tmp_path), quantisation=bits, training="lora", lora=LORA)
    assert model.model.model.layers[0].self_attn.k_proj.weight.dtype == dtype
    parts = inputs(model, CAPTIONS)
    loss = model.loss(model.wrap(**parts))
    assert loss.item() == pytest.approx(whole.loss(whole.wrap(**parts)).item(), rel=0.02)
    loss.backward()
    assert all(p.grad is not None for p in trained(model).values())
    model.load_state_dict({name: p.detach().clone() for name, p in trained(model).items()}, strict=False)
    assert torch.equal(model.loss(model.wrap(**parts)), loss)


LORA = LoRASettings(rank=2, alpha=4, dropout=0.0)


def trained(model: CausalLanguageModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("training", ["frozen", "lora", "full"])
def test_what_is_trained_and_in_which_dtype(training: str) -> None:
    model = language(training=training, lora=LORA, dtype="bfloat16")
    parts = trained(model)
    assert all(parameter.dtype == torch.float32 for parameter in parts.values())
    if training == "lora":
        assert len(parts) == 2 * 2 * 2
        assert all("lora_" in name for name in parts)
        assert model.model.get_input_embeddings().weight.dtype == torch.bfloat16
    else:
        assert len(parts) == (0 if training == "frozen" else len(list(model.parameters())))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_checkpointing_gives_the_same_gradients(dtype: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = language(training="lora", lora=LORA, gradient_checkpointing=checkpointing, dtype=dtype).train()
        assert model.model.is_gradient_checkpointing == checkpointing
        torch.manual_seed(2)
        for name, parameter in trained(model).items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        text = model.wrap(**inputs(model, CAPTIONS))
        text.inputs_embeds = text.inputs_embeds.detach()  # reentrant checkpoints would leave adapters without gradients
        model.loss(text).backward()
        gradients.append({name: parameter.grad for name, parameter in trained(model).items()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.abs().sum() > 0, name
        again = gradients[1][name]
        assert again is not None
        assert torch.equal(gradient, again), name


def test_checkpointing_recomputes() -> None:
    model = language(training="lora", lora=LORA, gradient_checkpointing=True).train()
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.model.model.layers[0].mlp.register_forward_pre_hook(count)
    loss = model.loss(model.wrap(**inputs(model, CAPTIONS)))
    assert calls == 1
    loss.backward()
    assert calls == 2


def test_attention_may_take_a_flash_kernel() -> None:
    assert language().model.config._attn_implementation == "sdpa"
