"""COCO (Lin et al., 2014; captions: Chen et al., 2015): pictures with five captions, in its three usual splits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from avcap_zoo.batch import Modality, Split
from avcap_zoo.data_modules.annotations import Problems, items_of, objects_of, read_json, relative_path_problem
from avcap_zoo.data_modules.base import CaptionDataModule, SplitIndex
from avcap_zoo.data_modules.media_files import ClipFiles
from avcap_zoo.errors import DataError

Annotations = Literal["karpathy", "karpathy_lists", "captions"]
PICTURE_FOLDERS = tuple(
    f"{above}{split}{year}" for above in ("", "images/") for year in (2014, 2017) for split in ("train", "val", "test")
)

_DIGITS = re.compile(r"(\d+)(?:\.\w+)?\Z")

Pictures = dict[str, tuple[str, list[str]]]
"""Clip id -> path or name of the picture, and its captions."""


class COCODataModule(CaptionDataModule):
    """Pictures of COCO 2014 or 2017 with or without captions.

    Expected folder:

        root/dataset_coco.json                               Karpathy's split: `karpathy`
          or root/annotations/coco_karpathy_{train,val,test}.json   the same as three lists: `karpathy_lists`
          or root/annotations/captions_{train,val}<year>.json       COCO's own split, without test: `captions`
        root/{train,val,test}<year>/*.jpg                    or root/images/...

    Each of these files may lie in `root` or in `root/annotations`. A picture named as in the release of 2014 is also
    found under its name in that of 2017, and the other way round. The clip id is COCO's image id.

    Args:
        annotations: which of the files to read; None = the first of those above that is there.
        year: of `captions_*`: 2014 or 2017.
        use_restval: join Karpathy's 30,504 `restval` pictures to the training split, as is usual. The lists always
            hold them.
        with_captions: False gives the pictures alone, also those that have no captions.
        modalities: pictures are all there is.
        num_frames: frames per picture; more than one are alike.
        options: see `CaptionDataModule`.
    """

    name = "coco"
    given_modalities: ClassVar[tuple[Modality, ...]] = ("visual",)

    def __init__(
        self,
        root: str | None = None,
        *,
        annotations: Annotations | None = None,
        year: int = 2014,
        use_restval: bool = True,
        with_captions: bool = True,
        modalities: tuple[Modality, ...] = ("visual",),
        num_frames: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(root, modalities=modalities, num_frames=num_frames, **options)
        self.annotations = annotations
        self.year = year
        self.use_restval = use_restval
        self.with_captions = with_captions

    def read_split(self, split: Split) -> SplitIndex:
        """Read the annotations of a split and look for its pictures.

        Raises:
            DataError: no annotations, missing keys, paths that lead elsewhere; all problems of a file at once.
        """
        kind, path = self._annotation_file(split)
        index = SplitIndex(sources=[str(path.relative_to(self.root))])
        if kind == "karpathy":
            joined = ["restval"] if split == "train" and self.use_restval else []
            pictures = read_karpathy(path, {split, *joined}, index)
        elif kind == "karpathy_lists":
            pictures = read_karpathy_list(path)
        else:
            pictures = read_captions(path, index)
        files = ClipFiles(self.root, pictures=PICTURE_FOLDERS)
        for clip_id, (name, texts) in pictures.items():
            captions = [text.strip() for text in texts if text.strip()] if self.with_captions else []
            if captions or not self.with_captions:
                files.add(index, clip_id, captions, _stems(name, clip_id), self.modalities)
            else:
                index.missing.append((clip_id, "no caption"))
        return index

    def _annotation_file(self, split: Split) -> tuple[Annotations, Path]:
        names: dict[Annotations, str] = {
            "karpathy": "dataset_coco.json",
            "karpathy_lists": f"coco_karpathy_{split}.json",
            "captions": f"captions_{split}{self.year}.json",
        }
        kinds = [kind for kind in names if self.annotations in {None, kind}]
        places = [(kind, self.root / folder / names[kind]) for kind in kinds for folder in ("", "annotations")]
        found = next((place for place in places if place[1].is_file()), None)
        if found is None:
            wanted = " or ".join(names[kind] for kind in kinds)
            raise DataError(
                f"{self.root} holds no {wanted}, nor does its folder annotations; COCO's own split has no captions "
                f"for test, Karpathy's has"
            )
        return found


def read_karpathy(path: Path, splits: set[str], index: SplitIndex) -> Pictures:
    """Pictures of some splits of dataset_coco.json.

    Args:
        path: the file.
        splits: out of train, restval, val, test.
        index: counts the pictures that are named again.

    Raises:
        DataError: no such file, missing keys, or paths that lead elsewhere.
    """
    problems = Problems(path)
    found: Pictures = {}
    content = items_of(path, read_json(path, hint="put Karpathy's split there"), "images")
    for place, item in objects_of(content, ("filename", "split", "sentences"), problems):
        name = item["filename"]
        if item.get("filepath") and isinstance(name, str):
            name = f"{item['filepath']}/{name}"
        if item["split"] not in splits:
            continue
        if problem := relative_path_problem(name):
            problems.add(place, problem)
        elif not isinstance(item["sentences"], list) or not all(
            isinstance(sentence, dict) and isinstance(sentence.get("raw"), str) for sentence in item["sentences"]
        ):
            problems.add(place, f"sentences of {name!r} are no list of objects with raw")
        else:
            captions = [sentence["raw"] for sentence in item["sentences"]]
            _take(found, str(item.get("cocoid", _image_id(name))), name, captions, index, problems, place)
    problems.raise_any()
    return found


def read_karpathy_list(path: Path) -> Pictures:
    """Pictures of coco_karpathy_{train,val,test}.json: one object per caption, or one per picture with all of them.

    Raises:
        DataError: no such file, missing keys, paths that lead elsewhere, or captions that are no text.
    """
    problems = Problems(path)
    found: Pictures = {}
    content = items_of(path, read_json(path, hint="put the list there"))
    for place, item in objects_of(content, ("image", "caption"), problems):
        name, given = item["image"], item["caption"]
        captions = given if isinstance(given, list) else [given]
        if problem := relative_path_problem(name):
            problems.add(place, problem)
        elif not all(isinstance(caption, str) for caption in captions):
            problems.add(place, f"caption {str(given)[:60]!r} is no text and no list of texts")
        else:
            _, known = found.setdefault(_image_id(name), (name, []))
            known += captions
    problems.raise_any()
    return found


def read_captions(path: Path, index: SplitIndex) -> Pictures:
    """Pictures of captions_*.json, or of an image_info file without annotations.

    Args:
        path: the file.
        index: counts pictures that are named again, and captions of pictures that are not listed.

    Raises:
        DataError: no such file, missing keys, paths that lead elsewhere, or captions that are no text.
    """
    problems = Problems(path)
    content = read_json(path, hint="unpack COCO's annotations there")
    found: Pictures = {}
    for place, item in objects_of(items_of(path, content, "images"), ("id", "file_name"), problems):
        if problem := relative_path_problem(item["file_name"]):
            problems.add(place, problem)
        else:
            _take(found, str(item["id"]), item["file_name"], [], index, problems, place)
    annotations = content.get("annotations", [])
    for place, item in objects_of(
        annotations if isinstance(annotations, list) else [], ("image_id", "caption"), problems
    ):
        if not isinstance(item["caption"], str):
            problems.add(f"annotation of {place}", f"caption {item['caption']!r} is no text")
        elif str(item["image_id"]) not in found:
            index.leave_out("captions of pictures that are not listed")
        else:
            found[str(item["image_id"])][1].append(item["caption"])
    problems.raise_any()
    return found


def _take(
    found: Pictures, clip_id: str, name: str, captions: list[str], index: SplitIndex, problems: Problems, place: str
) -> None:
    if not clip_id.isascii() or not clip_id.isdigit():
        problems.add(place, f"image id {clip_id!r} is no number")
    elif clip_id in found:
        index.leave_out("pictures that are named again")
    else:
        found[clip_id] = (name, captions)


def _image_id(name: str) -> str:
    """The number at the end of a file name, without leading zeros."""
    digits = _DIGITS.search(name)
    return str(int(digits[1])) if digits else name.rpartition("/")[2]


def _stems(name: str, clip_id: str) -> list[str]:
    """Names of a picture in the releases of 2014 and of 2017."""
    stem = name.rpartition("/")[2].rpartition(".")[0] or name
    return [stem, *(f"COCO_{part}2014_{clip_id:0>12}" for part in ("train", "val", "test")), f"{clip_id:0>12}"]
