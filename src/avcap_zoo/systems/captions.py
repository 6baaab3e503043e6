"""What systems that caption share: captions and scores in validation and test, their output files, explanations."""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from avcap_zoo import __version__
from avcap_zoo.backbones.language import is_shared_out
from avcap_zoo.batch import Batch, ClipSource
from avcap_zoo.metrics.captions import CaptionScores
from avcap_zoo.systems.base import OptimizerSettings, System
from avcap_zoo.systems.predictions import SortedRows, ids_put_down, merge
from avcap_zoo.weights.fingerprint import fingerprint

Stage = Literal["val", "test"]
_SHOWN_CAPTIONS = 3


@dataclass
class ScoreSettings:
    """Which scores are computed when.

    Args:
        validation: after each validation; `cider` is needed by the shipped configs, which choose checkpoints by it.
            None at all, so that clips need no references, is [].
        test: after `lightning test`; [] as above.
        tokenizer: `auto`, `ptb` or `python`.
        strict: a score that cannot be computed is an error instead of being left out.
    """

    validation: tuple[str, ...] = ("bleu", "rouge_l", "cider")
    test: tuple[str, ...] = ("bleu", "rouge_l", "cider", "meteor", "spice")
    tokenizer: Literal["auto", "ptb", "python"] = "auto"
    strict: bool = False


@dataclass
class Explanation:
    """What a system shows of how it came to one caption.

    Attributes:
        clip_id: the clip.
        caption: its caption.
        picture: (H, W, 3) uint8 picture, or None.
        text: lines for a terminal, or "".
        page: a fragment of HTML, or "".
    """

    clip_id: str
    caption: str
    picture: NDArray[np.uint8] | None = None
    text: str = ""
    page: str = ""


class CaptionSystem(System):
    """Base of the systems that caption.

    Beside what `System` asks for, a subclass gives
    - `caption(batch)`: one caption per clip;
    - `decode_settings()`: recorded beside every predicted caption;
    - `explain(batch)` and `look_inside(batch)`: pictures of what it does, if it has any.

    Validation and test score the captions; test and predict write JSON lines into the run's folder.

    Args:
        optimizer: see `OptimizerSettings`.
        scores: see `ScoreSettings`.
        init_args: all arguments of the subclass, for the checkpoint.
    """

    def __init__(self, optimizer: OptimizerSettings, scores: ScoreSettings, init_args: Mapping[str, Any]) -> None:
        super().__init__(optimizer, init_args)
        self.score_settings = scores
        self._scores: CaptionScores | None = None
        self._rows: list[dict[str, Any]] = []
        self._predictions: SortedRows | None = None

    @abstractmethod
    def caption(self, batch: Batch) -> list[str]:
        """One caption per clip of the batch."""

    @abstractmethod
    def decode_settings(self) -> dict[str, Any]:
        """What the captions depend on beside the weights."""

    def explain(self, batch: Batch) -> list[Explanation]:
        """Caption each clip and show how the captions came about; by default there is nothing to show."""
        return [Explanation(i, c) for i, c in zip(batch.clip_ids, self.caption(batch), strict=True)]

    def look_inside(self, batch: Batch) -> None:
        """Log a picture of what the system does with the first validation batch; nothing by default."""

    def observe(self, batch: Batch, captions: list[str], stage: Stage) -> None:
        """See each batch of validation or test with its captions, for `further_scores`; nothing by default."""

    def further_scores(self, rows: list[dict[str, Any]], stage: Stage) -> dict[str, float]:
        """Scores beside those of likeness to the references; none by default.

        Args:
            rows: `id`, `caption` and `references` of all clips, of all processes.
            stage: `val` or `test`.
        """
        return {}

    # Steps

    def setup(self, stage: str) -> None:
        """Check as in the base; predictions take up what an earlier run has left."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        self._predictions = None
        if stage == "predict" and isinstance(data, ClipSource):
            data.captioned_before = self._captioned_before

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Caption and remember; look inside once per validation."""
        self._caption_and_score(batch, "val")
        looks = self.trainer.is_global_zero and not is_shared_out(self)  # one process alone would wait for the others
        if batch_idx == 0 and len(batch) and looks and not self.trainer.sanity_checking:
            self.look_inside(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Caption and remember."""
        self._caption_and_score(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Caption; references are not needed."""
        captions = self.caption(batch) if len(batch) else []
        assert self._predictions is not None
        self._predictions.add([{"id": i, "caption": c} for i, c in zip(batch.clip_ids, captions, strict=True)])
        return captions

    def on_validation_epoch_start(self) -> None:
        """Forget the last scores."""
        self._start_scoring(self.score_settings.validation)

    def on_test_epoch_start(self) -> None:
        """Forget the last scores."""
        self._start_scoring(self.score_settings.test)

    def on_predict_epoch_start(self) -> None:
        """Forget the last captions."""
        if self._predictions is None:  # nobody can say whether an earlier run had the same data
            folder = Path(self.trainer.default_root_dir) / "predicting"
            if self.trainer.is_global_zero:
                shutil.rmtree(folder, ignore_errors=True)
            self.trainer.strategy.barrier()
            self._predictions = SortedRows(folder)

    def on_validation_epoch_end(self) -> None:
        """Score the captions and show some of them."""
        if self.trainer.sanity_checking:
            return
        scores = {} if self._scores is None else self._scores.compute()
        scores |= self.further_scores(self._gathered_rows(), "val")
        for name, value in scores.items():
            # The value is the same on every rank; sync_dist only keeps Lightning from warning.
            self.log(f"val/{name}", value, prog_bar=name == "cider", sync_dist=True)
        rank_zero_info("\n".join(self._sample_lines()))
        self._log_text("val/captions", "  \n".join(self._sample_lines()))

    def on_test_epoch_end(self) -> None:
        """Score the captions; write `test_captions.jsonl` and `test_scores.json`."""
        gathered = self._gathered_rows()
        scores = {} if self._scores is None else self._scores.compute()
        scores |= self.further_scores(gathered, "test")
        self.log_dict({f"test/{name}": value for name, value in scores.items()}, sync_dist=True)
        per_clip = {} if self._scores is None else self._scores.per_clip
        rows = [{**row, "scores": per_clip.get(row["id"], {})} for row in gathered]
        self._write_rows("test_captions.jsonl", rows)
        data = getattr(self.trainer, "datamodule", None)
        official = data.num_official("test") if isinstance(data, ClipSource) else len(rows)
        summary = {
            "scores": scores,
            "missing_scores": {} if self._scores is None else self._scores.missing,
            "tokenizer": None if self._scores is None else self._scores.tokenizer_used,
            "clips_scored": len(rows),
            "clips_official": official,
            "clips_skipped": sorted(data.skipped.get("test", {})) if isinstance(data, ClipSource) else [],
            "data": data.describe_split("test") if isinstance(data, ClipSource) else None,
            **self.provenance(),
        }
        if self.trainer.is_global_zero:
            (self._folder() / "test_scores.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    def on_predict_epoch_end(self) -> None:
        """Write `predictions.jsonl`: id, caption, decode settings, versions."""
        assert self._predictions is not None
        self.put_predictions_down()
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            path = self._folder() / "predictions.jsonl"
            count = merge(self._predictions.folder, path, self.provenance())
            rank_zero_info(f"{count} captions written to {path}")

    def put_predictions_down(self) -> None:
        """Write the captions that this process holds in memory where the next run finds them.

        Raises:
            DataError: they cannot be written.
        """
        if self._predictions is not None:
            self._predictions.put_down()

    def _captioned_before(self) -> set[str]:
        """Ids that a stopped run of the same weights, settings and clips has captioned; all processes must ask."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        clips = data.fingerprint(data.predict_split) if self.trainer.is_global_zero else ""
        name = self.trainer.strategy.broadcast(f"predicting-{self.maker(self.decoding, clips)}")
        self._predictions = SortedRows(Path(self.trainer.default_root_dir) / name)
        done = ids_put_down(self._predictions.folder)
        if done:
            rank_zero_info(f"{len(done)} clips were captioned before an earlier run was stopped ({name})")
        return done

    # Output

    def _start_scoring(self, names: tuple[str, ...]) -> None:
        if not names:
            self._scores = None
        elif self._scores is None or self._scores.metrics != names:
            settings = self.score_settings
            self._scores = CaptionScores(names, tokenizer=settings.tokenizer, strict=settings.strict)
        if self._scores is not None:
            self._scores.reset()
        self._rows = []

    def _caption_and_score(self, batch: Batch, stage: Stage) -> None:
        if len(batch) == 0:
            return
        captions = self.caption(batch)
        if self._scores is not None:
            self._scores.update(batch.clip_ids, captions, batch.captions)
        self.observe(batch, captions, stage)
        rows = zip(batch.clip_ids, captions, batch.captions, strict=True)
        self._rows += [{"id": i, "caption": c, "references": r} for i, c, r in rows]

    def _sample_lines(self) -> list[str]:
        lines = [f"after step {self.global_step}:"]
        for row in self._rows[:_SHOWN_CAPTIONS]:
            lines.append(f"  {row['id']}  {row['caption']}")
            lines += [f"  {'':{len(row['id'])}}  ({reference})" for reference in row["references"][:1]]
        return lines

    def _gathered_rows(self) -> list[dict[str, Any]]:
        """Rows of all processes, each id once, in order of id."""
        gathered = [self._rows]
        if self.trainer.world_size > 1:
            gathered = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self._rows)
        unique = {row["id"]: row for rows in gathered for row in rows}
        return [unique[key] for key in sorted(unique)]

    def _write_rows(self, name: str, rows: list[dict[str, Any]]) -> None:
        if not self.trainer.is_global_zero:
            return
        path = self._folder() / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        rank_zero_info(f"{len(rows)} captions written to {path}")

    def maker(self, *further: Any) -> str:
        """16 hexadecimal digits that change with weights, settings, and further things that captions depend on."""
        parts = [type(self).__name__, self.init_args, fingerprint(self.state_dict()), *further]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def provenance(self) -> dict[str, Any]:
        """What is written beside captions: system, decode settings, versions."""
        versions = {name: version(name) for name in ("lightning", "torch", "transformers")}
        return {
            "system": type(self).__name__,
            "decode": self.decode_settings(),
            "versions": {"avcap_zoo": __version__, **versions},
        }
