"""Parts of sounds and videos are what stands there in the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from avcap_zoo.data_modules.dataset import ClipDataset, DecodeSettings
from avcap_zoo.data_modules.media.audio import read_audio
from avcap_zoo.data_modules.media.limits import MediaLimits
from avcap_zoo.data_modules.media.video import read_frames
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords
from avcap_zoo.errors import MediaError
from tests.unit.data_modules.media_files import RATE_HZ, encode, numbered_frames, numbers_of, write_sound


def chirp(duration_s: float = 6.0) -> NDArray[np.float32]:
    times = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    rising: NDArray[np.float32] = (0.4 * np.sin(2 * np.pi * (200 + 150 * times) * times)).astype(np.float32)
    return rising


@pytest.mark.parametrize("window_s", [(0.0, 1.0), (2.5, 4.25), (5.5, 9.0)])
def test_a_part_of_a_wav_is_that_part_of_its_samples(tmp_path: Path, window_s: tuple[float, float]) -> None:
    path = write_sound(tmp_path / "a.wav", chirp(), subtype="FLOAT")
    whole = read_audio(path, RATE_HZ, "a")
    first, last = (round(time_s * RATE_HZ) for time_s in window_s)
    np.testing.assert_array_equal(read_audio(path, RATE_HZ, "a", window_s), whole[first:last])


@pytest.mark.parametrize("window_s", [(0.0, 1.0), (2.5, 4.25), (4.0, 5.9)])
def test_a_part_of_a_coded_sound_is_that_part_of_the_whole(tmp_path: Path, window_s: tuple[float, float]) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(encode(None, chirp()[None]))
    whole = read_audio(path, RATE_HZ, "a")
    first, last = (round(time_s * RATE_HZ) for time_s in window_s)
    part = read_audio(path, RATE_HZ, "a", window_s)
    assert len(part) == pytest.approx(last - first, abs=2)
    size = min(len(part), last - first)
    assert np.abs(part[:size] - whole[first:last][:size]).max() < 0.02


def test_a_long_sound_is_read_in_parts_only(tmp_path: Path) -> None:
    limits = MediaLimits(max_duration_s=2)
    path = write_sound(tmp_path / "a.wav", chirp())
    with pytest.raises(MediaError, match="more than 2 s"):
        read_audio(path, RATE_HZ, "a", limits=limits)
    assert len(read_audio(path, RATE_HZ, "a", (4.0, 5.0), limits)) == RATE_HZ


def test_frames_of_a_part_are_those_of_its_time(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(encode(numbered_frames(30)))  # ten a second
    assert numbers_of(read_frames(path, 2, 32, "a", (1.0, 2.0))) == [12, 17]
    assert numbers_of(read_frames(path, 2, 32, "a", (2.0, 9.0))) == [22, 27]
    assert numbers_of(read_frames(path, 3, 32, "a")) == [5, 15, 25]


def test_a_picture_is_seen_in_every_frame(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((40, 50, 3), 77, np.uint8)).save(tmp_path / "a.png")
    frames = read_frames(tmp_path / "a.png", 3, 16, "a")
    assert frames.shape == (3, 3, 16, 16)
    assert (frames == 77).all()


def test_a_record_names_its_part(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(encode(numbered_frames(30), chirp(3.0)[None]))
    record = ClipRecord("a", [], str(path), str(path), window_s=(1.0, 2.0))
    settings = DecodeSettings(RATE_HZ, 2, 32, ("audio", "visual"), "raise")
    sample = ClipDataset(PackedRecords([record]), settings, seed=0, training=False)[0, 0]
    assert sample.waveform is not None
    assert sample.frames is not None
    assert len(sample.waveform) == pytest.approx(RATE_HZ, abs=2)
    assert numbers_of(sample.frames.float()) == [12, 17]
