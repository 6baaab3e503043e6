"""A short training of self-made backbones, in the place of the pre-training that CED, CLIP and Llama bring.

Without it a LAVCap built from configs alone learns next to nothing: the encoders must be competent before captions can
teach the rest. It needs data with labelled sounds and boxes, such as the embedded scenes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from avcap_zoo import __version__
from avcap_zoo.backbones.audio.ced import CED, PATCH_SIZE
from avcap_zoo.backbones.language import CausalLanguageModel
from avcap_zoo.batch import Batch, ClipSource, FrozenEncoder, Modality
from avcap_zoo.errors import ConfigError
from avcap_zoo.systems.lavcap.model import LAVCapModel
from avcap_zoo.systems.lavcap.module import LAVCap
from avcap_zoo.weights.load import load_strictly, load_tensors


class PrepareBackbones(Callback):
    """Before a fit from nothing: teach the audio encoder sounds, the vision encoder objects, the decoder captions.

    Only backbones without a source of their own are touched. The result is kept in a cache folder under a key of
    everything it depends on, so a second run starts at once; several processes share one cache. What frozen encoders
    make of the training and validation clips is stored there too, and the data module reads that instead of decoding
    and encoding the same clips again and again.

    Args:
        audio_steps: optimizer steps on time-wise sound labels; 0 = leave the audio encoder as it is.
        vision_steps: steps on frame-wise object labels.
        language_steps: steps on the training captions alone.
        batch_size: clips or captions per step; frames per step are eight times as many.
        lr: peak learning rate of AdamW, one cosine down to zero after a tenth of warm-up.
        seed: of initial draws.
        cache_dir: None = `~/.cache/avcap_zoo/prepared`.
    """

    def __init__(
        self,
        audio_steps: int = 300,
        vision_steps: int = 1200,
        language_steps: int = 250,
        batch_size: int = 16,
        lr: float = 2e-3,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        self.steps = {"vision_encoder": vision_steps, "audio_encoder": audio_steps, "language": language_steps}
        self.batch_size = batch_size
        self.lr = lr
        self.seed = seed
        self.cache_dir = (
            Path(cache_dir).expanduser() if cache_dir else Path.home() / ".cache" / "avcap_zoo" / "prepared"
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare on the first process, then give the result to all.

        Raises:
            ConfigError: used with another system, or with data without labels.
        """
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, LAVCap) or not isinstance(data, ClipSource):
            raise ConfigError("PrepareBackbones prepares LAVCap on a data module of this package, found something else")
        model = pl_module.model
        folder = self.cache_dir / self._data_key(data)
        if not pl_module.prepared:
            if trainer.is_global_zero:
                for name in [name for name in self.steps if name in model.self_made and self.steps[name]]:
                    self._prepare_or_load(name, pl_module, data, folder)
            for name in model.self_made:
                for tensor in getattr(model, name).state_dict().values():
                    tensor.copy_(trainer.strategy.broadcast(tensor.cpu()))
        constant: list[Modality] = ["visual"] if model.fusion.settings.needs_vision else []
        if model.audio_is_constant:
            constant.append("audio")
        for modality in constant:
            encoder = model.frozen_encoder(modality)
            features = folder / f"{modality}-{encoder.key}"
            if trainer.is_global_zero:
                folder.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{features}.lock"):  # another run may be storing the same
                    store_features(encoder, data, features, pl_module.device)
            trainer.strategy.barrier()
            data.use_feature_cache(features, modality)

    def _data_key(self, data: ClipSource) -> str:
        """Name of everything but the backbone that the result depends on."""
        return _hash([__version__, data.fingerprint(), self.seed, self.batch_size, self.lr])

    def _prepare_or_load(self, name: str, module: LAVCap, data: ClipSource, folder: Path) -> None:
        part = getattr(module.model, name)
        settings = {
            "audio_encoder": asdict(module.audio),
            "vision_encoder": asdict(module.vision),
            "language": asdict(module.language),
        }[name]
        path = folder / f"{name}-{_hash([self.steps[name], settings])}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.is_file():
                rank_zero_info(f"{name}: prepared weights from {path}")
                load_strictly(part, load_tensors(path), str(path))
                return
            training_before = part.training
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                self._train(name, module, data)
            part.train(training_before)
            staging = path.with_suffix(".partial")
            save_file({key: value.clone() for key, value in part.state_dict().items()}, staging)
            staging.replace(path)

    def _train(self, name: str, module: LAVCap, data: ClipSource) -> None:
        """A plain training loop over one backbone."""
        part = getattr(module.model, name)
        steps = self.steps[name]
        task = {"audio_encoder": sound_task, "vision_encoder": object_task, "language": caption_task}[name]
        head, losses = task(module.model, data, self.batch_size, module.device)
        trainable = {p: p.requires_grad for p in part.parameters()}
        norm_frozen = isinstance(part, CED) and part.batch_norm_frozen
        if isinstance(part, CED):
            part.batch_norm_frozen = False  # its statistics are what it learns here, whatever follows
        part.requires_grad_(True).train()
        for key, parameter in part.named_parameters():
            if "lora_" in key:  # adapters belong to the fit, not to what stands in for pre-training
                parameter.requires_grad_(False)
        parameters = [*(p for p in part.parameters() if p.requires_grad), *head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, betas=(0.9, 0.98), weight_decay=0.01)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        with torch.enable_grad(), tqdm(total=steps, desc=f"preparing {name}", mininterval=1.0) as bar:
            for step, loss in zip(range(steps), losses(), strict=False):
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                scheduler.step()
                bar.update()
                if step % 20 == 0:
                    bar.set_postfix(loss=f"{loss.item():.3f}")
        optimizer.zero_grad()
        for parameter, flag in trainable.items():
            parameter.requires_grad_(flag)
        if norm_frozen:
            part.freeze_batch_norm()


Task = tuple[nn.Module, Callable[[], Iterator[Tensor]]]


def sound_task(model: LAVCapModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Which labelled sounds are heard during each audio token, as binary cross-entropy.

    Args:
        model: its audio encoder is trained.
        data: needs `sound_events`.
        batch_size: clips per step.
        device: where to compute.

    Returns:
        A throw-away linear head and a generator of losses without end.

    Raises:
        ConfigError: the data has no labelled sounds.
    """
    labels = _labels(data, "sounds")
    settings = model.audio_settings.encoder
    token_s = PATCH_SIZE * settings.frame_shift_ms / 1000
    head = nn.Linear(settings.embed_dim, len(labels)).to(device)

    def losses() -> Iterator[Tensor]:
        for batch in _endless(data, batch_size, ("audio",)):
            batch = batch.to(device)
            assert batch.sound_events is not None
            assert batch.waveform is not None
            assert batch.num_samples is not None
            logits = head(model.encode_spectrogram(model.spectrogram(batch.waveform, batch.num_samples)))
            starts = torch.arange(logits.shape[1]) * token_s
            target = torch.zeros(logits.shape)
            for row, events in enumerate(batch.sound_events):
                for event in events:
                    heard = (starts + token_s > event.onset_s) & (starts < event.offset_s)
                    target[row, :, labels[event.label]] += heard
            yield F.binary_cross_entropy_with_logits(logits, target.clamp_max(1).to(device))

    return head, losses


def object_task(model: LAVCapModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Which labelled objects are seen in single frames, as binary cross-entropy; arguments as in `sound_task`."""
    labels = _labels(data, "objects")
    head = nn.Linear(model.vision_encoder.embed_dim, len(labels)).to(device)
    frames, targets = [], []
    for batch in tqdm(data.plain_loader("train", batch_size, ("visual",)), desc="reading pictures", mininterval=1.0):
        if len(batch) == 0:  # every clip of it is broken: training will say so
            continue
        assert batch.frames is not None
        assert batch.boxes is not None
        target = torch.zeros((*batch.frames.shape[:2], len(labels)))
        for row, boxes in enumerate(batch.boxes):
            for box in boxes:
                target[row, box.frame, labels[box.label]] = 1
        frames.append(batch.frames.flatten(0, 1))
        targets.append(target.flatten(0, 1))
    all_frames, all_targets = torch.cat(frames), torch.cat(targets)

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = torch.randint(len(all_frames), (8 * batch_size,))
            logits = head(model.vision_encoder(all_frames[chosen][:, None].to(device))[:, 0])
            yield F.binary_cross_entropy_with_logits(logits, all_targets[chosen].to(device))

    return head, losses


def caption_task(model: LAVCapModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Next-token prediction of the training captions alone; arguments as in `sound_task`."""
    language: CausalLanguageModel = model.language
    captions = data.training_captions()
    embed = language.model.get_input_embeddings()

    def losses() -> Iterator[Tensor]:
        none = (
            torch.zeros((batch_size, 0), dtype=torch.long, device=device),
            torch.zeros((batch_size, 0), dtype=torch.bool, device=device),
        )
        prefix = torch.zeros((batch_size, 0, embed.embedding_dim), device=device)
        while True:
            chosen = [captions[index] for index in torch.randint(len(captions), (batch_size,)).tolist()]
            ids = language.token_ids(chosen, end=True)
            yield language.loss(language.wrap(prefix, none[1], none, none, ids))

    return nn.Identity(), losses


def store_features(encoder: FrozenEncoder, data: ClipSource, folder: Path, device: torch.device) -> None:
    """Fill a feature cache of the training and validation clips.

    Args:
        encoder: sees every clip once, in evaluation mode.
        data: gives the clips.
        folder: of the cache; clips that it holds already are not seen again.
        device: where to compute.
    """
    was_training = encoder.module.training
    encoder.module.eval()
    data.cache_features(encoder, folder, ("train", "val"), device=device)
    encoder.module.train(was_training)


def _labels(data: ClipSource, kind: Literal["sounds", "objects"]) -> dict[str, int]:
    names = data.label_names(kind)
    if not names:
        raise ConfigError(
            f"PrepareBackbones needs labelled {kind}, {type(data).__name__} has none: "
            f"remove the callback and give the backbones sources, or train on the embedded scenes"
        )
    return {name: index for index, name in enumerate(names)}


def _endless(data: ClipSource, batch_size: int, modalities: tuple[Any, ...]) -> Iterator[Batch]:
    loader = data.plain_loader("train", batch_size, modalities, shuffled=True)
    epoch = 0
    while True:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader
        epoch += 1


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
