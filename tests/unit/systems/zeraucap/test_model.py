"""The model as a whole: what a caption depends on, what it does not, and what is said of settings that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from avcap_zoo.backbones.audio_text import CropSettings
from avcap_zoo.backbones.language import word_piece_tokenizer
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError, DataError, WeightsError
from avcap_zoo.systems.zeraucap.model import ZerAuCapModel
from tests.unit.systems.zeraucap.test_keymap import official, save
from tests.unit.systems.zeraucap.toy import AUDIO_TEXT, LANGUAGE, WORDS, built, picked, sounds, toy_system


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ZerAuCapModel:
    return built(toy_system(tmp_path_factory.mktemp("toy"))).model


@pytest.fixture
def heard(model: ZerAuCapModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips per call of the audio encoder from now on."""
    return count_clips(model, monkeypatch)


def count_clips(model: ZerAuCapModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    encode = model.audio_text.encode_audio

    def noting(waveform: Tensor, num_samples: Tensor) -> Tensor:
        counts.append(len(waveform))
        return encode(waveform, num_samples)

    monkeypatch.setattr(model.audio_text, "encode_audio", noting)
    return counts


def test_captions_of_different_sounds_differ(model: ZerAuCapModel, heard: list[int]) -> None:
    clips = model.describe(sounds(0.8, 0.5, 0.9, 0.4))
    assert heard == [4]
    assert len({clip.caption for clip in clips}) == 4
    for clip in clips:
        assert len(clip.keywords) == 2
        assert set(clip.keywords) <= set(WORDS)
        assert clip.similarities == sorted(clip.similarities, reverse=True)
        assert clip.prompt.startswith(f"Objects: {clip.keywords[0]}, and a")
        assert clip.text.trace is None


def test_no_caption_depends_on_the_others_of_its_batch(model: ZerAuCapModel) -> None:
    batch = sounds(0.8, 0.1, 2.5, 0.5, 3.0, 0.4)
    together = model.caption(batch)
    order = [4, 1, 0, 5, 3, 2]
    assert model.caption(picked(batch, *order)) == [together[clip] for clip in order]
    alone = [model.caption(picked(batch, clip))[0] for clip in range(6)]
    assert alone == together
    halves = [*model.caption(picked(batch, 0, 3, 5)), *model.caption(picked(batch, 1, 2, 4))]
    assert halves == [together[clip] for clip in (0, 3, 5, 1, 2, 4)]


def test_nothing_is_trained_and_nothing_is_random(model: ZerAuCapModel) -> None:
    batch = sounds(0.8, 0.5)
    first = model.caption(batch)
    model.train()
    assert not any(module.training for module in model.modules())
    assert model.caption(batch) == first
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_without_keywords_and_guidance_nothing_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = built(toy_system(tmp_path, keywords={"num_keywords": 0, "source": "absent.txt"}, guided={"beta": 0.0}))
    heard = count_clips(system.model, monkeypatch)
    clips = system.model.describe(sounds(0.8, 0.5))
    assert heard == []
    assert clips[0].caption == clips[1].caption
    assert [(clip.keywords, clip.similarities, clip.prompt) for clip in clips] == [([], [], "This is a sound of ")] * 2


@pytest.mark.parametrize("change", [{"keywords": {"num_keywords": 0}}, {"guided": {"beta": 0.0}}])
def test_either_of_both_is_enough_to_tell_sounds_apart(tmp_path: Path, change: dict[str, Any]) -> None:
    captions = built(toy_system(tmp_path, **change)).model.caption(sounds(0.8, 0.5, 0.9, 0.4))
    assert len(set(captions)) > 1


def test_silence_and_a_tenth_of_a_second(model: ZerAuCapModel) -> None:
    """Both are heard as what they are: zeros up to the window."""
    names = ["silent", "short and silent", "short"]
    waveform = torch.zeros(3, 16_000)
    waveform[2, :1600] = torch.sin(torch.arange(1600) * 0.1)
    batch = Batch(names, [[]] * 3, [""] * 3, waveform, torch.tensor([16_000, 1_600, 1_600]))
    silent, short_silent, short = model.describe(batch)
    assert silent.caption == short_silent.caption
    assert silent.similarities == pytest.approx(short_silent.similarities)
    assert short.similarities != pytest.approx(silent.similarities, abs=1e-4)
    assert all(torch.tensor(clip.similarities).isfinite().all() for clip in (silent, short))


def test_an_empty_batch(model: ZerAuCapModel) -> None:
    assert model.caption(Batch([], [], [])) == []


def test_one_candidate_is_greedy_whatever_the_guide_says(tmp_path: Path) -> None:
    batch = sounds(0.8, 0.5)
    guided = built(toy_system(tmp_path, guided={"num_candidates": 1, "beta": 5.0})).model.caption(batch)
    greedy = built(toy_system(tmp_path, guided={"num_candidates": 8, "beta": 0.0, "end_penalty": None})).model.caption(
        batch
    )
    assert guided == greedy


def test_one_keyword_and_all_of_them(tmp_path: Path) -> None:
    batch = sounds(0.8)
    (one,) = built(toy_system(tmp_path, keywords={"num_keywords": 1})).model.describe(batch)
    (every,) = built(toy_system(tmp_path, keywords={"num_keywords": len(WORDS)})).model.describe(batch)
    assert one.keywords == every.keywords[:1]
    assert sorted(every.keywords) == sorted(WORDS)


def test_the_list_is_embedded_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = built(toy_system(tmp_path, keywords={"cache_dir": str(cache)})).model
    wanted = first.keyword_embeddings()
    assert first.keyword_embeddings() is wanted
    assert len(list(cache.glob("*.safetensors"))) == 1
    second = built(toy_system(tmp_path, keywords={"cache_dir": str(cache)})).model
    monkeypatch.setattr(second.audio_text, "encode_ids", lambda *_: pytest.fail("embedded again"))
    assert torch.equal(second.keyword_embeddings(), wanted)


def test_released_crops_follow_the_order_and_start_again(tmp_path: Path) -> None:
    model = built(toy_system(tmp_path, crop=CropSettings("released", seed=7))).model
    batch = sounds(2.0, 2.5, 3.0)
    first = model.embed_sounds(batch)
    following = model.embed_sounds(batch)
    model.restart_crops()
    again = model.embed_sounds(batch)
    assert torch.equal(first, again)
    assert not torch.equal(first, following)


def test_rows_without_a_token_are_dropped(tmp_path: Path) -> None:
    size = len(word_piece_tokenizer())
    system = built(toy_system(tmp_path, language={"config": {**LANGUAGE, "vocab_size": size + 9}}))
    assert system.model.language.model.get_input_embeddings().num_embeddings == size
    assert system.model.language.model.get_output_embeddings().out_features == size
    clips = system.model.describe(sounds(0.5), trace=True)
    assert clips[0].text.trace is not None
    assert max(max(step.token_ids) for step in clips[0].text.trace) < size


def test_the_official_checkpoint_is_loaded(tmp_path: Path) -> None:
    source = built(toy_system(tmp_path)).model.audio_text
    path = save(official(source), tmp_path / "HTSAT-BERT-PT.pt")  # type: ignore[arg-type]
    system = toy_system(tmp_path, audio_text=replace(AUDIO_TEXT, checkpoint=str(path)))
    system.configure_model()
    for name, value in source.state_dict().items():
        assert torch.equal(system.model.audio_text.state_dict()[name], value), name


def test_a_tokenizer_without_begin_token(tmp_path: Path) -> None:
    tokenizer = word_piece_tokenizer()
    tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    system = toy_system(tmp_path, language={"tokenizer": str(tmp_path / "tokenizer")})
    with pytest.raises(
        ConfigError, match=r"has no begin token, and every prompt starts with one: set tokenizer\.bos_token"
    ):
        system.configure_model()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keywords": {"num_keywords": 7}}, ConfigError, r"num_keywords is 7, the list has 6; wanted 0 to 6"),
        ({"keywords": {"num_keywords": -1}}, ConfigError, r"num_keywords is -1"),
        ({"keywords": {"source": "absent.txt"}}, ConfigError, r"keywords\.source: absent\.txt does not exist"),
        ({"crop": CropSettings("whole")}, ConfigError, r"crop\.policy is whole, .* take seeded"),
        ({"audio_text": replace(AUDIO_TEXT, kind="clap", checkpoint="a.pt")}, ConfigError, r"set clap\.source"),
        ({"audio_text": replace(AUDIO_TEXT, checkpoint="a.pt")}, WeightsError, r"a\.pt does not exist"),
        ({"guided": {"num_candidates": 10_000}}, ConfigError, r"num_candidates is 10000, wanted 1 to \d+"),
        ({"made_by": {"absent": "make it"}}, WeightsError, r"absent does not exist, make it: make it$"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        toy_system(tmp_path, **options).configure_model()


def test_a_keyword_file_without_keywords(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"empty\.txt holds no keyword"):
        toy_system(tmp_path, keywords={"source": str(tmp_path / "empty.txt")}).configure_model()


def test_a_prompt_that_leaves_no_room(tmp_path: Path) -> None:
    model = built(toy_system(tmp_path, guided={"decoding_length": 12})).model
    with pytest.raises(ConfigError, match=r"prompt 0 has \d+ tokens, decoding_length is 12: nothing is left"):
        model.caption(sounds(0.5))


def test_a_batch_without_sound(model: ZerAuCapModel) -> None:
    with pytest.raises(ConfigError, match=r"add audio to data\.init_args\.modalities"):
        model.caption(Batch(["a"], [[]], [""]))
