"""One training step of the mask stage in either formulation; `distill bench mask-step` measures both.

It runs in a process that does nothing else. SETUP is a StepSetup as JSON:

    python -m distill.bench.mask_step_forms ours|published|encoder SETUP

The process prints JSON: seconds and core_seconds of every step, loss, gradient_norm, idle_bytes (the peak before the
first step) and peak_bytes.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from distill.bench.photos import draw_mask, draw_photo
from distill.config.schema import MaskLossConfig
from distill.data.rle import coverage, decode_mask, rle_box_xyxy
from distill.geometry import boxes_to_prompt_frame, letterbox
from distill.losses.mask import OVERSAMPLE_RATIO, UNCERTAIN_SHARE, mask_losses
from distill.memory import peak_memory
from distill.models.checkpoint import find_weights, load_model
from distill.models.sam import PromptableModel, build_from_spec, spec_for
from distill.prompts.sampling import draw_points
from distill.prompts.types import POSITIVE, Prompts
from distill.students import STUDENTS
from distill.students.timm_names import TIMM_PREFIX

# EfficientViT-SAM's published trainer: 20 BCE + dice on 112 x 112 points, no loss on the IoU head, 1 to 10 clicks
LOSS = MaskLossConfig(mask="bce", mask_weight=20.0, dice_weight=1.0, iou_weight=0.0, num_points=12544)
NUM_CLICKS = 5
PUBLISHED_DICE_SMOOTHING = 1.0


@dataclass(frozen=True)
class StepSetup:
    """The model and the sizes that both formulations are given.

    model: a registered student or timm/NAME, whose weights are drawn by `seed`; or a trained model that `load_model`
        takes.
    masks: the number for each image.
    prompts_per_chunk, checkpointing: options of our decoder.
    threads: of the process; 0 leaves torch's own choice.
    """

    model: str
    images: int
    masks: int
    repeats: int = 1
    seed: int = 0
    threads: int = 0
    prompts_per_chunk: int = 0
    checkpointing: bool = False


@dataclass
class StepInputs:
    """Photos with masks and prompts: the first, third, ... image has boxes, the others have clicks.

    pixels: (B, 3, S, S) normalised.
    masks: (N, S, S) 0 or 1, and low_res_masks: (N, 4E, 4E) in [0, 1], both in the order of the images.
    prompts: one set for each image, with a prompt for each of its masks.
    """

    pixels: Tensor
    masks: Tensor
    low_res_masks: Tensor
    prompts: list[Prompts]


def build_student(setup: StepSetup) -> PromptableModel:
    """Return the model in training mode."""
    torch.manual_seed(setup.seed)
    if setup.model in STUDENTS or setup.model.startswith(TIMM_PREFIX):
        return build_from_spec(spec_for(setup.model)).train()
    return load_model(find_weights(setup.model)).train()


def draw_inputs(setup: StepSetup, model: PromptableModel) -> StepInputs:
    """Draw square photos of the model's input size, with masks and prompts.

    They have no padding, because the published formulation would count it.
    """
    rng, generator = np.random.default_rng(setup.seed), torch.Generator().manual_seed(setup.seed)
    hw = (model.image_size, model.image_size)
    pixels, masks, low_res, prompts = [], [], [], []
    for image in range(setup.images):
        photo = np.asarray(Image.open(io.BytesIO(draw_photo(rng, hw))))
        codes = [draw_mask(rng, hw) for _ in range(setup.masks)]
        covered = torch.from_numpy(np.stack([coverage(code, model.low_res_size) for code in codes]))  # (M, 4E, 4E)
        pixels.append(letterbox(photo, model.image_size))
        masks += [torch.from_numpy(decode_mask(code)).float() for code in codes]
        low_res.append(covered)
        index = torch.full((setup.masks,), image)
        if image % 2 == 0:
            boxes = np.array([rle_box_xyxy(code) for code in codes])
            boxes_xyxy = torch.from_numpy(boxes_to_prompt_frame(boxes, hw, model.prompt_size)).float()
            prompts.append(Prompts(index, boxes_xyxy=boxes_xyxy))
        else:
            noise = torch.rand(len(covered), NUM_CLICKS, 3, generator=generator)
            points = draw_points(covered, noise, model.prompt_size)
            prompts.append(Prompts(index, points_xy=points, point_labels=torch.full(points.shape[:2], POSITIVE)))
    return StepInputs(torch.stack(pixels), torch.stack(masks), torch.cat(low_res), prompts)


def ours(model: PromptableModel, inputs: StepInputs, setup: StepSetup) -> Tensor:
    """Return the loss () of our mask stage: prompts of one kind together, masks compared at low resolution."""
    embeddings = model.encode(inputs.pixels)
    loss, num_masks = embeddings.new_zeros(()), len(inputs.low_res_masks)
    for prompts in inputs.prompts:
        logits, iou = model.decode_all(
            embeddings, prompts, prompts_per_chunk=setup.prompts_per_chunk, checkpointing=setup.checkpointing
        )
        rows = slice(int(prompts.image_index[0]) * len(prompts), (int(prompts.image_index[0]) + 1) * len(prompts))
        target = inputs.low_res_masks[rows]
        valid = torch.ones_like(target, dtype=torch.bool)
        terms = mask_losses(logits[:, 1:], iou[:, 1:], target, valid, config=LOSS)
        loss = loss + terms.total(LOSS) * len(prompts) / num_masks
    return loss


def published(model: PromptableModel, inputs: StepInputs, setup: StepSetup) -> Tensor:
    """Return the loss () of EfficientViT-SAM's training step, written from its description.

    segment-anything's decoder runs image by image, and logits are enlarged to the input size. Each of three candidates
    is compared by itself, at points that are uncertain for it.
    """
    embeddings = model.encode(inputs.pixels)
    logits_of_images = []
    for image, prompts in enumerate(inputs.prompts):
        points = None if prompts.points_xy is None else (prompts.points_xy, prompts.point_labels)
        sparse, dense = model.prompt_encoder(points=points, boxes=prompts.boxes_xyxy, masks=None)
        low_res, _ = model.mask_decoder(
            image_embeddings=embeddings[image : image + 1],
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )  # (M, 3, 4E, 4E)
        size = (model.image_size, model.image_size)
        logits_of_images.append(F.interpolate(low_res, size, mode="bilinear", align_corners=False))  # (M, 3, S, S)
    logits, target = torch.cat(logits_of_images), inputs.masks[:, None]  # (N, 3, S, S), (N, 1, S, S)
    losses = []
    for candidate in range(logits.shape[1]):
        one = logits[:, candidate : candidate + 1]  # (N, 1, S, S)
        points_xy = _uncertain_points(one)
        sampled, truth = _sample(one, points_xy), _sample(target, points_xy)  # (N, points)
        bce = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(1)
        probability = sampled.sigmoid()
        overlap = 2 * (probability * truth).sum(1) + PUBLISHED_DICE_SMOOTHING
        dice = 1 - overlap / (probability.sum(1) + truth.sum(1) + PUBLISHED_DICE_SMOOTHING)
        losses.append(LOSS.mask_weight * bce + LOSS.dice_weight * dice)
    return torch.stack(losses, 1).amin(1).mean()


def _uncertain_points(logits: Tensor) -> Tensor:
    """Draw PointRend's points for each mask of logits (N, 1, S, S): (N, LOSS.num_points, 2), XY in [0, 1]."""
    num_masks, num_uncertain = len(logits), int(UNCERTAIN_SHARE * LOSS.num_points)
    with torch.no_grad():
        candidates = torch.rand(num_masks, OVERSAMPLE_RATIO * LOSS.num_points, 2)
        nearest_zero = (-_sample(logits, candidates).abs()).topk(num_uncertain, 1).indices
        chosen = candidates.gather(1, nearest_zero[..., None].expand(-1, -1, 2))
        return torch.cat([chosen, torch.rand(num_masks, LOSS.num_points - num_uncertain, 2)], 1)


def _sample(maps: Tensor, points_xy: Tensor) -> Tensor:
    """Return bilinear values (N, K) of maps (N, 1, S, S) at points (N, K, 2), XY in [0, 1]."""
    return F.grid_sample(maps, 2 * points_xy[:, :, None] - 1, align_corners=False)[:, 0, :, 0]


def encoder(model: PromptableModel, inputs: StepInputs, setup: StepSetup) -> Tensor:
    """Return a loss () of the encoder alone, which both formulations share."""
    return model.encode(inputs.pixels).square().mean()


FORMULATIONS: dict[str, Callable[[PromptableModel, StepInputs, StepSetup], Tensor]] = {
    "ours": ours,
    "published": published,
    "encoder": encoder,
}


def measure(formulation: str, setup: StepSetup) -> dict[str, float | list[float]]:
    """Run a formulation forward and backward, `repeats` times. Nothing is warmed up: the first step costs little more.

    Returns:
        seconds and core_seconds of every step, loss, gradient_norm, idle_bytes and peak_bytes.
    """
    if setup.threads:
        torch.set_num_threads(setup.threads)
    model = build_student(setup)
    inputs = draw_inputs(setup, model)
    idle = peak_memory()
    seconds, core_seconds, loss = [], [], torch.zeros(())
    for _ in range(setup.repeats):
        model.zero_grad()
        torch.manual_seed(setup.seed)  # the points of the loss
        started, started_core = time.perf_counter(), time.process_time()
        loss = FORMULATIONS[formulation](model, inputs, setup)
        torch.autograd.backward(loss)
        seconds.append(time.perf_counter() - started)
        core_seconds.append(time.process_time() - started_core)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return {
        "seconds": seconds,
        "core_seconds": core_seconds,
        "loss": loss.item(),
        "gradient_norm": torch.nn.utils.get_total_norm(gradients).item(),
        "idle_bytes": idle,
        "peak_bytes": peak_memory(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], StepSetup(**json.loads(sys.argv[2])))))
