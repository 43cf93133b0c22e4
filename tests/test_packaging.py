"""The wheel installs one top-level name, with everything that the package needs beside its code."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from links to the sources, so that no build folder is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    names = ("distill", "datasets", "recipes", "setup.cfg", "pyproject.toml", "LICENSE", "README.md")
    source.mkdir()
    for name in names:
        if (ROOT / name).exists():
            (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True, timeout=300)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def target(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty directory."""
    folder = tmp_path_factory.mktemp("target")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, timeout=300)
    return folder


def test_one_top_level_name(target):
    names = {path.name for path in target.iterdir() if path.name not in ("bin", "__pycache__")}
    assert {name for name in names if not name.endswith(".dist-info")} == {"distill"}
    assert len(names) == 2


def test_the_wheel_holds_every_file(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    for folder, place in (("distill", "distill"), ("datasets", "distill/datasets"), ("recipes", "distill/recipes")):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".safetensors", ".typed"):
                assert f"{place}/{path.relative_to(ROOT / folder).as_posix()}" in held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_imports_from_elsewhere(target, tmp_path):
    program = (
        "import distill, distill.data, distill.cli.main, distill.config.loading as r;"
        "print(distill.__file__, distill.data.__file__, r.find_recipe('quickstart/feature'), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    for line in done.stdout.splitlines():
        assert Path(line).is_relative_to(target), line


def test_every_requirement_has_a_lower_bound_that_is_tested():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = [line for line in config["options"]["install_requires"].splitlines() if line]
    tested = [line for line in (ROOT / "tests" / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line.replace(">=", "==") for line in needed] == tested
