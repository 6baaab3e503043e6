"""`avcap chat`: ask a model about a picture, a sound, both or neither; one question, or a conversation.

Exit codes: 0 answered, 1 a file or the model cannot be used, 2 the command cannot be used as given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avcap_zoo.cli.config_files import read_config
from avcap_zoo.cli.usage import CommandLineError, VerbParser
from avcap_zoo.errors import AvcapError

if TYPE_CHECKING:
    from avcap_zoo.systems.bubogpt.chat import Chat

HELP = "/image FILE and /audio FILE add to the next question, /reset forgets everything, /quit (or Ctrl-D) ends"


def main(arguments: Sequence[str]) -> int:
    """Answer one question, or talk until the end of the input.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option is wrong, or the configured system cannot chat.
        AvcapError: checkpoint, device or a file cannot be used.
    """
    options = parse_options(arguments)
    import torch

    chat = load_chat(options)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    for path in options.images:
        add_image(chat, path)
    for path in options.sounds:
        add_audio(chat, path)
    if options.question is not None:
        say(chat, options.question)
        return 0
    return talk(chat)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line, and refuse what can be refused without torch.

    Raises:
        CommandLineError: an option is unknown or out of range, or a file is missing.
    """
    parser = _parser()
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    for config in options.configs:
        read_config(config)
    if options.checkpoint is None and not options.configs:
        raise CommandLineError("no system given, wanted --checkpoint FILE (or -c FILE)")
    for path in (*options.images, *options.sounds):
        if not path.is_file():
            raise CommandLineError(f"{path} does not exist")
    for name in ("max_new_tokens", "beams"):
        if getattr(options, name) < 1:
            raise CommandLineError(f"--{name} is {getattr(options, name)}, wanted at least 1")
    if not options.temperature > 0:
        raise CommandLineError(f"--temperature is {options.temperature}, wanted more than 0; --greedy draws nothing")
    return options


def load_chat(options: argparse.Namespace) -> Chat:
    """The model of the options, on its device, at the beginning of a conversation.

    Raises:
        CommandLineError: the system cannot chat.
    """
    from avcap_zoo.backbones.language import GenerationSettings, SamplingSettings
    from avcap_zoo.serving.caption import choose_device
    from avcap_zoo.serving.loading import load_system
    from avcap_zoo.systems.bubogpt import BuboGPT
    from avcap_zoo.systems.bubogpt.chat import Chat, ChatSettings

    system = load_system(options.checkpoint, options.configs).system
    if not isinstance(system, BuboGPT):
        raise CommandLineError(
            f"{type(system).__name__} does not chat, wanted a checkpoint or configuration of bubogpt"
        )
    system = system.to(choose_device(options.device))
    settings = ChatSettings(
        generation=GenerationSettings(num_beams=options.beams, max_new_tokens=options.max_new_tokens),
        sampling=None if options.greedy else SamplingSettings(options.temperature, options.top_p),
    )
    return Chat(system.model, settings)


def add_image(chat: Chat, path: Path) -> None:
    """Show a picture file.

    Raises:
        MediaError: it cannot be read.
    """
    import torch

    from avcap_zoo.data_modules.media.image import read_image

    size = chat.model.vision_settings.encoder.image_size_px
    chat.add_image(torch.from_numpy(read_image(path, size, str(path))))


def add_audio(chat: Chat, path: Path) -> None:
    """Play a sound file, or the sound of a video; of any rate, any number of channels and up to an hour.

    Raises:
        MediaError: it cannot be read.
    """
    import torch

    from avcap_zoo.data_modules.media.audio import read_audio

    rate = chat.model.audio_settings.clips.sample_rate_hz
    chat.add_audio(torch.from_numpy(read_audio(path, rate, str(path))), rate)


def say(chat: Chat, question: str) -> None:
    """Print the answer as it comes."""
    for piece in chat.stream(question):
        print(piece, end="", flush=True)
    print(flush=True)


def talk(chat: Chat) -> int:
    """Answer line by line; problems are told, and the conversation goes on."""
    asks = sys.stdin.isatty()
    if asks:
        print(HELP, file=sys.stderr)
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return 0
        words = line.split(maxsplit=1)
        try:
            if not words:
                continue
            if words[0] == "/reset":
                chat.reset()
            elif words[0] in {"/image", "/audio"} and len(words) == 2:
                add = add_image if words[0] == "/image" else add_audio
                add(chat, Path(words[1].strip()))
            elif words[0].startswith("/"):
                print(HELP, file=sys.stderr)
            else:
                say(chat, line.strip())
        except AvcapError as error:
            print(f"avcap chat: {error}", file=sys.stderr)


def _parser() -> VerbParser:
    parser = VerbParser(
        prog="avcap chat",
        description="Ask about pictures and sounds. Without a question, questions are read line by line: " + HELP + ".",
        allow_abbrev=False,
    )
    parser.add_argument("question", nargs="?", help="one question; without it, a conversation")
    parser.add_argument("--image", dest="images", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--audio", dest="sounds", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="of a run, or from avcap convert")
    parser.add_argument(
        "-c", "--config", dest="configs", action="append", default=[], metavar="FILE", help="settings laid over it"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "hpu"), default="auto", help="default %(default)s")
    parser.add_argument("--max_new_tokens", type=int, default=300, metavar="N", help="longest answer (%(default)s)")
    parser.add_argument("--beams", type=int, default=1, metavar="N", help="above 1 the answer comes in one piece")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest token instead of drawing one")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of drawing (%(default)s)")
    parser.add_argument("--top_p", type=float, default=0.9, metavar="P", help="share drawn from (%(default)s)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same question then has the same answer")
    return parser
