"""The names of `distill` itself: imported when first used, so that `import distill` and the command line stay quick."""

from __future__ import annotations

import subprocess
import sys

import pytest

import distill


def loaded_after(program: str) -> set[str]:
    """Return the modules that a program loads in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_the_package_loads_no_torch():
    program = "import distill; assert distill.__version__; assert 'load_model' in dir(distill)"
    assert not {"torch", "numpy", "distill.models"} & loaded_after(program)


def test_a_name_is_imported_when_it_is_first_used():
    assert {"torch", "distill.models.sam"} <= loaded_after("from distill import build_model")


def test_each_name_is_that_of_its_module():
    from distill.models.checkpoint import load_model
    from distill.models.predictor import Predictor
    from distill.models.sam import build_model
    from distill.models.teacher import load_teacher

    assert distill.load_model is load_model
    assert distill.load_teacher is load_teacher
    assert distill.build_model is build_model
    assert distill.Predictor is Predictor


def test_every_public_name_exists_and_is_listed():
    assert set(distill.__all__) <= set(dir(distill))
    assert all(hasattr(distill, name) for name in distill.__all__)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="module 'distill' has no attribute 'load_modal'"):
        distill.load_modal  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'load_modal'"):
        from distill import load_modal  # noqa: F401
