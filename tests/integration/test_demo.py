"""A very small demo from start to end, in a folder that has its scenes already."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from avcap_zoo.cli.main import avcap
from tests.unit.cli.running import call

CLIPS = ("24", "6", "6")


@pytest.mark.slow
def test_a_demo_ends_in_a_report(
    tmp_path: Path, scenes_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the configuration files must be found in the checkout
    Path("demo").mkdir()
    Path("demo/scenes").symlink_to(scenes_root)
    outcome = call(capsys, avcap, ["demo", "--clips", *CLIPS, "--steps", "2", "--seed", "4"])
    assert outcome.code == 0, outcome.err
    report = Path("demo/report.html").read_text(encoding="utf-8")
    for name, title in (("audio_visual", "Sound and pictures"), ("audio_only", "Sound alone")):
        folder = Path("demo/runs") / name
        scores = json.loads((folder / "test/test_scores.json").read_text())["scores"]
        rows = [json.loads(line) for line in (folder / "test/test_captions.jsonl").read_text().splitlines()]
        assert len(rows) == 6
        assert f"{title}: done" in outcome.out
        assert re.search(rf"{title} .* {100 * scores['cider']:.1f} ", outcome.out)
        assert f'<td class="number">{100 * scores["cider"]:.1f}</td>' in report
        assert all(row["caption"] in report and row["references"][0] in report for row in rows)
        settings = yaml.safe_load((folder / "fit/config.yaml").read_text())
        assert settings["seed_everything"] == 4
        assert settings["data"]["init_args"]["modalities"] == (
            ["audio", "visual"] if name == "audio_visual" else ["audio"]
        )
        assert f"--ckpt_path demo/runs/{name}/fit/checkpoints/best.ckpt" in report
    prepared = sorted(path.name.partition("-")[0] for path in Path("demo/cache").rglob("*.safetensors"))
    assert prepared == ["audio_encoder", "language", "vision_encoder"]  # once each: the two runs shared them
    assert report.count("data:audio/wav;base64,") >= 1
    assert report.count("optimal-transport plan") == report.count("data:audio/wav;base64,")
    assert "An earlier demo had left the scenes in place" in report
    assert "Report: demo/report.html" in outcome.out
