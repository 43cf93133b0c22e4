"""The tool that trained the packaged teacher still runs, and goes on from the phases that are finished."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from distill.data.synthetic import drawings
from distill.models.checkpoint import load_model
from distill.prompts.seeded_noise import step_generator
from distill.quickstart.photographs import write_part

TOOL = Path(__file__).parents[2] / "tools" / "train_quickstart_teacher.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Import the tool, which is no part of the package."""
    spec = importlib.util.spec_from_file_location(TOOL.stem, TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look for their module there
    spec.loader.exec_module(module)
    return module


def test_cells_near_a_box(tool):
    near = tool.near_boxes(torch.tensor([[64.0, 128.0, 128.0, 192.0]]), side=32, prompt_size=512)
    rows, cols = near[0].any(1).nonzero().flatten(), near[0].any(0).nonzero().flatten()
    # 16 pixels a cell; the margin is a quarter of 64 pixels, and two cells: cells 4 to 7 grow by three
    assert cols.tolist() == list(range(1, 11)) and rows.tolist() == list(range(5, 15))


def test_weights_at_another_grid_are_the_same(tool):
    model = tool.build_from_spec(tool.teacher_spec(8))
    other = tool.at_grid(model, 16)
    assert (other.image_size, other.embedding_size) == (256, 16)
    assert all(other.state_dict()[name].equal(tensor) for name, tensor in model.state_dict().items())


def test_attention_begins_at_the_place_of_a_prompt(tool):
    model = tool.build_from_spec(tool.teacher_spec(8))
    tool.attend_by_place(model)
    places = model.prompt_encoder.get_dense_pe().flatten(2)[0].T  # (64, C)
    for attention in (
        model.mask_decoder.transformer.layers[0].cross_attn_token_to_image,
        model.mask_decoder.transformer.final_attn_token_to_image,
    ):
        query, key = attention.q_proj(places), attention.k_proj(places)
        assert ((query @ key.T).argmax(1) == torch.arange(64)).all()


def test_bands_of_frequencies_rise(tool):
    frequencies = tool.position_frequencies(128)
    radii = frequencies.norm(dim=0).view(tool.NUM_BANDS, -1)
    assert (radii[:-1].amax(1) <= radii[1:].amin(1) + 0.01).all()
    assert radii.min() >= tool.LOWEST - 0.01 and radii.max() <= tool.HIGHEST
    along_x, along_y = (frequencies[axis].abs() < 1e-3 for axis in (1, 0))
    assert (along_x.view(8, -1).sum(1) >= 4).all() and (along_y.view(8, -1).sum(1) >= 4).all()


def test_a_window_of_the_frame_has_the_positions_of_the_large_grid(tool):
    large = tool.ExactPositions(tool.position_frequencies(32))
    small = tool.FramedPositions(large.positional_encoding_gaussian_matrix)
    small.share, small.origin = 0.5, torch.tensor([0.25, 0.5])  # XY
    torch.testing.assert_close(small((4, 4)), large((8, 8))[:, 4:8, 2:6])
    small.whole()
    assert torch.equal(small((4, 4)), large((4, 4)))


def test_both_optimizers_go_on_after_a_stop(tool):
    def optimizer(layer):
        adamw = torch.optim.AdamW(layer.parameters(), lr=0.1)
        return tool.MuonAdamW(adamw, [layer.weight], lr=0.2)

    def step(layer, optim):
        optim.zero_grad()
        layer(torch.ones(2, 3)).square().sum().backward()
        optim.step()

    layer = torch.nn.Linear(3, 4)
    optim = optimizer(layer)
    assert [group["lr"] for group in optim.param_groups] == [0.1, 0.2]
    step(layer, optim)
    again = copy.deepcopy(layer)
    resumed = optimizer(again)
    resumed.load_state_dict(copy.deepcopy(optim.state_dict()))
    for one in (optim, resumed):
        for group in one.param_groups:
            group["lr"] *= 0.5  # as a schedule does
    step(layer, optim)
    step(again, resumed)
    assert torch.equal(layer.weight, again.weight) and torch.equal(layer.bias, again.bias)


def test_a_phase_of_no_steps_is_left_out(tool):
    required = ["--set", "photos", "photos.json", "1", "--out", "out"]
    assert [phase.name for phase in tool.phases(tool.parse_args(required))] == [
        "drawings",
        "cells",
        "coarse",
        "middle",
        "rounds",
        "small",
        "near",
        "fine",
    ]
    plan = tool.phases(tool.parse_args([*required, "--middle-steps=0", "--small-steps=0"]))
    assert [phase.grid for phase in plan] == [16, 32, 16, 32, 32, 64]


def test_windows_are_drawn_with_the_odds_of_the_phase(tool):
    positions = tool.FramedPositions(tool.position_frequencies(32))
    for odds, expected in ((0.0, {1.0}), (1.0, {0.25}), (0.5, {0.25, 1.0})):
        shares = set()
        for step in range(20):
            positions.draw(0.25, odds, step_generator(0, step))
            shares.add(positions.share)
            assert (positions.origin >= 0).all() and (positions.origin + positions.share <= 1).all()
        assert shares == expected


@pytest.mark.slow
def test_phases_of_one_step_each(tool, tmp_path, monkeypatch):
    data = write_part("val", 2, tmp_path / "annotations.json")
    monkeypatch.setattr(tool, "load_imagenet_backbone", lambda encoder: None)  # another package's weights
    monkeypatch.setattr(tool, "GRID", 8)
    for name, few in {"NUM_DRAWINGS": 2, "NUM_PROMPTS": 4, "NUM_RANDOM_OUTLINES": 5}.items():
        monkeypatch.setattr(drawings, name, few)
    plan = [("drawings", "decoder", 4, 1), ("cells", "encoder", 4, 2), ("coarse", "all", 4, 2), ("fine", "all", 8, 1)]
    monkeypatch.setattr(tool, "phases", lambda args: [tool.Phase(a, b, c, 1, 1e-4, d) for a, b, c, d in plan])
    out = tmp_path / "out"
    photos = [str(data.images), str(data.annotations)]
    command = ["--set", *photos, "1", "--held-out", *photos, "--out", str(out)]
    options = [*command, "--num-workers=0", "--accelerator=cpu", "--save-every=1"]
    tool.main(options)
    assert all((out / f"{name}.safetensors").is_file() for name, *_ in plan)
    scores = [json.loads(line) for line in (out / "coarse" / "metrics.jsonl").read_text().splitlines()]
    assert any("val/box_miou" in line for line in scores)
    teacher = load_model(out / tool.WEIGHTS)
    assert (teacher.image_size, teacher.embedding_size, teacher.spec.paint_prompts) == (128, 8, False)
    before = (out / "drawings.safetensors").stat().st_mtime_ns
    (out / "fine.safetensors").unlink()
    tool.main(options)
    assert (out / "fine.safetensors").is_file() and (out / "drawings.safetensors").stat().st_mtime_ns == before
