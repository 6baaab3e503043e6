"""The data module of a row, and single clips of it as files that a page can hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avcap_zoo.data_modules.base import CaptionDataModule

_RATE_HZ = 16_000
_PICTURES = 4
_SIDE_PX = 160


@dataclass(frozen=True)
class ClipMedia:
    """What a page shows of a clip: its sound as MP3 (or None) and some of its pictures as JPEG."""

    sound: bytes | None
    pictures: tuple[bytes, ...]


def data_module(section: Mapping[str, Any]) -> CaptionDataModule:
    """Build what the key `data` of a merged configuration describes.

    Raises:
        AvcapError: its arguments are refused.
    """
    return _data_module(json.dumps(section, sort_keys=True))


@lru_cache(maxsize=32)
def _data_module(section: str) -> CaptionDataModule:
    # Only here, as below: a page of clips that were decoded before needs neither torch nor lightning.
    from avcap_zoo.cli.parser import PARSER_MODE, CaptionArgumentParser, set_up_parsing
    from avcap_zoo.data_modules.base import CaptionDataModule

    set_up_parsing()
    parser = CaptionArgumentParser(prog="avcap reproduce", allow_abbrev=False, parser_mode=PARSER_MODE)
    parser.add_argument("--data", type=CaptionDataModule, required=True, sub_configs=True)
    data: CaptionDataModule = parser.instantiate(parser.parse_object({"data": json.loads(section)})).data
    return data


def clip_media(section: Mapping[str, Any], clip_ids: Sequence[str], folder: Path) -> dict[str, ClipMedia]:
    """Sound and pictures of test clips, from `folder` where an earlier call left them.

    Args:
        section: the key `data` of a merged configuration.
        clip_ids: of the test split; those that are not there are left out.
        folder: for the files.
    """
    stems = {clip_id: folder / _hash([section, clip_id]) for clip_id in clip_ids}
    wanted = {clip_id for clip_id, stem in stems.items() if not _index_of(stem).is_file()}
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
        for clip_id, media in _decode(data_module(section), wanted):
            _write(stems[clip_id], media)
    return {clip_id: _read(stem) for clip_id, stem in stems.items() if _index_of(stem).is_file()}


def _decode(data: CaptionDataModule, wanted: set[str]) -> Iterator[tuple[str, ClipMedia]]:
    from avcap_zoo.data_modules.dataset import ClipDataset
    from avcap_zoo.data_modules.media.encoding import encode_jpg, encode_mp3
    from avcap_zoo.data_modules.records import PackedRecords

    decode = replace(
        data.decode,
        sample_rate_hz=_RATE_HZ,
        num_frames=min(_PICTURES, data.num_frames),
        image_size_px=_SIDE_PX,
        on_error="skip",
        prefer_features=False,
        caches={},
    )
    data.setup("test")
    records = data.records("test")
    for record in (records[index] for index in range(len(records))):
        if record.clip_id in wanted:
            sample = ClipDataset(PackedRecords([record]), decode, seed=0, training=False)[0, 0]
            frames = [] if sample.frames is None else [frame.permute(1, 2, 0).numpy() for frame in sample.frames]
            sound = None if sample.waveform is None else encode_mp3(sample.waveform.numpy(), _RATE_HZ)
            yield record.clip_id, ClipMedia(sound, tuple(encode_jpg(frame) for frame in frames))


def _index_of(stem: Path) -> Path:
    return stem.with_suffix(".json")


def _write(stem: Path, media: ClipMedia) -> None:
    if media.sound is not None:
        stem.with_suffix(".mp3").write_bytes(media.sound)
    for number, picture in enumerate(media.pictures):
        stem.with_suffix(f".{number}.jpg").write_bytes(picture)
    _index_of(stem).write_text(json.dumps({"sound": media.sound is not None, "pictures": len(media.pictures)}))


def _read(stem: Path) -> ClipMedia:
    index = json.loads(_index_of(stem).read_text())
    return ClipMedia(
        stem.with_suffix(".mp3").read_bytes() if index["sound"] else None,
        tuple(stem.with_suffix(f".{number}.jpg").read_bytes() for number in range(index["pictures"])),
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
