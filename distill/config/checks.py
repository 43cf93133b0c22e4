"""What a recipe's values must satisfy beyond their types: ranges, names, combinations, and files that exist.

Every check takes the sound values of a recipe by dotted key, skips what is absent, and gives findings: (key, message).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from distill.config.schema import ASKS_TEACHER, EVALUATIONS, FROM_TEACHER, SET_FIELDS, TIMM_HUB
from distill.errors import DistillError, did_you_mean
from distill.students import STUDENTS, TIMM_PREFIX, check_student_name
from distill.students.published import PUBLISHED

Values = Mapping[str, Any]
Finding = tuple[str, str]

PACKAGED_MODELS = ("quickstart",)
CACHED_VIEWS = ("identity", "hflip")  # distill.data.cache.views: what a cache may hold of a photo

# Lightning's own arguments; a test compares them with the installed lightning.
TRAINER_ARGUMENTS = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "logger",
    "callbacks",
    "fast_dev_run",
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "max_time",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "log_every_n_steps",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "deterministic",
    "benchmark",
    "inference_mode",
    "use_distributed_sampler",
    "profiler",
    "detect_anomaly",
    "barebones",
    "plugins",
    "sync_batchnorm",
    "reload_dataloaders_every_n_epochs",
    "default_root_dir",
    "enable_autolog_hparams",
    "model_registry",
)
# Arguments that `distill train` fills itself, and what to use in their place.
TRAINER_TAKEN = {
    "logger": "use logger: [tensorboard, csv]; the run directory always gets metrics.jsonl too",
    "callbacks": "a recipe names no code",
    "plugins": "a recipe names no code",
    "default_root_dir": "use run",
    "enable_checkpointing": "the run directory always gets checkpoints",
    "barebones": "the run directory always gets checkpoints and logs",
    "val_check_interval": "use validation.every_n_steps",
    "check_val_every_n_epoch": "use validation.every_n_steps",
    "use_distributed_sampler": "the loading plan already gives each rank its share",
}
# The names that `logger` takes, each with the package that it needs beside ours.
LOGGERS = {"tensorboard": None, "csv": None, "wandb": "wandb", "mlflow": "mlflow"}
TRAINER_LENGTH = ("max_steps", "max_epochs", "fast_dev_run")  # max_time alone gives the schedule no end

AT_LEAST = {
    "seed": 0,
    "student.image_size": 1,
    "data.batch_size": 1,
    "data.num_workers": 0,
    "data.max_instances": 1,
    "data.max_images": 0,
    "cache.batch_size": 1,
    "loss.mse": 0,
    "loss.cosine": 0,
    "loss.huber": 0,
    "loss.relation": 0,
    "loss.mask_weight": 0,
    "loss.dice_weight": 0,
    "loss.iou_weight": 0,
    "loss.feature_weight": 0,
    "loss.num_points": 0,
    "loss.logit_weight": 0,
    "loss.teacher_iou_weight": 0,
    "targets.truth_weight": 0,
    "targets.teacher_weight": 0,
    "decoder.prompts_per_chunk": 0,
    "prompts.box_jitter": 0,
    "prompts.box_jitter_max_pixels": 0,
    "prompts.teacher_instances": 0,
    "prompts.min_points": 1,
    "prompts.max_points": 1,
    "prompts.max_negative_points": 0,
    "prompts.refine_clicks": 0,
    "prompts.mask_only_rounds": 0,
    "prompts.min_error_cells": 1,
    "optim.weight_decay": 0,
    "optim.warmup_steps": 0,
    "optim.encoder_lr_scale": 0,
    "optim.prompt_encoder_lr_scale": 0,
    "optim.mask_decoder_lr_scale": 0,
    "validation.every_n_steps": 1,
    "validation.max_images": 1,
    "validation.max_instances": 1,
    "validation.num_pictures": 0,
    "prompt.num_clicks": 1,
    "prompt.points_per_side": 1,
    "prompt_batch_size": 1,
    "max_images": 0,
    "num_workers": 0,
    "grid.points_per_side": 1,
    "grid.points_per_batch": 1,
    "grid.max_masks": 1,
}
FEATURE_TERMS = ("mse", "cosine", "huber", "relation")
MASK_TERMS_OF_TEACHER = ("logit_weight", "teacher_iou_weight", "feature_weight")
MASK_TERMS = ("mask_weight", "dice_weight", "iou_weight", *MASK_TERMS_OF_TEACHER)
SHARES = (
    "data.max_bad_share",
    "prompts.box_share",
    "prompts.box_points_share",
    "optim.final_lr_share",
    "grid.box_nms_threshold",
)

MISSING_MENDS = {
    "run": "the directory to write: run=DIR",
    "student.name": "the encoder to train: student.name=NAME",
    "data.images": "the directory of images: data.images=DIR",
    "student.init_from": "the run directory that this stage starts from: student.init_from=DIR",
    "cache.dir": "the directory of teacher embeddings: cache.dir=DIR",
    "data.annotations": "a COCO-format instances file: data.annotations=FILE",
    "data.detections": "a detector's results JSON: data.detections=FILE",
}


def missing_message(key: str) -> str:
    """The message for a required option that nothing sets."""
    return f"missing; give {MISSING_MENDS.get(key, f'{key}=VALUE')}"


def value_findings(values: Values) -> list[Finding]:
    """The mistakes that can be seen in the recipe alone."""
    checks: tuple[Callable[[Values], Iterable[Finding]], ...] = (
        _ranges,
        _loss_terms,
        _prompts,
        _trained_parts,
        _names,
        _embeddings,
        _views,
        _evaluated,
        _trainer,
        _loggers,
    )
    return [finding for check in checks for finding in check(values)]


def path_findings(values: Values) -> list[Finding]:
    """The files, directories and packages that the recipe needs and this machine does not have."""
    checks: tuple[Callable[[Values], Iterable[Finding]], ...] = (_models, _data, _cache, _logger_packages)
    return [finding for check in checks for finding in check(values)]


def _ranges(values: Values) -> Iterable[Finding]:
    for key, least in AT_LEAST.items():
        value = values.get(key)
        if value is not None and not value >= least:  # nan fails too
            yield key, f"must be at least {least}, got {value}"
    for key in SHARES:
        value = values.get(key)
        if value is not None and not 0 <= value <= 1:
            yield key, f"must be between 0 and 1, got {value}"
    lr = values.get("optim.lr")
    if lr is not None and not 0 < lr < float("inf"):
        yield "optim.lr", f"must be above 0, got {lr}"
    decays = {f"optim.betas[{i}]": beta for i, beta in enumerate(values.get("optim.betas") or ())}
    for key, decay in {**decays, "optim.ema_decay": values.get("optim.ema_decay", 0.0)}.items():
        if not 0 <= decay < 1:
            yield key, f"must be at least 0 and below 1, got {decay}"


def _loss_terms(values: Values) -> Iterable[Finding]:
    for terms in FEATURE_TERMS, MASK_TERMS:
        weights = [values.get(f"loss.{term}") for term in terms]
        if all(weight == 0 for weight in weights):
            yield "loss", f"every weight is 0, so nothing is learned; set one of {', '.join(terms)}"
    others = any(values.get(f"loss.{term}") for term in MASK_TERMS_OF_TEACHER)
    if values.get("targets.truth_weight") == 0 == values.get("targets.teacher_weight") and not others:
        yield "targets", "both weights are 0, so masks are compared with nothing; set truth_weight or teacher_weight"


def _prompts(values: Values) -> Iterable[Finding]:
    least, most = values.get("prompts.min_points"), values.get("prompts.max_points")
    if least is not None and most is not None and least > most:
        yield "prompts.min_points", f"must be at most prompts.max_points={most}, got {least}"
    if values.get("prompts.teacher_instances") and values.get("targets.truth_weight"):
        mend = "set targets.truth_weight=0 and targets.teacher_weight=1"
        yield "prompts.teacher_instances", f"the instances are the teacher's, so there is no ground truth: {mend}"


def _trained_parts(values: Values) -> Iterable[Finding]:
    kind = values.get("kind")
    parts = ("encoder",) if kind == "feature" else ("encoder", "prompt_encoder", "mask_decoder")
    if kind in ("feature", "mask") and all(values.get(f"optim.{part}_lr_scale") == 0 for part in parts):
        yield "optim", f"every part is frozen, so nothing is learned; raise {', '.join(f'{p}_lr_scale' for p in parts)}"


def _names(values: Values) -> Iterable[Finding]:
    student = values.get("student.name")
    if student is not None:
        try:
            check_student_name(student)
        except DistillError as error:
            yield "student.name", str(error)
        if values.get("student.pretrained") is not None:
            yield from _pretrained(student, values.get("student.init_from"))
    teacher = values.get("teacher.name")
    known = (*PACKAGED_MODELS, *STUDENTS)
    if teacher is not None and teacher not in known and not _is_path(teacher):
        hint = did_you_mean(teacher, known)
        yield "teacher.name", f"unknown teacher '{teacher}'. {hint} Or the path of a student.safetensors."


def _pretrained(student: str, init_from: str | None) -> Iterable[Finding]:
    if not student.startswith(TIMM_PREFIX):
        mend = "others start from released files: student.init_from=FILE"
        yield "student.pretrained", f"is for students named {TIMM_PREFIX}NAME; {mend}"
    elif init_from is not None:
        yield "student.pretrained", "student.init_from says already what the student starts from; leave one out"


def _embeddings(values: Values) -> Iterable[Finding]:
    kind, source = values.get("kind"), values.get("teacher.source")
    has_cache = values.get("cache.dir") is not None
    if kind == "cache" and not has_cache:
        yield "cache.dir", "missing; give the directory to write: cache.dir=DIR"
    if source == "cache" and "cache.dir" in values and not has_cache:
        mend = "give the directory that `distill cache build` wrote: cache.dir=DIR"
        if kind == "feature":
            yield "cache.dir", f"missing; {mend}, or run the teacher while training: teacher.source=online"
        asking = [option for option in ASKS_TEACHER if values.get(option)]
        if kind == "mask" and asking:
            online = "run the teacher while training: teacher.source=online"
            yield "cache.dir", f"missing; {asking[0]} needs the teacher's embeddings: {mend}, or {online}"


def _views(values: Values) -> Iterable[Finding]:
    views = values.get("cache.views")
    if views is None:
        return
    for view in views:
        if view not in CACHED_VIEWS:
            yield "cache.views", f"unknown view '{view}'. {did_you_mean(view, CACHED_VIEWS)}"
    if list(views[:1]) != [CACHED_VIEWS[0]] or len(set(views)) < len(views):
        yield "cache.views", f"must begin with '{CACHED_VIEWS[0]}' and hold each view once, got {list(views)}"
    if values.get("data.hflip") and "hflip" not in views and _reads_cache(values):
        yield (
            "data.hflip",
            "the embedding of a flipped photo is not the flipped embedding: build the cache with "
            "cache.views=[identity,hflip] and say so here too, or run the teacher while training: "
            "teacher.source=online",
        )


def _reads_cache(values: Values) -> bool:
    """Whether a run takes the teacher's embeddings from a cache."""
    if values.get("teacher.source") != "cache":
        return False
    kind = values.get("kind")
    return kind == "feature" or (kind == "mask" and any(values.get(option) for option in ASKS_TEACHER))


def _evaluated(values: Values) -> Iterable[Finding]:
    by_detection, detections = values.get("prompt.kind") == "detection", values.get("data.detections")
    if by_detection and "data.detections" in values and detections is None:
        yield "data.detections", "missing; give a detector's results JSON: data.detections=FILE"
    if by_detection and values.get("multimask") == "oracle":
        yield "multimask", "a detector's box has no truth to choose by; give multimask=single or multimask=best"
    if detections is not None and not by_detection:
        yield "data.detections", "is read with prompt.kind=detection alone; leave it out, or set that"
    if values.get("kind") != "evaluate_sets":
        return
    sets = values.get("sets") or {}
    if not sets:
        yield "sets", f"is empty; give a recipe with sets: {{NAME: {{{', '.join(SET_FIELDS)}}}, ...}}"
    for name, one in sets.items():
        if not isinstance(one, dict):
            yield f"sets.{name}", f"expected a section with {', '.join(SET_FIELDS)}, got {one!r}"
            continue
        for key in SET_FIELDS:
            if not one.get(key):
                yield f"sets.{name}.{key}", f"missing; a set needs {', '.join(SET_FIELDS)}"
        for key in one:
            if key not in (*SET_FIELDS, "format"):
                yield f"sets.{name}.{key}", f"unknown key. {did_you_mean(key, (*SET_FIELDS, 'format'))}"
        if one.get("format", "coco") not in ("coco", "lvis"):
            yield f"sets.{name}.format", f"expected one of coco, lvis, got {one['format']!r}"


def _trainer(values: Values) -> Iterable[Finding]:
    trainer = values.get("trainer")
    if trainer is None:
        return
    for name in trainer:
        if name in TRAINER_TAKEN:
            yield f"trainer.{name}", f"is set by distill: {TRAINER_TAKEN[name]}"
        elif name not in TRAINER_ARGUMENTS:
            yield f"trainer.{name}", f"lightning.Trainer has no such argument. {did_you_mean(name, TRAINER_ARGUMENTS)}"
    if not any(trainer.get(name) not in (None, -1, False) for name in TRAINER_LENGTH):
        yield "trainer", "says no length; give trainer.max_steps=N or trainer.max_epochs=N"


def _loggers(values: Values) -> Iterable[Finding]:
    for name in values.get("logger") or ():
        if name not in LOGGERS:
            yield "logger", f"unknown logger '{name}'. {did_you_mean(name, LOGGERS)}"


def _models(values: Values) -> Iterable[Finding]:
    teacher, checkpoint = values.get("teacher.name"), values.get("teacher.checkpoint")
    if teacher in STUDENTS and "teacher.checkpoint" in values and checkpoint is None:
        expected = PUBLISHED.get(teacher, "its released file")
        yield "teacher.checkpoint", f"missing; '{teacher}' needs {expected}: teacher.checkpoint=FILE"
    if checkpoint is not None and not Path(checkpoint).is_file():
        expected = f"; expected {PUBLISHED[teacher]}" if teacher in PUBLISHED else ""
        yield "teacher.checkpoint", f"no such file: '{checkpoint}'{expected}"
    if teacher is not None and _is_path(teacher) and not Path(teacher).exists():
        yield "teacher.name", f"no such file or run directory: '{teacher}'"
    init_from, pretrained = values.get("student.init_from"), values.get("student.pretrained")
    if init_from not in (None, FROM_TEACHER, *PACKAGED_MODELS) and not Path(init_from).exists():
        yield "student.init_from", f"no such file or run directory: '{init_from}'"
    if pretrained not in (None, TIMM_HUB) and not Path(pretrained).is_file():
        yield "student.pretrained", f"no such file: '{pretrained}'; give one, or '{TIMM_HUB}' for timm's hub"


def _data(values: Values) -> Iterable[Finding]:
    reads_shards = values.get("kind") not in EVALUATIONS
    for key in ("data.images", "data.val_images"):
        value = values.get(key)
        if value is None or (reads_shards and "://" in value):  # remote shards are looked for when they are opened
            continue
        if not Path(value).is_dir():
            yield key, f"no such directory: '{value}'"
        elif reads_shards and not any(Path(value).glob("*.tar")):
            yield key, f"no .tar in '{value}'; `distill shards build` makes them from photos"
    for key in ("data.annotations", "data.detections"):
        value = values.get(key)
        if value is not None and not Path(value).is_file():
            yield key, f"no such file: '{value}'"
    for name, one in (values.get("sets") or {}).items():
        if isinstance(one, dict) and one.get("images") and not Path(str(one["images"])).is_dir():
            yield f"sets.{name}.images", f"no such directory: '{one['images']}'"
        for key in ("annotations", "detections"):
            if isinstance(one, dict) and one.get(key) and not Path(str(one[key])).is_file():
                yield f"sets.{name}.{key}", f"no such file: '{one[key]}'"


def _cache(values: Values) -> Iterable[Finding]:
    directory = values.get("cache.dir")
    if directory is None or "://" in directory:  # a remote cache is looked for when it is opened
        return
    if _reads_cache(values) and not Path(directory).is_dir():
        yield "cache.dir", f"no such directory: '{directory}'; `distill cache build` makes it"


def _logger_packages(values: Values) -> Iterable[Finding]:
    for name in values.get("logger") or ():
        package = LOGGERS.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            yield "logger", f"'{name}' needs the package {package}, which is not installed: pip install {package}"


def _is_path(name: str) -> bool:
    """Whether a model's name is meant as a path."""
    return "/" in name or "\\" in name or name.endswith(".safetensors") or Path(name).exists()
