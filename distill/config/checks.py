"""What a recipe must satisfy beyond its types: the rule of each option, combinations of options, and existing files.

Every check takes the sound values of a recipe by dotted key, skips absent options, and yields findings: (key, message).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from distill.config.named_data import SET_ROOT, SplitName, datasets_root, parse_split_name, set_folder, shards_folder
from distill.config.names import FROM_TEACHER, HFLIP, LOGGERS, PACKAGED_MODELS, TIMM_HUB, is_path
from distill.config.options import Option
from distill.config.schema import (
    ASKS_TEACHER,
    EVALUATIONS,
    SET_FIELDS,
    FeatureLossConfig,
    MaskLossConfig,
)
from distill.config.trainer import SHARDED, machine_findings, trainer_findings
from distill.errors import did_you_mean
from distill.students import STUDENTS
from distill.students.published import PUBLISHED
from distill.students.timm_names import TIMM_PREFIX

Values = Mapping[str, Any]
Finding = tuple[str, str]

FEATURE_TERMS = tuple(field.name for field in fields(FeatureLossConfig))
MASK_TERMS = tuple(field.name for field in fields(MaskLossConfig) if field.name.endswith("_weight"))


def value_findings(values: Values, options: Mapping[str, Option]) -> list[Finding]:
    """Return the mistakes that can be seen in the recipe alone. `options` are those of its dataclass."""
    found = [finding for key, value in values.items() for finding in options[key].rule.findings(key, value)]
    checks: tuple[Callable[[Values], Iterable[Finding]], ...] = (
        _loss_terms,
        _prompts,
        _trained_parts,
        _pretrained,
        _embeddings,
        _flipped_photos,
        _evaluated,
        _student_of,
        _trainer,
    )
    return found + [finding for check in checks for finding in check(values)]


def path_findings(values: Values) -> list[Finding]:
    """Return the files, directories and packages that the recipe needs and this machine does not have."""
    checks: tuple[Callable[[Values], Iterable[Finding]], ...] = (
        _run,
        _models,
        _data,
        _cache,
        _logger_packages,
        _machine,
    )
    return [finding for check in checks for finding in check(values)]


def _loss_terms(values: Values) -> Iterable[Finding]:
    for terms in FEATURE_TERMS, MASK_TERMS:
        weights = [values.get(f"loss.{term}") for term in terms]
        if all(weight == 0 for weight in weights):
            yield "loss", f"every weight is 0, so nothing is learned; set one of {', '.join(terms)}"
    others = any(values.get(option) for option in ASKS_TEACHER if option.startswith("loss."))
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


def _pretrained(values: Values) -> Iterable[Finding]:
    student = values.get("student.name")
    if student is None or values.get("student.pretrained") is None:
        return
    if not student.startswith(TIMM_PREFIX):
        mend = "others start from released files: student.init_from=FILE"
        yield "student.pretrained", f"is for students named {TIMM_PREFIX}NAME; {mend}"
    elif values.get("student.init_from") is not None:
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


def _flipped_photos(values: Values) -> Iterable[Finding]:
    views = values.get("cache.views")
    if values.get("data.hflip") and views is not None and HFLIP not in views and _reads_cache(values):
        yield (
            "data.hflip",
            "the embedding of a flipped photo is not the flipped embedding: build the cache with "
            "cache.views=[identity,hflip] and say so here too, or run the teacher while training: "
            "teacher.source=online",
        )


def _reads_cache(values: Values) -> bool:
    """Return whether a run takes the teacher's embeddings from a cache."""
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
    yield from _clicks(values)
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


def _clicks(values: Values) -> Iterable[Finding]:
    """Yield options for clicks that have no effect or contradict others."""
    targets, stop = values.get("prompt.noc") or [], values.get("prompt.stop_iou")
    by_click, after_box = values.get("prompt.kind") == "point", bool(values.get("prompt.refine_clicks"))
    for key in ("prompt.noc", "prompt.stop_iou", "multimask_later"):
        if values.get(key) and not (by_click or (after_box and key != "prompt.noc")):
            yield key, "is for clicks; set prompt.kind=point, or leave it out"
    if targets and by_click and values.get("prompt.num_clicks") == 1:
        yield "prompt.noc", "one click cannot be counted; raise prompt.num_clicks, to 20 as in RITM's protocol"
    if after_box and values.get("prompt.kind") != "box":
        yield "prompt.refine_clicks", "follow a box; set prompt.kind=box, or give prompt.num_clicks"
    if len(set(targets)) < len(targets):
        yield "prompt.noc", f"holds a target twice: {targets}"
    if stop is not None and targets and stop < max(targets):
        yield "prompt.stop_iou", f"must be at least the highest of prompt.noc={targets}, got {stop}"
    if values.get("instances.empty") and by_click and values.get("prompt.without_error") == "stop":
        yield "instances.empty", "a mask without a pixel has no first click; set prompt.without_error=corner"


def _student_of(values: Values) -> Iterable[Finding]:
    if values.get("checkpoint.student") != "best":
        return
    if values.get("data.val_images") is None:
        yield "checkpoint.student", "the best step is found by validation, and data.val_images is not set; set it"
    if values.get("checkpoint.keep_best") == 0:
        yield "checkpoint.student", "the best step is not kept with checkpoint.keep_best=0; raise it"


def _trainer(values: Values) -> Iterable[Finding]:
    if "trainer" not in values:
        return
    yield from trainer_findings(values["trainer"])
    strategy = str(values["trainer"].get("strategy"))
    if values.get("optim.ema_decay") and strategy.startswith(SHARDED):
        mend = "give optim.ema_decay=0, or trainer.strategy=ddp"
        yield "optim.ema_decay", f"lightning cannot average weights that '{strategy}' divides among devices; {mend}"


def _machine(values: Values) -> Iterable[Finding]:
    return machine_findings(values["trainer"]) if "trainer" in values else ()


def _run(values: Values) -> Iterable[Finding]:
    if values.get("run") is None:
        return
    run = Path(values["run"])
    there = next(path for path in (run, *run.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        yield "run", f"'{there}' is a file; give a directory: run=DIR"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield "run", f"'{there}' cannot be written; give a directory that can: run=DIR"


def _models(values: Values) -> Iterable[Finding]:
    teacher, checkpoint = values.get("teacher.name"), values.get("teacher.checkpoint")
    if teacher in STUDENTS and "teacher.checkpoint" in values and checkpoint is None:
        expected = PUBLISHED.get(teacher, "its released file")
        yield "teacher.checkpoint", f"missing; '{teacher}' needs {expected}: teacher.checkpoint=FILE"
    if checkpoint is not None and not Path(checkpoint).is_file():
        expected = f"; expected {PUBLISHED[teacher]}" if teacher in PUBLISHED else ""
        yield "teacher.checkpoint", f"no such file: '{checkpoint}'{expected}"
    if teacher is not None and is_path(teacher) and not Path(teacher).exists():
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
        if (name := parse_split_name(value)) is not None:
            yield from ((key, problem) for problem in _named_problems(name, reads_shards=reads_shards))
        elif not Path(value).is_dir():
            yield key, f"no such directory: '{value}'"
        elif reads_shards and not any(Path(value).glob("*.tar")):
            yield key, f"no .tar in '{value}'; `distill shards build` makes them from photos"
    for key in ("data.annotations", "data.detections"):
        value = values.get(key)
        if value is not None and not _is_file_or_name(value):
            yield key, f"no such file: '{value}'"
    for set_name, one in (values.get("sets") or {}).items():
        if isinstance(one, dict):
            yield from ((f"sets.{set_name}.{key}", problem) for key, problem in _set_problems(one))


def _set_problems(one: dict[str, Any]) -> Iterable[Finding]:
    """Yield what is missing of one of the sets of an `evaluate_sets` recipe."""
    if images := one.get("images"):
        if (name := parse_split_name(str(images))) is not None:
            yield from (("images", problem) for problem in _named_problems(name, reads_shards=False))
        elif not Path(str(images)).is_dir():
            yield "images", f"no such directory: '{images}'"
    for key in ("annotations", "detections"):
        if one.get(key) and not _is_file_or_name(str(one[key])):
            yield key, f"no such file: '{one[key]}'"


def _named_problems(name: SplitName, *, reads_shards: bool) -> Iterable[str]:
    """Yield why a public set cannot be read. That the split exists is checked when it is opened."""
    root = datasets_root()
    folder = set_folder(root, name.dataset)
    if folder is None or (root is None and reads_shards):
        yield f"no such directory: '{name}'; for the public set of this name, {SET_ROOT}"
        return
    if root is not None and reads_shards and name.split:
        folder = shards_folder(root, name)
    if not folder.is_dir():
        yield f"no such directory: '{name}'; the public set of this name is not prepared: run '{name.prepare_command}'"


def _is_file_or_name(value: str) -> bool:
    """Return whether a value is a file, or names a public set, which `data.images` is checked for."""
    return Path(value).is_file() or parse_split_name(value) is not None


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
