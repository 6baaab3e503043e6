"""The embedded scenes as data modules: generate once, then read like AudioCaps or COCO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avcap_zoo.batch import Split
from avcap_zoo.data_modules.audiocaps import AudioCapsDataModule
from avcap_zoo.data_modules.base import CaptionDataModule, SplitIndex
from avcap_zoo.data_modules.coco import COCODataModule
from avcap_zoo.data_modules.scenes.export import generate_scenes
from avcap_zoo.errors import DataError, first_line


class GeneratedDataModule(CaptionDataModule):
    """A data set that is generated where it is not there yet; a subclass reads one of its formats.

    Args:
        root: folder of the scenes, made if it does not exist; None = `$AVCAP_DATA/<name>`.
        num_train: training items.
        num_val: validation items.
        num_test: test items, of which no setting ever sees one before `test`.
        scene_seed: of the generator.
        scene_size_px: side of the generated pictures.
        options: of the data module that reads the format, and of `CaptionDataModule`.
    """

    scene_format: str

    def __init__(
        self,
        root: str | None = None,
        *,
        num_train: int = 2000,
        num_val: int = 100,
        num_test: int = 300,
        scene_seed: int = 0,
        scene_size_px: int = 64,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        self.counts: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
        self.scene_seed = scene_seed
        self.scene_size_px = scene_size_px
        self.scenes_root = self.root
        self.root = self.scenes_root / self.scene_format

    def prepare_data(self) -> None:
        """Generate what is not there yet, then check the folder."""
        generate_scenes(
            self.scenes_root,
            counts=self.counts,
            formats=(self.scene_format,),
            seed=self.scene_seed,
            image_size_px=self.scene_size_px,
        )
        super().prepare_data()


class ScenesDataModule(GeneratedDataModule, AudioCapsDataModule):
    """Procedural clips in AudioCaps' files, with labelled sounds and boxes beside the captions.

    Arguments: see `GeneratedDataModule`, `AudioCapsDataModule` and `CaptionDataModule`.
    """

    name = "scenes"
    scene_format = "audiocaps"

    def read_split(self, split: Split) -> SplitIndex:
        """Read the split like AudioCaps, and add what was heard and seen when."""
        index = super().read_split(split)
        annotations = _annotations(self.root / "annotations.jsonl", split)
        for record in index.records:
            known = annotations.get(record.clip_id)
            if known is None:
                raise DataError(
                    f"{self.root / 'annotations.jsonl'} lacks clip {record.clip_id}; delete {self.scenes_root}"
                )
            record.duration_s = known["duration_s"]
            record.sounds = known["sounds"]
            record.objects = [
                {key: seen[key] for key in ("label", "onset_s", "offset_s", "box")} for seen in known["objects"]
            ]
        return index


class ScenePicturesDataModule(GeneratedDataModule, COCODataModule):
    """Still pictures of the scenes with captions of what is seen, in COCO's files.

    Each picture has five captions. The last and longest tells object, colour and place of everything and the
    background; the others leave most of that out. Arguments: see `GeneratedDataModule`, `COCODataModule` and
    `CaptionDataModule`.
    """

    name = "scene_pictures"
    scene_format = "coco"


def _annotations(path: Path, split: Split) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; delete the folder above it and run again")
    try:
        with path.open(encoding="utf-8") as file:
            rows = (json.loads(line) for line in file)
            return {row["clip_id"]: row for row in rows if row["split"] == split}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({first_line(error)}); delete the folder above it and run again") from error
