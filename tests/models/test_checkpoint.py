"""Models on disk: our files, released files, and the errors for files that are neither."""

from __future__ import annotations

import errno
import json
import pickle
import resource
from dataclasses import asdict
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from distill.errors import CheckpointError
from distill.models import checkpoint
from distill.models.checkpoint import (
    find_weights,
    load_decoder,
    load_model,
    load_state_dict_strict,
    read_metadata,
    save_model,
    sha256_file,
)
from distill.models.sam import ModelSpec, PromptableModel, build_from_spec, build_model
from distill.models.spec_header import parse_spec

RELEASED = "efficientvit_sam_t"
FORMER_HEADER = Path(__file__).parents[1] / "fixtures" / "student_header_v1.json"
SPEC = ModelSpec(RELEASED, image_size=64, embedding_dim=32, embedding_size=8, decoder_mlp_dim=64, norm_eps=1e-6)


def tiny_model() -> PromptableModel:
    torch.manual_seed(0)
    return build_from_spec(SPEC)


def assert_same(first: nn.Module, second: nn.Module) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def released() -> dict[str, torch.Tensor]:
    return dict(build_model(RELEASED).state_dict())


def test_a_file_needs_nothing_else(tmp_path: Path):
    model = tiny_model().to(memory_format=torch.channels_last)
    save_model(model, tmp_path / "student.safetensors", metadata={"run": "first"})
    loaded = load_model(tmp_path / "student.safetensors")
    assert_same(loaded, model)
    assert loaded.spec == SPEC
    assert not loaded.training
    assert loaded.mask_decoder.transformer.norm_final_attn.eps == 1e-6
    metadata = read_metadata(tmp_path / "student.safetensors")
    assert metadata["run"] == "first"
    assert json.loads(metadata["distill"])["spec"]["embedding_dim"] == 32
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]


def test_a_file_of_a_former_version_loads(tmp_path: Path):
    """The header of a file that version 0.1.0 wrote: its metadata and its tensors' names, types and shapes."""
    header = json.loads(FORMER_HEADER.read_text())
    dtypes = {"F32": torch.float32, "I64": torch.int64}
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.rand(shape, generator=generator).to(dtypes[dtype])
        for name, (dtype, shape) in header["tensors"].items()
    }
    safetensors.torch.save_file(tensors, tmp_path / "student.safetensors", header["metadata"])
    model = load_model(tmp_path)
    assert model.spec == ModelSpec("timm/tf_efficientnet_lite0@16", 384, 128, 48, 512, None, paint_prompts=True)
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    save_model(model, tmp_path / "again.safetensors", metadata={"recipe": header["metadata"]["recipe"]})
    assert read_metadata(tmp_path / "again.safetensors") == header["metadata"]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path):
    for name in ("a", "b"):
        save_model(tiny_model(), tmp_path / name)
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


def test_a_run_directory(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no student.safetensors in this directory"):
        load_model(tmp_path)
    save_model(tiny_model(), tmp_path / "student.safetensors")
    assert_same(load_model(tmp_path), tiny_model())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"epoch": 3, "state_dict": s}])
@pytest.mark.parametrize("is_zip", [True, False])
def test_released_containers(tmp_path: Path, released, wrap, is_zip: bool):
    torch.save(wrap(released), tmp_path / "file.pt", _use_new_zipfile_serialization=is_zip)
    assert_same(load_model(tmp_path / "file.pt", name=RELEASED), _with(released))


def _with(state: dict[str, torch.Tensor]) -> PromptableModel:
    model = build_model(RELEASED)
    model.load_state_dict(state)
    return model


def test_a_released_file_needs_its_name(tmp_path: Path, released):
    torch.save(released, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="does not say which model it is: give its name"):
        load_model(tmp_path / "file.pt")
    safetensors.torch.save_file(released, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match="not written by distill"):
        load_model(tmp_path / "file.safetensors")
    assert_same(load_model(tmp_path / "file.safetensors", name=RELEASED), _with(released))


def test_our_file_knows_its_name(tmp_path: Path):
    save_model(tiny_model(), tmp_path / "student.safetensors")
    with pytest.raises(CheckpointError, match="holds efficientvit_sam_t, not efficientvit_sam_l0"):
        load_model(tmp_path / "student.safetensors", name="efficientvit_sam_l0")


def test_quickstart_that_was_not_packaged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "QUICKSTART_FILE", "absent.safetensors")
    with pytest.raises(CheckpointError, match="'quickstart': this installation lacks .*absent.safetensors"):
        load_model("quickstart")


def test_quickstart_weights_that_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = bytearray(find_weights("quickstart").read_bytes())
    content[len(content) // 2] ^= 1  # one bit of one weight, which safetensors does not notice
    damaged = tmp_path / "quickstart/weights" / checkpoint.QUICKSTART_FILE
    damaged.parent.mkdir(parents=True)
    monkeypatch.setattr(checkpoint.importlib.resources, "files", lambda package: tmp_path)
    for broken in (content, content[:1000], b"version https://git-lfs.github.com/spec/v1"):
        damaged.write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"'quickstart': .* is damaged \(its sha256 is .*install the package"):
            load_model("quickstart")


def test_a_file_of_half_the_size_loads_as_float32(tmp_path: Path):
    model = tiny_model()
    save_model(model, tmp_path / "full.safetensors")
    save_model(model, tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.65 * sizes[0]
    loaded = load_model(tmp_path / "half.safetensors").state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == tensor.dtype
        torch.testing.assert_close(loaded[name], tensor, rtol=0 if tensor.dim() < 2 else 2**-11, atol=2**-25)


def test_a_weight_that_half_cannot_hold(tmp_path: Path):
    model = tiny_model()
    model.mask_decoder.mask_tokens.weight.data[0, 0] = 1e6
    with pytest.raises(CheckpointError, match="mask_decoder.mask_tokens.weight: holds values that fp16 cannot"):
        save_model(model, tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_missing_file(tmp_path: Path):
    with pytest.raises(CheckpointError, match="none.safetensors: no such file. A model is a student.safetensors"):
        load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.001, 0])
def test_truncated_safetensors(tmp_path: Path, kept: float):
    path = tmp_path / "student.safetensors"
    save_model(tiny_model(), path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_model(path)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kept", [0.999999, 0.9, 0.5, 0.01, 0.0001, 3e-6])
def test_truncated_checkpoint(tmp_path: Path, released, is_zip: bool, kept: float):
    path = tmp_path / "file.pth"
    torch.save(released, path, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(CheckpointError, match="file.pth: the file is cut short or damaged"):
        load_model(path, name=RELEASED)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><title>404", b"hello"])
def test_not_a_checkpoint(tmp_path: Path, content: bytes):
    (tmp_path / "file.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="file.pth: not a PyTorch checkpoint"):
        load_model(tmp_path / "file.pth", name=RELEASED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, not named tensors"),
        ({}, "holds nothing, not named tensors"),
        ({"epoch": 3, "weights": {}}, "found other values: epoch, weights"),
    ],
)
def test_no_state_dict(tmp_path: Path, content, message: str):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "file.pth", name=RELEASED)


class Harmful:
    """An object whose unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, is_zip: bool):
    trace = tmp_path / "trace"
    content = {"model": {"x": torch.zeros(1)}, "config": Harmful(trace)}
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(CheckpointError, match="holds Python objects.*which could run code and are never read"):
        load_model(tmp_path / "file.pth", name=RELEASED)
    assert not trace.exists()


def test_a_bare_pickle(tmp_path: Path):
    (tmp_path / "file.pth").write_bytes(pickle.dumps({"x": Harmful(tmp_path)}, protocol=2))
    with pytest.raises(CheckpointError, match="holds Python objects"):
        load_model(tmp_path / "file.pth", name=RELEASED)


def test_another_variant(tmp_path: Path, released):
    torch.save(released, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="as efficientvit_sam_l0: the tensors do not fit") as caught:
        load_model(tmp_path / "file.pt", name="efficientvit_sam_l0")
    message = str(caught.value)
    assert " missing (of " in message and " misshapen (of " in message
    assert " more" in message and len(message) < 5000


def test_a_report_names_every_sort_and_loads_nothing():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {
        "0.weight": torch.zeros(3, 2),
        "1.weight": torch.zeros(5, 3),
        "1.bias": torch.zeros(4),
        "x": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as caught:
        load_state_dict_strict(module, state, source="here")
    assert str(caught.value).splitlines() == [
        "here: the tensors do not fit; the file is of another model or variant",
        "  1 missing (of 4): 0.bias",
        "  1 unexpected (of 4): x",
        "  1 misshapen (of 4): 1.weight (5, 3) for (4, 3)",
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_metadata_of_another_version(tmp_path: Path):
    path = tmp_path / "student.safetensors"
    for spec in ('{"format": 2, "spec": {}}', '{"format": 1, "spec": {"colour": 1}}', "{}", "no json", "[]"):
        safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"distill": spec})
        with pytest.raises(CheckpointError, match="metadata is of another version of distill"):
            load_model(path)


def test_unknown_student_in_a_file(tmp_path: Path):
    path = tmp_path / "student.safetensors"
    spec = '{"format": 1, "spec": {"encoder": "efficientvit_sam_l9", "image_size": 512}}'
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"distill": spec})
    with pytest.raises(CheckpointError, match="student.safetensors: unknown student 'efficientvit_sam_l9'. Did you"):
        load_model(path)


def test_full_disk_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "student.safetensors"
    save_model(tiny_model(), path)
    before = sha256_file(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # the closest to a full disk that needs no root
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"the disk is full .*: the file takes [\d,]{7,} bytes") as caught:
            save_model(tiny_model(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert sha256_file(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_no_directory_to_write_to(tmp_path: Path):
    with pytest.raises(CheckpointError, match="student.safetensors: cannot be written: No such file or directory"):
        save_model(tiny_model(), tmp_path / "absent" / "student.safetensors")


SPEC_TEXT = {"format": 1, "spec": asdict(SPEC)}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("norm_eps", float("nan")),
        ("norm_eps", 0.0),
        ("norm_eps", -1e-6),
        ("norm_eps", "small"),
        ("image_size", "64"),
        ("image_size", 64.5),
        ("image_size", -64),
        ("image_size", 1 << 40),
        ("embedding_dim", 1 << 40),
        ("embedding_dim", True),
        ("embedding_size", [8]),
        ("encoder", None),
        ("encoder", {"name": "x"}),
        ("paint_prompts", "no"),
    ],
)
def test_a_header_of_wrong_types_or_ranges_is_refused(tmp_path: Path, field: str, value: object):
    path = tmp_path / "student.safetensors"
    described = {**SPEC_TEXT, "spec": {**SPEC_TEXT["spec"], field: value}}
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, {"distill": json.dumps(described)})
    with pytest.raises(CheckpointError, match="metadata is of another version of distill"):
        load_model(path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "null", "1e999", '{"format": 1, "spec": []}', '{"spec": {}}', "\ud800"]
)
def test_a_header_that_is_no_object_is_refused(tmp_path: Path, text: str):
    with pytest.raises(CheckpointError, match="metadata is of another version of distill"):
        parse_spec(text, tmp_path)


def test_a_file_does_not_claim_more_than_it_holds(tmp_path: Path):
    """A width of 16,384 would take 2 GB before the tensors are compared."""
    path = tmp_path / "student.safetensors"
    save_model(tiny_model(), path)
    described = {**SPEC_TEXT, "spec": {**SPEC_TEXT["spec"], "embedding_dim": 16384, "decoder_mlp_dim": 16384}}
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, {"distill": json.dumps(described)})
    with pytest.raises(CheckpointError, match="the tensors do not fit"):
        load_model(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float):
    model = tiny_model()
    name = "mask_decoder.iou_token.weight"
    model.get_parameter(name).data[0, 0] = value
    save_model(model, tmp_path / "student.safetensors")
    with pytest.raises(CheckpointError, match=f"hold NaN or infinities: {name}"):
        load_model(tmp_path / "student.safetensors")
    torch.save(model.state_dict(), tmp_path / "released.pth")
    with pytest.raises(
        CheckpointError, match=r"released\.pth, its mask_decoder: .* NaN or infinities: iou_token\.weight"
    ):
        load_decoder(tiny_model(), tmp_path / "released.pth")


def test_tensors_of_other_kinds_are_refused():
    model = tiny_model()
    state = dict(model.state_dict())
    for strange in ("text", None, torch.ones(4).to_sparse(), torch.ones(4, dtype=torch.complex64), [1.0]):
        with pytest.raises(CheckpointError, match="other things than named tensors"):
            load_state_dict_strict(model, {**state, "mask_decoder.iou_token.weight": strange}, source="file")
    with pytest.raises(CheckpointError, match="other things than named tensors"):
        load_state_dict_strict(model, {**state, 5: torch.ones(1)}, source="file")
