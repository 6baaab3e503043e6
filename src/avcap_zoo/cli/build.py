"""`avcap build SET`: make an instruction set out of annotations, in the form it was published in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avcap_zoo.cli.usage import CommandLineError, VerbParser, suggestion

SETS = {
    "vggss-instructions": "a sentence about the source of each sound of VGGSS, around its class label",
    "clotho-detail": "a long description of each sound of Clotho, by a language model, out of its captions",
}
PARTS = ("development", "validation", "evaluation")


def main(arguments: Sequence[str]) -> int:
    """Build a set, and say how much of it there is.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: the set or an option is unknown, missing or out of range.
        AvcapError: annotations, answers or model cannot be used, or the file cannot be written.
    """
    name = arguments[0] if arguments else ""
    if name in {"-h", "--help"}:
        lines = [f"  {each:<20}{what}" for each, what in SETS.items()]
        print("\n".join(["usage: avcap build SET --root DIR --out FILE [options]", "", "sets:", *lines]))
        return 0
    if name not in SETS:
        found = f"no set {name}{suggestion(name, SETS)}" if name else f"name a set: {', '.join(SETS)}"
        raise CommandLineError(found)
    return _build_vggss(arguments[1:]) if name == "vggss-instructions" else _build_clotho(arguments[1:])


def _build_vggss(arguments: Sequence[str]) -> int:
    parser = _parser("vggss-instructions", "Our sentences: the published ones came without what made them.")
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of vggss.json")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of sentences (%(default)s)")
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    from avcap_zoo.data_modules.instruction_building import source_sentences, write_annotations

    entries, index = source_sentences(options.root, seed=options.seed)
    write_annotations(options.out, entries)
    print(f"{len(entries)} sentences are in {options.out}")
    for what, count in index.left_out.items():
        print(f"left out: {count} {what}")
    return 0


def _build_clotho(arguments: Sequence[str]) -> int:
    parser = _parser(
        "clotho-detail",
        "A question about each clip goes to a chat model of transformers, or to a file of answers made elsewhere. "
        "A model's answers are kept in FILE.answers.jsonl as they come, and a second run takes up there.",
    )
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder of Clotho's captions")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=("development",),
        help="of Clotho (%(default)s); the published set has the evaluation part too, whose sounds are test data",
    )
    parser.add_argument("--model", metavar="DIR", help="folder or hub id of a chat model of transformers")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of it (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "hpu"), default="auto", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions at a time (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=160, metavar="N", help="per answer (%(default)s)")
    parser.add_argument("--answers", type=Path, metavar="FILE", help='JSON lines {"id", "answer"} instead of a model')
    parser.add_argument(
        "--questions", type=Path, metavar="FILE", help='write JSON lines {"id", "messages"} to be answered, and stop'
    )
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    ways = [f"--{way}" for way in ("model", "answers", "questions") if getattr(options, way) is not None]
    if len(ways) != 1:
        raise CommandLineError(f"found {' and '.join(ways) or 'no answers'}, wanted --model, --answers or --questions")
    if options.out is None and options.questions is None:
        raise CommandLineError("the following arguments are required: --out")
    for name in ("batch_size", "max_new_tokens"):
        if getattr(options, name) < 1:
            option = f"--{name.replace('_', '-')}"
            raise CommandLineError(f"argument {option}: found {getattr(options, name)}, wanted at least 1")
    from avcap_zoo.data_modules.instruction_building import (
        clotho_captions,
        detail_entries,
        read_answers,
        write_annotations,
        write_questions,
    )

    captions = clotho_captions(options.root, list(dict.fromkeys(options.parts)))
    if options.questions is not None:
        write_questions(options.questions, captions)
        print(f"{len(captions)} questions are in {options.questions}")
        return 0
    answers = (
        read_answers(options.answers, captions)
        if options.answers is not None
        else _ask(
            captions,
            options.out.with_name(f"{options.out.name}.answers.jsonl"),
            source=options.model,
            dtype=options.dtype,
            device=options.device,
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
        )
    )
    entries = detail_entries(captions, answers)
    write_annotations(options.out, entries)
    words = sum(len(entry["caption"].split()) for entry in entries) / max(1, len(entries))
    print(f"{len(entries)} descriptions of {len(captions)} sounds are in {options.out}, {words:.1f} words in the mean")
    if absent := [clip_id for clip_id in captions if clip_id not in answers]:
        print(f"without an answer: {len(absent)}, such as {', '.join(absent[:3])}")
    return 0


def _ask(
    captions: dict[str, list[str]],
    path: Path,
    *,
    source: str,
    dtype: str,
    device: str,
    batch_size: int,
    max_new_tokens: int,
) -> dict[str, str]:
    from tqdm import tqdm

    from avcap_zoo.backbones.chat_model import ChatModel, TooLongError
    from avcap_zoo.data_modules.instruction_building import AnswerFile, description_question
    from avcap_zoo.errors import ConfigError
    from avcap_zoo.serving.caption import choose_device

    model = ChatModel(source, dtype, max_new_tokens=max_new_tokens, key="--model")  # type: ignore[arg-type]
    model.device = choose_device(device)
    file = AnswerFile(path, captions, source)
    # Of one length as far as it goes: less padding.
    left = sorted(
        (clip_id for clip_id in captions if clip_id not in file.answers), key=lambda each: len(str(captions[each]))
    )
    with tqdm(total=len(captions), initial=len(file.answers), desc="describing", unit="sound") as bar:
        for start in range(0, len(left), batch_size):
            asked = left[start : start + batch_size]
            try:
                said = model.answer([description_question(captions[clip_id]) for clip_id in asked])
            except TooLongError as error:
                raise ConfigError(f"clips {asked[0]} to {asked[-1]}: {error}; lower --max-new-tokens") from error
            file.add(dict(zip(asked, said, strict=True)))
            bar.update(len(asked))
    return file.answers


def _parser(name: str, more: str) -> VerbParser:
    return VerbParser(prog=f"avcap build {name}", description=f"Make {SETS[name]}. {more}", allow_abbrev=False)
