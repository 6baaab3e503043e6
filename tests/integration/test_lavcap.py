"""LAVCap trains, resumes, is scored and captions, on real files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from torch import Tensor

from avcap_zoo.batch import Batch, Modality
from avcap_zoo.data_modules.feature_cache import FeatureReader, NumberType
from avcap_zoo.errors import ConfigError, NonFiniteLossError, WeightsError
from avcap_zoo.systems.lavcap.module import LAVCap
from avcap_zoo.systems.lavcap.preparation import PrepareBackbones
from tests.integration.tiny import tiny_data, tiny_lavcap, tiny_trainer


def fit(
    root: Path, folder: Path, *, system: LAVCap | None = None, ckpt_path: Path | None = None, **options: Any
) -> LAVCap:
    seed_everything(1, verbose=False)
    data = tiny_data(root, **options.pop("data", {}))
    system = system or tiny_lavcap(training="lora")
    tiny_trainer(folder, **options).fit(system, datamodule=data, ckpt_path=ckpt_path)
    return system


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]


def assert_same(left: Any, right: Any, where: str = "") -> None:
    """Bitwise equality of nested checkpoints."""
    assert type(left) is type(right), where
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    else:
        assert left == right, where


@pytest.mark.parametrize(("stopped_at", "num_workers"), [(3, 0), (5, 0), (7, 2)])
def test_resumed_run_is_bitwise_the_uninterrupted_one(
    scenes_root: Path, tmp_path: Path, stopped_at: int, num_workers: int
) -> None:
    # 24 clips in batches of 5 are five steps an epoch: 3 is in mid-epoch, 5 at its end, 7 within the second.
    data = {"num_workers": num_workers}
    options: dict[str, Any] = {"max_steps": 9, "val_check_interval": 4, "check_val_every_n_epoch": None, "data": data}
    fit(scenes_root, tmp_path / "whole", every=1, **options)
    whole = load(tmp_path / "whole/checkpoints/step=9.ckpt")
    middle = tmp_path / f"whole/checkpoints/step={stopped_at}.ckpt"
    fit(scenes_root, tmp_path / "resumed", every=1, ckpt_path=middle, **options)
    resumed = load(tmp_path / "resumed/checkpoints/step=9.ckpt")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(resumed[key], whole[key], key)
    assert_same(resumed["avcap_zoo"], whole["avcap_zoo"], "avcap_zoo")

    def losses(folder: str) -> dict[str, str]:
        with (tmp_path / folder / "metrics.csv").open() as file:
            return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}

    tail = losses("resumed")
    assert set(tail) == {str(step) for step in range(stopped_at, 9)}
    assert tail == {step: loss for step, loss in losses("whole").items() if step in tail}


def test_steps_of_a_run_differ_from_another_seed(scenes_root: Path, tmp_path: Path) -> None:
    # The bitwise test above would pass on a constant; this one would not.
    first = fit(scenes_root, tmp_path / "a", max_steps=2, every=1)
    second = fit(scenes_root, tmp_path / "b", max_steps=2, every=1, data={"seed": 5})
    assert not torch.equal(first.model.projector.weight, second.model.projector.weight)


@pytest.fixture(scope="module")
def language_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model on disk, so that its frozen weights need not be in checkpoints."""
    from avcap_zoo.backbones.language import CausalLanguageModel, LanguageSettings
    from tests.integration.tiny import LANGUAGE

    folder = tmp_path_factory.mktemp("language")
    torch.manual_seed(3)
    made = CausalLanguageModel(LanguageSettings(source=None, config=dict(LANGUAGE), dtype="float32", training="full"))
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


def test_checkpoint_holds_what_was_trained_and_refuses_another_base(
    scenes_root: Path, tmp_path: Path, language_folder: Path
) -> None:
    system = tiny_lavcap(training="lora", language_source=str(language_folder))
    fit(scenes_root, tmp_path, system=system, max_steps=1, every=1)
    path = tmp_path / "checkpoints/step=1.ckpt"
    checkpoint = load(path)
    language = {name for name in checkpoint["state_dict"] if name.startswith("model.language.")}
    assert language
    assert all("lora_" in name for name in language)
    assert {"model.projector.weight", "model.fusion.logit_scale", "model.audio_encoder.init_bn.running_mean"} <= set(
        checkpoint["state_dict"]
    )
    assert any(name.startswith("model.vision_encoder.") for name in checkpoint["state_dict"])  # it has no other home

    again = tiny_lavcap(training="lora", language_source=str(language_folder))
    tiny_trainer(tmp_path / "again").test(again, datamodule=tiny_data(scenes_root), ckpt_path=path, verbose=False)
    assert_same(again.state_dict(), system.state_dict(), "state")

    other_folder = tmp_path / "other"
    system.model.language.model.model.layers[0].mlp.gate_proj.weight.data += 1
    base = {
        n.replace(".base_layer", ""): t for n, t in system.model.language.model.state_dict().items() if "lora_" not in n
    }
    system.model.language.model.save_pretrained(other_folder, state_dict=base)
    system.model.language.tokenizer.save_pretrained(other_folder)
    other = tiny_lavcap(training="lora", language_source=str(other_folder))
    with pytest.raises(WeightsError, match=r"trained on frozen weights \w{16}, the configured ones are \w{16}"):
        tiny_trainer(tmp_path / "third").test(other, datamodule=tiny_data(scenes_root), ckpt_path=path)
    wrong = tiny_lavcap(training="lora", kind="audio_only", language_source=str(language_folder))
    with pytest.raises(
        WeightsError, match=r"does not fit the configured LAVCap: .*unknown: model\.fusion\.logit_scale"
    ):
        tiny_trainer(tmp_path / "fourth").test(wrong, datamodule=tiny_data(scenes_root), ckpt_path=path)


def test_the_look_inside_shows_frames_also_of_cached_features(scenes_root: Path, tmp_path: Path) -> None:
    pictures = []
    for cached in (False, True):
        torch.manual_seed(0)
        data = tiny_data(scenes_root)
        data.setup("validate")
        if cached:
            np.save(tmp_path / "features.npy", np.ones((4, 32), np.float32))
            for record in data.splits["val"].records:
                record.features = str(tmp_path / "features.npy")
        run = tmp_path / f"cached_{cached}"
        tiny_trainer(run, limit_val_batches=1).validate(tiny_lavcap(), datamodule=data, verbose=False)
        (path,) = (run / "figures").glob("inside-*.png")
        with Image.open(path) as picture:
            pictures.append(np.asarray(picture))
    assert np.array_equal(pictures[0], pictures[1])
    assert pictures[0].shape[0] > 560  # frames, spectrogram and plan


def test_validation_test_and_predict_write_scores_and_captions(scenes_root: Path, tmp_path: Path) -> None:
    system = tiny_lavcap()
    data = tiny_data(scenes_root)
    trainer = tiny_trainer(tmp_path)
    (validation,) = trainer.validate(system, datamodule=data, verbose=False)
    assert {"val/cider", "val/bleu_1", "val/bleu_4"} <= set(validation)
    (pictures,) = (tmp_path / "figures").glob("inside-*.png")
    assert pictures.stat().st_size > 100
    trainer.test(system, datamodule=data, verbose=False)
    rows = [json.loads(line) for line in (tmp_path / "test_captions.jsonl").read_text().splitlines()]
    expected = {data.records("test")[index].clip_id for index in range(6)}
    assert {row["id"] for row in rows} == expected
    assert len(rows) == 6
    assert all(len(row["references"]) == 5 and "cider" in row["scores"] for row in rows)
    summary = json.loads((tmp_path / "test_scores.json").read_text())
    assert summary["clips_scored"] == summary["clips_official"] == 6
    assert summary["clips_skipped"] == []
    assert summary["decode"]["num_beams"] == 2
    trainer.predict(system, datamodule=data)
    predicted = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert {row["id"]: row["caption"] for row in predicted} == {row["id"]: row["caption"] for row in rows}
    assert set(predicted[0]) == {"id", "caption", "system", "decode", "versions"}


class Explodes(LAVCap):
    """Gives a loss that is not a number at the third step."""

    def training_loss(self, batch: Batch) -> dict[str, Tensor]:
        losses = super().training_loss(batch)
        if self.global_step == 2:
            losses["caption"] = losses["caption"] * float("nan")
        return losses


def test_nan_loss_stops_and_names_the_clips_and_keeps_the_weights(scenes_root: Path, tmp_path: Path) -> None:
    tiny = tiny_lavcap()
    system = Explodes(
        tiny.audio,
        tiny.vision,
        tiny.language,
        tiny.fusion,
        tiny.prompts,
        tiny.generation,
        tiny.optimizer_settings,
        tiny.score_settings,
    )
    with pytest.raises(
        NonFiniteLossError, match=r"not finite at step 2 \(caption nan, ot [\d.]+\) on clips (\S+, ){4}\S+; "
    ):
        fit(scenes_root, tmp_path, system=system, max_steps=4, every=1)
    # In memory and in the last checkpoint: the weights of the step before.
    last = load(tmp_path / "checkpoints/step=2.ckpt")["state_dict"]
    moved = {name for name, _ in system.named_buffers()}  # BatchNorm has seen the batch
    for name, parameter in system.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert name in moved or name not in last or torch.equal(parameter, last[name]), name
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step=1.ckpt", "step=2.ckpt"]


def test_bf16_accumulation_and_gradient_checkpointing_train_every_adapter(scenes_root: Path, tmp_path: Path) -> None:
    system = tiny_lavcap(training="lora", gradient_checkpointing=True)
    system.configure_model()
    adapters = {name: p for name, p in system.named_parameters() if "lora_B" in name}
    assert len(adapters) == 4
    assert all(float(p.detach().abs().max()) == 0 for p in adapters.values())
    fit(
        scenes_root,
        tmp_path,
        system=system,
        max_steps=2,
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        limit_val_batches=0,
    )
    assert all(float(p.detach().abs().max()) > 0 for p in adapters.values())
    assert all(p.dtype == torch.float32 for p in adapters.values())


def test_accumulated_steps_equal_one_large_batch(scenes_root: Path, tmp_path: Path) -> None:
    def gradient(batch_size: int, accumulate: int) -> Tensor:
        torch.manual_seed(0)
        system = tiny_lavcap(training="full", kind="visual_only", lr=0.0)
        system.prompts.training = system.prompts.training[:1]
        fit(
            scenes_root,
            tmp_path / str(batch_size),
            system=system,
            data={"batch_size": batch_size},
            max_steps=1,
            accumulate_grad_batches=accumulate,
            limit_val_batches=0,
        )
        return torch.zeros(0) if system.model.projector.weight.grad is None else system.model.projector.weight.grad

    large, small = gradient(8, 1).flatten(), gradient(4, 2).flatten()
    # Captions differ in length, so the mean over the tokens of two halves is close to, not equal to, that of the whole.
    assert float(torch.cosine_similarity(large, small, dim=0)) > 0.99
    assert float(small.norm() / large.norm()) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate_hz": 32000}, "LAVCap listens at 16000 Hz, data.init_args.sample_rate_hz is 32000"),
        ({"modalities": ("audio",)}, r"LAVCap needs visual, data.init_args.modalities is \['audio'\]"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    scenes_root: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(scenes_root, tmp_path, max_steps=1, data=options)


def test_audio_only_decodes_no_pictures(scenes_root: Path, tmp_path: Path) -> None:
    system = tiny_lavcap(kind="audio_only")
    fit(scenes_root, tmp_path, system=system, max_steps=1, data={"modalities": ("audio",)})
    assert not hasattr(system.model, "vision_encoder")


def test_one_clip_is_enough_to_run(tmp_path: Path) -> None:
    from avcap_zoo.data_modules.scenes.data_module import ScenesDataModule

    data = ScenesDataModule(
        str(tmp_path / "one"), num_train=1, num_val=1, num_test=1, image_size_px=32, num_frames=2, batch_size=4
    )
    trainer = tiny_trainer(tmp_path, max_steps=2)
    with pytest.warns(UserWarning, match="CIDEr and SPIDEr of a single clip"):
        trainer.fit(tiny_lavcap(), datamodule=data)
    assert trainer.global_step == 2


def preparation(cache: Path) -> PrepareBackbones:
    return PrepareBackbones(audio_steps=2, vision_steps=2, language_steps=2, batch_size=4, cache_dir=str(cache))


def test_preparation_is_cached_and_moves_only_self_made_backbones(
    scenes_root: Path, tmp_path: Path, language_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed_everything(2, verbose=False)
    fresh = tiny_lavcap(language_source=str(language_folder))
    fresh.configure_model()
    before = {name: tensor.clone() for name, tensor in fresh.model.state_dict().items()}
    options: dict[str, Any] = {"max_steps": 1, "limit_val_batches": 0}
    fit(scenes_root, tmp_path / "a", system=fresh, callbacks=[preparation(tmp_path / "cache")], **options)
    changed = {
        name.split(".")[0]
        for name, tensor in fresh.model.vision_encoder.state_dict(prefix="vision_encoder.").items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"vision_encoder"}
    (features,) = (path for path in (tmp_path / "cache").rglob("visual-clip-*") if path.is_dir())
    assert [len(FeatureReader(features, split).lengths()) for split in ("train", "val")] == [24, 6]

    calls: list[str] = []
    monkeypatch.setattr(PrepareBackbones, "_train", lambda self, name, *_: calls.append(name))
    seed_everything(2, verbose=False)
    second = tiny_lavcap(language_source=str(language_folder))
    second.configure_model()
    fit(scenes_root, tmp_path / "b", system=second, callbacks=[preparation(tmp_path / "cache")], **options)
    assert calls == []
    assert_same(second.model.vision_encoder.state_dict(), fresh.model.vision_encoder.state_dict())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_features_train_like_live_ones(scenes_root: Path, tmp_path: Path, dtype: NumberType) -> None:
    modalities: tuple[Modality, ...] = ("audio", "visual")
    seed_everything(0, verbose=False)
    system = tiny_lavcap(training="frozen")
    system.audio.mask_padding = True
    system.audio.augment_bins = system.audio.augment_frames = 0
    system.audio.encoder.frozen_batch_norm = "eval"
    system.configure_model()
    assert system.model.audio_is_constant
    data = tiny_data(scenes_root)
    data.setup("fit")
    live = next(iter(data.val_dataloader()))
    for modality in modalities:
        encoder = system.model.frozen_encoder(modality)
        data.cache_features(
            encoder, tmp_path / modality, ("train", "val"), device=torch.device("cpu"), dtype=dtype, batch_size=4
        )
        data.use_feature_cache(tmp_path / modality, modality)
    cached = next(iter(data.val_dataloader()))
    assert cached.frames is None
    assert cached.waveform is None
    assert live.visual_features is None
    assert live.audio_features is None
    assert set(cached.feature_keys) == {"audio", "visual"}
    system.model.train()
    with torch.no_grad():
        found, wanted = system.model.fuse(cached), system.model.fuse(live)
        losses = []
        for batch in (cached, live):
            torch.manual_seed(0)
            losses.append(torch.stack(list(system.model(batch).values())))
    assert int(found.mask.sum()) == int(wanted.mask.sum())
    if dtype == "float32":
        assert torch.equal(found.tokens[found.mask], wanted.tokens[wanted.mask])
        assert torch.equal(losses[0], losses[1])
    else:
        torch.testing.assert_close(found.tokens[found.mask], wanted.tokens[wanted.mask], rtol=2**-7, atol=2**-7)
        torch.testing.assert_close(losses[0], losses[1], rtol=2**-7, atol=2**-7)
        assert not torch.equal(losses[0], losses[1])


def test_features_of_another_encoder_are_refused(scenes_root: Path, tmp_path: Path) -> None:
    seed_everything(0, verbose=False)
    system = tiny_lavcap(kind="visual_only")
    system.configure_model()
    data = tiny_data(scenes_root, modalities=("visual",))
    made_by = system.model.frozen_encoder("visual")
    counts = data.cache_features(made_by, tmp_path / "cache", ("train", "val"), device=torch.device("cpu"))
    assert counts == {"train": (24, 24), "val": (6, 6)}
    seed_everything(5, verbose=False)
    other = tiny_lavcap(kind="visual_only")
    with pytest.raises(
        WeightsError, match=rf"visual features come from the encoder {made_by.key}, the configured one is clip-\w{{16}}"
    ):
        fit(
            scenes_root,
            tmp_path / "run",
            system=other,
            max_steps=1,
            limit_val_batches=0,
            data={"visual_cache": str(tmp_path / "cache"), "modalities": ("visual",)},
        )


def test_audio_that_is_trained_is_not_taken_from_a_cache(scenes_root: Path) -> None:
    system = tiny_lavcap(training="lora")
    system.configure_model()
    with pytest.raises(ConfigError, match=r"audio tokens change in training .*audio.training is lora"):
        system.model.frozen_encoder("audio")
    only_sound = tiny_lavcap(kind="audio_only")
    only_sound.configure_model()
    with pytest.raises(ConfigError, match=r"fusion\.kind audio_only uses no visual features"):
        only_sound.model.frozen_encoder("visual")


@pytest.mark.parametrize("change", ["full", "drift", "augmented", "decibel"])
def test_audio_that_changes_in_training_is_not_cached(change: str) -> None:
    system = tiny_lavcap(training="full" if change == "full" else "frozen")
    system.audio.encoder.frozen_batch_norm = "drift" if change == "drift" else "eval"
    system.audio.encoder.front_end = "decibel" if change == "decibel" else "kaldi"
    system.audio.augment_bins = 8 if change == "augmented" else 0
    system.audio.augment_frames = 0
    system.configure_model()
    assert not system.model.audio_is_constant
