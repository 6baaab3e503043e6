from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from avcap_zoo.metrics import spice
from avcap_zoo.metrics.captions import CaptionScores
from avcap_zoo.metrics.java import JavaError, jar_folder
from avcap_zoo.metrics.script_engine import CLASS_NAME, SOURCE, class_bytes, write_script_engine
from avcap_zoo.metrics.spice import (
    CORENLP_JARS,
    SpiceInput,
    find_corenlp,
    jar_places,
    parse_spice,
    score_spice,
    spice_command,
    spice_input,
    user_cache_dir,
    why_no_spice,
)

# Fills SPICE's cache of parses with tuples written by hand, so that it can run without the parser's models.
FILL_CACHE = """
package edu.anu.spice;
import java.util.*;
public class FillCache {
    public static void main(String[] lines) {
        Map<String, ArrayList<ArrayList<String>>> parses = new HashMap<>();
        for (String line : Arrays.asList(lines).subList(1, lines.length)) {
            ArrayList<ArrayList<String>> tuples = new ArrayList<>();
            String[] parts = line.split("/");
            for (String part : Arrays.asList(parts).subList(1, parts.length))
                tuples.add(new ArrayList<>(Arrays.asList(part.split(" "))));
            parses.put(parts[0], tuples);
        }
        new LmdbTupleDB(lines[0]).putTransaction(parses);
    }
}
"""
PARSES = [
    "a dog barks/dog/dog bark",
    "a brown dog barks/dog/dog brown/dog bark",
    "a man speaks/man/man speak",
    "rain falls/rain/rain fall",
    "of",
]


def _place_jars(folder: Path, names: tuple[str, ...] = CORENLP_JARS) -> None:
    """The older jar of the tokenizer has all the code that SPICE loads before it parses; the models stay empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).symlink_to(jar_folder() / "tokenizer" / "stanford-corenlp-3.4.1.jar")


@pytest.fixture(scope="module")
def filled(java: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the two jars and the parses above."""
    javac = shutil.which("javac")
    if javac is None:
        pytest.skip("no Java compiler to fill SPICE's cache with")
    folder = tmp_path_factory.mktemp("cache")
    _place_jars(folder / "spice")
    (folder / "spice_parses").mkdir()
    source = folder / "FillCache.java"
    source.write_text(FILL_CACHE, encoding="ascii")
    jars = spice_command(
        java,
        corenlp=[folder / "spice" / name for name in CORENLP_JARS],
        engine_folder=folder,
        input_path=source,
        output_path=source,
        cache_folder=None,
    )
    class_path = jars[jars.index("-cp") + 1]
    subprocess.run([javac, "-cp", class_path, "-d", str(folder), str(source)], check=True, capture_output=True)
    fill = [*jars[: jars.index("edu.anu.spice.SpiceScorer")], "edu.anu.spice.FillCache", str(folder / "spice_parses")]
    subprocess.run([*fill, *PARSES], check=True, capture_output=True)
    return folder


def test_places_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundled = jar_folder() / "spice" / "lib"
    assert user_cache_dir() == tmp_path / "avcap_zoo"
    assert jar_places() == [bundled, tmp_path / "avcap_zoo" / "spice"]
    own = jar_places(cache_dir=tmp_path / "own", spice_jars="jars")
    assert own == [bundled, tmp_path / "own" / "spice", Path("jars")]
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache_dir() == Path.home() / ".cache" / "avcap_zoo"


def test_both_jars_must_be_in_one_folder(tmp_path: Path) -> None:
    for name, jars in [("a", CORENLP_JARS[:1]), ("b", CORENLP_JARS[1:]), ("c", CORENLP_JARS), ("d", CORENLP_JARS)]:
        _place_jars(tmp_path / name, jars)
    assert find_corenlp([tmp_path / "none", tmp_path / "a", tmp_path / "b"]) is None
    assert find_corenlp([tmp_path / name for name in "abcd"]) == [tmp_path / "c" / name for name in CORENLP_JARS]


def test_the_reason_names_both_files_and_the_folder(tmp_path: Path) -> None:
    reason = why_no_spice(jar_places(cache_dir=tmp_path))
    for words in (*CORENLP_JARS, "curl -fLO http", f"-d {tmp_path / 'spice'}, or", "spice_jars"):
        assert words in reason
    assert "\n" not in reason


def test_command_line(tmp_path: Path) -> None:
    corenlp = [tmp_path / name for name in CORENLP_JARS]
    command = spice_command(
        Path("/java"),
        corenlp=corenlp,
        engine_folder=tmp_path / "engine",
        input_path=tmp_path / "in",
        output_path=tmp_path / "out",
        cache_folder=tmp_path / "cache",
        heap="3G",
    )
    opened = [flag for flag in command if flag.startswith("--add-opens=")]
    assert opened == [
        f"--add-opens=java.base/{package}=ALL-UNNAMED"
        for package in ("java.lang", "java.math", "java.util", "java.util.concurrent", "java.net", "java.text")
    ]
    assert command[0] == "/java"
    assert command.index("-XX:+IgnoreUnrecognizedVMOptions") < command.index(opened[0])
    assert {"-Duser.language=en", "-Duser.country=US", "-Xmx3G"} < set(command)
    class_path = command[command.index("-cp") + 1].split(":")
    assert Path(class_path[0]).name == "spice-1.0.jar"
    assert class_path[-3:] == [*map(str, corenlp), str(tmp_path / "engine")]
    assert {"lmdbjni-0.4.6.jar", "fst-2.47.jar", "Meteor-1.5.jar"} < {Path(jar).name for jar in class_path}
    main = command.index("edu.anu.spice.SpiceScorer")
    tail = [str(tmp_path / "in"), "-cache", str(tmp_path / "cache"), "-out", str(tmp_path / "out"), "-silent"]
    assert command[main + 1 :] == tail


def test_input_is_ascii() -> None:
    text = spice_input([SpiceInput("café", ["汉字", "b"])])
    assert text.isascii()
    assert json.loads(text) == [{"image_id": 0, "test": "café", "refs": ["汉字", "b"]}]


def test_result_in_any_order_with_null() -> None:
    rows = [
        {"image_id": 1, "scores": {"All": {"pr": None, "re": None, "f": None}}},
        {"image_id": 0, "scores": {"All": {"pr": 1.0, "re": 0.5, "f": 0.667, "tp": 1}, "Color": {"f": None}}},
    ]
    scores = parse_spice(json.dumps(rows), num_clips=2)
    assert scores[0] == 0.667
    assert math.isnan(scores[1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("null", "cannot be read"),
        ('[{"image_id": 0}]', "cannot be read"),
        ('[{"image_id": 0, "scores": {"All": {"f": "x"}}}]', "cannot be read"),
        ("[]", "0 results for 1 clips"),
        ('[{"image_id": 7, "scores": {"All": {"f": 1.0}}}]', "1 results for 1 clips"),
    ],
)
def test_an_unusable_result_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(JavaError, match=reason):
        parse_spice(text, num_clips=1)


def test_nothing_to_score() -> None:
    assert score_spice([], java=Path("no/java"), corenlp=[]) == []


def test_a_run_without_result_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(spice, "run_java", lambda *_, **__: b"")
    with pytest.raises(JavaError, match="without a result file"):
        score_spice([SpiceInput("a", ["b"])], java=Path("java"), corenlp=[], cache_dir=tmp_path)


@pytest.mark.parametrize(("machine", "has_cache"), [("x86_64", True), ("AMD64", True), ("aarch64", False)])
def test_the_cache_is_used_where_its_library_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, has_cache: bool
) -> None:
    seen: list[str] = []

    def run(command: list[str], **_: object) -> bytes:
        seen.extend(command)
        Path(command[command.index("-out") + 1]).write_text('[{"image_id": 0, "scores": {"All": {"f": 0.5}}}]')
        return b""

    monkeypatch.setattr(spice, "run_java", run)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert score_spice([SpiceInput("a", ["b"])], java=Path("java"), corenlp=[], cache_dir=tmp_path) == [0.5]
    assert ("-cache" in seen) == has_cache
    assert (tmp_path / "spice_parses").is_dir() == has_cache


def test_spice_itself_on_known_parses(java: Path, filled: Path) -> None:
    clips = [
        SpiceInput("a dog barks", ["a brown dog barks", "a dog barks"]),
        SpiceInput("a man speaks", ["rain falls"]),
        SpiceInput("of", ["rain falls"]),
        SpiceInput("rain falls", ["rain falls"]),
    ]
    corenlp = find_corenlp(jar_places(cache_dir=filled))
    assert corenlp is not None
    # Two of the three tuples of the first clip's references: precision 1, recall 2/3.
    assert score_spice(clips, java=java, corenlp=corenlp, cache_dir=filled) == pytest.approx([0.8, 0.0, 0.0, 1.0])


def test_spice_and_spider_in_the_metric(java: Path, filled: Path, tmp_path: Path) -> None:
    metric = CaptionScores(("cider", "spice"), cache_dir=filled)
    references = [["A brown dog barks.", "A dog barks"], ["Rain falls", "..."], ["Rain falls"]]
    metric.update(["x", "y", "z"], ["A dog barks", "rain falls", ""], references)
    scores = metric.compute()
    assert metric.missing == {}
    assert scores["spice"] == pytest.approx(0.6)
    assert scores["spider"] == pytest.approx((scores["cider"] + 0.6) / 2)
    assert {clip: own["spice"] for clip, own in metric.per_clip.items()} == pytest.approx({"x": 0.8, "y": 1, "z": 0})
    for own in metric.per_clip.values():
        assert own["spider"] == pytest.approx((own["cider"] + own["spice"]) / 2)


def test_a_spice_that_fails_is_missing_with_its_reason(java: Path, filled: Path) -> None:
    metric = CaptionScores(("bleu", "cider", "spice"), cache_dir=filled)
    metric.update(["x", "y"], ["a cat meows", "rain falls"], [["a cat meows"], ["rain falls"]])
    with pytest.warns(UserWarning, match="spice, spider: SPICE ended with code 1"):
        scores = metric.compute()
    assert set(scores) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"}
    assert "englishPCFG" in metric.missing["spice"]
    assert set(metric.missing) == {"spice", "spider"}


def test_the_script_engine_is_what_its_source_says(tmp_path: Path) -> None:
    javac = shutil.which("javac")
    if javac is None:
        pytest.skip("no Java compiler")
    source = tmp_path / f"{CLASS_NAME}.java"
    source.write_text(SOURCE, encoding="ascii")
    subprocess.run([javac, "--release", "8", "-g:none", "-Xlint:-options", str(source)], check=True)
    assert source.with_suffix(".class").read_bytes() == class_bytes()


def test_the_script_engine_is_registered(tmp_path: Path) -> None:
    assert write_script_engine(tmp_path) == tmp_path
    assert (tmp_path / f"{CLASS_NAME}.class").read_bytes()[:4] == b"\xca\xfe\xba\xbe"
    service = tmp_path / "META-INF" / "services" / "javax.script.ScriptEngineFactory"
    assert service.read_text().strip() == CLASS_NAME
