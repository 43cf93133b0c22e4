"""The names that a recipe may hold: students, teachers, views of a photo, and loggers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from distill.errors import DistillError, did_you_mean
from distill.students import STUDENTS, check_student_name

PACKAGED_MODELS = ("quickstart",)
FROM_TEACHER = "teacher"  # of student.init_from
TIMM_HUB = "timm"  # of student.pretrained
IDENTITY, HFLIP = "identity", "hflip"
VIEWS = (IDENTITY, HFLIP)  # what a cache may hold of a photo: the photo as it is, and flipped left to right
# The names that `logger` takes, each with the package that it needs beside ours.
LOGGERS = {"tensorboard": None, "csv": None, "wandb": "wandb", "mlflow": "mlflow"}


def student_mistakes(name: str) -> Iterator[str]:
    """Yield a message if no student has this name."""
    try:
        check_student_name(name)
    except DistillError as error:
        yield str(error)


def teacher_mistakes(name: str) -> Iterator[str]:
    """Yield a message if this is neither the name of a teacher nor a path."""
    known = (*PACKAGED_MODELS, *STUDENTS)
    if name not in known and not is_path(name):
        yield f"unknown teacher '{name}'. {did_you_mean(name, known)} Or the path of a student.safetensors."


def view_mistakes(views: Sequence[str]) -> Iterator[str]:
    """Yield a message for each reason why no cache can hold these views."""
    for view in views:
        if view not in VIEWS:
            yield f"unknown view '{view}'. {did_you_mean(view, VIEWS)}"
    if list(views[:1]) != [IDENTITY] or len(set(views)) < len(views):
        yield f"must begin with '{IDENTITY}' and hold each view once, got {list(views)}"


def logger_mistakes(names: Sequence[str]) -> Iterator[str]:
    """Yield a message for each unknown logger."""
    for name in names:
        if name not in LOGGERS:
            yield f"unknown logger '{name}'. {did_you_mean(name, LOGGERS)}"


def is_path(name: str) -> bool:
    """Return whether a model's name is meant as a path."""
    return "/" in name or "\\" in name or name.endswith((".safetensors", ".ckpt")) or Path(name).exists()


def is_local(value: str) -> bool:
    """Return whether a path is one of this machine, and no address such as s3://..."""
    return "://" not in value


def is_teacher_path(name: str) -> bool:
    """Return whether a teacher's name is a path and not a known name."""
    return name not in (*PACKAGED_MODELS, *STUDENTS) and is_path(name)


def is_start_path(value: str) -> bool:
    """Return whether what a student starts from is a path and not a name."""
    return value not in (*PACKAGED_MODELS, FROM_TEACHER, TIMM_HUB)
