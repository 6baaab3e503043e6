"""A short training of BuboGPT's self-made parts, in the place of what ImageBind, BLIP-2 and Vicuna bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from avcap_zoo.backbones.joiner import Modality
from avcap_zoo.batch import ClipSource, Dialogue, DialogueSource
from avcap_zoo.errors import ConfigError
from avcap_zoo.ops.audio_clips import mel_clips
from avcap_zoo.systems.bubogpt.model import BuboGPTModel
from avcap_zoo.systems.bubogpt.module import BuboGPT
from avcap_zoo.systems.bubogpt.prompts import Row, answer_ids, assemble, prompt_row, with_markers
from avcap_zoo.systems.preparation import Lesson, PrepareParts, Task, label_columns, labelled_frames

_FRAMES_PER_STEP = 4
_NUM_DIALOGUES = 20_000
_MOST_REPEATS = 3


class PrepareBackbones(PrepareParts):
    """Before the first stage from nothing: teach the encoders what is heard and seen, the language model to answer.

    The audio tower learns sounds, the image encoder and its Q-Former objects, and the language model dialogues in
    which picture and sound are told in words. The Q-Former of sound stays random, as published, and so do projections.

    Args:
        audio_steps: optimizer steps on the sounds that are heard in clips; 0 = leave the tower as it is.
        vision_steps: steps on the objects that are seen in frames.
        language_steps: steps on dialogues.
        batch_size: clips or dialogues per step; frames per step are four times as many.
        lr: peak learning rate of AdamW, one cosine down to zero after a tenth of warm-up.
        seed: of initial draws.
        cache_dir: None = `~/.cache/avcap_zoo/prepared`.
    """

    def __init__(
        self,
        audio_steps: int = 600,
        vision_steps: int = 1200,
        language_steps: int = 1500,
        batch_size: int = 16,
        lr: float = 2e-3,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        steps = {"audio": audio_steps, "vision": vision_steps, "language": language_steps}
        super().__init__(steps, batch_size, lr, seed, cache_dir)

    def lessons(self, module: LightningModule) -> dict[str, Lesson]:
        """One for each modality, and one for the language model."""
        if not isinstance(module, BuboGPT):
            raise ConfigError(f"PrepareBackbones prepares BuboGPT, found {type(module).__name__}")
        model = module.model
        audio, vision = asdict(module.audio), [asdict(module.vision), asdict(module.vision_joiner)]
        looking = ("vision_encoder", "vision_joiner.qformer")
        language = [asdict(module.language), asdict(module.prompts)]
        return {
            "audio": Lesson(("audio_encoder",), audio, partial(sound_task, model)),
            "vision": Lesson(looking, vision, partial(object_task, model)),
            "language": Lesson(("language",), language, partial(dialogue_task, model)),
        }


def sound_task(model: BuboGPTModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Which labelled sounds are heard in a clip, as binary cross-entropy of the likeliest token of each.

    Args:
        model: its audio tower is trained.
        data: a `DialogueSource`.
        batch_size: clips per step.
        device: where to compute.

    Returns:
        A throw-away linear head and a generator of losses without end.

    Raises:
        ConfigError: the data are no such source, or the model does not listen.
    """
    encoder = model.audio_encoder
    if encoder is None:
        raise ConfigError("PrepareBackbones: audio_steps without model.init_args.modalities audio")
    clips = _source(data).labelled_clips
    labels = label_columns(clips, "sounds")
    head = nn.Linear(encoder.embed_dim, len(labels)).to(device)
    mels, targets = [], []
    for batch in tqdm(clips.plain_loader("train", batch_size, ("audio",)), desc="reading sounds", mininterval=1.0):
        assert batch.sound_events is not None
        assert batch.waveform is not None
        assert batch.num_samples is not None
        mels.append(mel_clips(batch.waveform, batch.num_samples, model.audio_settings.clips, training=True))
        target = torch.zeros(len(batch), len(labels))
        for row, events in enumerate(batch.sound_events):
            target[row, [labels[event.label] for event in events]] = 1
        targets.append(target)
    all_mels, all_targets = torch.cat(mels), torch.cat(targets)

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = torch.randint(len(all_mels), (batch_size,))
            logits = head(encoder(all_mels[chosen].to(device))).amax(dim=1)
            yield F.binary_cross_entropy_with_logits(logits, all_targets[chosen].to(device))

    return head, losses


def object_task(model: BuboGPTModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Which labelled objects are seen in single frames, told by the class token and by the likeliest query of each.

    Arguments and errors as in `sound_task`.
    """
    encoder, joiner = model.vision_encoder, model.vision_joiner
    if encoder is None or joiner is None:
        raise ConfigError("PrepareBackbones: vision_steps without model.init_args.modalities vision")
    clips = _source(data).labelled_clips
    frames, targets = labelled_frames(clips, batch_size)
    heads = nn.ModuleList(nn.Linear(width, targets.shape[1]) for width in (encoder.embed_dim, joiner.qformer.embed_dim))
    heads.to(device)

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = torch.randint(len(frames), (_FRAMES_PER_STEP * batch_size,))
            tokens = encoder(_varied(frames[chosen]).to(device))
            told = (heads[0](tokens[:, 0]), heads[1](joiner.qformer(tokens)).amax(dim=1))
            target = targets[chosen].to(device)
            yield torch.stack([F.binary_cross_entropy_with_logits(logits, target) for logits in told]).sum()

    return heads, losses


def _varied(frames: Tensor) -> Tensor:
    """Pictures with colours exchanged and, half of the time, mirrored: neither changes what a thing is called."""
    exchanged = frames[:, torch.randperm(3)]
    return exchanged.flip(3) if torch.rand(()) < 0.5 else exchanged


def dialogue_task(model: BuboGPTModel, data: ClipSource, batch_size: int, device: torch.device) -> Task:
    """Answers to questions about pictures and sounds that are told in words.

    Arguments and errors as in `sound_task`; the language model is trained.
    """
    dialogues = _source(data).dialogues(_NUM_DIALOGUES, 0)

    def losses() -> Iterator[Tensor]:
        while True:
            chosen = torch.randint(len(dialogues), (batch_size,)).tolist()
            yield model.language.loss(assemble(model.language, [told_row(model, dialogues[i]) for i in chosen], {}))

    return nn.Identity(), losses


def told_row(model: BuboGPTModel, dialogue: Dialogue) -> Row:
    """A dialogue as the model would see it, but with words in the place of the tokens of picture and sound.

    The words stand in any order, each once or several times, as queries may tell of one thing several times.
    """
    names: dict[Modality, list[str]] = {}
    for modality, words in (("vision", dialogue.told.get("visual")), ("audio", dialogue.told.get("audio"))):
        if words:
            repeated = words * (1 + int(torch.randint(_MOST_REPEATS, ())))
            names[modality] = [repeated[index] for index in torch.randperm(len(repeated)).tolist()]  # type: ignore[index]
    row = prompt_row(model.language, model.prompts, with_markers(dialogue.question, list(names)), list(names), own=True)
    ids = list(row.slices[0])
    for modality, after in zip(row.modalities, row.slices[1:], strict=True):
        ids += model.language.tokenizer(" ".join(names[modality]), add_special_tokens=False).input_ids + after
    return Row([ids], [], answer_ids(model.language, model.prompts, dialogue.answer))


def _source(data: ClipSource) -> DialogueSource:
    if not isinstance(data, DialogueSource):
        raise ConfigError(
            f"PrepareBackbones needs labelled clips and dialogues about them, {type(data).__name__} has none: "
            f"remove the callback and give the parts checkpoints, or train on the embedded scenes"
        )
    return data
