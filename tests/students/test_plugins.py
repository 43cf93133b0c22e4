"""Students of other packages: the README's example, really installed, and the mistakes that a package can make."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lightning
import pytest
import torch
from torch.utils.data import DataLoader

from distill.batch import ImageBatch
from distill.config.schema import FeatureLossConfig, OptimConfig
from distill.errors import CheckpointError, DistillError
from distill.geometry import valid_masks
from distill.models.checkpoint import load_model, save_model
from distill.models.sam import build_from_spec, spec_for
from distill.models.student_list import find_students, summarise_student
from distill.models.teacher import Teacher
from distill.stages.feature import FeatureStage
from distill.students import STUDENTS, build_encoder, check_student_name, plugins

EXAMPLE = Path(__file__).parents[1] / "plugin_example"
SIZES = {"image_size": 64, "embedding_dim": 32, "embedding_size": 8}


@pytest.fixture(scope="module")
def installed_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example with pip and return the target folder."""
    source, target = tmp_path_factory.mktemp("source") / "my_students", tmp_path_factory.mktemp("target")
    shutil.copytree(EXAMPLE, source, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=300)
    return target


@pytest.fixture
def example(installed_example: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make the example importable and give the name of its student."""
    monkeypatch.syspath_prepend(str(installed_example))
    yield "my_net"
    sys.modules.pop("my_students", None)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Return a function that puts a module with entry points on sys.path, as pip would."""
    modules = []

    def put(code: str, entry_points: str, module: str = "third_party") -> None:
        folder = tmp_path / module
        metadata = folder / f"{module}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{module}.py").write_text(code)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[distill.students]\n{entry_points}\n")
        modules.append(module)
        monkeypatch.syspath_prepend(str(folder))

    yield put
    for module in modules:
        sys.modules.pop(module, None)


def body(returned: str) -> str:
    """Return the code of a package whose `build` returns an expression."""
    return (
        "import torch\nfrom torch import nn\nfrom distill.students import Student\n"
        "STUDENT = Student('third_party', 64, 'theirs')\n"
        "def build(name, *, image_size, embedding_dim, embedding_size):\n"
        f"    return {returned}\n"
    )


def test_the_example_trains_saves_and_loads(example, tiny_teacher: Teacher, tmp_path):
    model = build_from_spec(spec_for(example, image_size=64, like=tiny_teacher.model.spec))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    original_hw = torch.tensor([[48, 64], [64, 64]])
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = ImageBatch(["a", "b"], pixels, original_hw, valid_masks(original_hw, 8), teacher_pixels=pixels)
    stage = FeatureStage(model, tiny_teacher, loss=FeatureLossConfig(mse=1.0), optim=OptimConfig(lr=1e-3))
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(stage, DataLoader([batch, batch], batch_size=None))
    assert trainer.global_step == 2
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"image_encoder.{name}" for name in model.image_encoder.state_dict()}
    save_model(model, tmp_path / "student.safetensors")
    loaded = load_model(tmp_path / "student.safetensors")
    assert loaded.spec == model.spec
    model.to(memory_format=torch.contiguous_format)  # training laid the encoder out channels-last
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(pixels), model.eval().encode(pixels), rtol=0, atol=0)


def test_the_example_is_listed(example):
    assert check_student_name(example).image_size == 512
    assert find_students("my_*") == [example]
    row = summarise_student(example)
    assert row.problem is None and row.num_parameters > 0 and row.macs > 0


def test_sizes_are_set_on_the_encoder(example):
    encoder = build_encoder(example, **SIZES)
    assert encoder.training
    assert {name: getattr(encoder, name) for name in SIZES} == SIZES


def test_a_model_of_a_package_that_is_gone(example, tmp_path, monkeypatch, installed_example):
    path = tmp_path / "student.safetensors"
    save_model(build_from_spec(spec_for(example, image_size=64)), path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(installed_example)])
    with pytest.raises(CheckpointError, match="unknown student 'my_net'.*install the package that has it"):
        load_model(path)


def test_unknown_names_hint_at_plugins(example):
    with pytest.raises(DistillError, match="unknown student 'my_nett'. Did you mean 'my_net'"):
        check_student_name("my_nett")


def test_a_package_that_cannot_be_imported(install):
    install("import no_such_module_of_theirs", "theirs = third_party:STUDENT")
    message = (
        r"student 'theirs' of third_party \(third_party:STUDENT\) cannot be imported: ModuleNotFoundError: No module"
    )
    with pytest.raises(DistillError, match=message):
        check_student_name("theirs")
    assert check_student_name("mobile_sam") is STUDENTS["mobile_sam"]
    assert "cannot be imported" in summarise_student("theirs").problem


def test_an_entry_point_to_something_else(install):
    install("STUDENT = 3", "theirs = third_party:STUDENT")
    with pytest.raises(DistillError, match="names a int; it must name a distill.students.Student"):
        check_student_name("theirs")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("nn.Conv2d(3, embedding_dim, 16, 16)", r"of shape \(1, 32, 4, 4\) at .*; it must be \(1, 32, 8, 8\)"),
        ("nn.Identity()", r"of shape \(1, 3, 64, 64\)"),
        ("nn.Linear(5, 5)", "fails at .*RuntimeError: mat1 and mat2"),
        ("embedding_dim / 0", "fails at .*ZeroDivisionError"),
        ("None", "build returned a NoneType, not an nn.Module"),
    ],
)
def test_an_encoder_that_does_not_keep_its_word(install, returned: str, message: str):
    install(body(returned), "theirs = third_party:STUDENT")
    with pytest.raises(DistillError, match=rf"student 'theirs' \(third_party\).*{message}"):
        build_encoder("theirs", **SIZES)


def test_a_name_of_ours_stays_ours(install):
    install(body("None"), "mobile_sam = third_party:STUDENT")
    assert "mobile_sam" not in plugins()
    assert check_student_name("mobile_sam") is STUDENTS["mobile_sam"]


def test_two_packages_with_one_name(install):
    install(body("None"), "theirs = third_party:STUDENT")
    install(body("None"), "theirs = fourth_party:STUDENT", module="fourth_party")
    with pytest.raises(DistillError, match="two installed packages give the student 'theirs'"):
        check_student_name("theirs")
