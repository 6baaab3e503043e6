"""No file that a configuration or a command names can run code: every such entry is tried with one that would."""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import pickle
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avcap_zoo.backbones.audio_text import CLAP, CLAPSettings, clap_sample_rate_hz
from avcap_zoo.backbones.chat_model import ChatModel
from avcap_zoo.backbones.language import CausalLanguageModel, LanguageSettings
from avcap_zoo.backbones.vision.clip import CLIPFrameEncoder, CLIPSettings
from avcap_zoo.backbones.vision.eva import EVA
from avcap_zoo.cli.cache import _restore
from avcap_zoo.cli.convert import write_official, write_ours
from avcap_zoo.data_modules.feature_cache import FeatureReader
from avcap_zoo.errors import AvcapError
from avcap_zoo.metrics.clip_score import TransformersCLIP
from avcap_zoo.metrics.contrast import ContrastModel
from avcap_zoo.metrics.fense import ErrorDetector, SentenceEncoder
from avcap_zoo.metrics.model_folder import load_tokenizer as load_score_tokenizer
from avcap_zoo.serving.loading import load_system
from avcap_zoo.systems.base import System
from avcap_zoo.systems.bubogpt.detection import GroundingDino
from avcap_zoo.systems.bubogpt.segmentation import SAM
from avcap_zoo.systems.bubogpt.tagging import CLIPTagger, RAMTagger
from avcap_zoo.systems.lavcap.keymap import CONVERSION
from avcap_zoo.systems.lavcap.model import build_audio_encoder
from avcap_zoo.systems.vlrm.captioner import Captioner, CaptionerSettings
from avcap_zoo.systems.vlrm.matcher import Matcher
from avcap_zoo.weights.published import load_eva
from tests.house import tree
from tests.integration.tiny import tiny_lavcap, tiny_trainer
from tests.integration.tiny_bubogpt import tiny_bubogpt
from tests.unit.backbones import test_eva
from tests.unit.backbones.test_swin_tagger import TINY
from tests.unit.systems.vlrm import toy as vlrm
from tests.unit.systems.zeraucap.toy import AUDIO_TEXT, toy_system
from tests.unit.weights.hostile import Hostile


def _bubogpt(part: str, key: str) -> Callable[[str, Path], object]:
    def build(path: str, _: Path) -> None:
        system = tiny_bubogpt()
        setattr(getattr(system, part) if part else system, key, path)
        system.configure_model()

    return build


def _convert(write: Callable[..., str]) -> Callable[[str, Path], object]:
    def convert(path: str, folder: Path) -> None:
        system = tiny_lavcap()
        system.configure_model()
        write(system, CONVERSION, Path(path), folder / "out.ckpt")

    return convert


def _captioner(**options: Any) -> Captioner:
    settings: CaptionerSettings = vlrm.parts()["captioner"]
    return Captioner(replace(settings, **options))


def _matcher(**options: Any) -> Matcher:
    given = {"source": None, "config": vlrm.MATCHING.options["config"], "checkpoint": None, "tokenizer": None}
    return Matcher(**given | options, max_length=8, norm_eps=1e-6, tower=None, key="key")


def _ram_tagger(path: str, folder: Path) -> object:
    words = folder / "words.txt"
    words.write_text("".join(f"word{number}\n" for number in range(TINY.num_tags)))
    return RAMTagger(path, str(words), None, TINY)._model


def _norm_of_eva(path: str, folder: Path) -> None:
    torch.save(test_eva.official(), folder / "eva_vit_g.pth")
    load_eva(EVA(test_eva.TINY), folder / "eva_vit_g.pth", path)


def _zeraucap(folder: Path, **options: Any) -> None:
    toy_system(folder, **options).configure_model()


FILES: dict[str, Callable[[str, Path], object]] = {
    "fit --ckpt_path": lambda path, folder: tiny_trainer(folder).strategy.load_checkpoint(path),
    "caption --checkpoint": lambda path, _: load_system(path),
    "cache --ckpt_path": lambda path, _: _restore(tiny_lavcap(), Path(path)),
    "convert": _convert(write_ours),
    "convert --reverse": _convert(write_official),
    "lavcap/model.py AudioSettings.checkpoint": lambda path, _: build_audio_encoder(
        replace(tiny_lavcap().audio, checkpoint=path)
    ),
    "bubogpt/model.py AudioSettings.checkpoint": _bubogpt("audio", "checkpoint"),
    "bubogpt/model.py VisionSettings.checkpoint": _bubogpt("vision", "checkpoint"),
    "bubogpt/model.py VisionSettings.norm_checkpoint": _norm_of_eva,
    "bubogpt/model.py JoinerSettings.qformer_checkpoint": _bubogpt("vision_joiner", "qformer_checkpoint"),
    "bubogpt/model.py JoinerSettings.projection_checkpoint": _bubogpt("audio_joiner", "projection_checkpoint"),
    "bubogpt/model.py BuboGPTModel.start_from": _bubogpt("", "start_from"),
    "zeraucap/model.py AudioTextSettings.checkpoint": lambda path, folder: _zeraucap(
        folder, audio_text=replace(AUDIO_TEXT, checkpoint=path)
    ),
    "vlrm/captioner.py CaptionerSettings.weights": lambda path, _: _captioner(weights=path),
    "vlrm/matcher.py Matcher.checkpoint": lambda path, _: _matcher(checkpoint=path),
    "metrics/contrast.py ContrastModel.checkpoint": lambda path, _: ContrastModel(
        "toy", path, vlrm.CONTRAST, "float32", "key"
    ),
    "bubogpt/tagging.py RAMTagger.weights": _ram_tagger,
}
FOLDERS: dict[str, Callable[[str, Path], object]] = {
    "language.py LanguageSettings.source": lambda path, _: CausalLanguageModel(LanguageSettings(source=path)),
    "language.py LanguageSettings.tokenizer": lambda path, _: CausalLanguageModel(
        LanguageSettings(source=None, config={"model_type": "llama"}, tokenizer=path)
    ),
    "vision/clip.py CLIPSettings.source": lambda path, _: CLIPFrameEncoder(CLIPSettings(source=path)),
    "audio_text.py CLAPSettings.source": lambda path, _: CLAP(CLAPSettings(source=path)),
    "audio_text.py CLAPSettings.source, its rate": lambda path, _: clap_sample_rate_hz(CLAPSettings(source=path)),
    "audio_text.py WavCapsSettings.tokenizer": lambda path, folder: _zeraucap(
        folder, audio_text=replace(AUDIO_TEXT, wavcaps=replace(AUDIO_TEXT.wavcaps, tokenizer=path))
    ),
    "zeraucap/model.py FrozenLanguageSettings.source": lambda path, folder: _zeraucap(
        folder, language={"source": path}
    ),
    "zeraucap/model.py FrozenLanguageSettings.tokenizer": lambda path, folder: _zeraucap(
        folder, language={"tokenizer": path}
    ),
    "vlrm/captioner.py CaptionerSettings.source": lambda path, _: _captioner(source=path),
    "vlrm/captioner.py CaptionerSettings.tokenizer": lambda path, _: _captioner(tokenizer=path),
    "vlrm/matcher.py Matcher.source": lambda path, _: _matcher(source=path),
    "vlrm/matcher.py Matcher.tokenizer": lambda path, _: _matcher(tokenizer=path),
    "bubogpt/detection.py GroundingDino.source": lambda path, _: GroundingDino(path)._processor,
    "bubogpt/detection.py GroundingDino.source, its model": lambda path, _: GroundingDino(path)._model,
    "chat_model.py ChatModel.source": lambda path, _: ChatModel(path, key="key")._loaded,
    "FENSE's encoder": lambda path, _: SentenceEncoder.load(Path(path)),
    "FENSE's detector": lambda path, _: ErrorDetector.load(Path(path)),
    "a tokenizer of a score": lambda path, _: load_score_tokenizer(Path(path), "option"),
    "CLIPScore": lambda path, _: TransformersCLIP(Path(path)),
    "bubogpt/segmentation.py SAM.source": lambda path, _: SAM(path)._loaded,
    "bubogpt/tagging.py CLIPTagger.source": lambda path, _: CLIPTagger(["dog"], path)._loaded,
}
# Of other packages, which are not among those that tests have: read by `load_tensors` as the above.
FOREIGN = {
    "bubogpt/detection.py GroundingDinoPy.weights",
    "bubogpt/detection.py GroundingDinoPy.text_encoder",
    "bubogpt/segmentation.py SegmentAnything.weights",
}
# Handed on to one of the above.
ALIASES = {
    "metrics/scores.py CaptionReport.tokenizer",  # the name of ours
    "bubogpt/matching.py LanguageModelMatcher.source",
    "bubogpt/module.py BuboGPT.start_from",
    "vlrm/evaluation.py RecallSettings.checkpoint",
    "vlrm/rewards.py _ContrastReward.checkpoint",
    "vlrm/rewards.py CLIPScore.checkpoint",
    "vlrm/rewards.py MutualChoice.checkpoint",
    *(f"vlrm/rewards.py ImageTextMatching.{key}" for key in ("source", "checkpoint", "tokenizer")),
    "zeraucap/model.py KeywordSettings.source",  # a text file
}


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "ran"


@pytest.mark.parametrize("entry", FILES)
def test_a_hostile_weight_file(entry: str, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "hostile.ckpt"
    content = {"state_dict": {"w": torch.ones(1)}, "avcap_zoo": {"rng": Hostile(marker)}, "x": Hostile(marker)}
    torch.save(content, path)
    with pytest.raises(AvcapError, match=r"hostile\.ckpt"):
        FILES[entry](str(path), tmp_path)
    assert not marker.exists()


def evil_folder(folder: Path, marker: Path) -> Path:
    """A source in transformers format whose weights are a pickle and whose code would run."""
    folder.mkdir()
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModel", "AutoProcessor", "AutoImageProcessor")
    own_code = dict.fromkeys(names, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 11}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": own_code, **sizes}))
    for name in ("tokenizer_config", "preprocessor_config", "processor_config"):
        (folder / f"{name}.json").write_text(json.dumps({"auto_map": own_code, "tokenizer_class": "Evil"}))
    torch.save({"w": torch.ones(1), "x": Hostile(marker)}, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("entry", FOLDERS)
def test_a_hostile_source(entry: str, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to "Do you wish to run the custom code?"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = evil_folder(tmp_path / "evil", marker)
    with contextlib.suppress(AvcapError):
        FOLDERS[entry](str(folder), tmp_path)
    assert not marker.exists()
    runpy.run_path(str(folder / "evil.py"))
    assert marker.exists(), "the trap itself must work"


def test_every_setting_that_names_weights_is_tried() -> None:
    wanted = re.compile(r"source|tokenizer|weights|start_from|text_encoder|\w*checkpoint")
    found = set()
    for path in tree.python_files(*(f"src/avcap_zoo/{floor}" for floor in ("systems", "backbones", "metrics"))):
        short = "/".join(path.parts[-2:]).removeprefix("backbones/")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            fields = [(n.target, n.annotation) for n in node.body if isinstance(n, ast.AnnAssign)]
            named = [(ast.unparse(target), ast.unparse(kind)) for target, kind in fields]
            for function in node.body:
                if isinstance(function, ast.FunctionDef) and function.name == "__init__":
                    arguments = [*function.args.args, *function.args.kwonlyargs]
                    named += [(a.arg, ast.unparse(a.annotation)) for a in arguments if a.annotation is not None]
            found |= {
                f"{short} {node.name}.{name}"
                for name, kind in named
                if wanted.fullmatch(name) and kind in {"str", "str | None"}
            }
    tried = {entry.partition(",")[0] for entry in {*FILES, *FOLDERS} if ".py" in entry}
    assert found == tried | FOREIGN | ALIASES


EVIL_CLASS = {"class_path": "trap.Evil", "init_args": {}}
SETTINGS: dict[str, tuple[Callable[[], System], Callable[[dict[str, Any], Path], None]]] = {
    "a class in a free setting": (tiny_lavcap, lambda found, _: found["language"]["config"].update(x=EVIL_CLASS)),
    "in a list there": (tiny_lavcap, lambda found, _: found["vision"]["config"].update(x=[EVIL_CLASS])),
    "in a text there": (tiny_lavcap, lambda found, _: found["vision"]["config"].update(x=json.dumps(EVIL_CLASS))),
    "in a text with escapes": (
        tiny_lavcap,
        lambda found, _: found["vision"]["config"].update(x=json.dumps(EVIL_CLASS).replace("class_p", "class\\x5fp")),
    ),
    "in place of a group": (tiny_lavcap, lambda found, _: found.update(language=EVIL_CLASS)),
    "in a file in place of a group": (tiny_lavcap, lambda found, file: found.update(language=str(file))),
    "the kind of a reward": (
        vlrm.system,
        lambda found, _: next(iter(found["rewards"].values())).update(kind="trap.Evil"),
    ),
    "a reward in a file": (vlrm.system, lambda found, file: found["rewards"].update(x=str(file))),
}


@pytest.mark.parametrize("entry", SETTINGS)
def test_hostile_settings_in_a_checkpoint(
    entry: str, tmp_path: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\nclass Evil: pass\n")
    sys.modules.pop("trap", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.yaml").write_text(json.dumps({"kind": "trap.Evil", "config": {"x": EVIL_CLASS}}))
    make, spoil = SETTINGS[entry]
    system = make()
    settings = json.loads(json.dumps(system.init_args))
    spoil(settings, tmp_path / "evil.yaml")
    note = {"class_path": f"{type(system).__module__}.{type(system).__name__}", "init_args": json.dumps(settings)}
    torch.save({"state_dict": {}, "avcap_zoo": note}, tmp_path / "hostile.ckpt")
    with pytest.raises(AvcapError, match=r"hostile\.ckpt"):
        load_system(tmp_path / "hostile.ckpt")
    assert not marker.exists()
    importlib.import_module("trap")
    assert marker.exists(), "the trap itself must work"


@pytest.mark.parametrize("bare", [False, True], ids=["array of objects", "pickle"])
def test_hostile_arrays(tmp_path: Path, marker: Path, bare: bool) -> None:
    hostile = np.array([[Hostile(marker)]], dtype=object)
    folder = tmp_path / "cache/train"
    folder.mkdir(parents=True)
    info = {"modality": "visual", "encoder": "x", "decoding": {}, "dtype": "float32"}
    (tmp_path / "cache/cache.json").write_text(json.dumps(info))
    (folder / "ids.json").write_text('["a"]')
    for name in ("lengths", "features"):
        if bare:
            (folder / f"{name}.npy").write_bytes(pickle.dumps(Hostile(marker)))
        else:
            np.save(folder / f"{name}.npy", hostile)
    reader = FeatureReader(tmp_path / "cache", "train")
    for read in (reader.lengths, lambda: reader.read(0, 1)):
        with pytest.raises(AvcapError, match=r"\.npy cannot be read"):
            read()
    assert not marker.exists()
