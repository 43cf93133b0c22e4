"""The lean decoder gives segment-anything's answers and gradients, whatever the prompts."""

import pytest
import torch
from torch import Tensor

from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.prompts.types import NEGATIVE, PAD, POSITIVE, Prompts

IMAGE_INDICES = [[0, 0, 0, 1, 1, 1], [1, 0, 2, 2, 0, 2, 2], [2, 2, 2], [0]]


def build(paint_prompts: bool = False) -> PromptableModel:
    torch.manual_seed(0)
    spec = ModelSpec(
        "efficientvit_sam_t",
        128,
        embedding_dim=64,
        embedding_size=16,
        decoder_mlp_dim=128,
        paint_prompts=paint_prompts,
    )
    model = build_from_spec(spec)
    for parameter in model.parameters():  # norms and biases away from their neutral start
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def draw(kind: str, image_index: Tensor, size: int) -> Prompts:
    torch.manual_seed(len(image_index))
    num = len(image_index)
    boxes = torch.rand(num, 4).sort(1).values[:, [0, 1, 2, 3]] * size
    points, labels = torch.rand(num, 3, 2) * size, torch.tensor([POSITIVE, NEGATIVE, PAD]).expand(num, -1)
    masks = torch.randn(num, 1, size // 4, size // 4) * 4
    return Prompts(
        image_index,
        boxes_xyxy=boxes if "box" in kind else None,
        points_xy=points if "point" in kind else None,
        point_labels=labels if "point" in kind else None,
        mask_logits=masks if "mask" in kind else None,
    )


def published_answer(model: PromptableModel, embeddings: Tensor, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Answer with segment-anything's own decoder, which takes one image at a time."""
    logits, ious = [], []
    for row in range(len(prompts)):
        one = Prompts(
            prompts.image_index[row : row + 1],
            **{
                name: None if getattr(prompts, name) is None else getattr(prompts, name)[row : row + 1]
                for name in ("boxes_xyxy", "points_xy", "point_labels", "mask_logits")
            },
        )
        points = None if one.points_xy is None else (one.points_xy, one.point_labels)
        sparse, dense = model.prompt_encoder(points=points, boxes=one.boxes_xyxy, masks=one.mask_logits)
        image = embeddings[prompts.image_index[row]][None]
        masks, iou = model.mask_decoder.predict_masks(image, model.prompt_encoder.get_dense_pe(), sparse, dense)
        logits.append(masks)
        ious.append(iou)
    return torch.cat(logits), torch.cat(ious)


@pytest.mark.parametrize("kind", ["box", "point", "mask", "box+point", "box+mask", "point+mask", "box+point+mask"])
@pytest.mark.parametrize("image_index", IMAGE_INDICES, ids=str)
def test_answers_and_gradients_are_those_of_segment_anything(kind: str, image_index: list[int]) -> None:
    assert_equal(kind, image_index)


@pytest.mark.parametrize("kind", ["box", "box+point+mask"])
@pytest.mark.parametrize("prompts_per_chunk", [0, 1, 3, 7])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunks_and_checkpointing_change_nothing(kind: str, prompts_per_chunk: int, checkpointing: bool) -> None:
    assert_equal(kind, IMAGE_INDICES[1], prompts_per_chunk=prompts_per_chunk, checkpointing=checkpointing)


@pytest.mark.parametrize("kind", ["box", "point+mask"])
def test_low_precision_costs_no_more_than_segment_anythings(kind: str) -> None:
    model = build()
    prompts = draw(kind, torch.tensor(IMAGE_INDICES[1]), model.prompt_size)
    embeddings = torch.randn(3, 64, 16, 16)
    errors = []
    with torch.no_grad():
        exact, _ = published_answer(model, embeddings, prompts)
        for answer in (model.decode_all, lambda e, p: published_answer(model, e, p)):
            with torch.autocast("cpu", torch.bfloat16):
                errors.append((answer(embeddings, prompts)[0] - exact).square().mean().item())
    assert 0 < errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("kind", ["box", "point+mask"])
def test_checkpointing_keeps_fewer_bytes(kind: str) -> None:
    model = build()
    prompts = draw(kind, torch.arange(8) % 2, model.prompt_size)
    embeddings = torch.randn(2, 64, 16, 16, requires_grad=True)

    def kept_bytes(**options: int) -> int:
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.decode_all(embeddings, prompts, **options)
        return sum(storages.values())

    assert kept_bytes(prompts_per_chunk=2, checkpointing=True) < 0.2 * kept_bytes()


def assert_equal(kind: str, image_index: list[int], **options: int) -> None:
    model = build()
    prompts = draw(kind, torch.tensor(image_index), model.prompt_size)
    embeddings = torch.randn(3, 64, 16, 16)
    results = []
    for answer in (lambda e, p: model.decode_all(e, p, **options), lambda e, p: published_answer(model, e, p)):
        model.zero_grad()
        leaf = embeddings.clone().requires_grad_()
        logits, iou = answer(leaf, prompts)
        (logits.square().mean() + iou.square().mean()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((logits.detach(), iou.detach(), leaf.grad, gradients))
    ours, theirs = results
    assert ours[0].abs().max() > 0.1
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-6)
    assert ours[3].keys() <= theirs[3].keys()
    for name, gradient in theirs[3].items():
        if name not in ours[3]:  # the keys' bias is equal for all keys: its gradient is zero apart from rounding
            assert name.endswith("token_to_image.k_proj.bias") and gradient.abs().max() < 1e-6
            continue
        torch.testing.assert_close(ours[3][name], gradient, rtol=1e-4, atol=1e-4 * max(1, gradient.abs().max().item()))


def test_a_painted_box_changes_the_answer() -> None:
    plain, painted = build(), build(paint_prompts=True)
    prompts = draw("box", torch.tensor([0, 0]), plain.prompt_size)
    embeddings = torch.randn(1, 64, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(plain.decode_all(embeddings, prompts)[0], painted.decode_all(embeddings, prompts)[0])
