"""How a student starts: from complete models, from encoders and from ImageNet classifiers; errors for other files."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from distill.config.schema import StudentConfig
from distill.errors import CheckpointError
from distill.models.initialization import build_student
from distill.models.sam import PromptableModel, build_from_spec, spec_for
from distill.models.teacher import Teacher
from distill.students.timm import TimmEncoder

SIZE = 64


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def another(name: str, teacher: Teacher) -> PromptableModel:
    """Build a model of the student's shape whose weights differ from those of the student."""
    torch.manual_seed(7)
    return build_from_spec(spec_for(name, image_size=SIZE, like=teacher.model.spec))


def begin(name: str, teacher: Teacher, path: Path, **options: object) -> PromptableModel:
    return build_student(StudentConfig(name, image_size=SIZE, init_from=str(path), **options), teacher)


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_a_released_whole_model(tiny_teacher: Teacher):
    model = another("edge_sam", tiny_teacher)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, "file.pt")
    assert_same(begin("edge_sam", tiny_teacher, Path("file.pt")), model)


@pytest.mark.parametrize("prefix", ["", "image_encoder."])
def test_an_encoder_alone(tiny_teacher: Teacher, prefix: str):
    model = another("edge_sam", tiny_teacher)
    torch.save({"model": {prefix + k: v for k, v in model.image_encoder.state_dict().items()}}, "file.pth")
    student = begin("edge_sam", tiny_teacher, Path("file.pth"))
    assert_same(student.image_encoder, model.image_encoder)
    assert_same(student.mask_decoder, tiny_teacher.model.mask_decoder)


def test_an_encoder_with_a_decoder_of_its_own(tiny_teacher: Teacher, caplog):
    caplog.set_level(logging.INFO)
    model = another("efficient_sam_vitt", tiny_teacher)
    state = {f"image_encoder.{k}": v for k, v in model.image_encoder.state_dict().items()}
    torch.save({"model": {**state, "mask_decoder.final_output_upscaling_layers.0.0.weight": torch.zeros(1)}}, "file.pt")
    student = begin("efficient_sam_vitt", tiny_teacher, Path("file.pt"))
    assert_same(student.image_encoder, model.image_encoder)
    assert "its own decoder is left out" in caplog.text


HEADS = {
    "efficientvit_sam_t": ("neck.", "norm.", "head.op_list.0.conv.weight"),
    "mobile_sam": ("neck.", None),
    "edge_sam": ("neck.", "fuse_stage2.", "fuse_stage3.", "classifier.classifier.l.weight"),
}


def classifier_of(model: PromptableModel) -> dict[str, torch.Tensor]:
    """Return the tensors of an ImageNet file with the backbone of a student."""
    *new, head = HEADS[model.spec.encoder]
    state = model.image_encoder.state_dict()
    backbone = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(new))}
    return backbone if head is None else {**backbone, head: torch.zeros(3)}


@pytest.mark.parametrize("name", HEADS)
def test_the_backbone_of_a_classifier(tiny_teacher: Teacher, caplog, name: str):
    caplog.set_level(logging.INFO)
    model = another(name, tiny_teacher)
    content = classifier_of(model)
    torch.save({"state_dict": content}, "imagenet.pt")
    student = begin(name, tiny_teacher, Path("imagenet.pt"))
    own = student.image_encoder.state_dict()
    head = HEADS[name][-1]
    assert all(torch.equal(own[key], tensor) for key, tensor in content.items() if key != head)
    assert f"left out: {head or 'nothing'}" in caplog.text
    assert "begun at random: " + {"edge_sam": "fuse_stage2."}.get(name, "neck.") in caplog.text
    assert_same(student.mask_decoder, tiny_teacher.model.mask_decoder)


def test_nano_sam_from_a_resnet(tiny_teacher: Teacher):
    resnet = timm.create_model("resnet18").state_dict()
    torch.save(resnet, "resnet18.pth")
    own = begin("nano_sam", tiny_teacher, Path("resnet18.pth")).image_encoder.state_dict()
    assert all(torch.equal(own[f"backbone.{key}"], resnet[key]) for key in resnet if not key.startswith("fc."))


def test_a_classifier_of_another_variant(tiny_teacher: Teacher):
    content = classifier_of(another("efficientvit_sam_t", tiny_teacher))
    content["other_head.weight"] = content.pop("backbone.stages.0.op_list.0.conv.weight")
    torch.save(content, "imagenet.pt")
    with pytest.raises(CheckpointError) as caught:
        begin("efficientvit_sam_t", tiny_teacher, Path("imagenet.pt"))
    message = str(caught.value)
    assert "as the backbone of efficientvit_sam_t: the tensors do not fit" in message
    assert "1 missing" in message and "1 unexpected" in message and "other_head.weight" in message


def test_a_released_model_of_another_width(tiny_teacher: Teacher):
    spec = spec_for("edge_sam", image_size=SIZE, like=replace(tiny_teacher.model.spec, embedding_dim=16))
    torch.save(build_from_spec(spec).state_dict(), "file.pt")
    with pytest.raises(CheckpointError, match=r"student.init_from=file.pt as edge_sam: the tensors do not fit.*\n.*"):
        begin("edge_sam", tiny_teacher, Path("file.pt"))


# ---- student.pretrained


def pretrained(name: str, teacher: Teacher, source: str) -> TimmEncoder:
    encoder = build_student(StudentConfig(name, image_size=SIZE, pretrained=source), teacher).image_encoder
    assert isinstance(encoder, TimmEncoder)
    return encoder


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050@16", "convnext_atto.d2_in1k"])
def test_a_timm_backbone_from_a_file(tiny_teacher: Teacher, caplog, name: str):
    caplog.set_level(logging.INFO)
    whole = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in _classifier(name).items()}
    torch.save(whole, "weights.pth")
    own = pretrained(f"timm/{name}", tiny_teacher, "weights.pth").backbone.state_dict()
    assert all(any(torch.equal(t, v) for v in whole.values() if v.shape == t.shape) for t in own.values())
    assert "without the classifier's head" in caplog.text


def _classifier(name: str) -> dict[str, torch.Tensor]:
    return timm.create_model(name.partition("@")[0]).state_dict()


def test_a_position_embedding_is_resized(tiny_teacher: Teacher):
    whole = _classifier("vit_tiny_patch16_224")
    torch.save(whole, "weights.pth")
    own = pretrained("timm/vit_tiny_patch16_224.augreg_in21k", tiny_teacher, "weights.pth").backbone.state_dict()
    positions = next(tensor for name, tensor in own.items() if name.endswith("pos_embed"))
    assert positions.shape[1] == 1 + (SIZE // 16) ** 2 and whole["pos_embed"].shape[1] == 1 + 14**2
    assert torch.equal(positions[:, 0], whole["pos_embed"][:, 0])  # the class token's


def test_weights_of_other_pixel_statistics_must_be_named(tiny_teacher: Teacher):
    torch.save(_classifier("vit_tiny_patch16_224"), "weights.pth")
    with pytest.raises(CheckpointError, match=r"name the weights.*student.name=timm/vit_tiny_patch16_224\.\w+"):
        pretrained("timm/vit_tiny_patch16_224", tiny_teacher, "weights.pth")


def test_weights_of_another_backbone(tiny_teacher: Teacher):
    torch.save(_classifier("resnet18"), "weights.pth")
    with pytest.raises(
        CheckpointError, match=r"student.pretrained=weights.pth: RuntimeError.*\n(.*\n)*.*another model"
    ):
        pretrained("timm/resnet10t", tiny_teacher, "weights.pth")


def test_weights_that_are_not_finite(tiny_teacher: Teacher):
    whole = _classifier("mobilenetv3_small_050")
    whole["blocks.0.0.conv_dw.weight"][0] = float("nan")
    torch.save(whole, "weights.pth")
    with pytest.raises(CheckpointError, match=r"weights\.pth: 1 tensors hold NaN or infinities: .*conv_dw\.weight"):
        pretrained("timm/mobilenetv3_small_050", tiny_teacher, "weights.pth")


def test_the_hub_out_of_reach(tiny_teacher: Teacher, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(Path.cwd()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path.cwd()))
    with pytest.raises(CheckpointError, match="give a local file: student.pretrained=FILE"):
        pretrained("timm/resnet18", tiny_teacher, "timm")


def test_pretrained_is_for_timm(tiny_teacher: Teacher):
    torch.save({"x": torch.zeros(1)}, "weights.pth")
    with pytest.raises(CheckpointError, match="is for students named timm/NAME; efficientvit_sam_t starts from"):
        build_student(StudentConfig("efficientvit_sam_t", image_size=SIZE, pretrained="weights.pth"), tiny_teacher)
