"""`avcap ground`: where in a picture the things are that a text names; docs/ground.md shows its use.

Exit codes: 0 done, also where nothing was found (notes say so), 1 the picture, a model or an output cannot be used, 2
the command cannot be used as given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from avcap_zoo.cli.config_files import read_config
from avcap_zoo.cli.usage import CommandLineError, VerbParser, suggestion
from avcap_zoo.cli.versions import version_lines
from avcap_zoo.errors import DataError, first_line

SETTINGS = ("tagger", "detector", "segmenter", "matcher", "nms_iou", "entity_names", "cache")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments: Sequence[str]) -> int:
    """Ground, write or print, and say what was not found.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option or a configuration is wrong.
        AvcapError: picture, model, device or output cannot be used.
    """
    options, settings = parse_options(arguments)
    # Only now: torch, and the parser of the stages.
    from avcap_zoo.serving.grounding import build_grounder, print_settings, read_settings

    found = read_settings(settings)
    if options.print_config:
        print(print_settings(found), end="")
        return 0
    import torch

    from avcap_zoo.data_modules.media.image import read_whole_image
    from avcap_zoo.serving.caption import choose_device

    picture = torch.from_numpy(read_whole_image(options.input, options.input.name).copy())
    grounder = build_grounder(found).to(choose_device(options.device))
    (grounding,) = grounder.ground([picture], [options.text])
    result = {"picture": str(options.input), **grounding.to_json(), "versions": version_lines()}
    text = json.dumps(result, indent=1, ensure_ascii=False)
    try:
        if options.out is None:
            print(text)
        else:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text + "\n", encoding="utf-8")
        if options.picture is not None:
            options.picture.parent.mkdir(parents=True, exist_ok=True)
            grounding.draw(picture).save(options.picture)
    except OSError as error:
        raise DataError(f"cannot write {error.filename or options.picture}: {first_line(error)}") from error
    for note in grounding.notes:
        print(f"note: {note}", file=sys.stderr)
    boxes = sum(region.entity in grounding.matched for region in grounding.regions)
    written = ", ".join(str(path) for path in (options.out, options.picture) if path is not None)
    print(
        f"{len(grounding.matching.spans)} spans, {len(grounding.matched)} of {len(grounding.colours)} entities, "
        f"{boxes} boxes{f': {written}' if written else ''}",
        file=sys.stderr,
    )
    return 0


def parse_options(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line, and refuse what can be refused without torch.

    Returns:
        The options of the command, and the words that set the stages.

    Raises:
        CommandLineError: an option is unknown, a `-c` file is missing or broken, or the text is empty.
    """
    parser = _parser()
    own, settings = _divide(list(arguments), parser)
    options = parser.parse_args(own)
    for flag, value in pairwise(settings):
        if flag == "-c":
            read_config(value)
    if options.text is not None and not options.text.strip():
        raise CommandLineError("--text is empty, wanted words about the picture (without --text all things are found)")
    if options.picture is not None and options.picture.suffix.lower() not in PICTURE_SUFFIXES:
        raise CommandLineError(f"--picture {options.picture}, wanted one of {', '.join(PICTURE_SUFFIXES)}")
    return options, settings


def _divide(words: list[str], parser: VerbParser) -> tuple[list[str], list[str]]:
    """The words of the command itself, and those of the stages: `-c FILE` and `--detector.box_threshold 0.3`."""
    known = {option for action in parser._actions for option in action.option_strings}
    own: list[str] = []
    settings: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        option, equals, value = word.partition("=")
        stage = option.startswith("--") and option[2:].split(".")[0] in SETTINGS
        if stage or option in {"-c", "--config"}:
            name = option if stage else "-c"
            if not equals:
                position += 1
                if position == len(words):
                    raise CommandLineError(f"{option} needs a value")
                value = words[position]
            settings += [name, value]
        else:
            if option.startswith("--") and option not in known:
                names = known | {f"--{name}" for name in SETTINGS}
                raise CommandLineError(f"no option {option}{suggestion(option, names)}")
            own.append(word)
            if option in known and not equals and option not in {"-h", "--help", "--print_config"}:
                own += words[position + 1 : position + 2]
                position += 1
        position += 1
    return own, settings


def _parser() -> VerbParser:
    parser = VerbParser(
        prog="avcap ground",
        description="Find the things that a text names in its picture: spans of the text, boxes and masks. Without -c "
        "the models are the published ones.",
        epilog="Stages: --tagger, --detector, --segmenter, --matcher take a short name or the path of a class, and "
        "settings as --detector.box_threshold 0.3; --nms_iou, --entity_names and --cache DIR are the pipeline's own. "
        "docs/ground.md lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("input", type=Path, metavar="PICTURE", help="anything Pillow reads")
    parser.add_argument("--text", metavar="TEXT", help="about the picture; without it all things are found")
    parser.add_argument("-c", "--config", metavar="FILE", help="stages and settings, as configs/bubogpt_ground.yaml")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the result as JSON (printed without)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="masks, boxes and highlighted words, drawn")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "hpu"), default="auto", help="default %(default)s")
    parser.add_argument("--print_config", action="store_true", help="print the settings, and do nothing")
    return parser
