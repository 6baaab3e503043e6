"""A conversation with media and the words of its last answer; captions of single uploads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from avcap_zoo.data_modules.dataset import DecodeSettings
from avcap_zoo.data_modules.scenes.spotting import SceneDetector, SceneSegmenter, SceneTagger
from avcap_zoo.errors import AvcapError, ConfigError, MediaError
from avcap_zoo.serving.app import explain_upload
from avcap_zoo.serving.caption import Captioner
from avcap_zoo.serving.conversation import Conversation, highlighted
from avcap_zoo.serving.loading import Loaded
from avcap_zoo.systems.bubogpt.chat import Message
from avcap_zoo.systems.bubogpt.grounding import Grounder
from avcap_zoo.systems.bubogpt.model import BuboGPTModel
from tests.integration.tiny import tiny_lavcap
from tests.integration.tiny_bubogpt import bird_and_phone, built_bubogpt


@pytest.fixture(scope="module")
def model() -> BuboGPTModel:
    return built_bubogpt().model


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bird_and_phone(tmp_path_factory.mktemp("scene"))


def test_text_alone_is_talked_about(model: BuboGPTModel) -> None:
    conversation = Conversation(model, None, None)
    conversation.chat.settings.generation.max_new_tokens = 8
    steps = list(conversation.ask("what is it", 2, 0.1))
    assert [turn["role"] for turn in steps[0]] == ["user"]
    assert [turn["role"] for turn in steps[-1]] == ["user", "assistant"]
    assert conversation.chat.settings.generation.num_beams == 2
    again = list(conversation.ask("and ### now", 1, 2.0))
    assert again[-1][:2] == steps[-1]
    assert again[-1][2]["content"].split() == ["and", "now"]
    assert len(again) > len(steps)  # token by token
    assert conversation.chat.settings.sampling is not None
    assert conversation.chat.settings.sampling.temperature == 2.0
    assert conversation.ground(Grounder(SceneTagger(), SceneDetector(), SceneSegmenter())) is None
    assert conversation.draw() is None


def test_an_empty_question(model: BuboGPTModel) -> None:
    conversation = Conversation(model, None, None)
    with pytest.raises(ConfigError, match="the question is empty"):
        list(conversation.ask(" ", 1, 1.0))
    assert conversation.turns() == []


def test_the_answer_is_grounded_and_each_phrase_drawn_alone(model: BuboGPTModel, scene_file: Path) -> None:
    conversation = Conversation(model, str(scene_file), None)
    assert conversation.turns() == []
    conversation.chat.messages += [Message("Human", "?"), Message("Assistant", "A phone rings; two birds sing, birds.")]
    found = conversation.ground(Grounder(SceneTagger(), SceneDetector(), SceneSegmenter()))
    assert found is not None
    pieces, colours = highlighted(found)
    assert "".join(piece for piece, _ in pieces) == "A phone rings; two birds sing, birds."
    assert [(piece, name) for piece, name in pieces if name] == [
        ("phone", "phone"),
        ("birds", "bird"),
        ("birds", "bird"),
    ]
    assert len({colours["phone"], colours["bird"]}) == 2
    drawn = {name: np.asarray(conversation.draw(name)) for name in (None, "phone", "bird")}
    assert {picture.shape for picture in drawn.values()} == {(576, 576, 3)}  # 192 px enlarged, no text below
    both = drawn["phone"] != drawn["bird"]
    # Bird at the bottom left, phone at the top right: each is in one picture only, and both are in the whole one.
    assert both[:288, 288:].any()
    assert both[288:, :288].any()
    assert (drawn[None][:200, 320:] == drawn["phone"][:200, 320:]).all()
    assert (drawn[None][376:, :256] == drawn["bird"][376:, :256]).all()
    conversation.chat.settings.generation.max_new_tokens = 8
    list(conversation.ask("and", 1, 1.0))
    assert conversation.draw() is None


def test_a_file_that_cannot_be_read(model: BuboGPTModel, scene_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    with pytest.raises(MediaError, match="not decodable as a picture"):
        Conversation(model, str(broken), None)
    with pytest.raises(MediaError, match="not decodable as sound"):
        Conversation(model, str(scene_file), str(broken))


def test_one_upload_is_captioned_and_called_by_its_name(scenes_root: Path, scene_file: Path) -> None:
    system = tiny_lavcap()
    system.configure_model()
    decode = DecodeSettings(16_000, 4, 32, modalities=system.requirements.modalities, on_error="skip")
    captioner = Captioner(Loaded(system.eval(), decode, "32-true", (), "made"), "cpu")
    video = min((scenes_root / "vggss/video").glob("*.mp4"))
    found = explain_upload(captioner, str(video))
    assert (found.clip_id, found.caption) == (video.name, captioner.caption([video])[0])
    assert found.picture is not None
    assert found.picture.shape[1] == 1120
    for path, reason in ((None, "upload a file first"), (str(scene_file), "scene.png: a picture has no sound")):
        with pytest.raises(AvcapError, match=reason):
            explain_upload(captioner, path)
