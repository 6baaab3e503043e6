from __future__ import annotations

import json
from pathlib import Path

import pytest

from avcap_zoo.cli.build import PARTS, SETS, main
from avcap_zoo.cli.main import avcap
from avcap_zoo.data_modules import clotho
from tests.unit.cli.running import call
from tests.unit.systems.bubogpt.tiny_finders import save_language_model


def test_parts_are_those_of_the_reader() -> None:
    assert set(PARTS) == set(clotho.PARTS.values())


def test_vggss(scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made/vggss-instruction-tuning.json"
    outcome = call(
        capsys, avcap, ["build", "vggss-instructions", "--root", str(scenes_root / "vggss"), "--out", str(out)]
    )
    assert outcome.code == 0, outcome.err
    made = json.loads(out.read_text())["annotations"]
    assert outcome.out.splitlines()[0] == f"{len(made)} sentences are in {out}"


def test_clotho_by_a_local_model_and_again(
    scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save_language_model(tmp_path / "model"), tmp_path / "detail.json"
    words = ["build", "clotho-detail", "--root", str(scenes_root / "clotho"), "--out", str(out), "--model", model]
    words += ["--dtype", "float32", "--device", "cpu", "--max-new-tokens", "3", "--batch-size", "4"]
    outcome = call(capsys, avcap, words)
    assert outcome.code == 0, outcome.err
    answers = tmp_path / "detail.json.answers.jsonl"
    kept = answers.read_text().splitlines()
    made = json.loads(out.read_text())["annotations"]
    assert len(made) == len(kept) > 0
    assert f"{len(made)} descriptions of " in outcome.out
    first = json.loads(kept[0])
    answers.write_text(json.dumps({**first, "answer": "Kept as it was."}) + "\n")
    assert call(capsys, avcap, words).code == 0
    captions = {entry["audio_id"]: entry["caption"] for entry in json.loads(out.read_text())["annotations"]}
    assert captions[first["id"]] == "Kept as it was."
    assert len(captions) == len(made)


def test_clotho_by_answers_made_elsewhere(
    scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["build", "clotho-detail", "--root", str(scenes_root / "clotho"), "--parts", "evaluation"]
    questions = tmp_path / "questions.jsonl"
    assert call(capsys, avcap, [*base, "--questions", str(questions)]).code == 0
    ids = [json.loads(line)["id"] for line in questions.read_text().splitlines()]
    (tmp_path / "answers.jsonl").write_text(json.dumps({"id": ids[1], "answer": "A long text."}) + "\n")
    outcome = call(
        capsys, avcap, [*base, "--out", str(tmp_path / "o.json"), "--answers", str(tmp_path / "answers.jsonl")]
    )
    assert outcome.out.splitlines() == [
        f"1 descriptions of {len(ids)} sounds are in {tmp_path / 'o.json'}, 3.0 words in the mean",
        f"without an answer: {len(ids) - 1}, such as {', '.join([ids[0], *ids[2:4]])}",
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a set: vggss-instructions, clotho-detail"),
        (["vggss"], "no set vggss; did you mean vggss-instructions?"),
        (["vggss-instructions", "--out", "x"], "the following arguments are required: --root"),
        (["vggss-instructions", "--root", ".", "--ot", "x"], "no option --ot; did you mean --out?"),
        (["clotho-detail", "--root", "."], "found no answers, wanted --model, --answers or --questions"),
        (
            ["clotho-detail", "--root", ".", "--model", "m", "--answers", "a"],
            "found --model and --answers, wanted --model, --answers or --questions",
        ),
        (["clotho-detail", "--root", ".", "--model", "m"], "the following arguments are required: --out"),
        (
            ["clotho-detail", "--root", ".", "--model", "m", "--out", "x", "--batch-size", "0"],
            "argument --batch-size: found 0, wanted at least 1",
        ),
    ],
)
def test_refusals(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(capsys, avcap, ["build", *words])
    assert outcome.code == 2
    assert outcome.err == f"avcap build: {said}\n"


def test_a_question_too_long_names_its_clips(
    scenes_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_language_model(tmp_path / "model", positions=32)
    words = ["build", "clotho-detail", "--root", str(scenes_root / "clotho"), "--out", str(tmp_path / "o.json")]
    outcome = call(capsys, avcap, [*words, "--model", model, "--dtype", "float32", "--max-new-tokens", "3"])
    assert outcome.code == 1
    assert "tokens, too many for" in outcome.err
    assert "lower --max-new-tokens" in outcome.err


def test_help_lists_the_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and what in said for name, what in SETS.items())
