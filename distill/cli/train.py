"""`distill train`: run a feature or mask stage by a recipe."""

from __future__ import annotations

import argparse

from distill.cli.arguments import add_command

EPILOG = """\
examples:
  distill train quickstart/feature data.images=shards/train cache.dir=cache run=runs/feature
  distill train my_recipe.yaml run=runs/l0 --dry-run               # shapes, parameters, memory, gradients, hours
  distill train my_recipe.yaml optim.lr=5e-4 trainer.max_steps=20000 run=runs/lr5e-4
  distill train my_recipe.yaml trainer.devices=8 trainer.precision=bf16-mixed run=runs/l0
  distill train my_recipe.yaml run=runs/l0 resume=true             # continue after an interruption
  torchrun --nproc-per-node 8 --nnodes 2 ... $(which distill) train my_recipe.yaml trainer.num_nodes=2 run=runs/l0
  srun distill train my_recipe.yaml trainer.devices=8 trainer.num_nodes=8 run=runs/l0 resume=true

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
    from distill.config.loading import load_recipe
    from distill.config.schema import FeatureRecipe, MaskRecipe

    recipe = load_recipe(arguments.recipe, arguments.overrides, kinds=("feature", "mask"))
    assert isinstance(recipe, FeatureRecipe | MaskRecipe)
    if arguments.dry_run:
        from rich.console import Console

        from distill.training.dry_run import dry_run, tables

        console = Console(soft_wrap=True)
        for item in tables(dry_run(recipe)):
            console.print(item)
        return 0

    from distill.cards.writing import refresh_card
    from distill.training.directory import is_rank_zero
    from distill.training.run import train

    weights = train(recipe)
    if is_rank_zero():
        refresh_card(recipe.run)
        print(f"wrote {weights}")
    return 0
