"""What follows from a recipe before it starts: devices, photos a step, the learning rate, steps, and cautions."""

from __future__ import annotations

from typing import Any

import pytest

from distill.config.outlook import Outlook, cautions, describe_lr, foresee, lr_for, num_devices, optim_for
from distill.config.schema import DataConfig, FeatureRecipe, OptimConfig, StudentConfig, ValidationConfig
from distill.errors import RecipeError


def recipe(trainer: dict[str, Any], *, batch_size: int = 1, **options: Any) -> FeatureRecipe:
    optim = OptimConfig(**options)
    data = DataConfig("images", val_images="held_out", batch_size=batch_size)
    return FeatureRecipe(run="run", student=StudentConfig("x"), data=data, optim=optim, trainer=trainer)


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({}, 1),
        ({"accelerator": "cpu", "devices": "auto"}, 1),
        ({"devices": 4, "num_nodes": 2}, 8),
        ({"devices": "4"}, 4),
        ({"devices": [0, 2]}, 2),
        ({"devices": "0,1,2", "num_nodes": 2}, 6),
        ({"devices": None, "num_nodes": None}, 1),
    ],
)
def test_devices_are_counted_as_lightning_counts_them(trainer: dict, expected: int) -> None:
    assert num_devices(trainer, 0) == expected


def test_all_gpus_are_used_unless_the_recipe_says_otherwise() -> None:
    assert num_devices({}, 4) == num_devices({"devices": -1, "accelerator": "gpu"}, 4) == 4
    assert num_devices({"devices": 2}, 4) == 2
    assert num_devices({"accelerator": "cpu"}, 4) == 1


@pytest.mark.parametrize(
    ("trainer", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_epochs": 3}, 30),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": 3, "max_steps": -1}, 30),
        ({"max_epochs": 3, "limit_train_batches": 4}, 12),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, 15),
        ({"max_epochs": 3, "accumulate_grad_batches": 4}, 9),
        ({"max_epochs": 3, "devices": 2}, 15),
        ({"fast_dev_run": True, "max_epochs": 3}, 1),
    ],
)
def test_the_length_of_a_run(trainer: dict, steps: int) -> None:
    assert foresee(recipe(trainer), devices=num_devices(trainer, 0), num_photos=10).steps == steps


def test_the_length_is_not_known_without_the_number_of_photos() -> None:
    assert foresee(recipe({"max_epochs": 3}), devices=1, num_photos=None).steps is None
    assert foresee(recipe({"max_epochs": 3, "max_steps": 5}), devices=1, num_photos=None).steps is None
    assert foresee(recipe({"max_steps": 5}), devices=1, num_photos=None).steps == 5


def test_a_share_without_a_batch_is_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"trainer\.limit_train_batches: 0.05 of 10 batches an epoch is less than one"
    ):
        foresee(recipe({"max_epochs": 1, "limit_train_batches": 0.05}), devices=1, num_photos=10)


@pytest.mark.parametrize(
    ("rule", "photos", "share"),
    [("linear", 256, 1.0), ("linear", 8, 1 / 32), ("linear", 512, 2.0), ("sqrt", 64, 0.5), ("sqrt", 1024, 2.0)],
)
def test_the_rate_follows_the_global_batch(rule: str, photos: int, share: float) -> None:
    optim = OptimConfig(lr=2e-3, lr_for_batch=256, lr_rule=rule)  # type: ignore[arg-type]
    assert lr_for(optim, photos) == pytest.approx(2e-3 * share)
    assert optim_for(optim, photos).lr == lr_for(optim, photos)
    assert optim_for(optim_for(optim, photos), photos) == optim_for(optim, photos)  # it is not scaled twice


def test_the_same_global_batch_has_the_same_rate_however_it_is_divided() -> None:
    rates = set()
    for devices, batch_size, accumulated in ((1, 4, 8), (8, 4, 1), (2, 16, 1), (1, 32, None)):
        trainer = {"max_epochs": 1, "accumulate_grad_batches": accumulated}
        made = recipe(trainer, batch_size=batch_size, lr=1e-3, lr_for_batch=256)
        found = foresee(made, devices=devices, num_photos=None)
        assert found.photos_a_step == 32
        rates.add(found.lr)
    assert rates == {1e-3 / 8}


def test_the_rate_is_said_with_its_reasons() -> None:
    made = recipe({"accumulate_grad_batches": 2}, batch_size=4, lr=1e-3, lr_for_batch=64, lr_rule="sqrt")
    line = describe_lr(made, foresee(made, devices=2, num_photos=None))
    assert line == (
        "learning rate 0.0005, 16 photos a step (2 device(s) x 4 photos x 2 batches): "
        "optim.lr=0.001 is for 64, and follows the sqrt rule"
    )
    assert describe_lr(recipe({}), foresee(recipe({}), devices=1, num_photos=None)).endswith("optim.lr as it is")


def test_a_run_within_its_intervals_is_told_what_happens_and_the_mend() -> None:
    made = recipe({"max_epochs": 1, "log_every_n_steps": 50}, warmup_steps=500)
    lines = cautions(made, foresee(made, devices=1, num_photos=26))
    assert [line.partition(";")[0] for line in lines] == [
        "the run has 26 step(s) and optim.warmup_steps=500: the rate only reaches 5% of 0.001",
        "the run has 26 step(s) and trainer.log_every_n_steps=50: only the last step is logged",
        "the run has 26 step(s) and validation.every_n_steps=500: only the last step is validated",
    ]
    assert [line.partition("give ")[2] for line in lines] == [
        "optim.warmup_steps=2, or more epochs",
        "trainer.log_every_n_steps=2",
        "validation.every_n_steps=2",
    ]
    mended = recipe({"max_epochs": 1, "log_every_n_steps": 2}, warmup_steps=2)
    mended.validation = ValidationConfig(every_n_steps=2)
    assert cautions(mended, foresee(mended, devices=1, num_photos=26)) == []
    assert cautions(made, foresee(made, devices=1, num_photos=500)) == []
    assert cautions(made, foresee(made, devices=1, num_photos=None)) == []  # nothing is known of its length


def test_a_rate_for_another_batch_is_warned_of_only_where_it_does_not_follow() -> None:
    found = Outlook(devices=1, photos_a_step=8, lr=1e-3, steps=None, epochs=None)
    (line,) = cautions(recipe({}), found, meant_batch=256)
    assert "is for 256 photos a step, and a step of this run has 8; give optim.lr_for_batch=256" in line
    assert cautions(recipe({}), found, meant_batch=8) == cautions(recipe({}), found) == []
    assert cautions(recipe({}, lr_for_batch=256), found, meant_batch=256) == []
