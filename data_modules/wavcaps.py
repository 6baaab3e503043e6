"""WavCaps (Mei et al., TASLP 2024): 403,050 sounds of four sites with machine-written captions, all for training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from avcap_zoo.batch import Modality, Split
from avcap_zoo.data_modules.annotations import Problems, is_safe_id, items_of, objects_of, read_json
from avcap_zoo.data_modules.base import CaptionDataModule, SplitIndex
from avcap_zoo.data_modules.caption_lists import stem_of
from avcap_zoo.data_modules.cropping import CropPolicy
from avcap_zoo.data_modules.media_files import ClipFiles
from avcap_zoo.errors import ConfigError, DataError

PARTS = {
    "AudioSet_SL": "as_final.json",
    "BBC_Sound_Effects": "bbc_final.json",
    "FreeSound": "fsd_final.json",
    "SoundBible": "sb_final.json",
}
"""Part -> its file."""


class WavCapsDataModule(CaptionDataModule):
    """The four JSON files, with the unpacked sounds beside them.

    Expected folder:

        root/json_files/<part>/<file>       {"data": [{"id", "caption", ...}]}; also root/<part>/<file> or root/<file>
        root/waveforms/<part>_flac/<id>.flac    or <part>_flac/, waveforms/<part>/, <part>/; with all sub-folders
        root/json_files/blacklist/*.json    named in `exclude`, if at all

    The parts and their files are AudioSet_SL (as_final.json), BBC_Sound_Effects (bbc_final.json), FreeSound
    (fsd_final.json) and SoundBible (sb_final.json). The clip id is `<part>_<id>`. There is no split but training.

    Args:
        parts: which parts to read.
        exclude: JSON files of ids to leave out, relative to `root`: WavCaps publishes the ids that it shares with the
            test clips of AudioCaps, Clotho and others.
        modalities: sound is all there is.
        max_duration_s: longer sounds are cropped to this; None = never. Some last minutes.
        crop: which part of a longer sound is kept: `start`, `centre`, or `seeded`.
        options: see `CaptionDataModule`.

    Raises:
        ConfigError: an unknown part.
    """

    name = "wavcaps"
    given_modalities: ClassVar[tuple[Modality, ...]] = ("audio",)

    def __init__(
        self,
        root: str | None = None,
        *,
        parts: tuple[str, ...] = tuple(PARTS),
        exclude: tuple[str, ...] = (),
        modalities: tuple[Modality, ...] = ("audio",),
        max_duration_s: float | None = 10.0,
        crop: CropPolicy = "seeded",
        **options: object,
    ) -> None:
        super().__init__(
            root,
            modalities=modalities,
            max_duration_s=max_duration_s,
            crop=crop,
            **options,  # type: ignore[arg-type]
        )
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise ConfigError(f"data.init_args.parts is {list(parts)}, wanted some of {', '.join(PARTS)}")
        self.parts = tuple(parts)
        self.exclude = tuple(exclude)

    def has_validation(self) -> bool:
        """WavCaps is all training data."""
        return False

    def read_split(self, split: Split) -> SplitIndex:
        """Read the parts and look for their sounds.

        Raises:
            DataError: any other split than `train`, a file that is missing or malformed, or unsafe ids.
        """
        if split != "train":
            raise DataError(f"WavCaps has no {split} split; validate and test on AudioCaps or Clotho")
        index = SplitIndex()
        excluded = {clip_id for name in self.exclude for clip_id in _read_excluded(self.root / name)}
        for part in self.parts:
            self._read_part(part, excluded, index)
        return index

    def _read_part(self, part: str, excluded: set[str], index: SplitIndex) -> None:
        places = [self.root / folder / PARTS[part] for folder in (f"json_files/{part}", part, "json_files", "")]
        path = next((place for place in places if place.is_file()), places[0])
        content = read_json(path, hint=f"WavCaps publishes it; or leave {part} out of data.init_args.parts")
        problems = Problems(path)
        files = ClipFiles(
            self.root, sounds=(f"waveforms/{part}_flac", f"{part}_flac", f"waveforms/{part}", part), deep=True
        )
        seen = set()
        for place, item in objects_of(items_of(path, content, "data"), ("id", "caption"), problems):
            clip_id = stem_of(str(item["id"])) if isinstance(item["id"], (str, int)) else ""
            if not is_safe_id(clip_id):
                problems.add(place, f"id {item['id']!r} is no safe id")
            elif not isinstance(item["caption"], str):
                problems.add(place, f"caption {item['caption']!r} is no text")
            elif clip_id in excluded:
                index.leave_out("clips of data.init_args.exclude")
            elif clip_id in seen:
                index.leave_out("entries that name a clip again")
            elif not item["caption"].strip():
                index.missing.append((f"{part}_{clip_id}", "the caption is empty"))
            else:
                seen.add(clip_id)
                files.add(index, f"{part}_{clip_id}", [item["caption"].strip()], [clip_id], self.modalities)
        problems.raise_any()
        index.sources.append(str(path.relative_to(self.root)))


def _read_excluded(path: Path) -> list[str]:
    """Ids of a list, or of an object of lists."""
    content = read_json(path, hint="data.init_args.exclude names it")
    lists: Sequence[object] = list(content.values()) if isinstance(content, dict) else [content]
    if not all(isinstance(entries, list) for entries in lists):
        raise DataError(f"{path} holds neither a list of ids nor an object of such lists")
    return [stem_of(str(entry)) for entries in lists if isinstance(entries, list) for entry in entries]
