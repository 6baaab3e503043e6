"""The feature cache: what is stored comes back, by several processes, after a kill, and only for the same settings."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from avcap_zoo.batch import Batch, FrozenEncoder, Modality
from avcap_zoo.data_modules.feature_cache import CacheInfo, FeatureReader, FeatureWriter, NumberType, read_info
from avcap_zoo.errors import ConfigError, DataError
from tests.unit.data_modules.folders import data_module, make_folder

CPU = torch.device("cpu")
INFO = CacheInfo("visual", "clip-1", {"num_frames": 2}, "float32")
IDS = [f"c{number}" for number in range(10)]


def tokens_of(rows: list[int]) -> tuple[Tensor, Tensor]:
    """Three tokens of width two per clip, of which the last is not real in odd rows."""
    tokens = torch.tensor(rows, dtype=torch.float32)[:, None, None] + torch.arange(6).view(3, 2) / 8
    mask = torch.ones(len(rows), 3, dtype=torch.bool)
    mask[[row % 2 == 1 for row in rows], 2] = False
    return tokens, mask


def fill(writer: FeatureWriter, rows: list[int]) -> None:
    writer.write([writer.clip_ids[row] for row in rows], *tokens_of(rows))


class Counter(torch.nn.Module):
    """Counts the clips that it sees; its tokens are the means of the frames or of the sound."""

    def __init__(self, modality: Modality = "audio", key: str = "mean-1") -> None:
        super().__init__()
        self.seen: list[str] = []
        self.encoder = FrozenEncoder(modality, self, self.encode, key)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.seen += batch.clip_ids
        if batch.frames is not None and batch.frame_mask is not None:
            return batch.frames.float().mean(dim=(3, 4)), batch.frame_mask
        assert batch.waveform is not None
        means = batch.waveform.mean(dim=1)[:, None, None].expand(-1, 2, 4)
        return means, torch.ones(means.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_written_is_read(tmp_path: Path, dtype: NumberType) -> None:
    info = CacheInfo("visual", "clip-1", {}, dtype)
    writer = FeatureWriter(tmp_path, "val", IDS, info)
    assert writer.todo() == list(range(10))
    for rows in ([0, 1, 2], [9, 3], [4, 5, 6, 7]):
        fill(writer, rows)
    writer.mark_unreadable(["c8"])
    assert writer.todo() == [8]
    reader = pickle.loads(pickle.dumps(FeatureReader(tmp_path, "val")))
    lengths, rows_by_id = reader.lengths(), reader.rows()
    assert lengths == {f"c{row}": 0 if row == 8 else 3 - row % 2 for row in range(10)}
    for row in (0, 3, 7, 9):
        wanted = tokens_of([row])[0][0, : lengths[f"c{row}"]].to(getattr(torch, dtype)).float()
        found = reader.read(rows_by_id[f"c{row}"], lengths[f"c{row}"])
        assert found.dtype == torch.float32
        assert torch.equal(found, wanted)
    stored = np.load(tmp_path / "val" / "features.npy", mmap_mode="r")
    assert stored.dtype == {"bfloat16": "uint16"}.get(dtype, dtype)
    assert isinstance(stored, np.memmap)


def test_clips_that_come_later_are_added(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, "val", IDS[2:6], INFO)
    fill(writer, [0, 1, 2])
    grown = FeatureWriter(tmp_path, "val", IDS, INFO)
    assert grown.todo() == [0, 1, 5, 6, 7, 8, 9]
    reader = FeatureReader(tmp_path, "val")
    assert reader.lengths() == {"c2": 3, "c3": 2, "c4": 3}
    assert torch.equal(reader.read(reader.rows()["c4"], 3), tokens_of([2])[0][0])
    assert FeatureWriter(tmp_path, "val", IDS, INFO).todo() == grown.todo()


def _fill_share(folder: Path, shard: tuple[int, int]) -> None:
    writer = FeatureWriter(folder, "val", [f"c{number}" for number in range(200)], INFO)
    for row in writer.todo(shard):
        fill(writer, [row])


def test_two_processes_fill_one_array(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill_share, args=(tmp_path, (index, 2))) for index in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    reader = FeatureReader(tmp_path, "val")
    assert len(reader.lengths()) == 200
    assert all(float(reader.read(row, 2)[0, 0]) == row for row in range(200))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": "clip-2"}, "encoder clip-1, wanted clip-2"),
        ({"decoding": {"num_frames": 3}}, "decoding num_frames 2, wanted num_frames 3"),
        ({"dtype": "float16"}, "dtype float32, wanted float16"),
        ({"modality": "audio"}, "modality visual, wanted audio"),
    ],
)
def test_another_key_is_refused_naming_both(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    FeatureWriter(tmp_path, "val", IDS, INFO)
    with pytest.raises(DataError, match=f"was made with {said}: change the configuration, or make another cache"):
        FeatureWriter(tmp_path, "val", IDS, CacheInfo(**{**vars(INFO), **change}))


def test_numbers_that_do_not_fit(tmp_path: Path) -> None:
    writer = FeatureWriter(tmp_path, "val", IDS, CacheInfo("visual", "x", {}, "float16"))
    with pytest.raises(DataError, match=r"features of c0 are not finite in float16; bfloat16 holds larger numbers"):
        writer.write(["c0"], torch.full((1, 2, 2), 1e5), torch.ones(1, 2, dtype=torch.bool))
    fill(writer, [1])
    with pytest.raises(DataError, match=r"holds \(3, 2\) tokens and width a clip, now \(2, 2\) come"):
        writer.write(["c0"], torch.ones(1, 2, 2), torch.ones(1, 2, dtype=torch.bool))


def test_damaged_caches(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no feature cache: make one with avcap cache"):
        FeatureReader(tmp_path, "val")
    writer = FeatureWriter(tmp_path, "val", IDS, INFO)
    fill(writer, [0])
    with pytest.raises(DataError, match="has no split test, only val: avcap cache visual --splits test"):
        FeatureReader(tmp_path, "test")
    (tmp_path / "val" / "features.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"features.npy cannot be read .*make the cache anew"):
        FeatureReader(tmp_path, "val").read(0, 1)
    np.save(tmp_path / "val" / "features.npy", np.zeros((10, 3, 2), np.float16))
    with pytest.raises(DataError, match=r"has 3 dimensions of float16, cache.json says float32"):
        FeatureReader(tmp_path, "val").read(0, 1)
    (tmp_path / "val" / "ids.json").write_text(json.dumps(IDS[:3]))
    with pytest.raises(DataError, match="names 3 clips and has 10 lengths"):
        FeatureReader(tmp_path, "val").lengths()
    (tmp_path / "cache.json").write_text('{"modality": "visual"}')
    with pytest.raises(DataError, match=r"cache.json is damaged"):
        read_info(tmp_path)


# -- in a data module --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_modules_take_it_in_place_of_media(tmp_path: Path, num_workers: int) -> None:
    make_folder(tmp_path / "data", with_videos=True)
    options: dict[str, Any] = {"modalities": ("audio", "visual"), "num_workers": num_workers}
    cameras, ears = Counter("visual"), Counter()
    maker = data_module(tmp_path / "data", **options)
    for counter in (cameras, ears):
        counts = maker.cache_features(
            counter.encoder, tmp_path / counter.encoder.modality, ("train", "val"), device=CPU, batch_size=4
        )
        assert counts == {"train": (6, 6), "val": (3, 3)}
    assert cameras.seen == ears.seen == [f"train{n}" for n in range(6)] + [f"val{n}" for n in range(3)]
    (live,) = data_module(tmp_path / "data", eval_batch_size=3, **options).val_dataloader()
    caches = {f"{modality}_cache": str(tmp_path / modality) for modality in ("audio", "visual")}
    data = data_module(tmp_path / "data", eval_batch_size=3, **options, **caches)
    data.setup("fit")
    (batch,) = data.val_dataloader()
    assert (batch.clip_ids, batch.captions) == (live.clip_ids, live.captions)
    assert batch.frames is None
    assert batch.waveform is None
    assert batch.feature_keys == {"audio": "mean-1", "visual": "mean-1"}
    for found, mask, counter in (
        (batch.visual_features, batch.frame_mask, cameras),
        (batch.audio_features, batch.audio_mask, ears),
    ):
        live_part = Batch(live.clip_ids, [], [], frames=live.frames, frame_mask=live.frame_mask)
        if counter is ears:
            live_part = Batch(live.clip_ids, [], [], waveform=live.waveform)
        tokens, live_mask = counter.encode(live_part)
        assert found is not None
        assert mask is not None
        assert torch.equal(found, tokens)
        assert torch.equal(mask, live_mask)
    (plain,) = data.plain_loader("val", 3, ("visual",))
    assert plain.frames is not None
    assert plain.visual_features is None


def test_a_second_run_computes_what_is_missing(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", val=6, broken=("val2",))
    data = data_module(tmp_path / "data")
    ears = Counter()
    with pytest.warns(UserWarning, match="audiocaps val: clip val2 left out"):
        counts = data.cache_features(ears.encoder, tmp_path / "cache", ("val",), device=CPU, shard=(0, 2))
    assert counts == {"val": (2, 3)}
    assert ears.seen == ["val0", "val4"]
    data.cache_features(ears.encoder, tmp_path / "cache", ("val",), device=CPU, shard=(1, 2))
    assert ears.seen[2:] == ["val1", "val3", "val5"]
    using = data_module(tmp_path / "data", audio_cache=str(tmp_path / "cache"))
    batches = list(using.evaluation_loader("val"))
    assert [clip_id for batch in batches for clip_id in batch.clip_ids] == [f"val{n}" for n in (0, 1, 3, 4, 5)]
    assert [clip.clip_id for batch in batches for clip in batch.skipped] == ["val2"]
    mended = make_folder(tmp_path / "data", val=6)
    data_module(mended).cache_features(ears.encoder, tmp_path / "cache", ("val",), device=CPU)
    assert ears.seen[5:] == ["val2"]


def test_clips_that_the_cache_lacks_are_missing(tmp_path: Path) -> None:
    make_folder(tmp_path / "data", val=2)
    data_module(tmp_path / "data").cache_features(Counter().encoder, tmp_path / "cache", ("val",), device=CPU)
    make_folder(tmp_path / "data", val=3)
    data = data_module(tmp_path / "data", audio_cache=str(tmp_path / "cache"))
    data.setup("validate")
    assert data.splits["val"].missing == [("val2", f"not in the audio cache {tmp_path / 'cache'}")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sample_rate_hz": 8000}, ".*sample_rate_hz 16000, .*wanted sample_rate_hz 8000"),
        ({"max_duration_s": 0.5, "crop": "start"}, r".*sample_rate_hz 16000, wanted .*max_duration_s 0.5"),
    ],
)
def test_clips_decoded_in_another_way_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    make_folder(tmp_path / "data")
    data_module(tmp_path / "data").cache_features(Counter().encoder, tmp_path / "cache", ("val",), device=CPU)
    with pytest.raises(DataError, match=f"cache was made with decoding {said}"):
        data_module(tmp_path / "data", audio_cache=str(tmp_path / "cache"), **options).setup("validate")


def test_a_cache_of_the_other_modality_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "data")
    data_module(tmp_path / "data").cache_features(Counter().encoder, tmp_path / "cache", ("val",), device=CPU)
    with pytest.raises(DataError, match="modality audio, wanted visual"):
        data_module(tmp_path / "data", visual_cache=str(tmp_path / "cache")).setup("validate")


# -- batches of few shapes ---------------------------------------------------------------------------------------


class Halves(Counter):
    """Tokens of a clip: one, or two if its name ends in an odd number."""

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        tokens, mask = super().encode(batch)
        mask[[int(clip_id[-1]) % 2 == 0 for clip_id in batch.clip_ids], 1] = False
        return tokens, mask


@pytest.mark.parametrize(("buckets", "wanted"), [((), [1, 2, 1]), ((1.0,), [2, 2, 2])])
def test_features_of_sound_are_padded_to_the_longest_there_are(
    tmp_path: Path, buckets: tuple[float, ...], wanted: list[int]
) -> None:
    make_folder(tmp_path / "data")
    options: dict[str, Any] = {"audio_buckets_s": buckets, "eval_batch_size": 1}
    cache = tmp_path / "cache"
    data_module(tmp_path / "data").cache_features(Halves().encoder, cache, ("val",), device=CPU)  # without buckets
    batches = list(data_module(tmp_path / "data", audio_cache=str(cache), **options).val_dataloader())
    assert [batch.shapes()["audio_features"] for batch in batches] == [(1, n, 4) for n in wanted]
    for number, batch in enumerate(batches):
        assert batch.audio_features is not None
        assert batch.audio_mask is not None
        assert batch.audio_mask.sum() == 1 + number % 2
        assert torch.equal(batch.audio_features != 0, batch.audio_mask[..., None].expand(-1, -1, 4))


def test_frames_at_a_rate_are_padded_and_masked(tmp_path: Path) -> None:
    make_folder(tmp_path, with_videos=True)  # films of 0.4 s
    data = data_module(tmp_path, modalities=("visual",), num_frames=5, frames_per_s=10.0, eval_batch_size=3)
    (batch,) = data.val_dataloader()
    assert batch.shapes() == {"frames": (3, 5, 3, 16, 16), "frame_mask": (3, 5)}
    assert batch.frame_mask is not None
    assert batch.frame_mask.tolist() == [[True] * 4 + [False]] * 3


@pytest.mark.parametrize(
    ("option", "value"), [("frames_per_s", 0.0), ("audio_buckets_s", (1.0, -1.0)), ("audio_buckets_s", (float("inf"),))]
)
def test_rates_and_buckets_out_of_range(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"data.init_args.{option} is .*wanted more than 0"):
        data_module(tmp_path, **{option: value})
