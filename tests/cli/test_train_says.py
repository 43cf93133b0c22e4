"""What `distill train` says: cautions before it starts, its rate, its scores at the end, and the next command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from distill.cli.main import main
from distill.cli.train import next_command
from distill.config.loading import load_recipe, packaged_recipes

TREE = {
    "kind": "feature",
    "run": "out",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "data": {"images": "images", "val_images": "images", "batch_size": 2, "num_workers": 0},
    "optim": {"lr": 1e-3},
    "validation": {"max_images": 2, "num_pictures": 0},
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_shards, teacher_file: Path) -> Path:
    """Make a working directory with image shards of four photos, and a recipe of which nothing says how often."""
    monkeypatch.chdir(tmp_path)
    photo_shards(4)
    Path("feature.yaml").write_text(
        yaml.safe_dump({**TREE, "teacher": {"name": str(teacher_file), "source": "online"}})
    )
    return tmp_path


def lines_of(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("length", "last_step"),
    [
        (["trainer.max_epochs=2"], 3),
        (["trainer.max_steps=3"], 2),  # in the middle of an epoch
        (["trainer.max_epochs=3", "trainer.accumulate_grad_batches=2"], 2),
        (["trainer.max_steps=3", "trainer.accumulate_grad_batches=2", "data.batch_size=1"], 2),
    ],
)
def test_the_last_step_is_logged_and_validated_whatever_the_intervals(place, length, last_step) -> None:
    """Also that it is the last step alone, and that it is no step earlier than without this."""
    assert main(["train", "feature.yaml", *length]) == 0
    losses = [line["step"] for line in lines_of("out") if "train/loss" in line]
    scores = [line["step"] for line in lines_of("out") if "val/cosine" in line]
    rates = [line["step"] for line in lines_of("out") if "lr-AdamW/pg1" in line]
    assert losses == rates == [last_step]
    assert len(scores) == 1
    assert Path("out/checkpoints/best.ckpt").is_file()


def test_a_short_run_is_warned_of_by_check_train_and_the_dry_run(place, capsys) -> None:
    command = ["feature.yaml", "trainer.max_epochs=1", "optim.warmup_steps=500"]
    assert main(["check", *command]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 3 and "optim.warmup_steps" in warnings[0] and "log_every_n_steps" in warnings[1]
    assert "validation.every_n_steps" in warnings[2]
    assert main(["train", *command, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(warning in shown for warning in warnings)
    assert main(["train", *command]) == 0
    said = capsys.readouterr()
    for warning in warnings:
        assert warning.removeprefix("warning: ") in said.err
        assert warning.removeprefix("warning: ") in Path("out", "log.txt").read_text()


def test_a_run_ends_with_its_scores_and_the_next_command(place, capsys) -> None:
    assert main(["train", "feature.yaml", "trainer.max_epochs=1"]) == 0
    scores, wrote, following = capsys.readouterr().out.splitlines()[-3:]
    last = {name: line[name] for line in lines_of("out") for name in line}
    assert scores.startswith("the last scores: train/loss ")
    assert f"train/loss {last['train/loss']:.4g}" in scores and f"val/box_miou {last['val/box_miou']:.4g}" in scores
    assert wrote == "wrote out/student.safetensors"
    assert following.startswith("next: distill evaluate out eval/coco_box ")


def test_the_rate_follows_the_global_batch_in_log_dry_run_and_optimizer(place, capsys) -> None:
    command = ["feature.yaml", "trainer.max_epochs=1", "optim.lr_for_batch=32", "trainer.log_every_n_steps=1"]
    assert main(["train", *command]) == 0
    said = "learning rate 6.25e-05, 2 photos a step (1 device(s) x 2 photos): optim.lr=0.001 is for 32"
    assert said in Path("out", "log.txt").read_text()
    assert lines_of("out")[0]["lr-AdamW/pg1"] == pytest.approx(1e-3 / 16)
    capsys.readouterr()
    assert main(["train", *command, "optim.lr_rule=sqrt", "trainer.accumulate_grad_batches=2", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "learning rate 0.000354, 4 photos a step (1 device(s) x 2 photos x 2 batches)" in shown
    assert "3.54e-04" in shown  # of the encoder, in the table of parts


def test_a_published_rate_that_may_not_follow_warns(place, capsys) -> None:
    blanks = ["data.images=images", "run=out", "teacher.source=online", "student.image_size=64", "data.batch_size=2"]
    teacher = yaml.safe_load(Path("feature.yaml").read_text())["teacher"]["name"]
    command = ["check", "efficientvit_sam/l0_feature_10k", *blanks, f"teacher.name={teacher}"]
    assert main([*command, "optim.lr_for_batch=null"]) == 0
    assert "is for 16 photos a step, and a step of this run has 2" in capsys.readouterr().err
    assert main(command) == 0
    assert "photos a step" not in capsys.readouterr().err


def test_the_next_command_is_a_packaged_one(place) -> None:
    for name in packaged_recipes():
        if name.endswith(("feature", "feature_10k", "prompt_loop", "mask")):
            given = ["run=runs/a b", "data.images=images", "student.init_from=null", "cache.dir=cache"]
            recipe = load_recipe(name, given, check_paths=False)
            words = next_command(name, recipe).split()
            is_trained = words[1] == "train"
            assert words[2 if is_trained else 4 if "'" in words[2] else 3] in packaged_recipes(), words
            assert is_trained == (f"{name.partition('/')[0]}/" in words[2]), words
    recipe = load_recipe("edge_sam/feature", ["run=r", "data.images=i", "cache.dir=c"], check_paths=False)
    assert next_command("edge_sam/feature", recipe) == (
        "distill train edge_sam/prompt_loop data.images=i cache.dir=c student.init_from=r run=r_prompt_loop"
    )
