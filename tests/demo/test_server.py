"""The served page's answers, and what the server refuses."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.demo.answers import KEPT_PHOTOS, Demo, ShownModel, row_runs
from distill.demo.server import MOST_PHOTO_BYTES, MOST_PROMPT_BYTES, DemoServer
from distill.errors import DataError, DistillError
from distill.models.predictor import Predictor
from distill.models.teacher import Teacher


def png(seed: int = 0, hw: tuple[int, int] = (48, 80)) -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (*hw, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server(tiny_teacher: Teacher) -> Iterator[DemoServer]:
    with DemoServer() as server:
        server.demo = Demo(
            [ShownModel("student", tiny_teacher.model), ShownModel("teacher", tiny_teacher.model)], png()
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(
    server: DemoServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, Any, dict[str, str]]:
    """Return status, content and headers of an answer. JSON is parsed."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        content = answer.read()
        kind = answer.headers["Content-Type"]
        return answer.status, json.loads(content) if kind == "application/json" else content, dict(answer.headers)
    finally:
        connection.close()


def test_the_page_and_the_packaged_photo(server):
    for path, kind in (("/", "text/html"), ("/demo.js", "text/javascript"), ("/backend.js", "text/javascript")):
        status, content, headers = request(server, "GET", path)
        assert status == 200 and content and headers["Content-Type"].startswith(kind)
        assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert request(server, "GET", "/photo")[1] == png()
    status, start, _ = request(server, "GET", "/api/start")
    assert status == 200 and start["models"] == ["student", "teacher"]
    assert (start["photo"]["width"], start["photo"]["height"]) == (80, 48) and len(start["photo"]["milliseconds"]) == 2


@pytest.mark.parametrize(
    "prompt",
    [
        {"box": [10, 5, 60, 40]},
        {"points": [[30, 20]], "labels": [1]},
        {"points": [[30, 20], [5, 5]], "labels": [1, 0], "box": [10, 5, 60, 40]},
    ],
)
def test_masks_are_the_predictors(server, tiny_teacher, prompt):
    photo = png(1, (60, 44)) if "box" not in prompt else png()
    added = request(server, "POST", "/api/photo", photo)[1]
    status, found, _ = request(server, "POST", "/api/predict", json.dumps({"photo": added["id"], **prompt}).encode())
    assert status == 200, found
    predictor = Predictor(tiny_teacher.model)
    pixels = np.asarray(Image.open(io.BytesIO(photo)))
    predictor.set_image(pixels)
    masks, iou_predictions, _ = predictor.predict(
        point_coords=prompt.get("points"),
        point_labels=prompt.get("labels"),
        box=prompt.get("box"),
        multimask_output="box" not in prompt,
    )
    best = masks[iou_predictions.argmax()]
    for answer in found["answers"]:
        assert answer["runs"] == row_runs(best) and answer["milliseconds"] > 0
        assert answer["predicted_iou"] == pytest.approx(float(iou_predictions.max()), abs=1e-6)
    assert found["iou"] == 1.0


def test_runs_begin_with_background():
    mask = np.array([[1, 1, 0], [0, 1, 1]], bool)
    assert row_runs(mask) == [0, 2, 2, 2] and row_runs(~mask) == [2, 2, 2] and row_runs(np.zeros((2, 2))) == [4]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"no json", "the prompt: not JSON"),
        (b'{"box": [1, 2, 3, 4]}', "missing required field `photo`"),
        (b'{"photo": "PHOTO"}', "click on the object"),
        (b'{"photo": "PHOTO", "points": [[1, 2]], "labels": [1, 1]}', "2 labels for 1 points"),
        (b'{"photo": "PHOTO", "points": [[81, 2]]}', "point 81 2 lies outside the photo"),
        (b'{"photo": "PHOTO", "box": [9, 9, 3, 3]}', "is empty"),
        (b'{"photo": "PHOTO", "box": [1e9, 9, 3, 3]}', "<= 1000000"),
    ],
)
def test_prompts_that_are_refused(server, body, message):
    photo = request(server, "GET", "/api/start")[1]["photo"]["id"].encode()
    status, answer, _ = request(server, "POST", "/api/predict", body.replace(b"PHOTO", photo))
    assert status == 400 and message in answer["error"]


def test_bytes_that_are_no_photo(server):
    status, answer, _ = request(server, "POST", "/api/photo", b"no photo")
    assert status == 400 and "the photo: cannot be decoded" in answer["error"]


def test_the_oldest_photo_goes_and_the_packaged_one_stays(tiny_teacher):
    demo = Demo([ShownModel("student", tiny_teacher.model)], png())
    names = [demo.add_photo(png(i))["id"] for i in range(KEPT_PHOTOS + 1)]
    prompt = {"box": [10, 5, 60, 40]}
    assert demo.predict(json.dumps({"photo": demo.start()["photo"]["id"], **prompt}).encode())["iou"] is None
    for name in names[1:]:
        demo.predict(json.dumps({"photo": name, **prompt}).encode())
    with pytest.raises(DataError, match="not kept any more"):
        demo.predict(json.dumps({"photo": names[0], **prompt}).encode())


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", ""])
def test_a_name_that_is_not_ours_is_refused(server, host):
    """A page of another site may give its own name our address (DNS rebinding)."""
    for method, path in (("GET", "/"), ("POST", "/api/photo")):
        status, answer, _ = request(server, method, path, b"", Host=host)
        assert status == 421 and server.url in answer["error"]
    assert request(server, "GET", "/", Host=f"localhost:{server.port}")[0] == 200


def test_a_page_of_another_site_is_refused(server):
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{server.port}"):
        assert request(server, "POST", "/api/photo", png(), Origin=origin)[0] == 403
    assert request(server, "POST", "/api/photo", png(), Origin=f"http://127.0.0.1:{server.port}")[0] == 200


def test_what_is_too_large_or_says_no_length(server):
    for path, most in (("/api/photo", MOST_PHOTO_BYTES), ("/api/predict", MOST_PROMPT_BYTES)):
        assert request(server, "POST", path, b"", Content_Length=str(most + 1))[0] == 413
    for length in ("-1", "1e3", "", "9" * 5000):
        status = request(server, "POST", "/api/photo", b"", Content_Length=length)[0]
        assert status in (411, 413)
    assert request(server, "POST", "/api/photo", b"", Transfer_Encoding="chunked", Content_Length="3")[0] == 411
    for method in ("GET", "POST"):
        assert request(server, method, "/../etc/passwd", b"")[0] == 404
    assert request(server, "PUT", "/", b"")[0] == 501


def test_only_loopback_is_listened_on(server):
    assert server.server_address[0] == "127.0.0.1"


def test_the_address_that_is_printed_is_answered():
    for host in ("localhost", "127.0.0.1"):
        with DemoServer(host=host) as server:
            assert server.url.removeprefix("http://").rstrip("/") in server.hosts
            assert f"localhost:{server.port}" in server.hosts


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            DistillError, match=rf"port {port} of 127.0.0.1 is taken: give another one, as --port {port + 1}"
        ):
            DemoServer(port=port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("0.0.0.0", 0, "give the one address"),
        ("192.0.2.1", 0, "no address of this machine"),
        ("127.0.0.1", 70000, "a number from 0 to 65535"),
    ],
)
def test_addresses_that_cannot_be_served(host, port, message):
    with pytest.raises(DistillError, match=message):
        DemoServer(host=host, port=port)
