"""The pipeline of `distill quickstart`: from photographs to a report, offline, on the CPU of a laptop.

Its steps are those of `distill.adapt.steps`, each of which prints the command that does the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.adapt.steps import PROTOCOLS, Settings, Steps
from distill.bench.onnx_latency import onnx_latency
from distill.comparison.join import Comparison, add_benches, bench_run, build_comparison
from distill.comparison.measure import EvaluationData, evaluate_missing, measure_speed
from distill.comparison.models import ComparedModel, read_model
from distill.errors import RunError
from distill.files import write_json
from distill.lock import hold_directory
from distill.models.checkpoint import find_weights, load_model, sha256_file
from distill.models.complexity import encoder_macs
from distill.quickstart.photographs import gallery, packaged, read_packaged, write_part
from distill.quickstart.report import LABELS, write_picture, write_report
from distill.runtimes.folder import ENCODER_FILE
from distill.text import BILLION, say

SUMMARY_FILE, REPORT_FILE, PICTURE_FILE = "summary.json", "index.html", "photographs.jpg"
MARKER_FILE = "quickstart.json"
GALLERY_PROTOCOL = "eval/coco_point"
SHOWN = ("teacher", "student")  # whose speed is measured, and whose masks the gallery shows
NUM_STEPS = 8
SPEED_DEVICE = "cpu"  # the sentence at the end is about the CPU of whoever runs it


class QuickstartPipeline:
    """The steps of the quickstart in one directory. A step whose result is there is not done again.

    Call the steps in the order of `run`.
    """

    def __init__(self, out: Path, num_photos: int, num_held_out: int) -> None:
        self.out = out
        self.num_photos = {"train": num_photos, "val": num_held_out}
        self.steps = Steps(out)
        self.said = 0
        # Name in summary.json -> MODEL of `distill evaluate`
        self.sources = {
            "teacher": "quickstart",
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
        self.build_shards()
        self.build_cache()
        self.train()
        models = self.evaluate()
        photographs = self.evaluate_gallery()
        onnx_ms = self.export()
        comparison = self.measure(models)
        return self.summarize(models, comparison, photographs, onnx_ms)

    def begin(self) -> None:
        """Make the directory.

        Raises:
            DataError: the packaged set has fewer photos.
            RunError: the directory holds something else, or a quickstart of other settings.
        """
        for split, num in self.num_photos.items():
            read_packaged(split, at_least=num)
        settings: Settings = {
            "train_photos": self.num_photos["train"],
            "held_out_photos": self.num_photos["val"],
            "teacher_sha256": sha256_file(find_weights("quickstart")),
        }
        self.steps.begin(MARKER_FILE, settings, what="quickstart")

    def build_shards(self) -> None:
        """Build image shards of the photos to train on and of those to judge by."""
        self._say(
            "Photographs", "Caching and training read tars, as SA-1B is published, and here are real photographs."
        )
        with self.steps.timed("data"):
            (self.out / "data").mkdir(exist_ok=True)
            for split, num in self.num_photos.items():
                data = write_part(split, num, self._annotations(split))
                self.steps.build_shards(split, data.images, data.annotations)

    def build_cache(self) -> None:
        """Cache the teacher's embeddings of the training photos."""
        self._say("Cache", "The teacher looks at each photo once, so that training never waits for it.")
        with self.steps.timed("cache"):
            self.steps.build_cache("quickstart/cache")

    def train(self) -> None:
        """Train the student in both stages."""
        self._say(
            "Feature stage", "The student's encoder learns to give the teacher's embedding at a fraction of the cost."
        )
        with self.steps.timed("feature"):
            self.steps.train("feature", "quickstart/feature", [f"cache.dir={self.out / 'cache'}"])
        self._say("Mask stage", "Encoder and decoder learn together what counts: masks from boxes and clicks.")
        with self.steps.timed("mask"):
            start = [f"student.init_from={self.out / 'feature'}", f"cache.dir={self.out / 'cache'}"]
            self.steps.train("mask", "quickstart/mask", start)

    def evaluate(self) -> dict[str, ComparedModel]:
        """Evaluate the models on the held-out photos, from boxes and from one click. Return them by their names."""
        self._say("Evaluation", "One evaluator scores teacher and student on photos that neither of them learned from.")
        held_out = EvaluationData(packaged("val").images, self._annotations("val"))
        models: dict[str, ComparedModel] = {}
        for name, source in self.sources.items():
            models[name] = read_model(source, LABELS[name], models.values())
            with self.steps.timed(f"evaluate_{name}"):
                self.steps.evaluate(models[name], PROTOCOLS, held_out)
        return models

    def evaluate_gallery(self) -> Comparison:
        """Ask teacher and student for the objects in four photographs, by one click each."""
        with self.steps.timed("gallery"):
            models = [read_model(self.sources[name], LABELS[name]) for name in SHOWN]
            evaluate_missing(models, [GALLERY_PROTOCOL], gallery(), self.out / "gallery", None)
        return build_comparison(models, reference=LABELS["teacher"])

    def export(self) -> float:
        """Export the student to ONNX. Return its encoder's milliseconds in onnxruntime."""
        self._say("Export", "What ships is ONNX: it needs no torch, and its answers are compared with torch's.")
        with self.steps.timed("export"):
            path = self.steps.export("mask") / ENCODER_FILE
            return onnx_latency(path)

    def measure(self, models: dict[str, ComparedModel]) -> Comparison:
        """Measure speed and size of teacher and student, in turns, on this machine's CPU."""
        self._say("Speed", "Teacher and student encode photos in turns, on this machine's CPU, one at a time.")
        comparison = build_comparison(list(models.values()), reference=LABELS["teacher"])
        with self.steps.timed("speed"):
            bench = measure_speed([models[name] for name in SHOWN], self.out, SPEED_DEVICE)
        assert bench is not None
        add_benches(comparison, bench, str(self.out), is_complete=False)
        return comparison

    def summarize(
        self, models: dict[str, ComparedModel], comparison: Comparison, photographs: Comparison, onnx_ms: float
    ) -> dict[str, Any]:
        """Write summary.json, the report and the picture. Return the content of summary.json.

        It holds for each model `box_miou` and `point_miou` (0 to 1), `params`, and `encoder_gmacs` of one photo; then
        `times_fewer_macs` and `share_of_quality` (the mean of both mIoUs, as a share of the teacher's); and what
        differs from run to run: `speed` (milliseconds a photo) and `seconds`, the time of each step.
        """
        self._say("Report", "Scores with intervals, curves, and masks to look at, in one page that opens from disk.")
        summary: dict[str, Any] = {name: self._facts(name, models[name]) for name in models}
        teacher, student = summary["teacher"], summary["student"]
        summary["times_fewer_macs"] = round(teacher["encoder_gmacs"] / student["encoder_gmacs"], 2)
        summary["share_of_quality"] = round(quality(student) / quality(teacher), 4)
        of_teacher, of_student = ((bench_run(models[name], comparison.setting) or {})["latency_ms"] for name in SHOWN)
        summary["speed"] = {
            "teacher_ms": round(of_teacher, 1),
            "student_ms": round(of_student, 1),
            "student_onnxruntime_ms": round(onnx_ms, 1),
            "times_faster": round(of_teacher / of_student, 2),
        }
        summary["seconds"] = self.steps.seconds()
        write_json(self.out / SUMMARY_FILE, summary, raises=RunError)
        write_report(comparison, photographs, summary, sentence(summary), self.out / REPORT_FILE)
        write_picture(photographs, self.out / PICTURE_FILE)
        return summary

    def _facts(self, name: str, compared: ComparedModel) -> dict[str, Any]:
        """Return what summary.json says of a model."""
        model = load_model(self.sources[name])
        scores = {f"{key.prompt}_miou": found.metrics["miou"] for key, found in compared.evaluations.items()}
        num_params = sum(parameter.numel() for parameter in model.parameters())
        return {**scores, "params": num_params, "encoder_gmacs": round(encoder_macs(model.spec) / BILLION, 3)}

    def _annotations(self, split: str) -> Path:
        return self.out / "data" / f"{split}.json"

    def _say(self, title: str, why: str) -> None:
        """Print what the next step is, and what it is for."""
        self.said += 1
        say(f"\n[{self.said}/{NUM_STEPS}] {title}. {why}")


def quality(facts: dict[str, Any]) -> float:
    """Return the mask quality of a model of summary.json: the mean of its mIoUs from boxes and from one click."""
    return float(facts["box_miou"] + facts["point_miou"]) / 2


def sentence(summary: dict[str, Any]) -> str:
    """Say what the student costs, and how good it is, beside its teacher."""
    return (
        f"{summary['times_fewer_macs']:.1f} times fewer MACs, {summary['speed']['times_faster']:.1f} times faster, "
        f"{100 * summary['share_of_quality']:.1f} % of the teacher's mask quality"
    )
