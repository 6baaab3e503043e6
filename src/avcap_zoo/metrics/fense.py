"""FENSE: how near a caption is to its references in meaning, cut to a tenth where a detector finds broken language.

Both models are read from folders on this disk. Captions go in as they are, not tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avcap_zoo.backbones.pretrained import load_part, load_pretrained
from avcap_zoo.errors import WeightsError
from avcap_zoo.metrics.model_folder import check_folder, load_tokenizer, read_settings
from avcap_zoo.weights.load import load_strictly, load_tensors

ENCODER_OPTION = "--sentence_encoder"
DETECTOR_OPTION = "--error_detector"
HOW_TO_GET_ENCODER = "hf download sentence-transformers/paraphrase-TinyBERT-L6-v2 --local-dir checkpoints/sentence_bert"
HOW_TO_GET_DETECTOR = (
    "hf download google-bert/bert-base-uncased config.json tokenizer.json tokenizer_config.json vocab.txt "
    "--local-dir checkpoints/error_detector && "
    "curl -fL --output-dir checkpoints/error_detector -O "
    "https://github.com/blmoistawinde/fense/releases/download/V0.1/echecker_clotho_audiocaps_base.ckpt"
)
THRESHOLD = 0.9
PENALTY = 0.9
BATCH_SIZE = 32

_LONGEST_ERROR_INPUT = 64
_NOT_A_WORD = re.compile(r"[^\w\s]")
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")

Progress = Callable[[int], None]


class SentenceEncoder(nn.Module):
    """A Sentence-BERT model: mean of the last hidden states over the words.

    Args:
        encoder: transformers model that gives `last_hidden_state`.
        tokenizer: of the encoder.
        max_length: longest text in tokens; None = whatever the tokenizer says.
    """

    def __init__(self, encoder: nn.Module, tokenizer: Any, max_length: int | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> SentenceEncoder:
        """Read a folder as sentence-transformers publishes it.

        Raises:
            WeightsError: no such folder, no or incomplete weights, or another way of pooling than the mean.
        """
        from transformers import AutoModel

        check_folder(folder, ENCODER_OPTION, HOW_TO_GET_ENCODER)
        pooling = read_settings(folder / "1_Pooling" / "config.json")
        modes = {name.removeprefix("pooling_mode_") for name, value in pooling.items() if value is True}
        modes = (modes - {"include_prompt"}) | {str(pooling.get("pooling_mode", "mean"))}
        if not modes <= {"mean", "mean_tokens"}:
            raise WeightsError(f"{ENCODER_OPTION}: {folder} pools by {', '.join(sorted(modes))}, wanted the mean alone")
        others = [path.name for path in sorted(folder.glob("[0-9]_*")) if path.name[2:] not in _KNOWN_MODULES]
        if others:
            raise WeightsError(
                f"{ENCODER_OPTION}: {folder} has layers of its own behind the pooling ({', '.join(others)}), which are "
                "not supported; FENSE's is sentence-transformers/paraphrase-TinyBERT-L6-v2"
            )
        length = read_settings(folder / "sentence_bert_config.json").get("max_seq_length")
        encoder = load_pretrained(AutoModel, str(folder), ENCODER_OPTION, local_files_only=True)
        return cls(encoder, load_tokenizer(folder, ENCODER_OPTION), length)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """(B, C) unit vectors of B texts."""
        device = next(self.encoder.parameters()).device
        options = {"max_length": self.max_length} if self.max_length else {}
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt", **options).to(device)
        hidden = self.encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9), dim=1)


class ErrorDetector(nn.Module):
    """FENSE's detector of broken language: an encoder, and a linear layer on its first token.

    Args:
        encoder: transformers model that gives `last_hidden_state`.
        num_outputs: kinds of errors, the last one being any of them.
        tokenizer: of the encoder.
    """

    def __init__(self, encoder: nn.Module, num_outputs: int, tokenizer: Any) -> None:
        super().__init__()
        self.encoder = encoder
        width: int = encoder.config.hidden_size  # type: ignore[assignment, union-attr]
        self.clf = nn.Linear(width, num_outputs)
        self.tokenizer = tokenizer
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> ErrorDetector:
        """Read a folder with one weight file, FENSE's `echecker_*.ckpt`, and config and tokenizer of its encoder.

        Raises:
            WeightsError: no such folder, not one weight file, or weights that do not fit the config.
        """
        from transformers import AutoConfig, AutoModel

        check_folder(folder, DETECTOR_OPTION, HOW_TO_GET_DETECTOR)
        files = sorted(path for path in folder.iterdir() if path.suffix in {".ckpt", ".safetensors", ".pt", ".bin"})
        if len(files) != 1:
            raise WeightsError(
                f"{DETECTOR_OPTION}: {folder} holds {len(files)} weight files, wanted one: {HOW_TO_GET_DETECTOR}"
            )
        tensors = load_tensors(files[0])
        # Saved by older versions of transformers; not a weight.
        tensors = {name: value for name, value in tensors.items() if name != "encoder.embeddings.position_ids"}
        head = tensors.get("clf.weight")
        if head is None or head.ndim != 2:
            raise WeightsError(f"{files[0]} is no error detector of FENSE: it has no clf.weight")
        config = load_part(AutoConfig, str(folder), DETECTOR_OPTION, local_files_only=True)
        model = cls(AutoModel.from_config(config), head.shape[0], load_tokenizer(folder, DETECTOR_OPTION))
        load_strictly(model, tensors, str(files[0]))
        return model

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """(B,) probability that there is an error in each of B texts."""
        # As aac-metrics, whose numbers are the usual ones: no punctuation, lower case.
        plain = [_NOT_A_WORD.sub("", text).lower() for text in texts]
        options = {"padding": True, "truncation": True, "max_length": _LONGEST_ERROR_INPUT, "return_tensors": "pt"}
        tokens = self.tokenizer(plain, **options).to(self.clf.weight.device)
        logits: Tensor = self.clf(self.encoder(**tokens).last_hidden_state[:, 0])
        return logits[:, -1].sigmoid()


def score_fense(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    encoder: SentenceEncoder,
    detector: ErrorDetector,
    progress: Progress = lambda _: None,
) -> dict[str, list[float]]:
    """Score captions with FENSE.

    Args:
        candidates: B captions; empty ones score 0.
        references: B lists of references.
        encoder: tells how near texts are.
        detector: tells whether a caption is broken.
        progress: called with the number of texts that were read.

    Returns:
        B scores each: `sbert_sim`, the mean cosine with the references; `fluency_error`, 1 where the probability of an
        error is above 0.9; `fense`, sbert_sim times 0.1 where there is an error.
    Source: Zhou et al. 2022 (arXiv 2110.04684).
    """
    texts = list(dict.fromkeys([*candidates, *(text for own in references for text in own)]))
    vectors = dict(zip(texts, _in_batches(encoder, texts, progress), strict=True))
    broken = _in_batches(detector, list(candidates), progress) > THRESHOLD
    scores: dict[str, list[float]] = {"sbert_sim": [], "fluency_error": [], "fense": []}
    for candidate, own, error in zip(candidates, references, broken.tolist(), strict=True):
        cosines = torch.stack([vectors[text] for text in own]) @ vectors[candidate]
        similarity = float(cosines.mean()) if candidate.strip() else 0.0
        scores["sbert_sim"].append(similarity)
        scores["fluency_error"].append(float(error))
        scores["fense"].append(similarity * (1 - PENALTY * error))
    return scores


def num_texts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> int:
    """How many texts `score_fense` reads, for a progress bar."""
    return len({*candidates, *(text for own in references for text in own)}) + len(candidates)


def _in_batches(model: nn.Module, texts: list[str], progress: Progress) -> Tensor:
    found = []
    for start in range(0, len(texts), BATCH_SIZE):
        found.append(model(texts[start : start + BATCH_SIZE]).cpu())
        progress(len(found[-1]))
    return torch.cat(found)
