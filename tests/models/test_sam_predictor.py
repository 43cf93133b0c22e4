"""`distill.Predictor` and `AutomaticMaskGenerator` beside segment_anything's own, on the same weights of SAM."""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam

from distill import AutomaticMaskGenerator, Predictor, load_model
from distill.errors import CheckpointError, DistillError
from distill.models.checkpoint import load_for_inference
from distill.models.sam import PromptableModel
from tests.fixtures.small_sam import as_ours, build_sam

PHOTO = np.random.RandomState(0).randint(0, 256, (61, 97, 3), np.uint8)
POINTS, LABELS = np.array([[30, 20], [80.5, 55.25]]), np.array([1, 0])
BOXES = np.array([[10, 5, 60, 41], [3, 2, 90, 60], [40, 30, 50.5, 44]])
LOW_RES = np.random.RandomState(1).randn(1, 32, 32).astype(np.float32)
ATOL = 2e-6  # our decoder adds in another order


@pytest.fixture(scope="module")
def sam() -> Sam:
    return build_sam()


@pytest.fixture(scope="module")
def model(sam: Sam) -> PromptableModel:
    return as_ours(sam)


@pytest.fixture
def pair(sam: Sam, model: PromptableModel) -> tuple[Predictor, SamPredictor]:
    """Give both predictors with the same photo."""
    ours, theirs = Predictor(model), SamPredictor(sam)
    ours.set_image(PHOTO)
    theirs.set_image(PHOTO)
    return ours, theirs


def close(mine: Any, theirs: Any) -> None:
    """Compare answers: masks may differ where a logit is 0 but for roundoff, on at most one pixel of a thousand."""
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        one, other = np.asarray(one), np.asarray(other)
        assert one.shape == other.shape and one.dtype == other.dtype
        if one.dtype == np.bool_:
            assert (one != other).mean() < 1e-3
        else:
            np.testing.assert_allclose(one, other, rtol=0, atol=ATOL)


def public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_every_public_name_is_there(pair):
    ours, theirs = pair
    assert public(theirs) <= public(ours)
    assert public(theirs.transform) <= public(ours.transform)
    for name in ("original_size", "input_size", "is_image_set", "orig_h", "input_w"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.device == theirs.device == torch.device("cpu")
    torch.testing.assert_close(ours.features, theirs.features)
    assert ours.get_image_embedding() is ours.features
    ours.reset_image()
    theirs.reset_image()
    assert (ours.is_image_set, ours.features) == (theirs.is_image_set, theirs.features) == (False, None)


@pytest.mark.parametrize("name", ["__init__", "set_image", "set_torch_image", "predict", "predict_torch"])
def test_arguments_have_the_same_names_order_and_defaults(name):
    ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (Predictor, SamPredictor))
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]


@pytest.mark.parametrize("return_logits", [False, True])
@pytest.mark.parametrize(
    "prompt",
    [
        (POINTS, LABELS),
        (None, None, BOXES[0]),
        (None, None, BOXES[:1]),
        (POINTS, LABELS, BOXES[0], None, False),
        (POINTS, LABELS, BOXES[:1], LOW_RES),
        (None, None, None, LOW_RES, False),
        (POINTS, np.array([1, -1])),
    ],
    ids=str,
)
def test_predict_by_position(pair, prompt, return_logits):
    ours, theirs = pair
    options = {} if len(prompt) > 5 else {"return_logits": return_logits}
    close(ours.predict(*prompt, **options), theirs.predict(*prompt, **options))


def test_colours_in_the_other_order(sam, model):
    ours, theirs = Predictor(model), SamPredictor(sam)
    ours.set_image(PHOTO, "BGR")
    theirs.set_image(PHOTO, "BGR")
    torch.testing.assert_close(ours.features, theirs.features)
    with pytest.raises(DistillError, match="image_format is RGB or BGR, not 'HSV'"):
        ours.set_image(PHOTO, "HSV")


@pytest.mark.parametrize("multimask", [True, False])
def test_tensors_of_prompts(pair, multimask):
    size = PHOTO.shape[:2]
    boxes, points = torch.as_tensor(BOXES), torch.as_tensor(POINTS)[None].expand(3, 2, 2)
    labels, low_res = torch.as_tensor(LABELS)[None].expand(3, 2), torch.as_tensor(LOW_RES)[None].expand(3, 1, 32, 32)
    given = []
    for predictor in pair:
        moved = predictor.transform.apply_boxes_torch(boxes, size), predictor.transform.apply_coords_torch(points, size)
        given.append(moved)
    for mine, their in zip(*given, strict=True):
        torch.testing.assert_close(mine, their)
    boxes, points = given[0]
    for prompt in [(None, None, boxes), (points, labels), (points, labels, boxes, low_res)]:
        for logits in (False, True):
            close(*(p.predict_torch(*prompt, multimask_output=multimask, return_logits=logits) for p in pair))


@pytest.mark.parametrize("hw", [(61, 97), (97, 61), (128, 128), (300, 37), (640, 427)])
def test_transform(sam, model, hw):
    ours, theirs = Predictor(model).transform, SamPredictor(sam).transform
    photo = np.random.RandomState(2).randint(0, 256, (*hw, 3), np.uint8)
    np.testing.assert_array_equal(ours.apply_image(photo), theirs.apply_image(photo))
    for name, values in (("apply_coords", POINTS), ("apply_boxes", BOXES)):
        np.testing.assert_allclose(getattr(ours, name)(values, hw), getattr(theirs, name)(values, hw), rtol=1e-12)
    assert ours.get_preprocess_shape(*hw, 128) == theirs.get_preprocess_shape(*hw, 128)
    assert ours.target_length == theirs.target_length
    pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    resized = ours.apply_image_torch(pixels)[0].permute(1, 2, 0).numpy()
    assert np.abs(resized - ours.apply_image(photo)).max() <= 1.5  # PIL rounds after each of the two directions


@pytest.mark.parametrize("input_size", [(81, 128), (80, 128)])
def test_a_photo_that_the_caller_resized(sam, model, input_size):
    ours, theirs = Predictor(model), SamPredictor(sam)
    pixels = torch.randint(0, 256, (1, 3, *input_size), generator=torch.Generator().manual_seed(0)).float()
    for predictor in (ours, theirs):
        predictor.set_torch_image(pixels, PHOTO.shape[:2])
    assert ours.input_size == theirs.input_size == input_size
    close(ours.predict(POINTS, LABELS, return_logits=True), theirs.predict(POINTS, LABELS, return_logits=True))
    with pytest.raises(DistillError, match=r"with a longest side of 128, not \(1, 3, 64, 64\)"):
        ours.set_torch_image(torch.zeros(1, 3, 64, 64), (64, 64))


def test_before_a_photo(model):
    predictor = Predictor(model)
    for call in (predictor.get_image_embedding, lambda: predictor.predict(box=BOXES[0])):
        with pytest.raises(RuntimeError, match="no photo is set"):  # the class that SamPredictor raises
            call()
    with pytest.raises(DistillError, match="no photos are set: call set_image_batch"):
        predictor.predict_batch(box_batch=[BOXES])


def test_several_boxes_are_several_answers(pair):
    """SamPredictor's `predict` takes one box; its `predict_torch` takes several."""
    ours, theirs = pair
    masks, iou_predictions, low_res = ours.predict(box=BOXES)
    assert (masks.shape, iou_predictions.shape, low_res.shape) == ((3, 3, 61, 97), (3, 3), (3, 3, 32, 32))
    for i, box in enumerate(BOXES):
        close((masks[i], iou_predictions[i], low_res[i]), theirs.predict(box=box))
    again = ours.predict(box=BOXES, mask_input=low_res[:, :1], multimask_output=False)
    close([part[1] for part in again], theirs.predict(box=BOXES[1], mask_input=low_res[1, :1], multimask_output=False))


def test_many_photos_and_many_prompts_in_one_call(sam, model):
    sizes = [(61, 97), (128, 40), (300, 200)]
    photos = [np.random.RandomState(i).randint(0, 256, (*hw, 3), np.uint8) for i, hw in enumerate(sizes)]
    predictor, theirs = Predictor(model), SamPredictor(sam)
    predictor.set_image_batch(photos, batch_size=2)
    many = np.random.RandomState(3).uniform(0, 40, (40, 2, 2))  # more than the decoder takes at a time
    boxes = np.concatenate([many.min(1), many.max(1)], 1)
    answers = predictor.predict_batch(
        point_coords_batch=[None, POINTS / 3, None],
        point_labels_batch=[None, LABELS, None],
        box_batch=[boxes, None, BOXES[0]],
        multimask_output=False,
    )
    assert [len(part) for part in answers] == [3, 3, 3]
    assert [masks.shape for masks in answers[0]] == [(40, 1, 61, 97), (1, 1, 128, 40), (1, 1, 300, 200)]
    clicks = {"point_coords": POINTS / 3, "point_labels": LABELS}
    for i, rows in enumerate([[{"box": box} for box in boxes], [clicks], [{"box": BOXES[0]}]]):
        theirs.set_image(photos[i])
        for row, prompt in enumerate(rows):
            close([part[i][row] for part in answers], theirs.predict(**prompt, multimask_output=False))
    with pytest.raises(DistillError, match="a prompt is needed for each of 3 photos, not 1"):
        predictor.predict_batch(box_batch=[BOXES])
    with pytest.raises(DistillError, match="nothing to predict"):
        predictor.predict_batch(box_batch=[BOXES, None, BOXES])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pair, model, dtype):
    """Weights in half precision answer in float32, near the float32 model: prompts keep their places."""
    predictor = Predictor(copy.deepcopy(model).to(dtype))
    predictor.set_image(PHOTO)
    assert predictor.features is not None and predictor.features.dtype == dtype
    masks, iou_predictions, low_res = predictor.predict(POINTS, LABELS, BOXES[0])
    assert masks.dtype == np.bool_ and iou_predictions.dtype == low_res.dtype == np.float32
    expected = pair[1].predict(POINTS, LABELS, BOXES[0])
    spread = np.abs(expected[2]).max()
    assert np.abs(low_res - expected[2]).max() < 0.05 * spread
    predictor.set_image_batch([PHOTO, PHOTO])
    again = predictor.predict_batch([POINTS, POINTS], [LABELS, LABELS], [BOXES[0], BOXES[0]])
    assert np.abs(again[2][1][0] - expected[2]).max() < 0.05 * spread


def test_a_model_is_loaded_where_and_as_it_is_wanted(teacher_file):
    model = load_model(teacher_file, device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16 and model.device == torch.device("cpu")
    positions = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    assert positions.dtype == torch.float32
    Predictor(model).set_image(PHOTO)
    assert load_for_inference(teacher_file, dtype=torch.float16).dtype == torch.float16
    assert load_model(teacher_file).dtype == torch.float32
    with pytest.raises(CheckpointError, match="dtype=torch.int8: a model's weights are floating-point numbers"):
        load_model(teacher_file, dtype=torch.int8)


def test_a_predictor_a_thread_over_one_model(model):
    """Threads share the weights and nothing else: each gets the answers that it gets alone."""
    photos = [np.random.RandomState(i).randint(0, 256, (40 + 7 * i, 60, 3), np.uint8) for i in range(8)]

    def answer(photo: np.ndarray) -> list[tuple[np.ndarray, ...]]:
        predictor = Predictor(model)
        found = []
        for box in BOXES[:, [1, 0, 3, 2]] / 3:
            predictor.set_image(photo)
            found.append(predictor.predict(box=box))
        return found

    alone = [answer(photo) for photo in photos]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(answer, photos))
    for one, other in zip(alone, together, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            close(mine, theirs)


EVERYTHING = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_mode": "coco_rle", "points_per_batch": 5},
        {"crop_n_layers": 1, "crop_nms_thresh": 1.0, "output_mode": "uncompressed_rle"},
    ],
    ids=str,
)
def test_everything_on_a_photo(sam, model, options):
    ours = AutomaticMaskGenerator(model, **EVERYTHING, **options)
    theirs = SamAutomaticMaskGenerator(sam, **EVERYTHING, **options)
    assert public(theirs) <= public(ours)
    assert inspect.signature(ours.generate).parameters.keys() == inspect.signature(theirs.generate).parameters.keys()
    found, expected = ours.generate(PHOTO), theirs.generate(PHOTO)
    assert len(found) == len(expected) > 1
    for mine, their in zip(found, expected, strict=True):
        assert mine.keys() == their.keys()
        assert mine["point_coords"] == their["point_coords"] and mine["crop_box"] == their["crop_box"]
        assert mine["predicted_iou"] == pytest.approx(their["predicted_iou"], abs=ATOL)
        assert mine["area"] == pytest.approx(their["area"], abs=5)
        if not options:
            close([mine["segmentation"]], [their["segmentation"]])
    with pytest.raises(DistillError, match="a photo is a uint8 array"):
        ours.generate(PHOTO[..., 0])


def test_the_generator_takes_its_options_by_position(model):
    generator = AutomaticMaskGenerator(model, 4, 16, 0.5)
    assert (generator.points_per_batch, generator.pred_iou_thresh, len(generator.point_grids[0])) == (16, 0.5, 16)
