"""Which pixels belong to what is in a box: SAM of transformers, or the authors' own package.

Source: Kirillov et al., "Segment Anything" (arXiv 2304.02643); one mask per box, as BuboGPT's released code asks for.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avcap_zoo.backbones.vision.finders import Box, Segmenter, file_identity
from avcap_zoo.errors import ConfigError, require_extra
from avcap_zoo.ops.regions import fill_small_holes

HOLE_AREA_PX = 400


class _SAM(Segmenter):
    """One mask per box, holes filled."""

    def __init__(self, hole_area_px: int, **identity: Any) -> None:
        if hole_area_px < 0:
            raise ConfigError(f"segmenter.init_args.hole_area_px is {hole_area_px}, wanted 0 (none filled) or more")
        self.hole_area_px = hole_area_px
        super().__init__(hole_area_px=hole_area_px, **identity)

    @torch.inference_mode()
    def segment(self, pictures: Sequence[Tensor], boxes: Sequence[Sequence[Box]]) -> list[NDArray[np.bool_]]:
        """Masks of each picture, all its boxes at once. A picture without boxes is not looked at.

        Raises:
            WeightsError: the model cannot be found or read.
        """
        found: list[NDArray[np.bool_]] = []
        for picture, wanted in zip(pictures, boxes, strict=True):
            masks = np.zeros((len(wanted), *picture.shape[1:]), dtype=np.bool_)
            if wanted:
                predicted = self._masks(picture, wanted).cpu().numpy()
                for number, mask in enumerate(predicted):
                    masks[number] = fill_small_holes(mask, self.hole_area_px) if self.hole_area_px else mask
            found.append(masks)
        return found

    @abstractmethod
    def _masks(self, picture: Tensor, boxes: Sequence[Box]) -> Tensor:
        """(N, H, W) bool masks for one box or more."""


class SAM(_SAM):
    """SAM as transformers has it.

    Args:
        source: hub id or local folder in transformers format; the published size is ViT-H.
        hole_area_px: holes of fewer pixels are filled; 0 = none.
    """

    def __init__(self, source: str = "facebook/sam-vit-huge", hole_area_px: int = HOLE_AREA_PX) -> None:
        self.source = source
        super().__init__(hole_area_px, source=file_identity(source))

    def _masks(self, picture: Tensor, boxes: Sequence[Box]) -> Tensor:
        processor, model = self._loaded
        inputs = processor(
            images=[picture],
            input_boxes=[[list(box) for box in boxes]],
            input_data_format="channels_first",
            return_tensors="pt",
        )
        answer = model(
            pixel_values=inputs["pixel_values"].to(self.device),
            input_boxes=inputs["input_boxes"].to(self.device, torch.float32),
            multimask_output=False,
        )
        (masks,) = processor.image_processor.post_process_masks(
            answer.pred_masks.cpu(), inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        return masks[:, 0]  # type: ignore[no-any-return]

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import SamModel, SamProcessor

        from avcap_zoo.backbones.pretrained import load_part, load_pretrained

        key = "segmenter.init_args.source"
        processor = load_part(SamProcessor, self.source, key)
        return processor, load_pretrained(SamModel, self.source, key).to(self.device).eval()


class SegmentAnything(_SAM):
    """SAM of the package `segment-anything` (extra `sam`), for the published weight files.

    Args:
        weights: `sam_vit_h_4b8939.pth`; None = random weights.
        size: `vit_h`, `vit_l` or `vit_b`, as the file has it.
        hole_area_px: holes of fewer pixels are filled; 0 = none.

    Raises:
        MissingExtraError: the package is not installed.
    """

    def __init__(
        self,
        weights: str | None = "checkpoints/sam_vit_h_4b8939.pth",
        size: Literal["vit_h", "vit_l", "vit_b"] = "vit_h",
        hole_area_px: int = HOLE_AREA_PX,
    ) -> None:
        self._package = require_extra("segment_anything", "sam")
        self.weights, self.size = weights, size
        super().__init__(hole_area_px, weights=file_identity(weights), size=size)

    def _masks(self, picture: Tensor, boxes: Sequence[Box]) -> Tensor:
        predictor = self._predictor
        predictor.set_image(picture.permute(1, 2, 0).numpy())
        corners = torch.tensor(boxes, dtype=torch.float32, device=self.device)
        scaled = predictor.transform.apply_boxes_torch(corners, tuple(picture.shape[1:]))
        masks, _, _ = predictor.predict_torch(None, None, boxes=scaled, multimask_output=False)
        return masks[:, 0]  # type: ignore[no-any-return]

    @cached_property
    def _predictor(self) -> Any:
        from avcap_zoo.weights.load import load_strictly, load_tensors

        model = self._package.sam_model_registry[self.size](checkpoint=None)
        if self.weights is not None:
            load_strictly(model, load_tensors(self.weights), self.weights)
        return self._package.SamPredictor(model.to(self.device).eval())
