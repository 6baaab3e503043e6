"""SPICE 1.0 on any Java from 8 up, in a command line of our own.

pycocoevalcap's own call wants Java 14 or older, 8 GB, and a writable site-packages. Here SPICE gets the packages of
Java opened that its serialiser reaches into, an engine for its result file (`script_engine`), a cache folder of the
user's and a smaller heap. Two jars of Stanford CoreNLP 3.6.0 are in no wheel and must be brought by the user.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from avcap_zoo.metrics.java import LOCALE_FLAGS, JavaError, jar_folder, run_java
from avcap_zoo.metrics.script_engine import write_script_engine

CORENLP_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
CORENLP_ARCHIVE = "http://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"

# Found by adding one after the other until SPICE stopped complaining, on Java 17 and 25.
_OPENED_PACKAGES = ("java.lang", "java.math", "java.util", "java.util.concurrent", "java.net", "java.text")


class SpiceInput(NamedTuple):
    """One clip for SPICE: the candidate and its references, tokenised and not empty."""

    candidate: str
    references: Sequence[str]


def user_cache_dir() -> Path:
    """The package's folder for what may be made again: $XDG_CACHE_HOME/avcap_zoo, or ~/.cache/avcap_zoo."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "avcap_zoo"


def jar_places(*, cache_dir: str | Path | None = None, spice_jars: str | Path | None = None) -> list[Path]:
    """Where the two CoreNLP jars are looked for, in order: pycocoevalcap's folder, the cache, the user's folder."""
    cache = user_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
    places = [jar_folder() / "spice" / "lib", cache / "spice"]
    return places if spice_jars is None else [*places, Path(spice_jars).expanduser()]


def find_corenlp(places: Sequence[Path]) -> list[Path] | None:
    """Both CoreNLP jars out of the first folder that holds both, or None."""
    for place in places:
        jars = [(place / name).absolute() for name in CORENLP_JARS]
        if all(jar.is_file() for jar in jars):
            return jars
    return None


def why_no_spice(places: Sequence[Path]) -> str:
    """What is missing and where to put it, on one line."""
    archive = CORENLP_ARCHIVE.rpartition("/")[2]
    wanted = " ".join(f"'*/{name}'" for name in CORENLP_JARS)
    return (
        f"SPICE needs {CORENLP_JARS[0]} and {CORENLP_JARS[1]}, which no wheel brings: "
        f"curl -fLO {CORENLP_ARCHIVE} && unzip -j {archive} {wanted} -d {shlex.quote(str(places[1]))}, "
        f"or name their folder with spice_jars (looked in {', '.join(map(str, places))})"
    )


def spice_command(
    java: Path,
    *,
    corenlp: Sequence[Path],
    engine_folder: Path,
    input_path: Path,
    output_path: Path,
    cache_folder: Path | None,
    heap: str = "4G",
) -> list[str]:
    """The command line of one SPICE run.

    Args:
        java: the launcher, from `find_java`.
        corenlp: the two CoreNLP jars.
        engine_folder: folder filled by `write_script_engine`.
        input_path: JSON of `spice_input`.
        output_path: where SPICE writes its JSON.
        cache_folder: an existing folder for parses of captions, or None to parse everything anew.
        heap: largest Java heap.
    """
    folder = jar_folder() / "spice"
    bundled = [jar for jar in sorted((folder / "lib").glob("*.jar")) if jar.name not in CORENLP_JARS]
    class_path = os.pathsep.join(map(str, [folder / "spice-1.0.jar", *bundled, *corenlp, engine_folder]))
    # The first flag lets Java 8, which knows neither of the next two kinds, skip them.
    flags = ["-XX:+IgnoreUnrecognizedVMOptions", *LOCALE_FLAGS]
    flags += [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED_PACKAGES]
    flags += ["--enable-native-access=ALL-UNNAMED", f"-Xmx{heap}"]
    command = [str(java), *flags, "-cp", class_path, "edu.anu.spice.SpiceScorer", str(input_path)]
    command += [] if cache_folder is None else ["-cache", str(cache_folder)]
    return [*command, "-out", str(output_path), "-silent"]


def spice_input(clips: Sequence[SpiceInput]) -> str:
    """The input file: ASCII, since SPICE reads it in the encoding of the machine; ids are positions in clips."""
    rows = [
        {"image_id": index, "test": clip.candidate, "refs": list(clip.references)} for index, clip in enumerate(clips)
    ]
    return json.dumps(rows, ensure_ascii=True)


def parse_spice(text: str, *, num_clips: int) -> list[float]:
    """The F-score over all tuples of every clip, out of SPICE's result file.

    Args:
        text: a JSON list of {"image_id": position, "scores": {"All": {"f": number or null, ...}, ...}}, in any order.
        num_clips: how many clips were asked about.

    Returns:
        num_clips scores in [0, 1]; NaN where SPICE gave none.

    Raises:
        JavaError: the text is not such a list, or does not hold every clip once.
    """
    try:
        scores = {int(row["image_id"]): row["scores"]["All"]["f"] for row in json.loads(text)}
        values = {index: math.nan if score is None else float(score) for index, score in scores.items()}
    except (ValueError, TypeError, KeyError) as error:
        raise JavaError(f"SPICE wrote a result that cannot be read: {text[:80]!r}") from error
    if sorted(values) != list(range(num_clips)):
        raise JavaError(f"SPICE gave {len(values)} results for {num_clips} clips")
    return [values[index] for index in range(num_clips)]


def score_spice(
    clips: Sequence[SpiceInput],
    *,
    java: Path,
    corenlp: Sequence[Path],
    cache_dir: str | Path | None = None,
    timeout_s: float | None = None,
) -> list[float]:
    """Score tokenised captions with SPICE.

    Parses are kept in `cache_dir/spice_parses`, so a second run over the same references is much faster.

    Args:
        clips: candidates and references without empty ones (SPICE finds nothing in those).
        java: the launcher, from `find_java`.
        corenlp: the two CoreNLP jars, from `find_corenlp`.
        cache_dir: the cache folder; None for `user_cache_dir`.
        timeout_s: seconds to wait; by default 600 and 1 more for each caption.

    Returns:
        One F-score in [0, 1] for each clip, or NaN.

    Raises:
        JavaError: SPICE failed or took too long.
    """
    if not clips:
        return []
    cache = (user_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()).absolute() / "spice_parses"
    # The cache is a native library, built for 64-bit Intel only; elsewhere SPICE parses everything anew.
    has_cache = platform.machine().lower() in ("x86_64", "amd64")
    num_captions = sum(1 + len(clip.references) for clip in clips)
    with tempfile.TemporaryDirectory(prefix="avcap_zoo_spice_") as folder:
        input_path, output_path = Path(folder) / "input.json", Path(folder) / "output.json"
        input_path.write_text(spice_input(clips), encoding="ascii")
        if has_cache:
            cache.mkdir(parents=True, exist_ok=True)
        command = spice_command(
            java,
            corenlp=corenlp,
            engine_folder=write_script_engine(Path(folder)),
            input_path=input_path,
            output_path=output_path,
            cache_folder=cache if has_cache else None,
        )
        run_java(command, name="SPICE", timeout_s=600.0 + num_captions if timeout_s is None else timeout_s)
        if not output_path.is_file():
            raise JavaError("SPICE ended without a result file")
        return parse_spice(output_path.read_text(encoding="utf-8"), num_clips=len(clips))
