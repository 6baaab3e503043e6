"""Pictures without captions: folders of files, or tar shards that are streamed."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from avcap_zoo.batch import Batch, Modality, SkippedClip, Split
from avcap_zoo.data_modules.annotations import file_name_problem
from avcap_zoo.data_modules.base import CaptionDataModule, SplitIndex
from avcap_zoo.data_modules.dataset import Sample, collate_or_error
from avcap_zoo.data_modules.media.image import decode_image
from avcap_zoo.data_modules.media.limits import MediaLimits
from avcap_zoo.data_modules.media.video import PICTURE_SUFFIXES
from avcap_zoo.data_modules.media_files import scan_folder
from avcap_zoo.data_modules.records import ClipRecord, PackedRecords
from avcap_zoo.data_modules.sampling import ClipLoader, leave_process_group
from avcap_zoo.errors import ConfigError, DataError, MediaError, first_line

SPLITS: tuple[Split, ...] = ("train", "val", "test")
MAX_PICTURE_BYTES = 100_000_000
"""A larger member of a shard is no picture."""
_JUDGED_AFTER = 1000
"""Pictures that must have been drawn before the share of broken ones says something."""


class ImagesDataModule(CaptionDataModule):
    """Pictures alone, for training that needs no captions and for captioning what one has.

    Expected folder, one of:

        root/**/*.jpg                       or .jpeg .png .webp; sub-folders as one likes
        root/*.tar                          shards in webdataset's layout; only their pictures are read
        root/{train,val,test}/...           either of these per split

    Without folders of the splits' names all pictures are of the split named by `whole_set_as`. The clip id is the path
    below the folder, without suffix and with "/" written as ":"; in shards the name before the first dot.

    Shards are read from beginning to end, one by each process and worker at a time. Their order is drawn by seed and
    epoch, and so is that of the pictures, within a buffer. Nothing is unpacked to disk, and members that are no plain
    files or whose names lead elsewhere are refused.

    Args:
        whole_set_as: the split of all pictures, without folders of the splits' names.
        images_per_epoch: of shards, pictures in an epoch over all processes; needed to train on shards, since nobody
            knows how many they hold before they are read. They begin anew when they have ended.
        shuffle_buffer: of shards, pictures among which the next one is drawn.
        modalities: pictures are all there is.
        num_frames: frames per picture; more than one are alike.
        options: see `CaptionDataModule`.

    Raises:
        ConfigError: a value out of range.
    """

    name = "images"
    given_modalities: ClassVar[tuple[Modality, ...]] = ("visual",)

    def __init__(
        self,
        root: str | None = None,
        *,
        whole_set_as: Split = "train",
        images_per_epoch: int | None = None,
        shuffle_buffer: int = 1000,
        modalities: tuple[Modality, ...] = ("visual",),
        num_frames: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(root, modalities=modalities, num_frames=num_frames, **options)
        for key, value in (("shuffle_buffer", shuffle_buffer), ("images_per_epoch", images_per_epoch)):
            if value is not None and value < 1:
                raise ConfigError(f"data.init_args.{key} is {value}, wanted at least 1")
        self.whole_set_as = whole_set_as
        self.images_per_epoch = images_per_epoch
        self.shuffle_buffer = shuffle_buffer
        self._drawn: dict[Split, int] = {}

    def has_validation(self) -> bool:
        """Whether there is a folder `val`, or all pictures are of that split."""
        return self._folder("val") is not None

    def read_split(self, split: Split) -> SplitIndex:
        """Look for the pictures of a split, or for its shards; a shard counts as one record here.

        Raises:
            DataError: there is no folder for the split, or both shards and single pictures lie in it.
        """
        folder = self._folder(split)
        if folder is None:
            raise DataError(
                f"{self.root} has no folder {split}; make one, or set data.init_args.whole_set_as: {split} to take "
                f"all pictures for it"
            )
        found = sorted((path, name) for name, path, _ in scan_folder(folder, self.root, deep=True))
        pictures = [path for path, name in found if name.lower().endswith(PICTURE_SUFFIXES)]
        shards = [path for path, name in found if name.lower().endswith(".tar")]
        if pictures and shards:
            raise DataError(f"{folder} holds {len(shards)} shards beside {len(pictures)} pictures; keep one of both")
        index = SplitIndex(sources=[str(folder)])
        index.leave_out("files that are no pictures", len(found) - len(pictures) - len(shards))
        if not found:
            raise DataError(f"{folder} holds no pictures ({' '.join(PICTURE_SUFFIXES)}) and no shards (.tar)")
        seen: set[str] = set()
        for path in pictures or shards:
            stem = os.path.splitext(os.path.relpath(path, folder))[0]  # noqa: PTH122 - a hundred thousand times
            clip_id = stem.replace(os.sep, ":")
            if clip_id in seen:
                clip_id = os.path.relpath(path, folder).replace(os.sep, ":")
            seen.add(clip_id)
            index.records.append(ClipRecord(clip_id, [], visual=path))
        return index

    def shards(self, split: Split) -> list[str]:
        """Paths of the shards of a split, in order of name; empty if it consists of single pictures."""
        paths = [record.visual or "" for record in self._index(split).records]
        return paths if paths and paths[0].lower().endswith(".tar") else []

    def counted_things(self, split: Split) -> str:
        """Pictures, or shards of nobody knows how many."""
        return "shards" if self.shards(split) else "pictures"

    def records(self, split: Split) -> PackedRecords:
        """The pictures of a split.

        Raises:
            ConfigError: they lie in shards, which are streamed; caches of features are made from single files.
        """
        if self.shards(split):
            raise ConfigError(f"{self.root} holds shards, and this needs single pictures: unpack them, one file each")
        return super().records(split)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled by seed and epoch; resumes in mid-epoch, from shards as well.

        Raises:
            ConfigError: shards without `images_per_epoch`, or fewer of them than processes and workers.
        """
        shards = self.shards("train")
        if not shards:
            return super().train_dataloader()
        if self.images_per_epoch is None:
            raise ConfigError(
                "data.init_args.images_per_epoch is not set, and how many pictures the shards hold is known only after "
                "reading them: set it to the pictures of an epoch, such as 100000"
            )
        world_size = self._rank()[1]
        num_batches = self.images_per_epoch // (self.batch_size * world_size)
        if num_batches < 1:
            raise ConfigError(
                f"data.init_args.images_per_epoch is {self.images_per_epoch}, less than one batch of "
                f"{self.batch_size} for each of {world_size} processes"
            )
        return self._stream("train", shards, num_batches)

    def evaluation_loader(self, split: Split, done: Collection[str] = ()) -> DataLoader[Batch]:
        """Any split in file order, every picture once, but for ids to leave out."""
        shards = self.shards(split)
        return self._stream(split, shards, None, done) if shards else super().evaluation_loader(split, done)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count the pictures drawn, then those that could not be read."""
        split = self._current_split()
        self._drawn[split] = self._drawn.get(split, 0) + len(batch) + len(batch.skipped)
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def num_clips(self, split: Split) -> int:
        """Pictures of a split; of shards, those drawn so far."""
        return max(self._drawn.get(split, 0), _JUDGED_AFTER) if self.shards(split) else super().num_clips(split)

    def _stream(
        self, split: Split, shards: list[str], num_batches: int | None, done: Collection[str] = ()
    ) -> ShardLoader:
        rank, world_size = self._rank()
        readers = world_size * max(1, self.num_workers)
        if num_batches is not None and len(shards) < readers:
            raise ConfigError(
                f"{len(shards)} shards cannot be shared by {world_size} processes of {max(1, self.num_workers)} "
                f"workers: lower data.init_args.num_workers, or cut the shards smaller"
            )
        stream = ShardStream(
            shards,
            batch_size=self.batch_size if num_batches is not None else self.eval_batch_size,
            num_batches=num_batches,
            num_frames=self.num_frames,
            image_size_px=self.image_size_px,
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer,
            raise_errors=self.decode.on_error == "raise",
            limits=self.decode.limits,
            rank=rank,
            world_size=world_size,
            done=done,
        )
        return ShardLoader(
            stream,
            progress=self._progress if num_batches is not None else _from_the_start,
            num_workers=self.num_workers,
            timeout=self.worker_timeout_s if self.num_workers else 0,
            worker_init_fn=leave_process_group,
            collate_fn=partial(collate_or_error, num_frames=self.num_frames),
            generator=torch.Generator().manual_seed(self.seed),
            pin_memory=torch.cuda.is_available(),
        )

    def _folder(self, split: Split) -> Path | None:
        """Where a split's pictures lie; None if nowhere."""
        if any((self.root / name).is_dir() for name in SPLITS):
            return self.root / split if (self.root / split).is_dir() else None
        return self.root if split == self.whole_set_as else None


def _from_the_start() -> tuple[int, int]:
    return 0, 0


class ShardStream(IterableDataset[Any]):
    """Batches of decoded pictures out of tar shards.

    Training: each worker of each process takes its share of the shards in the order of seed and epoch, again and again
    until its share of the epoch's batches is given. Evaluation: every shard once, in order.

    Args:
        shards: paths of tar files.
        batch_size: pictures per batch.
        num_batches: of an epoch and process; None = all pictures once, unshuffled.
        num_frames: frames per picture.
        image_size_px: side of the pictures.
        seed: of the order.
        shuffle_buffer: pictures among which the next is drawn.
        raise_errors: whether a broken picture ends the run, or is reported and left out.
        limits: what a picture may cost.
        rank: this process.
        world_size: number of processes.
        done: clip ids that are passed over, where all pictures are given once.
    """

    def __init__(
        self,
        shards: list[str],
        *,
        batch_size: int,
        num_batches: int | None,
        num_frames: int,
        image_size_px: int,
        seed: int,
        shuffle_buffer: int,
        raise_errors: bool,
        limits: MediaLimits,
        rank: int,
        world_size: int,
        done: Collection[str] = (),
    ) -> None:
        self.shards = shards
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.num_frames = num_frames
        self.image_size_px = image_size_px
        self.seed = seed
        self.shuffle_buffer = shuffle_buffer
        self.raise_errors = raise_errors
        self.limits = limits
        self.rank = rank
        self.world_size = world_size
        self.done = done
        self.epoch = 0
        self.batches_done = 0

    def __iter__(self) -> Iterator[list[Sample] | DataError]:
        """Batches of this worker from where the process stands in the epoch; an error is given, not raised."""
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        # The loader asks worker 0 first. After n batches it was the turn of worker n modulo their number.
        worker = (worker + self.batches_done) % workers
        done = _share(self.batches_done, worker, workers)
        wanted = None if self.num_batches is None else _share(self.num_batches, worker, workers)
        try:
            for number, batch in enumerate(self._batches(worker, workers)):
                if number == wanted:
                    return
                if number >= done:
                    yield batch
        except DataError as error:
            yield error

    def _batches(self, worker: int, workers: int) -> Iterator[list[Sample]]:
        pictures = self._once(worker, workers) if self.num_batches is None else self._forever(worker, workers)
        batch: list[Sample] = []
        skipped: list[SkippedClip] = []
        for clip_id, path, content in pictures:
            try:
                sample = self._decode(clip_id, path, content)
            except MediaError as error:
                if self.raise_errors:
                    raise
                skipped.append(SkippedClip(error.clip_id, error.path, error.reason))
                continue
            sample.skipped, skipped = skipped, []
            batch.append(sample)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch or skipped:
            yield [*batch, Sample(None, skipped=skipped)]

    def _once(self, worker: int, workers: int) -> Iterator[tuple[str, str, bytes | str]]:
        reader = self.rank * workers + worker
        for path in self.shards[reader :: self.world_size * workers]:
            yield from read_shard(path, lambda _, clip_id: clip_id not in self.done)

    def _forever(self, worker: int, workers: int) -> Iterator[tuple[str, str, bytes | str]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.shards))
        reader = self.rank * workers + worker
        mine = order[reader :: self.world_size * workers]
        draw = np.random.default_rng((self.seed, self.epoch, 1 + reader))
        while True:
            given = 0
            for picture in _shuffled(
                (p for shard in mine for p in read_shard(self.shards[shard])), self.shuffle_buffer, draw
            ):
                given += isinstance(picture[2], bytes)
                yield picture
            if not given:
                raise DataError(f"{len(mine)} shards hold no pictures, the first is {self.shards[mine[0]]}")

    def _decode(self, clip_id: str, path: str, content: bytes | str) -> Sample:
        if isinstance(content, str):
            raise MediaError(clip_id, path, content)
        picture = decode_image(io.BytesIO(content), self.image_size_px, clip_id, path, self.limits)
        frames = torch.from_numpy(np.repeat(picture[None], self.num_frames, axis=0))
        return Sample(ClipRecord(clip_id, [], visual=path), frames=frames)


class PicturesOfShard(ShardStream):
    """Batches of the pictures of one shard in its order, each worker its share of them.

    Args:
        path: of the shard.
        done: clip ids that are passed over.
        batch_size: pictures per batch.
        num_frames: frames per picture.
        image_size_px: side of the pictures.
        limits: what a picture may cost.
    """

    def __init__(
        self, path: str, done: set[str], batch_size: int, num_frames: int, image_size_px: int, limits: MediaLimits
    ) -> None:
        super().__init__(
            [path],
            batch_size=batch_size,
            num_batches=None,
            num_frames=num_frames,
            image_size_px=image_size_px,
            seed=0,
            shuffle_buffer=1,
            raise_errors=False,
            limits=limits,
            rank=0,
            world_size=1,
            done=done,
        )

    def _once(self, worker: int, workers: int) -> Iterator[tuple[str, str, bytes | str]]:
        def mine(number: int, clip_id: str) -> bool:
            return number % workers == worker and clip_id not in self.done

        return read_shard(self.shards[0], mine)


def _share(batches: int, worker: int, workers: int) -> int:
    """How many of the first so many batches come from a worker."""
    return (batches + workers - 1 - worker) // workers


def _shuffled(
    pictures: Iterable[tuple[str, str, bytes | str]], buffer_size: int, draw: np.random.Generator
) -> Iterator[tuple[str, str, bytes | str]]:
    """The pictures in an order drawn within a buffer."""
    buffer: list[tuple[str, str, bytes | str]] = []
    for picture in pictures:
        if len(buffer) < buffer_size:
            buffer.append(picture)
            continue
        place = int(draw.integers(buffer_size))
        buffer[place], picture = picture, buffer[place]
        yield picture
    yield from (buffer[place] for place in draw.permutation(len(buffer)))


def read_shard(
    path: str, wanted: Callable[[int, str], bool] = lambda number, clip_id: True
) -> Iterator[tuple[str, str, bytes | str]]:
    """Pictures of a tar file in its order: clip id, where it lies, and its bytes.

    Nothing is unpacked to disk. Texts beside the pictures are passed over. In place of bytes stands the reason why a
    member is refused: its name leads elsewhere, it is a link or a device, or it is larger than 100 MB. A shard that
    breaks off, or is damaged in its midst, gives what it holds, then the reason.

    Args:
        path: of the shard.
        wanted: told the number of a picture, from 0, and its clip id; others are passed over without being read.

    Raises:
        DataError: no such file, or no tar file; compressed ones are none.
    """
    begun = False
    number = -1
    try:
        with Path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            while (member := shard.next()) is not None:
                begun = True
                shard.members.clear()  # type: ignore[attr-defined]  # it would keep a record of all it has seen
                if member.isdir() or not member.name.lower().endswith(PICTURE_SUFFIXES):
                    continue
                where, clip_id, number = f"{path}:{member.name}", _clip_id(member.name), number + 1
                if not wanted(number, clip_id):
                    continue
                if reason := _refusal(member):
                    yield clip_id, where, reason
                    continue
                content = shard.extractfile(member)
                yield clip_id, where, b"" if content is None else content.read()
            # The module takes a damaged header for the end. At the real end there is a block of zeros.
            file.seek(shard.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                yield Path(path).name, path, f"the shard breaks off or is damaged at byte {shard.offset}"
    except (tarfile.TarError, EOFError, ValueError) as error:
        if not begun:
            raise DataError(f"{path} is no tar file: {first_line(error)}; get the shard again") from error
        yield Path(path).name, path, f"the shard breaks off or is damaged: {first_line(error)}"
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _clip_id(name: str) -> str:
    """The path of a member up to the first dot of its last part."""
    folder, slash, last = name.removeprefix("./").rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0] or last}".replace("/", ":")


def _refusal(member: tarfile.TarInfo) -> str:
    name = member.name.removeprefix("./")
    if not member.isreg():
        return "is a link or a device, wanted a plain file"
    if name.startswith("/") or any(file_name_problem(part) for part in name.split("/")):
        return "its name leads out of the shard or holds control characters"
    if member.size > MAX_PICTURE_BYTES:
        return f"declares {member.size} bytes, at most {MAX_PICTURE_BYTES} are read"
    return ""


class ShardLoader(ClipLoader):
    """A loader of a `ShardStream` that Lightning saves and restores in mid-epoch.

    Args:
        stream: makes the batches.
        progress: gives (epoch, batches trained in it by this process).
        options: of torch's DataLoader.
    """

    def __init__(self, stream: ShardStream, *, progress: Callable[[], tuple[int, int]], **options: Any) -> None:
        super().__init__(dataset=stream, batch_size=None, **options)
        self._stream = stream
        self._progress = progress
        self._resumed: dict[str, int] | None = None

    def __len__(self) -> int:
        """Batches of an epoch in this process.

        Raises:
            TypeError: all pictures are given once, and nobody knows how many there are.
        """
        if self._stream.num_batches is None:
            raise TypeError("the number of pictures in the shards is not known")
        return self._stream.num_batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches from where the run stands."""
        self._stream.epoch, self._stream.batches_done = self._progress()[0], 0
        if self._resumed is not None and self._stream.num_batches is not None:
            epoch, done = self._resumed["epoch"], self._resumed["batches"]
            if done >= self._stream.num_batches:
                epoch, done = epoch + 1, 0
            self._stream.epoch, self._stream.batches_done = epoch, done
            self._resumed = None
        return super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches given in it."""
        epoch, batches = self._progress()
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken."""
        self._resumed = state
