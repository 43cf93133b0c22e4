"""The masks of all objects that are asked about on one photo."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.data.images import decode_image, read_photo
from distill.data.rle import RLE, encode_mask
from distill.errors import DataError
from distill.geometry import HW, mask_to_low_res
from distill.models.automatic_masks import AutomaticMaskGenerator
from distill.models.predictor import Predictor, Promptable
from distill.prediction.asking import ObjectPrompt
from distill.prediction.tiles import Tile, is_cut_off, num_levels, tile_of
from distill.prompts.types import POSITIVE

EARLIER_LOGIT = 8.0  # inside an earlier mask, and -8 outside: our choice, within the range of SAM's own logits
MOST_MASK_VALUE = 255
PROMPTS_AT_ONCE = 16  # whose masks at the photo's size are held


@dataclass(frozen=True)
class FoundObject:
    """The answer to one prompt: K candidate masks as codes of the photo's size, with the model's estimate of their IoU.

    stability: of the grid's masks, else None.
    """

    prompt: ObjectPrompt
    masks: tuple[RLE, ...]
    predicted_iou: tuple[float, ...]
    stability: float | None = None

    @property
    def best(self) -> int:
        """The number of the mask with the highest predicted IoU."""
        return max(range(len(self.masks)), key=lambda k: self.predicted_iou[k])


@dataclass(frozen=True)
class Everything:
    """The options of masks without prompts, as segment-anything's generator names them. Its defaults are these."""

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95


class Answering:
    """A model that answers prompts on photos of any size.

    Args:
        multimask: True for three masks of each prompt, for ambiguous ones.
        tile: the side of the smallest tiles in pixels, or 0 to look at each photo as one.
    """

    def __init__(self, model: Promptable, *, multimask: bool = False, tile: int = 0) -> None:
        self.model, self.multimask, self.tile = model, multimask, tile
        self.predictor = Predictor(model)

    def answer(self, photo: np.ndarray, prompts: Sequence[ObjectPrompt]) -> list[FoundObject]:
        """Answer the prompts on a photo, uint8 (H, W, 3), in their order.

        A mask that its tile cuts off is asked for again in the next larger tile.

        Raises:
            DataError: an earlier mask cannot be read, or has another size than the photo.
        """
        hw: HW = (photo.shape[0], photo.shape[1])
        side = self.tile or max(hw)
        earlier = {i: read_mask(prompt.mask, hw) for i, prompt in enumerate(prompts) if prompt.mask is not None}
        found: dict[int, FoundObject] = {}
        for level in range(num_levels(hw, side)):
            by_tile: dict[Tile, list[int]] = defaultdict(list)
            for i, prompt in enumerate(prompts):
                if i not in found and (tile := tile_of(prompt.extent_xyxy, hw, side, level)) is not None:
                    by_tile[tile].append(i)
            for tile, indices in by_tile.items():
                self.predictor.set_image(np.ascontiguousarray(photo[tile.window]))
                for rows in _batches(prompts, indices):
                    found.update(self._answer_in(tile, hw, {i: prompts[i] for i in rows}, earlier))
        self.predictor.reset_image()
        return [found[i] for i in range(len(prompts))]

    def everything(self, photo: np.ndarray, options: Everything) -> list[FoundObject]:
        """Return the masks that a grid of points finds on a photo, the best by predicted IoU and stability first.

        With tiles, the generator looks at crops of the photo too, down to the tile's side.
        """
        longest = max(photo.shape[:2])
        num_layers = max(0, math.ceil(math.log2(longest / self.tile))) if self.tile else 0
        generator = AutomaticMaskGenerator(
            self.model,
            points_per_side=options.points_per_side,
            pred_iou_thresh=options.pred_iou_thresh,
            stability_score_thresh=options.stability_score_thresh,
            crop_n_layers=num_layers,
            crop_n_points_downscale_factor=2,  # of a crop's points a side: layer by layer, crops have half the side
            output_mode="coco_rle",
        )
        found = [
            FoundObject(
                ObjectPrompt(points_xy=tuple((x, y) for x, y in row["point_coords"]), labels=(POSITIVE,)),
                (row["segmentation"],),
                (row["predicted_iou"],),
                row["stability_score"],
            )
            for row in generator.generate(photo)
        ]
        return sorted(found, key=lambda one: -(one.predicted_iou[0] + (one.stability or 0.0)))

    def _answer_in(
        self, tile: Tile, hw: HW, prompts: dict[int, ObjectPrompt], earlier: dict[int, np.ndarray]
    ) -> dict[int, FoundObject]:
        """Answer prompts of one kind in a tile. Those whose best mask the tile cuts off are left out."""
        first = next(iter(prompts.values()))
        corner = np.array([tile.x0, tile.y0])
        given = list(prompts.values())
        masks, predicted_iou, _ = self.predictor.predict(
            point_coords=np.array([prompt.points_xy for prompt in given]) - corner if first.points_xy else None,
            point_labels=np.array([prompt.labels for prompt in given]) if first.points_xy else None,
            box=np.array([prompt.box_xyxy for prompt in given]) - np.tile(corner, 2) if first.box_xyxy else None,
            mask_input=np.stack([self._low_res(earlier[i][tile.window]) for i in prompts]) if first.mask else None,
            multimask_output=self.multimask,
        )
        if len(given) == 1:
            masks, predicted_iou = masks[None], predicted_iou[None]
        found = {}
        for i, prompt, of_prompt, ious in zip(prompts, given, masks, predicted_iou, strict=True):
            if not is_cut_off(of_prompt[ious.argmax()], tile, hw):
                codes = tuple(encode_mask(_placed(mask, tile, hw)) for mask in of_prompt)
                found[i] = FoundObject(prompt, codes, tuple(float(iou) for iou in ious))
        return found

    def _low_res(self, mask: np.ndarray) -> np.ndarray:
        """Return an earlier mask (h, w) as low-res logits (1, 4E, 4E)."""
        shares = mask_to_low_res(mask, self.model.low_res_size)
        logits: np.ndarray = EARLIER_LOGIT * (2 * shares - 1)
        return logits[None]


def read_mask(path: Path, hw: HW) -> np.ndarray:
    """Read an earlier mask, an image of the photo's size that is white on black: bool (H, W).

    Raises:
        DataError: it cannot be read, or has another size.
    """
    mask: np.ndarray = decode_image(read_photo(path), str(path))[..., 0] > MOST_MASK_VALUE // 2
    if mask.shape != hw:
        raise DataError(
            f"{path}: the mask has {mask.shape[0]} x {mask.shape[1]} pixels (height x width) and its photo {hw[0]} x "
            f"{hw[1]}; give a mask of the photo's size"
        )
    if not mask.any():
        raise DataError(f"{path}: the mask has no white pixel; it is white on black, as distill predict writes it")
    return mask


def _batches(prompts: Sequence[ObjectPrompt], indices: Sequence[int]) -> list[list[int]]:
    """Split prompts into batches of one kind: as many points, a box or none, a mask or none."""
    kinds: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
    for i in indices:
        prompt = prompts[i]
        kinds[len(prompt.points_xy), prompt.box_xyxy is not None, prompt.mask is not None].append(i)
    return [
        of_kind[start : start + PROMPTS_AT_ONCE]
        for of_kind in kinds.values()
        for start in range(0, len(of_kind), PROMPTS_AT_ONCE)
    ]


def _placed(mask: np.ndarray, tile: Tile, hw: HW) -> np.ndarray:
    """Return a tile's mask (h, w) in the complete photo, (H, W)."""
    if mask.shape == hw:
        return mask
    full = np.zeros(hw, bool)
    full[tile.window] = mask
    return full
