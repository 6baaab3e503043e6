"""Which sampled tokens a word or a phrase of the text belongs to, for any tokenizer.

Everything is counted in bytes of the decoded text, because a byte-level token may be a part of one character.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")
_YEAR = re.compile(r"(?<![0-9])[0-9]{4}(?![0-9])")


@dataclass(frozen=True)
class Match:
    """A stretch of a text: what it is, and its first and past-the-last character."""

    what: str
    start: int
    end: int


@dataclass(frozen=True)
class AlignedText:
    """A text and the bytes of it that each token covers.

    Attributes:
        text: as decoded; bytes that are no UTF-8 are U+FFFD.
        compared: the same characters in lower case, with straight apostrophes; what words are looked for in.
        offsets: first byte of each character, and the number of bytes at the end.
        spans: first and past-the-last byte of each token without its leading white space; empty for a token that
            belongs to nothing (white space alone, the end token, padding).
    """

    text: str
    compared: str
    offsets: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def tokens_within(self, matches: Iterable[Match]) -> list[bool]:
        """For each token whether any match overlaps it."""
        stretches = [(self.offsets[m.start], self.offsets[m.end]) for m in matches]
        return [any(begin < end and begin < e and s < end for s, e in stretches) for begin, end in self.spans]


def align(pieces: Sequence[bytes]) -> AlignedText:
    """Align a text with its tokens.

    Args:
        pieces: the bytes of each token; b"" for tokens that are not part of the text.
    """
    text, offsets = _decode(b"".join(pieces))
    spans = []
    begin = 0
    for piece in pieces:
        end = begin + len(piece)
        spans.append((_skip_white_space(text, offsets, begin, end), end))
        begin = end
    return AlignedText(text, comparable(text), offsets, tuple(spans))


def comparable(text: str) -> str:
    """Lower case and straight apostrophes, character by character, so that positions stay."""
    straight = text.replace("\u2019", "'")
    if straight.isascii():
        return straight.lower()
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in straight)


def find_words(compared: str) -> list[Match]:
    """Runs of letters and digits, joined inside by single hyphens and apostrophes."""
    return [Match(m.group(), m.start(), m.end()) for m in _WORD.finditer(compared)]


def find_repeated_words(compared: str, exempt: frozenset[str]) -> list[Match]:
    """Words that stood in the text before, except exempt ones."""
    seen: set[str] = set()
    repeated = []
    for word in find_words(compared):
        if word.what in seen and word.what not in exempt:
            repeated.append(word)
        seen.add(word.what)
    return repeated


def find_phrases(compared: str, phrases: Iterable[str]) -> list[Match]:
    """Every occurrence of every phrase; an end that is a letter or digit must not touch another one.

    Args:
        compared: text from `comparable`.
        phrases: the same way, none empty.
    """
    matches = []
    for phrase in phrases:
        start = compared.find(phrase)
        while start >= 0:
            end = start + len(phrase)
            inside_left = start > 0 and compared[start - 1].isalnum() and phrase[0].isalnum()
            inside_right = end < len(compared) and compared[end].isalnum() and phrase[-1].isalnum()
            if not (inside_left or inside_right):
                matches.append(Match(phrase, start, end))
            start = compared.find(phrase, start + 1)
    return sorted(matches, key=lambda m: (m.start, m.end))


def find_years(compared: str) -> list[Match]:
    """Four digits that no other digit touches."""
    return [Match(m.group(), m.start(), m.end()) for m in _YEAR.finditer(compared)]


class TokenBytes:
    """The bytes that each token adds to the decoded text.

    Byte-level vocabularies (GPT-2, OPT, Llama 3) are looked up in a table. Where the table does not give what the
    tokenizer decodes, and for every other kind of tokenizer, beginnings of the sequence are decoded one by one.

    Args:
        tokenizer: of transformers.
        end_id: the token that ends a caption; it is no part of the text even if it is no special token.
    """

    def __init__(self, tokenizer: Any, end_id: int) -> None:
        self.tokenizer = tokenizer
        self.silent = frozenset([end_id, *tokenizer.all_special_ids])
        self._cache: dict[int, bytes | None] = {}

    def __call__(self, ids: Sequence[int]) -> list[bytes]:
        """Bytes of each token of a sequence."""
        pieces = [b"" if token in self.silent else self._looked_up(token) for token in ids]
        known = [piece for piece in pieces if piece is not None]
        if len(known) == len(pieces) and b"".join(known).decode("utf-8", "replace") == self._decode(ids):
            return known
        return self._by_prefixes(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        spoken = [token for token in ids if token not in self.silent]
        text: str = self.tokenizer.decode(spoken, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _looked_up(self, token: int) -> bytes | None:
        if token not in self._cache:
            table = _bytes_of_characters()
            piece = self.tokenizer.convert_ids_to_tokens(token)
            known = isinstance(piece, str) and all(c in table for c in piece)
            self._cache[token] = bytes(table[c] for c in piece) if known else None
        return self._cache[token]

    def _by_prefixes(self, ids: Sequence[int]) -> list[bytes]:
        """What each token adds to the decoded text; tokens that are parts of one character share its bytes."""
        whole = self._decode(ids).encode()
        ends: list[int] = []
        waiting: list[int] = []  # tokens that have begun a character and not finished it
        for index, token in enumerate(ids):
            start = ends[-1] if ends else 0
            text = self._decode(ids[: index + 1])
            end = max(start, _shared_length(text.encode(), whole))
            if end > start:
                for nth, other in enumerate(waiting, 1):
                    ends[other] = min(start + nth, end)
                waiting = []
            elif token not in self.silent and text.endswith("\ufffd"):
                waiting.append(index)
            ends.append(end)
        ends[-1:] = [len(whole)] * bool(ends)
        return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _shared_length(one: bytes, other: bytes) -> int:
    """How many bytes two texts begin with in common."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """The characters by which byte-level vocabularies spell bytes: printable Latin-1 itself, the others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _decode(content: bytes) -> tuple[str, tuple[int, ...]]:
    """Text and the first byte of each of its characters, and the number of bytes."""
    if content.isascii():
        return content.decode(), tuple(range(len(content) + 1))
    # Bytes that are no UTF-8 become lone surrogates, one for each byte, so that lengths add up.
    characters = content.decode("utf-8", "surrogateescape")
    offsets = [0]
    for character in characters:
        offsets.append(offsets[-1] + len(character.encode("utf-8", "surrogateescape")))
    return "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in characters), tuple(offsets)


def _skip_white_space(text: str, offsets: Sequence[int], begin: int, end: int) -> int:
    """First byte of a token that is not in a leading white-space character, at most `end`."""
    while begin < end:
        index = bisect.bisect_right(offsets, begin) - 1
        if not text[index].isspace():
            return begin
        begin = min(end, offsets[index + 1])
    return end
