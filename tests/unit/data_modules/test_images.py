"""Folders of pictures, and tar shards: what is drawn, in which order, after which resume, and what is refused."""

from __future__ import annotations

import io
import tarfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor

from avcap_zoo.batch import Batch
from avcap_zoo.data_modules.images import ImagesDataModule, ShardStream, read_shard
from avcap_zoo.data_modules.media.limits import DEFAULT_LIMITS
from avcap_zoo.errors import ConfigError, DataError, MediaError

pytestmark = pytest.mark.filterwarnings("default:.*(left out|could not be read)")

Member = tuple[str, bytes | tarfile.TarInfo]


def picture(value: int = 0, suffix: str = "png") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, "JPEG" if suffix == "jpg" else suffix)
    return buffer.getvalue()


def write_shard(path: Path, *members: Member) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                shard.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    return path


def shards(root: Path, count: int = 4, each: int = 5) -> Path:
    for shard in range(count):
        members = [
            member
            for number in range(each)
            for member in (
                (f"{shard:02d}{number:03d}.png", picture(10 * shard + number)),
                (f"{shard:02d}{number:03d}.json", b"{}"),
                (f"{shard:02d}{number:03d}.txt", b"a caption"),
            )
        ]
        write_shard(root / f"{shard:05d}.tar", *members)
    return root


def images(root: Path, **options: Any) -> ImagesDataModule:
    return ImagesDataModule(str(root), **{"image_size_px": 8, "batch_size": 2, **options})


def ids(loader: Any) -> list[str]:
    return [clip_id for batch in loader for clip_id in batch.clip_ids]


# -- folders -----------------------------------------------------------------------------------------------------


def test_folders_at_any_depth(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.jpg", "b/d/e f.webp", "b/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(5, name.rpartition(".")[2]))
    (tmp_path / "notes.txt").touch()
    data = images(tmp_path, whole_set_as="test", num_frames=3)
    index = data.read_split("test")
    assert [record.clip_id for record in index.records] == ["a", "b:c", "b:c.png", "b:d:e f"]
    assert index.left_out == {"files that are no pictures": 1}
    batch = next(iter(data.test_dataloader()))
    assert batch.frames is not None
    assert batch.frames.shape == (2, 3, 3, 8, 8)
    assert batch.captions == [[], []]
    assert batch.caption == ["", ""]


def test_folders_of_splits(tmp_path: Path) -> None:
    for name in ("train/a.png", "val/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(picture())
    data = images(tmp_path)
    assert data.has_validation()
    assert ids(data.train_dataloader()) == ["a"]
    assert ids(data.val_dataloader()) == ["b"]
    with pytest.raises(DataError, match=r"has no folder test; make one, or set data.init_args.whole_set_as: test"):
        data.read_split("test")


def test_empty_and_mixed_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no pictures \(.jpg .jpeg .png .webp\) and no shards"):
        images(tmp_path).read_split("train")
    shards(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match="holds 4 shards beside 1 pictures; keep one of both"):
        images(tmp_path).read_split("train")


def test_no_validation_pictures_no_validation(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    data = images(tmp_path)
    data.setup("fit")
    assert data.val_dataloader() == []  # type: ignore[comparison-overlap]


# -- what a shard holds ------------------------------------------------------------------------------------------


def special(name: str, kind: bytes, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return name, info


def read(path: Path) -> list[tuple[str, bytes | str]]:
    return [(clip_id, content) for clip_id, _, content in read_shard(str(path))]


def test_only_pictures_are_taken(tmp_path: Path) -> None:
    path = write_shard(
        tmp_path / "a.tar",
        ("./x.001.jpg", picture(1, "jpg")),
        ("x.txt", b"text"),
        ("y/z.PNG", picture(2)),
        ("x.pyd", b"MZ"),
        special("folder.png", tarfile.DIRTYPE),
    )
    assert read(path) == [("x", picture(1, "jpg")), ("y:z", picture(2))]


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (("../../etc/x.png", b"x"), "its name leads out of the shard"),
        (("/etc/x.png", b"x"), "its name leads out of the shard"),
        (("a/../../x.png", b"x"), "its name leads out of the shard"),
        (("a\\..\\x.png", b"x"), "its name leads out of the shard"),
        (("a\nb.png", b"x"), "holds control characters"),
        (special("a.png", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device, wanted a plain file"),
        (special("a.png", tarfile.LNKTYPE, "good.png"), "is a link or a device, wanted a plain file"),
        (special("a.png", tarfile.CHRTYPE), "is a link or a device, wanted a plain file"),
        (special("a.png", tarfile.FIFOTYPE), "is a link or a device, wanted a plain file"),
    ],
)
def test_hostile_members_are_refused_and_the_rest_is_read(tmp_path: Path, member: Member, reason: str) -> None:
    path = write_shard(tmp_path / "a.tar", ("good.png", picture()), member, ("next.png", picture(1)))
    first, refused, following = read(path)
    assert (first, following) == (("good", picture()), ("next", picture(1)))
    assert isinstance(refused[1], str)
    assert reason in refused[1]
    assert list(tmp_path.iterdir()) == [path]  # nothing was unpacked


def test_a_worker_is_waited_for_as_long_as_was_asked(tmp_path: Path) -> None:
    data = images(shards(tmp_path / "pictures"), images_per_epoch=4, num_workers=1, worker_timeout_s=7.0)
    assert data.train_dataloader().timeout == 7.0


def test_a_member_that_declares_terabytes(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = 10**12
    (tmp_path / "a.tar").write_bytes(info.tobuf() + b"x" * 1024)
    assert read(tmp_path / "a.tar") == [
        ("a", "declares 1000000000000 bytes, at most 100000000 are read"),
        ("a.tar", "the shard breaks off or is damaged: unexpected end of data"),
    ]


@pytest.mark.parametrize("tenth", range(10))
def test_a_shard_that_breaks_off(tmp_path: Path, tenth: int) -> None:
    content = write_shard(tmp_path / "a.tar", *((f"{n}.png", picture(n)) for n in range(8))).read_bytes()[: 8 * 1024]
    path = tmp_path / "b.tar"
    path.write_bytes(content[: len(content) * tenth // 10])
    if tenth == 0:
        with pytest.raises(DataError, match=r"b.tar is no tar file: .*; get the shard again"):
            read(path)
        return
    found = read(path)
    whole = [content for content in found if isinstance(content[1], bytes)]
    assert whole == [(str(n), picture(n)) for n in range(len(whole))]
    (last,) = found[len(whole) :]
    assert last[0] == "b.tar"
    assert "the shard breaks off or is damaged" in str(last[1])


def test_a_shard_with_a_damaged_header_says_so(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.tar", *((f"{n}.png", picture(n)) for n in range(4)))
    content = bytearray(path.read_bytes())
    content[2 * 1024] ^= 0xFF  # the header of the third member
    path.write_bytes(content)
    assert read(path) == [
        ("0", picture(0)),
        ("1", picture(1)),
        ("a.tar", "the shard breaks off or is damaged at byte 2048"),
    ]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x1f\x8b\x08 compressed", picture()])
def test_files_that_are_no_shards(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a.tar is no tar file"):
        read(tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"gone.tar cannot be read: No such file"):
        read(tmp_path / "gone.tar")


# -- drawing from shards -----------------------------------------------------------------------------------------


def test_evaluation_reads_everything_once_and_in_order(tmp_path: Path) -> None:
    shards(tmp_path)
    data = images(tmp_path, whole_set_as="test")
    everything = [f"{shard:02d}{number:03d}" for shard in range(4) for number in range(5)]
    assert ids(data.test_dataloader()) == everything
    assert sorted(ids(images(tmp_path, whole_set_as="test", num_workers=2).test_dataloader())) == everything


def test_training_is_shuffled_by_seed_and_epoch(tmp_path: Path) -> None:
    shards(tmp_path)

    def drawn(epoch: int = 0, **options: Any) -> list[str]:
        loader: Any = images(tmp_path, images_per_epoch=20, **options).train_dataloader()
        assert len(loader) == 10
        loader._progress = lambda: (epoch, 0)
        return ids(loader)

    first = drawn()
    assert len(set(first)) == 20
    assert first != sorted(first)
    assert drawn() == first
    assert drawn(1) != first
    assert drawn(seed=1) != first
    assert drawn(shuffle_buffer=1) != first


def test_small_sets_begin_anew(tmp_path: Path) -> None:
    shards(tmp_path, count=1)
    drawn = ids(images(tmp_path, images_per_epoch=12).train_dataloader())
    assert len(drawn) == 12
    assert len(set(drawn[:5])) == len(set(drawn[5:10])) == 5


def stream(paths: list[str], **options: Any) -> ShardStream:
    settings: dict[str, Any] = {
        "batch_size": 2, "num_batches": 5, "num_frames": 1, "image_size_px": 8, "seed": 0, "shuffle_buffer": 3,
        "raise_errors": False, "limits": DEFAULT_LIMITS, "rank": 0, "world_size": 1,
    }  # fmt: skip
    return ShardStream(paths, **{**settings, **options})


def test_processes_share_the_shards(tmp_path: Path) -> None:
    paths = [str(path) for path in sorted(shards(tmp_path).glob("*.tar"))]
    seen = []
    for rank in (0, 1):
        batches: Any = list(stream(paths, rank=rank, world_size=2))
        assert len(batches) == 5
        seen.append({sample.record.clip_id for batch in batches for sample in batch})
    assert len(seen[0]) == len(seen[1]) == 10
    assert not seen[0] & seen[1]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("done", [1, 2, 5, 9])
def test_resume_in_mid_epoch_and_at_its_end(tmp_path: Path, num_workers: int, done: int) -> None:
    shards(tmp_path)
    data = images(tmp_path, images_per_epoch=18, num_workers=num_workers, shuffle_buffer=3)
    loader: Any = data.train_dataloader()
    first = [batch.clip_ids for batch in loader]
    loader._progress = lambda: (1, 0)
    second = [batch.clip_ids for batch in loader]
    assert (len(first), len(second)) == (9, 9)
    resumed: Any = data.train_dataloader()
    resumed.load_state_dict({"epoch": 0, "batches": done})
    assert [batch.clip_ids for batch in resumed] == (first[done:] or second)


def test_broken_pictures_are_reported_and_left_out(tmp_path: Path) -> None:
    members = [(f"{n}.png", picture(n) if n % 3 else b"garbage") for n in range(6)]
    write_shard(tmp_path / "a.tar", *members, ("../x.png", b""))
    batches = list(images(tmp_path, whole_set_as="test").test_dataloader())
    assert [clip_id for batch in batches for clip_id in batch.clip_ids] == ["1", "2", "4", "5"]
    skipped = [(clip.clip_id, clip.path) for batch in batches for clip in batch.skipped]
    assert skipped == [
        ("0", f"{tmp_path}/a.tar:0.png"),
        ("3", f"{tmp_path}/a.tar:3.png"),
        ("..:x", f"{tmp_path}/a.tar:../x.png"),
    ]
    with pytest.raises(MediaError, match=r"clip 0 .*not decodable as a picture"):
        list(images(tmp_path, whole_set_as="test", on_error="raise").test_dataloader())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shards_without_pictures_end_with_one_error(tmp_path: Path, num_workers: int) -> None:
    write_shard(tmp_path / "a.tar", ("a.txt", b"x"))
    with pytest.raises(DataError, match="1 shards hold no pictures, the first is"):
        ids(images(tmp_path, images_per_epoch=4, num_workers=num_workers).train_dataloader())


def test_shards_are_no_single_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = images(shards(tmp_path), images_per_epoch=4)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "images train: 4 of 4 shards present" in caplog.text
    with pytest.raises(ConfigError, match="holds shards, and this needs single pictures: unpack them"):
        data.plain_loader("train", 2, ("visual",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "images_per_epoch is not set, and how many pictures the shards hold is known only after"),
        ({"images_per_epoch": 1}, "images_per_epoch is 1, less than one batch of 2 for each of 1 processes"),
        ({"images_per_epoch": 9, "num_workers": 5}, "4 shards cannot be shared by 1 processes of 5 workers"),
        ({"images_per_epoch": 0}, "images_per_epoch is 0, wanted at least 1"),
        ({"shuffle_buffer": 0}, "shuffle_buffer is 0, wanted at least 1"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    shards(tmp_path)
    with pytest.raises(ConfigError, match=said):
        images(tmp_path, **options).train_dataloader()


# -- in a run ----------------------------------------------------------------------------------------------------


class Listener(LightningModule):
    """Remembers which pictures it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[str] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.trained += batch.clip_ids
        return self.weight.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, data: ImagesDataModule, *, checkpoint: Path | None = None, **options: Any) -> Listener:
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing="callbacks" in options, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, **options,
    )  # fmt: skip
    model = Listener()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, on workers and steps between logs
        trainer.fit(model, data, ckpt_path=checkpoint)
    return model


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    shards(tmp_path / "data")

    def data() -> ImagesDataModule:
        return images(tmp_path / "data", images_per_epoch=10)

    whole = fit(tmp_path, data(), max_epochs=2)
    assert len(whole.trained) == 20
    assert whole.trained[:10] != whole.trained[10:]
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit(tmp_path, data(), max_epochs=1, callbacks=[saver])
    rest = fit(tmp_path, data(), max_epochs=2, checkpoint=tmp_path / "step=3.ckpt")
    assert rest.trained == whole.trained[6:]


def test_too_many_broken_pictures_end_the_run(tmp_path: Path) -> None:
    write_shard(tmp_path / "data" / "a.tar", *((f"{n}.png", picture(n) if n % 2 else b"x") for n in range(120)))
    with pytest.raises(DataError, match=r"51 of 1000 clips cannot be read .*max_skipped_share 0.05"):
        fit(tmp_path, images(tmp_path / "data", images_per_epoch=1000), max_epochs=1)
