"""`avcap serve`: a page in the browser that captions uploaded files, or chats about them; docs/serve.md shows its use.

Exit codes: 1 the system, its device or the port cannot be used, 2 the command cannot be used as given, 130 ended with
Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from avcap_zoo.cli.config_files import read_config
from avcap_zoo.cli.usage import CommandLineError, VerbParser
from avcap_zoo.errors import ConfigError, first_line

if TYPE_CHECKING:
    from avcap_zoo.serving.caption import Captioner
    from avcap_zoo.systems.bubogpt.grounding import Grounder


def main(arguments: Sequence[str]) -> None:
    """Load, and serve until it is interrupted.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option is wrong.
        AvcapError: checkpoint, device or port cannot be used, or Gradio is not installed.
    """
    options = parse_options(arguments)
    # What is quickly refused comes first; a full-size model takes minutes to load.
    with listen(options.host, options.port) as listener, TemporaryDirectory(prefix="avcap-serve-") as folder:
        from avcap_zoo.serving.app import App, import_gradio

        import_gradio(Path(folder))
        captioner, grounder = load(options)
        app = App(captioner, grounder, Path(folder))
        # As a normal end, so that the uploads are removed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        print(
            f"{type(captioner.system).__name__} on {captioner.device}: {address_of(listener)} (Ctrl-C ends)", flush=True
        )
        try:
            app.server().run(sockets=[listener])
            raise KeyboardInterrupt  # uvicorn ends by a signal only, and returns where a parent ignores Ctrl-C
        finally:
            app.stopping.set()


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line, and refuse what can be refused without torch.

    Raises:
        CommandLineError: an option is unknown or out of range, or a configuration is missing or broken.
    """
    parser = _parser()
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    for config in (*options.configs, *options.ground):
        read_config(config)
    if options.checkpoint is None and not options.configs:
        raise CommandLineError("no system given, wanted --checkpoint FILE (or -c FILE for one that needs no training)")
    if not 0 <= options.port < 2**16:
        raise CommandLineError(f"--port is {options.port}, wanted 0 (any that is free) to 65535")
    return options


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Raises:
        ConfigError: no such address here, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host") from error


def address_of(listener: socket.socket) -> str:
    """What to type into a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def load(options: argparse.Namespace) -> tuple[Captioner, Grounder | None]:
    """The system of the options, and what grounds its answers, on their device.

    Raises:
        CommandLineError: `--ground` for a system that does not chat.
    """
    from avcap_zoo.serving.caption import Captioner
    from avcap_zoo.serving.grounding import build_grounder, read_settings
    from avcap_zoo.systems.bubogpt import BuboGPT

    stages = read_settings([word for file in options.ground for word in ("-c", file)]) if options.ground else None
    captioner = Captioner.load(options.checkpoint, options.configs, device=options.device)
    if stages is None:
        return captioner, None
    if not isinstance(captioner.system, BuboGPT):
        raise CommandLineError(f"--ground is for the answers of bubogpt, and this is {type(captioner.system).__name__}")
    return captioner, build_grounder(stages).to(captioner.device)


def _parser() -> VerbParser:
    parser = VerbParser(
        prog="avcap serve",
        description="A page in the browser. BuboGPT chats about a picture and a sound; any other system captions what "
        "is uploaded, and shows how the caption came about. There is no password: "
        "whoever reaches the address can use it.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="of a run; not needed by untrained systems")
    parser.add_argument(
        "-c", "--config", dest="configs", action="append", default=[], metavar="FILE", help="settings laid over it"
    )
    parser.add_argument(
        "--ground",
        action="append",
        default=[],
        metavar="FILE",
        help="find what BuboGPT's answers name, by the stages of this file, as configs/bubogpt_ground.yaml",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "hpu"), default="auto", help="default %(default)s")
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, metavar="N", help="0 = any that is free (%(default)s)")
    return parser
