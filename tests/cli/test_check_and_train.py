"""What `distill check` passes, `distill train` begins; and what one refuses, the other refuses in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from distill.cli.main import main
from distill.config.loading import load_recipe
from distill.errors import RecipeError
from distill.training import train

TREE = {
    "run": "out",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "teacher": {"source": "online"},
    "data": {"images": "images", "batch_size": 2, "num_workers": 0, "max_instances": 2},
    "optim": {"lr": 1e-4},
    "trainer": {
        "max_steps": 1,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_shards, teacher_file: Path) -> Path:
    """Make a working directory with image shards of four photos, and a recipe for each stage."""
    monkeypatch.chdir(tmp_path)
    photo_shards(4)
    for kind in ("feature", "mask"):
        tree = {"kind": kind, **TREE, "teacher": {"name": str(teacher_file), "source": "online"}}
        Path(f"{kind}.yaml").write_text(yaml.safe_dump(tree))
    Path("file").touch()
    return tmp_path


WHOLE = "expected a whole number of at least 1"
REFUSED = [
    ("student.name=timm/mobilnetv3_small_050", "timm has no model 'mobilnetv3_small_050'. Did you mean"),
    ("student.name=timm/resnet18.a9_in1k", "timm has no weights 'a9_in1k' of resnet18"),
    ("student.name=timm/resnet18@3", "'@3' is no stride"),
    ("run=/etc/passwd", "run: '/etc/passwd' is a file; give a directory"),
    ("run=file/run", "file' is a file; give a directory"),
    ("seed=4294967296", "seed: must be between 0 and 4294967295"),
    ("trainer.precision=fp8", "trainer.precision: expected one of 32-true, 16-mixed"),
    ("trainer.precision=16-true", "AdamW's eps of 1e-8 is 0 in fp16: use 16-mixed or bf16-true"),
    ("trainer.precision=bf16-mixd", "Did you mean 'bf16-mixed'"),
    ("trainer.strategy=ddpp", "got 'ddpp'. Did you mean 'ddp'"),
    ("trainer.strategy=ddp_notebook", "expected a strategy of lightning"),
    ("trainer.strategy=fsdp", "'fsdp' needs a GPU; give trainer.accelerator=gpu too"),
    ("trainer.accelerator=tpuu", "got 'tpuu'. Did you mean 'tpu'"),
    ("trainer.accelerator=[cpu]", "expected one of auto, cpu, gpu"),
    ("trainer.devices=0", "expected a number of devices"),
    ("trainer.devices=two", "expected a number of devices"),
    ("trainer.devices=1.5", "expected a number of devices"),
    ("trainer.devices=[0,0]", "expected a number of devices"),
    ("trainer.devices=[0,1]", "a CPU takes a number of processes"),
    ("trainer.devices=-1", "a CPU takes a number of processes"),
    ("trainer.num_nodes=0", f"trainer.num_nodes: {WHOLE}"),
    ("trainer.max_steps=abc", f"trainer.max_steps: {WHOLE}, or -1 for no limit, got 'abc'"),
    ("trainer.max_steps=0", f"trainer.max_steps: {WHOLE}"),
    ("trainer.max_steps=-2", f"trainer.max_steps: {WHOLE}"),
    ("trainer.max_steps=null", "says no length"),
    ("trainer.max_epochs=1.5", f"trainer.max_epochs: {WHOLE}"),
    ("trainer.max_epochs=true", f"trainer.max_epochs: {WHOLE}"),
    ("trainer.min_steps=-1", "expected a whole number of at least 0"),
    ("trainer.max_time=soon", "expected a time above 0, as 'DD:HH:MM:SS'"),
    ("trainer.max_time={hours: 0}", "expected a time above 0"),
    ("trainer.accumulate_grad_batches=0", WHOLE),
    ("trainer.accumulate_grad_batches={0: 2}", WHOLE),
    ("trainer.log_every_n_steps=0", WHOLE),
    ("trainer.limit_train_batches=0", "with 0 nothing would be trained"),
    ("trainer.limit_train_batches=0.0", "with 0 nothing would be trained"),
    ("trainer.limit_train_batches=1.5", "a share of them"),
    ("trainer.limit_val_batches=-1", "or 0 for none"),
    ("trainer.num_sanity_val_steps=-2", "or -1 for all batches"),
    ("trainer.gradient_clip_val=-1", "expected a number of at least 0"),
    ("trainer.gradient_clip_val=.nan", "expected a number of at least 0"),
    ("trainer.gradient_clip_algorithm=norms", "Did you mean 'norm'"),
    ("trainer.deterministic=perhaps", "expected one of true, false, warn"),
    ("trainer.sync_batchnorm=1", "expected one of true, false"),
    ("trainer.profiler=fast", "expected one of simple, advanced, pytorch"),
    ("trainer.fast_dev_run=-1", "expected true, false or a number of batches"),
    ("trainer.overfit_batches=1", "use limit_train_batches"),
    ("trainer.model_registry=x", "use `distill push`"),
]


@pytest.mark.parametrize(("override", "words"), REFUSED)
def test_all_commands_refuse_the_same_in_one_line(place: Path, capsys, override: str, words: str) -> None:
    before = sorted(place.rglob("*"))
    commands = (["check", "feature.yaml"], ["train", "feature.yaml"], ["train", "feature.yaml", "--dry-run"])
    answers = []
    for command in commands:
        assert main([*command, override]) == 2
        answers.append(capsys.readouterr().err.splitlines())
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 2 and words in answers[0][1], answers[0]  # the source with its count, and the mistake
    assert sorted(place.rglob("*")) == before


PASSED = [
    ["trainer.max_steps=-1", "trainer.max_epochs=1", "trainer.limit_train_batches=0.5", "trainer.limit_val_batches=0"],
    [f"trainer.{name}=null" for name in ("max_epochs", "precision", "devices", "accelerator", "strategy")],
    ["trainer.precision=bf16", 'trainer.devices="1"', "trainer.accelerator=auto", "trainer.max_epochs=-1"],
    ["trainer.precision=16", "trainer.max_time=00:01:00:00", "trainer.min_steps=1", "trainer.num_sanity_val_steps=-1"],
    ["trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=0.5", "trainer.gradient_clip_algorithm=value"],
    ["trainer.limit_train_batches=1", "trainer.max_time={hours: 1}", "trainer.gradient_clip_val=0"],
    ["trainer.deterministic=warn", "trainer.inference_mode=false", "trainer.profiler=simple", "seed=4294967295"],
    ["trainer.benchmark=true", "trainer.detect_anomaly=true", "trainer.sync_batchnorm=true"],
    ["trainer.fast_dev_run=2", "trainer.enable_autolog_hparams=false"],
    ["student.name=timm/mobilenetv3_small_050@16+sam", "trainer.fast_dev_run=true"],
]


@pytest.mark.parametrize("overrides", PASSED, ids=" ".join)
def test_what_a_check_passes_a_training_begins(place: Path, capsys, overrides: list[str]) -> None:
    command = ["feature.yaml", "data.val_images=images", *overrides]
    assert main(["check", *command]) == 0
    assert main(["train", *command]) == 0, capsys.readouterr().err
    assert Path("out", "student.safetensors").is_file()
    capsys.readouterr()
    assert main(["check", *command]) == 2  # the run directory is taken now, as `train` says too
    refusal = capsys.readouterr().err
    assert main(["train", *command]) == 2
    assert capsys.readouterr().err == refusal and "resume=true" in refusal


def test_a_run_without_a_step_gives_no_student(place: Path, capsys) -> None:
    assert main(["train", "feature.yaml", "trainer.limit_train_batches=0.01"]) == 2  # less than a batch
    assert "limit_train_batches" in capsys.readouterr().err
    recipe = load_recipe("feature.yaml", ["run=other"])
    recipe.trainer["limit_train_batches"] = 0  # as no file can say
    with pytest.raises(RecipeError, match="nothing would be trained"):
        train(recipe)
    assert not list(place.rglob("student.safetensors"))
