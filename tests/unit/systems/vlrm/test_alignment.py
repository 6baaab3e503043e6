"""Tokens, words and phrases of captions, for several kinds of tokenizers."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from avcap_zoo.backbones.language import word_piece_tokenizer
from avcap_zoo.systems.vlrm.alignment import (
    TokenBytes,
    align,
    find_phrases,
    find_repeated_words,
    find_words,
    find_years,
)

CORPUS = ["a man in a red shirt", "two dogs near a café in 1993", "a skateboard", "she's on the man's t-shirt"] * 3


def byte_level() -> Any:
    """A tokenizer like OPT's: byte-level BPE whose captions end with a line feed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def byte_fallback() -> Any:
    """A tokenizer like Llama 2's: pieces with a sign for blanks, and bytes for what is in no piece."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁caf", "▁man", "s", "▁"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", ["a man in a red shirt", "a café, two cafés", "naïve 東京 🙂 man", "  two  blanks "])
def test_byte_level_pieces_make_up_the_text(text: str) -> None:
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids("Ċ")
    ids = tokenizer(text).input_ids
    pieces = TokenBytes(tokenizer, end)([*ids, end, tokenizer.pad_token_id])
    assert b"".join(pieces).decode() == text
    assert pieces[-2:] == [b"", b""]
    assert all(pieces[: len(ids)])


def test_the_table_and_the_prefixes_agree() -> None:
    tokenizer = byte_level()
    table = TokenBytes(tokenizer, 0)
    for text in CORPUS[:4]:
        ids = tokenizer(text).input_ids
        assert table._by_prefixes(ids) == table(ids)


def test_a_character_in_several_tokens_belongs_to_all_of_them() -> None:
    tokenizer = byte_fallback()
    ids = [
        tokenizer.convert_tokens_to_ids(p) for p in ("▁a", "▁caf", "<0xC3>", "<0xA9>", "▁a", "▁caf", "<0xC3>", "<0xA9>")
    ]
    pieces = TokenBytes(tokenizer, tokenizer.eos_token_id)(ids)
    assert pieces == [b"a", b" caf", b"\xc3", b"\xa9", b" a", b" caf", b"\xc3", b"\xa9"]
    aligned = align(pieces)
    repeated = find_repeated_words(aligned.compared, frozenset({"a"}))
    assert aligned.tokens_within(repeated) == [False] * 5 + [True] * 3


def test_word_pieces() -> None:
    tokenizer = word_piece_tokenizer()
    ids = tokenizer("a red zebra, a red zebra", add_special_tokens=False).input_ids
    aligned = align(TokenBytes(tokenizer, tokenizer.eos_token_id)([*ids, tokenizer.eos_token_id]))
    assert aligned.text == "a red zebra, a red zebra"
    marked = aligned.tokens_within(find_repeated_words(aligned.compared, frozenset({"a"})))
    half = (len(ids) - 1) // 2
    assert marked == [False] * (half + 2) + [True] * (half - 1) + [False]


def test_bytes_that_are_no_text_are_kept_in_place() -> None:
    aligned = align([b"a", b"\xc3", b" man", b"\xff", b" man"])
    assert aligned.text == "a\ufffd man\ufffd man"
    assert aligned.offsets[-1] == sum(map(len, (b"a", b"\xc3", b" man", b"\xff", b" man")))
    marked = aligned.tokens_within(find_repeated_words(aligned.compared, frozenset()))
    assert marked == [False, False, False, False, True]


def test_white_space_belongs_to_nothing() -> None:
    aligned = align([b"man", b" ", b"\n man", b""])
    assert aligned.spans == ((0, 3), (4, 4), (6, 9), (9, 9))
    assert aligned.tokens_within(find_words(aligned.compared)) == [True, False, True, False]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("camera", []),
        ("the cam, cam", ["cam", "cam"]),
        ("a shotgun", []),
        ("it is , image", [", image"]),
        ("CAMERA’S VIEW", ["camera's view"]),
    ],
)
def test_phrases_stop_at_words(text: str, found: list[str]) -> None:
    aligned = align([text.encode()])
    phrases = ["cam", "shot", ", image", "camera's view"]
    assert [m.what for m in find_phrases(aligned.compared, phrases)] == found


def test_years() -> None:
    assert [m.what for m in find_years("1993, 12345, x2001 and 1990s")] == ["1993", "2001", "1990"]


def test_letters_that_grow_in_lower_case_keep_their_place() -> None:
    aligned = align(["İ man man".encode()])
    assert len(aligned.compared) == len(aligned.text)
    assert [m.start for m in find_repeated_words(aligned.compared, frozenset())] == [6]
