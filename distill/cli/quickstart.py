"""`distill quickstart`: the whole chain on a laptop, offline, from photographs to a report.

Each step is one of the other commands; the quickstart prints it, so that a reader can repeat it on data of theirs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.cli.arguments import add_command
from distill.errors import RunError

if TYPE_CHECKING:
    from distill.models.sam import PromptableModel

EPILOG = """\
examples:
  distill quickstart                     # some minutes on two cores; writes quickstart/index.html
  distill quickstart --out /tmp/try --train-photos 400

Stopped and started again it goes on with the first step that is not finished.
"""

SUMMARY_FILE, REPORT_FILE, MARKER_FILE, SECONDS_FILE = "summary.json", "index.html", "quickstart.json", "seconds.json"
TRAIN_PHOTOS, HELD_OUT_PHOTOS = 320, 40
TRAIN_SEED, HELD_OUT_SEED = 1, 2
SAMPLES_PER_SHARD = 40
PROTOCOLS = {"box": "eval/coco_box", "point": "eval/coco_point"}
GALLERY_ROWS = 16


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = add_command(
        subparsers,
        "quickstart",
        "the whole chain in minutes: data, cache, both stages, evaluation, report",
        EPILOG,
        description="Distil the packaged teacher into a small student on data that the command composes itself.",
    )
    parser.add_argument("--out", type=Path, default=Path("quickstart"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--train-photos", type=int, default=TRAIN_PHOTOS, metavar="N", help="default: %(default)s")
    parser.set_defaults(run=quickstart)


def quickstart(arguments: argparse.Namespace) -> int:
    """Run every step that is not finished, then write the report."""
    chain = Chain(arguments.out, arguments.train_photos)
    chain.begin()
    chain.compose_data()
    chain.build_cache()
    chain.write_untrained()
    chain.train("feature", [f"cache.dir={chain.out / 'cache'}"])
    chain.train("mask", [f"student.init_from={chain.out / 'feature'}"])
    for model in chain.models:
        chain.evaluate(model)
    summary = chain.summarize()
    print(f"{chain.out / REPORT_FILE}: the report\n{json.dumps(summary, indent=2)}")
    return 0


class Chain:
    """The steps of the quickstart in one directory; a step whose result is there is not done again."""

    def __init__(self, out: Path, num_photos: int) -> None:
        self.out = out
        self.num_photos = num_photos
        # name in summary.json -> MODEL of `distill evaluate`
        self.models = {
            "teacher": "quickstart",
            "student_untrained": str(out / "untrained"),
            "student_after_feature": str(out / "feature"),
            "student": str(out / "mask"),
        }

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
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise RunError(f"--out {self.out}: is not empty and holds no quickstart; give another directory")
        self.out.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps(settings))

    def compose_data(self) -> None:
        """Two COCO-format sets of composed scenes, and image shards of both."""
        from distill.data.synthetic.coco_set import write_coco_set
        from distill.data.synthetic.source_photos import HELD_OUT_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS, load_photographs
        from distill.text import progress_bar

        started = time.monotonic()
        for split, names, num_photos, seed in (
            ("train", TRAIN_PHOTOGRAPHS, self.num_photos, TRAIN_SEED),
            ("val", HELD_OUT_PHOTOGRAPHS, HELD_OUT_PHOTOS, HELD_OUT_SEED),
        ):
            folder, shards = self.out / "data" / split, self.out / "shards" / split
            if not (folder / "annotations.json").exists():
                with progress_bar(f"composing {split}", num_photos) as advance:
                    write_coco_set(folder, load_photographs(names), num_photos=num_photos, seed=seed, advance=advance)
            if not (shards / "index.json").exists():
                run_command(
                    ["shards", "build", "coco", "--images", folder / "photos"]
                    + ["--annotations", folder / "annotations.json", "--out", shards]
                    + ["--samples-per-shard", SAMPLES_PER_SHARD]
                )
        self._keep_seconds("data", started)

    def build_cache(self) -> None:
        """The teacher's embeddings of the training photos."""
        started = time.monotonic()
        run_command(
            ["cache", "build", "quickstart/cache", f"data.images={self.out / 'shards/train'}"]
            + [f"cache.dir={self.out / 'cache'}"]
        )
        self._keep_seconds("cache", started)

    def write_untrained(self) -> None:
        """The student before any training, with the teacher's decoder: what the stages are measured against."""
        from distill.models.checkpoint import STUDENT_FILE, save_model

        untrained = self.out / "untrained"
        if (untrained / STUDENT_FILE).exists():
            return
        untrained.mkdir(exist_ok=True)
        save_model(self._untrained(), untrained / STUDENT_FILE)

    def train(self, stage: str, overrides: list[str]) -> None:
        """One stage, by the packaged recipe quickstart/STAGE."""
        from distill.models.checkpoint import STUDENT_FILE

        run = self.out / stage
        if (run / STUDENT_FILE).exists():
            return
        started = time.monotonic()
        resume = ["resume=true"] if run.exists() else []
        shards = [f"data.images={self.out / 'shards/train'}", f"data.val_images={self.out / 'shards/val'}"]
        run_command(["train", f"quickstart/{stage}", *shards, *overrides, f"run={run}", *resume])
        self._keep_seconds(stage, started)

    def evaluate(self, model: str) -> None:
        """Box and one-click mIoU of one of the models on the held-out photos."""
        started = time.monotonic()
        data = self.out / "data" / "val"
        for prompt, recipe in PROTOCOLS.items():
            run = self._evaluation(model, prompt)
            if not (run / "metrics.json").exists():
                resume = ["resume=true"] if run.exists() else []
                run_command(
                    ["evaluate", self.models[model], recipe, f"data.images={data / 'photos'}"]
                    + [f"data.annotations={data / 'annotations.json'}", f"run={run}", *resume]
                )
        self._keep_seconds(f"evaluate_{model}", started)

    def summarize(self) -> dict[str, Any]:
        """Write summary.json and the report."""
        from distill.models.checkpoint import load_model
        from distill.models.complexity import encoder_macs
        from distill.quickstart.report import write_report

        summary: dict[str, Any] = {}
        for name, source in self.models.items():
            model = load_model(source)
            scores = {
                f"{prompt}_miou": json.loads((self._evaluation(name, prompt) / "metrics.json").read_text())["miou"]
                for prompt in PROTOCOLS
            }
            num_params = sum(parameter.numel() for parameter in model.parameters())
            gmacs = round(encoder_macs(model.spec) / 1e9, 3)
            summary[name] = {**scores, "params": num_params, "encoder_gmacs": gmacs}
        summary["seconds"] = json.loads((self.out / SECONDS_FILE).read_text())
        (self.out / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")
        evaluations = {name: [self._evaluation(name, prompt) for prompt in PROTOCOLS] for name in self.models}
        write_report(summary, self.models, evaluations, self.out / REPORT_FILE, num_rows=GALLERY_ROWS)
        return summary

    def _untrained(self) -> PromptableModel:
        import lightning

        from distill.config.loading import load_recipe
        from distill.config.schema import MaskRecipe, StudentConfig
        from distill.models.teacher import load_teacher
        from distill.training.run import build_student

        overrides = [f"data.images={self.out / 'shards/train'}", "student.init_from=none", "run=none"]
        recipe = load_recipe("quickstart/mask", overrides, check_paths=False)
        assert isinstance(recipe, MaskRecipe)
        lightning.seed_everything(recipe.seed, verbose=False)
        student = StudentConfig(recipe.student.name, recipe.student.image_size)
        return build_student(student, load_teacher(recipe.teacher))

    def _evaluation(self, model: str, prompt: str) -> Path:
        return self.out / "evaluations" / f"{model}_{prompt}"

    def _keep_seconds(self, step: str, started: float) -> None:
        """Add to the time that a step took; a repeated run that finds it finished adds next to nothing."""
        path = self.out / SECONDS_FILE
        seconds = json.loads(path.read_text()) if path.exists() else {}
        seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - started, 1)
        path.write_text(json.dumps(seconds))


def run_command(words: Sequence[object]) -> None:
    """Print one `distill` command and run it in this process. Its errors come through."""
    from distill.cli.main import build_parser

    argv = [str(word) for word in words]
    print(f"\n$ distill {shlex.join(argv)}", flush=True)
    arguments = build_parser().parse_args(argv)
    code = arguments.run(arguments)
    if code:
        raise RunError(f"`distill {shlex.join(argv)}` ended with exit code {code}")
