"""What a resumed run does with a changed recipe, with a run that was finished, and with a bad checkpoint."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
import yaml
from safetensors.torch import load_file

from distill.cli.main import main
from distill.config.loading import load_recipe
from distill.data.shards.writer import ShardWriter
from distill.errors import RunError
from distill.models.checkpoint import load_model, read_metadata, save_model
from distill.training import train
from distill.training.checkpoint_file import RECIPE_KEY
from distill.training.position import POSITION_KEY
from tests.conftest import SIZES, annotate, random_photo

RECIPE = {
    "kind": "feature",
    "student": {"name": "efficientvit_sam_t", "image_size": 64},
    "data": {"images": "images", "batch_size": 2, "num_workers": 0},
    "optim": {"lr": 1e-3, "final_lr_share": 1.0},  # no decay: a longer run has the same learning rates
    "validation": {"every_n_steps": 2},
    "checkpoint": {"every_n_steps": 2},
    "logger": [],
    "trainer": {
        "max_steps": 2,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> Path:
    """Make a directory with shards of 10 photos, a recipe, and a run of 2 of the 5 steps of an epoch."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, count in (("images", 10), ("held_out", 2)):
            with ShardWriter(name, 4) as writer:
                for i in range(count):
                    size = SIZES[i % len(SIZES)]
                    writer.add(f"photo{i}", random_photo(i, size), annotate(f"photo{i}", size))
        shutil.copy(teacher_file, "teacher.safetensors")
        recipe = {**RECIPE, "teacher": {"name": "teacher.safetensors", "source": "online"}}
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        assert main(["train", "recipe.yaml", "run=run"]) == 0
    return folder


@pytest.fixture
def place(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy that directory and work in it."""
    shutil.copytree(begun, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def resume(*overrides: str, run: str = "run") -> int:
    return main(["train", "recipe.yaml", f"run={run}", "resume=true", *overrides])


def lines(run: str = "run") -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def scalars(name: str, run: str = "run") -> list[float]:
    return [line[name] for line in lines(run) if name in line]


def losses(run: str = "run") -> list[tuple[int, float, float]]:
    return [(line["step"], line["epoch"], line["train/loss"]) for line in lines(run) if "train/loss" in line]


def last(run: str = "run") -> Path:
    return Path(run, "checkpoints", "last.ckpt")


def contents_of(run: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(run).rglob("*") if path.is_file()}


def as_earlier_versions_wrote_it(run: str = "run") -> None:
    content = torch.load(last(run), weights_only=True)
    torch.save({name: value for name, value in content.items() if name not in (RECIPE_KEY, POSITION_KEY)}, last(run))


def test_the_optimizer_obeys_and_the_record_says_so(place: Path) -> None:
    asked = ["optim.lr=1e-6", "optim.weight_decay=0.5", "optim.betas=[0.5,0.6]", "optim.encoder_lr_scale=0.5"]
    assert resume(*asked, "trainer.max_steps=4") == 0
    assert scalars("lr-AdamW/pg1") == [1e-3, 1e-3, 5e-7, 5e-7]
    groups = torch.load(last(), weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert all(tuple(group["betas"]) == (0.5, 0.6) for group in groups)
    written = Path("run", "recipe.yaml").read_text()
    assert yaml.safe_load(written)["optim"]["lr"] == 1e-6
    assert "# from step 2 on: optim.lr=1e-06 (before: 0.001)\n" in written
    changed = {entry["key"]: entry for entry in json.loads(Path("run", "changes.json").read_text())}
    assert changed["optim.lr"] == {"step": 2, "key": "optim.lr", "before": 1e-3, "after": 1e-6}
    assert set(changed) == {*(option.partition("=")[0] for option in asked), "trainer.max_steps"}
    assert resume(*asked, "trainer.max_steps=5", "optim.lr=1e-5") == 0
    entries = [(e["step"], e["before"], e["after"]) for e in json.loads(Path("run", "changes.json").read_text())]
    assert (2, 1e-3, 1e-6) in entries and (4, 1e-6, 1e-5) in entries


def test_the_schedule_obeys(place: Path) -> None:
    assert resume("optim.final_lr_share=0", "optim.warmup_steps=3", "trainer.max_steps=5") == 0
    assert scalars("lr-AdamW/pg1") == pytest.approx([1e-3, 1e-3, 1e-3, 1e-3, 5e-4])  # the third step of the warm-up


def test_what_does_not_change_leaves_no_trace(place: Path) -> None:
    assert resume("trainer.max_steps=3") == 0
    assert [entry["key"] for entry in json.loads(Path("run", "changes.json").read_text())] == ["trainer.max_steps"]
    assert main(["train", "recipe.yaml", "run=other"]) == 0
    assert not Path("other", "changes.json").exists()
    assert not Path("other", "recipe.yaml").read_text().startswith("#")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "begun with seed=0, not 1"),
        ("student.image_size=96", "begun with student.image_size=64, not 96"),
        ("student.init_from=teacher", "begun with student.init_from=None, not teacher"),
        ("trainer.accumulate_grad_batches=2", "begun with trainer.accumulate_grad_batches=1, not 2"),
        ("trainer.limit_train_batches=2", "begun with trainer.limit_train_batches=1.0, not 2"),
        ("data.batch_size=1", "global batch size 2 then, 1 now"),
        ("data.images=held_out", "images .* then, .* now"),
        ("teacher.name=other.safetensors", r"begun with teacher.name=.*teacher.safetensors, not .*other.safetensors"),
    ],
)
def test_what_decided_the_steps_so_far_is_refused(place: Path, capsys, override: str, message: str) -> None:
    model = load_model("teacher.safetensors")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    save_model(model, "other.safetensors")
    before = contents_of("run")
    capsys.readouterr()
    assert resume(override, "trainer.max_steps=4") == 2
    error = capsys.readouterr().err.strip()
    assert re.search(message, error) and "\n" not in error
    assert contents_of("run") == before


def test_files_may_move(place: Path) -> None:
    Path("images").rename("moved")
    Path("teacher.safetensors").rename("moved.safetensors")
    assert resume("data.images=moved", "teacher.name=moved.safetensors", "trainer.max_steps=3") == 0
    assert [step for step, _, _ in losses()] == [0, 1, 2]
    assert [entry["key"] for entry in json.loads(Path("run", "changes.json").read_text())] == ["trainer.max_steps"]


@pytest.mark.parametrize("old", [False, True], ids=["", "earlier_version"])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("trainer.max_steps=2", "trainer.max_steps=7"),
        ("trainer.max_steps=5", "trainer.max_steps=7"),  # at an epoch's end
        ("trainer.max_epochs=1", "trainer.max_epochs=2"),
    ],
)
def test_a_finished_run_goes_on_as_if_it_had_not_ended(place: Path, first: str, then: str, old: bool) -> None:
    by_epochs = ["trainer.max_steps=-1"] if "epochs" in first else []
    assert main(["train", "recipe.yaml", "run=whole", *by_epochs, then]) == 0
    assert main(["train", "recipe.yaml", "run=longer", *by_epochs, first]) == 0
    if old:
        as_earlier_versions_wrote_it("longer")
    assert resume(*by_epochs, then, run="longer") == 0
    assert losses("longer") == losses("whole")
    assert [epoch for _, epoch, _ in losses("whole")[:7]] == [0, 0, 0, 0, 0, 1, 1]
    whole, longer = load_model("whole").state_dict(), load_model("longer").state_dict()
    assert all(torch.equal(longer[name], tensor) for name, tensor in whole.items())


def test_a_finished_run_keeps_its_record(place: Path) -> None:
    before = contents_of("run")
    assert resume("optim.lr=1e-6") == 0
    after = contents_of("run")
    assert {name for name in after if after[name] != before.get(name)} == {"log.txt"}
    Path("run", "student.safetensors").unlink()  # the run died before it could write it
    assert resume() == 0
    Path("before.safetensors").write_bytes(before["student.safetensors"])
    files = [Path("run", "student.safetensors"), Path("before.safetensors")]
    metadata, weights = [read_metadata(file) for file in files], [load_file(file) for file in files]
    assert metadata[0]["recipe"].replace("resume: true", "resume: false") == metadata[1]["recipe"]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_averaging_that_ends_goes_on_from_the_weights_in_training(place: Path) -> None:
    assert main(["train", "recipe.yaml", "run=ema", "optim.ema_decay=0.9"]) == 0
    assert resume("trainer.max_steps=3", run="ema") == 0
    assert resume("trainer.max_steps=3") == 0
    assert losses("ema") == losses("run")


class Break(lightning.Callback):
    """A callback that makes the weights infinite, as a learning rate does that is too high."""

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args) -> None:
        if trainer.global_step == 3:
            next(p for p in pl_module.parameters() if p.requires_grad).data.fill_(torch.inf)


def test_the_advice_after_a_loss_that_is_no_number_helps(place: Path) -> None:
    with pytest.raises(
        RunError, match="the loss of step 3 is nan.*resume=true.* with a lower optim.lr, with trainer.gr"
    ):
        train(load_recipe("recipe.yaml", ["run=nan", "trainer.max_steps=5"]), callbacks=[Break()])
    advice = ["optim.lr=1e-4", "trainer.gradient_clip_val=1.0", "trainer.precision=32-true"]
    assert resume("trainer.max_steps=5", *advice, run="nan") == 0
    assert [step for step, _, _ in losses("nan")] == [0, 1, 2, 3, 4]
    assert scalars("lr-AdamW/pg1", "nan") == [1e-3, 1e-3, 1e-4, 1e-4, 1e-4]


def make_negative(content: dict) -> dict:
    content["global_step"] = -1
    return content


def count_back(content: dict) -> dict:
    loops = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]
    loops["optimizer"]["step"]["total"]["completed"] = -1
    return content


def rename(content: dict) -> dict:
    content["state_dict"] = {f"net.{name}": value for name, value in content["state_dict"].items()}
    return content


def cut(content: dict) -> dict:
    content["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(1, 2)
    return content


def spoil(content: dict) -> dict:
    next(iter(content["state_dict"].values())).fill_(float("nan"))
    return content


def count_cost_in_words(content: dict) -> dict:
    content["callbacks"]["CostRecord"] = {"seconds": "many", "photos": 2}
    return content


def change_nothing_into_text(content: dict) -> dict:
    content[RECIPE_KEY]["history"] = ["optim.lr"]
    return content


def put(*places: str | int, value: object) -> Callable[[dict], dict]:
    """Return a change of a checkpoint that puts a value at a place."""

    def change(content: dict) -> dict:
        node = content
        for place in places[:-1]:
            node = node[place]
        node[places[-1]] = value
        return content

    return change


# Places in a checkpoint, what is put there, and what the message says of it
SCHEDULE, ADAM = ("lr_schedulers", 0), ("optimizer_states", 0)
DAMAGES = [
    ("distill_last_step", "text", "its distill_last_step is not as a run writes it"),
    ("distill_last_step", "train/loss", [1], "its distill_last_step is not as a run writes it"),
    (*SCHEDULE, "_step_count", {}, "its lr_schedulers is not as a run writes it"),
    (*SCHEDULE, "last_epoch", -1, "its lr_schedulers is not as a run writes it"),
    (*SCHEDULE, "lr_lambdas", [True], "its lr_schedulers is not as a run writes it"),
    (*SCHEDULE, "step", 3, "its lr_schedulers have a field 'step'"),
    ("callbacks", "ModelCheckpoint{}", {"best_model_score": "good"}, "could not convert string to float"),
    ("callbacks", "EMAWeightAveraging", [], "its callbacks is not as a run writes it"),
    ("MixedPrecision", {"scale": 0.0}, "its MixedPrecision is not as a run writes it"),
    (*ADAM, "state", 0, {"step": torch.tensor(2.0)}, "the state of another optimizer"),
    (*ADAM, "state", 0, "step", "two", "the state of another optimizer"),
    (*ADAM, "param_groups", 0, "params", 0, [], "the state of another optimizer"),
    (*ADAM, "param_groups", 0, "params", 0, 1, "the state of another optimizer"),
    ("state_dict", 7, 7, "its state_dict is not as a run writes it"),
    ("state_dict", "more", 7, "is of another student"),
    ("current_model_state", 7, "its current_model_state is not as a run writes it"),
    ("distill_position", {"validated_batches": 0, "gradients": 7}, "holds gradients or averages of other tensors"),
]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(pickle.dumps(Path)), "cut short or damaged"),
        (lambda path: torch.save(Path("run"), path), "objects that could run code"),
        (lambda path: torch.save({}, path), "not a checkpoint of a training of distill: it has no 'optimizer_states'"),
        (lambda path: torch.save([1], path), "it holds a list"),
        (make_negative, "it counts -1 where a whole number from 0 on belongs"),
        (count_back, "it counts -1 where a whole number from 0 on belongs"),
        (rename, "is of another student"),
        (cut, "the state of another optimizer"),
        (spoil, "holds NaN or infinities in 1 tensors"),
        (count_cost_in_words, "its CostRecord is not as a run writes it: Expected `float`, got `str`"),
        (change_nothing_into_text, "its distill_recipe is not as a run writes it"),
        *[(put(*place, value=value), message) for *place, value, message in DAMAGES],
    ],
)
def test_a_foreign_checkpoint_is_one_line(place: Path, capsys, write, message: str) -> None:
    if write.__name__ == "<lambda>":
        write(last())
    else:
        torch.save(write(torch.load(last(), weights_only=True)), last())
    before = contents_of("run")
    capsys.readouterr()
    assert resume("trainer.max_steps=4", "optim.lr=1e-5") == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "run=DIR" in error and "\n" not in error
    assert contents_of("run") == before
