"""The teacher: a frozen promptable model that never trains and never enters a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.config.schema import TeacherConfig
from distill.errors import CheckpointError
from distill.models.checkpoint import find_weights, load_model, sha256_file
from distill.models.sam import PromptableModel
from distill.prompts.types import Prompts
from distill.students import STUDENTS
from distill.students.published import PUBLISHED


class Teacher(nn.Module):
    """A frozen model whose answers are training targets.

    `model` is not a submodule: it follows `.to(device)`, but state dicts, optimizers, `train()` and DDP never see it.
    """

    def __init__(self, model: PromptableModel, *, name: str, weights_sha256: str) -> None:
        super().__init__()
        self.name = name
        self.weights_sha256 = weights_sha256
        self._hidden = (model.eval().requires_grad_(False),)

    @property
    def model(self) -> PromptableModel:
        """The frozen model."""
        return self._hidden[0]

    @property
    def image_size(self) -> int:
        """Side S of the encoder's input in pixels."""
        return self.model.image_size

    @property
    def embedding_dim(self) -> int:
        """Channels C of the embedding."""
        return self.model.embedding_dim

    @property
    def embedding_size(self) -> int:
        """Side E of the embedding's grid."""
        return self.model.embedding_size

    @property
    def prompt_size(self) -> int:
        """Side of the prompt frame in pixels, 16 E."""
        return self.model.prompt_size

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Teacher:
        self.model._apply(fn, recurse)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Teacher:
        """Return this teacher itself: a copy of a stage, as in weight averaging, needs no second frozen model."""
        return self

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) as embeddings (B, C, E, E), float32 under any autocast."""
        return self.model.encode(pixels).float()

    @torch.no_grad()
    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Answer prompts as PromptableModel.decode does, without gradients."""
        return self.model.decode(embeddings, prompts, multimask=multimask)

    @torch.no_grad()
    def decode_all(self, embeddings: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Answer prompts as PromptableModel.decode_all does, without gradients."""
        return self.model.decode_all(embeddings, prompts)


def load_teacher(config: TeacherConfig) -> Teacher:
    """Load a teacher, on the CPU.

    `config.name` may be a published architecture; then `config.checkpoint` is its released file. Otherwise it is
    'quickstart' or a path to a model of ours (a teacher assistant), and there is no checkpoint.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, of another model, or not the published file.
    """
    if config.name in STUDENTS:
        return _load_released(config)
    if config.checkpoint is not None:
        raise CheckpointError(
            f"teacher.checkpoint={config.checkpoint}: teacher.name={config.name} needs none; leave it out, or set "
            "teacher.name to the architecture, as sam_vit_h"
        )
    path = find_weights(config.name)
    model = load_model(path)
    name = model.spec.encoder if Path(config.name).exists() else config.name
    return Teacher(model, name=name, weights_sha256=sha256_file(path))


def _load_released(config: TeacherConfig) -> Teacher:
    published = PUBLISHED.get(config.name)
    expected = f"the released file of {config.name}" if published is None else str(published)
    if config.checkpoint is None:
        raise CheckpointError(f"teacher.checkpoint is not set: {config.name} reads {expected}")
    path = Path(config.checkpoint)
    if not path.is_file():
        raise CheckpointError(f"teacher.checkpoint={path}: no such file. {config.name} reads {expected}")
    model = load_model(path, name=config.name)
    digest = sha256_file(path)
    if published is not None and config.verify_sha256 and digest != published.sha256:
        raise CheckpointError(
            f"teacher.checkpoint={path}: sha256 is {digest}, expected {expected}. "
            "For weights of your own set teacher.verify_sha256=false"
        )
    return Teacher(model, name=config.name, weights_sha256=digest)
