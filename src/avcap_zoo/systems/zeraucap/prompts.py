"""The text that a caption continues, and the caption in what the language model has written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from avcap_zoo.decoding.guided import clean_up_spaces

_VOWELS = tuple("aeiouAEIOU")


@dataclass
class KeywordPromptSettings:
    """The prompt around the keywords, and how a caption is read.

    Args:
        grammar: `released`: "Objects: Speech, and a Car. This is a sound of " with an article before the last keyword
            alone, chosen by its first letter, and a trailing space, which becomes a token of its own. `paper`:
            "Objects: Speech, Car. This is a sound of", without either.
        text: what the caption continues; ends in a space.
        keyword_text: stands before the keywords.
        caption: `continuation`: what follows the prompt. `released`: what follows the last copy of `text` in the whole
            text; when there is none (nothing, or only a full stop, was generated) the whole prompt is the caption.
    """

    grammar: Literal["released", "paper"] = "released"
    text: str = "This is a sound of "
    keyword_text: str = "Objects: "
    caption: Literal["continuation", "released"] = "continuation"


def build_prompt(keywords: Sequence[str], settings: KeywordPromptSettings) -> str:
    """Prompt of one clip.

    Args:
        keywords: l of them, nearest first; may be none.
        settings: see `KeywordPromptSettings`.

    Returns:
        The prompt. With one keyword, the released grammar gives the odd "Objects: , and a Car. ...".

    Source: released code and Fig. 1 of ZerAuCap (arXiv 2311.08396).
    """
    if settings.grammar == "paper":
        listed = f"{settings.keyword_text}{', '.join(keywords)}. " if keywords else ""
        return listed + settings.text.rstrip()
    if not keywords:
        return settings.text
    *first, last = keywords
    article = "an" if last.startswith(_VOWELS) else "a"
    return f"{settings.keyword_text}{', '.join(first)}, and {article} {last}. {settings.text}"


def full_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of a prompt and its continuation, up to the first begin or end token after the leading one.

    Args:
        tokenizer: of the language model.
        ids: prompt, with or without its begin token, and continuation.

    Returns:
        Cleaned of the spaces that decoding leaves; runs of white space are one space, none at the ends.
    """
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    rest = list(ids[1:] if len(ids) and ids[0] == tokenizer.bos_token_id else ids)
    stop = next((place for place, token in enumerate(rest) if token in ends), len(rest))
    text = clean_up_spaces(tokenizer.decode(rest[:stop], clean_up_tokenization_spaces=False))
    return " ".join(text.split())


def read_caption(
    tokenizer: Any, prompt_ids: Sequence[int], new_ids: Sequence[int], settings: KeywordPromptSettings
) -> str:
    """The caption of one clip.

    Args:
        tokenizer: of the language model.
        prompt_ids: the prompt as the model saw it.
        new_ids: what it wrote.
        settings: see `KeywordPromptSettings`.

    Returns:
        One line; may be empty. Its full stop stays, letters are not changed.
    """
    if settings.caption == "continuation":
        return full_text(tokenizer, [tokenizer.bos_token_id, *new_ids])
    text = full_text(tokenizer, [*prompt_ids, *new_ids])
    marker = settings.text.rstrip() if settings.grammar == "paper" else settings.text
    return text.split(marker)[-1].strip() if marker else text
