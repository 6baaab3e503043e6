"""Scores that a model gives: FENSE and SPIDEr-FL, CLIPScore; with the pictures read and a progress bar shown."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from avcap_zoo.data_modules.media.image import read_image
from avcap_zoo.metrics.clip_score import load_clip, score_clip
from avcap_zoo.metrics.fense import PENALTY, ErrorDetector, SentenceEncoder, num_texts, score_fense
from avcap_zoo.metrics.scores import CaptionReport, with_scores


def add_fense(
    report: CaptionReport,
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    sentence_encoder: Path,
    error_detector: Path,
    device: torch.device,
) -> CaptionReport:
    """The report with `fense`, its two parts, and `spider_fl` where there is SPIDEr.

    Args:
        report: of the captions.
        captions: by clip id.
        references: by clip id.
        sentence_encoder: folder, see `SentenceEncoder.load`.
        error_detector: folder, see `ErrorDetector.load`.
        device: where the models run.

    Raises:
        WeightsError: a folder cannot be used.
    Source: SPIDEr-FL: DCASE 2023, task 6a.
    """
    encoder, detector = SentenceEncoder.load(sentence_encoder).to(device), ErrorDetector.load(error_detector).to(device)
    candidates, own = _in_order(report, captions, references)
    with tqdm(total=num_texts(candidates, own), desc="FENSE", unit="text", file=sys.stderr, disable=None) as bar:
        scores = score_fense(candidates, own, encoder, detector, bar.update)
    if "spider" in report.corpus:
        spider = [clip["spider"] for clip in report.per_clip.values()]
        errors = scores["fluency_error"]
        scores["spider_fl"] = [value * (1 - PENALTY * error) for value, error in zip(spider, errors, strict=True)]
    return with_scores(report, scores)


def add_clip_score(
    report: CaptionReport,
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    clip: Path,
    pictures: Mapping[str, str],
    device: torch.device,
) -> CaptionReport:
    """The report with `clip_score` and `ref_clip_score`.

    Args:
        report: of the captions.
        captions: by clip id.
        references: by clip id.
        clip: folder, see `load_clip`.
        pictures: files by clip id.
        device: where the model runs.

    Raises:
        WeightsError: the folder cannot be used.
        MediaError: a picture cannot be read.
    """
    model = load_clip(clip).to(device)
    candidates, own = _in_order(report, captions, references)
    ids = list(report.per_clip)

    def picture(place: int) -> Tensor:
        pixels = read_image(Path(pictures[ids[place]]), model.image_size_px, ids[place])
        return torch.from_numpy(pixels.copy())

    with tqdm(total=len(ids), desc="CLIPScore", unit="clip", file=sys.stderr, disable=None) as bar:
        return with_scores(report, score_clip(picture, candidates, own, model, device, bar.update))


def _in_order(
    report: CaptionReport, captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[list[str], list[Sequence[str]]]:
    """Captions and references in the order of the report's clips."""
    return [captions[clip_id] for clip_id in report.per_clip], [references[clip_id] for clip_id in report.per_clip]
