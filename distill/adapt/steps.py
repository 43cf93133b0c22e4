"""The steps from annotated photos to a measured student, in one directory, for the quickstart and for `distill adapt`.

Each step is a Python call that one of the commands makes too. A step prints that command, so that a reader can repeat
it on other data. A step whose result is there is not done again, and an interrupted one goes on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.cards.writing import is_run, refresh_card
from distill.comparison.directory import EVALUATIONS
from distill.comparison.measure import EvaluationData, evaluate_missing
from distill.comparison.models import ComparedModel
from distill.config.loading import load_recipe
from distill.config.schema import CacheRecipe, EvaluateRecipe, FeatureRecipe, MaskRecipe
from distill.data.cache.run import run_cache_job
from distill.data.coco import CocoSet
from distill.data.shards.build import build_coco_shards
from distill.data.shards.index import INDEX_NAME
from distill.errors import RunError
from distill.evaluation.finished import FinishedEvaluation, metrics_lines, read_evaluation
from distill.evaluation.record import EVALUATION_METRICS_FILE
from distill.evaluation.run import evaluate_recipe
from distill.export.onnx import export_onnx
from distill.files import write_json
from distill.lock import contents
from distill.models.checkpoint import STUDENT_FILE, load_model
from distill.outside import Seconds, read_json
from distill.runtimes.folder import DESCRIPTION_FILE
from distill.text import MILLION, print_command, progress_bar, say
from distill.training.directory import is_rank_zero
from distill.training.run import train

SECONDS_FILE = "seconds.json"
PROTOCOLS = ("eval/coco_box", "eval/coco_point")  # by which teacher and students are compared
SAMPLES_PER_SHARD = 40

Settings = dict[str, str | int | float | None]  # as JSON holds them
Times = dict[str, Seconds]  # of the steps, by name


@dataclass(frozen=True)
class Steps:
    """The steps in the directory `out`.

    device: `cpu` or `cuda` for every step; None: a GPU if there is one.
    """

    out: Path
    device: str | None = None

    def begin(self, marker: str, settings: Settings, *, what: str) -> bool:
        """Make the directory, which this process holds, or go on with one that was begun with the same settings.

        Args:
            marker: the name of the file that keeps the settings.
            settings: what must be the same when the work goes on.
            what: the work in words, for messages.
        Returns:
            whether the directory was begun before.
        Raises:
            RunError: it holds something else, was begun with other settings, or its marker is damaged.
        """
        path = self.out / marker
        if path.is_file():
            begun = read_json(path, Settings, f"settings of the {what}", "give another directory", raises=RunError)
            keys = [key for key in {**begun, **settings} if begun.get(key) != settings.get(key)]
            if keys:
                changes = ", ".join(f"{key} {begun.get(key)}, not {settings.get(key)}" for key in keys)
                raise RunError(f"--out {self.out}: begun with {changes}; give another directory")
            say(f"{self.out}: goes on with what is there")
            return True
        if contents(self.out):
            raise RunError(f"--out {self.out}: is not empty and holds no {what}; give another directory")
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(path, settings, raises=RunError)
        return False

    def shards(self, split: str) -> Path:
        """Return the directory of a split's image shards."""
        return self.out / "shards" / split

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time of a step to seconds.json. A repeated run that finds it finished adds next to nothing."""
        seconds, started = self.seconds(), time.monotonic()  # a damaged file is refused before the work
        yield
        seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - started, 1)
        write_json(self.out / SECONDS_FILE, seconds, raises=RunError)

    def seconds(self) -> Times:
        """Return the time that each step took, in seconds. Raises RunError when seconds.json is damaged."""
        path = self.out / SECONDS_FILE
        return read_json(path, Times, "times of the steps", "remove it", raises=RunError) if path.exists() else {}

    def build_shards(self, split: str, photos: Path, annotations: Path) -> None:
        """Build the image shards of a split from a COCO-format set."""
        shards = self.shards(split)
        if (shards / INDEX_NAME).exists():
            return
        words = ["--images", photos, "--annotations", annotations, "--out", shards]
        print_command("shards", "build", "coco", *words, "--samples-per-shard", SAMPLES_PER_SHARD)
        coco_set = CocoSet(photos, annotations)
        with progress_bar("photos", len(coco_set)) as advance:
            report = build_coco_shards(coco_set, shards, samples_per_shard=SAMPLES_PER_SHARD, advance=advance)
        say("\n".join(report.lines(str(shards))))

    def build_cache(self, recipe: str, overrides: Sequence[str] = ()) -> None:
        """Cache the teacher's embeddings of the training photos in OUT/cache, on one device."""
        overrides = [f"data.images={self.shards('train')}", f"cache.dir={self.out / 'cache'}", *overrides]
        print_command("cache", "build", recipe, *overrides)
        loaded = load_recipe(recipe, overrides, kinds=("cache",))
        assert isinstance(loaded, CacheRecipe)
        run_cache_job(loaded, devices=1, accelerator=self.device or "auto", report=print)

    def train(self, stage: str, recipe: str, overrides: Sequence[str] = (), *, validate: bool = True) -> None:
        """Train a stage by a recipe, in the run directory OUT/`stage`, on the shards of `train`, on one device.

        Args:
            validate: whether the shards of `val` are measured while training.
        """
        run = self.out / stage
        if (run / STUDENT_FILE).exists():
            return
        held_out = [f"data.val_images={self.shards('val')}"] if validate else []
        device = ["trainer.devices=1", *([f"trainer.accelerator={self.device}"] if self.device else [])]
        resume = ["resume=true"] if run.exists() else []
        words = [f"data.images={self.shards('train')}", *held_out, *overrides, *device, f"run={run}", *resume]
        print_command("train", recipe, *words)
        loaded = load_recipe(recipe, words, kinds=("feature", "mask"))
        assert isinstance(loaded, FeatureRecipe | MaskRecipe)
        weights = train(loaded)
        if is_rank_zero():
            refresh_card(str(run))
            say(f"wrote {weights}")

    def evaluate(self, model: ComparedModel, protocols: Sequence[str], data: EvaluationData) -> None:
        """Evaluate a model by each protocol, below OUT/evaluations. The evaluations are added to the model.

        A student of OUT gets them into its card. A teacher, which is only read, does not.
        """
        evaluate_missing([model], protocols, data, self.out, self.device)
        assert model.source is not None
        if self.out in Path(model.source).parents and is_run(Path(model.source)):
            folders = [evaluation.directory for evaluation in model.evaluations.values()]
            print_command("card", model.source, "--add", *folders)
            refresh_card(model.source, list(model.evaluations.values()))

    def evaluate_baseline(self, name: str, protocol: str, data: EvaluationData) -> FinishedEvaluation:
        """Evaluate a baseline, which looks at no photo, below OUT/evaluations."""
        directory = self.out / EVALUATIONS / name
        if not (directory / EVALUATION_METRICS_FILE).is_file():
            words = [*data.overrides, f"run={directory}", *(["resume=true"] if directory.exists() else [])]
            print_command("evaluate", name, protocol, *words)
            recipe = load_recipe(protocol, words, kinds=("evaluate",))
            assert isinstance(recipe, EvaluateRecipe)
            say("\n".join(metrics_lines(evaluate_recipe(name, recipe))))
        return read_evaluation(directory)

    def export(self, stage: str) -> Path:
        """Export the student of a stage to OUT/onnx, and return the directory."""
        out, run = self.out / "onnx", self.out / stage
        if not (out / DESCRIPTION_FILE).exists():
            print_command("export", run, "--out", out)
            for file in export_onnx(load_model(run), out):
                size = file.path.stat().st_size / MILLION
                say(f"{file.path}  {size:.1f} MB, within {file.difference:.0e} of torch")
        return out
