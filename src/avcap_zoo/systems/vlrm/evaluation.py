"""What is measured of captions beside likeness to references: whether they find their picture, and their wording."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from avcap_zoo.batch import Batch
from avcap_zoo.metrics.contrast import ContrastModel
from avcap_zoo.metrics.recall import RetrievalScores
from avcap_zoo.systems.vlrm.alignment import comparable, find_phrases, find_repeated_words, find_words, find_years
from avcap_zoo.systems.vlrm.captioner import Captioner
from avcap_zoo.systems.vlrm.model import middle_frames
from avcap_zoo.systems.vlrm.rewards import BadPhrases, RepeatedWords, mean_log_prob, read_list

_KEY = "model.init_args.recall"


@dataclass
class RecallSettings:
    """The CLIP model that captions are looked up with; of OpenCLIP (`pip install 'avcap-zoo[clip]'`).

    Args:
        model: OpenCLIP architecture.
        checkpoint: weight file, or OpenCLIP's name of published weights; None = random.
        config: embed_dim, vision_cfg and text_cfg of a model of any size, in place of `model`.
        dtype: of its weights.
        max_characters: captions are cut to so many.
        validation: whether validation looks captions up, too.

    Source: VLRM, section 4, after IC3 (arXiv 2302.01328).
    """

    model: str = "ViT-g-14"
    checkpoint: str | None = "laion2b_s12b_b42k"
    config: dict[str, Any] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_characters: int = 300
    validation: bool = False


class RecallJudge:
    """Embeds pictures and captions of a split as they come. No module: no checkpoint shall hold the judge.

    Args:
        settings: see `RecallSettings`.
        device: where to embed.
    """

    def __init__(self, settings: RecallSettings, device: torch.device) -> None:
        self.settings = settings
        self.scores = RetrievalScores()
        self._model = ContrastModel(settings.model, settings.checkpoint, settings.config, settings.dtype, _KEY)
        self._model.to(device)

    def look_up(self, batch: Batch, captions: Sequence[str]) -> None:
        """Remember the embeddings of a batch's pictures and captions.

        Raises:
            ConfigError: the batch has no pictures.
        """
        with torch.autocast(self._model.mean.device.type, enabled=False):
            cut = [caption[: self.settings.max_characters] for caption in captions]
            self.scores.update(batch.clip_ids, *self._model(middle_frames(batch), cut))


@torch.no_grad()
def fluency(captioner: Captioner, captions: Sequence[str], batch_size: int = 256) -> float:
    """Mean over captions of the mean log-probability of their tokens under the language model alone.

    It is the reference reward of the captions read anew; 0 would be certain.
    """
    found = []
    for start in range(0, len(captions), batch_size):
        rows = [
            torch.tensor([*captioner.tokenizer(text, add_special_tokens=False).input_ids, captioner.end_id])
            for text in captions[start : start + batch_size]
        ]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=captioner.pad_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        tokens, mask = tokens.to(captioner.mean.device), mask.to(captioner.mean.device)
        found.append(mean_log_prob(captioner.text_log_probs(tokens, mask).float(), mask))
    return float(torch.cat(found).mean())


def wording(captions: Sequence[str]) -> dict[str, float]:
    """Numbers of the captions of a split.

    Returns:
        `caption_words`: mean words per caption.
        `colour_captions`: share of captions with a colour word of `colours.txt`.
        `colour_words`: mean colour words per caption.
        `colour_coverage`: share of the words of `colours.txt` that stand in any caption. The paper's Table 4 gives a
            colour coverage without a definition.
        `repeated_words`: mean number per caption of words that stood before, as the reward counts them.
        `bad_phrases`: mean number per caption of phrases of the paper's Table 6, and of years.
    """
    if not captions:
        return {}
    bad, repeated = BadPhrases(), RepeatedWords()
    colours = {comparable(word) for word in read_list("colours.txt")}
    compared = [comparable(caption) for caption in captions]
    words = [[match.what for match in find_words(text)] for text in compared]
    coloured = [[word for word in row if word in colours] for row in words]
    count = len(captions)
    return {
        "caption_words": sum(map(len, words)) / count,
        "colour_captions": sum(map(bool, coloured)) / count,
        "colour_words": sum(map(len, coloured)) / count,
        "colour_coverage": len({word for row in coloured for word in row}) / len(colours),
        "repeated_words": sum(len(find_repeated_words(text, repeated.exempt)) for text in compared) / count,
        "bad_phrases": sum(len(find_phrases(text, bad.phrases)) + len(find_years(text)) for text in compared) / count,
    }
