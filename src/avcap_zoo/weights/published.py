"""Published weight files of single parts, each into a part of its size: safely, with every name accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from avcap_zoo.backbones.audio.imagebind import ImageBindAudio, from_imagebind_names
from avcap_zoo.backbones.joiner import (
    Joiner,
    Modality,
    from_blip2_file,
    from_joiner_names,
    from_minigpt4_file,
    unknown_joiner_names,
)
from avcap_zoo.backbones.qformer import QFormer
from avcap_zoo.backbones.vision.eva import EVA, from_eva_names, from_lavis_names
from avcap_zoo.backbones.vision.swin_tagger import SwinTagger, from_ram_names
from avcap_zoo.errors import WeightsError
from avcap_zoo.weights.load import compare_keys, load_strictly, load_tensors


def load_imagebind_audio(model: ImageBindAudio, path: str | Path) -> None:
    """Load the audio tower out of `imagebind_huge.pth` (CC-BY-NC-SA 4.0: not for commercial use).

    Args:
        model: receives the weights.
        path: the official file, or its tensors as safetensors.

    Raises:
        WeightsError: the file cannot be read, or lacks weights, or holds names that are of no ImageBind tower.
    """
    load_strictly(model, from_imagebind_names(load_tensors(path), model.settings), str(path))


def load_eva(model: EVA, path: str | Path, norm_path: str | Path | None = None) -> None:
    """Load the image encoder.

    Args:
        model: receives the weights.
        path: `eva_vit_g.pth`, or a LAVIS file with `visual_encoder.*` and `ln_vision.*`.
        norm_path: BLIP-2's file with `ln_vision.*` (`blip2_pretrained_flant5xxl.pth`); needed with `eva_vit_g.pth`,
            which has no such norm.

    Raises:
        WeightsError: a file cannot be read, or weights are missing or unknown.
    """
    tensors, origin = load_tensors(path), str(path)
    if any(name.startswith("visual_encoder.") for name in tensors):
        ours = from_lavis_names(tensors, model.settings)
    else:
        ours = from_eva_names(tensors, model.settings)
    if norm_path is not None:
        ours |= from_lavis_names(
            {name: value for name, value in load_tensors(norm_path).items() if name.startswith("ln_vision.")},
            model.settings,
        )
        origin = f"{path} with {norm_path}"
    elif "model.post_layernorm.weight" not in ours:
        raise WeightsError(f"{path} holds no ln_vision.*: give BLIP-2's file, which has it, beside it")
    load_strictly(model, ours, origin)


def load_blip2_qformer(qformer: QFormer, path: str | Path) -> None:
    """Load the Q-Former of a BLIP-2 file such as `blip2_pretrained_flant5xxl.pth`.

    Args:
        qformer: receives the weights.
        path: the official file.

    Raises:
        WeightsError: the file cannot be read, or weights are missing or unknown.
    """
    load_strictly(qformer, from_blip2_file(load_tensors(path)), str(path))


def load_minigpt4_projection(projection: nn.Linear, path: str | Path) -> None:
    """Load the vision projection of `prerained_minigpt4_7b.pth` or `..._13b.pth` (spelled so).

    Args:
        projection: receives the weights.
        path: the official file.

    Raises:
        WeightsError: the file cannot be read, is for a language model of another width, or holds other weights.
    """
    load_strictly(projection, from_minigpt4_file(load_tensors(path)), str(path))


def load_joiners(joiners: Mapping[Modality, Joiner], path: str | Path) -> None:
    """Load a checkpoint of training with `multimodal_joiner.*`, such as `bubogpt_7b.pth`.

    Of a modality whose Q-Former was frozen the file holds the projection alone; its Q-Former is then left as it is.

    Args:
        joiners: the parts that receive weights. What the file holds for other modalities is not looked at.
        path: the official file.

    Raises:
        WeightsError: the file cannot be read, or weights are missing or unknown; those of all parts at once, and
            nothing is loaded.
    """
    tensors = load_tensors(path)
    unknown = unknown_joiner_names(tensors)
    ours: dict[Modality, dict[str, Tensor]] = {name: from_joiner_names(tensors, name) for name in joiners}
    wanted: dict[str, tuple[int, ...]] = {}
    found: dict[str, Tensor] = {name: tensors[name] for name in unknown}
    for modality, joiner in joiners.items():
        whole = any(name.startswith("qformer.") for name in ours[modality])
        for name, value in joiner.state_dict().items():
            if whole or name.startswith("projection."):
                wanted[f"{modality}.{name}"] = tuple(value.shape)
        found |= {f"{modality}.{name}": value for name, value in ours[modality].items()}
    problems = compare_keys(wanted, found)
    if problems:
        raise WeightsError(f"{path} does not fit the model: {problems}")
    for modality, joiner in joiners.items():
        joiner.load_state_dict(ours[modality], strict=False)


def load_tagger(model: SwinTagger, path: str | Path) -> None:
    """Load `ram_swin_large_14m.pth`.

    Args:
        model: receives the weights.
        path: the official file.

    Raises:
        WeightsError: the file cannot be read, or weights are missing or unknown.
    """
    load_strictly(model, from_ram_names(load_tensors(path), model), str(path))
