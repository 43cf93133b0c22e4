"""`distill bench mask-step`: both formulations answer the same question, and the processes are compared as they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distill.bench import mask_step_forms as bench_mask_forms
from distill.bench.mask_step_forms import StepSetup, build_student, draw_inputs, ours, published
from distill.cli import main as cli


@pytest.fixture
def setup(teacher_file: Path) -> StepSetup:
    return StepSetup(str(teacher_file), images=2, masks=6)


@pytest.mark.parametrize(("alike", "tolerance"), [(True, 0.01), (False, 0.04)])
def test_both_formulations_have_the_same_loss(setup: StepSetup, alike: bool, tolerance: float) -> None:
    """Compare losses. If the candidates are alike, the points uncertain for one are also those uncertain for any."""
    model = build_student(setup)
    inputs = draw_inputs(setup, model)
    decoder = model.mask_decoder
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.layers[-1].weight.data *= 20  # an edge to sample at, and candidates that differ
        if alike:
            mlp.load_state_dict(decoder.output_hypernetworks_mlps[1].state_dict())
    if alike:
        decoder.mask_tokens.weight.data[:] = decoder.mask_tokens.weight.data[1].clone()
    with torch.no_grad():
        found, expected = ours(model, inputs, setup), published(model, inputs, setup)
    assert found.item() == pytest.approx(expected.item(), rel=tolerance)


def test_the_inputs_has_boxes_and_clicks_in_its_masks(setup: StepSetup) -> None:
    model = build_student(setup)
    inputs = draw_inputs(setup, model)
    size = model.image_size
    assert inputs.pixels.shape == (2, 3, size, size) and inputs.masks.shape == (12, size, size)
    by_box, by_click = inputs.prompts
    assert by_box.boxes_xyxy is not None and by_click.points_xy is not None
    scale = model.prompt_size / model.low_res_size
    for mask, points in zip(inputs.low_res_masks[6:], by_click.points_xy, strict=True):
        columns, rows = (points / scale).long().unbind(1)
        assert (mask[rows, columns] > 0).all()
    half = torch.nn.functional.avg_pool2d(inputs.masks[:, None], size // model.low_res_size)[:, 0]
    torch.testing.assert_close(half, inputs.low_res_masks)


def test_the_command_compares_processes(teacher_file: Path, capsys) -> None:
    arguments = ["--student", str(teacher_file), "--images", "1", "--masks", "2", "--rounds", "1", "--threads", "1"]
    assert cli.main(["bench", "mask-step", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["setup"]["masks"] == 2 and found["setup"]["checkpointing"] is True
    ratio = found["published"]["seconds"] / found["ours"]["seconds"]
    assert found["speed_ratio"] == pytest.approx(ratio) and found["memory_ratio"] > 0
    assert abs(found["relative_loss_difference"]) < 0.05
    assert found["encoder"]["seconds"] > 0


def test_a_formulation_that_fails_is_one_line(capsys) -> None:
    assert cli.main(["bench", "mask-step", "--student", "no_such_model", "--rounds", "1"]) == 2
    error = capsys.readouterr().err
    assert "no_such_model: no such file" in error and "Traceback" not in error.splitlines()[0]


def test_measure_counts_every_step(setup: StepSetup) -> None:
    found = bench_mask_forms.measure("ours", StepSetup(setup.model, images=1, masks=2, repeats=2))
    assert len(found["seconds"]) == len(found["core_seconds"]) == 2
    assert found["gradient_norm"] > 0 and found["peak_bytes"] >= found["idle_bytes"]
