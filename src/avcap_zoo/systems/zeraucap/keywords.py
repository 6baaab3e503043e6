"""Words that a sound is compared with: AudioSet's labels or a list of one's own, and the nearest ones to each clip.

`audioset_labels.csv` is AudioSet's `class_labels_indices.csv` (Gemmeke et al. 2017; columns index, mid, display_name;
sha256 cdd1049833c4b86127c2773ac0d14a2754b6a6d0d1798002ed5c66e699708429). AudioSet's page gives CC BY 4.0 for the data
set and CC BY-SA 4.0 for its ontology.
"""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

from torch import Tensor

from avcap_zoo.errors import ConfigError, DataError, ShapeError

AUDIOSET = "audioset"
"""The name of the list that comes with the package."""


def audioset_labels() -> list[str]:
    """Display names of AudioSet's 527 classes, in the order of their indices."""
    text = files("avcap_zoo.systems.zeraucap").joinpath("audioset_labels.csv").read_text(encoding="utf-8")
    return [row["display_name"] for row in csv.DictReader(text.splitlines())]


def split_labels(labels: list[str]) -> list[str]:
    """Keywords of labels: each is split at its commas, also those within brackets; order and duplicates are kept.

    AudioSet's 527 labels give 614 keywords, 611 of them distinct: "Inside" comes three times, and "Roaring cats (lions"
    and "tigers)" are two.

    Args:
        labels: such as "Chirp, tweet".

    Source: released code of ZerAuCap (arXiv 2311.08396).
    """
    return [part.strip() for label in labels for part in label.split(",")]


def read_keywords(source: str | Path) -> list[str]:
    """The keywords of a source.

    Args:
        source: `audioset`, or a UTF-8 text file with one keyword per line. Of a file, white space around a keyword,
            empty lines, and repeats (the first stays) are left out; a byte order mark is skipped; commas are kept.

    Returns:
        At least one keyword.

    Raises:
        ConfigError: the file does not exist or is a folder.
        DataError: it is no UTF-8 text, or holds no keyword.
    """
    if source == AUDIOSET:
        return split_labels(audioset_labels())
    path = Path(source)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(
            f"keywords.source: {path} {what}; give a text file with one keyword per line, or {AUDIOSET!r}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"keyword file {path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}; save it so"
        ) from error
    keywords = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not keywords:
        raise DataError(f"keyword file {path} holds no keyword; give one per line, or set num_keywords to 0")
    return keywords


def check_num_keywords(num_keywords: int, available: int) -> None:
    """Refuse to name more keywords than there are.

    Raises:
        ConfigError: the number is negative, or larger than the list.
    """
    if not 0 <= num_keywords <= available:
        raise ConfigError(f"keywords.num_keywords is {num_keywords}, the list has {available}; wanted 0 to {available}")


def nearest_keywords(clips: Tensor, keywords: Tensor, num_keywords: int) -> Tensor:
    """Indices of the keywords nearest to each clip.

    Args:
        clips: (B, D) unit vectors.
        keywords: (N, D) unit vectors.
        num_keywords: l, 0 to N.

    Returns:
        (B, l) int64, nearest first; copies of a keyword are equally near and may both be among them.

    Raises:
        ShapeError: the embeddings differ in width.
        ConfigError: see `check_num_keywords`.
    """
    if clips.ndim != 2 or keywords.ndim != 2 or clips.shape[1] != keywords.shape[1]:
        raise ShapeError(
            f"clips are {tuple(clips.shape)}, keywords {tuple(keywords.shape)}; wanted two dimensions, one width"
        )
    check_num_keywords(num_keywords, len(keywords))
    return (clips.float() @ keywords.float().T).topk(num_keywords, dim=1).indices
