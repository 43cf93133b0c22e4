"""The page as files: the student runs in the browser by onnxruntime-web, and nothing is loaded from elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from distill.demo.server import PAGE
from distill.errors import DistillError
from distill.export.onnx import export_onnx
from distill.files import write_errors, write_json, write_whole
from distill.geometry import PIXEL_MEAN, PIXEL_STD
from distill.models.sam import PromptableModel
from distill.runtimes.folder import DECODER_FILE, DESCRIPTION_FILE, ENCODER_FILE

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"  # of npm; MIT licence. The version with which the page is tested
RUNTIME_FOLDER, MODEL_FOLDER = "ort", "model"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")  # of its dist/
PAGE_FILES = (("index.html", "index.html"), ("demo.css", "demo.css"), ("demo.js", "demo.js"))
BACKEND, BACKEND_FILE = "browser_backend.js", "backend.js"
PHOTO_FILE, SETTINGS_FILE = "photo", "settings.json"
SECONDS = 600  # for npm: the package has 33 MB
MOST_RUNTIME_BYTES = 256 << 20


def write_static(
    model: PromptableModel, out: Path, photo: bytes, *, title: str, runtime: Path | None = None
) -> list[Path]:
    """Write a folder that any web server can serve: the page, the model as ONNX, and onnxruntime-web.

    Args:
        out: the folder; it is created if needed. A runtime that is in it already is kept.
        photo: the encoded bytes of the photo to start with.
        title: of the model on the page.
        runtime: a folder or npm tarball of onnxruntime-web; None: npm fetches it.
    Returns:
        the files of the folder.
    Raises:
        DistillError: the runtime is not there and cannot be fetched, or a file cannot be written.
    """
    with write_errors(out, DistillError):
        (out / RUNTIME_FOLDER).mkdir(parents=True, exist_ok=True)
    provide_runtime(out / RUNTIME_FOLDER, runtime)  # before the export, which takes a while
    export_onnx(model, out / MODEL_FOLDER)
    for name, source in (*PAGE_FILES, (BACKEND_FILE, BACKEND)):
        write_whole(out / name, (PAGE / source).read_bytes(), raises=DistillError)
    write_whole(out / PHOTO_FILE, photo, raises=DistillError)
    settings = {
        "title": title,
        "image_size": model.image_size,
        "prompt_size": model.prompt_size,
        "low_res_size": model.low_res_size,
        "pixel_mean": PIXEL_MEAN,
        "pixel_std": PIXEL_STD,
        "encoder": f"{MODEL_FOLDER}/{ENCODER_FILE}",
        "decoder": f"{MODEL_FOLDER}/{DECODER_FILE}",
    }
    write_json(out / SETTINGS_FILE, settings, raises=DistillError)
    names = [name for name, _ in PAGE_FILES] + [BACKEND_FILE, PHOTO_FILE, SETTINGS_FILE]
    model_files = [f"{MODEL_FOLDER}/{name}" for name in (ENCODER_FILE, DECODER_FILE, DESCRIPTION_FILE)]
    return [out / name for name in [*names, *model_files, *(f"{RUNTIME_FOLDER}/{name}" for name in RUNTIME_FILES)]]


def provide_runtime(folder: Path, source: Path | None = None) -> None:
    """Put the files of onnxruntime-web into a folder, unless they are there.

    Args:
        source: an unpacked package, its dist folder, or npm's tarball; None: `npm pack` fetches the tarball.
    Raises:
        DistillError: npm is missing or fails, or the source lacks a file.
    """
    if source is None and all((folder / name).is_file() for name in RUNTIME_FILES):
        return
    if source is not None and source.is_dir():
        _copy(_from_folder(source), folder, str(source))
    elif source is not None:
        _copy(_from_tarball(source), folder, str(source))
    else:
        with tempfile.TemporaryDirectory() as place:
            tarball = _fetch(Path(place))
            _copy(_from_tarball(tarball), folder, f"{PACKAGE}@{VERSION}")


def _fetch(place: Path) -> Path:
    """Let npm download the package, which it checks against the registry's hash, and return the tarball."""
    mend = f"unpack {PACKAGE} {VERSION} of npm somewhere and give its folder by --runtime"
    npm = shutil.which("npm")
    if npm is None:
        raise DistillError(
            f"the WebAssembly build of {PACKAGE} is not there and npm, which fetches it, is missing: {mend}"
        )
    command = [npm, "pack", "--silent", f"{PACKAGE}@{VERSION}"]
    try:
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise DistillError(f"npm did not fetch {PACKAGE} in {SECONDS} s: {mend}") from error
    tarballs = list(place.glob("*.tgz"))
    if done.returncode or not tarballs:
        said = " ".join(done.stderr.split())[-300:]
        raise DistillError(f"npm could not fetch the WebAssembly build of {PACKAGE} ({said}): {mend}")
    return tarballs[0]


def _from_folder(source: Path) -> dict[str, bytes]:
    found = {}
    for name in RUNTIME_FILES:
        for path in (source / name, source / "dist" / name, source / "package" / "dist" / name):
            if path.is_file():
                found[name] = path.read_bytes()
                break
    return found


def _from_tarball(source: Path) -> dict[str, bytes]:
    """Read the wanted files of npm's tarball. Nothing is unpacked by the names in it."""
    found = {}
    try:
        with tarfile.open(source) as tar:
            for name in RUNTIME_FILES:
                member = tar.getmember(f"package/dist/{name}")
                file = tar.extractfile(member) if member.isreg() and member.size <= MOST_RUNTIME_BYTES else None
                if file is not None:
                    found[name] = file.read()
    except (OSError, tarfile.TarError, KeyError, EOFError) as error:
        raise DistillError(
            f"{source}: no npm tarball of {PACKAGE} with {', '.join(RUNTIME_FILES)} ({error})"
        ) from error
    return found


def _copy(files: dict[str, bytes], folder: Path, origin: str) -> None:
    if missing := [name for name in RUNTIME_FILES if name not in files]:
        raise DistillError(
            f"{origin}: the WebAssembly build lacks {', '.join(missing)}; give {PACKAGE} {VERSION}, as npm has it"
        )
    for name, content in files.items():
        write_whole(folder / name, content, raises=DistillError)
