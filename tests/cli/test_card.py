"""`distill card` and `distill push`: what they say, keep and upload."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from huggingface_hub import ModelCard

from distill.cards.writing import CARD_FILE, MEASURED_FILE, OURS, refresh_card
from distill.cli.main import main
from distill.evaluation.finished import read_evaluation


def test_training_and_comparing_write_the_card(compared):
    text = (compared.place / "runs/mask" / CARD_FILE).read_text()
    metrics = json.loads((compared.out / "evaluations/student/coco_box/metrics.json").read_text())
    low, high = metrics["intervals"]["miou"]
    assert f"| box | single | mIoU {metrics['miou']:.3f} | [{low:.3f}, {high:.3f}] |" in text
    assert "| 1 click | best |" in text and "## Speed" in text
    feature = (compared.place / "runs/feature" / CARD_FILE).read_text()  # trained, never evaluated
    assert "Not evaluated yet" in feature and "efficientvit_sam_t" in feature


def test_the_front_matter_is_what_the_hub_reads(compared):
    card = ModelCard.load(compared.place / "runs/mask" / CARD_FILE)
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "mask-generation"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    metrics = json.loads((compared.out / "evaluations/student/coco_box/metrics.json").read_text())
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
    assert main(["card", str(trained_run), "--evaluations", str(folder)]) == 0
    assert "teacher/coco_box: of other weights, left out" in capsys.readouterr().out
    assert main(["card", str(trained_run)]) == 0
    assert "| box | single |" in (trained_run / CARD_FILE).read_text()
    shutil.copy(compared.place / "runs/feature/student.safetensors", trained_run)
    assert main(["card", str(trained_run)]) == 0
    assert "Not evaluated yet" in (trained_run / CARD_FILE).read_text()


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


def test_a_dry_run_lists_the_files_and_sends_nothing(trained_run, hub, capsys):
    assert main(["push", str(trained_run), "me/student", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("student.safetensors", "README.md", "recipe.yaml")) and "nothing was" in out
    assert hub.received == []


def test_push_commits_weights_card_and_recipe(trained_run, hub, capsys):
    assert main(["push", str(trained_run), "me/student", "--private"]) == 0
    assert "/me/student/commit/1" in capsys.readouterr().out
    paths = [path for path, _ in hub.received]
    assert paths[0] == "/api/repos/create" and "private" in hub.received[0][1]
    lines = [json.loads(line) for line in hub.received[-1][1].splitlines()]
    files = {line["value"]["path"] for line in lines if line["key"] == "file"}
    assert files == {"student.safetensors", "README.md", "recipe.yaml"}


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
