from __future__ import annotations

import lightning
import pytest
import torch

from distill.batch import ImageBatch
from distill.config.schema import MaskLossConfig, OptimConfig, PromptConfig, TargetConfig
from distill.errors import DistillError
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec
from distill.models.teacher import Teacher
from distill.prompts.types import POSITIVE, Prompts
from distill.stages.mask import MaskStage
from distill.stages.teacher_targets import mask_boxes, teacher_instances

GRID, IMAGE_SIZE = 8, 64


def square_batch() -> ImageBatch:
    """Return two photos, the second one wide, with three instances that are squares."""
    low_res, pixels = 4 * GRID, torch.zeros(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    masks = torch.zeros(3, low_res, low_res)
    corners = [(0, 4, 4, 12), (0, 16, 16, 28), (1, 2, 8, 14)]
    boxes = []
    for row, (image, top, left, right) in enumerate(corners):
        masks[row, top : top + 8, left:right] = 1
        pixels[image, :, 2 * top : 2 * top + 16, 2 * left : 2 * right] = row - 1.5
        boxes.append([left * 4.0, top * 4.0, right * 4.0, top * 4.0 + 32])
    return ImageBatch(
        keys=["a", "b"],
        pixels=pixels,
        original_hw=torch.tensor([[64, 64], [32, 64]]),
        valid=torch.ones(2, GRID, GRID, dtype=torch.bool),
        masks=masks,
        mask_image_index=torch.tensor([0, 0, 1]),
        boxes_xyxy=torch.tensor(boxes),
    )


def photos_of(batch: ImageBatch, photos: list[int]) -> ImageBatch:
    """Return the batch of some of its photos."""
    rows = torch.cat([(batch.mask_image_index == photo).nonzero()[:, 0] for photo in photos])
    return ImageBatch(
        keys=[batch.keys[photo] for photo in photos],
        pixels=batch.pixels[photos],
        original_hw=batch.original_hw[photos],
        valid=batch.valid[photos],
        teacher_embeddings=None if batch.teacher_embeddings is None else batch.teacher_embeddings[photos],
        masks=batch.masks[rows],
        mask_image_index=torch.tensor([photos.index(int(i)) for i in batch.mask_image_index[rows]], dtype=torch.long),
        boxes_xyxy=batch.boxes_xyxy[rows],
    )


def tiny_model(seed: int = 0) -> PromptableModel:
    torch.manual_seed(seed)
    return build_from_spec(ModelSpec("efficientvit_sam_t", IMAGE_SIZE, 32, embedding_size=GRID, decoder_mlp_dim=64))


def tiny_teacher(seed: int = 7) -> Teacher:
    """Return a random model. It predicts masks of some size, about half of the cells."""
    return Teacher(tiny_model(seed), name="tiny", weights_sha256="0" * 64)


def tiny_stage(teacher: Teacher | None = None, **options) -> MaskStage:  # type: ignore[no-untyped-def]
    defaults = {"prompts": PromptConfig(), "loss": MaskLossConfig(), "optim": OptimConfig(lr=1e-3)}
    return MaskStage(tiny_model(), teacher, **{**defaults, **options})


def with_teacher(batch: ImageBatch, teacher: Teacher) -> ImageBatch:
    batch.teacher_embeddings = teacher.embed(batch.pixels)
    return batch


def test_gradients_reach_every_trainable_tensor() -> None:
    stage = tiny_stage()
    stage.compute_terms(square_batch())["loss"].backward()
    missing = [name for name, p in stage.model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_frozen_parts_stay_as_they_are_and_in_eval_mode() -> None:
    stage = tiny_stage(optim=OptimConfig(lr=1e-2, encoder_lr_scale=0.0))
    before = {name: value.clone() for name, value in stage.model.image_encoder.state_dict().items()}
    fit(stage, steps=2)
    stage.train()
    assert not stage.model.image_encoder.training and stage.model.mask_decoder.training
    for name, value in stage.model.image_encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_same_step_draws_the_same_prompts() -> None:
    stage = tiny_stage()
    stage.eval()
    batch = square_batch()
    assert stage.compute_terms(batch)["loss"] == stage.compute_terms(batch)["loss"]
    other = tiny_stage(seed=1)
    other.eval()
    assert other.compute_terms(batch)["loss"] != stage.compute_terms(batch)["loss"]


def test_padding_has_no_influence_on_the_loss() -> None:
    stage = tiny_stage()
    stage.eval()
    batch, marked = square_batch(), square_batch()
    marked.masks[2, 16:] = 1.0  # the lower half of the second photo is padding
    torch.manual_seed(0)
    clean = stage.compute_terms(batch)
    stage.prompt_config.box_share = 1.0  # points may be drawn from the marked mask, boxes not
    clean = stage.compute_terms(batch)
    assert torch.equal(clean["loss"], stage.compute_terms(marked)["loss"])


def test_photos_alone_are_refused() -> None:
    batch = square_batch()
    batch.masks = None
    with pytest.raises(DistillError, match="needs shards with masks"):
        tiny_stage().compute_terms(batch)


# points lie where the model is least sure, so the loss on them falls slowly
@pytest.mark.parametrize(
    ("loss", "share"), [(MaskLossConfig(), 0.7), (MaskLossConfig(mask="bce", num_points=200), 0.9)]
)
def test_the_loss_falls(loss: MaskLossConfig, share: float) -> None:
    stage = tiny_stage(loss=loss)
    before = stage.compute_terms(square_batch())["loss"].item()
    fit(stage, steps=40)
    assert stage.compute_terms(square_batch())["loss"].item() < share * before


IMITATE = TargetConfig(truth_weight=0.0, teacher_weight=1.0)
EDGE_SAM = PromptConfig(refine_clicks=1, min_error_cells=10, feed_logits=False, multimask_on_box=False)
FULL = PromptConfig(refine_clicks=8, mask_only_rounds=2, box_points_share=0.5, max_negative_points=2)


@pytest.mark.parametrize(
    ("prompts", "targets", "num_points"),
    [(PromptConfig(), TargetConfig(), 50), (EDGE_SAM, IMITATE, 0), (FULL, TargetConfig(1.0, 0.5, "soft"), 50)],
    ids=["one round", "EdgeSAM", "SAM's schedule"],
)
def test_a_batch_is_the_mean_over_its_prompts_whatever_batches_they_come_in(prompts, targets, num_points) -> None:  # type: ignore[no-untyped-def]
    """Use two prompts of the first photo and one of the second: what is drawn for a photo depends on it alone."""
    teacher = tiny_teacher()
    loss = MaskLossConfig(num_points=num_points, logit_weight=0.1, teacher_iou_weight=1.0, feature_weight=0.0)
    stage = tiny_stage(teacher, prompts=prompts, targets=targets, loss=loss).eval()
    batch = with_teacher(square_batch(), teacher)
    both, first, second = (stage.compute_terms(photos_of(batch, photos)) for photos in ([0, 1], [0], [1]))
    assert set(both) >= {"loss", "logit", "teacher_mask"}
    for name, value in both.items():
        torch.testing.assert_close(value, (2 * first[name] + second[name]) / 3, rtol=1e-4, atol=1e-5, msg=name)
    swapped = stage.compute_terms(photos_of(batch, [1, 0]))
    torch.testing.assert_close(swapped["loss"], both["loss"], rtol=1e-4, atol=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_imitate() -> None:
    teacher = tiny_teacher(seed=0)
    loss = MaskLossConfig(mask="bce", logit_weight=1.0, teacher_iou_weight=1.0)
    stage = tiny_stage(teacher, prompts=PromptConfig(refine_clicks=2), targets=IMITATE, loss=loss).eval()
    terms = stage.compute_terms(with_teacher(square_batch(), teacher))
    assert terms["logit"] < 1e-8 and terms["teacher_iou"] < 1e-8
    other = tiny_stage(tiny_teacher(seed=1), prompts=PromptConfig(refine_clicks=2), targets=IMITATE, loss=loss).eval()
    assert other.compute_terms(with_teacher(square_batch(), other.teacher))["logit"] > 1e-3


def test_imitation_looks_at_no_mask_of_the_shards() -> None:
    """Check that only boxes and the teacher count: with other masks the clicks and the loss stay the same."""
    teacher = tiny_teacher()
    prompts = PromptConfig(box_share=1.0, refine_clicks=3, mask_only_rounds=1)
    stage = tiny_stage(teacher, prompts=prompts, targets=IMITATE).eval()
    batch = with_teacher(square_batch(), teacher)
    terms = stage.compute_terms(batch)
    batch.masks = batch.masks.flip(2)
    assert torch.equal(stage.compute_terms(batch)["loss"], terms["loss"])
    assert not {"mask", "dice", "iou"} & set(terms)


class NeverAsked(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the teacher saw the photo again")


def test_with_a_cache_the_teachers_encoder_never_runs() -> None:
    teacher = tiny_teacher()
    batch = with_teacher(square_batch(), teacher)
    teacher.model.image_encoder = NeverAsked()
    stage = tiny_stage(teacher, prompts=PromptConfig(refine_clicks=1), targets=IMITATE)
    assert stage.compute_terms(batch)["loss"].isfinite()


def test_an_online_teacher_gives_what_the_cache_gives() -> None:
    teacher, loss = tiny_teacher(), MaskLossConfig(feature_weight=1.0)
    stage = tiny_stage(teacher, targets=TargetConfig(1.0, 1.0), loss=loss).eval()
    online = square_batch()
    online.teacher_pixels = online.pixels
    cached = stage.compute_terms(with_teacher(square_batch(), teacher))
    assert cached["feature"] > 0
    assert torch.equal(stage.compute_terms(online)["loss"], cached["loss"])


def test_instances_of_the_teacher_need_photos_alone() -> None:
    teacher = tiny_teacher()
    batch = with_teacher(square_batch(), teacher)
    batch.masks = batch.boxes_xyxy = batch.mask_image_index = None
    stage = tiny_stage(teacher, prompts=PromptConfig(teacher_instances=3, refine_clicks=1), targets=IMITATE)
    before = stage.compute_terms(batch)["loss"].item()
    fit(stage, steps=8, batch=batch)
    assert stage.compute_terms(batch)["loss"].item() < before


def test_an_instance_of_the_teacher_is_the_best_of_its_answers() -> None:
    teacher, batch = tiny_teacher(), square_batch()
    embeddings = teacher.embed(batch.pixels)
    noise = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    instances = teacher_instances(teacher, embeddings, batch.original_hw, noise)
    assert instances.image_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert not instances.masks[3:, 16:].any(), "the lower half of the second photo is padding"
    # noise (u, x, y): the u-th share of the 32 x 32 valid cells in reading order, x and y inside the cell of 4 pixels
    cell = int(noise[0, 0] * 32 * 32)
    point = (torch.tensor([cell % 32, cell // 32]) + noise[0, 1:]) * 4
    click = Prompts(torch.tensor([0]), points_xy=point.view(1, 1, 2), point_labels=torch.tensor([[POSITIVE]]))
    logits, iou = teacher.decode(embeddings, click, multimask=True)
    best = logits[0, iou.argmax()]
    decided = best.abs() > 1e-5  # three prompts are decoded at once there, and one here: roundoff differs
    assert decided.float().mean() > 0.99
    assert torch.equal(instances.masks[0][decided], (best > 0).float()[decided])
    column, row = instances.masks[0].any(0).nonzero()[:, 0], instances.masks[0].any(1).nonzero()[:, 0]
    box = [column[0] * 4, row[0] * 4, column[-1] * 4 + 4, row[-1] * 4 + 4]
    assert instances.boxes_xyxy[0].tolist() == [float(side) for side in box]


def test_boxes_of_masks() -> None:
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 3, 3], [0, 0, 6, 4]]


def test_the_full_schedule_asks_eleven_times() -> None:
    """Follow the SAM paper, appendix A: one prompt, eight clicks, two rounds without a click."""
    prompts = PromptConfig(box_share=1.0, refine_clicks=8, mask_only_rounds=2)
    stage, asked = tiny_stage(prompts=prompts), []
    stage.model.mask_decoder.iou_prediction_head.register_forward_hook(lambda *_: asked.append(1))
    stage.compute_terms(square_batch())["loss"].backward()
    assert len(asked) == 11
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stage.model.mask_decoder.parameters())


@pytest.mark.parametrize(
    ("prompts", "trains"),
    [
        (PromptConfig(box_share=1.0), True),
        (PromptConfig(box_share=1.0, multimask_on_box=False), False),
        (PromptConfig(box_share=0.0, multimask_on_box=False), True),
        (PromptConfig(box_share=0.0, multimask=False), False),
    ],
)
@pytest.mark.parametrize("targets", [TargetConfig(), IMITATE], ids=["truth", "teacher"])
def test_which_prompts_train_the_multimask_output(prompts, trains, targets) -> None:  # type: ignore[no-untyped-def]
    teacher = tiny_teacher()
    stage = tiny_stage(teacher, prompts=prompts, targets=targets)
    stage.compute_terms(with_teacher(square_batch(), teacher))["loss"].backward()
    single, *multi = stage.model.mask_decoder.output_hypernetworks_mlps
    assert single.layers[0].weight.grad.abs().max() > 0
    assert any(mlp.layers[0].weight.grad.abs().max() > 0 for mlp in multi) == trains


def test_a_batch_without_masks_costs_nothing_and_reaches_every_tensor() -> None:
    """Use photos without masks: the other ranks of a step still wait for the gradients of this rank."""
    batch = square_batch()
    batch.masks, batch.boxes_xyxy = torch.zeros(0, 32, 32), torch.zeros(0, 4)
    batch.mask_image_index = torch.zeros(0, dtype=torch.long)
    stage = tiny_stage()
    terms = stage.compute_terms(batch)
    assert terms["loss"] == 0 and set(terms) == {"loss", "mask", "dice", "iou"}
    terms["loss"].backward()
    assert [name for name, p in stage.model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_a_mask_that_covers_nothing_does_not_count() -> None:
    stage = tiny_stage(prompts=PromptConfig(refine_clicks=2), loss=MaskLossConfig(num_points=20)).eval()
    batch = square_batch()
    batch.masks[2] = 0.0  # the only one of the second photo
    terms = stage.compute_terms(batch)
    for name, value in stage.compute_terms(photos_of(batch, [0])).items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-5)


def test_a_mask_thinner_than_a_cell_trains() -> None:
    stage = tiny_stage(prompts=PromptConfig(refine_clicks=2))
    batch = square_batch()
    batch.masks *= 0.05
    terms = stage.compute_terms(batch)
    assert terms["loss"].isfinite() and terms["mask"] > 0


@pytest.mark.parametrize("prompts", [PromptConfig(), PromptConfig(teacher_instances=2)])
def test_a_missing_teacher_is_said(prompts) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DistillError, match="need a teacher"):
        tiny_stage(prompts=prompts, targets=IMITATE)


@pytest.mark.parametrize("options", [{"targets": IMITATE}, {"loss": MaskLossConfig(feature_weight=1.0)}])
def test_photos_without_embeddings_are_refused(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DistillError, match="distill cache build"):
        tiny_stage(tiny_teacher(), **options).compute_terms(square_batch())


def test_a_teacher_of_another_grid_is_refused() -> None:
    spec = ModelSpec("efficientvit_sam_t", 128, 32, embedding_size=16, decoder_mlp_dim=64)
    other = Teacher(build_from_spec(spec), name="fine", weights_sha256="0" * 64)
    with pytest.raises(DistillError, match="grid of 8, the teacher fine on one of 16"):
        tiny_stage(other, targets=IMITATE)


def test_frozen_batch_norm_keeps_its_statistics_and_trains_its_weights() -> None:
    stage = tiny_stage(optim=OptimConfig(lr=1e-2, batch_norm="frozen"))
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    fit(stage, steps=2)
    norms = [name for name, module in stage.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    after = stage.state_dict()
    assert norms and not any(stage.get_submodule(name).training for name in norms)
    moved = 0
    for name in norms:
        for statistic in ("running_mean", "running_var"):
            assert torch.equal(after[f"{name}.{statistic}"], before[f"{name.removeprefix('model.')}.{statistic}"])
        moved += not torch.equal(after[f"{name}.weight"], before[f"{name.removeprefix('model.')}.weight"])
    assert moved


def test_frozen_parts_are_frozen_on_resume_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    optim = OptimConfig(lr=1e-2, prompt_encoder_lr_scale=0.0, mask_decoder_lr_scale=0.5)
    stage = tiny_stage(optim=optim)
    before = {name: value.clone() for name, value in stage.model.prompt_encoder.state_dict().items()}
    fit(stage, steps=1).save_checkpoint(tmp_path / "last.ckpt")
    resumed = tiny_stage(optim=optim)
    trainer = fit(resumed, steps=3, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 3
    assert not any(p.requires_grad for p in resumed.model.prompt_encoder.parameters())
    assert not resumed.model.prompt_encoder.training and resumed.model.mask_decoder.training
    for name, value in resumed.model.prompt_encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    initial = {group["initial_lr"] for group in trainer.optimizers[0].param_groups}
    assert initial == {1e-2, 5e-3}


def fit(stage: MaskStage, steps: int, batch: ImageBatch | None = None, **options) -> lightning.Trainer:  # type: ignore[no-untyped-def]
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = [square_batch() if batch is None else batch] * steps
    trainer.fit(stage, torch.utils.data.DataLoader(batches, batch_size=None), weights_only=True, **options)
    return trainer
