"""SPIDEr-max: the best SPIDEr among several candidates for each clip."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from avcap_zoo.errors import ConfigError
from avcap_zoo.metrics.scores import CaptionRow, score_captions


def score_spider_max(
    candidates: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[str]], **options: Any
) -> tuple[list[float], dict[str, str]]:
    """Score several candidates per clip.

    Candidates of one place are scored as one corpus; CIDEr's word weights come from the references alone, so they are
    the same for all places. Clips with fewer candidates repeat their first.

    Args:
        candidates: by clip id, at least one each.
        references: by clip id.
        options: of `score_captions`.

    Returns:
        The largest SPIDEr of each clip, sorted by id, and why there is none, as `CaptionReport.missing`.

    Raises:
        ConfigError: every clip has one candidate only, so this would be the mean SPIDEr.
    Source: Labbé et al. 2022, "Is my automatic audio captioning system so bad? SPIDEr-max".
    """
    places = max(map(len, candidates.values()))
    if places == 1:
        raise ConfigError(
            'spider_max needs several candidates per clip, found one for each: write {"id": ..., "candidates": [...]}'
        )
    best = dict.fromkeys(sorted(candidates), math.nan)
    for place in range(places):
        rows = [
            CaptionRow(clip_id, texts[place] if place < len(texts) else texts[0], tuple(references[clip_id]))
            for clip_id, texts in candidates.items()
        ]
        report = score_captions(rows, **{**options, "metrics": ("cider", "spice")})
        if "spider" in report.missing:
            return [], {"spider_max": report.missing["spider"]}
        for clip_id, scores in report.per_clip.items():
            best[clip_id] = _larger(best[clip_id], scores["spider"])
    return list(best.values()), {}


def _larger(one: float, other: float) -> float:
    """The larger one; of a number and NaN, the number."""
    return other if math.isnan(one) else one if math.isnan(other) else max(one, other)
