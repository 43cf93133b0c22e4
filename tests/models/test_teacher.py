"""The teacher: where it comes from, and that nothing trains it or saves it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from distill.config.schema import TeacherConfig
from distill.errors import CheckpointError
from distill.models import teacher as teacher_module
from distill.models.checkpoint import save_model, sha256_file
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec, build_model
from distill.models.teacher import Teacher, load_teacher
from distill.prompts.types import Prompts
from distill.students.published import PUBLISHED, Published

SPEC = ModelSpec(
    "efficientvit_sam_t", image_size=64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6
)


def tiny_model() -> PromptableModel:
    torch.manual_seed(0)
    return build_from_spec(SPEC)


class Stage(nn.Module):
    """A student and a teacher in one module, as state dicts, optimizers and train() see a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(2, 2)
        self.teacher = Teacher(tiny_model().train(), name="tiny", weights_sha256="0")


def test_never_in_a_checkpoint():
    stage = Stage()
    assert set(stage.state_dict()) == {"student.weight", "student.bias"}
    stage.load_state_dict(stage.state_dict(), strict=True)
    assert len(list(stage.parameters())) == 2


def test_frozen_whatever_is_called():
    stage = Stage()
    before = {name: tensor.clone() for name, tensor in stage.teacher.model.state_dict().items()}
    stage.train().requires_grad_(True)
    embedding = stage.teacher.embed(torch.randn(2, 3, 64, 64, requires_grad=True))
    assert not embedding.requires_grad
    assert not any(module.training for module in stage.teacher.model.modules())
    assert not any(p.requires_grad for p in stage.teacher.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in stage.teacher.model.state_dict().items())


def test_follows_the_stage_to_its_device_and_type():
    stage = Stage()
    stage.to(torch.float64)
    assert {p.dtype for p in stage.teacher.model.parameters()} == {torch.float64}
    stage.to("meta")
    assert {p.device.type for p in stage.teacher.model.parameters()} == {"meta"}


def test_answers_as_its_model():
    teacher = Stage().teacher
    model = tiny_model()
    pixels = torch.randn(2, 3, 64, 64)
    prompts = Prompts(torch.tensor([0, 1, 1]), boxes_xyxy=torch.rand(3, 4) * 128)
    with torch.no_grad():
        embedding = model.encode(pixels)
        torch.testing.assert_close(teacher.embed(pixels), embedding)
        for multimask in (True, False):
            for actual, expected in zip(
                teacher.decode(embedding, prompts, multimask=multimask),
                model.decode(embedding, prompts, multimask=multimask),
                strict=True,
            ):
                torch.testing.assert_close(actual, expected)
    sizes = (teacher.image_size, teacher.embedding_dim, teacher.embedding_size, teacher.prompt_size)
    assert sizes == (64, 32, 8, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert teacher.embed(pixels).dtype == torch.float32


def test_a_model_of_ours_is_a_teacher_assistant(tmp_path: Path):
    path = tmp_path / "student.safetensors"
    save_model(tiny_model(), path)
    for given in (path, tmp_path):
        teacher = load_teacher(TeacherConfig(name=str(given)))
        assert teacher.name == "efficientvit_sam_t"  # not the path: a cache stays valid when the file moves
        assert teacher.weights_sha256 == sha256_file(path)
    with pytest.raises(CheckpointError, match="teacher.checkpoint=x.pth: teacher.name=.* needs none"):
        load_teacher(TeacherConfig(name=str(path), checkpoint="x.pth"))
    with pytest.raises(CheckpointError, match="no such file"):
        load_teacher(TeacherConfig(name=str(tmp_path / "other.safetensors")))


def test_a_released_student_is_a_teacher_assistant(tmp_path: Path):
    path = tmp_path / "l0.pt"
    torch.save(build_model("efficientvit_sam_t").state_dict(), path)
    teacher = load_teacher(TeacherConfig(name="efficientvit_sam_t", checkpoint=str(path)))
    assert (teacher.name, teacher.embedding_size) == ("efficientvit_sam_t", 64)
    with pytest.raises(CheckpointError, match="efficientvit_sam_t reads the released file of efficientvit_sam_t"):
        load_teacher(TeacherConfig(name="efficientvit_sam_t"))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@pytest.mark.parametrize("checkpoint", [None, "absent.pth"])
def test_a_missing_checkpoint_says_what_is_expected_and_where_it_is(name: str, checkpoint: str | None):
    published = PUBLISHED[name]
    with pytest.raises(CheckpointError) as caught:
        load_teacher(TeacherConfig(name=name, checkpoint=checkpoint))
    message = str(caught.value)
    assert ("teacher.checkpoint is not set" if checkpoint is None else "absent.pth: no such file") in message
    assert published.sha256 in message and len(published.sha256) == 64
    assert f"https://dl.fbaipublicfiles.com/segment_anything/{published.file}" in message
    assert "\n" not in message


@pytest.fixture(scope="module")
def vit_b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Write a file of 375 MB in the format of the official ViT-B, with random weights."""
    path = tmp_path_factory.mktemp("sam") / "sam_vit_b.pth"
    torch.save(build_model("sam_vit_b").state_dict(), path)
    yield path
    path.unlink()


def test_sam_from_an_official_format_file(vit_b: Path, monkeypatch: pytest.MonkeyPatch):
    digest = sha256_file(vit_b)
    config = TeacherConfig(name="sam_vit_b", checkpoint=str(vit_b))
    with pytest.raises(
        CheckpointError, match=f"sha256 is {digest}, expected sam_vit_b_01ec64.pth .*verify_sha256=false"
    ):
        load_teacher(config)
    own = load_teacher(TeacherConfig(name="sam_vit_b", checkpoint=str(vit_b), verify_sha256=False))
    assert (own.name, own.image_size, own.embedding_dim, own.embedding_size) == ("sam_vit_b", 1024, 256, 64)
    assert own.weights_sha256 == digest
    monkeypatch.setitem(teacher_module.PUBLISHED, "sam_vit_b", Published("sam_vit_b_01ec64.pth", digest))
    assert load_teacher(config).weights_sha256 == digest


def test_a_truncated_official_file(vit_b: Path, tmp_path: Path):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    with vit_b.open("rb") as file:
        path.write_bytes(file.read(1 << 20))
    with pytest.raises(CheckpointError, match="sam_vit_b_01ec64.pth: the file is cut short or damaged"):
        load_teacher(TeacherConfig(name="sam_vit_b", checkpoint=str(path)))


def test_another_model_as_sam(tmp_path: Path):
    path = tmp_path / "tiny.pth"
    torch.save(tiny_model().state_dict(), path)
    with pytest.raises(CheckpointError, match="as sam_vit_b: the tensors do not fit"):
        load_teacher(TeacherConfig(name="sam_vit_b", checkpoint=str(path)))


def test_a_copied_stage_shares_its_teacher(tiny_teacher):
    stage = torch.nn.Sequential(torch.nn.Linear(2, 2), tiny_teacher)
    copied = copy.deepcopy(stage)
    assert copied[1] is tiny_teacher
    assert copied[0].weight is not stage[0].weight
