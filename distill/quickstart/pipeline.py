"""The pipeline of `distill quickstart`: from photographs to a report, offline, on the CPU of a laptop.

Its steps are those of `distill.adapt.steps`, each of which prints the command that does the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning

from distill.adapt.steps import Steps
from distill.comparison.measure import EvaluationData
from distill.comparison.models import ComparedModel, read_model
from distill.config.loading import load_recipe
from distill.config.schema import MaskRecipe, StudentConfig
from distill.data.synthetic.coco_set import write_coco_set
from distill.data.synthetic.source_photos import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, load_photographs
from distill.errors import RunError
from distill.files import write_json
from distill.lock import hold_directory
from distill.models.checkpoint import STUDENT_FILE, load_model, save_model
from distill.models.complexity import encoder_macs
from distill.models.initialization import build_student
from distill.models.sam import PromptableModel
from distill.models.teacher import load_teacher
from distill.quickstart.report import LABELS, write_report
from distill.text import BILLION, progress_bar

SUMMARY_FILE, REPORT_FILE, MARKER_FILE = "summary.json", "index.html", "quickstart.json"
HELD_OUT_PHOTOS = 40
TRAIN_SEED, HELD_OUT_SEED = 1, 2
PROTOCOLS = ("eval/coco_box", "eval/coco_point")
GALLERY_ROWS = 16


class QuickstartPipeline:
    """The steps of the quickstart in one directory. A step whose result is there is not done again.

    Call the steps in the order of `run`.
    """

    def __init__(self, out: Path, num_photos: int) -> None:
        self.out = out
        self.num_photos = num_photos
        self.steps = Steps(out)
        # Name in summary.json -> MODEL of `distill evaluate`
        self.sources = {
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
        with self.steps.timed("cache"):
            self.steps.build_cache("quickstart/cache")
        self.write_untrained()
        with self.steps.timed("feature"):
            self.steps.train("feature", "quickstart/feature", [f"cache.dir={self.out / 'cache'}"])
        with self.steps.timed("mask"):
            self.steps.train("mask", "quickstart/mask", [f"student.init_from={self.out / 'feature'}"])
        return self.summarize(self.evaluate())

    def begin(self) -> None:
        """Make the directory. Raises RunError when it holds something else, or a quickstart of another size."""
        self.steps.begin(MARKER_FILE, {"train_photos": self.num_photos}, what="quickstart")

    def compose_data(self) -> None:
        """Compose two COCO-format sets of scenes, for training and held out, and build image shards of both."""
        with self.steps.timed("data"):
            for split, names, num_photos, seed in (
                ("train", TRAIN_PHOTOGRAPHS, self.num_photos, TRAIN_SEED),
                ("val", HELD_OUT_PHOTOGRAPHS, HELD_OUT_PHOTOS, HELD_OUT_SEED),
            ):
                folder = self.out / "data" / split
                if not (folder / "annotations.json").exists():
                    with progress_bar(f"composing {split}", num_photos) as advance:
                        photographs = load_photographs(names)
                        write_coco_set(folder, photographs, num_photos=num_photos, seed=seed, advance=advance)
                self.steps.build_shards(split, folder / "photos", folder / "annotations.json")

    def write_untrained(self) -> None:
        """Write the student before any training, with the teacher's decoder. The stages are compared with it."""
        weights = self.out / "untrained" / STUDENT_FILE
        if not weights.exists():
            weights.parent.mkdir(exist_ok=True)
            save_model(self._untrained(), weights)

    def evaluate(self) -> dict[str, ComparedModel]:
        """Evaluate the models on the held-out photos, from boxes and from one click. Return them by their names."""
        data = self.out / "data" / "val"
        held_out = EvaluationData(data / "photos", data / "annotations.json")
        models: dict[str, ComparedModel] = {}
        for name, source in self.sources.items():
            models[name] = read_model(source, LABELS[name], models.values())
            with self.steps.timed(f"evaluate_{name}"):
                self.steps.evaluate(models[name], PROTOCOLS, held_out)
        return models

    def summarize(self, models: dict[str, ComparedModel]) -> dict[str, Any]:
        """Write summary.json and the report. Return the content of summary.json.

        It holds for each model `box_miou` and `point_miou` (0 to 1), `params`, and `encoder_gmacs` of one photo; and
        `seconds`, the time of each step.
        """
        summary: dict[str, Any] = {}
        for name, compared in models.items():
            model = load_model(self.sources[name])
            scores = {f"{key.prompt}_miou": found.metrics["miou"] for key, found in compared.evaluations.items()}
            num_params = sum(parameter.numel() for parameter in model.parameters())
            gmacs = round(encoder_macs(model.spec) / BILLION, 3)
            summary[name] = {**scores, "params": num_params, "encoder_gmacs": gmacs}
        summary["seconds"] = self.steps.seconds()
        write_json(self.out / SUMMARY_FILE, summary, raises=RunError)
        write_report(summary, models, self.out / REPORT_FILE, num_rows=GALLERY_ROWS)
        return summary

    def _untrained(self) -> PromptableModel:
        """Build the student of the mask stage with random weights in its encoder, drawn by the recipe's seed."""
        overrides = [f"data.images={self.steps.shards('train')}", "student.init_from=none", "run=none"]
        recipe = load_recipe("quickstart/mask", overrides, check_paths=False)
        assert isinstance(recipe, MaskRecipe)
        lightning.seed_everything(recipe.seed, verbose=False)
        student = StudentConfig(recipe.student.name, recipe.student.image_size)
        return build_student(student, load_teacher(recipe.teacher))
