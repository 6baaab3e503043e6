"""Videos and folders of pictures: which frames are taken, how they are turned and cropped, and what is refused."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avcap_zoo.data_modules.media import video
from avcap_zoo.data_modules.media.audio import read_audio
from avcap_zoo.data_modules.media.container import open_container
from avcap_zoo.data_modules.media.limits import MediaLimits
from avcap_zoo.data_modules.media.video import frame_times_s, read_frames, read_still
from avcap_zoo.errors import MediaError
from tests.unit.data_modules.media_files import (
    encode,
    folder_of_pictures,
    media_error,
    numbered_frames,
    numbers_of,
    tone,
)

FRAMES = 20


def wanted_numbers(count: int, asked: int) -> list[int]:
    """Frame shown in the middle of each of `asked` equal parts of `count` equally long frames."""
    return [int(Fraction(2 * part + 1, 2 * asked) * count) for part in range(asked)]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    path.write_bytes(encode(numbered_frames(FRAMES)))
    return path


def test_frame_times_are_the_middles_of_equal_parts() -> None:
    np.testing.assert_allclose(frame_times_s(10.0, 4), [1.25, 3.75, 6.25, 8.75])


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 5, 7, 10, 13, 19, 20, 21, 32, 40, 64])
def test_every_pick_is_what_a_player_shows(film: Path, asked: int) -> None:
    frames = read_frames(film, asked, 32, "c")
    assert frames.shape == (asked, 3, 32, 32)
    assert frames.dtype == np.uint8
    assert numbers_of(frames) == wanted_numbers(FRAMES, asked)


@pytest.mark.parametrize("fps", [1, 24, 25, 30, Fraction(30000, 1001), Fraction(15, 2)])
def test_every_frame_rate(tmp_path: Path, fps: Fraction | int) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(numbered_frames(15), fps=fps))
    for asked in (1, 4, 15):
        assert numbers_of(read_frames(path, asked, 32, "c")) == wanted_numbers(15, asked)


@pytest.mark.parametrize(
    ("container", "codec", "to_pipe"),
    [
        ("matroska", "libx264", False),
        ("matroska", "libx264", True),  # no length in the header
        ("webm", "libvpx", True),
        ("mpegts", "libx264", False),
        ("avi", "mpeg4", False),
    ],
)
def test_every_container(tmp_path: Path, container: str, codec: str, to_pipe: bool) -> None:
    path = tmp_path / f"clip.{container}"
    path.write_bytes(encode(numbered_frames(FRAMES), container=container, video_codec=codec, to_pipe=to_pipe))
    assert numbers_of(read_frames(path, 10, 32, "c")) == wanted_numbers(FRAMES, 10)


def test_fragmented_mp4(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    options = {"movflags": "frag_keyframe+empty_moov"}
    path.write_bytes(encode(numbered_frames(FRAMES), options=options, to_pipe=True))
    assert numbers_of(read_frames(path, 10, 32, "c")) == wanted_numbers(FRAMES, 10)


def test_longer_sound_does_not_move_the_frames(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode(numbered_frames(FRAMES), tone(3)[None]))
    assert numbers_of(read_frames(path, 10, 32, "c")) == wanted_numbers(FRAMES, 10)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_frames_that_start_late_are_counted_from_the_first(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"late.{container}"
    path.write_bytes(encode(numbered_frames(FRAMES), tone(2)[None], first_frame=10, container=container))
    assert numbers_of(read_frames(path, 10, 32, "c")) == wanted_numbers(FRAMES, 10)


def test_uneven_frames_are_held_as_long_as_they_last(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    pixels = numbered_frames(FRAMES)
    pixels[5:15] = pixels[5]  # one picture held for a second
    path.write_bytes(encode(pixels))
    shown = [5 if 5 <= number < 15 else number for number in wanted_numbers(FRAMES, 8)]
    assert numbers_of(read_frames(path, 8, 32, "c")) == shown


def test_a_film_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "one.mp4"
    path.write_bytes(encode(numbered_frames(1)))
    assert numbers_of(read_frames(path, 5, 32, "c")) == [0] * 5


def test_the_middle_is_kept_and_not_squeezed(tmp_path: Path) -> None:
    pixels = np.zeros((2, 32, 96, 3), np.uint8)
    pixels[:, :, 32:64] = 200
    for name, stored in (("wide.mp4", pixels), ("tall.mp4", pixels.transpose(0, 2, 1, 3))):
        path = tmp_path / name
        path.write_bytes(encode(stored))
        frames = read_frames(path, 1, 16, "c")[0]
        assert frames.shape == (3, 16, 16)
        assert np.abs(frames[:, 2:-2, 2:-2].astype(int) - 200).max() < 8


def test_colours_are_rgb(tmp_path: Path) -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    pixels[...] = (200, 40, 30)
    path = tmp_path / "red.mp4"
    path.write_bytes(encode(pixels))
    assert np.abs(read_frames(path, 1, 32, "c")[0].mean(axis=(1, 2)) - (200, 40, 30)).max() < 8


@pytest.mark.parametrize(
    ("matrix", "white_side"),
    [
        ((1, 0, 0, 1), "right"),
        ((0, 1, -1, 0), "bottom"),  # a phone held upright: the picture's right side is shown at the bottom
        ((-1, 0, 0, -1), "left"),
        ((0, -1, 1, 0), "top"),
    ],
)
def test_rotation_of_the_track(tmp_path: Path, matrix: tuple[int, int, int, int], white_side: str) -> None:
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    pixels[:, :, 24:] = 255
    content = encode(pixels)
    a, b, c, d = (part * 0x10000 for part in matrix)
    start = content.index(_matrix(0x10000, 0, 0, 0x10000), content.index(b"tkhd"))
    path = tmp_path / "turned.mp4"
    path.write_bytes(content[:start] + _matrix(a, b, c, d) + content[start + 36 :])
    shown = read_frames(path, 1, 32, "c")[0, 0]
    sides = {"left": shown[:, :6], "right": shown[:, -6:], "top": shown[:6], "bottom": shown[-6:]}
    assert sides[white_side].mean() > 245
    assert sum(side.mean() > 245 for side in sides.values()) == 1


def _matrix(a: int, b: int, c: int, d: int) -> bytes:
    return np.array([a, b, 0, c, d, 0, 0, 0, 0x40000000], ">i4").tobytes()


@pytest.mark.parametrize("asked", [1, 3, 4, 7, 12, 30])
def test_folder_of_pictures(tmp_path: Path, asked: int) -> None:
    frames = read_frames(folder_of_pictures(tmp_path / "pictures", 12), asked, 32, "c")
    assert frames.shape == (asked, 3, 32, 32)
    assert numbers_of(frames) == wanted_numbers(12, asked)


@pytest.mark.parametrize(
    ("rate", "asked", "taken"), [(2, 20, [2, 7, 12, 17]), (5, 6, [1, 3, 5, 7, 9, 11]), (0.1, 3, [19]), (2, 2, [2, 7])]
)
def test_frames_at_a_rate(film: Path, rate: float, asked: int, taken: list[int]) -> None:
    # Two seconds of ten frames: 2 a second are at 0.25, 0.75, 1.25 and 1.75 s.
    assert numbers_of(read_frames(film, asked, 32, "c", frames_per_s=rate)) == taken


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts"])
def test_a_long_film_is_jumped_through_not_decoded_whole(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"long.{container}"
    pixels = np.broadcast_to((np.arange(240) % 30 * 8 + 4).astype(np.uint8)[:, None, None, None], (240, 32, 32, 3))
    path.write_bytes(encode(pixels, fps=1, container=container, key_frame_every=12))
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    with open_container(path) as file:
        stream = file.streams.video[0]
        first_s = float((stream.start_time or 0) * (stream.time_base or 0))
        wanted_s = first_s + frame_times_s(240.0, 4)
        shown = [round(float(frame.time or 0) - first_s) for frame in video._frames_at(file, stream, wanted_s, count)]
    assert shown == [30, 90, 150, 210]
    if container != "mpegts":  # it has no index: a jump that misses is taken back, and the film decoded as it comes
        assert steps < 60
    assert numbers_of(read_frames(path, 4, 32, "c")) == [0, 0, 0, 0]
    assert numbers_of(read_frames(path, 5, 32, "c")) == [24, 12, 0, 18, 6]


def test_a_part_of_a_film_and_a_whole_frame(tmp_path: Path, film: Path) -> None:
    assert numbers_of(read_frames(film, 4, 32, "c", window_s=(1.0, 1.8))) == [11, 13, 15, 17]
    assert numbers_of(read_frames(film, 2, 32, "c", window_s=(1.0, 9.0))) == [12, 17]
    media_error(
        lambda: read_frames(film, 2, 32, "c", window_s=(2.0, 9.0)), film, "^ends after 2 s, wanted the frame at 2"
    )
    wide = tmp_path / "wide.mp4"
    wide.write_bytes(encode(numbered_frames(4, (32, 64))))
    still = read_still(wide, 0.25, "c")
    assert still.shape == (32, 64, 3)
    assert numbers_of(still[None].transpose(0, 3, 1, 2)) == [2]
    media_error(lambda: read_still(wide, 0.5, "c"), wide, "^ends after 0.4 s, wanted the frame at 0.5 s$")


def test_a_jump_that_lands_behind_its_time_is_taken_back(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_SEEK_GAP_S", 0.3)

    class LandsLate:
        """A container without an index: a jump lands near the end, except one to the start."""

        def __init__(self, container: Any) -> None:
            self.container = container
            self.decode = container.decode

        def seek(self, offset: int, **options: Any) -> None:
            self.container.seek(0)
            if options:
                frames = self.container.decode(video=0)
                self.decode = lambda stream: (frame for frame in frames if (frame.time or 0) > 1.8)
            else:
                self.decode = self.container.decode

    with open_container(film) as file:
        late: Any = LandsLate(file)
        taken = video._frames_at(late, file.streams.video[0], frame_times_s(2.0, 4), lambda: None)
        assert [round(10 * float(frame.time or 0)) for frame in taken] == [2, 7, 12, 17]


def test_folder_of_pictures_of_any_size_beside_other_files(tmp_path: Path) -> None:
    folder = folder_of_pictures(tmp_path / "pictures", 3, "JPG")
    Image.new("RGB", (90, 50)).save(folder / "003.jpeg")
    (folder / "notes.txt").write_text("no picture")
    (folder / "._000.JPG").write_bytes(b"\0\5\x16\7 what macOS leaves behind")
    assert read_frames(folder, 4, 32, "c").shape == (4, 3, 32, 32)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    media_error(lambda: read_frames(empty, 2, 32, "c"), empty, "holds no pictures")
    folder = folder_of_pictures(tmp_path / "pictures", 3)
    (folder / "001.png").write_bytes(b"broken")
    media_error(lambda: read_frames(folder, 3, 32, "c"), folder / "001.png", "not decodable as a picture")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("garbage.mp4", bytes(range(256)) * 20),
        ("page.mp4", b"<!DOCTYPE html><html><body>Video unavailable</body></html>" * 20),
        ("list.mp4", b"ffconcat version 1.0\nfile film.mp4\n"),
    ],
)
def test_files_that_hold_no_video(tmp_path: Path, film: Path, name: str, content: bytes) -> None:
    (tmp_path / "film.mp4").write_bytes(film.read_bytes())
    path = tmp_path / name
    path.write_bytes(content)
    error = media_error(lambda: read_frames(path, 2, 32, "c"), path, "not decodable as video: .*[Ii]nvalid")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.95])
@pytest.mark.parametrize("index_first", [False, True])
def test_broken_off_mp4(tmp_path: Path, share: float, index_first: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (FRAMES, 32, 32, 3), dtype=np.uint8)
    content = encode(noise, options={"movflags": "faststart"} if index_first else None, folder=tmp_path)
    assert (content.index(b"moov") < content.index(b"mdat")) == index_first
    path = tmp_path / "half.mp4"
    path.write_bytes(content[: int(len(content) * share)])
    media_error(lambda: read_frames(path, 4, 32, "c"), path, "not decodable as video")


def test_missing_file_and_pipe(tmp_path: Path) -> None:
    media_error(lambda: read_frames(tmp_path / "no.mp4", 2, 32, "c"), tmp_path / "no.mp4", "^no such file$")
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    media_error(lambda: read_frames(pipe, 2, 32, "c"), pipe, "^no such file$")


def test_sound_without_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.m4a"
    path.write_bytes(encode(samples=tone()[None]))
    media_error(lambda: read_frames(path, 2, 32, "c"), path, "no pictures")


def test_longer_than_an_hour(tmp_path: Path, film: Path) -> None:
    content = bytearray(film.read_bytes())
    header = content.index(b"mdhd") + 16  # version, two dates, ticks per second, then the length
    content[header + 4 : header + 8] = (0x7FFFFFFF).to_bytes(4, "big")
    path = tmp_path / "long.mp4"
    path.write_bytes(content)
    limits = MediaLimits(max_duration_s=1)
    media_error(
        lambda: read_frames(path, 2, 32, "c", limits=limits), path, "declares .* s of video, at most 1 are read"
    )


def test_a_title_that_is_no_utf_8_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "latin.mp4"
    path.write_bytes(encode(numbered_frames(4), title="Caffe de").replace(b"Caffe de", b"Caf\xe9\xff de"))
    assert numbers_of(read_frames(path, 4, 32, "c")) == [0, 1, 2, 3]


def test_a_codec_that_nobody_knows(tmp_path: Path) -> None:
    content = encode(numbered_frames(4), tone()[None], container="matroska")
    path = tmp_path / "future.mkv"
    path.write_bytes(content.replace(b"V_MPEG4/ISO/AVC", b"V_FUTURE/99/ZZZ").replace(b"A_AAC", b"A_ZZZ"))
    media_error(lambda: read_frames(path, 2, 32, "c"), path, "no decoder for its pictures")
    media_error(lambda: read_audio(path, 16_000, "c"), path, "no decoder for its sound")


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, container: str) -> None:
    random = np.random.default_rng(0)
    whole = np.frombuffer(encode(numbered_frames(4), tone(0.2)[None], container=container), np.uint8)
    path = tmp_path / f"damaged.{container}"
    for attempt in range(40):
        damaged = whole.copy()
        places = random.integers(0, len(whole) if attempt % 2 else 400, 8)
        damaged[places] = random.integers(0, 255, 8)
        path.write_bytes(damaged.tobytes())
        with suppress(MediaError):
            assert read_frames(path, 3, 16, "c").shape == (3, 3, 16, 16)
        with suppress(MediaError):
            assert np.isfinite(read_audio(path, 16_000, "c")).all()
