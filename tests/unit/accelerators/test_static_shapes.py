"""Few shapes: how many there are, and that captions and losses stay what they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.nn import functional as F
from typing_extensions import override

from avcap_zoo.accelerators.compiling import CompileFrozenParts
from avcap_zoo.accelerators.static_shapes import StaticShapes
from avcap_zoo.backbones.language import CausalLanguageModel
from avcap_zoo.batch import Batch
from avcap_zoo.errors import ConfigError
from avcap_zoo.ops.masking import bucket_of
from avcap_zoo.systems.lavcap.module import LAVCap
from tests.integration.tiny import tiny_data, tiny_lavcap, tiny_trainer
from tests.integration.tiny_bubogpt import built_bubogpt, mixed_batch
from tests.unit.systems.vlrm import toy

BUCKETS = (8, 12, 40)


@pytest.mark.parametrize(("length", "padded"), [(1, 8), (8, 8), (9, 12), (40, 40), (41, 80), (0, 8)])
def test_bucket(length: int, padded: int) -> None:
    assert bucket_of(length, BUCKETS) == padded


@pytest.mark.parametrize("buckets", [(), (0, 8)])
def test_buckets_that_hold_nothing(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="caption_buckets"):
        StaticShapes(buckets)


class CaptionLengths(Callback):
    """Notes how long the longest caption of each batch is, in tokens."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        tokenizer = pl_module.model.language.tokenizer
        self.seen.add(max(len(tokenizer(text).input_ids) for text in batch.caption))


def test_training_sees_no_more_shapes_than_buckets(scenes_root: Path, tmp_path: Path) -> None:
    shapes, lengths = StaticShapes(BUCKETS), CaptionLengths()
    data = tiny_data(scenes_root, batch_size=2, drop_last=True, audio_buckets_s=(10.0,))
    trainer = tiny_trainer(tmp_path, max_steps=8, limit_val_batches=0, callbacks=[shapes, lengths])
    trainer.fit(tiny_lavcap(), datamodule=data)
    assert len(shapes.seen) <= len(BUCKETS) < len(lengths.seen)
    header, *_, last = (tmp_path / "metrics.csv").read_text().splitlines()
    assert float(last.split(",")[header.split(",").index("train/batch_shapes")]) == len(shapes.seen)


def test_captions_that_are_drawn_get_the_buckets_too(tmp_path: Path) -> None:
    system = toy.system()
    system.configure_model()
    StaticShapes(BUCKETS).on_fit_start(tiny_trainer(tmp_path), system)
    assert system.model.captioner.padded_length(9) == 12


@pytest.fixture
def built() -> LAVCap:
    torch.manual_seed(0)
    system = tiny_lavcap()
    system.configure_model()
    system.eval()
    return system


def batches(root: Path) -> list[Batch]:
    data = tiny_data(root, audio_buckets_s=(10.0,))
    data.prepare_data()
    return list(data.plain_loader("train", 4, ("audio", "visual")))[:2]


def test_losses_are_the_same_but_for_rounding(built: LAVCap, scenes_root: Path) -> None:
    losses = []
    for buckets in ((), BUCKETS):
        built.model.language.length_buckets = buckets
        torch.manual_seed(1)  # of the prompts
        losses.append([built.training_loss(batch)["caption"].item() for batch in batches(scenes_root)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_the_loss_is_taken_over_all_positions(
    built: LAVCap, scenes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Picked ones are another number in each batch, which compiles a graph for each."""
    positions: list[int] = []
    cross_entropy = F.cross_entropy

    def note(logits: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        positions.append(len(logits))
        return cross_entropy(logits, *arguments, **options)

    monkeypatch.setattr(F, "cross_entropy", note)
    built.model.language.length_buckets = (40,)
    for batch in batches(scenes_root):
        built.training_loss(batch)
        count, length = built.model.language.last_shape
        assert positions.pop() == count * (length - 1)


def test_captions_are_the_same_and_decoded_in_two_shapes(
    built: LAVCap, scenes_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[Any, ...]] = set()
    attend = F.scaled_dot_product_attention

    def note(query: torch.Tensor, key: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.add((query.shape, key.shape))
        return attend(query, key, *arguments, **options)

    captions, shapes = [], []
    for buckets in ((), BUCKETS):
        built.model.language.length_buckets = buckets
        fused = [(batch, built.model.fuse(batch)) for batch in batches(scenes_root)]
        with monkeypatch.context() as patched:
            patched.setattr(F, "scaled_dot_product_attention", note)
            captions.append([built.model.caption(*pair) for pair in fused])
        shapes.append(len(seen))
        seen.clear()
    assert captions[1] == captions[0]
    assert shapes[1] == 2 < shapes[0]


def test_sequences_of_mixed_modalities_are_padded_and_mean_the_same() -> None:
    system, batch = built_bubogpt(), mixed_batch()
    language = system.model.language
    losses, captions, lengths = [], [], []
    for buckets in ((), BUCKETS):
        language.length_buckets = buckets
        losses.append(system.training_loss(batch)["caption"].item())
        lengths.append(language.last_shape[1])
        captions.append(system.caption(batch))
    assert lengths[0] % 40 != 0
    assert lengths[1] == bucket_of(lengths[0], BUCKETS)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert captions[1] == captions[0]
    language.length_buckets = (300,)
    assert [language.padded_length(length) for length in (1, 300, 301)] == [300, 300, 512], "no more than positions"


def test_every_language_model_is_changed_and_compiled_once(built: LAVCap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "cache_size_limit", 2)
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    shapes = StaticShapes(BUCKETS, compile_backend=backend)  # type: ignore[arg-type]
    shapes.on_test_start(None, built)  # type: ignore[arg-type]
    shapes.on_validation_start(None, built)  # type: ignore[arg-type]
    language = built.model.language
    assert isinstance(language, CausalLanguageModel)
    assert language.length_buckets == BUCKETS
    for _ in range(2):
        language.model(inputs_embeds=torch.zeros(1, 4, 32), use_cache=False)
    assert len(compiled) == 1
    for length in (5, 6):
        language.model(inputs_embeds=torch.zeros(1, length, 32), use_cache=False)
    assert len(compiled) == 3, "torch would stop at its limit"


def test_a_backend_that_is_not_here(built: LAVCap) -> None:
    for callback in (StaticShapes(BUCKETS, compile_backend="no_backend"), CompileFrozenParts("no_backend")):
        with pytest.raises(ConfigError, match=r"^torch.compile has no backend no_backend here, only .*inductor"):
            callback.on_test_start(None, built)  # type: ignore[arg-type]
        assert built.model.language.length_buckets == ()
