"""onnxruntime-web in a folder: where it comes from, and one clear line where it is not there."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from distill.cli.main import main
from distill.demo.static import RUNTIME_FILES, provide_runtime
from distill.errors import DistillError


def package(folder: Path, names: tuple[str, ...] = RUNTIME_FILES) -> Path:
    (folder / "package" / "dist").mkdir(parents=True)
    for name in names:
        (folder / "package" / "dist" / name).write_text(name)
    return folder


def tarball(folder: Path, names: tuple[str, ...] = RUNTIME_FILES) -> Path:
    package(folder, names)
    with tarfile.open(folder / "web.tgz", "w:gz") as tar:
        tar.add(folder / "package", "package")
    return folder / "web.tgz"


@pytest.mark.parametrize("make", [package, tarball])
def test_a_runtime_that_is_given(tmp_path, make):
    source = make(tmp_path / "source")
    (tmp_path / "ort").mkdir()
    provide_runtime(tmp_path / "ort", source)
    assert {path.name: path.read_text() for path in (tmp_path / "ort").iterdir()} == {
        name: name for name in RUNTIME_FILES
    }
    provide_runtime(tmp_path / "ort")  # what is there is not fetched again


def test_a_runtime_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))  # without npm
    with pytest.raises(DistillError, match="WebAssembly build of onnxruntime-web is not there and npm, which fetches"):
        provide_runtime(tmp_path)
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(
        DistillError, match=r"npm could not fetch the WebAssembly build of onnxruntime-web \(no network\)"
    ):
        provide_runtime(tmp_path)


@pytest.mark.parametrize("make", [package, tarball])
def test_a_runtime_that_lacks_a_file(tmp_path, make):
    source = make(tmp_path / "source", RUNTIME_FILES[:2])
    with pytest.raises(DistillError, match="ort-wasm-simd-threaded.wasm"):
        provide_runtime(tmp_path, source)


def test_the_command_says_what_does_not_go_together(tmp_path, teacher_file, capsys):
    assert main(["demo", str(teacher_file), "--runtime", "web"]) == 2
    assert "--runtime is used with --static alone" in capsys.readouterr().err
    assert main(["demo", str(teacher_file), "--static", str(tmp_path), "--teacher", "quickstart"]) == 2
    assert "leave --teacher out" in capsys.readouterr().err
    assert main(["demo", str(teacher_file), "--static", str(tmp_path / "site"), "--runtime", str(tmp_path)]) == 2
    assert "the WebAssembly build lacks" in capsys.readouterr().err
