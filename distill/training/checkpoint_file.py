"""The checkpoint that a run goes on from, read and checked before anything is built on it or written."""

from __future__ import annotations

import contextlib
import pickle
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import lightning
import msgspec
import torch
from msgspec import Meta
from packaging.version import InvalidVersion, Version
from torch import Tensor
from torch.optim import Optimizer

from distill.errors import RunError
from distill.outside import Count, reason
from distill.text import first_few
from distill.training.position import Position, read_position

LISTS, MAPPINGS = ("optimizer_states", "lr_schedulers"), ("state_dict", "callbacks")
RECIPE_KEY = "distill_recipe"  # the options that the last steps had, and all changes before (distill.training.changes)
AVERAGED_FROM = "current_model_state"  # Lightning's weight averaging keeps the weights in training under this name
AGAIN = "start again in another directory: run=DIR"


class _Changed(msgspec.Struct):
    """A change of the recipe, as a checkpoint keeps it."""

    step: Count
    key: str
    before: Any
    after: Any


class _KeptRecipe(msgspec.Struct):
    """The content of a checkpoint under RECIPE_KEY."""

    options: dict[str, Any]
    history: list[_Changed]
    teacher_sha256: str


class _Cost(msgspec.Struct):
    seconds: Annotated[float, Meta(ge=0, le=1e12)]
    photos: Count


class _Best(msgspec.Struct):
    metric: str
    scores: dict[int, float]


CALLBACK_STATES: dict[str, type[msgspec.Struct]] = {"CostRecord": _Cost, "BestCheckpoints": _Best}


def read_checkpoint(path: Path) -> tuple[dict[str, Any], Position]:
    """Read a checkpoint of a training and the position that it was written at. Its tensors stay on the disk until used.

    Raises:
        RunError: the file is damaged, would run code, or is not a checkpoint of a training of ours.
    """
    try:
        return _read(path)
    except RunError as error:
        raise RunError(f"{error}; {_mend(path)}") from error


def _read(path: Path) -> tuple[dict[str, Any], Position]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise RunError(f"'{path}' holds objects that could run code, not a checkpoint of distill") from error
    except Exception as error:
        raise RunError(f"'{path}' is cut short or damaged ({_in_one_line(error)})") from error
    try:
        _check_sections(content)
        return content, read_position(content)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else _in_one_line(error)
        raise RunError(f"'{path}' is not a checkpoint of a training of distill: {reason}") from error


def _mend(path: Path) -> str:
    """Return how to go on where a checkpoint cannot be used: with the furthest of its neighbours that can."""
    found = []
    for other in path.parent.glob("*.ckpt"):
        if other != path and other.is_file():
            with contextlib.suppress(RunError):
                found.append((_read(other)[1].step, other))
    if not found:
        return f"no other checkpoint of the run can be used; {AGAIN}"
    step, other = max(found)
    return f"to go on after step {step}: cp {shlex.quote(str(other))} {shlex.quote(str(path))}; or {AGAIN}"


def _check_sections(content: Any) -> None:
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}")
    for kind, names in ((list, LISTS), (dict, MAPPINGS)):
        for name in names:
            if not isinstance(content[name], kind):
                raise TypeError(f"its {name} is a {type(content[name]).__name__}")
    if RECIPE_KEY in content:  # not in those of earlier versions
        try:
            msgspec.convert(content[RECIPE_KEY], _KeptRecipe)
        except msgspec.ValidationError as error:
            raise TypeError(f"its {RECIPE_KEY} is no recipe: {reason(error)}") from error
    for name, form in CALLBACK_STATES.items():
        if name in content["callbacks"]:
            try:
                msgspec.convert(content["callbacks"][name], form)
            except msgspec.ValidationError as error:
                raise TypeError(f"the state of its {name} is none: {reason(error)}") from error
    version = content["pytorch-lightning_version"]
    try:
        Version(version)
    except (InvalidVersion, TypeError) as error:
        raise ValueError(f"it was written by no version of Lightning: {version!r}") from error


def check_fits(content: Mapping[str, Any], path: Path, stage: lightning.LightningModule, optimizer: Optimizer) -> None:
    """Raise RunError unless the tensors of a checkpoint are those of the stage and of its optimizer."""
    own = {name: tensor.shape for name, tensor in stage.state_dict().items()}
    for section in ("state_dict", *([AVERAGED_FROM] if AVERAGED_FROM in content else [])):
        held = {name: getattr(value, "shape", None) for name, value in content[section].items()}
        differing = [name for name in {**own, **held} if own.get(name) != held.get(name)]
        if differing:
            raise RunError(
                f"'{path}' is of another student: {len(differing)} tensors are missing, too many or of another shape "
                f"({first_few(differing)}); {AGAIN}"
            )
        tensors = ((name, value) for name, value in content[section].items() if isinstance(value, Tensor))
        if broken := [name for name, value in tensors if not value.isfinite().all()]:
            raise RunError(
                f"'{path}' holds NaN or infinities in {len(broken)} tensors ({first_few(broken)}): the training failed "
                f"before it; {_mend(path)}"
            )
    if not _holds(content["optimizer_states"], optimizer):
        raise RunError(f"'{path}' holds the state of another optimizer: other tensors were trained; {AGAIN}")


def _holds(states: list[Any], optimizer: Optimizer) -> bool:
    """Return whether a checkpoint's optimizer states are one state, and fit the optimizer's parameters."""
    try:
        (state,) = states
        sizes = [len(group["params"]) for group in state["param_groups"]]
        moments = state["state"].items()
    except (LookupError, TypeError, ValueError, AttributeError):
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fits = all(
        value.shape in (torch.Size(), parameters[place].shape)
        for place, values in moments
        if isinstance(place, int) and 0 <= place < len(parameters)  # sharded strategies keep names, and check them
        for value in values.values()
        if isinstance(value, Tensor)
    )
    return fits and sizes == [len(group["params"]) for group in optimizer.param_groups]


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
