"""The pipeline of `distill quickstart`: from photographs to a report, offline, on the CPU of a laptop.

Each step is a Python call that one of the commands makes too. The pipeline prints that command, so that a reader can
repeat the step on other data.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning

from distill.cards.writing import refresh_card
from distill.config.loading import load_recipe
from distill.config.schema import CacheRecipe, EvaluateRecipe, FeatureRecipe, MaskRecipe, StudentConfig
from distill.data.cache.run import run_cache_job
from distill.data.coco import CocoSet
from distill.data.shards.build import build_coco_shards
from distill.data.synthetic.coco_set import write_coco_set
from distill.data.synthetic.source_photos import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, load_photographs
from distill.errors import RunError
from distill.evaluation.finished import metrics_lines, read_evaluation
from distill.evaluation.record import EVALUATION_METRICS_FILE
from distill.evaluation.run import evaluate_recipe
from distill.files import write_json
from distill.lock import contents, hold_directory
from distill.models.checkpoint import STUDENT_FILE, load_model, save_model
from distill.models.complexity import encoder_macs
from distill.models.initialization import build_student
from distill.models.sam import PromptableModel
from distill.models.teacher import load_teacher
from distill.quickstart.report import write_report
from distill.text import BILLION, print_command, progress_bar
from distill.training.directory import is_rank_zero
from distill.training.run import train

SUMMARY_FILE, REPORT_FILE, MARKER_FILE, SECONDS_FILE = "summary.json", "index.html", "quickstart.json", "seconds.json"
HELD_OUT_PHOTOS = 40
TRAIN_SEED, HELD_OUT_SEED = 1, 2
SAMPLES_PER_SHARD = 40
PROTOCOLS = {"box": "eval/coco_box", "point": "eval/coco_point"}
GALLERY_ROWS = 16


class QuickstartPipeline:
    """The steps of the quickstart in one directory. A step whose result is there is not done again.

    Call the steps in the order of `run`.
    """

    def __init__(self, out: Path, num_photos: int) -> None:
        self.out = out
        self.num_photos = num_photos
        # Name in summary.json -> MODEL of `distill evaluate`
        self.models = {
            "teacher": "quickstart",
            "student_untrained": str(out / "untrained"),
            "student_after_feature": str(out / "feature"),
            "student": str(out / "mask"),
        }

    def run(self) -> dict[str, Any]:
        """Run every step that is not finished, and write the report. Return the content of summary.json.

        Raises:
            DistillError: the directory holds something else, or a step fails.
        """
        with hold_directory(self.out, give="--out DIR"):
            return self._run()

    def _run(self) -> dict[str, Any]:
        self.begin()
        self.compose_data()
        self.build_cache()
        self.write_untrained()
        self.train("feature", [f"cache.dir={self.out / 'cache'}"])
        self.train("mask", [f"student.init_from={self.out / 'feature'}"])
        for model in self.models:
            self.evaluate(model)
        return self.summarize()

    def begin(self) -> None:
        """Make the directory. Raises RunError when it holds something else, or a quickstart of another size."""
        settings = {"train_photos": self.num_photos}
        marker = self.out / MARKER_FILE
        if marker.is_file():
            begun = json.loads(marker.read_text())
            if begun != settings:
                raise RunError(f"--out {self.out}: begun with {begun}, not {settings}; give another directory")
            print(f"{self.out}: goes on with what is there")
            return
        if contents(self.out):
            raise RunError(f"--out {self.out}: is not empty and holds no quickstart; give another directory")
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(marker, settings, raises=RunError)

    def compose_data(self) -> None:
        """Compose two COCO-format sets of scenes, for training and held out, and build image shards of both."""
        started = time.monotonic()
        for split, names, num_photos, seed in (
            ("train", TRAIN_PHOTOGRAPHS, self.num_photos, TRAIN_SEED),
            ("val", HELD_OUT_PHOTOGRAPHS, HELD_OUT_PHOTOS, HELD_OUT_SEED),
        ):
            folder = self.out / "data" / split
            if not (folder / "annotations.json").exists():
                with progress_bar(f"composing {split}", num_photos) as advance:
                    write_coco_set(folder, load_photographs(names), num_photos=num_photos, seed=seed, advance=advance)
            if not (self._shards(split) / "index.json").exists():
                self._build_shards(folder, self._shards(split))
        self._add_seconds("data", started)

    def build_cache(self) -> None:
        """Cache the teacher's embeddings of the training photos."""
        started = time.monotonic()
        overrides = [f"data.images={self._shards('train')}", f"cache.dir={self.out / 'cache'}"]
        print_command("cache", "build", "quickstart/cache", *overrides)
        recipe = load_recipe("quickstart/cache", overrides, kinds=("cache",))
        assert isinstance(recipe, CacheRecipe)
        run_cache_job(recipe, report=print)
        self._add_seconds("cache", started)

    def write_untrained(self) -> None:
        """Write the student before any training, with the teacher's decoder. The stages are compared with it."""
        weights = self.out / "untrained" / STUDENT_FILE
        if not weights.exists():
            weights.parent.mkdir(exist_ok=True)
            save_model(self._untrained(), weights)

    def train(self, stage: str, overrides: list[str]) -> None:
        """Train one stage by the packaged recipe quickstart/STAGE.

        Args:
            overrides: of the recipe, besides its shards and its run directory.
        """
        run = self.out / stage
        if (run / STUDENT_FILE).exists():
            return
        started = time.monotonic()
        shards = [f"data.images={self._shards('train')}", f"data.val_images={self._shards('val')}"]
        overrides = [*shards, *overrides, f"run={run}", *(["resume=true"] if run.exists() else [])]
        print_command("train", f"quickstart/{stage}", *overrides)
        recipe = load_recipe(f"quickstart/{stage}", overrides, kinds=("feature", "mask"))
        assert isinstance(recipe, FeatureRecipe | MaskRecipe)
        weights = train(recipe)
        if is_rank_zero():
            refresh_card(str(run))
            print(f"wrote {weights}")
        self._add_seconds(stage, started)

    def evaluate(self, model: str) -> None:
        """Evaluate one of the models on the held-out photos, from boxes and from one click."""
        started = time.monotonic()
        data = self.out / "data" / "val"
        for prompt, name in PROTOCOLS.items():
            run = self._evaluation(model, prompt)
            if (run / EVALUATION_METRICS_FILE).exists():
                continue
            overrides = [f"data.images={data / 'photos'}", f"data.annotations={data / 'annotations.json'}"]
            overrides += [f"run={run}", *(["resume=true"] if run.exists() else [])]
            print_command("evaluate", self.models[model], name, *overrides)
            recipe = load_recipe(name, overrides, kinds=("evaluate",))
            assert isinstance(recipe, EvaluateRecipe)
            metrics = evaluate_recipe(self.models[model], recipe)
            print("\n".join([*metrics_lines(metrics), f"written to {run / EVALUATION_METRICS_FILE}"]))
            refresh_card(self.models[model], [read_evaluation(run)])
        self._add_seconds(f"evaluate_{model}", started)

    def summarize(self) -> dict[str, Any]:
        """Write summary.json and the report. Return the content of summary.json.

        It holds for each model `box_miou` and `point_miou` (0 to 1), `params`, and `encoder_gmacs` of one photo; and
        `seconds`, the time of each step.
        """
        summary: dict[str, Any] = {}
        evaluations = {
            name: {prompt: read_evaluation(self._evaluation(name, prompt)) for prompt in PROTOCOLS}
            for name in self.models
        }
        for name, source in self.models.items():
            model = load_model(source)
            scores = {f"{prompt}_miou": found.metrics["miou"] for prompt, found in evaluations[name].items()}
            num_params = sum(parameter.numel() for parameter in model.parameters())
            gmacs = round(encoder_macs(model.spec) / BILLION, 3)
            summary[name] = {**scores, "params": num_params, "encoder_gmacs": gmacs}
        summary["seconds"] = json.loads((self.out / SECONDS_FILE).read_text())
        write_json(self.out / SUMMARY_FILE, summary, raises=RunError)
        found = {name: list(of_model.values()) for name, of_model in evaluations.items()}
        write_report(summary, self.models, found, self.out / REPORT_FILE, num_rows=GALLERY_ROWS)
        return summary

    def _build_shards(self, folder: Path, shards: Path) -> None:
        photos, annotations = folder / "photos", folder / "annotations.json"
        words = ["--images", photos, "--annotations", annotations, "--out", shards]
        print_command("shards", "build", "coco", *words, "--samples-per-shard", SAMPLES_PER_SHARD)
        coco_set = CocoSet(photos, annotations)
        with progress_bar("photos", len(coco_set)) as advance:
            report = build_coco_shards(coco_set, shards, samples_per_shard=SAMPLES_PER_SHARD, advance=advance)
        print("\n".join(report.lines(str(shards))))

    def _untrained(self) -> PromptableModel:
        """Build the student of the mask stage with random weights in its encoder, drawn by the recipe's seed."""
        overrides = [f"data.images={self._shards('train')}", "student.init_from=none", "run=none"]
        recipe = load_recipe("quickstart/mask", overrides, check_paths=False)
        assert isinstance(recipe, MaskRecipe)
        lightning.seed_everything(recipe.seed, verbose=False)
        student = StudentConfig(recipe.student.name, recipe.student.image_size)
        return build_student(student, load_teacher(recipe.teacher))

    def _shards(self, split: str) -> Path:
        return self.out / "shards" / split

    def _evaluation(self, model: str, prompt: str) -> Path:
        return self.out / "evaluations" / f"{model}_{prompt}"

    def _add_seconds(self, step: str, started: float) -> None:
        """Add to the time that a step took. A repeated run that finds the step finished adds next to nothing."""
        path = self.out / SECONDS_FILE
        seconds = json.loads(path.read_text()) if path.exists() else {}
        seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - started, 1)
        write_json(path, seconds, raises=RunError)
