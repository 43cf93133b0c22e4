"""A training that is told to end finishes its step and keeps it; what it keeps is complete, and can be used."""

from __future__ import annotations

import json
import os
import resource
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
from distill.config.schema import StudentConfig
from distill.errors import CheckpointError, Interrupted, RunError
from distill.lock import hold_directory
from distill.models.checkpoint import load_model
from distill.models.initialization import build_student
from distill.models.spec_header import SPEC_KEY
from distill.training import train
from distill.training.record import read_trainings

RECIPE = {
    "kind": "feature",
    "run": "run",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "teacher": {"source": "online"},
    "data": {"images": "images", "batch_size": 2, "num_workers": 0},
    "logger": [],
    "trainer": {"max_steps": 5, "log_every_n_steps": 1, "accelerator": "cpu"}
    | {"enable_progress_bar": False, "enable_model_summary": False},
}
LAST = Path("run/checkpoints/last.ckpt")
FULL_DISK_BYTES = 400_000  # less than a checkpoint


@pytest.fixture
def place(tmp_path: Path, monkeypatch, photo_shards, teacher_file: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    photo_shards(6)
    photo_shards(2, name="held_out")
    recipe = {**RECIPE, "teacher": {"source": "online", "name": str(teacher_file)}}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def run(*overrides: str, callbacks: tuple[Callback, ...] = ()) -> Path:
    return train(load_recipe("recipe.yaml", list(overrides)), callbacks=callbacks)


def losses(directory: str) -> dict[int, float]:
    lines = [json.loads(line) for line in Path(directory, "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def steps_of(checkpoint: Path) -> int:
    step: int = torch.load(checkpoint, weights_only=True)["global_step"]
    return step


class Send(Callback):
    """A callback that gets a signal in the middle of a step: to this process alone, or to its children as well."""

    def __init__(self, signum: int, *, step: int = 2, to_all: bool = False) -> None:
        self.signum, self.step, self.to_all = signum, step, to_all

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step == self.step:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split() if self.to_all else []
            # By another process: torch's workers stand SIGTERM from their parent.
            subprocess.run(["kill", f"-{self.signum:d}", *children, str(os.getpid())], check=True)
            time.sleep(0.2 * self.to_all)  # so that a worker that does not stand it has ended


class PowerCut(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_index) -> None:
        if trainer.global_step == 3:
            raise RuntimeError("power cut")


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGINT, 130)], ids=["TERM", "USR1", "C"]
)
def test_a_signal_loses_no_finished_step(place, signum, code):
    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as stop:
        run(callbacks=(Send(signum),))
    assert (stop.value.exit_code, stop.value.step, steps_of(LAST)) == (code, 3, 3)
    message = f"interrupted by {signal.Signals(signum).name} after 3 steps, which are in {LAST}"
    again = "distill train run/recipe.yaml resume=true"
    assert stop.value.message == f"{message}; go on with: {again}"
    assert message in Path("run/log.txt").read_text()
    assert signal.getsignal(signum) == before and not Path("run/student.safetensors").exists()
    assert main(again.split()[1:]) == 0
    run("run=whole")
    assert losses("run") == losses("whole") and list(losses("run")) == [0, 1, 2, 3, 4]


def test_a_signal_in_the_last_step_lets_the_run_end(place):
    options = ("data.val_images=held_out", "validation.max_images=2", "checkpoint.student=best")
    assert run(*options, callbacks=(Send(signal.SIGTERM, step=4),)).is_file()
    assert steps_of(LAST) == 5 == steps_of(LAST.with_name("best.ckpt"))


@pytest.mark.skipif(sys.platform != "linux", reason="finds children in /proc")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_every_process_finds_the_workers_standing(place, signum):
    with pytest.raises(Interrupted):
        run("data.num_workers=1", "trainer.max_steps=50", callbacks=(Send(signum, to_all=True),))
    assert steps_of(LAST) == 3


@pytest.mark.parametrize("works", [True, False])
def test_a_warned_slurm_job_queues_itself_again(place, monkeypatch, works):
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"}
    job |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "localhost"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    scontrol = place / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" >> asked\n' + ("" if works else "echo not allowed >&2; exit 1\n"))
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    with pytest.raises(Interrupted) as stop:
        run(callbacks=(Send(signal.SIGUSR1),))
    assert steps_of(LAST) == 3 and not list(Path("run").glob("hpc_ckpt_*"))
    assert Path("asked").read_text() == "requeue 7\n"
    said = "SLURM has queued job 7 again" if works else "job 7 could not be queued again (not allowed); submit it again"
    assert stop.value.message.endswith(said)
    run("resume=true")
    assert list(losses("run")) == [0, 1, 2, 3, 4]


def test_what_an_earlier_version_kept_when_slurm_warned_it_is_found(place):
    run("trainer.max_steps=2")
    kept = Path("run/hpc_ckpt_1.ckpt")
    run("trainer.max_steps=4", "resume=true")
    LAST.rename(kept)
    run("trainer.max_steps=6", "resume=true")
    assert f"going on from {kept}" in Path("run/log.txt").read_text() and steps_of(LAST) == 6


def test_checkpoints_have_intervals_of_their_own(place):
    with pytest.raises(RuntimeError, match="power cut"):
        run("checkpoint.every_n_steps=2", callbacks=(PowerCut(),))
    assert steps_of(LAST) == 2
    with pytest.raises(RuntimeError, match="power cut"):
        run("run=timed", "checkpoint.every_n_steps=0", "checkpoint.every_n_minutes=1e-6", callbacks=(PowerCut(),))
    assert steps_of(Path("timed/checkpoints/last.ckpt")) == 3


def test_a_save_on_a_full_disk_leaves_the_last_good_checkpoint(place, capsys):
    run("trainer.max_steps=2")
    good = LAST.read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK_BYTES, before[1]))
    try:
        assert main(["train", "recipe.yaml", "resume=true"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert f"{LAST}: cannot be written: the disk is full" in error and "resume=true" in error
    assert "Traceback" not in error
    assert LAST.read_bytes() == good and [path.name for path in LAST.parent.iterdir()] == ["last.ckpt"]
    run("resume=true")
    assert list(losses("run")) == [0, 1, 2, 3, 4]


def test_a_damaged_last_checkpoint_names_the_one_that_can_be_used(place, capsys):
    run("data.val_images=held_out", "validation.every_n_steps=2", "checkpoint.keep_best=2", "validation.max_images=2")
    kept = sorted(LAST.parent.glob("best-step*.ckpt"), key=steps_of)[-1]
    LAST.write_bytes(LAST.read_bytes()[:-1000])
    assert main(["train", "recipe.yaml", "data.val_images=held_out", "resume=true"]) == 2
    error = capsys.readouterr().err
    mend = f"cp {kept} {LAST}"
    assert f"to go on after step {steps_of(kept)}: {mend}; or start again in another directory: run=DIR" in error
    subprocess.run(mend.split(), check=True)
    assert main(["train", "run/recipe.yaml", "trainer.max_steps=6", "resume=true"]) == 0


def test_a_run_in_use_is_refused(place):
    with hold_directory(Path("run"), give="run=DIR"), pytest.raises(RunError, match="'run' is in use by process"):
        run("resume=true")
    assert not Path("run").exists()


VALIDATED = ("data.val_images=held_out", "validation.every_n_steps=1", "validation.max_images=2")


@pytest.mark.parametrize("ema", ["0", "0.5"])
def test_the_student_may_be_that_of_the_best_step(place, ema, tiny_teacher):
    options = (*VALIDATED, f"optim.ema_decay={ema}", "optim.lr=0.02", "checkpoint.keep_best=2")
    weights = run(*options, "checkpoint.student=best")
    folder = LAST.parent
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    scores = {line["step"] + 1: line["val/cosine"] for line in lines if "val/cosine" in line}
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:2]
    names = {"last.ckpt", "best.ckpt", *(f"best-step{step}.ckpt" for step in best)}
    assert {path.name for path in folder.iterdir()} == names
    assert steps_of(folder / "best.ckpt") == best[0]
    held = torch.load(folder / "best.ckpt", weights_only=True)
    assert ("current_model_state" in held) == (ema != "0")
    student = load_model(weights).state_dict()
    assert student.keys() == {name.removeprefix("model.") for name in held["state_dict"]}
    for name, tensor in student.items():
        assert torch.equal(tensor, held["state_dict"][f"model.{name}"]), name
    config = StudentConfig("efficientvit_sam_t", image_size=64, init_from=str(folder / "best.ckpt"))
    started = build_student(config, tiny_teacher).state_dict()
    assert all(torch.equal(tensor, student[name]) for name, tensor in started.items())
    assert run(*options, "checkpoint.student=last", "resume=true") == weights  # of the finished run
    final = load_model(folder / "last.ckpt").state_dict()
    assert all(torch.equal(tensor, final[name]) for name, tensor in load_model(weights).state_dict().items())


def test_every_checkpoint_is_a_model(place, capsys):
    run("trainer.max_steps=2")
    assert main(["export", str(LAST), "--out", "onnx"]) == 0 and Path("onnx/encoder.onnx").is_file()
    run("run=next", "trainer.max_steps=1", f"student.init_from={LAST}")
    assert [training.run.name for training in read_trainings(Path("next"))] == ["run", "next"]
    content = torch.load(LAST, weights_only=True)
    del content[SPEC_KEY]  # as earlier versions wrote it
    torch.save(content, LAST)
    assert load_model(LAST).spec == load_model("run").spec
    Path("run/student.safetensors").unlink()
    with pytest.raises(CheckpointError, match="earlier version of distill wrote it.*resume=true"):
        load_model(LAST)


def test_the_best_step_needs_a_validation(place, capsys):
    assert main(["check", "recipe.yaml", "checkpoint.student=best"]) == 2
    assert "data.val_images is not set" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_ranks_agree_on_their_last_step(place, launcher):
    """The signal goes to one process: to rank 0, or to torchrun, which passes it on."""
    options = ["train", "recipe.yaml", "trainer.max_steps=100000", "trainer.devices=2", "trainer.strategy=ddp"]
    module = ["-m", "distill.cli.main", *options, "data.batch_size=1"]
    if launcher == "torchrun":
        module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *module]
    output = Path("output.txt")
    with output.open("w") as file:
        running = subprocess.Popen([sys.executable, *module], stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 150
    while not Path("run/metrics.jsonl").exists() or len(losses("run")) < 3:
        assert time.monotonic() < deadline and running.poll() is None, output.read_text()[-3000:]
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    code = running.wait(60)
    assert code == (143 if launcher == "lightning" else 1), output.read_text()[-3000:]
    assert output.read_text().count("go on with: distill train run/recipe.yaml resume=true") == 1
    step = steps_of(LAST)
    assert step - 1 in (*losses("run"), max(losses("run")) + 1) and not list(Path("run").glob("lock.*"))
    again = [f"trainer.max_steps={step + 1}", "trainer.devices=1", "trainer.strategy=auto", "data.batch_size=2"]
    assert main(["train", "run/recipe.yaml", *again, "resume=true"]) == 0
    assert list(losses("run")) == list(range(step + 1))
