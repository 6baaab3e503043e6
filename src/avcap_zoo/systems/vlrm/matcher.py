"""BLIP-2's image-text matching model: how well a caption fits an image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avcap_zoo.backbones.language import word_piece_tokenizer
from avcap_zoo.backbones.pretrained import load_part, load_pretrained
from avcap_zoo.errors import ConfigError, WeightsError, first_line
from avcap_zoo.systems.vlrm.keymap import is_lavis, lavis_to_transformers
from avcap_zoo.weights.fingerprint import fingerprint
from avcap_zoo.weights.load import load_strictly, load_tensors

Score = Literal["positive_logit", "logit_difference", "probability"]
LAVIS_NORM_EPS = 1e-5
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_MOST_WORDS = 50


def clean_caption(text: str) -> str:
    """What LAVIS does to a caption before matching: lower case, punctuation to blanks, at most 50 words."""
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split()[:_MOST_WORDS])


def match_scores(logits: Tensor, score: Score) -> Tensor:
    """One number per pair.

    Args:
        logits: (B, Q, 2), index 1 = match.
        score: `positive_logit`: mean over the queries of the logit of a match; `logit_difference`: that minus the
            other's; `probability`: mean over the queries of the probability of a match.

    Returns:
        (B,).
    Source: VLRM, sections 2.2 (probability; its index 0 is LAVIS' index 1) and 3.4 (logit before the softmax).
    """
    if score == "probability":
        return logits.softmax(dim=-1)[..., 1].mean(dim=1)
    mean = logits.mean(dim=1)
    return mean[:, 1] - mean[:, 0] if score == "logit_difference" else mean[:, 1]


class Matcher(nn.Module):
    """transformers' Blip2ForImageTextRetrieval, fed with image tokens of a tower of its own or of the captioner's.

    Args:
        source: hub id or local folder in transformers format; None = weights from `checkpoint` or random.
        config: keys of transformers' Blip2Config, without `source`.
        checkpoint: LAVIS file (`blip2_pretrained.pth`) or transformers-named file for `config`.
        tokenizer: hub id or folder; None = that of `source`, or the built-in word pieces without a source.
        max_length: longest text in BERT tokens, both special ones included.
        norm_eps: of the tower's last layer norm; LAVIS has 1e-5, transformers takes that of the blocks.
        tower: the captioner's image tower, if it is to be shared: it must be the same one.

    Raises:
        WeightsError: something cannot be found or read, does not fit, or the towers differ.
        ConfigError: a config that builds no model.
    """

    def __init__(
        self,
        source: str | None,
        config: dict[str, Any],
        checkpoint: str | None,
        tokenizer: str | None,
        max_length: int,
        norm_eps: float,
        tower: nn.Module | None,
        key: str,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.tokenizer = load_tokenizer(tokenizer or source, key)
        model = load_matching_model(source, config, checkpoint, len(self.tokenizer), key)
        own = model.vision_model
        if tower is not None and (source or checkpoint) and _tower_print(own) != _tower_print(tower):
            raise WeightsError(
                f"{key}: the image tower of {source or checkpoint} is not the captioner's; "
                f"set shares_vision: false to give the matcher one of its own"
            )
        self.norm = own.post_layernorm
        self.norm.eps = norm_eps
        self.tower = own if tower is None else None
        self.query_tokens = model.query_tokens
        self.embeddings = model.embeddings
        self.qformer = model.qformer
        self.itm_head = model.itm_head
        self.eval().requires_grad_(False)

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, L) ids and mask of texts between [CLS] and [SEP], cut to the longest length."""
        rows = token_rows(self.tokenizer, texts, self.max_length)
        return pad_rows(self.tokenizer, rows, self.query_tokens.device)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, P, C) image tokens before the last layer norm, by the matcher's own tower."""
        if self.tower is None:
            raise ConfigError("this matcher shares the captioner's image tower and has none of its own")
        embedded = self.tower.embeddings(pixels.to(self.tower.embeddings.patch_embedding.weight.dtype))
        features: Tensor = self.tower.encoder(inputs_embeds=embedded).last_hidden_state
        return features

    @torch.no_grad()
    def forward(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits of image i with text i.

        Args:
            features: (B, P, C) image tokens before the last layer norm.
            ids: (B, L).
            mask: (B, L) bool.

        Returns:
            (B, Q, 2) for each query; index 1 = match. LAVIS averages them over the queries.
        """
        return pair_logits(self, self.norm(features.to(self.norm.weight.dtype)), ids, mask)


def token_rows(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each text, cut so that there is room for [CLS] and [SEP] in `max_length`."""
    return [tokenizer(text, add_special_tokens=False).input_ids[: max_length - 2] for text in texts]


def pad_rows(tokenizer: Any, rows: Sequence[Sequence[int]], device: torch.device | None) -> tuple[Tensor, Tensor]:
    """(B, L) ids and mask of token ids between [CLS] and [SEP]."""
    first = tokenizer.bos_token_id if tokenizer.cls_token_id is None else tokenizer.cls_token_id
    last = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    whole = [torch.tensor([first, *row, last]) for row in rows]
    ids = nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=tokenizer.pad_token_id)
    lengths = torch.tensor([len(row) for row in whole])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


def pair_logits(model: Any, tokens: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, Q, 2) logits of image i with text i for each query, with gradient; index 1 = match. See `pair_states`."""
    states = pair_states(model, tokens, ids, mask)[:, : model.query_tokens.shape[1]]
    logits: Tensor = model.itm_head(states.to(model.itm_head.weight.dtype))
    return logits


def pair_states(model: Any, tokens: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Last states of the queries and of the text, reading image i and text i together.

    Args:
        model: has `query_tokens`, `embeddings`, `qformer` and `itm_head`: a `Matcher`, or transformers' model.
        tokens: (B, P, C) image tokens after the last layer norm.
        ids: (B, L).
        mask: (B, L) bool.

    Returns:
        (B, Q + L, C).
    """
    queries = model.query_tokens.expand(len(ids), -1, -1)
    num_queries = queries.shape[1]
    embedded = model.embeddings(input_ids=ids, query_embeds=queries)
    real = torch.cat([mask.new_ones(len(ids), num_queries), mask], dim=1).long()
    states: Tensor = model.qformer(
        query_embeds=embedded, query_length=num_queries, attention_mask=real, encoder_hidden_states=tokens
    ).last_hidden_state
    return states


def _tower_print(tower: Any) -> str:
    """Fingerprint of a tower without its last layer norm."""
    return fingerprint({n: t for n, t in tower.state_dict().items() if not n.startswith("post_layernorm.")})


def load_tokenizer(name: str | None, key: str) -> Any:
    """A tokenizer from a hub id or folder; the built-in word pieces without a name."""
    if name is None:
        return word_piece_tokenizer()
    from transformers import AutoTokenizer

    return load_part(AutoTokenizer, name, f"{key}.tokenizer")


def load_matching_model(
    source: str | None, config: dict[str, Any], checkpoint: str | None, vocabulary_size: int, key: str
) -> Any:
    """Blip2ForImageTextRetrieval from a source, from a checkpoint for a config, or with random weights."""
    from transformers import Blip2Config, Blip2ForImageTextRetrieval

    if source is not None:
        return load_pretrained(Blip2ForImageTextRetrieval, source, f"{key}.source")
    keys = dict(config)
    keys["qformer_config"] = {
        "use_qformer_text_input": True,
        "vocab_size": vocabulary_size,
        **keys.get("qformer_config", {}),
    }
    try:
        model = Blip2ForImageTextRetrieval(Blip2Config(**keys))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}.config: {first_line(error)}") from error
    if checkpoint is None:
        nn.init.normal_(model.query_tokens, std=model.config.initializer_range)
        return model
    tensors = load_tensors(checkpoint)
    load_strictly(model, lavis_to_transformers(tensors) if is_lavis(tensors) else tensors, checkpoint)
    return model
