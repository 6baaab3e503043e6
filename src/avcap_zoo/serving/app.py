"""A page in the browser (Gradio, extra `app`): captions of uploaded files, or a chat; `avcap serve` starts it.

Everything that the page shows comes from this process: no analytics, no fonts or scripts of other hosts, and a policy
that forbids the browser to fetch any.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from threading import Event
from typing import Any

from avcap_zoo.data_modules.records import ClipRecord
from avcap_zoo.errors import AvcapError, ConfigError, MediaError, require_extra
from avcap_zoo.serving.caption import Captioner
from avcap_zoo.serving.conversation import Conversation, highlighted
from avcap_zoo.serving.inputs import Inputs
from avcap_zoo.systems.bubogpt import BuboGPT
from avcap_zoo.systems.bubogpt.grounding import Grounder
from avcap_zoo.systems.captions import Explanation

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'"
)
"""What the browser may load: of Gradio's own page, all; of any other host, nothing."""
KEEP_UPLOADS_S = 24 * 3600
"""Uploads and pictures older than this are removed while the server runs; all are removed when it ends."""
_LOOKED_AT_S = 3600
_ENTITY_HINT = "Click on a coloured phrase to see it alone, and elsewhere to see all"


def import_gradio(uploads: Path) -> Any:
    """Gradio, told to send nothing anywhere and to keep uploads in a folder.

    Args:
        uploads: existing folder, of this user alone.

    Raises:
        MissingExtraError: Gradio is not installed.
    """
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(uploads))
    return require_extra("gradio", "app")


def explain_upload(captioner: Captioner, path: str | None) -> Explanation:
    """Caption one file, and show how the caption came about; the clip is called by the file's name alone.

    Args:
        captioner: any system.
        path: of the file; None if nothing was uploaded.

    Raises:
        ConfigError: nothing was uploaded.
        MediaError: the file cannot be read, or lacks what the system needs.
    """
    if path is None:
        raise ConfigError("upload a file first")
    name = Path(path).name
    found = captioner.fit(Inputs([ClipRecord(name, [], audio=path, visual=path)]))
    if found.problems:
        raise MediaError(name, None, found.problems[0].reason)
    (((explanation,), _),) = captioner.stream(found.clips, explain=True, on_error="raise")
    return explanation


class App:
    """The page of a system and the server behind it.

    Args:
        captioner: a loaded system. BuboGPT is chatted with, any other captions.
        grounder: finds the words of BuboGPT's answers in the picture, on its device; None = nothing is found.
        uploads: existing folder for what is uploaded and drawn.

    Raises:
        MissingExtraError: Gradio is not installed.
    """

    def __init__(self, captioner: Captioner, grounder: Grounder | None, uploads: Path) -> None:
        self.captioner = captioner
        self.grounder = grounder
        self.gradio = import_gradio(uploads)
        self.stopping = Event()
        title = f"{type(captioner.system).__name__} · avcap-zoo"
        gr = self.gradio
        with gr.Blocks(
            title=title, analytics_enabled=False, delete_cache=(_LOOKED_AT_S, KEEP_UPLOADS_S), fill_width=False
        ) as self.page:
            gr.Markdown(f"## {title}")
            if isinstance(captioner.system, BuboGPT):
                self._chat(captioner.system)
            else:
                self._captions()
        # One question at a time, whoever asks: the model is there once.
        self.page.queue(default_concurrency_limit=1)

    def server(self) -> Any:
        """A uvicorn server of the page; `run(sockets=[...])` serves until `should_exit` or a signal."""
        fastapi, uvicorn = require_extra("fastapi", "app"), require_extra("uvicorn", "app")
        served = self.gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            self.page,
            path="/",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=self.gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        )
        # Below critical it tells of every page that is open at the end; Gradio itself tells what goes wrong.
        headers = [("Content-Security-Policy", POLICY)]
        return uvicorn.Server(
            uvicorn.Config(served, log_level="critical", headers=headers, timeout_graceful_shutdown=1)
        )

    def _captions(self) -> None:
        gr = self.gradio
        modalities = self.captioner.system.requirements.modalities
        kinds: dict[str, Callable[[], Any]] = {
            "Sound": lambda: gr.Audio(label="Sound", type="filepath", sources=["upload", "microphone"], buttons=[]),
            "Picture": lambda: gr.Image(
                label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=320
            ),
            "Video": lambda: gr.Video(label="Video", sources=["upload"], height=320),
        }
        if "visual" in modalities:
            del kinds["Sound"]
        if "audio" in modalities:
            del kinds["Picture"]
        buttons = []
        for kind, component in kinds.items():
            with gr.Tab(kind):
                upload = self._local(component())
                buttons.append((gr.Button("Caption", variant="primary"), upload, f"caption_{kind.lower()}"))
        caption = gr.Textbox(label="Caption", interactive=False, buttons=["copy"])
        drawn = gr.Image(
            label="How it came about", interactive=False, visible=False, buttons=["download", "fullscreen"]
        )

        def handle(path: str | None) -> tuple[str, Any]:
            with self._told_in_page():
                found = explain_upload(self.captioner, path)
                return found.caption, gr.update(value=found.picture, visible=found.picture is not None)

        for button, upload, name in buttons:
            button.click(handle, upload, [caption, drawn], concurrency_id="model", api_name=name)

    def _chat(self, system: BuboGPT) -> None:
        gr = self.gradio
        state = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                image = self._local(
                    gr.Image(
                        label="Picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=260
                    )
                )
                sound = self._local(
                    gr.Audio(label="Sound", type="filepath", sources=["upload", "microphone"], buttons=[])
                )
                with gr.Accordion("How it answers", open=False):
                    beams = gr.Slider(1, 10, 1, step=1, label="Beams", info="Above 1 the answer comes in one piece")
                    heat = gr.Slider(0.1, 2.0, 1.0, step=0.1, label="Temperature", info="Lower is less bold")
            with gr.Column(scale=3, min_width=320):
                talk = gr.Chatbot(
                    label="Chat",
                    render_markdown=False,
                    height=360,
                    buttons=["copy"],
                    placeholder="Ask about a picture, a sound, both or neither. Other media start a new chat.",
                )
                question = gr.Textbox(show_label=False, placeholder="Your question", submit_btn=True, max_lines=5)
                with gr.Row():
                    stop = gr.Button("Stop", size="sm")
                    fresh = gr.Button("New chat", size="sm")
                words = gr.HighlightedText(
                    label=_ENTITY_HINT, visible=False, show_inline_category=False, interactive=False
                )
                notes = gr.Textbox(label="Notes", interactive=False, visible=False)
                where = gr.Image(
                    label="Where", interactive=False, visible=False, height=420, buttons=["download", "fullscreen"]
                )
        ungrounded = {part: gr.update(visible=False) for part in (words, notes, where)}

        def ask(
            text: str, picture: str | None, played: str | None, num_beams: int, temperature: float, talked: Any
        ) -> Iterator[dict[Any, Any]]:
            with self._told_in_page():
                if talked is None or talked.media != (picture, played):
                    talked = Conversation(system.model, picture, played)
                for turns in talked.ask(text, int(num_beams), temperature):
                    if self.stopping.is_set():
                        return
                    yield {state: talked, talk: turns, question: "", **ungrounded}
                found = talked.ground(self.grounder) if self.grounder is not None else None
                if found is not None:
                    pieces, colours = highlighted(found)
                    yield {
                        talk: talked.turns(),
                        words: gr.HighlightedText(pieces, color_map=colours, visible=True),
                        notes: gr.update(value="; ".join(found.notes), visible=bool(found.notes)),
                        where: gr.update(value=talked.draw(), visible=True),
                    }

        def show(talked: Conversation, event: Any) -> Any:
            return talked.draw(event.value[1])

        # Gradio looks for this type among the hints, and could not find the name of a local module.
        show.__annotations__["event"] = gr.SelectData
        asked = question.submit(
            ask,
            [question, image, sound, beams, heat, state],
            [question, state, talk, words, notes, where],
            concurrency_id="model",
            api_name="ask",
        )
        words.select(show, state, where, queue=False, api_visibility="private")
        stop.click(None, cancels=asked)
        for start in (fresh.click, talk.clear, image.change, sound.change):
            start(
                lambda: {state: None, talk: [], **ungrounded},
                None,
                [state, talk, words, notes, where],
                cancels=asked,
                api_visibility="private",
            )

    @contextmanager
    def _told_in_page(self) -> Iterator[None]:
        """What is the user's to mend is shown in the page; where uploads lie is nobody's business."""
        try:
            yield
        except AvcapError as error:
            said = f"{Path(error.clip_id).name}: {error.reason}" if isinstance(error, MediaError) else str(error)
            raise self.gradio.Error(escape(said), print_exception=False) from error

    def _local(self, upload: Any) -> Any:
        """The component, which takes files from its user and nothing from an address; Gradio would fetch it."""
        take = upload.async_move_resource_to_block_cache

        async def take_file(path: str | Path | None) -> str | None:
            if path is not None and "://" in str(path):
                raise self.gradio.Error("upload the file itself, not its address", print_exception=False)
            moved: str | None = await take(path)
            return moved

        upload.async_move_resource_to_block_cache = take_file
        # Its own would open pictures, and tell of its types and folders where it cannot.
        upload.preprocess = lambda payload: None if payload is None else payload.path
        return upload
