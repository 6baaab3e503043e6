from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertModel

from avcap_zoo.errors import WeightsError
from avcap_zoo.metrics.fense import ErrorDetector, SentenceEncoder, num_texts, score_fense
from tests.unit.metrics import judges

Judges = tuple[Path, Path, BertModel, tuple[BertModel, nn.Linear]]
"""Folders of both models, and the models that were written there."""

CANDIDATES = ["a dog is barking", "a man speaks", "rain falls and rain falls", ""]
REFERENCES = [["a dog barking", "rain and a dog"], ["a man speaks"], ["birds", "rain", "a door closes"], ["birds"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Judges:
    root = tmp_path_factory.mktemp("judges")
    sentence, detector = root / "sentence", root / "detector"
    return sentence, detector, judges.write_sentence_encoder(sentence), judges.write_error_detector(detector)


def _ids(texts: str, longest: int) -> torch.Tensor:
    words = [word if word in judges.WORDS else None for word in texts.split()]
    inner = [1 if word is None else 4 + judges.WORDS.index(word) for word in words]
    return torch.tensor([[2, *inner[: longest - 2], 3]])


@torch.no_grad()
def test_the_formula_by_hand(folders: Judges) -> None:
    """Each text alone through the models as they were built, against batches through those that were loaded."""
    sentence, detector, bert, (encoder, head) = folders
    loaded = SentenceEncoder.load(sentence), ErrorDetector.load(detector)
    progress: list[int] = []
    scores = score_fense(CANDIDATES, REFERENCES, *loaded, progress.append)

    def vector(text: str) -> torch.Tensor:
        mean = bert(input_ids=_ids(text, 8)).last_hidden_state[0].mean(dim=0)
        unit: torch.Tensor = mean / mean.norm()
        return unit

    errors = []
    for index in range(3):
        hidden = encoder(input_ids=_ids(CANDIDATES[index], 64)).last_hidden_state
        error = float(torch.sigmoid(head(hidden[0, 0])[-1])) > 0.9
        similarity = sum(float(vector(CANDIDATES[index]) @ vector(text)) for text in REFERENCES[index])
        similarity /= len(REFERENCES[index])
        assert scores["sbert_sim"][index] == pytest.approx(similarity, abs=1e-5)
        assert scores["fluency_error"][index] == error
        assert scores["fense"][index] == pytest.approx(similarity * (0.1 if error else 1.0), abs=1e-5)
        errors.append(error)
    assert set(errors) == {True, False}  # both branches of the formula were taken
    assert scores["sbert_sim"][3] == scores["fense"][3] == 0.0
    assert scores["sbert_sim"][1] == pytest.approx(1.0, abs=1e-5)
    assert sum(progress) == num_texts(CANDIDATES, REFERENCES)


def test_the_detector_sees_neither_case_nor_punctuation(folders: Judges) -> None:
    detector = ErrorDetector.load(folders[1])
    plain, shouted = detector(["a dog is barking", "A dog, is BARKING!"])
    assert plain == shouted
    assert not torch.equal(plain, detector(["a man speaks"])[0])


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--sentence_encoder: .*nowhere is no folder; get it: hf download sentence"):
        SentenceEncoder.load(tmp_path / "nowhere")
    with pytest.raises(
        WeightsError, match=r"--error_detector: .*nowhere is no folder; get it: hf download google-bert"
    ):
        ErrorDetector.load(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="--sentence_encoder: cannot load"):
        SentenceEncoder.load(tmp_path)
    with pytest.raises(WeightsError, match="holds 0 weight files, wanted one: hf download"):
        ErrorDetector.load(tmp_path)
    judges.write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode_cls_token": True})
    with pytest.raises(WeightsError, match="pools by cls_token, mean, wanted the mean alone"):
        SentenceEncoder.load(tmp_path)
    judges.write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode_mean_tokens": True})
    (tmp_path / "2_Dense").mkdir()
    with pytest.raises(WeightsError, match=r"has layers of its own behind the pooling \(2_Dense\)"):
        SentenceEncoder.load(tmp_path)
    judges.write_json(tmp_path / "sentence_bert_config.json", [])
    (tmp_path / "2_Dense").rmdir()
    with pytest.raises(WeightsError, match=r"sentence_bert_config\.json holds no JSON object"):
        SentenceEncoder.load(tmp_path)


def test_a_detector_with_other_weights_is_refused(tmp_path: Path) -> None:
    judges.write_error_detector(tmp_path)
    torch.save({"state_dict": {"other": torch.zeros(2)}}, tmp_path / "echecker.ckpt")
    with pytest.raises(WeightsError, match=r"is no error detector of FENSE: it has no clf\.weight"):
        ErrorDetector.load(tmp_path)
    torch.save({"state_dict": {"clf.weight": torch.zeros(6, 16)}}, tmp_path / "echecker.ckpt")
    with pytest.raises(WeightsError, match="does not fit the model"):
        ErrorDetector.load(tmp_path)
    (tmp_path / "echecker.ckpt").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="is no weight file"):
        ErrorDetector.load(tmp_path)
