"""`distill demo`: a page on which to prompt a model, beside its teacher."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from distill.cli.arguments import Subparsers, add_command
from distill.errors import DistillError
from distill.text import say

if TYPE_CHECKING:
    from distill.models.sam import PromptableModel

EPILOG = """\
examples:
  distill demo runs/mask --teacher quickstart
  distill demo efficientvit_sam_l0.pt --name efficientvit_sam_l0 --teacher runs/teacher --port 8001
  distill demo runs/mask --static site           # then: python -m http.server --directory site --bind 127.0.0.1

Drop a photo on the page, click on an object or draw a box: both models' masks, their times, and the IoU between them.
The server listens on loopback alone and answers only requests that name it. Ctrl-C ends it.

--static writes a folder in which the student runs in the browser, by onnxruntime-web. npm fetches that once; without
npm give an unpacked package by --runtime. Any web server can serve the folder, and the page loads nothing from outside.
"""
PORT = 8000


def add_parser(subparsers: Subparsers) -> None:
    """Add `distill demo`."""
    parser = add_command(
        subparsers,
        "demo",
        "a page on which to prompt a model, beside its teacher",
        EPILOG,
        description="Serve a page on which a person prompts a model by clicks and boxes, beside its teacher.",
    )
    model = "student.safetensors, a run directory, a .ckpt, 'quickstart', or a .pt/.pth"
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument("--name", help="which model a released .pt/.pth holds, as efficientvit_sam_l0")
    parser.add_argument("--teacher", metavar="MODEL", help="a second model, shown beside the first")
    parser.add_argument("--teacher-name", metavar="NAME", help="which model a released file of the teacher holds")
    parser.add_argument("--photo", type=Path, help="the photo that is there at once (default: a packaged one)")
    parser.add_argument("--port", type=int, default=PORT, help="0 for a free one (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="to serve others too (default: loopback)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps ...; the default is a GPU if there is one")
    parser.add_argument("--static", type=Path, metavar="DIR", help="write a folder for any web server instead")
    parser.add_argument("--runtime", type=Path, metavar="PATH", help="onnxruntime-web: its folder or npm's tarball")
    parser.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, or write it into a folder."""
    if arguments.static is None and arguments.runtime is not None:
        raise DistillError("--runtime is used with --static alone; leave it out")
    if arguments.static is not None and arguments.teacher is not None:
        raise DistillError("--static holds the student alone: leave --teacher out")
    return _serve(arguments) if arguments.static is None else _write(arguments)


def _write(arguments: argparse.Namespace) -> int:
    from distill.demo.static import write_static

    title = _title(arguments.model)
    files = write_static(
        _load(arguments.model, arguments.name, "cpu"),
        arguments.static,
        _photo(arguments.photo),
        title=title,
        runtime=arguments.runtime,
    )
    num_bytes = sum(file.stat().st_size for file in files)
    say(f"{arguments.static}: {len(files)} files, {num_bytes / 1e6:.1f} MB")
    say(f"serve it: python -m http.server --directory {arguments.static} --bind 127.0.0.1")
    return 0


def _serve(arguments: argparse.Namespace) -> int:
    from distill.demo.answers import Demo, ShownModel
    from distill.demo.server import DemoServer

    with DemoServer(host=arguments.host, port=arguments.port) as server:
        models = [ShownModel(_title(arguments.model), _load(arguments.model, arguments.name, arguments.device))]
        if arguments.teacher is not None:
            teacher = _load(arguments.teacher, arguments.teacher_name, arguments.device)
            models.append(ShownModel(f"{_title(arguments.teacher)} (teacher)", teacher))
        server.demo = Demo(models, _photo(arguments.photo))
        say(f"{server.url} shows {' beside '.join(shown.title for shown in models)}. Ctrl-C ends it.")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _load(model: str, name: str | None, device: str | None) -> PromptableModel:
    from distill.models.checkpoint import load_for_inference
    from distill.models.devices import usable_device

    return load_for_inference(model, name=name, device=usable_device(device))


def _photo(path: Path | None) -> bytes:
    """Return the bytes of a photo, by default a packaged one."""
    from distill.data.images import decode_image, read_photo
    from distill.demo.answers import packaged_photo

    data = read_photo(path or packaged_photo())
    decode_image(data, str(path))
    return data


def _title(model: str) -> str:
    """Return the name of a model on the page: a run directory's, or a file's without suffix."""
    path = Path(model)
    return path.parent.name if path.name == "student.safetensors" and path.parent.name else path.stem
