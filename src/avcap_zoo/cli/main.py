"""The front of the commands `lightning` and `avcap`: quick answers, and what becomes of an error.

Help, version, a wrong verb and a wrong `-c` file are answered before torch is imported. Exit codes: 0 done, 1 an
error of the run (message only; `AVCAP_TRACEBACK=1` shows where it came from), 2 the command or a configuration cannot
be used as given, 130 interrupted. Errors that are nobody's but ours keep their type and traceback.
"""

from __future__ import annotations

import os
import select
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from avcap_zoo.cli.usage import CommandLineError, suggestion
from avcap_zoo.errors import AvcapError


@dataclass(frozen=True)
class Verb:
    """One word of the command line.

    Args:
        summary: its line in `--help`.
        module: imported only when the verb is used; holds `main(arguments) -> int | None`, without the verb. The
            Trainer's four share `avcap_zoo.cli.parser`, which needs to know the verb and the program.
    """

    summary: str
    module: str


TRAINER_VERBS = {
    "fit": Verb("train a system, validating as it goes", "avcap_zoo.cli.parser"),
    "validate": Verb("score a checkpoint on the validation split", "avcap_zoo.cli.parser"),
    "test": Verb("score a checkpoint on the test split", "avcap_zoo.cli.parser"),
    "predict": Verb("write a caption for every clip", "avcap_zoo.cli.parser"),
}
AVCAP_VERBS = TRAINER_VERBS | {
    "caption": Verb("caption files with a trained system", "avcap_zoo.cli.caption"),
    "score": Verb("score captions of any file, and compare two", "avcap_zoo.cli.score"),
    "ground": Verb("show where in a picture the things are that a text names", "avcap_zoo.cli.ground"),
    "chat": Verb("ask about a picture, a sound, or both", "avcap_zoo.cli.chat"),
    "serve": Verb("caption uploaded files, or chat about them, in the browser", "avcap_zoo.cli.serve"),
    "scenes": Verb("generate the embedded data set of small audible scenes", "avcap_zoo.cli.scenes"),
    "prepare": Verb("cut, resample and list the media of a published data set", "avcap_zoo.cli.prepare"),
    "build": Verb("make an instruction set out of annotations", "avcap_zoo.cli.build"),
    "cache": Verb("compute what frozen encoders make of the clips, once", "avcap_zoo.cli.cache"),
    "convert": Verb("turn an official checkpoint into one of ours, or back", "avcap_zoo.cli.convert"),
    "doctor": Verb("check this machine, and whether a configuration can run on it", "avcap_zoo.cli.doctor"),
    "reproduce": Verb("run the papers' tables, at full size and with toy models", "avcap_zoo.cli.reproduce"),
    "demo": Verb("train, score and caption at toy size, start to end", "avcap_zoo.cli.demo"),
}


def lightning(argv: Sequence[str] | None = None) -> int:
    """The console script `lightning`.

    Args:
        argv: what follows the program's name; None takes sys.argv.

    Returns:
        The exit code.
    """
    return _run("lightning", TRAINER_VERBS, argv)


def avcap(argv: Sequence[str] | None = None) -> int:
    """The console script `avcap`; arguments and result as in `lightning`."""
    return _run("avcap", AVCAP_VERBS, argv)


def _run(prog: str, verbs: Mapping[str, Verb], argv: Sequence[str] | None) -> int:
    try:
        try:
            return _exit_code(prog, verbs, list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone(sys.stdout.fileno()):
            raise  # another pipe, such as a data worker's
        # What Python still holds back would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _reader_is_gone(descriptor: int) -> bool:
    """Whether nobody reads our output any more, as after `| head`."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _exit_code(prog: str, verbs: Mapping[str, Verb], arguments: list[str]) -> int:
    name = f"{prog} {arguments[0]}" if arguments and arguments[0] in verbs else prog
    try:
        return _dispatch(prog, verbs, arguments)
    except AvcapError as error:
        if os.environ.get("AVCAP_TRACEBACK") == "1":
            traceback.print_exc()
        else:
            print(f"{name}: {error}", file=sys.stderr)
        return 2 if isinstance(error, CommandLineError) else 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except SystemExit as stop:
        # Lightning answers Ctrl-C during a run with a shutdown of its own and sys.exit(1).
        if isinstance(stop.__context__, KeyboardInterrupt):
            return 130
        raise


def _dispatch(prog: str, verbs: Mapping[str, Verb], arguments: list[str]) -> int:
    first = arguments[0] if arguments else None
    if first in {"-h", "--help"}:
        print(_help(prog, verbs))
        return 0
    if first == "--version":
        from avcap_zoo.cli.versions import version_lines

        print("\n".join(version_lines()))
        return 0
    if first is None or first not in verbs:
        raise CommandLineError(_wrong_start(prog, verbs, arguments))
    if first in TRAINER_VERBS:
        check_arguments(prog, arguments)
        from avcap_zoo.cli.devices import process_group_of_run

        with process_group_of_run():
            import_module(TRAINER_VERBS[first].module).run(prog, arguments)
        return 0
    return int(import_module(verbs[first].module).main(arguments[1:]) or 0)


def _help(prog: str, verbs: Mapping[str, Verb]) -> str:
    lines = [f"usage: {prog} VERB [-c FILE ...] [options]", "       " + f"{prog} --help | --version", "", "verbs:"]
    lines += [f"  {name:<10}{verb.summary}" for name, verb in verbs.items()]
    return "\n".join(
        [
            *lines,
            "",
            f"  {prog} fit -c configs/lavcap.yaml                   train with the paper's settings",
            f"  {prog} fit -c configs/lavcap.yaml -c overlay.yaml   a later file overrides an earlier one",
            f"  {prog} fit --model.help lavcap                      what a system can be told (data: --data.help)",
            f"  {prog} fit -c FILE --print_config                   the merged settings, without running",
            f"  {prog} VERB --help                                  every option",
        ]
    )


def _wrong_start(prog: str, verbs: Mapping[str, Verb], arguments: list[str]) -> str:
    if not arguments:
        return f"no verb given, wanted one of {', '.join(verbs)}; see {prog} --help"
    first = arguments[0]
    if first.startswith("-"):
        verb = next((word for word in arguments if word in verbs), "fit")
        return f"{first} stands before the verb, wanted: {prog} {verb} {first} ..."
    if first in AVCAP_VERBS:
        return f"{first} is a verb of avcap: avcap {' '.join(arguments)}"
    return f"no verb {first!r}{suggestion(first, verbs)}"


def check_arguments(prog: str, arguments: Sequence[str]) -> None:
    """Refuse what can be refused without torch: stray words, and `-c` files that are missing or broken.

    What the files want in the environment is set, as torch loads the software of some devices when it is imported.

    Args:
        prog: name of the program, for the messages.
        arguments: the verb and what follows it.

    Raises:
        CommandLineError: with the command that was probably meant.
    """
    verb, *rest = arguments
    if not rest:
        raise CommandLineError(
            f"nothing to {verb}, wanted a configuration or a model and its data: {prog} {verb} -c configs/lavcap.yaml"
        )
    files: list[str] = []
    position = 0
    while position < len(rest):
        word = rest[position]
        following = rest[position + 1] if position + 1 < len(rest) else None
        position += 1
        option, equals, value = word.partition("=")
        if word.startswith("-c"):
            option, equals, value = "-c", word[2:], word[2:].removeprefix("=")
        if option in {"-c", "--config"}:
            if not equals:
                if following is None or following.startswith("-"):
                    raise CommandLineError(f"{option} needs a file: {prog} {verb} {option} configs/lavcap.yaml")
                value = following
                position += 1
            files.append(value)
        elif not word.startswith("-"):
            raise CommandLineError(_stray(prog, verb, word, files))
        elif not equals and word not in {"-h", "--help", "--print_config"} and _is_value(following):
            position += 1
    environment: dict[str, str] = {}
    for file in files:
        # A pipe (`-c <(command)`) can be read once only, and the parser needs it.
        if "://" not in file and not _is_pipe(file):
            from avcap_zoo.cli.config_files import read_config

            found = read_config(file).get("environment")
            plain = None if found is None else found.plain()
            environment |= plain if isinstance(plain, dict) else {}
    if environment:
        from avcap_zoo.cli.config_files import set_environment

        set_environment(environment)


def _is_value(word: str | None) -> bool:
    return word is not None and (not word.startswith("-") or word[1:2].isdigit() or word[1:2] == ".")


def _is_pipe(file: str) -> bool:
    path = Path(file)
    return path.exists() and not path.is_file() and not path.is_dir()


def _stray(prog: str, verb: str, word: str, files: list[str]) -> str:
    if files:
        return f"{word} follows no option; each file needs its own -c: {prog} {verb} -c {files[-1]} -c {word}"
    if word.endswith((".yaml", ".yml")):
        return f"{word} follows no option, wanted: {prog} {verb} -c {word}"
    return f"{word} follows no option; see {prog} {verb} --help"
