"""Terms of the return on real captions, and what cannot be used as one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from avcap_zoo.errors import ConfigError, DataError, WeightsError
from avcap_zoo.metrics.contrast import ContrastModel
from avcap_zoo.systems.vlrm import VLRMModel
from avcap_zoo.systems.vlrm.captioner import Captioner
from avcap_zoo.systems.vlrm.keymap import lavis_to_transformers
from avcap_zoo.systems.vlrm.matcher import clean_caption, match_scores
from avcap_zoo.systems.vlrm.model import split
from avcap_zoo.systems.vlrm.rewards import (
    REWARDS,
    BadPhrases,
    ImageTextMatching,
    NonFiniteRewardError,
    Reward,
    RewardSettings,
    SampledCaptions,
    check_finite,
    make_reward,
    read_list,
)
from tests.unit.systems.vlrm import toy


class Length(Reward):
    """Pays for long captions; a reward from outside the package."""

    def __init__(self, per_letter: float = 1.0) -> None:
        super().__init__()
        self.per_letter = per_letter

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        return torch.tensor([self.per_letter * len(text) for text in captions.texts])


class Broken(Length):
    """Gives NaN for the second caption."""

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        numbers = super().measure(captions, captioner)
        numbers[1] = torch.nan
        return numbers


class Misshapen(Length):
    """Gives one number too many."""

    def measure(self, captions: SampledCaptions, captioner: Captioner) -> Tensor:
        return torch.zeros(len(captions.texts) + 1)


HERE = "toy_rewards_of_a_test"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(HERE)
    module.__dict__.update(Length=Length, Broken=Broken, Misshapen=Misshapen)
    monkeypatch.setitem(sys.modules, HERE, module)


def captions_of(model: VLRMModel, texts: list[str], ended: bool = True) -> SampledCaptions:
    """Given captions for random pictures."""
    captioner = model.captioner
    rows = [[*captioner.tokenizer(t, add_special_tokens=False).input_ids, *[captioner.end_id] * ended] for t in texts]
    length = max(map(len, rows))
    tokens = torch.tensor([row + [captioner.pad_id] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    batch = toy.batch(len(texts))
    assert batch.frames is not None
    images = batch.frames[:, 0]
    features = captioner.encode_images(images)
    flags = torch.full((len(texts),), ended)
    return model.describe(batch.clip_ids, images, features, tokens, mask, flags, batch.captions)


def measure(model: VLRMModel, name: str, captions: SampledCaptions) -> Tensor:
    reward = dict(model.reward_items())[name]
    return reward.finish(reward.measure(captions, model.captioner), lambda rows: (rows, 0))


def test_penalties_and_the_missing_end() -> None:
    model = toy.model()
    captions = captions_of(model, ["there are two men and two dogs", "a red ball"])
    assert measure(model, "bad_phrases", captions).sum(dim=1).tolist()[1] == 0
    assert measure(model, "bad_phrases", captions)[0, 0] == -1
    assert measure(model, "repeated_words", captions)[0].sum() < 0
    assert measure(model, "missing_end", captions).tolist() == [0, 0]
    assert measure(model, "missing_end", captions_of(model, ["a", "b"], ended=False)).tolist() == [-1, -1]


def test_captions_of_punctuation_alone_are_judged() -> None:
    model = toy.model(toy.ALL | {"clip": clip_score()})
    captions = captions_of(model, ["...!", ", , ,", "a dog"])
    for name in model.reward_settings:
        assert measure(model, name, captions).isfinite().all(), name
    assert measure(model, "bad_phrases", captions)[:2].eq(0).all()
    assert measure(model, "repeated_words", captions)[:2].eq(0).all()


def test_equal_captions_have_finite_returns() -> None:
    model = toy.model(toy.ALL)
    captions = captions_of(model, ["a dog"] * 3)
    rollout = model.judge(captions, model.captioner.project(captions.features))
    assert rollout.returns.isfinite().all()


def test_empty_captions_are_judged() -> None:
    model = toy.model(toy.ALL)
    captions = captions_of(model, ["", "a dog"])
    rollout = model.judge(captions, model.captioner.project(captions.features))
    assert rollout.returns.isfinite().all()
    assert rollout.mask.sum(dim=1).tolist()[0] == 1


def test_the_end_token_may_be_left_out_of_the_reference() -> None:
    rewards = {
        "with": RewardSettings("reference"),
        "without": RewardSettings("reference", 1, {"ref_include_eos": False}),
    }
    model = toy.model(rewards)
    captions = captions_of(model, ["a dog barks", "a"])
    log_probs = model.captioner.text_log_probs(captions.tokens, captions.mask)
    counts = captions.mask.sum(dim=1)
    for row, count in enumerate(counts.tolist()):
        whole = measure(model, "with", captions)[row]
        torch.testing.assert_close(whole, log_probs[row, :count].mean())
        torch.testing.assert_close(measure(model, "without", captions)[row], log_probs[row, : count - 1].mean())


def test_the_reference_ignores_image_and_adapters() -> None:
    model = toy.model({"reference": RewardSettings("reference")})
    captions = captions_of(model, ["a dog barks", "a red ball"])
    before = measure(model, "reference", captions)
    with torch.no_grad():
        for parameter in (*model.value_parameters(), *model.policy_parameters()):
            parameter.normal_()
    captions.features = torch.randn_like(captions.features)
    assert torch.equal(measure(model, "reference", captions), before)


# -- matching -------------------------------------------------------------------------------------------------------


def test_matching_uses_the_captioners_image_tokens_and_no_tower_of_its_own() -> None:
    model = toy.model({"itm": toy.MATCHING})
    assert not any(".tower." in name for name, _ in model.rewards.named_parameters())
    captions = captions_of(model, ["a dog", "a red ball"])
    before = measure(model, "itm", captions)
    captions.features = captions.features.flip(0)
    assert not torch.allclose(measure(model, "itm", captions), before)


def test_matching_with_a_tower_of_its_own_looks_at_the_images() -> None:
    options = toy.MATCHING.options | {"shares_vision": False}
    model = toy.model({"itm": RewardSettings("itm", 1.0, options)})
    captions = captions_of(model, ["a dog", "a red ball"])
    before = measure(model, "itm", captions)
    captions.features = torch.zeros_like(captions.features)
    assert torch.equal(measure(model, "itm", captions), before)
    captions.images = captions.images.flip(0)
    assert not torch.allclose(measure(model, "itm", captions), before)


def test_another_image_tower_cannot_be_shared(tmp_path: Path) -> None:
    model = toy.model({"itm": RewardSettings("itm", 1.0, toy.MATCHING.options | {"shares_vision": False})})
    matching = dict(model.reward_items())["itm"]
    assert isinstance(matching, ImageTextMatching)
    matcher = matching.matcher
    assert matcher.tower is not None
    tensors = {f"vision_model.{n}": t for n, t in matcher.tower.state_dict().items()}
    tensors |= {n: t for n, t in matcher.state_dict().items() if not n.startswith(("norm.", "tower."))}
    tensors |= {f"{side}_projection.weight": torch.zeros(8, 16) for side in ("vision", "text")}
    tensors |= {f"{side}_projection.bias": torch.zeros(8) for side in ("vision", "text")}
    save_file({n: t.clone() for n, t in tensors.items()}, tmp_path / "itm.safetensors")
    options = toy.MATCHING.options | {"checkpoint": str(tmp_path / "itm.safetensors")}
    with pytest.raises(WeightsError, match=r"rewards.itm.options: the image tower of .* shares_vision: false"):
        toy.model({"itm": RewardSettings("itm", 1.0, options)}, seed=1)
    own = {f"vision_model.{n}": t for n, t in toy.model().captioner.blip.vision_model.state_dict().items()}
    save_file({n: t.clone() for n, t in (tensors | own).items()}, tmp_path / "itm.safetensors")
    assert toy.model({"itm": RewardSettings("itm", 1.0, options)}).self_made == ["captioner"]


def test_long_captions_are_cut_and_padding_changes_nothing() -> None:
    model = toy.model({"itm": RewardSettings("itm", 1.0, toy.MATCHING.options | {"itm_max_length": 5})})
    matching = dict(model.reward_items())["itm"]
    assert isinstance(matching, ImageTextMatching)
    ids, mask = matching.matcher.encode_texts(["a red ball and a green dog", "a"])
    assert ids.shape == (2, 5)
    assert mask.sum(dim=1).tolist() == [5, 3]
    tokenizer = matching.matcher.tokenizer
    assert ids[0, 0] == ids[1, 0] == tokenizer.bos_token_id
    assert ids[0, 4] == ids[1, 2] == tokenizer.eos_token_id
    features = model.captioner.encode_images(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    padded, short = matching.matcher(features, ids[1:], mask[1:]), matching.matcher(features, ids[1:, :3], mask[1:, :3])
    torch.testing.assert_close(padded, short)


def test_caption_cleaning_is_that_of_lavis() -> None:
    assert clean_caption('A  "Dog" (big); runs... fast!') == "a dog big runs fast"
    assert clean_caption("it's a t-shirt, ok?") == "it's a t-shirt, ok?"
    assert len(clean_caption("word " * 80).split()) == 50
    assert clean_caption("...!") == ""


def test_scores_of_a_pair() -> None:
    logits = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]])
    assert match_scores(logits, "positive_logit").item() == 2
    assert match_scores(logits, "logit_difference").item() == 2
    want = torch.tensor([1.0, 3.0]).sigmoid().mean().item()
    assert match_scores(logits, "probability").item() == pytest.approx(want)


def test_lavis_files_with_unknown_names_are_passed_on_to_be_reported() -> None:
    tensors = {"Qformer.bert.x": torch.zeros(1), "visual_encoder.blocks.0.attn.q_bias": torch.zeros(2)}
    renamed = lavis_to_transformers(tensors)
    assert set(renamed) == {"qformer.x", "vision_model.encoder.layers.0.self_attn.q_bias"}


# -- CLIP -----------------------------------------------------------------------------------------------------------


def clip_score() -> RewardSettings:
    return RewardSettings("clip_score", 1.0, {"config": toy.CONTRAST, "checkpoint": None})


def test_the_retrieval_term_sees_the_whole_batch_however_it_is_split() -> None:
    model = toy.model({"retrieval": toy.RETRIEVAL})
    captions = captions_of(model, ["a dog", "a red ball", "two bells", "rain", "a cat"])
    whole = measure(model, "retrieval", captions)
    reward = dict(model.reward_items())["retrieval"]
    measured = torch.cat([reward.measure(part, model.captioner) for part in split(captions, 2)])
    torch.testing.assert_close(reward.finish(measured, lambda rows: (rows, 0)), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(whole.std(), torch.tensor(1.0))
    # A process that holds rows 2 to 4 gets their numbers.
    torch.testing.assert_close(reward.finish(measured[2:], lambda _: (measured, 2)), whole[2:], rtol=1e-4, atol=1e-4)


def test_one_broken_embedding_does_not_spoil_the_others() -> None:
    model = toy.model({"retrieval": toy.RETRIEVAL})
    reward = dict(model.reward_items())["retrieval"]
    measured = reward.measure(captions_of(model, ["a dog", "a red ball", "rain"]), model.captioner)
    measured[1, 0, 3] = torch.inf
    numbers = reward.finish(measured, lambda rows: (rows, 0))
    assert numbers.isfinite().tolist() == [True, False, True]


def test_clip_score_is_a_scaled_cosine() -> None:
    model = toy.model({"clip": clip_score()})
    captions = captions_of(model, ["a dog", "a red ball"])
    scores = measure(model, "clip", captions)
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 2.5)).all()


def test_contrast_weights_are_loaded_strictly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = ContrastModel("", None, toy.CONTRAST, "float32", "key")
    save_file({n: t.clone() for n, t in saved.clip.state_dict().items()}, tmp_path / "clip.safetensors")
    torch.manual_seed(1)
    loaded = ContrastModel("", str(tmp_path / "clip.safetensors"), toy.CONTRAST, "float32", "key")
    images = torch.zeros(1, 3, 20, 16, dtype=torch.uint8)
    for got, want in zip(loaded(images, ["a dog"]), saved(images, ["a dog"]), strict=True):
        assert torch.equal(got, want)
    wider = toy.CONTRAST | {"embed_dim": 12}
    with pytest.raises(WeightsError, match="other shape"):
        ContrastModel("", str(tmp_path / "clip.safetensors"), wider, "float32", "key")


def test_unknown_contrast_models_and_weights() -> None:
    with pytest.raises(ConfigError, match=r"key.model: OpenCLIP has no 'ViT-none'"):
        ContrastModel("ViT-none", None, None, "float32", "key")
    with pytest.raises(
        WeightsError, match=r"'nothing' is neither a file nor a name of weights for ViT-bigG-14 \(there"
    ):
        ContrastModel("ViT-bigG-14", "nothing", toy.CONTRAST, "float32", "key")


def test_the_default_judge_is_bigg() -> None:
    reward = REWARDS["mutual_choice"]()
    with torch.device("meta"):
        reward.arguments = ("ViT-bigG-14", None, None, "bfloat16")  # type: ignore[assignment]
        reward.build(toy.model().captioner, "key")
    assert sum(p.numel() for p in reward.parameters()) == 2_539_567_105


# -- references -----------------------------------------------------------------------------------------------------


def test_cider_pays_for_the_words_of_the_references() -> None:
    model = toy.model({"cider": RewardSettings("cider")})
    captions = captions_of(model, ["a red ball rolls", "two bells", "..."])
    captions.references[2] = []
    with pytest.raises(ConfigError, match="weighs words by training captions"):
        measure(model, "cider", captions)
    reward = dict(model.reward_items())["cider"]
    with pytest.raises(DataError, match="needs reference captions"):
        reward.prepare(list)
    reward.prepare(lambda: ["a red ball rolls", "two bells ring", "a cat"])
    scores = measure(model, "cider", captions).tolist()
    assert scores[0] > 3
    assert scores[1:] == [0, 0]


# -- terms from outside, and wrong ones -----------------------------------------------------------------------------


def test_a_reward_from_outside_is_named_by_its_class_path() -> None:
    model = toy.model({"length": RewardSettings(f"{HERE}.Length", 0.5, {"per_letter": 2.0})})
    captions = captions_of(model, ["a dog", "a"])
    rollout = model.judge(captions, model.captioner.project(captions.features))
    assert rollout.terms["length"].tolist() == [10, 2]
    assert rollout.returns[:, 0].tolist() == [5, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (RewardSettings("blue"), r"rewards.x.kind: there is no reward 'blue'; give itm, reference,"),
        (RewardSettings("nowhere.to.Be"), r"rewards.x.kind: cannot import 'nowhere.to.Be'"),
        (RewardSettings(f"{HERE}.Absent"), r"rewards.x.kind: cannot import"),
        (RewardSettings("torch.nn.Linear"), r"rewards.x.kind: torch.nn.Linear is no subclass of .*Reward"),
        (
            RewardSettings("itm", options={"colour": 1}),
            r"rewards.x.options: .*colour.*; ImageTextMatching takes source",
        ),
        (RewardSettings("bad_phrases", options={"phrases_file": "none.txt"}), "the word list none.txt does not exist"),
    ],
)
def test_a_wrong_reward_is_named(settings: RewardSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_reward("x", settings)


def test_wrong_rewards_are_found_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="there is no reward 'blue'"):
        toy.system({"x": RewardSettings("blue")})
    with pytest.raises(ConfigError, match="rewards is empty"):
        toy.system({})


def test_a_reward_of_the_wrong_shape_is_named() -> None:
    model = toy.model({"odd": RewardSettings(f"{HERE}.Misshapen")})
    with pytest.raises(ConfigError, match=r"rewards.odd: Misshapen gave \(4,\) for 3 captions, wanted \(3,\)"):
        model.collect(toy.batch(3))


def test_a_reward_that_is_not_finite_is_named() -> None:
    model = toy.model({"odd": RewardSettings(f"{HERE}.Broken"), **toy.CHEAP})
    with pytest.raises(NonFiniteRewardError, match=r"odd on 1 \(clip0-1\).*on_non_finite_reward: skip"):
        model.collect(toy.batch(3))


def test_a_reward_that_is_not_finite_can_be_skipped() -> None:
    model = toy.model({"odd": RewardSettings(f"{HERE}.Broken"), **toy.CHEAP}, on_non_finite_reward="skip")
    rollout = model.collect(toy.batch(3))
    assert rollout.mask.any(dim=1).tolist() == [True, False, True]
    assert rollout.counts().tolist() == [2, rollout.mask.sum()]
    assert rollout.returns.isfinite().all()
    values, loss = model.value_pass(rollout, rollout.counts(), lambda part: part.backward())
    assert loss.isfinite()
    assert values[1].eq(0).all()


def test_all_terms_are_reported_at_once() -> None:
    values = {"a": torch.tensor([1.0, torch.inf]), "b": torch.tensor([[torch.nan], [0.0]])}
    with pytest.raises(NonFiniteRewardError, match=r"a on 1 \(y\); b on 1 \(x\)"):
        check_finite(values, ["x", "y"], skip=False)
    assert check_finite(values, ["x", "y"], skip=True).tolist() == [False, False]


# -- word lists -----------------------------------------------------------------------------------------------------


def test_the_shipped_phrases_are_those_of_the_paper() -> None:
    phrases = read_list("bad_phrases.txt")
    assert len(phrases) == 212
    assert [len(p) for p in phrases] == sorted(len(p) for p in phrases)
    assert {"camera’s view", "the camera focuses ona zoomed", "in webcam is shown,"} <= set(phrases)


def test_more_phrases_can_be_added_and_years_left_out() -> None:
    reward = BadPhrases(extra_phrases=["A Zoomed"], years=False)
    assert [m.what for m in reward.find("a zoomed dog in 1993")] == ["a zoomed"]
