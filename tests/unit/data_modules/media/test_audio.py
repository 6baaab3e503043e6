"""Sound files: level, rate, formats; every broken one ends in a MediaError."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from avcap_zoo.data_modules.media import audio
from avcap_zoo.data_modules.media.audio import read_audio
from avcap_zoo.data_modules.media.limits import MediaLimits
from tests.unit.data_modules.media_files import RATE_HZ, encode, media_error, numbered_frames, tone, write_sound


def frequency_hz(samples: Any, rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate_hz / len(samples))


def level(samples: Any) -> float:
    """Amplitude of a steady tone, from the middle of the clip."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    return float(np.sqrt(2 * np.mean(middle**2)))


def with_flac_header(path: Path, *, rate_hz: int = RATE_HZ, channels: int = 1, num_samples: int) -> None:
    """Overwrite what a flac says of itself: 20 bits rate, 3 channels - 1, 5 bits per sample - 1, 36 length."""
    content = bytearray(path.read_bytes())
    fields = (rate_hz << 44) | ((channels - 1) << 41) | (15 << 36) | num_samples
    content[18:26] = fields.to_bytes(8, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_formats_of_soundfile_keep_level_and_pitch(tmp_path: Path, suffix: str) -> None:
    path = write_sound(tmp_path / f"tone.{suffix}", np.stack([tone(), tone()], axis=1))
    samples = read_audio(path, RATE_HZ, "c")
    assert samples.dtype == np.float32
    assert samples.shape == (RATE_HZ,)
    assert level(samples) == pytest.approx(0.3, abs=0.003)
    assert frequency_hz(samples, RATE_HZ) == pytest.approx(440, abs=2)


def test_channels_are_averaged_and_0_3_stays_0_3(tmp_path: Path) -> None:
    both = write_sound(tmp_path / "both.wav", np.full((1000, 2), 0.3), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(both, RATE_HZ, "c"), 0.3, rtol=1e-6)
    left = write_sound(tmp_path / "left.wav", np.stack([np.full(1000, 0.6), np.zeros(1000)], 1), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(left, RATE_HZ, "c"), 0.3, rtol=1e-6)
    opposed = write_sound(tmp_path / "opposed.wav", np.stack([tone(), -tone()], 1), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(opposed, RATE_HZ, "c"), 0.0, atol=1e-7)


def test_pyav_gives_the_same_level_as_soundfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "stereo.wav", np.full((RATE_HZ, 2), 0.3), subtype="FLOAT")
    by_soundfile = read_audio(path, RATE_HZ, "c")
    monkeypatch.setattr(audio, "_decode", audio._decode_with_pyav)
    np.testing.assert_allclose(read_audio(path, RATE_HZ, "c"), by_soundfile, atol=1e-6)
    loud = write_sound(tmp_path / "loud.wav", np.full((RATE_HZ, 2), 0.9))
    np.testing.assert_allclose(read_audio(loud, RATE_HZ, "c"), 0.9, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("container", ["mp4", "ipod", "adts", "matroska"])
def test_aac_keeps_the_level(tmp_path: Path, container: str, channels: int) -> None:
    path = tmp_path / {"ipod": "tone.m4a", "adts": "tone.aac", "matroska": "tone.mkv"}.get(container, "tone.mp4")
    path.write_bytes(encode(samples=np.stack([tone()] * channels), container=container))
    samples = read_audio(path, RATE_HZ, "c")
    assert len(samples) == pytest.approx(RATE_HZ, abs=2500)  # AAC pads to whole blocks
    assert level(samples) == pytest.approx(0.3, abs=0.01)
    assert frequency_hz(samples, RATE_HZ) == pytest.approx(440, abs=2)


def test_sound_track_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    samples = np.stack([tone(2, hz=1000, rate_hz=44_100), np.zeros(88_200, np.float32)])
    path.write_bytes(encode(numbered_frames(20), samples, rate_hz=44_100))
    heard = read_audio(path, RATE_HZ, "c")
    assert len(heard) == pytest.approx(2 * RATE_HZ, abs=1000)
    assert level(heard) == pytest.approx(0.15, abs=0.01)
    assert frequency_hz(heard, RATE_HZ) == pytest.approx(1000, abs=2)


@pytest.mark.parametrize(
    ("rate_hz", "wanted_hz"), [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (16_000, 32_000)]
)
def test_resampling_keeps_the_frequency(tmp_path: Path, rate_hz: int, wanted_hz: int) -> None:
    path = write_sound(tmp_path / "tone.wav", tone(hz=1234, rate_hz=rate_hz), rate_hz)
    samples = read_audio(path, wanted_hz, "c")
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(wanted_hz, abs=1)
    assert frequency_hz(samples, wanted_hz) == pytest.approx(1234, abs=2)
    assert level(samples) == pytest.approx(0.3, abs=0.003)


def test_what_the_new_rate_cannot_hold_is_gone(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "high.wav", tone(hz=10_000, rate_hz=44_100), 44_100, subtype="FLOAT")
    assert level(read_audio(path, 16_000, "c")) < 1e-5


def test_result_stays_within_one(tmp_path: Path) -> None:
    square = np.sign(tone(hz=100, rate_hz=44_100)) * 0.999
    samples = read_audio(write_sound(tmp_path / "square.wav", square, 44_100), RATE_HZ, "c")
    assert np.abs(samples).max() <= 1.0
    hot = write_sound(tmp_path / "hot.wav", np.full(100, 3.0), subtype="FLOAT")
    assert read_audio(hot, RATE_HZ, "c").max() == 1.0


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "m4a", "mp4"])
def test_a_part_of_a_sound(tmp_path: Path, suffix: str) -> None:
    # A second of 300 Hz, a second of 500 Hz, a second of 700 Hz, and so on: what is heard tells where it is from.
    steps = np.concatenate([tone(hz=300 + 200 * second) for second in range(6)])
    path = tmp_path / f"steps.{suffix}"
    if suffix in {"m4a", "mp4"}:
        pictures = numbered_frames(30) if suffix == "mp4" else None
        path.write_bytes(encode(pictures, steps[None], fps=5, container="ipod" if suffix == "m4a" else "mp4"))
    else:
        write_sound(path, steps)
    for second in (0, 3, 5):
        samples = read_audio(path, 8_000, "c", window_s=(second + 0.25, second + 0.75))
        assert len(samples) == 4_000
        assert frequency_hz(samples, 8_000) == pytest.approx(300 + 200 * second, abs=4)
    late = read_audio(path, RATE_HZ, "c", window_s=(5.5, 15.5))
    assert len(late) == pytest.approx(RATE_HZ / 2, abs=2500)
    media_error(
        lambda: read_audio(path, RATE_HZ, "c", window_s=(9.0, 19.0)), path, "^ends before 9 s, where the clip b"
    )


def test_silence_is_no_fault(tmp_path: Path) -> None:
    samples = read_audio(write_sound(tmp_path / "still.wav", np.zeros(RATE_HZ)), RATE_HZ, "c")
    assert samples.shape == (RATE_HZ,)
    assert not samples.any()


def test_very_short_sounds(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "short.wav", np.full(3, 0.5), 44_100)
    assert 1 <= len(read_audio(path, RATE_HZ, "c")) <= 3


def test_a_sound_longer_than_one_read_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "tone.wav", np.stack([tone(), tone(hz=500)], 1))
    whole = read_audio(path, RATE_HZ, "c")
    monkeypatch.setattr(audio, "_VALUES_PER_READ", 1001)
    np.testing.assert_array_equal(read_audio(path, RATE_HZ, "c"), whole)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.wav", b"", "empty"),
        ("empty.mp4", b"", "empty"),
        ("garbage.wav", bytes(range(256)) * 20, "not decodable as sound: Invalid data"),
        ("garbage.raw", bytes(range(256)) * 20, "not decodable as sound: Invalid"),
        ("garbage.m4a", bytes(range(256)) * 20, "not decodable as sound: Invalid data"),
        ("page.mp4", b"<!DOCTYPE html><html><body>404</body></html>" * 20, "not decodable as sound: Invalid data"),
        ("page.mp3", b"<!DOCTYPE html><html><body>404</body></html>" * 20, "not decodable as sound: Invalid data"),
    ],
)
def test_files_that_hold_no_sound(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, reason)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    media_error(lambda: read_audio(tmp_path / "none.wav", RATE_HZ, "c"), tmp_path / "none.wav", "^no such file$")
    media_error(lambda: read_audio(tmp_path, RATE_HZ, "c"), tmp_path, "^no such file$")


def test_file_without_samples(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "none.wav", np.zeros(0))
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, "no samples")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    samples = tone()
    samples[100] = bad
    path = write_sound(tmp_path / "bad.wav", samples, subtype="FLOAT")
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, "not finite")


def test_video_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    path.write_bytes(encode(numbered_frames(4)))
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, "no sound track")


@pytest.mark.parametrize("suffix", ["flac", "ogg", "m4a", "mp4"])
def test_broken_off_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"half.{suffix}"
    if suffix in {"m4a", "mp4"}:
        path.write_bytes(encode(samples=tone()[None], container="ipod" if suffix == "m4a" else "mp4"))
    else:
        write_sound(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, "not decodable as sound")


def test_a_wav_that_breaks_off_is_read_so_far(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "half.wav", tone(), subtype="FLOAT")
    path.write_bytes(path.read_bytes()[: 2 * RATE_HZ])
    samples = read_audio(path, RATE_HZ, "c")
    assert 7900 < len(samples) <= 8000
    np.testing.assert_array_equal(samples, tone()[: len(samples)])
    path.write_bytes(path.read_bytes()[:20])
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, "not decodable as sound")


def test_a_header_that_declares_hours_is_refused_at_once(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "long.flac")
    with_flac_header(path, num_samples=3601 * RATE_HZ)
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, "more than 3600 s")


def test_a_header_that_declares_75_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "huge.flac")
    with_flac_header(path, rate_hz=655_350, channels=8, num_samples=3599 * 655_350)
    assert len(read_audio(path, RATE_HZ, "c")) < 2 * RATE_HZ


def test_a_flac_without_a_length_is_read(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "piped.flac")
    before = read_audio(path, RATE_HZ, "c")
    with_flac_header(path, num_samples=0)
    assert soundfile.info(path).frames == audio._UNKNOWN_LENGTH
    np.testing.assert_array_equal(read_audio(path, RATE_HZ, "c"), before)


@pytest.mark.parametrize("suffix", ["wav", "m4a"])
def test_more_than_the_longest_sound(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"long.{suffix}"
    if suffix == "wav":
        write_sound(path, tone(2))
    else:
        path.write_bytes(encode(samples=tone(2)[None], container="ipod"))
    media_error(
        lambda: read_audio(path, RATE_HZ, "c", limits=MediaLimits(max_duration_s=1)), path, "more than 1 s of sound"
    )


def test_channels_may_change_midway_but_the_rate_may_not(tmp_path: Path) -> None:
    mono = encode(samples=tone()[None], container="adts")
    stereo = encode(samples=np.stack([tone()] * 2), container="adts")
    path = tmp_path / "mixed.aac"
    path.write_bytes(mono + stereo)
    samples = read_audio(path, RATE_HZ, "c")
    assert len(samples) > 2 * RATE_HZ
    assert level(samples) == pytest.approx(0.3, abs=0.02)
    path.write_bytes(mono + encode(samples=tone(rate_hz=44_100)[None], rate_hz=44_100, container="adts"))
    media_error(lambda: read_audio(path, RATE_HZ, "c"), path, "rate changes from 16000 to 44100 Hz")


def test_a_title_that_is_no_utf_8_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "latin.m4a"
    path.write_bytes(encode(samples=tone()[None], title="Caffe de").replace(b"Caffe de", b"Caf\xe9\xff de"))
    assert len(read_audio(path, RATE_HZ, "c")) > 15_000


def test_playlists_open_nothing_else(tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.mp4"
    hidden.write_bytes(encode(numbered_frames(4), tone()[None]))
    playlists = {
        "list.mp4": "ffconcat version 1.0\nfile hidden.mp4\n",
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nhidden.mp4\n#EXT-X-ENDLIST\n",
    }
    for name, text in playlists.items():
        path = tmp_path / name
        path.write_text(text)
        media_error(lambda path=path: read_audio(path, RATE_HZ, "c"), path, "not decodable as sound")  # type: ignore[misc]


def test_errors_survive_pickling(tmp_path: Path) -> None:
    error = media_error(lambda: read_audio(tmp_path / "a.wav", RATE_HZ, "c"), tmp_path / "a.wav", "no such file")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.clip_id, again.path, again.reason, str(again)) == ("c", error.path, error.reason, str(error))


def test_a_name_in_another_script(tmp_path: Path) -> None:
    path = tmp_path / "Käse 猫 [1].wav"
    shutil.copy(write_sound(tmp_path / "plain.wav"), path)
    assert len(read_audio(path, RATE_HZ, "c")) == RATE_HZ
