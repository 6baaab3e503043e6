"""What every data module does with missing, broken and odd clips, with captions, workers and reports."""

from __future__ import annotations

import csv
import gc
import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from avcap_zoo.backbones.language import CausalLanguageModel, LanguageSettings
from avcap_zoo.batch import Batch, Split
from avcap_zoo.data_modules.dataset import ClipDataset, DecodeSettings, Sample, collate
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords, SplitIndex
from avcap_zoo.errors import ConfigError, DataError, MediaError
from avcap_zoo.weights.checkpoint_io import AtomicCheckpointIO
from tests.unit.data_modules.folders import data_module, make_folder, sound, write_rows
from tests.unit.data_modules.media_files import write_sound

# Reports of broken clips are warnings of ours, which the project's settings turn into errors elsewhere.
pytestmark = pytest.mark.filterwarnings("default:.*(left out|could not be read)")


class Listener(LightningModule):
    """Remembers which clips it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[str] = []
        self.evaluated: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained += batch.clip_ids
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated += batch.clip_ids

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 1, "default_root_dir": folder, **options},
    )


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def training_dataset(root: Path, **options: Any) -> ClipDataset:
    settings = DecodeSettings(16_000, 2, 16, ("audio",), options.pop("on_error", "skip"))
    records = data_module(root).records("train")
    return ClipDataset(records, settings, **{"seed": 0, "training": True, **options})


def epoch_of(dataset: ClipDataset, epoch: int) -> list[Sample]:
    return [dataset[epoch, position] for position in range(len(dataset))]


def ids(samples: list[Sample]) -> list[str]:
    return [sample.record.clip_id for sample in samples if sample.record is not None]


# -- the folder --------------------------------------------------------------------------------------------------


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere does not exist: set data.init_args.root, or \$AVCAP_DATA"):
        data_module(tmp_path / "nowhere").prepare_data()


@pytest.mark.parametrize("value", [None, ""])
def test_no_root_and_no_variable(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("AVCAP_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("AVCAP_DATA", value)
    with pytest.raises(ConfigError, match=r"root is not set, and neither is \$AVCAP_DATA .*audiocaps/"):
        data_module_without_root()


def test_root_from_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "audiocaps")
    monkeypatch.setenv("AVCAP_DATA", str(tmp_path))
    assert data_module_without_root().num_official("train") == 6


def data_module_without_root() -> Any:
    from avcap_zoo.data_modules.audiocaps import AudioCapsDataModule

    return AudioCapsDataModule()


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.csv does not exist"):
        data_module(tmp_path).prepare_data()


def test_annotations_without_any_media(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", [(1, "a", 0, "x"), (2, "b", 0, "y")])
    write_rows(tmp_path / "val.csv", [(3, "c", 0, "z")])
    data = data_module(tmp_path, modalities=("audio", "visual"))
    data.prepare_data()
    with pytest.raises(DataError, match=r"audiocaps train: none of 2 clips is in .*a, no sound file and no video or f"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sample_rate_hz", 0),
        ("num_frames", 0),
        ("image_size_px", -1),
        ("batch_size", 0),
        ("eval_batch_size", 0),
        ("num_workers", -1),
        ("seed", -1),
    ],
)
def test_values_out_of_range(tmp_path: Path, option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"data.init_args.{option} is {value}, wanted at least"):
        data_module(tmp_path, **{option: value})


def test_missing_csv_and_the_n_of_m_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path)
    (tmp_path / "train" / "waveforms" / "train1_30000.wav").unlink()
    (tmp_path / "val" / "waveforms" / "val0_30000.wav").unlink()
    data = data_module(tmp_path)
    data.prepare_data()
    missing = [["train", "train1", "no sound file"], ["val", "val0", "no sound file"]]
    assert rows_of(tmp_path / "missing.csv") == [["split", "id", "reason"], *missing]
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "audiocaps train: 5 of 6 official clips present" in caplog.text
    assert "audiocaps val: 2 of 3 official clips present" in caplog.text
    assert data.num_official("train") == 6
    assert len(data.records("train")) == 5
    for split, number in (("train", 1), ("val", 0)):
        write_sound(tmp_path / split / "waveforms" / f"{split}{number}_30000.wav", sound(number))
    data_module(tmp_path).prepare_data()
    assert not (tmp_path / "missing.csv").exists(), "it would tell of clips that have come since"


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path)
    (tmp_path / "train" / "waveforms" / "train1_30000.wav").unlink()
    (tmp_path / "missing.csv").mkdir()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data_module(tmp_path).prepare_data()
    assert any("cannot write" in str(warning.message) for warning in caught)


def test_min_present_share(tmp_path: Path) -> None:
    make_folder(tmp_path, train=4)
    for number in range(2):
        (tmp_path / "train" / "waveforms" / f"train{number}_30000.wav").unlink()
    data_module(tmp_path).setup("fit")
    with pytest.raises(DataError, match=r"only 2 of 4 official clips .*train0, no sound file; lower .*min_present_sh"):
        data_module(tmp_path, min_present_share=0.51).setup("fit")


@pytest.mark.parametrize(
    ("stage", "needed"), [("fit", ["train", "val"]), ("validate", ["val"]), ("test", ["test"]), ("predict", ["val"])]
)
def test_each_stage_needs_only_its_splits(tmp_path: Path, stage: str, needed: list[Split]) -> None:
    make_folder(tmp_path)
    for split in {"train", "val", "test"} - set(needed):
        (tmp_path / f"{split}.csv").unlink()
    data = data_module(tmp_path, predict_split="val")
    data.setup(stage)
    assert list(data.splits) == needed


# -- broken clips ------------------------------------------------------------------------------------------------


def test_training_takes_the_next_of_the_epochs_order(tmp_path: Path) -> None:
    make_folder(tmp_path, broken=("train2",))
    dataset = training_dataset(tmp_path)
    whole = make_folder(tmp_path / "whole")
    for epoch in range(3):
        order = ids(epoch_of(training_dataset(whole), epoch))
        samples = epoch_of(dataset, epoch)
        place = order.index("train2")
        wanted = [*order[:place], order[(place + 1) % 6], *order[place + 1 :]]
        assert ids(samples) == wanted
        assert [clip.clip_id for sample in samples for clip in sample.skipped] == ["train2"]
        assert "not decodable" in samples[place].skipped[0].reason


def test_evaluation_leaves_it_out(tmp_path: Path) -> None:
    data = data_module(make_folder(tmp_path, broken=("val1",)))
    batches = list(data.evaluation_loader("val"))
    assert [batch.clip_ids for batch in batches] == [["val0"], ["val2"]]
    assert [clip.clip_id for batch in batches for clip in batch.skipped] == ["val1"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_clips_broken_stops_with_one_error(tmp_path: Path, num_workers: int) -> None:
    make_folder(tmp_path, train=3, broken=("train0", "train1", "train2"))
    listener = Listener()
    with pytest.raises(DataError, match=r"^3 clips in a row cannot be read, the first is train\d .*check the media"):
        trainer(tmp_path / "run").fit(listener, datamodule=data_module(tmp_path, num_workers=num_workers))
    assert listener.trained == []


def test_all_evaluation_clips_broken(tmp_path: Path) -> None:
    make_folder(tmp_path, broken=("test0", "test1", "test2"))
    with pytest.raises(DataError, match=r"audiocaps test: 2 of 3 clips cannot be read \(test0, test1\)"):
        trainer(tmp_path / "run").test(Listener(), datamodule=data_module(tmp_path), verbose=False)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_five_percent_broken_goes_on_and_says_so(tmp_path: Path, num_workers: int) -> None:
    make_folder(tmp_path, train=40, val=20, broken=("train3", "train30", "val7"))
    listener = Listener()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(tmp_path / "run", max_epochs=2)
        run.fit(listener, datamodule=data_module(tmp_path, num_workers=num_workers, eval_batch_size=8))
    said = [str(warning.message) for warning in caught]
    for clip_id in ("train3", "train30", "val7"):
        assert sum(f"clip {clip_id} left out" in line for line in said) == 1
    assert any("audiocaps: 3 clips could not be read, listed in" in line for line in said)
    head, *rows = rows_of(tmp_path / "run" / "skipped.csv")
    assert head == ["split", "id", "path", "reason"]
    assert sorted(row[:2] for row in rows) == [["train", "train3"], ["train", "train30"], ["val", "val7"]]
    assert all(Path(row[2]).name == f"{row[1]}_30000.wav" and "not decodable" in row[3] for row in rows)
    counts = Counter(listener.trained)
    assert sum(counts.values()) == 80
    assert set(counts) == {f"train{n}" for n in range(40)} - {"train3", "train30"}
    assert Counter(listener.evaluated) == {f"val{n}": 2 for n in range(20) if n != 7}


def test_more_than_five_percent_stops_and_still_lists_them(tmp_path: Path) -> None:
    make_folder(tmp_path, train=40, broken=("train3", "train20", "train30"))
    data = data_module(tmp_path)
    with pytest.raises(
        DataError, match=r"audiocaps train: 3 of 40 clips cannot be read .*max_skipped_share 0.05 allows"
    ):
        trainer(tmp_path / "run").fit(Listener(), datamodule=data)
    assert len(rows_of(tmp_path / "run" / "skipped.csv")) == 4
    patient = data_module(tmp_path, max_skipped_share=0.2)
    trainer(tmp_path / "again").fit(Listener(), datamodule=patient)
    assert set(patient.skipped) == {"train"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_on_error_raise(tmp_path: Path, num_workers: int) -> None:
    make_folder(tmp_path, broken=("val1",))
    data = data_module(tmp_path, on_error="raise", num_workers=num_workers)
    with pytest.raises(MediaError) as caught:
        list(data.evaluation_loader("val"))
    assert type(caught.value) is MediaError
    assert caught.value.clip_id == "val1"
    assert "\n" not in str(caught.value)


def test_one_clip_only(tmp_path: Path) -> None:
    make_folder(tmp_path, train=1, val=1)
    listener = Listener()
    trainer(tmp_path / "run", max_epochs=3).fit(listener, datamodule=data_module(tmp_path, batch_size=4))
    assert listener.trained == ["train0"] * 3
    assert listener.evaluated == ["val0"] * 3


def test_a_file_that_vanishes_while_training(tmp_path: Path) -> None:
    data = data_module(make_folder(tmp_path))
    data.setup("fit")
    (tmp_path / "val" / "waveforms" / "val0_30000.wav").unlink()
    batches = list(data.evaluation_loader("val"))
    assert batches[0].skipped[0].reason == "no such file"


# -- captions ----------------------------------------------------------------------------------------------------


def test_empty_captions_are_dropped(tmp_path: Path) -> None:
    rows = [(1, "a", 0, "  a dog barks "), (2, "a", 0, "   "), (3, "b", 0, ""), (4, "c", 0, "rain")]
    write_rows(tmp_path / "train.csv", rows)
    for clip_id in "abc":
        write_sound(tmp_path / "train" / "waveforms" / f"{clip_id}.wav", sound(0))
    index = data_module(tmp_path).read_split("train")
    assert [(record.clip_id, record.captions) for record in index.records] == [("a", ["a dog barks"]), ("c", ["rain"])]
    assert index.missing == [("b", "every caption is empty")]


def test_a_caption_of_400_words_passes_and_is_cut_with_its_end_token(tmp_path: Path) -> None:
    long = " ".join(["a dog barks and"] * 100)
    write_rows(tmp_path / "train.csv", [(1, "a", 0, long)])
    write_sound(tmp_path / "train" / "waveforms" / "a.wav", sound(0))
    (batch,) = data_module(tmp_path).train_dataloader()
    assert batch.caption == [long]
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"model_type": "llama", **sizes}
    language = CausalLanguageModel(LanguageSettings(source=None, config=config, dtype="float32", training="frozen"))
    ids_, mask = language.token_ids([*batch.caption, "rain"], end=True, max_tokens=300)
    assert ids_.shape == (2, 300)
    assert mask.sum(dim=1).tolist() == [300, 2]
    assert ids_[0, -1] == ids_[1, 1] == language.tokenizer.eos_token_id
    assert language.decode(ids_[:1, :-1]) == [" ".join(long.split()[:299])]


def test_caption_draw_depends_on_seed_epoch_and_clip(tmp_path: Path) -> None:
    make_folder(tmp_path, train=8, captions=5)

    def captions(epoch: int, seed: int = 0) -> dict[str, str]:
        samples = epoch_of(training_dataset(tmp_path, seed=seed), epoch)
        return {sample.record.clip_id: sample.caption for sample in samples if sample.record}

    assert captions(3) == captions(3)
    drawn = [captions(epoch) for epoch in range(12)]
    for clip_id in drawn[0]:
        assert len({one[clip_id] for one in drawn}) > 1
        assert all(one[clip_id].startswith(clip_id.replace("train", "train ") + " ") for one in drawn)
    numbers = Counter(one[clip_id][-1] for one in drawn for clip_id in one)
    assert set(numbers) == set("01234")
    assert max(numbers.values()) < 2.5 * min(numbers.values())
    assert captions(0, seed=1) != captions(0)


def test_a_drawn_caption_does_not_depend_on_where_the_clip_stands_in_for_a_broken_one(tmp_path: Path) -> None:
    make_folder(tmp_path, captions=5, broken=("train2",))
    samples = epoch_of(training_dataset(tmp_path), 0)
    said: dict[str, set[str]] = {}
    for sample in samples:
        assert sample.record is not None
        said.setdefault(sample.record.clip_id, set()).add(sample.caption)
    assert all(len(captions) == 1 for captions in said.values())


def test_evaluation_gives_all_references_and_the_first_as_caption(tmp_path: Path) -> None:
    data = data_module(make_folder(tmp_path, captions=5), eval_batch_size=3)
    (batch,) = data.evaluation_loader("val")
    assert [len(references) for references in batch.captions] == [5, 5, 5]
    assert batch.caption == [references[0] for references in batch.captions]


# -- batches -----------------------------------------------------------------------------------------------------


def same(left: Batch, right: Batch) -> bool:
    tensors = ("waveform", "num_samples", "frames", "frame_mask")
    return (left.clip_ids, left.caption, left.captions, left.skipped) == (
        right.clip_ids,
        right.caption,
        right.captions,
        right.skipped,
    ) and all(_equal(getattr(left, name), getattr(right, name)) for name in tensors)


def _equal(left: Tensor | None, right: Tensor | None) -> bool:
    return left is right is None or (left is not None and right is not None and torch.equal(left, right))


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    make_folder(tmp_path, train=7, captions=2, with_videos=True, broken=("train4",))
    options: dict[str, Any] = {"modalities": ("audio", "visual")}
    alone = data_module(tmp_path, **options).train_dataloader()
    helped = data_module(tmp_path, num_workers=2, **options).train_dataloader()
    torch.manual_seed(1)
    seen = set()
    for epoch in range(2):
        for loader in (alone, helped):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        pairs = list(zip(alone, helped, strict=True))
        assert len(pairs) == 4
        assert all(same(left, right) for left, right in pairs)
        seen.add(tuple(clip_id for batch, _ in pairs for clip_id in batch.clip_ids))
    assert len(seen) == 2


def test_loading_draws_nothing_from_the_global_generator(tmp_path: Path) -> None:
    data = data_module(make_folder(tmp_path))
    before = torch.get_rng_state()
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.equal(before, torch.get_rng_state())


def test_silence_passes(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.csv", [(1, "a", 0, "nothing"), (2, "b", 0, "something")])
    write_sound(tmp_path / "train" / "waveforms" / "a.wav", np.zeros(800))
    write_sound(tmp_path / "train" / "waveforms" / "b.wav", sound(5))
    (batch,) = data_module(tmp_path).evaluation_loader("train")
    assert batch.skipped == []
    assert batch.waveform is not None
    assert not batch.waveform[batch.clip_ids.index("a")].any()


def test_waveforms_are_padded_to_the_longest(tmp_path: Path) -> None:
    write_rows(tmp_path / "val.csv", [(1, "a", 0, "x"), (2, "b", 0, "y")])
    write_sound(tmp_path / "val" / "waveforms" / "a.wav", np.full(300, 0.5))
    write_sound(tmp_path / "val" / "waveforms" / "b.wav", np.full(100, 0.5))
    (batch,) = data_module(tmp_path).val_dataloader()
    assert batch.waveform is not None
    assert batch.num_samples is not None
    assert batch.waveform.shape == (2, 300)
    assert batch.num_samples.tolist() == [300, 100]
    assert not batch.waveform[1, 100:].any()


def lengths_folder(root: Path, count: int = 16) -> Path:
    """Clips of 0.02, 0.04, ... s."""
    write_rows(root / "train.csv", [(number, f"c{number}", 0, "x") for number in range(count)])
    for number in range(count):
        write_sound(root / "train" / "waveforms" / f"c{number}.wav", np.full(320 * (number + 1), 0.25))
    return root


def test_audio_buckets_give_few_shapes(tmp_path: Path) -> None:
    lengths_folder(tmp_path)
    shapes: dict[str, set[tuple[int, ...]]] = {}
    kinds: dict[str, dict[str, Any]] = {
        "free": {},
        "buckets": {"audio_buckets_s": (0.3, 0.1, 0.2)},
        "whole": {"audio_buckets_s": (0.3, 0.1, 0.2), "drop_last": True},
    }
    for name, options in kinds.items():
        data = data_module(tmp_path, batch_size=3, **options)
        loader = data.train_dataloader()
        batches = []
        for epoch in range(4):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            batches += list(loader)
        shapes[name] = {batch.shapes()["waveform"] for batch in batches}
        for batch in batches:
            assert batch.waveform is not None
            assert batch.num_samples is not None
            real = torch.arange(batch.waveform.shape[1])[None] < batch.num_samples[:, None]
            assert torch.equal(batch.waveform != 0, real)
            assert batch.num_samples.tolist() == [320 * (int(i[1:]) + 1) for i in batch.clip_ids]
    assert len(shapes["free"]) > 6
    assert {length for _, length in shapes["buckets"]} <= {1600, 3200, 4800, 9600}  # the longest is of 5120
    assert len(shapes["buckets"]) <= 6
    assert shapes["whole"] <= {(3, 1600), (3, 3200), (3, 4800), (3, 9600)}


def test_drop_last_fills_the_last_batch_of_evaluation(tmp_path: Path) -> None:
    lengths_folder(tmp_path)
    for whole in (False, True):
        data = data_module(tmp_path, eval_batch_size=5, drop_last=whole)
        sizes = [len(batch) for batch in data.evaluation_loader("train")]
        ids = {clip_id for batch in data.evaluation_loader("train") for clip_id in batch.clip_ids}
        assert len(ids) == data.num_clips("train")
        assert (set(sizes) == {5}) is whole


def test_drop_last_needs_a_whole_batch(tmp_path: Path) -> None:
    data = data_module(make_folder(tmp_path, train=3), batch_size=4, drop_last=True)
    with pytest.raises(ConfigError, match=r"train has 3 clips, which fill no batch of .*batch_size 4 on 1 processes"):
        data.train_dataloader()


def test_loader_settings_reach_torch(tmp_path: Path) -> None:
    make_folder(tmp_path)
    plain = data_module(tmp_path, num_workers=1).train_dataloader()
    assert (plain.persistent_workers, plain.pin_memory) == (True, torch.cuda.is_available())
    other = data_module(tmp_path, num_workers=1, persistent_workers=False, pin_memory=True).train_dataloader()
    assert (other.persistent_workers, other.pin_memory) == (False, True)


def test_a_worker_is_waited_for_as_long_as_was_asked(tmp_path: Path) -> None:
    make_folder(tmp_path)
    data = data_module(tmp_path, num_workers=1, worker_timeout_s=7.0)
    caching = data._decoding_loader("val", 1, ("visual",), [(0, 0)], num_workers=1)
    for loader in (data.train_dataloader(), data.evaluation_loader("val"), caching):
        assert loader.timeout == 7.0
    assert data_module(tmp_path, num_workers=0, worker_timeout_s=7.0).train_dataloader().timeout == 0


def sample(clip_id: str, **parts: Any) -> Sample:
    return Sample(ClipRecord(clip_id, ["x"]), "x", **parts)


def test_a_batch_without_any_readable_clip() -> None:
    batch = collate([Sample(None)], 4)
    assert len(batch) == 0
    assert batch.waveform is batch.frames is None


def test_clips_that_lack_what_others_have_are_named() -> None:
    with pytest.raises(DataError, match=r"clips b have no sound, others of their batch have"):
        collate([sample("a", waveform=torch.zeros(3)), sample("b")], 2)


def test_features_are_padded_and_masked_and_must_be_equally_wide() -> None:
    batch = collate([sample("a", features=torch.ones(2, 4)), sample("b", features=torch.ones(3, 4))], 2)
    assert batch.visual_features is not None
    assert batch.frame_mask is not None
    assert batch.visual_features.shape == (2, 3, 4)
    assert batch.frame_mask.tolist() == [[True, True, False], [True, True, True]]
    with pytest.raises(DataError, match=r"differ in width: a has 4, b has 5"):
        collate([sample("a", features=torch.ones(2, 4)), sample("b", features=torch.ones(2, 5))], 2)


def test_boxes_of_the_frames_in_which_an_object_is_seen() -> None:
    objects = [{"label": "dog", "onset_s": 0.0, "offset_s": 4.0, "box": [0, 0, 1, 1]}]
    record = ClipRecord("a", ["x"], objects=objects, sounds=[], duration_s=8.0)
    batch = collate([Sample(record)], 4)
    assert batch.boxes is not None
    assert [box.frame for box in batch.boxes[0]] == [0, 1]
    assert batch.sound_events == [[]]


# -- records -----------------------------------------------------------------------------------------------------


RECORDS = [
    ClipRecord("a-_1", ["Ein Hund bellt, 犬\n", 'quoted "x"'], audio="a b.wav"),
    ClipRecord("b", [], visual="v.mp4", sounds=[{"label": "x", "onset_s": 0.1, "offset_s": 2.0}], duration_s=2.5),
    ClipRecord("c", ["x"], objects=[{"label": "y", "onset_s": 0.0, "offset_s": 1.0, "box": [0.0, 0.1, 0.5, 1.0]}]),
]


def test_packed_records_are_the_records() -> None:
    packed = PackedRecords(RECORDS)
    for copy in (packed, pickle.loads(pickle.dumps(packed))):
        assert len(copy) == 3
        assert [copy[index] for index in range(3)] == RECORDS
        with pytest.raises(IndexError):
            copy[3]
    assert len(PackedRecords([])) == 0


def test_a_dataset_holds_no_python_objects_per_clip() -> None:
    packed = PackedRecords(ClipRecord(f"c{n}", ["x"]) for n in range(1000))
    dataset = ClipDataset(packed, DecodeSettings(16_000, 2, 16, ("audio",), "skip"), seed=0, training=True)
    reached: list[Any] = [dataset]
    seen = set()
    while reached:
        thing = reached.pop()
        if id(thing) in seen or isinstance(thing, type) or callable(thing):
            continue
        seen.add(id(thing))
        assert not isinstance(thing, ClipRecord | SplitIndex)
        assert not isinstance(thing, list) or len(thing) < 100
        reached += gc.get_referents(thing)
    assert len(pickle.dumps(dataset)) < 200_000


# -- what systems ask --------------------------------------------------------------------------------------------


def test_fingerprint_follows_clips_captions_and_decoding(tmp_path: Path) -> None:
    make_folder(tmp_path)
    first = data_module(tmp_path).fingerprint()
    assert data_module(tmp_path, batch_size=5, seed=3).fingerprint() == first
    assert data_module(tmp_path, num_frames=3).fingerprint() != first
    (tmp_path / "train" / "waveforms" / "train1_30000.wav").unlink()
    assert data_module(tmp_path).fingerprint() != first


def test_plain_loader(tmp_path: Path) -> None:
    data = data_module(make_folder(tmp_path, with_videos=True), num_workers=2)
    loader = data.plain_loader("train", 4, ("visual",))
    batches = list(loader)
    assert loader.num_workers == 0
    assert [clip_id for batch in batches for clip_id in batch.clip_ids] == [f"train{n}" for n in range(6)]
    assert all(batch.waveform is None and batch.frames is not None for batch in batches)
    orders = []
    for epoch in range(2):
        shuffled = data.plain_loader("train", 4, ("audio",), shuffled=True)
        shuffled.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        orders.append([clip_id for batch in shuffled for clip_id in batch.clip_ids])
    assert sorted(orders[0]) == sorted(orders[1]) == [f"train{n}" for n in range(6)]
    assert orders[0] != orders[1]


class Writer(Listener):
    """Writes down the clips of each step, and stops after some."""

    def __init__(self, folder: Path, stop_after: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.stop_after = stop_after

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        with (self.folder / f"{self.trainer.global_rank}.txt").open("a") as file:
            file.write("".join(f"{clip_id}\n" for clip_id in batch.clip_ids))
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.trainer.global_step == self.stop_after:
            self.trainer.save_checkpoint(self.folder / "stopped.ckpt")
            self.trainer.should_stop = True


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_in_mid_epoch_on_other_processes(tmp_path: Path, before: int, after: int) -> None:
    make_folder(tmp_path / "data", train=24, val=1)
    options: dict[str, Any] = {"limit_val_batches": 0, "max_epochs": 1}

    def start(folder: str, processes: int, stop_after: int | None, ckpt_path: Path | None = None) -> Counter[str]:
        (tmp_path / folder).mkdir()
        ddp = {"strategy": "ddp_fork", "devices": processes} if processes > 1 else {"devices": 1}
        run = trainer(tmp_path / folder / "run", plugins=[AtomicCheckpointIO()], **options, **ddp)
        data = data_module(tmp_path / "data", num_workers=1)
        run.fit(Writer(tmp_path / folder, stop_after), datamodule=data, ckpt_path=ckpt_path)
        lines = [path.read_text().split() for path in sorted((tmp_path / folder).glob("*.txt"))]
        assert len(lines) == processes
        return Counter(clip_id for line in lines for clip_id in line)

    first = start("first", before, 3)
    assert sum(first.values()) == 3 * 2 * before
    second = start("second", after, None, tmp_path / "first" / "stopped.ckpt")
    assert first + second == Counter(f"train{number}" for number in range(24))


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")
def test_two_processes_list_what_either_of_them_skipped(tmp_path: Path) -> None:
    make_folder(tmp_path, train=40, val=4, broken=("train3", "train20"))
    run = trainer(tmp_path / "run", strategy="ddp_fork", devices=2)
    run.fit(Listener(), datamodule=data_module(tmp_path))
    _, *rows = rows_of(tmp_path / "run" / "skipped.csv")
    assert sorted(row[1] for row in rows) == ["train20", "train3"]
