"""`distill train`: run a feature or mask stage by a recipe."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.arguments import add_command
from distill.text import say

if TYPE_CHECKING:
    from distill.config.schema import FeatureRecipe, MaskRecipe

# The stage that follows a stage, as packaged recipes are named: the first that there is.
NEXT_STAGES = (("feature", "prompt_loop"), ("feature", "mask"), ("prompt_loop", "mask"))

EPILOG = """\
examples:
  distill train quickstart/feature data.images=shards/train cache.dir=cache run=runs/feature
  distill train my_recipe.yaml run=runs/l0 --dry-run               # shapes, parameters, memory, gradients, hours
  distill train my_recipe.yaml optim.lr=5e-4 trainer.max_steps=20000 run=runs/lr5e-4
  distill train my_recipe.yaml trainer.devices=8 trainer.precision=bf16-mixed run=runs/l0
  distill train my_recipe.yaml run=runs/l0 resume=true             # continue after an interruption
  distill train my_recipe.yaml run=runs/l0 resume=true optim.lr=1e-4         # and with another rate from there on
  torchrun --nproc-per-node 8 --nnodes 2 ... $(which distill) train my_recipe.yaml trainer.num_nodes=2 run=runs/l0
  srun distill train my_recipe.yaml trainer.devices=8 trainer.num_nodes=8 run=runs/l0 resume=true

SIGTERM, SIGUSR1 and Ctrl-C end a run after the step under way, which checkpoints/last.ckpt keeps: exit code 143, 138 or
130. `checkpoint.every_n_steps` and `checkpoint.every_n_minutes` say how much a power cut may cost.

The options under `trainer` go to lightning.Trainer as they are. The run directory gets recipe.yaml, environment.json,
metrics.jsonl, tensorboard/, checkpoints/, log.txt, and at the end student.safetensors.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "train",
        "run a feature or mask stage",
        EPILOG,
        description="Train a student by a recipe. Everything is checked before anything is written.",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file or a packaged name (`distill recipes ls`)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="options that win over the recipe")
    parser.add_argument(
        "--dry-run", action="store_true", help="a few steps, and a report of what the run will take; writes nothing"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Load the recipe, then the heavy libraries; then train, or print the report of a dry run."""
    from distill.config.loading import load_recipe, stated_value
    from distill.config.schema import FeatureRecipe, MaskRecipe

    recipe = load_recipe(arguments.recipe, arguments.overrides, kinds=("feature", "mask"))
    assert isinstance(recipe, FeatureRecipe | MaskRecipe)
    meant_batch = stated_value(arguments.recipe, "optim.lr_for_batch")
    if arguments.dry_run:
        from rich.console import Console

        from distill.training.dry_run import dry_run, tables

        console = Console(soft_wrap=True)
        for item in tables(dry_run(recipe, meant_batch=meant_batch)):
            if isinstance(item, str):
                say(item)
            else:
                console.print(item)
        return 0

    from distill.cards.writing import refresh_card
    from distill.training.directory import is_rank_zero
    from distill.training.record import last_scores
    from distill.training.run import train

    weights = train(recipe, meant_batch=meant_batch)
    if is_rank_zero():
        refresh_card(recipe.run)
        scores = last_scores(Path(recipe.run))
        say("the last scores: " + ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
        say(f"wrote {weights}")
        say(f"next: {next_command(arguments.recipe, recipe)}")
    return 0


def next_command(source: str, recipe: FeatureRecipe | MaskRecipe) -> str:
    """Return the command to type after a training: the packaged recipe's next stage, or else an evaluation.

    Words in capitals are the user's to fill in.
    """
    from distill.config.loading import packaged_recipes

    run = Path(recipe.run)
    quoted = shlex.quote(str(run))
    for stage, following in NEXT_STAGES:
        name = source.replace(stage, following)
        if name != source and name in packaged_recipes():
            given = [f"data.images={recipe.data.images}"]
            given += [f"data.val_images={recipe.data.val_images}"] if recipe.data.val_images else []
            given += [f"cache.dir={recipe.cache.dir}"] if recipe.cache.dir else []
            given += [f"teacher.checkpoint={recipe.teacher.checkpoint}"] if recipe.teacher.checkpoint else []
            given += [f"student.init_from={run}", f"run={run}_{following}"]
            return f"distill train {name} {shlex.join(given)}"
    return f"distill evaluate {quoted} eval/coco_box data.images=PHOTOS data.annotations=FILE run={quoted}_box"
