"""What answers prompts: a torch model, that model in bfloat16, or exported files in another runtime."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from distill.models.sam import ModelSpec, PromptableModel
from distill.prompts.types import Prompts


class InferenceModel(Protocol):
    """A model that encodes photos and answers prompts, without gradients. PromptableModel documents its members."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def image_size(self) -> int: ...
    @property
    def embedding_size(self) -> int: ...
    @property
    def prompt_size(self) -> int: ...
    @property
    def low_res_size(self) -> int: ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) as embeddings (B, C, E, E)."""
        ...

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Return low-res mask logits (P, K, 4E, 4E) and predicted IoU (P, K); K is 3 or 1."""
        ...


class Bfloat16Model:
    """A torch model whose products are computed in bfloat16 by autocast; what it returns is float32."""

    def __init__(self, model: PromptableModel) -> None:
        self.model, self.spec, self.device = model, model.spec, model.device
        self.image_size, self.embedding_size = model.image_size, model.embedding_size
        self.prompt_size, self.low_res_size = model.prompt_size, model.low_res_size

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) as embeddings (B, C, E, E)."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.model.encode(pixels).float()

    def decode(self, embeddings: Tensor, prompts: Prompts, *, multimask: bool) -> tuple[Tensor, Tensor]:
        """Return low-res mask logits (P, K, 4E, 4E) and predicted IoU (P, K); K is 3 or 1."""
        with torch.autocast(self.device.type, torch.bfloat16):
            logits, iou_predictions = self.model.decode(embeddings, prompts, multimask=multimask)
        return logits.float(), iou_predictions.float()
