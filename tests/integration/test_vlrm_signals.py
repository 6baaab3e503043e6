"""An iteration of VLRM gives way to a signal at any of its parts, and is done again, bit by bit the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.exceptions import SIGTERMException

from avcap_zoo.systems.signals import SaveOnSignal
from tests.integration.test_lavcap import assert_same, load
from tests.integration.test_signals import logged
from tests.integration.tiny import tiny_data, tiny_trainer
from tests.unit.systems.vlrm import toy

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")

PLAIN: dict[str, Any] = {"max_steps": 4, "limit_val_batches": 0}
VALIDATED: dict[str, Any] = {"max_steps": 4, "limit_val_batches": 1, "val_check_interval": 2}


def run(
    root: Path,
    folder: Path,
    options: dict[str, Any],
    *,
    step: int = -1,
    part: str = "sample",
    number: int = signal.SIGTERM,
    ckpt_path: Path | None = None,
) -> dict[str, Any]:
    """The last checkpoint of a run. The signal comes in the second call of a function of the captioner in a step."""
    seed_everything(1, verbose=False)
    system = toy.system(micro_batch_size=2, sampling_batch_size=2)
    system.configure_model()
    trainer = tiny_trainer(folder, every=options["max_steps"], callbacks=[SaveOnSignal()], **options)
    captioner, calls = system.model.captioner, []
    function = getattr(captioner, part)

    def called(*arguments: Any, **others: Any) -> Any:
        if trainer.training and trainer.global_step == step:
            calls.append(part)
            if len(calls) == 2:
                os.kill(os.getpid(), number)
        return function(*arguments, **others)

    setattr(captioner, part, called)
    data = tiny_data(root, num_frames=1, image_size_px=16, modalities=("visual",))
    trainer.fit(system, datamodule=data, ckpt_path=ckpt_path)
    return load(folder / f"checkpoints/step={options['max_steps']}.ckpt")


def assert_same_end(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key in ("state_dict", "optimizer_states", "loops", "avcap_zoo"):
        assert_same(found[key], wanted[key], key)


@pytest.mark.parametrize(
    ("options", "step", "part"), [(PLAIN, 1, "sample"), (PLAIN, 2, "states"), (VALIDATED, 2, "logits")]
)
def test_an_iteration_gives_way(
    options: dict[str, Any], step: int, part: str, scenes_root: Path, tmp_path: Path
) -> None:
    whole = run(scenes_root, tmp_path / "whole", options)
    with pytest.raises(SIGTERMException):
        run(scenes_root, tmp_path / "stopped", options, step=step, part=part)
    saved = tmp_path / "stopped/checkpoints/on_signal.ckpt"
    assert load(saved)["global_step"] == step  # not the step after
    assert_same_end(run(scenes_root, tmp_path / "resumed", options, ckpt_path=saved), whole)
    assert logged(tmp_path / "stopped") + logged(tmp_path / "resumed") == logged(tmp_path / "whole")


def test_an_iteration_gives_way_to_a_save(scenes_root: Path, tmp_path: Path) -> None:
    whole = run(scenes_root, tmp_path / "whole", PLAIN)
    assert_same_end(run(scenes_root, tmp_path / "told", PLAIN, step=3, number=signal.SIGUSR1), whole)
    assert load(tmp_path / "told/checkpoints/on_signal.ckpt")["global_step"] == 3
    assert logged(tmp_path / "told") == logged(tmp_path / "whole")
