"""`distill train` from the command line to the run directory, with tiny models and real tars."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from distill.cli.main import main
from distill.config.loading import load_recipe
from distill.config.schema import CacheConfig, StudentConfig
from distill.config.settings import flatten
from distill.data.cache.job import build_cache
from distill.errors import CheckpointError
from distill.models.checkpoint import load_model, save_model
from distill.models.initialization import build_student
from distill.models.sam import ModelSpec, build_from_spec
from distill.training import train
from distill.training.checkpoint_file import RECIPE_KEY
from distill.training.position import POSITION_KEY

RECIPE = """\
kind: {kind}
student: {{name: efficientvit_sam_t, image_size: 64}}
teacher: {{source: online}}
data: {{batch_size: 2, num_workers: 0, max_instances: 2}}
optim: {{lr: 1.0e-3, warmup_steps: 2}}
validation: {{every_n_steps: 2, max_images: 2, num_pictures: 1}}
trainer:
  max_steps: 4
  log_every_n_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_shards, teacher_file: Path) -> Path:
    """Make a working directory with image shards, held-out shards, and a recipe for each stage."""
    monkeypatch.chdir(tmp_path)
    photo_shards(6)
    photo_shards(2, name="held_out")
    for kind in ("feature", "mask"):
        text = RECIPE.format(kind=kind) + f"run: {kind}\n"
        tree = yaml.safe_load(text)
        tree["teacher"]["name"] = str(teacher_file)
        tree["data"] |= {"images": "images", "val_images": "held_out"}
        Path(f"{kind}.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path


def metrics(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def losses(run: str) -> dict[int, float]:
    return {line["step"]: line["train/loss"] for line in metrics(run) if "train/loss" in line}


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_model(run).state_dict()


def assert_same_weights(run: str, other: str) -> None:
    first, second = weights(run), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("kind", ["feature", "mask"])
def test_the_run_directory_is_the_record_of_the_run(place, kind):
    assert main(["train", f"{kind}.yaml"]) == 0
    names = {path.relative_to(kind).as_posix() for path in Path(kind).rglob("*") if path.is_file()}
    expected = {"recipe.yaml", "environment.json", "metrics.jsonl", "log.txt", "student.safetensors"}
    assert expected | {"checkpoints/last.ckpt", "checkpoints/best.ckpt"} <= names
    assert any(name.startswith("tensorboard/events") for name in names)
    assert list(losses(kind)) == [0, 1, 2, 3]
    logged = {name for line in metrics(kind) for name in line}
    assert {"val/cosine", "val/box_miou", "val/point_miou", "train/data_wait", "lr-AdamW/pg1"} <= logged
    environment = json.loads(Path(kind, "environment.json").read_text())
    assert environment["libraries"]["torch"].startswith(torch.__version__.split("+")[0])
    assert main(["check", f"{kind}/recipe.yaml", "run=another"]) == 0
    assert "4 steps; the student is" in Path(kind, "log.txt").read_text()


def test_two_mistakes_are_both_printed_and_nothing_is_written(place, capsys):
    before = sorted(place.rglob("*"))
    assert main(["train", "feature.yaml", "optim.lrr=1", "data.batch_size=none"]) == 2
    error = capsys.readouterr().err
    assert "optim.lrr: unknown key. Did you mean 'optim.lr' or 'optim.lr_rule'?" in error
    assert "data.batch_size: expected a whole number, got 'none'" in error
    assert "2 errors" in error and "Traceback" not in error
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.name=damaged.safetensors", "damaged.safetensors"),
        ("data.images=damaged", "damaged"),
        ("student.image_size=65", "65"),
    ],
)
def test_what_a_check_cannot_see_is_refused_before_anything_is_written(place, capsys, override, message):
    Path("damaged.safetensors").write_bytes(b"nothing")
    Path("damaged").mkdir()
    Path("damaged", "sa_000000.tar").write_bytes(b"no tar" * 1000)
    assert main(["train", "feature.yaml", override]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("feature").exists()


def test_a_directory_that_is_not_empty_is_refused_with_both_remedies(place, capsys):
    Path("feature").mkdir()
    Path("feature", "precious.txt").write_text("kept")
    assert main(["train", "feature.yaml"]) == 2
    error = capsys.readouterr().err
    assert "resume=true" in error and "run=DIR" in error
    assert main(["train", "feature.yaml", "resume=true"]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert [path.name for path in Path("feature").iterdir()] == ["precious.txt"]


class Stop(Callback):
    """A callback that kills the run at a step, as a power cut would. No hook for interrupts runs."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("kind", ["feature", "mask"])
@pytest.mark.parametrize("overrides", [[], ["optim.ema_decay=0.5"], ["data.num_workers=1"]], ids=["", "ema", "workers"])
def test_resume_gives_the_losses_of_an_uninterrupted_run(place, kind, overrides):
    command = ["train", f"{kind}.yaml", *overrides, "trainer.max_steps=7"]  # three batches an epoch
    assert main([*command, "run=whole"]) == 0
    recipe = load_recipe(f"{kind}.yaml", [*command[2:], "run=cut"])
    with pytest.raises(RuntimeError, match="power cut"):  # after the checkpoint of step 2
        train(recipe, callbacks=[Stop()])
    assert not Path("cut", "student.safetensors").exists()
    assert main([*command, "run=cut", "resume=true"]) == 0
    assert "going on from cut/checkpoints/last.ckpt" in Path("cut", "log.txt").read_text()
    assert losses("cut") == losses("whole")
    assert list(losses("cut")) == list(range(7))
    assert_same_weights("cut", "whole")


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])  # validation every two steps, three batches an epoch
def test_a_finished_run_can_be_made_longer(place, num_steps):
    assert main(["train", "feature.yaml", f"trainer.max_steps={num_steps}"]) == 0
    assert main(["train", "feature.yaml", "trainer.max_steps=5", "resume=true"]) == 0
    assert list(losses("feature")) == [0, 1, 2, 3, 4]


BEFORE = Path(__file__).parents[1] / "config" / "written_before" / "feature.yaml"


def test_a_run_that_was_begun_before_recipes_had_a_common_base_goes_on(place, caplog):
    assert main(["train", "feature.yaml", "trainer.max_steps=3"]) == 0
    file = Path("feature/recipe.yaml")
    values, old = dict(flatten(yaml.safe_load(file.read_text()))), yaml.safe_load(BEFORE.read_text())
    for key, _ in [item for item in flatten(old) if not item[0].startswith("trainer.")]:
        *sections, name = key.split(".")
        section = old
        for part in sections:
            section = section[part]
        section[name] = values[key]
    old["trainer"] = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("trainer.")}
    file.write_text(yaml.safe_dump(old, sort_keys=False))
    last = Path("feature/checkpoints/last.ckpt")
    torch.save({key: value for key, value in torch.load(last).items() if key not in (RECIPE_KEY, POSITION_KEY)}, last)
    assert main(["train", "feature.yaml", "trainer.max_steps=5", "resume=true"]) == 0
    assert list(losses("feature")) == [0, 1, 2, 3, 4]
    changed = [record.getMessage() for record in caplog.records if "(before:" in record.getMessage()]
    assert changed == ["from step 3 on: trainer.max_steps=5 (before: 3)"]


def test_resuming_a_finished_run_changes_nothing(place, capsys):
    assert main(["train", "feature.yaml", "optim.ema_decay=0.9"]) == 0
    before, lines = weights("feature"), metrics("feature")
    assert main(["train", "feature.yaml", "optim.ema_decay=0.9", "resume=true"]) == 0
    assert "had reached its end" in Path("feature", "log.txt").read_text()
    assert metrics("feature") == lines
    for name, tensor in weights("feature").items():
        assert torch.equal(tensor, before[name]), name


def start(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "distill.cli.main", "train", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=interruptible
    )


def interruptible() -> None:
    """Let a child process be interrupted. A shell's background jobs, and their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_two_ranks_write_one_record(place):
    running = start("feature.yaml", "trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=1")
    output, _ = running.communicate(timeout=200)
    assert running.returncode == 0, output
    assert output.count("wrote feature/student.safetensors") == 1
    assert list(losses("feature")) == [0, 1, 2, 3]
    assert sum("train/loss" in line for line in metrics("feature")) == 4
    assert load_model("feature")


@pytest.mark.slow
def test_an_interrupted_run_exits_130_and_goes_on(place):
    running = start("feature.yaml", "trainer.max_steps=100000")
    deadline = time.monotonic() + 100
    while not Path("feature/checkpoints/last.ckpt").exists():
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130, output
    num_steps = max(losses("feature")) + 3
    assert main(["train", "feature.yaml", f"trainer.max_steps={num_steps}", "resume=true"]) == 0
    assert list(losses("feature")) == list(range(num_steps))


def test_a_step_that_died_before_its_line_was_written_gets_it_on_resume(place):
    assert main(["train", "feature.yaml", "trainer.max_steps=3"]) == 0
    record = Path("feature/metrics.jsonl")
    whole = losses("feature")
    lines = [line for line in record.read_text().splitlines() if json.loads(line)["step"] != 2]
    record.write_text("".join(f"{line}\n" for line in lines))
    assert list(losses("feature")) == [0, 1]
    assert main(["train", "feature.yaml", "trainer.max_steps=5", "resume=true"]) == 0
    assert list(losses("feature")) == [0, 1, 2, 3, 4]
    assert losses("feature")[2] == whole[2]


def test_another_student_cannot_resume(place, capsys):
    assert main(["train", "feature.yaml", "trainer.max_steps=2"]) == 0
    capsys.readouterr()
    assert main(["train", "feature.yaml", "student.image_size=96", "resume=true"]) == 2
    assert "begun with student.image_size=64, not 96" in capsys.readouterr().err


def test_the_cached_stage_and_a_stale_cache(place, photo_shards, tiny_teacher, capsys):
    index = photo_shards(6, name="cached")
    build_cache(tiny_teacher, index, CacheConfig(dir="cache"))
    command = ["train", "feature.yaml", "teacher.source=cache", "cache.dir=cache", "trainer.max_steps=2"]
    assert main([*command, "data.images=cached"]) == 0
    capsys.readouterr()
    photo_shards(5, name="others")
    assert main([*command, "data.images=others", "run=other"]) == 2
    assert "cache" in capsys.readouterr().err
    assert not Path("other").exists()


def test_the_chain_of_both_stages(place):
    assert main(["train", "feature.yaml"]) == 0
    assert main(["train", "mask.yaml", "student.init_from=feature", "optim.encoder_lr_scale=0"]) == 0
    before, after = weights("feature"), weights("mask")
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"prompt_encoder", "mask_decoder"}  # the encoder was frozen, its batch statistics too


def test_a_new_student_has_the_teachers_decoder(tiny_teacher):
    student = build_student(StudentConfig("efficientvit_sam_t", image_size=64), tiny_teacher)
    for part in ("prompt_encoder", "mask_decoder"):
        for name, tensor in getattr(tiny_teacher.model, part).state_dict().items():
            assert torch.equal(getattr(student, part).state_dict()[name], tensor)


def test_a_student_may_start_from_the_teachers_layers(tiny_teacher):
    name = tiny_teacher.model.spec.encoder
    student = build_student(StudentConfig(name, image_size=64, init_from="teacher"), tiny_teacher)
    for key, tensor in tiny_teacher.model.image_encoder.state_dict().items():
        assert torch.equal(student.image_encoder.state_dict()[key], tensor)
    with pytest.raises(CheckpointError, match="no tensor of the encoder of teacher .* leave student.init_from out"):
        build_student(StudentConfig("timm/resnet10t", image_size=64, init_from="teacher"), tiny_teacher)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (StudentConfig("efficientvit_sam_l0", init_from="start"), "student.name is efficientvit_sam_l0"),
        (StudentConfig("efficientvit_sam_t", image_size=96, init_from="start"), "student.image_size is 96"),
        (StudentConfig("efficientvit_sam_t", init_from="start"), "embedding_dim is 32"),
    ],
)
def test_a_start_that_does_not_fit(tmp_path, monkeypatch, tiny_teacher, config, message):
    monkeypatch.chdir(tmp_path)
    Path("start").mkdir()
    spec = ModelSpec("efficientvit_sam_t", 64, embedding_dim=16, embedding_size=8, decoder_mlp_dim=16)
    save_model(build_from_spec(spec), "start/student.safetensors")
    with pytest.raises(CheckpointError, match=message):
        build_student(config, tiny_teacher)
