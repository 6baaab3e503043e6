"""Audio-text models at toy size: one space, any batch, clips of any length, and transformers' own front end."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.audio.htsat import HTSAT, HTSATSettings
from avcap_zoo.backbones.audio_text import (
    CLAP,
    AudioTextModel,
    CLAPSettings,
    CropSettings,
    WavCapsCLAP,
    WavCapsSettings,
    fuse_views,
)
from avcap_zoo.decoding.guided import CosineScorer
from avcap_zoo.errors import ConfigError, DataError, ShapeError, WeightsError

TOWER = {
    "patch_embeds_hidden_size": 4,
    "depths": [1, 1],
    "num_attention_heads": [1, 2],
    "window_size": 4,
    "spec_size": 64,
}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
HTSAT_TOY = HTSATSettings(
    sample_rate_hz=16_000, window_s=1.0, fft_size=256, hop_length=160, num_mel_bins=16, high_hz=7000.0, config=TOWER
)
# transformers resizes long spectrograms to 64 bins whatever the size.
CLAP_TOWER = {**TOWER, "spec_size": 128}
FRONT_END = {
    "feature_size": 64, "sampling_rate": 16_000, "hop_length": 160, "max_length_s": 1, "fft_window_size": 256,
    "frequency_max": 7000,
}  # fmt: skip
WINDOW = 16_000
KINDS = ["wavcaps", "unfused", "fused"]
AnyModel = TypeVar("AnyModel", bound=AudioTextModel)


def awake(model: AnyModel) -> AnyModel:
    """Fresh weights are so small that all sounds are nearly alike."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    return model.eval()


def wavcaps(**changes: Any) -> WavCapsCLAP:
    torch.manual_seed(0)
    settings = {"audio": HTSAT_TOY, "text": TEXT, "embed_dim": 16, "tokenizer": None, **changes}
    return awake(WavCapsCLAP(WavCapsSettings(**settings)))


def clap(fused: bool, **changes: Any) -> CLAP:
    torch.manual_seed(0)
    config = {"text": TEXT, "audio": {**CLAP_TOWER, "enable_fusion": fused}, "front_end": FRONT_END, "embed_dim": 16}
    return awake(CLAP(CLAPSettings(source=None, config=config, **changes)))


@pytest.fixture(scope="module")
def models() -> dict[str, AudioTextModel]:
    return {"wavcaps": wavcaps(), "unfused": clap(fused=False), "fused": clap(fused=True)}


def sounds(*lengths: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise that swells, of given lengths."""
    generator = torch.Generator().manual_seed(seed)
    waveform = torch.zeros(len(lengths), max(lengths))
    for clip, length in enumerate(lengths):
        swell = torch.linspace(0.05, 0.5, max(1, length))[:length]
        waveform[clip, :length] = torch.randn(length, generator=generator) * swell
    return waveform.clamp(-1, 1), torch.tensor(lengths)


def shapes_seen(model: AudioTextModel, method: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what the method is given from now on, call by call."""
    shapes: list[tuple[int, ...]] = []
    encode = getattr(model, method)

    def noting(first: Tensor, second: Tensor) -> Tensor:
        shapes.append(tuple(first.shape))
        encoded: Tensor = encode(first, second)
        return encoded

    monkeypatch.setattr(model, method, noting)
    return shapes


# -- what all of them do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_batch_equals_its_clips(models: dict[str, AudioTextModel], kind: str) -> None:
    model = models[kind]
    waveform, num_samples = sounds(16_000, 9_000, 1_600, 400)
    together = model.embed_audio(waveform, num_samples)
    assert together.shape == (4, 16)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    for clip, length in enumerate(num_samples.tolist()):
        alone = model.embed_audio(waveform[clip : clip + 1, :length], num_samples[clip : clip + 1])
        torch.testing.assert_close(together[clip], alone[0], rtol=1e-4, atol=1e-5)
    assert float((together[0] - together[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_silence_and_nothing_have_one_embedding(models: dict[str, AudioTextModel], kind: str) -> None:
    found = models[kind].embed_audio(torch.zeros(3, 1_600), torch.tensor([1_600, 800, 0]))
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, found[:1].expand(3, -1))
    crop = CropSettings("centre")
    torch.testing.assert_close(models[kind].embed_clips(torch.zeros(1, 1), torch.tensor([0]), ["a"], crop), found[:1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_nothing(models: dict[str, AudioTextModel], kind: str) -> None:
    nothing, none = torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)
    assert models[kind].embed_clips(nothing, none, [], CropSettings()).shape == (0, 16)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_texts(models: dict[str, AudioTextModel], kind: str) -> None:
    model = models[kind]
    texts = ["a dog barks", "A Dog barks", "", "rain " * 200, "rain " * 300, "a dog barks"]
    found = model.embed_texts(texts)
    assert found.shape == (6, 16)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(6))
    assert torch.equal(found[0], found[1])  # the tokenizer lower-cases
    assert torch.equal(found[3], found[4])  # cut
    assert len(model.token_rows(["rain " * 200])[0]) == model.max_text_tokens
    assert float((found[0] - found[2]).abs().max()) > 1e-5
    for index, text in enumerate(texts):
        torch.testing.assert_close(model.embed_texts([text])[0], found[index], rtol=1e-4, atol=1e-5)
    assert model.embed_texts([]).shape == (0, 16)
    assert len(model.token_rows([""])[0]) == 2
    with pytest.raises(DataError, match="a text to embed is None, wanted a string"):
        model.token_rows(["a", None])  # type: ignore[list-item]


@torch.no_grad()
def test_a_text_is_encoded_once(models: dict[str, AudioTextModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = models["wavcaps"]
    sizes = shapes_seen(model, "encode_ids", monkeypatch)
    model.embed_texts(["Dog", "cat", "dog", "DOG", "cat"])
    assert sizes == [(2, 5)]  # "cat" is three pieces


@torch.no_grad()
def test_a_model_is_what_guided_decoding_asks(models: dict[str, AudioTextModel]) -> None:
    model = models["wavcaps"]
    audio = model.embed_audio(*sounds(16_000, 5_000))
    scores = CosineScorer(model, audio).score(["a dog", "rain", "a dog"], torch.tensor([0, 0, 1]))
    texts = model.embed_texts(["a dog", "rain", "a dog"])
    torch.testing.assert_close(scores, (texts * audio[[0, 0, 1]]).sum(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_both_towers_learn(kind: str) -> None:
    model = wavcaps() if kind == "wavcaps" else clap(fused=kind == "fused")
    audio = model.embed_audio(*sounds(16_000, 5_000))
    (audio * model.embed_texts(["a dog", "rain"])).sum().backward()
    learned = {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None}
    assert learned == ({"audio_encoder", "text_encoder", "audio_proj", "text_proj"} if kind == "wavcaps" else {"model"})


# -- long clips ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_long_clips_by_policy(models: dict[str, AudioTextModel]) -> None:
    model = models["wavcaps"]
    waveform, num_samples = sounds(40_000, 10_000, 16_000)
    ids = ["a", "b", "c"]

    def of(policy: Any, **settings: Any) -> Tensor:
        return model.embed_clips(waveform, num_samples, ids, CropSettings(policy, **settings), random.Random(4182))

    short = model.embed_audio(waveform[1:, :WINDOW], num_samples[1:])
    centre = of("centre")
    torch.testing.assert_close(centre[1:], short)
    torch.testing.assert_close(centre[:1], model.embed_audio(waveform[:1, 12_000:28_000], torch.tensor([WINDOW])))
    windows = torch.stack([waveform[0, start : start + WINDOW] for start in (0, 12_000, 24_000)])
    mean = torch.nn.functional.normalize(model.embed_audio(windows, torch.tensor([WINDOW] * 3)).mean(dim=0), dim=0)
    torch.testing.assert_close(of("windows_mean")[0], mean, rtol=1e-4, atol=1e-6)
    start = random.Random(4182).randint(0, 40_000 - WINDOW)
    drawn = model.embed_audio(waveform[:1, start : start + WINDOW], torch.tensor([WINDOW]))
    torch.testing.assert_close(of("released")[:1], drawn, rtol=1e-4, atol=1e-6)
    seeded = of("seeded")
    backwards = model.embed_clips(waveform.flip(0), num_samples.flip(0), ids[::-1], CropSettings("seeded"))
    torch.testing.assert_close(seeded, backwards.flip(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(seeded[0], of("seeded", seed=1)[0], atol=1e-6)
    with pytest.raises(ConfigError, match=r"crop\.policy whole: this model hears 1 s at once; take seeded, centre or"):
        of("whole")


@torch.no_grad()
def test_all_windows_in_one_call(models: dict[str, AudioTextModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model = models["wavcaps"]
    shapes = shapes_seen(model, "encode_audio", monkeypatch)
    model.embed_clips(*sounds(40_000, 10_000, 16_001), ["a", "b", "c"], CropSettings("windows_mean"))
    assert shapes == [(6, WINDOW)]


def test_a_clip_longer_than_the_window_is_refused(models: dict[str, AudioTextModel]) -> None:
    for kind in ("wavcaps", "unfused"):
        with pytest.raises(
            ShapeError, match="a clip has 16001 samples, the model hears 16000 at once: use embed_clips"
        ):
            models[kind].embed_audio(*sounds(100, 16_001))


def test_shapes_that_do_not_fit(models: dict[str, AudioTextModel]) -> None:
    for waveform, count in ((torch.zeros(5), [5]), (torch.zeros(2, 5), [5]), (torch.zeros(1, 0), [0])):
        with pytest.raises(ShapeError, match=r"wanted \(clips, samples\)"):
            models["wavcaps"].embed_audio(waveform, torch.tensor(count))


# -- transformers' CLAP --------------------------------------------------------------------------------------------


def processed(model: CLAP, waveform: Tensor) -> Any:
    return model.front_end(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("length", [16_000, 9_000, 5_000, 400])
@torch.no_grad()
def test_front_end_and_towers_equal_transformers(fused: bool, length: int) -> None:
    model = clap(fused=fused, int16=False)
    waveform, num_samples = sounds(length)
    features = processed(model, waveform[0])
    wanted = model.model.get_audio_features(input_features=features, is_longer=torch.tensor([[False]]))
    wanted = wanted if isinstance(wanted, Tensor) else wanted.pooler_output  # since transformers 5
    torch.testing.assert_close(model.embed_audio(waveform, num_samples), wanted, rtol=1e-4, atol=1e-5)
    tokens = model.tokenizer(["a dog barks", "rain"], padding=True, return_tensors="pt")
    texts = model.model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    texts = texts if isinstance(texts, Tensor) else texts.pooler_output
    torch.testing.assert_close(model.embed_texts(["a dog barks", "rain"]), texts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [16_161, 16_400, 40_000, 100_000])
@torch.no_grad()
def test_fused_views_of_long_clips(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers draws the chunks; here it is made to draw the middle of each third."""
    model = clap(fused=True, int16=False)
    waveform, num_samples = sounds(length, 20_000)
    monkeypatch.setattr(np.random, "choice", lambda places: places[len(places) // 2])
    for clip in range(2):
        features = processed(model, waveform[clip, : num_samples[clip]])
        wanted = model._project(features, torch.tensor([[True]]))
        found = model.embed_audio(waveform, num_samples)[clip]
        torch.testing.assert_close(found, torch.nn.functional.normalize(wanted, dim=1)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_clip_longer_by_less_than_a_frame_is_heard_once() -> None:
    model = clap(fused=True, int16=False)
    waveform, num_samples = sounds(16_100, 40_000)
    wanted = model._project(processed(model, waveform[0, :16_100]), torch.tensor([[False]]))
    found = model.embed_audio(waveform, num_samples)[0]
    torch.testing.assert_close(found, torch.nn.functional.normalize(wanted, dim=1)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_frames", [11, 12, 13, 19, 30, 31, 32])
def test_views(num_frames: int) -> None:
    size = 10
    torch.manual_seed(0)
    level = torch.zeros(2, 40, 3)
    level[0, :num_frames] = torch.randn(num_frames, 3)
    views = fuse_views(level, torch.tensor([num_frames, size]), size)
    resized = torch.nn.functional.interpolate(level[None, :1, :num_frames], (size, 3), mode="bilinear")[0, 0]
    torch.testing.assert_close(views[0, 0], resized)
    for part, starts in enumerate(np.array_split(np.arange(num_frames - size + 1), 3)):
        start = int(starts[len(starts) // 2]) if len(starts) else 0
        assert torch.equal(views[0, 1 + part], level[0, start : start + size])
    assert torch.equal(views[1], level[1, :size].expand(4, -1, -1))


@torch.no_grad()
def test_sixteen_bits_are_heard() -> None:
    waveform, num_samples = sounds(16_000)
    quiet = waveform.sign() * 3e-5  # below one step: silence in 16 bits
    silent = clap(fused=False).embed_audio(torch.zeros_like(quiet), num_samples)
    torch.testing.assert_close(clap(fused=False).embed_audio(quiet, num_samples), silent)
    assert not torch.allclose(clap(fused=False, int16=False).embed_audio(quiet, num_samples), silent, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@torch.no_grad()
def test_from_a_folder(tmp_path: Path, fused: bool) -> None:
    model = clap(fused=fused)
    for part in (model.model, model.front_end, model.tokenizer):
        part.save_pretrained(tmp_path)
    again = CLAP(CLAPSettings(source=str(tmp_path))).eval()
    assert (again.sample_rate_hz, again.window_samples, again.embed_dim) == (16_000, WINDOW, 16)
    assert again.hears_long_clips == fused
    waveform, num_samples = sounds(16_000, 5_000)
    torch.testing.assert_close(again.embed_audio(waveform, num_samples), model.embed_audio(waveform, num_samples))
    torch.testing.assert_close(again.embed_texts(["a dog"]), model.embed_texts(["a dog"]))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(WeightsError, match=r"^model\.init_args\.audio_text\.clap\.source: cannot load"):
        CLAP(CLAPSettings(source=str(tmp_path)))


def test_a_folder_that_lacks_weights_or_words(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = clap(fused=False)
    for part in (model.model, model.front_end, model.tokenizer):
        part.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    tensors = load_file(tmp_path / "a/model.safetensors")
    del tensors["audio_projection.linear1.weight"]
    save_file(tensors, tmp_path / "a/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing: audio_projection\.linear1\.weight"):
        CLAP(CLAPSettings(source=str(tmp_path / "a")))
    for path in (tmp_path / "b").glob("tokenizer*"):
        path.write_text("{broken")
    with pytest.raises(WeightsError, match=r"^model\.init_args\.audio_text\.clap\.source: cannot load"):
        CLAP(CLAPSettings(source=str(tmp_path / "b")))
    with pytest.raises(WeightsError, match=r"^model\.init_args\.audio_text\.clap\.source: cannot load 'no/such-model'"):
        CLAP(CLAPSettings(source="no/such-model"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"txt": {}}, "unknown txt; known are text, audio, front_end and embed_dim"),
        ({"audio": {"depth": [1]}}, r"audio_text\.clap\.config\.audio: ClapAudioConfig has no depth"),
        ({"text": {"layers": 1}}, r"audio_text\.clap\.config\.text: ClapTextConfig has no layers"),
        ({"front_end": {"hop": 160}}, r"audio_text\.clap\.config\.front_end: ClapFeatureExtractor has no hop"),
        ({"front_end": {"padding": "pad"}}, "padding 'pad' of the front end is not supported, only repeatpad"),
    ],
)
def test_a_config_that_does_not_fit(config: dict[str, Any], message: str) -> None:
    base: dict[str, Any] = {"text": TEXT, "audio": CLAP_TOWER, "front_end": FRONT_END}
    merged = {**base, **{key: {**base.get(key, {}), **value} for key, value in config.items()}}
    with pytest.raises(ConfigError, match=message):
        CLAP(CLAPSettings(source=None, config=merged))


# -- WavCaps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": {**TEXT, "hiden_size": 4}}, r"audio_text\.wavcaps\.text: BertConfig has no hiden_size"),
        ({"text": {**TEXT, "vocab_size": 20}}, r"has \d+ entries, the text encoder 20: they do not belong together"),
        (
            {"text": {**TEXT, "max_position_embeddings": 20}},
            "max_text_tokens is 30; wanted at least 3 .* at most the 20 positions",
        ),
    ],
)
def test_a_text_encoder_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        wavcaps(**changes)


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in ("no/such-model", str(tmp_path / "empty"), str(tmp_path / "missing")):
        with pytest.raises(
            WeightsError, match=r"^model\.init_args\.audio_text\.wavcaps\.tokenizer: cannot load"
        ) as caught:
            wavcaps(tokenizer=source)
        assert "\n" not in str(caught.value)


def test_a_vocabulary_file_is_enough(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog", "cat"]))
    model = wavcaps(tokenizer=str(tmp_path), text={**TEXT, "vocab_size": 7})
    assert model.token_rows(["Dog cat", "bird", ""]) == [[2, 5, 6, 3], [2, 1, 3], [2, 3]]
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(ConfigError, match="has no words: its vocabulary file is empty"):
        wavcaps(tokenizer=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"config": {**TOWER, "depht": 1}}, r"audio_text\.wavcaps\.audio\.config: ClapAudioConfig has no depht"),
        ({"config": {**TOWER, "depths": [1]}}, "depths has 1 entries, num_attention_heads 2"),
        ({"num_mel_bins": 24}, "spec_size 64 is no multiple of num_mel_bins 24"),
        ({"window_s": 3.0}, r"window_s 3 gives 301 frames, spec_size 64 has room for 1 to 256"),
    ],
)
def test_an_audio_tower_that_does_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HTSAT(HTSATSettings(**{**vars(HTSAT_TOY), **settings}))


@torch.no_grad()
def test_the_spectrogram_is_exact_under_autocast() -> None:
    htsat = HTSAT(HTSAT_TOY).eval()
    waveform, _ = sounds(16_000)
    wanted = htsat.log_mel(waveform)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(htsat.log_mel(waveform), wanted)
    assert wanted.shape == (1, 101, 16)
    assert float(htsat.log_mel(torch.zeros(1, 100)).max()) == -100.0
    with pytest.raises(ShapeError, match=r"waveform is \(1, 16001\), wanted \(clips, at most 16000 samples\)"):
        htsat(torch.zeros(1, 16_001))


def test_full_size() -> None:
    """Official parameters without the spectrogram's constants and the classifier."""
    with torch.device("meta"):
        model = WavCapsCLAP(WavCapsSettings(tokenizer=None, text={"vocab_size": 30_522}))
    parts = {name: sum(value.numel() for value in part.parameters()) for name, part in model.named_children()}
    assert parts == {
        "audio_encoder": 27_534_488,
        "text_encoder": 108_891_648,
        "audio_proj": 1_837_056,
        "text_proj": 1_837_056,
    }
    assert (model.sample_rate_hz, model.window_samples, model.embed_dim) == (32_000, 320_000, 1024)
