from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avcap_zoo.data_modules.media.duration import read_duration_s
from avcap_zoo.errors import MediaError
from tests.unit.data_modules.media_files import encode, numbered_frames, tone, write_sound


def test_sound_and_video_say_how_long_they_are(tmp_path: Path) -> None:
    assert read_duration_s(write_sound(tmp_path / "a.wav", tone(1.5)), "a") == 1.5
    video = tmp_path / "a.mp4"
    video.write_bytes(encode(numbered_frames(12), np.stack([tone(1.2)])))
    assert read_duration_s(video, "a") == pytest.approx(1.2, abs=0.1)


def test_a_file_written_to_a_pipe_is_measured_by_its_packets(tmp_path: Path) -> None:
    video = tmp_path / "a.mkv"
    video.write_bytes(encode(numbered_frames(20), container="matroska", to_pipe=True))
    assert read_duration_s(video, "a") == pytest.approx(2.0, abs=0.11)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "no such file"), (b"nothing", "not readable as sound or video")]
)
def test_what_has_no_length_is_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=rf"clip 7 \(.*a\.mp4\): {reason}"):
        read_duration_s(tmp_path / "a.mp4", "7")
