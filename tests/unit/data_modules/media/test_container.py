"""Only files that hold their own sound and pictures are opened."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from avcap_zoo.data_modules.media.container import open_container
from tests.unit.data_modules.media_files import encode, numbered_frames, tone


@pytest.mark.parametrize(
    "name", ["mp4", "ipod", "matroska", "webm", "mpegts", "avi", "adts", "flac", "ogg", "wav", "mp3"]
)
def test_formats_of_media_are_opened(tmp_path: Path, name: str) -> None:

    if name in {"webm", "avi"}:
        content = encode(numbered_frames(2), container=name, video_codec={"webm": "libvpx", "avi": "mpeg4"}[name])
    elif name in {"wav", "flac", "ogg", "mp3"}:
        pytest.importorskip("soundfile").write(tmp_path / f"x.{name}", tone(), 16_000)
        content = (tmp_path / f"x.{name}").read_bytes()
    else:
        content = encode(samples=tone()[None], container=name)
    path = tmp_path / "no suffix"
    path.write_bytes(content)
    with open_container(path) as container:
        assert len(container.streams) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mp4", "ffconcat version 1.0\nfile b.mp4\n"),
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nb.mp4\n#EXT-X-ENDLIST\n"),
        ("a.mp4", "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>b.mp4</BaseURL></MPD>"),
        ("a.srt", "1\n00:00:00,000 --> 00:00:01,000\nhello\n"),
        ("a.txt", "hello"),
    ],
)
def test_playlists_and_texts_are_not(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "b.mp4").write_bytes(encode(numbered_frames(2)))
    (tmp_path / name).write_text(text)
    with pytest.raises(av.error.FFmpegError):
        open_container(tmp_path / name)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(av.error.FileNotFoundError):
        open_container(tmp_path / "none.mp4")
