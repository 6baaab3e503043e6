"""The page of `avcap serve`, asked over HTTP on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
import torch
from PIL import Image

from avcap_zoo.cli.main import avcap
from avcap_zoo.cli.serve import address_of, listen
from avcap_zoo.data_modules.dataset import DecodeSettings
from avcap_zoo.data_modules.scenes.spotting import SceneDetector, SceneSegmenter, SceneTagger
from avcap_zoo.serving.app import App
from avcap_zoo.serving.caption import Captioner
from avcap_zoo.serving.loading import Loaded
from avcap_zoo.systems.bubogpt.grounding import Grounder
from tests.integration.tiny_bubogpt import bird_and_phone, built_bubogpt
from tests.unit.cli.running import BASE, call

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="needs avcap-zoo[app]")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A BuboGPT that answers "bird bird" to everything, with grounding: its page, a client of it, and its address."""
    system = built_bubogpt()
    word, sign = system.model.language.tokenizer("bird ###", add_special_tokens=False).input_ids[:2]
    steps: list[int] = []

    def steer(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(output, -100.0)
        forced[..., word if len(steps) % 5 < 2 else sign] = 100.0
        steps.append(1)
        return forced

    system.model.language.model.lm_head.register_forward_hook(steer)
    decode = DecodeSettings(16_000, 1, 28, modalities=system.requirements.modalities, on_error="skip")
    folder = tmp_path_factory.mktemp("served")
    grounder = Grounder(SceneTagger(), SceneDetector(), SceneSegmenter())
    (folder / "uploads").mkdir()
    app = App(Captioner(Loaded(system, decode, "32-true", (), "made"), "cpu"), grounder, folder / "uploads")
    server = app.server()
    with listen("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        from gradio_client import Client

        url = address_of(listener)
        try:
            client = Client(url, download_files=folder / "downloads", verbose=False, analytics_enabled=False)
            yield SimpleNamespace(app=app, url=url, client=client, uploads=folder / "uploads")
            client.close()
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bird_and_phone(tmp_path_factory.mktemp("scene"))


def ask(client: Any, question: str, image: Any = None, sound: Any = None) -> tuple[list[str], Any, Any]:
    """What was said in the whole chat, and the updates of the words and the picture below it."""
    _, talk, words, _, where = client.predict(question, image, sound, 1, 1.0, api_name="/ask")
    return ["".join(part["text"] for part in turn["content"]) for turn in talk], words, where


def post(url: str, content: dict[str, Any]) -> Any:
    request = Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urlopen(request) as answer:
        return json.load(answer)


def test_a_chat_whose_words_lead_to_the_picture(served: SimpleNamespace, scene_file: Path) -> None:
    from gradio_client import handle_file

    said, words, where = ask(served.client, "what is it", handle_file(scene_file))
    assert said == ["what is it", "bird bird"]
    assert [(token["token"], token["class_or_confidence"]) for token in words["value"]] == [
        ("bird", "bird"),
        (" ", None),
        ("bird", "bird"),
    ]
    assert where["visible"]
    with Image.open(where["value"]) as whole:
        assert whole.size == (576, 576)
    # A click, which the page sends and a client cannot.
    (clicked,) = [number for number, each in served.app.page.fns.items() if each.name == "show"]
    event = {"index": 0, "value": ["bird", "bird"]}
    content = {"data": [None], "fn_index": clicked, "session_hash": served.client.session_hash, "event_data": event}
    (alone,) = post(f"{served.url}/gradio_api/run/predict", content)["data"]
    assert Path(alone["path"]).is_relative_to(served.uploads)
    # Other media begin anew, and text alone will do.
    said, words, where = ask(served.client, "and now")
    assert said == ["and now", "bird bird"]
    assert not where["visible"]
    assert ask(served.client, "and then")[0] == ["and now", "bird bird", "and then", "bird bird"]


def test_what_cannot_be_used_is_said_and_the_server_goes_on(served: SimpleNamespace, tmp_path: Path) -> None:
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    sound, picture = tmp_path / "broken.wav", tmp_path / "broken.png"
    for path in (sound, picture):
        path.write_text("<html>")
    with pytest.raises(AppError, match=r"^broken\.wav: not decodable as sound"):
        ask(served.client, "what", None, handle_file(sound))
    with pytest.raises(AppError, match=r"^broken\.png: not decodable as a picture"):
        ask(served.client, "what", handle_file(picture))
    with pytest.raises(AppError, match="the question is empty"):
        ask(served.client, "  ")
    address = {"path": f"{served.url}/config", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(AppError, match="upload the file itself, not its address"):
        ask(served.client, "what", address)
    assert ask(served.client, "still there?")[0][-1] == "bird bird"


def test_nothing_outside_is_read_or_written(served: SimpleNamespace, scene_file: Path) -> None:
    for path in (scene_file, Path(__file__), served.uploads / "../.." / scene_file.name):
        with pytest.raises(HTTPError, match=r"40[34]"):
            urlopen(f"{served.url}/gradio_api/file={quote(str(path))}")
    border = "x7x7"
    head = 'Content-Disposition: form-data; name="files"; filename="../../../up.png"'
    named = f"--{border}\r\n{head}\r\n\r\nx\r\n--{border}--"
    request = Request(
        f"{served.url}/gradio_api/upload", named.encode(), {"Content-Type": f"multipart/form-data; boundary={border}"}
    )
    with urlopen(request) as answer:
        (stored,) = json.load(answer)
    assert Path(stored).resolve().is_relative_to(served.uploads.resolve())
    with urlopen(served.url) as page:
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        text = page.read().decode()
    assert '"analytics_enabled":false' in text.replace(" ", "")
    assert "googleapis" not in text


def test_it_serves_until_ctrl_c(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    config, uploads = tmp_path / "toy.yaml", tmp_path / "temporary"
    config.write_text(BASE)
    uploads.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(uploads))
    held = signal.getsignal(signal.SIGTERM)
    seen: list[int] = []

    def visit() -> None:
        try:
            for _ in range(600):
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            with urlopen(f"http://127.0.0.1:{port}/") as page:
                seen.append(page.status)
            seen.append(len(list(uploads.iterdir())))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        ran = call(capsys, avcap, ["serve", "-c", str(config), "--port", str(port), "--device", "cpu"])
    finally:
        visitor.join()
        signal.signal(signal.SIGTERM, held)
    assert seen == [200, 1]
    assert ran.code == 130
    assert ran.out == f"ToySystem on cpu: http://127.0.0.1:{port} (Ctrl-C ends)\n"
    assert ran.err == "avcap serve: interrupted\n"
    assert list(uploads.iterdir()) == []
