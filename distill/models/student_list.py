"""The list of students: which names match a pattern, and what each student costs."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from distill.errors import DistillError, did_you_mean
from distill.students import STUDENTS, check_student_name, plugins
from distill.students.timm_names import TIMM_PREFIX

OWN_DECODER = "its encoder only; its own decoder is not supported"


@dataclass(frozen=True)
class StudentSummary:
    """One line of the list.

    image_size: side S of the student's input in pixels; None if its package cannot be imported.
    num_parameters, macs: of the image encoder, for SAM's embedding; None if it cannot be built.
    summary: what the student is.
    published: the released checkpoints that fit; empty if there are none.
    problem: why the student cannot be imported or built.
    """

    name: str
    image_size: int | None
    num_parameters: int | None
    macs: int | None
    summary: str
    published: str
    problem: str | None = None


def find_students(pattern: str) -> list[str]:
    """Return the students whose names match a pattern, or contain it if it has no wildcard.

    Students of other packages are found too. timm's backbones are found only if the pattern begins with timm/.

    Raises:
        DistillError: no student matches.
    """
    known: Iterable[str] = [*STUDENTS, *plugins()]
    if pattern.startswith(TIMM_PREFIX):
        import timm

        known = [TIMM_PREFIX + name for name in timm.list_models()]
    exact = [name for name in known if name == pattern] or _timm_with_options(pattern)
    found = exact or fnmatch.filter(known, pattern if _has_wildcard(pattern) else f"*{pattern}*")
    if not found:
        raise DistillError(f"no student matches '{pattern}'. {did_you_mean(pattern, known)}")
    return found


def _has_wildcard(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _timm_with_options(pattern: str) -> list[str]:
    """Return the pattern if it is a complete timm name with a tag, levels or a neck; else nothing."""
    has_options = pattern.startswith(TIMM_PREFIX) and any(sign in pattern for sign in ".@+")
    return [pattern] if has_options and not _has_wildcard(pattern) else []


def summarise_student(name: str) -> StudentSummary:
    """Count a student's parameters and multiply-adds, on torch's meta device: without its memory and in little time."""
    from distill.models.complexity import count_encoder  # here, so that a wrong pattern is refused without torch

    try:
        entry = check_student_name(name)
    except DistillError as error:  # of a plug-in; the others are still listed
        return StudentSummary(name, None, None, None, "", "", str(error))
    published = f"{entry.published}; {OWN_DECODER}" if entry.own_decoder else entry.published
    try:
        num_parameters, macs = count_encoder(name)
    except (DistillError, RuntimeError, NotImplementedError, ValueError, TypeError, AssertionError) as error:
        problem = f"{type(error).__name__}: {error}"
        return StudentSummary(name, entry.image_size, None, None, entry.summary, published, problem)
    return StudentSummary(name, entry.image_size, num_parameters, macs, entry.summary, published)
