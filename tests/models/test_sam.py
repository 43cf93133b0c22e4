"""The promptable model decodes as segment_anything does, for many prompts over many images at once."""

from __future__ import annotations

import pytest
import torch

from distill.errors import DistillError
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec, build_model, spec_for
from distill.prompts.types import Prompts

IMAGE_INDEX = torch.tensor([0, 2, 1, 2, 0, 0, 2])
NUM_IMAGES, NUM_PROMPTS = 3, len(IMAGE_INDEX)


@pytest.fixture(scope="module")
def model() -> PromptableModel:
    torch.manual_seed(0)
    return build_from_spec(
        ModelSpec("efficientvit_sam_t", image_size=64, embedding_dim=32, embedding_size=12, decoder_mlp_dim=48)
    )


def prompts_of(kind: str, model: PromptableModel) -> Prompts:
    generator = torch.Generator().manual_seed(1)
    prompts = Prompts(IMAGE_INDEX)
    side = model.prompt_size
    if "box" in kind:
        prompts.boxes_xyxy = torch.rand(NUM_PROMPTS, 4, generator=generator) * side
    if "point" in kind:
        prompts.points_xy = torch.rand(NUM_PROMPTS, 3, 2, generator=generator) * side
        prompts.point_labels = torch.randint(-1, 2, (NUM_PROMPTS, 3), generator=generator)
    if "mask" in kind:
        prompts.mask_logits = torch.randn(NUM_PROMPTS, 1, model.low_res_size, model.low_res_size, generator=generator)
    return prompts


def decode_as_segment_anything(
    model: PromptableModel, embedding: torch.Tensor, prompts: Prompts, multimask: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode the prompts of one image with an embedding (1, C, E, E)."""
    points = None if prompts.points_xy is None else (prompts.points_xy, prompts.point_labels)
    sparse, dense = model.prompt_encoder(points=points, boxes=prompts.boxes_xyxy, masks=prompts.mask_logits)
    return model.mask_decoder(
        image_embeddings=embedding,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
    )


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("kind", ["box", "point", "mask", "box+point", "box+mask", "point+mask"])
@torch.no_grad()
def test_decode_equals_segment_anything_per_image(model: PromptableModel, kind: str, multimask: bool):
    embeddings = torch.randn(NUM_IMAGES, 32, 12, 12, generator=torch.Generator().manual_seed(2))
    prompts = prompts_of(kind, model)
    logits, iou_predictions = model.decode(embeddings, prompts, multimask=multimask)
    num_masks = 3 if multimask else 1
    assert logits.shape == (NUM_PROMPTS, num_masks, 48, 48)
    assert iou_predictions.shape == (NUM_PROMPTS, num_masks)
    for row, image in enumerate(IMAGE_INDEX):
        one = Prompts(
            IMAGE_INDEX[row : row + 1],
            **{
                name: None if value is None else value[row : row + 1]
                for name, value in vars(prompts).items()
                if name != "image_index"
            },
        )
        expected, expected_iou = decode_as_segment_anything(model, embeddings[image][None], one, multimask)
        torch.testing.assert_close(logits[row], expected[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(iou_predictions[row], expected_iou[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_decode_all_holds_both_outputs(model: PromptableModel):
    embeddings = torch.randn(NUM_IMAGES, 32, 12, 12)
    prompts = prompts_of("box", model)
    logits, iou_predictions = model.decode_all(embeddings, prompts)
    for tokens, multimask in ((slice(0, 1), False), (slice(1, 4), True)):
        expected, expected_iou = model.decode(embeddings, prompts, multimask=multimask)
        torch.testing.assert_close(logits[:, tokens], expected)
        torch.testing.assert_close(iou_predictions[:, tokens], expected_iou)


@pytest.mark.parametrize("kind", ["box", "point", "mask"])
def test_training_reaches_encoder_and_decoder(model: PromptableModel, kind: str):
    model.zero_grad()
    embeddings = model.encode(torch.randn(NUM_IMAGES, 3, 64, 64))
    logits, iou_predictions = model.decode_all(embeddings, prompts_of(kind, model))
    (logits.sum() + iou_predictions.sum()).backward()
    for part in (model.image_encoder, model.mask_decoder):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_the_model_knows_its_frames(model: PromptableModel):
    assert (model.image_size, model.embedding_dim, model.embedding_size) == (64, 32, 12)
    assert (model.prompt_size, model.low_res_size) == (192, 48)


def test_norm_eps_reaches_the_decoder():
    spec = ModelSpec("efficientvit_sam_t", image_size=64, embedding_dim=32, embedding_size=4, norm_eps=1e-6)
    assert build_from_spec(spec).mask_decoder.transformer.norm_final_attn.eps == 1e-6
    assert spec_for("efficientvit_sam_l0").norm_eps == 1e-6


def test_spec_like_a_teacher():
    like = ModelSpec("sam_vit_b", 1024, embedding_dim=128, embedding_size=32, decoder_mlp_dim=512)
    spec = spec_for("efficientvit_sam_t", like=like)
    assert spec == ModelSpec("efficientvit_sam_t", 256, 128, 32, 512, 1e-6)
    assert spec_for("efficientvit_sam_t", image_size=128, like=like).image_size == 128


def test_an_unknown_model_lists_the_near_ones():
    with pytest.raises(DistillError, match="unknown model 'efficientvit_sam_l3'. Did you mean"):
        build_model("efficientvit_sam_l3")


def test_positions_are_exact_under_autocast(model: PromptableModel) -> None:
    points = model.prompt_size * torch.rand(1, 9, 2, generator=torch.Generator().manual_seed(0))
    size = (model.prompt_size, model.prompt_size)

    def positions() -> tuple[torch.Tensor, torch.Tensor]:
        encoder = model.prompt_encoder
        return encoder.pe_layer.forward_with_coords(points, size), encoder.get_dense_pe()

    exact = positions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = positions()
    for one, other in zip(exact, under_autocast, strict=True):
        assert torch.equal(one, other)
