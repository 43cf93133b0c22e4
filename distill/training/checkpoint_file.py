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
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from distill.errors import RunError
from distill.outside import Count, Seconds, reason
from distill.text import first_few
from distill.training.position import POSITION_KEY, Position, read_position

LISTS, MAPPINGS = ("optimizer_states", "lr_schedulers"), ("state_dict", "callbacks")
LAST_STEP_KEY = "distill_last_step"  # of a checkpoint: the scalars of the step it ends with
RECIPE_KEY = "distill_recipe"  # the options that the last steps had, and all changes before (distill.training.changes)
AVERAGED_FROM = "current_model_state"  # Lightning's weight averaging keeps the weights in training under this name
AVERAGING = "averaging_state"  # and its count of averages under this one
EARLIER = "ModelCheckpoint"  # Lightning's callback, which kept the best checkpoint in earlier versions
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, for each parameter
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
    seconds: Seconds
    photos: Count


class _Best(msgspec.Struct):
    metric: str
    scores: dict[int, float]


class _Averaging(msgspec.Struct):
    latest_update_step: int


class _Schedule(msgspec.Struct):
    """The fields of a schedule that count. Base rates are the recipe's own, and its functions are not kept."""

    last_epoch: Count
    step_count: Count = msgspec.field(default=0, name="_step_count")
    base_lrs: list[float] = []
    last_lr: list[float] = msgspec.field(default_factory=list, name="_last_lr")
    lr_lambdas: list[dict[str, Any] | None] = []


class _Scaler(msgspec.Struct):
    """The state of torch's GradScaler, which 16-bit precision has."""

    scale: Annotated[float, Meta(gt=0)]
    growth_factor: Annotated[float, Meta(gt=1)]
    backoff_factor: Annotated[float, Meta(gt=0, lt=1)]
    growth_interval: Annotated[int, Meta(ge=1)]
    growth_tracker: int = msgspec.field(name="_growth_tracker")


class _Group(msgspec.Struct):
    """The parameters of an optimizer's group. Its options are the recipe's own."""

    params: list[int | str]


class _OptimizerState(msgspec.Struct):
    state: dict[int | str, dict[str, Any]]
    param_groups: list[_Group]


CALLBACK_STATES: dict[str, type[msgspec.Struct]] = {
    "CostRecord": _Cost,
    "BestCheckpoints": _Best,
    "EMAWeightAveraging": _Averaging,
}
# What a checkpoint may have, and Lightning or a callback takes as it is. Earlier versions do not have all of it.
SECTIONS: dict[str, Any] = {
    RECIPE_KEY: _KeptRecipe,
    LAST_STEP_KEY: dict[str, float],
    "lr_schedulers": list[_Schedule],
    "callbacks": dict[str, dict[str, Any]],
    "state_dict": dict[str, Any],
    AVERAGED_FROM: dict[str, Any],
    AVERAGING: dict[str, Any],
    "MixedPrecision": _Scaler,
}


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
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else _in_one_line(error)
        raise RunError(f"'{path}' is not a checkpoint of a training of distill: {why}") from error


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
    for name, form in SECTIONS.items():
        if name in content:
            _check_form(content[name], form, name)
    for name, state in content["callbacks"].items():
        if name in CALLBACK_STATES:
            _check_form(state, CALLBACK_STATES[name], name)
        if name.startswith(EARLIER):
            float(state["best_model_score"] if state.get("best_model_score") is not None else 0.0)
    for schedule in content["lr_schedulers"]:  # its fields become attributes of the schedule
        if methods := [name for name in schedule if callable(getattr(LRScheduler, str(name), None))]:
            raise ValueError(f"its lr_schedulers have a field {methods[0]!r}")
    version = content["pytorch-lightning_version"]
    try:
        Version(version)
    except (InvalidVersion, TypeError) as error:
        raise ValueError(f"it was written by no version of Lightning: {version!r}") from error


def _check_form(content: Any, form: Any, name: str) -> None:
    try:
        msgspec.convert(content, form)
    except msgspec.ValidationError as error:
        raise TypeError(f"its {name} is not as a run writes it: {reason(error)}") from error


def check_fits(content: Mapping[str, Any], path: Path, stage: lightning.LightningModule, optimizer: Optimizer) -> None:
    """Raise RunError unless the tensors of a checkpoint are those of the stage and of its optimizer."""
    own = {name: tensor.shape for name, tensor in stage.state_dict().items()}
    for section in ("state_dict", *([AVERAGED_FROM] if AVERAGED_FROM in content else [])):
        held = {name: getattr(value, "shape", None) for name, value in content[section].items()}
        differing = [str(name) for name in {**own, **held} if name not in own or own[name] != held.get(name)]
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
    if not _is_kept_whole(content, stage):
        raise RunError(f"'{path}' holds gradients or averages of other tensors; {AGAIN}")
    if not _holds(content["optimizer_states"], optimizer):
        raise RunError(f"'{path}' holds the state of another optimizer: other tensors were trained; {AGAIN}")


def _is_kept_whole(content: Mapping[str, Any], stage: lightning.LightningModule) -> bool:
    """Return whether the gradients of a step that was begun, and the count of averages, are such."""
    shapes = {name: parameter.shape for name, parameter in stage.named_parameters()}
    gradients = content.get(POSITION_KEY, {}).get("gradients", {})
    averages = content.get(AVERAGING, {}) if AVERAGED_FROM in content else {"n_averaged": torch.zeros(())}
    return (
        isinstance(gradients, dict)
        and all(name in shapes and shapes[name] == getattr(value, "shape", None) for name, value in gradients.items())
        and {name: getattr(value, "shape", None) for name, value in averages.items()} == {"n_averaged": torch.Size()}
    )


def _holds(states: list[Any], optimizer: Optimizer) -> bool:
    """Return whether a checkpoint's optimizer states are one state, and fit the optimizer's parameters."""
    try:
        (state,) = msgspec.convert(states, list[_OptimizerState])
    except (ValueError, msgspec.ValidationError):
        return False
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = [place for group in state.param_groups for place in group.params]
    is_numbered = all(isinstance(place, int) for place in places)  # sharded strategies keep names, and check them
    fits = all(
        _fits(values, parameters[place].shape, is_adam=isinstance(optimizer, AdamW))
        for place, values in state.state.items()
        if isinstance(place, int) and 0 <= place < len(parameters)
    )
    sizes = [len(group.params) for group in state.param_groups]
    return (
        fits
        and sizes == [len(group["params"]) for group in optimizer.param_groups]
        and (not is_numbered or places == list(range(len(parameters))))
    )


def _fits(values: Mapping[str, Any], shape: torch.Size, *, is_adam: bool) -> bool:
    """Return whether the state of a parameter fits its shape."""
    if is_adam:
        moments = [getattr(values.get(name), "shape", None) for name in MOMENTS]
        if moments != [shape] * len(MOMENTS) or getattr(values.get("step"), "shape", None) != torch.Size():
            return False
    return all(
        value.shape in (torch.Size(), shape) if isinstance(value, Tensor) else isinstance(value, int | float | None)
        for value in values.values()
    )


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
