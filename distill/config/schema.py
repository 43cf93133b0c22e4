"""The typed options of every component, in one place that imports no torch.

`distill check` reads these dataclasses alone, so it answers at once. A component takes the
dataclass that is named after it, never the whole recipe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from omegaconf import MISSING

FROM_TEACHER = "teacher"  # of student.init_from
ASKS_TEACHER = (  # the options of a mask recipe that need the teacher's embeddings
    "targets.teacher_weight",
    "loss.logit_weight",
    "loss.teacher_iou_weight",
    "loss.feature_weight",
    "prompts.teacher_instances",
)
TIMM_HUB = "timm"  # of student.pretrained


@dataclass
class TeacherConfig:
    """The frozen model that is imitated."""

    name: str = "quickstart"  # sam_vit_b | sam_vit_l | sam_vit_h | quickstart | a student.safetensors of ours
    checkpoint: Optional[str] = None  # the released .pt or .pth of a sam_vit_* or efficientvit_sam_*
    verify_sha256: bool = True  # false: a sam_vit_* file that is not the published one (fine-tuned weights) is accepted
    source: Literal["cache", "online"] = "cache"  # where the feature stage takes embeddings from


@dataclass
class StudentConfig:
    """The encoder that is trained; its prompt encoder and mask decoder start as copies of the teacher's."""

    name: str = MISSING  # a registered student, or timm/NAME[.TAG][@[FINEST-]COARSEST][+sam]
    image_size: Optional[int] = None  # S in pixels; None: the student's own
    # A student.safetensors or a run directory: the whole model starts from it. A released file of the student: the
    # whole model, or the encoder where it holds no more; an ImageNet classifier of its backbone: the backbone.
    # `teacher`: the encoder starts from the teacher's tensors of the same name and shape, as a student with fewer of
    # the same layers may (DistilBERT, arXiv:1910.01108, section 3).
    init_from: Optional[str] = None
    # Of timm/NAME: the backbone starts from a classifier's file, or from `timm`'s hub.
    pretrained: Optional[str] = None


@dataclass
class DataConfig:
    """Image shards and how they are read."""

    images: str = MISSING  # a directory of SA-1B-format tars, or its address (s3://, hf://, https://)
    val_images: Optional[str] = None  # held-out tars; None: no validation
    batch_size: int = 8  # images per device and step
    num_workers: int = 2
    max_instances: int = 16  # masks drawn per image in the mask stage
    instance_odds: Literal["uniform", "area"] = "uniform"  # area: in proportion to the masks' areas
    # distinct: each at most once, so all of them where there are fewer; repeat: those then come again until
    # max_instances are drawn (EfficientViT-SAM); replacement: where there are more, each draw is from all (EdgeSAM)
    instance_draw: Literal["distinct", "repeat", "replacement"] = "distinct"
    hflip: bool = False  # photos are flipped left to right by chance; from a cache that holds the view `hflip`
    max_bad_share: float = 0.01  # the run ends when more than this share of photos cannot be decoded


@dataclass
class CacheConfig:
    """A directory of teacher-embedding shards."""

    dir: Optional[str] = None
    codec: Literal["fp16", "bf16", "int8"] = "fp16"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the teacher's forward; the lower two through autocast
    views: list[str] = field(default_factory=lambda: ["identity"])  # [identity, hflip]: flipped photos too
    batch_size: int = 4  # images per forward of the teacher; on a CPU: images under way at a time, one thread each


@dataclass
class FeatureLossConfig:
    """Weights of the feature stage's terms; a term of weight 0 is not computed."""

    mse: float = 1.0
    cosine: float = 0.0
    huber: float = 0.0
    relation: float = 0.0  # attention-style relation between positions


@dataclass
class MaskLossConfig:
    """Weights of the mask stage's terms, which are means over prompts and rounds."""

    mask: Literal["bce", "focal"] = "focal"
    mask_weight: float = 20.0  # SAM paper, appendix A: focal : dice = 20 : 1
    dice_weight: float = 1.0
    iou_weight: float = 1.0  # SAM paper, appendix A: MSE of the IoU head to the true IoU; with ground truth alone
    num_points: int = 0  # uncertainty-sampled points per mask; 0: every valid position of the low-res mask
    logit_weight: float = 0.0  # mean squared difference to the teacher's logits, mask token by mask token
    teacher_iou_weight: float = 0.0  # MSE of the IoU head to the teacher's (EdgeSAM has it, switched off)
    feature_weight: float = 0.0  # anchor: masked MSE to the teacher's embedding


@dataclass
class TargetConfig:
    """Whose masks `loss.mask_weight` and `loss.dice_weight` compare with; both, weighted, if both are above 0."""

    truth_weight: float = 1.0  # the instances' own masks: the best candidate counts (SAM, EfficientViT-SAM)
    teacher_weight: float = 0.0  # the teacher's answers to the same prompts, mask token by mask token (EdgeSAM)
    labels: Literal["hard", "soft"] = "hard"  # the teacher's: logit > 0 (EdgeSAM), or probabilities


@dataclass
class PromptConfig:
    """How training prompts are drawn from a mask, and how an answer is refined.

    An instance is asked about by a box, by points, or by both; the answer is refined in later rounds, each with one
    more click into its error, and in rounds without a click. Errors are those against the instance's mask, or against
    the teacher's answer when targets.truth_weight is 0.
    """

    # 0: instances are the masks of the shards. n: nothing of the shards but photos is used; n points are drawn in each
    # photo, and the best mask that the teacher answers is the instance.
    teacher_instances: int = 0
    box_share: float = 0.5  # share of instances prompted by a box, the others by points
    box_points_share: float = 0.0  # share of the box prompts that have points as well
    box_jitter: float = 0.1  # SAM paper, appendix A: noise of std 10 % of the side ...
    box_jitter_max_pixels: float = 20.0  # ... at most 20 pixels, in a 1024-pixel prompt frame
    min_points: int = 1
    max_points: int = 3  # points per prompt: uniform in min_points..max_points, the same for all prompts of a step
    points: Literal["uniform", "centre"] = "uniform"  # in the mask; centre: the first at its centre, as evaluation does
    max_negative_points: int = 0  # points outside the mask, uniform in 0..max_negative_points, beside the others
    refine_clicks: int = 0  # rounds with a click each: 8 in the SAM paper, appendix A; 1 in EdgeSAM
    mask_only_rounds: int = 0  # rounds without a click: 2 in the SAM paper, the last at the end, others anywhere
    click: Literal["uniform", "centre"] = "uniform"  # in the error (SAM, EdgeSAM); centre: of the largest, as in RITM
    min_error_cells: int = 1  # a smaller error gets no click: 10 cells of the low-res mask in EdgeSAM
    feed_logits: bool = True  # later rounds see the mask answered before (SAM); EdgeSAM: no
    multimask: bool = True  # prompts train the three masks of the multimask output too, the best one counts
    multimask_on_box: bool = True  # so do those with a box (EdgeSAM: no)
    multimask_refined: bool = True  # and those of later rounds (SAM paper, appendix A: no)


@dataclass
class DecoderConfig:
    """How the mask decoder is run: changes speed and memory, not the result."""

    prompts_per_chunk: int = 0  # 0: all prompts of a batch at once
    checkpointing: bool = False  # a chunk's activations are computed again in the backward pass


@dataclass
class OptimConfig:
    """AdamW with warm-up and cosine decay per step."""

    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 0
    final_lr_share: float = 0.0  # learning rate of the last step, as a share of lr
    encoder_lr_scale: float = 1.0  # multiples of lr per part; 0 freezes the part
    prompt_encoder_lr_scale: float = 1.0
    mask_decoder_lr_scale: float = 1.0
    batch_norm: Literal["train", "frozen"] = "train"  # frozen: running statistics are used and stay as they are
    ema_decay: float = 0.0  # 0: no averaged weights


@dataclass
class ValidationConfig:
    """What is measured on the held-out shards while training."""

    every_n_steps: int = 500
    max_images: int = 200
    max_instances: int = 10  # per image
    num_pictures: int = 4


@dataclass
class FeatureRecipe:
    """Stage 1: the student's embedding is trained to match the teacher's."""

    kind: Literal["feature"] = "feature"
    run: str = MISSING  # output directory
    resume: bool = False
    seed: int = 0
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    loss: FeatureLossConfig = field(default_factory=FeatureLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    logger: list[str] = field(default_factory=lambda: ["tensorboard"])  # beside metrics.jsonl; also csv, wandb, mlflow
    trainer: dict[str, Any] = field(default_factory=dict)  # passed to lightning.Trainer as it is


@dataclass
class MaskRecipe:
    """Stage 2: encoder and decoder are trained end to end on prompted masks."""

    kind: Literal["mask"] = "mask"
    run: str = MISSING
    resume: bool = False
    seed: int = 0
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    targets: TargetConfig = field(default_factory=TargetConfig)
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    logger: list[str] = field(default_factory=lambda: ["tensorboard"])
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass
class CacheDataConfig:
    images: str = MISSING  # a directory of SA-1B-format tars, or its address (s3://, hf://, https://)
    max_bad_share: float = 0.01


@dataclass
class CacheRecipe:
    """A teacher-embedding caching job."""

    kind: Literal["cache"] = "cache"
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: CacheDataConfig = field(default_factory=CacheDataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass
class EvaluateDataConfig:
    images: str = MISSING  # a directory of photographs
    annotations: str = MISSING  # a COCO-format instances JSON, or LVIS's
    max_images: int = 0  # 0: all
    format: Literal["coco", "lvis"] = "coco"  # LVIS has rules of its own for AP
    detections: Optional[str] = None  # prompt.kind=detection: a detector's results JSON


@dataclass
class EvaluatePromptConfig:
    # the annotation's own box | simulated clicks on each annotated instance | the boxes of data.detections
    kind: Literal["box", "point", "detection"] = "box"
    num_clicks: int = 1  # kind=point: simulated clicks


@dataclass
class EvaluateRecipe:
    """A protocol by which any model is judged."""

    kind: Literal["evaluate"] = "evaluate"
    protocol: str = ""  # its name in tables
    run: str = MISSING
    resume: bool = False
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    prompt: EvaluatePromptConfig = field(default_factory=EvaluatePromptConfig)
    # token 0 | the best of the three others by predicted IoU | the best of them by true IoU, an upper bound
    multimask: Literal["single", "best", "oracle"] = "single"
    prompt_batch_size: int = 64  # on a CPU at most 16 go together; this and the next two change the speed alone
    num_workers: Optional[int] = None  # processes that read photos and compare masks; null: by cores and photos
    fuse: bool = True  # batch norms folded into convolutions


@dataclass
class EvaluateSetsRecipe:
    """One protocol over many sets, as segmentation in the wild: the mean of the sets' AP."""

    kind: Literal["evaluate_sets"] = "evaluate_sets"
    protocol: str = ""
    run: str = MISSING
    resume: bool = False
    sets: dict[str, Any] = field(default_factory=dict)  # NAME: {images, annotations, detections, format}
    max_images: int = 0  # of each set; 0: all
    multimask: Literal["single", "best"] = "single"
    prompt_batch_size: int = 64
    num_workers: Optional[int] = None
    fuse: bool = True


@dataclass
class GridConfig:
    """The automatic mask generator: prompts on a grid, and which of their masks are kept."""

    points_per_side: int = 32  # this to box_nms_threshold: segment_anything/automatic_mask_generator.py
    points_per_batch: int = 64
    predicted_iou_threshold: float = 0.88
    stability_threshold: float = 0.95
    box_nms_threshold: float = 0.7
    max_masks: int = 1000  # of a photo, the best by the mean of predicted IoU and stability


@dataclass
class EverythingRecipe:
    """Segment everything: average recall of masks that nobody asked for."""

    kind: Literal["everything"] = "everything"
    protocol: str = ""
    run: str = MISSING
    resume: bool = False
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    num_workers: Optional[int] = None
    fuse: bool = True


@dataclass
class AgreementDataConfig:
    images: str = MISSING  # a directory of photographs; no annotations
    max_images: int = 0  # 0: all


@dataclass
class AgreementPromptConfig:
    kind: Literal["box", "point"] = "box"  # points of a grid | boxes of the teacher's masks at these points
    points_per_side: int = 4


@dataclass
class AgreementRecipe:
    """How much a model answers as its teacher does, on photographs without annotations."""

    kind: Literal["agreement"] = "agreement"
    protocol: str = ""
    run: str = MISSING
    resume: bool = False
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: AgreementDataConfig = field(default_factory=AgreementDataConfig)
    prompt: AgreementPromptConfig = field(default_factory=AgreementPromptConfig)
    multimask: Literal["single", "best"] = "single"
    prompt_batch_size: int = 64
    num_workers: Optional[int] = None
    fuse: bool = True


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
SET_FIELDS = ("images", "annotations", "detections")  # what each of an EvaluateSetsRecipe's sets must have
