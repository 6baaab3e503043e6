"""A local chat model of transformers that answers questions in text: entity matching and the rewriting of captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch


class TooLongError(Exception):
    """The question does not fit into the model."""


class ChatModel:
    """Any causal language model with its tokenizer; decoding is greedy, weights are loaded at the first question.

    A tokenizer without chat template gets Vicuna's `###Human: ... ###Assistant:`, and answers end at `###`.

    Args:
        source: hub id or folder.
        dtype: of the weights.
        max_new_tokens: longest answer.
        max_prompt_tokens: longest question. None = what is left of the positions of the model's config.
        key: option or configuration key that named the source, for messages.
    """

    def __init__(
        self,
        source: str,
        dtype: Literal["float32", "bfloat16"] = "bfloat16",
        *,
        max_new_tokens: int = 256,
        max_prompt_tokens: int | None = None,
        key: str,
    ) -> None:
        self.source, self.dtype, self.key = source, dtype, key
        self.max_new_tokens, self.max_prompt_tokens = max_new_tokens, max_prompt_tokens
        self.device = torch.device("cpu")

    def answer(self, conversations: Sequence[Sequence[Mapping[str, str]]]) -> list[str]:
        """What the model writes next in each conversation, in one batch.

        Args:
            conversations: each a list of {"role", "content"}; the first may be of the role `system`, then `user` and
                `assistant` take turns and `user` is last.

        Returns:
            A text each, without what follows an end sign.

        Raises:
            TooLongError: a conversation has more tokens than the model takes.
            WeightsError: the model cannot be loaded.
        """
        tokenizer, model = self._loaded
        ids = [self._tokens(messages) for messages in conversations]
        longest = self.max_prompt_tokens
        if longest is None:
            positions = getattr(model.config, "max_position_embeddings", None)
            longest = None if positions is None else positions - self.max_new_tokens
        most = max(map(len, ids))
        if longest is not None and most > longest:
            raise TooLongError(f"the question has {most} tokens, too many for {self.source}")
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # On the left, so that every answer begins in one place. What is masked may be any token.
        filled = [[padding or 0] * (most - len(each)) + each for each in ids]
        real = [[0] * (most - len(each)) + [1] * len(each) for each in ids]
        with torch.inference_mode():
            made = model.generate(
                input_ids=torch.tensor(filled, device=self.device),
                attention_mask=torch.tensor(real, device=self.device),
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=padding,
            )
        written: list[str] = tokenizer.batch_decode(made[:, most:], skip_special_tokens=True)
        return [text.split("###")[0] for text in written]

    def _tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        tokenizer = self._loaded[0]
        ids: list[int]
        if getattr(tokenizer, "chat_template", None):
            prompt = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            ids = tokenizer(prompt, add_special_tokens=False).input_ids
        else:
            ids = tokenizer(_as_chat(messages)).input_ids
        return ids

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from avcap_zoo.backbones.pretrained import dtype_option, load_part, load_pretrained

        tokenizer = load_part(AutoTokenizer, self.source, self.key)
        weights = getattr(torch, self.dtype)
        model = load_pretrained(AutoModelForCausalLM, self.source, self.key, **dtype_option(weights))
        return tokenizer, model.to(self.device).eval()


def _as_chat(messages: Sequence[Mapping[str, str]]) -> str:
    names = {"user": "Human: ", "assistant": "Assistant: ", "system": ""}
    return "###".join([*(f"{names[turn['role']]}{turn['content']}" for turn in messages), "Assistant:"])
