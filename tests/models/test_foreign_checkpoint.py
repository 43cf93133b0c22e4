"""Files of other projects, read and written: containers, prefixes, files of only an encoder, published formats."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from distill.errors import CheckpointError
from distill.models.checkpoint import load_for_inference, load_model, save_model, save_published
from distill.models.foreign_checkpoint import read_tensors
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec, build_model
from distill.students.fuse import fuse, is_fused

REFERENCE = Path(__file__).parents[1] / "reference"
TENSORS = {"a.weight": torch.ones(2), "b.bias": torch.zeros(3)}
TINY = ModelSpec("edge_sam", 64, embedding_dim=16, embedding_size=4, decoder_mlp_dim=32)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("container", [None, "model", "state_dict"])
def test_containers_and_wrappers(tmp_path: Path, container: str | None, wrapper: str):
    wrapped = {wrapper + name: tensor for name, tensor in TENSORS.items()}
    training = {"epoch": 3, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    torch.save(wrapped if container is None else {container: wrapped, **training}, tmp_path / "file.pth")
    assert same(read_tensors(tmp_path / "file.pth"), TENSORS)


def test_a_prefix_of_some_tensors_is_a_part_of_the_model(tmp_path: Path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "file.pth")
    assert list(read_tensors(tmp_path / "file.pth")) == ["module.a", "b"]


@pytest.fixture
def config_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """Make a class that pickles as yacs's CfgNode does and counts its calls."""

    class CfgNode(dict):
        calls = 0

        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            CfgNode.calls += 1

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package, module = ModuleType("yacs"), ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", package)
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    return CfgNode


@pytest.mark.parametrize("is_zip", [True, False])
def test_the_configuration_of_a_training_file_is_read_as_a_mapping(tmp_path: Path, config_class: type, is_zip: bool):
    config = config_class({"TRAIN": config_class({"EPOCHS": 10})})
    config.__dict__["__immutable__"] = True
    path = tmp_path / "ckpt_epoch_9.pth"
    torch.save({"model": TENSORS, "config": config, "epoch": 9}, path, _use_new_zipfile_serialization=is_zip)
    made = config_class.calls
    assert same(read_tensors(path), TENSORS)
    assert config_class.calls == made  # nothing of the class was run


def test_safetensors_without_our_metadata(tmp_path: Path):
    from safetensors.torch import save_file

    save_file(TENSORS, tmp_path / "file.safetensors")
    assert read_tensors(tmp_path / "file.safetensors").keys() == TENSORS.keys()
    (tmp_path / "file.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_tensors(tmp_path / "file.safetensors")


def reference_shapes(name: str) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = json.loads((REFERENCE / f"{name}.json").read_text())["state_dict"]
    return shapes


@pytest.mark.parametrize(
    ("name", "container"),
    [
        ("efficientvit_sam_l0", "state_dict"),
        ("mobile_sam", None),
        ("edge_sam", None),
        ("repvit_sam", None),
        pytest.param("sam_vit_b", None, marks=pytest.mark.slow),
    ],
)
def test_published_files_there_and_back(tmp_path: Path, name: str, container: str | None):
    """A written file has the published names in the published container, and gives the same tensors when read."""
    model = build_model(name)
    save_published(model, tmp_path / "file.pt")
    content = torch.load(tmp_path / "file.pt", weights_only=True)
    tensors = content if container is None else content[container]
    assert {key: list(tensor.shape) for key, tensor in tensors.items()} == reference_shapes(name)
    assert same(dict(load_model(tmp_path / "file.pt", name=name).state_dict()), dict(model.state_dict()))
    del model, content, tensors
    gc.collect()


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> tuple[PromptableModel, Path]:
    """Build NanoSAM and write its published file."""
    path = tmp_path_factory.mktemp("nano") / "checkpoint.pth"
    model = build_model("nano_sam")
    save_published(model, path)
    return model, path


def test_nano_sam_is_published_as_an_encoder(nano: tuple[PromptableModel, Path]):
    model, path = nano
    content = torch.load(path, weights_only=True)
    assert list(content) == ["model"]
    assert same(content["model"], dict(model.image_encoder.state_dict()))


def test_an_encoder_alone_needs_a_decoder(nano: tuple[PromptableModel, Path], tmp_path: Path):
    model, path = nano
    with pytest.raises(CheckpointError, match=r"holds the encoder of nano_sam alone.*--decoder FILE.*init_from="):
        load_model(path, name="nano_sam")
    decoder = build_model("efficientvit_sam_t")
    save_model(decoder, tmp_path / "decoder.safetensors")
    loaded = load_model(path, name="nano_sam", decoder=tmp_path / "decoder.safetensors")
    assert same(dict(loaded.image_encoder.state_dict()), dict(model.image_encoder.state_dict()))
    assert same(dict(loaded.mask_decoder.state_dict()), dict(decoder.mask_decoder.state_dict()))
    assert same(dict(loaded.prompt_encoder.state_dict()), dict(decoder.prompt_encoder.state_dict()))


def test_a_decoder_of_another_width(nano: tuple[PromptableModel, Path], tmp_path: Path):
    save_model(build_from_spec(TINY), tmp_path / "student.safetensors")
    with pytest.raises(CheckpointError, match=r"its prompt_encoder: the tensors do not fit.*\n.*misshapen"):
        load_model(nano[1], name="nano_sam", decoder=tmp_path)


def test_two_decoders_are_refused(tmp_path: Path):
    save_model(build_from_spec(TINY), tmp_path / "student.safetensors")
    with pytest.raises(CheckpointError, match="holds a decoder of its own; leave the other one out"):
        load_model(tmp_path, decoder=tmp_path)


def test_a_partly_matching_file_lists_what_does_not_fit(tmp_path: Path):
    state = dict(build_model("efficientvit_sam_t").state_dict())
    del state["image_encoder.norm.weight"]
    state["extra"] = torch.zeros(1)
    state["image_encoder.norm.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "file.pt")
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "file.pt", name="efficientvit_sam_t")
    message = str(caught.value)
    assert "1 missing" in message and "image_encoder.norm.weight" in message
    assert "1 unexpected" in message and "extra" in message
    assert "1 misshapen" in message and "image_encoder.norm.bias (3,) for (256,)" in message


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("efficientvit_sam_t", 256, norm_eps=1e-6), "was published by no other project"),
        (TINY, r"image_size 64, not 1024; embedding_dim 16, not 256.*a teacher of SAM's shape"),
        (ModelSpec("efficient_sam_vitt", 64, 16, 4, 32), "its repository has a decoder of its own"),
    ],
)
def test_what_a_repository_cannot_load_is_not_written(tmp_path: Path, spec: ModelSpec, message: str):
    with pytest.raises(CheckpointError, match=message):
        save_published(build_from_spec(spec), tmp_path / "file.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_fused_model_is_for_inference_alone(tmp_path: Path):
    model = build_from_spec(TINY)
    save_model(model, tmp_path / "student.safetensors")
    fused = load_for_inference(tmp_path)
    assert is_fused(fused) and not is_fused(model)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.modules())
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(fused.encode(pixels), model.encode(pixels), rtol=1e-4, atol=1e-4)
    for save in (save_model, save_published):
        with pytest.raises(CheckpointError, match="a fused model cannot be saved"):
            save(fused, tmp_path / "fused.pt")
    assert not (tmp_path / "fused.pt").exists()


def test_nothing_to_fuse_is_no_fused_model(tmp_path: Path):
    spec = ModelSpec("efficient_sam_vitt", 64, embedding_dim=16, embedding_size=4, decoder_mlp_dim=32)
    save_model(fuse(build_from_spec(spec)), tmp_path / "student.safetensors")
    assert load_model(tmp_path).spec == spec
