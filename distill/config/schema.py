"""The typed options of every component, in one place that imports no torch.

`distill check` reads these dataclasses alone, so it answers at once. A component takes the dataclass that is named
after it, never the complete recipe. An option's range stands in its field (`distill.config.options`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from distill.config.named_data import is_data_path
from distill.config.names import (
    IDENTITY,
    is_local,
    is_start_path,
    is_teacher_path,
    logger_mistakes,
    student_mistakes,
    teacher_mistakes,
    view_mistakes,
)
from distill.config.options import option, required

ASKS_TEACHER = (  # the options of a mask recipe that need the teacher's embeddings
    "targets.teacher_weight",
    "loss.logit_weight",
    "loss.teacher_iou_weight",
    "loss.feature_weight",
    "prompts.teacher_instances",
)
MAX_SEED = 2**32 - 1  # numpy takes no larger seed


@dataclass
class TeacherConfig:
    """The frozen model that the student imitates."""

    # sam_vit_b | sam_vit_l | sam_vit_h | quickstart | a released student | a student.safetensors of ours
    name: str = option("quickstart", check=teacher_mistakes, path=is_teacher_path)
    checkpoint: Optional[str] = option(
        None, path=is_local
    )  # the released .pt or .pth of a sam_vit_* or efficientvit_sam_*
    verify_sha256: bool = True  # false: a sam_vit_* file that is not the published one (fine-tuned weights) is accepted
    source: Literal["cache", "online"] = "cache"  # where the feature stage takes embeddings from


@dataclass
class StudentConfig:
    """The encoder that is trained; its prompt encoder and mask decoder start as copies of the teacher's."""

    # a registered student, or timm/NAME[.TAG][@[FINEST-]COARSEST][+sam]
    name: str = required("the encoder to train: student.name=NAME", check=student_mistakes)
    image_size: Optional[int] = option(None, at_least=1)  # S in pixels; None: the student's own
    # What the student starts from:
    # - a student.safetensors, a run directory or a .ckpt of its checkpoints: the complete model;
    # - a released file of the student: the complete model, or the encoder if the file holds no more;
    # - an ImageNet classifier of its backbone: the backbone;
    # - `teacher`: the encoder takes the teacher's tensors of the same name and shape, as a student with fewer of the
    #   same layers may (DistilBERT, arXiv:1910.01108, section 3).
    init_from: Optional[str] = option(
        None, path=is_start_path, give="the run directory that this stage starts from: student.init_from=DIR"
    )
    # For timm/NAME alone: the backbone starts from a classifier's file, or from `timm`'s hub.
    pretrained: Optional[str] = option(None, path=is_start_path)


@dataclass
class DataConfig:
    """Image shards and how they are read."""

    # a directory of SA-1B-format tars, its address (s3://, hf://, https://), or SET/SPLIT of `distill datasets`
    images: str = required("the directory of images: data.images=DIR", path=is_data_path)
    val_images: Optional[str] = option(None, path=is_data_path)  # held-out tars; None: no validation
    batch_size: int = option(8, at_least=1)  # images per device and step
    num_workers: int = option(2, at_least=0)
    max_instances: int = option(16, at_least=1)  # masks drawn per image in the mask stage
    instance_odds: Literal["uniform", "area"] = "uniform"  # area: in proportion to the masks' areas
    # How max_instances masks are drawn from those of an image:
    # - distinct: each at most once, so an image with fewer masks gives all of them;
    # - repeat: as distinct, but fewer masks are repeated until max_instances are drawn (EfficientViT-SAM);
    # - replacement: an image with more masks draws each time from all of them (EdgeSAM).
    instance_draw: Literal["distinct", "repeat", "replacement"] = "distinct"
    hflip: bool = False  # photos are flipped left to right at random; a cache must then hold the view `hflip`
    max_bad_share: float = option(0.01, at_least=0, at_most=1)  # the run ends if more photos cannot be decoded


@dataclass
class TrainCacheConfig:
    """A directory of teacher-embedding shards, from which a training reads."""

    dir: Optional[str] = option(None, path=is_local, give="the directory of teacher embeddings: cache.dir=DIR")
    codec: Optional[Literal["fp16", "bf16", "int8"]] = None  # null: what the cache has; another is refused
    precision: Optional[Literal["fp32", "bf16", "fp16"]] = None  # null: that of the cache; another one is refused
    views: list[str] = option([IDENTITY], check=view_mistakes)  # [identity, hflip]: flipped photos too
    # images per forward of the teacher; on a CPU: images processed at a time, with one thread each
    batch_size: int = option(4, at_least=1)


@dataclass
class CacheConfig(TrainCacheConfig):
    """A directory of teacher-embedding shards, which a caching job writes."""

    codec: Literal["fp16", "bf16", "int8"] = "fp16"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the teacher's forward; the lower two through autocast


@dataclass
class FeatureLossConfig:
    """Weights of the feature stage's terms; a term of weight 0 is not computed."""

    mse: float = option(1.0, at_least=0)
    cosine: float = option(0.0, at_least=0)
    huber: float = option(0.0, at_least=0)
    relation: float = option(0.0, at_least=0)  # attention-style relation between positions


@dataclass
class MaskLossConfig:
    """Weights of the mask stage's terms, which are means over prompts and rounds."""

    mask: Literal["bce", "focal"] = "focal"
    mask_weight: float = option(20.0, at_least=0)  # SAM paper, appendix A: focal : dice = 20 : 1
    dice_weight: float = option(1.0, at_least=0)
    # SAM paper, appendix A: MSE of the IoU head to the true IoU; only where masks are compared with ground truth
    iou_weight: float = option(1.0, at_least=0)
    num_points: int = option(0, at_least=0)  # uncertainty-sampled points per mask; 0: every valid low-res position
    logit_weight: float = option(0.0, at_least=0)  # mean squared difference to the teacher's logits, token by token
    teacher_iou_weight: float = option(0.0, at_least=0)  # MSE of the IoU head to the teacher's (EdgeSAM: off)
    feature_weight: float = option(0.0, at_least=0)  # anchor: masked MSE to the teacher's embedding


@dataclass
class TargetConfig:
    """Whose masks `loss.mask_weight` and `loss.dice_weight` compare with; both, weighted, if both are above 0."""

    # the instances' own masks: the best candidate counts (SAM, EfficientViT-SAM)
    truth_weight: float = option(1.0, at_least=0)
    # the teacher's masks for the same prompts, mask token by mask token (EdgeSAM)
    teacher_weight: float = option(0.0, at_least=0)
    labels: Literal["hard", "soft"] = "hard"  # of the teacher: logit > 0 (EdgeSAM), or its probabilities


@dataclass
class PromptConfig:
    """How training prompts are drawn from a mask, and how the predicted mask is refined.

    An instance is prompted by a box, by points, or by both. Later rounds refine the mask: each round has one more
    click in the error of the last mask, or no click. The error is measured against the instance's mask, or against the
    teacher's mask if targets.truth_weight is 0.
    """

    # 0: the instances are the masks of the shards. n: the shards give photos alone; n points are drawn in each photo,
    # and the best mask that the teacher predicts at a point is an instance.
    teacher_instances: int = option(0, at_least=0)
    box_share: float = option(0.5, at_least=0, at_most=1)  # share of instances prompted by a box, the others by points
    box_points_share: float = option(0.0, at_least=0, at_most=1)  # share of the box prompts that have points as well
    box_jitter: float = option(0.1, at_least=0)  # SAM paper, appendix A: noise of std 10 % of the side ...
    box_jitter_max_pixels: float = option(20.0, at_least=0)  # ... at most 20 pixels, in a 1024-pixel prompt frame
    min_points: int = option(1, at_least=1)
    # points per prompt: uniform in min_points..max_points, the same for all prompts of a step
    max_points: int = option(3, at_least=1)
    points: Literal["uniform", "centre"] = "uniform"  # in the mask; centre: the first at its centre, as evaluation does
    # points outside the mask, in addition to the others: uniform in 0..max_negative_points
    max_negative_points: int = option(0, at_least=0)
    refine_clicks: int = option(0, at_least=0)  # rounds with a click each: 8 in the SAM paper, appendix A; 1 in EdgeSAM
    mask_only_rounds: int = option(0, at_least=0)  # rounds without a click: 2 in the SAM paper, one of them the last
    click: Literal["uniform", "centre"] = "uniform"  # in the error (SAM, EdgeSAM); centre: of the largest, as in RITM
    min_error_cells: int = option(
        1, at_least=1
    )  # a smaller error gets no click: 10 cells of the low-res mask in EdgeSAM
    feed_logits: bool = True  # later rounds get the last mask as a prompt (SAM; EdgeSAM: no)
    multimask: bool = True  # prompts also train the three masks of the multimask output; the best one counts
    multimask_on_box: bool = True  # so do prompts with a box (EdgeSAM: no)
    multimask_refined: bool = True  # so do prompts of later rounds (SAM paper, appendix A: no)


@dataclass
class DecoderConfig:
    """How the mask decoder is run: changes speed and memory, not the result."""

    prompts_per_chunk: int = option(0, at_least=0)  # 0: all prompts of a batch at once
    checkpointing: bool = False  # the backward pass computes a chunk's activations again


@dataclass
class OptimConfig:
    """AdamW with warm-up and cosine decay per step."""

    lr: float = option(1e-3, above=0, below=float("inf"))
    # The photos a step that lr is for. The rate then follows the global batch: devices x data.batch_size x
    # trainer.accumulate_grad_batches. null: lr is used as it is.
    lr_for_batch: Optional[int] = option(None, at_least=1)
    lr_rule: Literal["linear", "sqrt"] = "linear"  # the rate grows with the global batch, or with its square root
    weight_decay: float = option(0.01, at_least=0)
    betas: tuple[float, float] = option((0.9, 0.999), at_least=0, below=1)
    warmup_steps: int = option(0, at_least=0)
    final_lr_share: float = option(0.0, at_least=0, at_most=1)  # learning rate of the last step, as a share of lr
    encoder_lr_scale: float = option(1.0, at_least=0)  # multiples of lr per part; 0 freezes the part
    prompt_encoder_lr_scale: float = option(1.0, at_least=0)
    mask_decoder_lr_scale: float = option(1.0, at_least=0)
    batch_norm: Literal["train", "frozen"] = "train"  # frozen: running statistics are used and stay as they are
    ema_decay: float = option(0.0, at_least=0, below=1)  # 0: no averaged weights


@dataclass
class ValidationConfig:
    """What is measured on the held-out shards while training."""

    every_n_steps: int = option(500, at_least=1)
    max_images: int = option(200, at_least=1)
    max_instances: int = option(10, at_least=1)  # per image
    num_pictures: int = option(4, at_least=0)


@dataclass
class CheckpointConfig:
    """When a training keeps its state in checkpoints/last.ckpt, and what else it keeps.

    It is also kept before each validation, at the end, and when SIGTERM, SIGUSR1 or Ctrl-C ends the run.
    """

    every_n_steps: int = option(500, at_least=0)  # 0: not by steps
    every_n_minutes: float = option(10.0, at_least=0, below=float("inf"))  # 0: not by time
    keep_best: int = option(1, at_least=0)  # of the validated steps, by val/cosine or val/box_miou
    # whose weights student.safetensors gets, the averaged ones with optim.ema_decay: those of the last step, or those
    # of the best validated one
    student: Literal["last", "best"] = "last"


@dataclass
class _TrainingRecipe:
    """What both training stages have in common."""

    kind: str = required()
    run: str = required("the directory to write: run=DIR", path=is_local)
    resume: bool = False
    seed: int = option(0, at_least=0, at_most=MAX_SEED)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cache: TrainCacheConfig = field(default_factory=TrainCacheConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # in addition to metrics.jsonl; also csv, wandb, mlflow
    logger: list[str] = option(["tensorboard"], check=logger_mistakes)
    trainer: dict[str, Any] = field(default_factory=dict)  # passed to lightning.Trainer as it is


@dataclass
class FeatureRecipe(_TrainingRecipe):
    """Stage 1: the student's embedding is trained to match the teacher's."""

    kind: Literal["feature"] = "feature"
    loss: FeatureLossConfig = field(default_factory=FeatureLossConfig)


@dataclass
class MaskRecipe(_TrainingRecipe):
    """Stage 2: encoder and decoder are trained end to end on prompted masks."""

    kind: Literal["mask"] = "mask"
    prompts: PromptConfig = field(default_factory=PromptConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)


@dataclass
class CacheDataConfig:
    """Image shards for a caching job."""

    # a directory of SA-1B-format tars, its address (s3://, hf://, https://), or SET/SPLIT of `distill datasets`
    images: str = required("the directory of images: data.images=DIR", path=is_data_path)
    max_bad_share: float = option(0.01, at_least=0, at_most=1)


@dataclass
class CacheRecipe:
    """A teacher-embedding caching job."""

    kind: Literal["cache"] = "cache"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: CacheDataConfig = field(default_factory=CacheDataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class EvaluateDataConfig:
    """Photographs with their annotations."""

    images: str = required(
        "the directory of images: data.images=DIR", path=is_data_path
    )  # or SET/SPLIT of `distill datasets`
    # or LVIS's JSON; may be left out when `images` is a SET/SPLIT
    annotations: str = required("a COCO-format instances file: data.annotations=FILE", path=is_data_path)
    max_images: int = option(0, at_least=0)  # 0: all
    format: Literal["coco", "lvis"] = "coco"  # LVIS has its own rules for AP
    # a detector's results JSON, for prompt.kind=detection
    detections: Optional[str] = option(None, path=is_data_path, give="a detector's results JSON: data.detections=FILE")


@dataclass
class InstanceConfig:
    """Which annotations are scored, and where one size ends and the next begins.

    AP has rules of its own, those of pycocotools and LVIS: of these options it obeys `clip_boxes` alone.
    """

    crowds: bool = False  # crowd regions are scored like objects
    min_area: float = option(0.0, at_least=0)  # as annotated, in original pixels; smaller objects are left out
    empty: bool = False  # masks without a pixel are scored too, with IoU 0
    clip_boxes: bool = True  # boxes end where the photo ends; of a detector too
    # coco: small below 32^2 pixels, large from 96^2 on. closed: an object of just 32^2 or 96^2 pixels is of both sizes
    sizes: Literal["coco", "closed"] = "coco"
    # masks as annotated | as EdgeSAM compares them: brought to 1024 pixels and back, by which they grow
    truth: Literal["annotated", "resampled"] = "annotated"


@dataclass
class EvaluatePromptConfig:
    """The prompts of an evaluation. `kind` and `refine_clicks` apart, all is for clicks."""

    # the annotation's own box | simulated clicks on each annotated instance | the boxes of data.detections
    kind: Literal["box", "point", "detection"] = "box"
    num_clicks: int = option(1, at_least=1)  # the first at the centre of the mask, others at that of the largest error
    refine_clicks: int = option(0, at_least=0)  # kind=box: clicks that follow the box, which stays a prompt
    # after the first prompt: clicks at the centre of the largest error | drawn from the error in the low-res mask
    later_click: Literal["centre", "uniform"] = "centre"
    min_error_cells: int = option(10, at_least=1)  # later_click=uniform: a smaller error gets no click
    # where in its pixel a click lies: centre, (x + 0.5, y + 0.5) | index, (x, y), half a pixel up and left of it
    click_at: Literal["centre", "index"] = "centre"
    feed_logits: bool = True  # from the second click on, the model gets its last mask as a prompt too
    # once no error is left: no more clicks | further ones on the pixel (0, 0), as clicks off the object
    without_error: Literal["stop", "corner"] = "stop"
    stop_iou: Optional[float] = option(None, above=0, at_most=1)  # an instance that reaches it gets no more clicks
    noc: list[float] = option([], above=0, at_most=1)  # IoUs for which the number of clicks (NoC) is counted


@dataclass
class _EvaluationRecipe:
    """What all evaluations have in common. `num_workers` and `fuse` change the speed alone."""

    kind: str = required()
    protocol: str = ""  # its name in tables
    run: str = required("the directory to write: run=DIR", path=is_local)
    resume: bool = False
    num_workers: Optional[int] = option(None, at_least=0)  # processes beside this one; null: by cores and photos
    fuse: bool = True  # batch norms folded into convolutions


@dataclass
class _PromptedEvaluationRecipe(_EvaluationRecipe):
    """What the evaluations with prompts of their own have in common."""

    prompt_batch_size: int = option(64, at_least=1)  # on a CPU at most 16 go together; changes the speed alone
    # whose prompts go together, as far as prompt_batch_size allows; null: 1 on a CPU, else 8; changes the speed alone
    photos_at_once: Optional[int] = option(None, at_least=1)


@dataclass
class EvaluateRecipe(_PromptedEvaluationRecipe):
    """A protocol by which any model is evaluated."""

    kind: Literal["evaluate"] = "evaluate"
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    prompt: EvaluatePromptConfig = field(default_factory=EvaluatePromptConfig)
    instances: InstanceConfig = field(default_factory=InstanceConfig)
    # token 0 | the best of the three others by predicted IoU | the best of them by true IoU, an upper bound
    multimask: Literal["single", "best", "oracle"] = "single"
    multimask_later: Optional[Literal["single", "best", "oracle"]] = None  # from the second click on; null: as before


@dataclass
class EvaluateSetsRecipe(_PromptedEvaluationRecipe):
    """One protocol over many sets, as segmentation in the wild: the mean of the sets' AP."""

    kind: Literal["evaluate_sets"] = "evaluate_sets"
    sets: dict[str, Any] = option({}, path=is_data_path)  # NAME: {images, annotations, detections, format}
    max_images: int = option(0, at_least=0)  # of each set; 0: all
    multimask: Literal["single", "best"] = "single"


@dataclass
class GridConfig:
    """The automatic mask generator: prompts on a grid, and which of their masks are kept."""

    points_per_side: int = option(32, at_least=1)  # this to box_nms_threshold: segment_anything's generator
    points_per_batch: int = option(64, at_least=1)
    predicted_iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    box_nms_threshold: float = option(0.7, at_least=0, at_most=1)
    max_masks: int = option(1000, at_least=1)  # of a photo, the best by the mean of predicted IoU and stability


@dataclass
class EverythingRecipe(_EvaluationRecipe):
    """Segment everything: average recall of masks without prompts."""

    kind: Literal["everything"] = "everything"
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    grid: GridConfig = field(default_factory=GridConfig)


@dataclass
class AgreementDataConfig:
    """Photographs without annotations."""

    images: str = required("the directory of images: data.images=DIR", path=is_data_path)
    max_images: int = option(0, at_least=0)  # 0: all


@dataclass
class AgreementPromptConfig:
    """The prompts by which a model and its teacher are compared."""

    # boxes of the teacher's masks at the points of a grid | these points | each with a second one off the object
    kind: Literal["box", "point", "pair"] = "box"
    points_per_side: int = option(4, at_least=1)
    pair_pixels: int = option(100, at_least=1)  # kind=pair: how far the second point is, in original pixels


@dataclass
class AgreementRecipe(_PromptedEvaluationRecipe):
    """How well a model's masks agree with its teacher's, on photographs without annotations."""

    kind: Literal["agreement"] = "agreement"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: AgreementDataConfig = field(default_factory=AgreementDataConfig)
    prompt: AgreementPromptConfig = field(default_factory=AgreementPromptConfig)
    multimask: Literal["single", "best"] = "single"


RECIPE_KINDS = {
    "feature": FeatureRecipe,
    "mask": MaskRecipe,
    "cache": CacheRecipe,
    "evaluate": EvaluateRecipe,
    "evaluate_sets": EvaluateSetsRecipe,
    "everything": EverythingRecipe,
    "agreement": AgreementRecipe,
}
EVALUATIONS = ("evaluate", "evaluate_sets", "everything", "agreement")  # the kinds that `distill evaluate` runs
# The sections and options that a written recipe has at its end, in this order.
WRITTEN_LAST = (
    "optim",
    "validation",
    "checkpoint",
    "logger",
    "trainer",
    "prompt_batch_size",
    "photos_at_once",
    "num_workers",
    "fuse",
)
SET_FIELDS = ("images", "annotations", "detections")  # what each of an EvaluateSetsRecipe's sets must have
