"""The fast decoder beside the general one: prompts of one photo that have no mask, and one mask for each.

No prompt changes the photo's embedding before the first layer has seen it. So all prompts share its projections, and
the general decoder's mask input, its encoding and three of four masks are not computed.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.export.trace import Signature, save_graph, trace
from distill.files import write_errors
from distill.models.mask_decoder import SharedImages, decode_prompts, flatten_grid
from distill.models.sam import PromptableModel
from distill.prompts.types import BOX_HIGH, BOX_LOW, NEGATIVE, PAD, POSITIVE

OUTPUTS = ("low_res_masks", "iou_predictions")
LABELS = (PAD, NEGATIVE, POSITIVE, BOX_LOW, BOX_HIGH)  # in the order of the prompt encoder's embeddings


class SingleDecoder(nn.Module):
    """Prompts of one photo -> token 0's masks.

    Inputs:
        image_embeddings: (1, C, E, E).
        point_coords: (B, N, 2) XY in the prompt frame.
        point_labels: (B, N). 1 is on the object, 0 off it; 2 and 3 are the corners of a box. A prompt without a box
            ends with a point of the label -1.

    Outputs:
        low_res_masks: (B, 1, 4E, 4E) logits.
        iou_predictions: (B, 1).
    """

    embeddings: Tensor
    no_mask: Tensor
    positions: Tensor

    def __init__(self, model: PromptableModel) -> None:
        super().__init__()
        model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
        encoder = model.prompt_encoder
        self.prompt_size, self.pe_layer, self.decoder = model.prompt_size, encoder.pe_layer, model.mask_decoder
        embeddings = torch.cat([part.weight for part in (encoder.not_a_point_embed, *encoder.point_embeddings)])
        self.register_buffer("embeddings", embeddings)  # (5, C)
        self.register_buffer("no_mask", encoder.no_mask_embed.weight[..., None, None])  # (1, C, 1, 1)
        self.register_buffer("positions", flatten_grid(encoder.get_dense_pe())[0])  # (E E, C)

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        placed = self.pe_layer._pe_encoding((point_coords + 0.5) / self.prompt_size)  # (B, N, C)
        is_label = torch.stack([(point_labels == label).float() for label in LABELS], -1)  # (B, N, 5)
        tokens = placed * (point_labels >= 0).float()[..., None] + is_label @ self.embeddings
        images = SharedImages(flatten_grid(image_embeddings + self.no_mask), self.positions, self.decoder)
        image_index = torch.zeros_like(point_labels[:, 0], dtype=torch.long)
        return decode_prompts(self.decoder, images, self.positions, tokens, image_index, masks=slice(0, 1), lean=False)


def export_single_decoder(model: PromptableModel, path: Path) -> None:
    """Write the fast decoder of a model.

    Raises:
        DistillError: its answers in onnxruntime differ from torch's, or it cannot be written.
    """
    random = torch.Generator().manual_seed(0)
    size = model.embedding_size
    inputs = {
        "image_embeddings": torch.randn(1, model.embedding_dim, size, size, generator=random),
        "point_coords": torch.rand(3, 2, 2, generator=random) * model.prompt_size,
        "point_labels": torch.tensor([[BOX_LOW, BOX_HIGH], [POSITIVE, PAD], [NEGATIVE, POSITIVE]]).float(),
    }
    prompts, points = {0: "num_prompts"}, {0: "num_prompts", 1: "num_points"}
    axes = {"point_coords": points, "point_labels": points, **dict.fromkeys(OUTPUTS, prompts)}
    graph = trace(SingleDecoder(model), Signature(inputs, OUTPUTS, axes), what=str(path))
    with write_errors(path, DistillError):
        save_graph(graph.model, path)
