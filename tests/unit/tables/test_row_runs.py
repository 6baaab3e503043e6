from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from avcap_zoo.tables.paper_tables import Paper, PaperRow, PaperTable, Track, read_papers
from avcap_zoo.tables.row_runs import RowRun, merged, plan_row, product_of, strings_of

REPOSITORY = Path(__file__).parents[3]
PAPERS = {paper.system: paper for paper in read_papers()}


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def find(system: str, table: str, row: str) -> tuple[Paper, PaperTable, PaperRow]:
    paper = PAPERS[system]
    (of_name,) = [one for one in paper.tables if one.table_id == table]
    (found,) = [one for one in of_name.rows if one.row_id == row]
    return paper, of_name, found


def plan(out: Path, place: str, track: Track = "tiny", seeds: int = 1, **more: Any) -> list[RowRun]:
    system, table, row = place.split()
    return plan_row(*find(system, table, row), track, out=out, seeds=seeds, **more)


def words(run: RowRun) -> list[str]:
    return [str(command) for command in run.commands]


def test_a_trained_row_is_a_fit_and_a_test_for_each_seed(tmp_path: Path) -> None:
    first, second = plan(tmp_path, "lavcap II audio_only", seeds=2)
    assert first.title == "LAVCap II: sound alone, seed 0"
    assert second.title == "LAVCap II: sound alone, seed 1"
    assert first.key != second.key
    folder = tmp_path / "rows" / first.key
    layers = " ".join(
        f"-c {file}"
        for file in (
            "configs/tiny/lavcap.yaml",
            "configs/tables/toy/lavcap.yaml",
            "configs/tables/lavcap/audio_only.yaml",
            folder / "settings.yaml",
        )
    )
    assert words(first) == [
        f"avcap fit {layers}",
        f"avcap test {layers} --trainer.logger.version test --ckpt_path {folder}/fit/checkpoints/best.ckpt",
    ]
    assert first.commands[0].num_steps == 240


def test_a_row_that_is_not_trained_is_one_test(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, "zeraucap audiocaps zeraucap", seeds=3)
    assert [command.arguments[0] for command in run.commands] == ["test"]
    assert "--ckpt_path" not in run.commands[0].arguments
    assert [need.title for need in run.needs] == [
        "ZerAuCap: small model clap",
        "ZerAuCap: small model caption_language",
    ]


def test_settings_hold_seed_and_folders_only(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, "lavcap II concatenation")
    run.write_settings()
    written = yaml.safe_load((run.folder / "settings.yaml").read_text())
    callbacks = written["trainer"].pop("callbacks")
    assert callbacks[0]["init_args"] == {
        "audio_steps": 400,
        "vision_steps": 400,
        "language_steps": 200,
        "cache_dir": str(tmp_path / "made/prepared"),
    }
    assert callbacks[1] == merged(run.configs)["trainer"]["callbacks"][1]
    assert written == {
        "seed_everything": 0,
        "data": {"init_args": {"root": str(tmp_path / "made/scenes")}},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(run.folder),
            "enable_progress_bar": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {
                    "save_dir": str(run.folder),
                    "name": "",
                    "version": "fit",
                    "flush_logs_every_n_steps": 20,
                },
            },
        },
    }


def every_toy_run(out: Path) -> Iterator[RowRun]:
    def with_needs(run: RowRun) -> Iterator[RowRun]:
        for need in run.needs:
            yield from with_needs(need)
        yield run

    for paper in PAPERS.values():
        for table in paper.tables:
            for row in table.rows:
                if row.toy:
                    for run in plan_row(paper, table, row, "tiny", out=out, seeds=1):
                        yield from with_needs(run)


def test_toy_runs_write_nowhere_else(tmp_path: Path) -> None:
    """What a configuration names below runs/ is moved, all of it."""
    for run in every_toy_run(tmp_path):
        moved = set(strings_of(run.settings))
        for text in strings_of(merged(run.configs)):
            if text.startswith("runs/"):
                assert any(value.endswith(Path(text).name) and value.startswith(str(tmp_path)) for value in moved), text


def test_small_models_are_found_where_they_are_made(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, "vlrm 3 vlrm_rs")
    makers = {need.title.split()[-1]: need for need in run.needs}
    assert set(makers) == {"blip2", "itm", "clip", "clip_judge"}
    assert makers["itm"].needs == (makers["blip2"],)
    named = set(strings_of(run.settings))
    for need, makes in (("blip2", "runs/pretrained/blip2"), ("clip", "runs/pretrained/clip.safetensors")):
        product = product_of(makers[need], makes)
        assert str(product) in named
        assert str(product) in set(strings_of(makers[need].settings))
    (chat,) = plan(tmp_path, "bubogpt negatives with_negatives")
    stage1 = chat.needs[0]
    assert chat.settings["model"]["init_args"]["start_from"] == str(stage1.folder / "fit/checkpoints/last.ckpt")


def test_the_key_changes_with_what_the_numbers_depend_on(tmp_path: Path) -> None:
    place = "zeraucap audiocaps no_audio"
    (before,) = plan(tmp_path, place, "full")
    assert before.key == plan(tmp_path / "elsewhere", place, "full")[0].key
    assert before.key != plan(tmp_path, place, "full", present=["folder", 900, 975])[0].key
    paper, table, row = find(*place.split())
    text = (REPOSITORY / row.full[-1]).read_text(encoding="utf-8")
    for name, changed, same in (
        ("comment.yaml", f"# more\n{text}", True),
        ("beta.yaml", text.replace("0.0", "0.1"), False),
    ):
        (tmp_path / name).write_text(changed)
        other = replace(row, full=(*row.full[:-1], str(tmp_path / name)))
        (after,) = plan_row(paper, table, other, "full", out=tmp_path, seeds=1)
        assert (after.key == before.key) is same


def test_a_changed_small_model_changes_what_stands_on_it(tmp_path: Path) -> None:
    paper, table, row = find("zeraucap", "audiocaps", "zeraucap")
    (before,) = plan_row(paper, table, row, "tiny", out=tmp_path, seeds=1)
    more = tmp_path / "more.yaml"
    more.write_text("trainer:\n  max_steps: 5\n")
    clap = replace(paper.makers["clap"], configs=(*paper.makers["clap"].configs, str(more)))
    changed = replace(paper, makers={**paper.makers, "clap": clap})
    (after,) = plan_row(changed, table, row, "tiny", out=tmp_path, seeds=1)
    assert after.key != before.key
    assert after.needs[1].key == before.needs[1].key


def test_a_fit_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, "lavcap II concatenation")
    assert [command.arguments[0] for command in run.remaining()] == ["fit", "test"]
    checkpoints = run.folder / "fit/checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.ckpt").touch()
    (run.folder / "fit/metrics.csv").write_text("first")
    fit, _ = run.remaining()
    assert fit.arguments[-2:] == ["--ckpt_path", str(checkpoints / "last.ckpt")]
    assert (run.folder / "fit/metrics-000.csv").read_text() == "first"
    (run.folder / "fit/metrics.csv").write_text("second")
    run.remaining()
    assert (run.folder / "fit/metrics-001.csv").read_text() == "second"
    run.mark_done(fit, 12.34)
    assert re.fullmatch(
        r'{"command": "avcap fit .*", "seconds": 12.3, "resumed": true}', run.done_file(fit).read_text()
    )
    assert [command.arguments[0] for command in run.remaining()] == ["test"]


def test_a_checkpoint_of_ones_own_is_tested_and_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    place = "lavcap II audio_only"
    assert len(plan(tmp_path, place, "full", seeds=3)) == 3
    (tmp_path / "checkpoints").mkdir()
    own = tmp_path / "checkpoints/lavcap-audio_only.ckpt"
    own.write_bytes(b"weights")
    (run,) = plan(tmp_path, place, "full", seeds=3)
    assert words(run)[0].endswith("--ckpt_path checkpoints/lavcap-audio_only.ckpt")
    assert run.checkpoint == "checkpoints/lavcap-audio_only.ckpt"
    own.write_bytes(b"other weights")
    assert plan(tmp_path, place, "full", seeds=3)[0].key != run.key
    assert len(plan(tmp_path, place, "tiny", seeds=2)) == 2
