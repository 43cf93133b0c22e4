"""`distill card` and `distill push`: what they say, keep and upload."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from distill.cards.hub import files_to_push
from distill.cards.writing import CARD_FILE, MEASURED_FILE, OURS, refresh_card
from distill.cli.main import main
from distill.evaluation.finished import read_evaluation


def box_of(compared) -> Path:
    """Return the evaluation of the student by box."""
    return compared.out / "evaluations/student/coco_box"


def smoke_test(compared, tmp_path: Path, num_photos: int = 3) -> Path:
    """Evaluate the student by box on the first photos alone."""
    run = tmp_path / "smoke"
    words = ["evaluate", f"{compared.place}/runs/mask", "eval/coco_box", f"data.max_images={num_photos}", f"run={run}"]
    words += [f"data.images={compared.place}/photos", f"data.annotations={compared.place}/set.json"]
    assert main(words) == 0
    return run


def test_scores_come_into_a_card_by_adding_them(compared, trained_run, capsys):
    assert main(["card", str(trained_run)]) == 0
    assert "Not evaluated yet" in (trained_run / CARD_FILE).read_text()
    folder, bench = str(compared.out / "evaluations/student"), str(compared.out / "bench.json")
    assert main(["card", str(trained_run), "--add", folder, "--bench", bench]) == 0
    text = (trained_run / CARD_FILE).read_text()
    metrics = json.loads((box_of(compared) / "metrics.json").read_text())
    low, high = metrics["intervals"]["miou"]
    assert f"| box | single | mIoU {metrics['miou']:.3f} | [{low:.3f}, {high:.3f}] |" in text
    assert "| 1 click | best |" in text and "## Speed" in text


def test_comparing_and_evaluating_write_nothing_into_a_run(compared, tmp_path):
    """The fixture has compared these runs; a smoke test on three photos follows."""

    def files(run: Path) -> dict[str, int]:
        return {path.relative_to(run).as_posix(): path.stat().st_mtime_ns for path in run.rglob("*")}

    runs = [compared.place / "runs" / name for name in ("feature", "mask")]
    before = [files(run) for run in runs]
    for run in runs:
        assert "Not evaluated yet" in (run / CARD_FILE).read_text() and not (run / MEASURED_FILE).exists()
    smoke = smoke_test(compared, tmp_path)
    words = [str(run) for run in runs]
    assert main(["compare", *words, "--evaluations", str(smoke), "--no-bench", "--out", str(tmp_path / "out")]) == 0
    assert [files(run) for run in runs] == before


def test_a_smoke_test_never_takes_the_place_of_the_evaluation(compared, trained_run, tmp_path):
    shutil.rmtree(trained_run)
    shutil.copytree(compared.place / "runs/mask", trained_run)
    smoke = smoke_test(compared, tmp_path)
    for evaluation in (box_of(compared), smoke):
        assert main(["card", str(trained_run), "--add", str(evaluation)]) == 0
    rows = [line for line in (trained_run / CARD_FILE).read_text().splitlines() if line.startswith("| box |")]
    assert len(rows) == 2
    assert rows[0].endswith("| 4 | 12 | set.json |") and rows[1].endswith("| 3 | 9 | set.json, the first 3 photos |")
    # The same set under another path is the same row; the same path with other annotations is another row.
    moved = tmp_path / "moved"
    shutil.copytree(box_of(compared), moved)
    content = json.loads((moved / "metrics.json").read_text())
    (moved / "metrics.json").write_text(json.dumps({**content, "annotations": "/elsewhere/set.json"}))
    assert main(["card", str(trained_run), "--add", str(moved)]) == 0
    assert len(json.loads((trained_run / MEASURED_FILE).read_text())["evaluations"]) == 2
    (moved / "metrics.json").write_text(json.dumps({**content, "annotations_sha256": "0" * 64}))
    assert main(["card", str(trained_run), "--add", str(moved)]) == 0
    assert len(json.loads((trained_run / MEASURED_FILE).read_text())["evaluations"]) == 3
    assert main(["card", str(trained_run), "--forget", "--add", str(box_of(compared))]) == 0
    assert len(json.loads((trained_run / MEASURED_FILE).read_text())["evaluations"]) == 1


def test_scores_of_earlier_versions_stay(compared, trained_run):
    """They were keyed by paths, which two evaluations of different files may share."""
    metrics = json.loads((box_of(compared) / "metrics.json").read_text())
    old = {"weights_sha256": metrics["weights_sha256"], "bench": None}
    old["evaluations"] = {"coco_box/box/None/single/set.json/0": metrics}
    (trained_run / MEASURED_FILE).write_text(json.dumps(old))
    assert main(["card", str(trained_run), "--add", str(box_of(compared))]) == 0
    assert (trained_run / CARD_FILE).read_text().count("| box |") == 1


def test_the_front_matter_is_what_the_hub_reads(compared, trained_run):
    assert main(["card", str(trained_run), "--add", str(box_of(compared))]) == 0
    card = ModelCard.load(trained_run / CARD_FILE)
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "mask-generation"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    metrics = json.loads((box_of(compared) / "metrics.json").read_text())
    assert results["mIoU, box"] == round(metrics["miou"], 4)


def test_a_card_tells_stages_teacher_data_and_licences(trained_run):
    assert main(["card", str(trained_run)]) == 0
    text = (trained_run / CARD_FILE).read_text()
    assert text.count("| feature |") == text.count("| mask |") == 1
    assert "teacher.safetensors`: see its own card" in text
    assert "distill does not know its licence; state it here" in text
    assert str(trained_run.parent) not in text  # nothing of the machine


def test_weights_alone_have_a_card_too(trained_run, tmp_path):
    (tmp_path / "alone").mkdir()
    shutil.copy(trained_run / "student.safetensors", tmp_path / "alone")
    assert main(["card", str(tmp_path / "alone")]) == 0
    assert "| mask |" in (tmp_path / "alone" / CARD_FILE).read_text()  # from the header of the weights


def test_scores_stay_until_the_weights_change(compared, trained_run, capsys):
    folder = compared.out / "evaluations"
    assert main(["card", str(trained_run), "--add", str(folder)]) == 0
    assert "teacher/coco_box: of other weights, left out" in capsys.readouterr().out
    assert main(["card", str(trained_run)]) == 0
    assert "| box | single |" in (trained_run / CARD_FILE).read_text()
    shutil.copy(compared.place / "runs/feature/student.safetensors", trained_run)
    assert main(["card", str(trained_run)]) == 0
    assert "Not evaluated yet" in (trained_run / CARD_FILE).read_text()


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("evaluations/teacher/coco_box", "of other weights than"),
        ("evaluations/nowhere", "--add {out}/evaluations/nowhere: no such directory"),
    ],
)
def test_what_cannot_be_added_is_refused(compared, trained_run, capsys, folder, message):
    assert main(["card", str(trained_run), "--add", str(compared.out / folder)]) == 2
    assert message.format(out=compared.out) in capsys.readouterr().err


def test_a_card_that_its_owner_keeps_is_not_written_over(compared, trained_run, capsys):
    assert main(["card", str(trained_run)]) == 0
    kept = (trained_run / CARD_FILE).read_text().replace(OURS, "") + "My words."
    (trained_run / CARD_FILE).write_text(kept)
    refresh_card(str(trained_run), [read_evaluation(compared.out / "evaluations/student/coco_box")])
    assert (trained_run / CARD_FILE).read_text() == kept
    assert main(["card", str(trained_run)]) == 2
    assert "edited to be kept" in capsys.readouterr().err


def test_damaged_scores(trained_run, capsys):
    (trained_run / MEASURED_FILE).write_text("{")
    assert main(["card", str(trained_run)]) == 2
    assert "not what distill wrote" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a commit of small files asks for; `received` is what it was sent."""

    received: list[tuple[str, str]] = []
    status = 200

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.received.append((self.path, body))
        address = f"http://{self.headers['Host']}/me/student"
        answer: dict[str, Any] = {"url": address, "name": "me/student", "id": "me/student"}
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif "/commit/" in self.path:
            answer = {"commitUrl": f"{address}/commit/1", "commitOid": "1", "hookOutput": ""}
        content = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """Serve a Hub on this machine."""
    handler = type("ThisHub", (Hub,), {"received": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield handler
    server.shutdown()
    server.server_close()


def test_a_dry_run_lists_the_files_and_sends_and_writes_nothing(trained_run, hub, capsys):
    before = sorted(trained_run.rglob("*"))
    assert main(["push", str(trained_run), "me/student", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("student.safetensors", "README.md", "recipe.yaml")) and "nothing was" in out
    assert hub.received == [] and sorted(trained_run.rglob("*")) == before


def test_push_commits_weights_card_and_recipe(trained_run, hub, capsys):
    (trained_run / CARD_FILE).write_text(f"a card of other weights\n{OURS}\n")
    assert main(["push", str(trained_run), "me/student", "--private"]) == 0
    assert "/me/student/commit/1" in capsys.readouterr().out
    paths = [path for path, _ in hub.received]
    assert paths[0] == "/api/repos/create" and "private" in hub.received[0][1]
    lines = [json.loads(line) for line in hub.received[-1][1].splitlines()]
    files = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
    assert set(files) == {"student.safetensors", "README.md", "recipe.yaml"}
    card, recipe = (base64.b64decode(files[name]["content"]).decode() for name in ("README.md", "recipe.yaml"))
    assert "Not evaluated yet" in card and "other weights" not in card
    assert "images: ???" in recipe and "batch_size: 2" in recipe
    assert str(trained_run.parent) not in card + recipe and "/" not in yaml.safe_load(recipe)["teacher"]["name"]


def test_an_owners_card_is_pushed_as_it_is(trained_run):
    (trained_run / CARD_FILE).write_text("My words.")
    uploads = {file.name: file.content for file in files_to_push(str(trained_run))}
    assert uploads[CARD_FILE] == trained_run / CARD_FILE


def test_a_refusal_is_one_line(trained_run, hub, capsys):
    hub.status = 401
    assert main(["push", str(trained_run), "me/student"]) == 2
    error = capsys.readouterr().err
    assert "me/student" in error and "hf auth login" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("model", "repo_id", "message"),
    [("student", "no/such/name", "OWNER/NAME"), ("absent", "me/student", "no such file")],
)
def test_mistakes(trained_run, monkeypatch, capsys, model, repo_id, message):
    monkeypatch.chdir(trained_run.parent)
    assert main(["push", model, repo_id]) == 2
    assert message in capsys.readouterr().err
