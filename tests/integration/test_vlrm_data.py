"""VLRM learns from pictures of every kind of folder, good and bad ones."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import seed_everything
from PIL import Image

from avcap_zoo.data_modules.base import CaptionDataModule
from avcap_zoo.data_modules.coco import COCODataModule
from avcap_zoo.data_modules.images import ImagesDataModule
from avcap_zoo.systems.captions import ScoreSettings
from tests.integration.tiny import tiny_trainer
from tests.unit.systems.vlrm import toy

SETTINGS: dict[str, Any] = {"image_size_px": 16, "batch_size": 4}


def picture(seed: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path) -> CaptionDataModule:
    for index in range(9):
        path = root / f"part{index % 2}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(index))
    return ImagesDataModule(str(root), **SETTINGS)


def shards(root: Path) -> CaptionDataModule:
    root.mkdir()
    for shard in range(2):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as file:
            for index in range(5):
                content = encoded(10 * shard + index)
                member = tarfile.TarInfo(f"{shard}{index}.png")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return ImagesDataModule(str(root), images_per_epoch=8, shuffle_buffer=4, **SETTINGS)


def coco(scenes_root: Path) -> CaptionDataModule:
    return COCODataModule(str(scenes_root / "coco"), with_captions=False, **SETTINGS)


def train(data: CaptionDataModule, run: Path, seed: int = 1) -> tuple[list[list[str]], dict[str, float]]:
    """Clips of each of two iterations, and what was logged."""
    seed_everything(seed, verbose=False)
    system = toy.system(toy.CHEAP)
    seen: list[list[str]] = []
    step = system.training_step

    def training_step(batch: Any, batch_idx: int) -> None:
        seen.append(list(batch.clip_ids))
        step(batch, batch_idx)

    system.training_step = training_step  # type: ignore[method-assign]
    trainer = tiny_trainer(run, max_steps=2, limit_val_batches=0)
    trainer.fit(system, datamodule=data)
    assert trainer.global_step == 2
    return seen, {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("kind", ["folder", "shards", "coco"])
def test_two_iterations_on_pictures_alone(kind: str, tmp_path: Path, scenes_root: Path) -> None:
    runs = []
    for attempt, seed in enumerate((3, 3, 4)):
        root = tmp_path / f"{kind}{attempt}"
        data = coco(scenes_root) if kind == "coco" else {"folder": folder, "shards": shards}[kind](root)
        data.seed = seed
        runs.append(train(data, tmp_path / f"run{attempt}"))
    (first, logged), (again, _), (other, _) = runs
    assert [len(ids) for ids in first] == [4, 4]
    assert first == again
    assert first != other
    assert all(np.isfinite(value) for value in logged.values())


def test_odd_pictures_train_and_broken_ones_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    picture(0, mode="L").save(root / "gray.png")
    picture(1, mode="RGBA").save(root / "transparent.png")
    picture(2, mode="CMYK").save(root / "print.jpg")
    picture(3, (1, 1)).save(root / "dot.png")
    picture(4, (20_000, 2)).save(root / "wide.png")
    picture(5).save(root / "plain.jpg")
    (root / "cut.jpg").write_bytes((root / "plain.jpg").read_bytes()[:300])
    (root / "empty.png").touch()
    data = ImagesDataModule(str(root), image_size_px=16, batch_size=8, max_skipped_share=0.5)
    with pytest.warns(UserWarning, match="clips could not be read"):
        seen, logged = train(data, tmp_path / "run")
    assert {clip for ids in seen for clip in ids} == {"gray", "transparent", "print", "dot", "wide", "plain"}
    assert set(data.skipped["train"]) == {"cut", "empty"}
    assert all(np.isfinite(value) for value in logged.values())


def test_pictures_without_captions_are_tested_for_recall(tmp_path: Path) -> None:
    from avcap_zoo.systems.vlrm.evaluation import RecallSettings

    folder(tmp_path / "pictures")
    data = ImagesDataModule(str(tmp_path / "pictures"), whole_set_as="test", **SETTINGS)
    system = toy.system(toy.CHEAP)
    system.score_settings = ScoreSettings(validation=(), test=())
    system.recall = RecallSettings(checkpoint=None, config=toy.CONTRAST)
    trainer = tiny_trainer(tmp_path / "run")
    trainer.test(system, datamodule=data, verbose=False)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert 0 < scores["test/mrr"] <= 1
    assert scores["test/max_rank"] <= 9
    assert "test/cider" not in scores
    assert (tmp_path / "run/test_scores.json").is_file()
