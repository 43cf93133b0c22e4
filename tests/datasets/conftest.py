"""Photographs, COCO-format sets and shards, made small and real, and places that are not of this machine."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from distill.datasets import places
from distill.datasets.rle import encode_mask
from distill.datasets.sa1b import annotation_row, sample_annotation
from distill.datasets.shards import ShardWriter

HW = (30, 40)


def _jpeg(hw: tuple[int, int] = HW, seed: int = 0, **options: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def _box_mask(hw: tuple[int, int], y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros(hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.fixture
def jpeg() -> Callable[..., bytes]:
    """jpeg(hw, seed): the bytes of a JPEG of noise."""
    return _jpeg


@pytest.fixture
def box_mask() -> Callable[..., np.ndarray]:
    """box_mask(hw, y0, y1, x0, x1): a bool mask."""
    return _box_mask


@pytest.fixture
def make_shards() -> Callable[..., Path]:
    """make_shards(directory, num_samples, ...): shards of noise, each photo with `num_masks` masks; `bad` are cut."""

    def make(
        directory: Path, num_samples: int, *, samples_per_shard: int = 4, num_masks: int = 3, bad: tuple[int, ...] = ()
    ) -> Path:
        with ShardWriter(directory, samples_per_shard) as writer:
            for i in range(num_samples):
                hw = (HW[0] + i % 5, HW[1])
                masks = [_box_mask(hw, 2 * k, 12 + 2 * k, k, 20 + i % 7) for k in range(num_masks)]
                rows = [annotation_row(k, encode_mask(mask), hw) for k, mask in enumerate(masks)]
                image = _jpeg(hw, seed=i)
                annotation = sample_annotation(f"photo_{i:03d}", hw, rows)
                writer.add(f"photo_{i:03d}", image[: len(image) // 2] if i in bad else image, annotation)
        return directory

    return make


@pytest.fixture
def coco_files(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """coco_files(annotations, num_images): a directory of photos 0.jpg, 1.jpg, ... and a COCO-format JSON."""

    def make(
        annotations: list[dict[str, Any]], num_images: int = 2, images: list[dict[str, Any]] | None = None
    ) -> tuple[Path, Path]:
        directory = tmp_path / "photos"
        directory.mkdir(exist_ok=True)
        for i in range(num_images):
            (directory / f"{i}.jpg").write_bytes(_jpeg(seed=i))
        rows = [{"id": i, "file_name": f"{i}.jpg", "height": HW[0], "width": HW[1]} for i in range(num_images)]
        content = {"images": images if images is not None else rows, "annotations": annotations, "categories": []}
        file = tmp_path / "instances.json"
        file.write_text(json.dumps(content))
        return directory, file

    return make


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves a directory with byte ranges; the server counts what it sent, and fails as often as it is told to."""

    def do_GET(self) -> None:
        self.server.num_requests += 1
        if self.server.num_failures:
            self.server.num_failures -= 1
            self.send_error(503)
            return
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if match is None or not path.is_file() or not self.server.has_ranges:
            super().do_GET()
            return
        first, last = int(match[1]), min(int(match[2]), path.stat().st_size - 1)
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(last - first + 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.server.num_bytes += len(content)
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """Serves tmp_path / "served"; `server.url` is its address."""
    directory = tmp_path / "served"
    directory.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(directory))) as served:
        served.daemon_threads = True
        served.num_bytes = served.num_requests = served.num_failures = 0
        served.has_ranges = True
        served.url = f"http://127.0.0.1:{served.server_port}"
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indices of remote shards are kept: a place of the test's own. Remote reads are tried again at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(places, "FIRST_PAUSE", 0.01)
    return tmp_path / "home"


@pytest.fixture
def memory() -> Iterator[str]:
    """An address in fsspec's memory file system, empty."""
    filesystem = fsspec.filesystem("memory")
    yield "memory://bucket/sa1b"
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture
def upload() -> Callable[[Path, str], None]:
    """upload(directory, url): its files, in fsspec's memory file system."""

    def copy(directory: Path, url: str) -> None:
        for path in directory.iterdir():
            fsspec.filesystem("memory").pipe_file(f"{url}/{path.name}", path.read_bytes())

    return copy
