from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import lavcap_step
from benchmarks.gpu import build_vlrm, main


def test_the_script_runs_at_toy_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--rounds", "1", "--zeraucap", "1"])
    main()
    lines = capsys.readouterr().out.splitlines()[-4:]
    works = ["LAVCap step, cached", "LAVCap step, live", "ZerAuCap decoding, 1", "VLRM iteration, 4 captions"]
    assert [line.startswith(work) for line, work in zip(lines, works, strict=True)] == [True] * 4
    for line in lines:
        _, samples, tokens, share = line.split(" ms")[0], *line.split(" ms")[1].split()
        assert float(tokens) > float(samples) > 0
        assert share == "-", "a toy has no floor"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it measures")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match=r"there is no GPU here; --tiny"):
        main()


def test_the_large_models_have_the_papers_size() -> None:
    with torch.device("meta"):
        lavcap = lavcap_step.build(lavcap_step.SIZES["full"], torch.device("meta"))
        opt = build_vlrm().captioner.blip.language_model
    sizes = [sum(p.numel() for p in model.parameters()) / 1e9 for model in (lavcap.language.model, opt)]
    assert sizes == pytest.approx([6.74, 2.65 - 0.13], abs=0.02)
