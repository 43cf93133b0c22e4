"""The directory of an evaluation whose start or whose work a full disk ends: it can be begun again, or gone on with."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from distill.config.schema import EvaluateDataConfig, EvaluatePromptConfig, EvaluateRecipe
from distill.errors import RunError
from distill.evaluation.prompting import PhotoScores
from distill.evaluation.record import DATA_FILE, MODEL_FILE, OneProcess, Record
from distill.evaluation.written import read_object

MODEL, DATA = {"model": "oracle", "weights_sha256": None}, {"annotations_sha256": "a" * 64}


def record(run: Path, *, resume: bool = False) -> Record:
    data = EvaluateDataConfig(images="photos", annotations="set.json")
    recipe = EvaluateRecipe(protocol="p", run=str(run), resume=resume, data=data, prompt=EvaluatePromptConfig("box"))
    return Record(run, recipe, MODEL, DATA, OneProcess())


@contextlib.contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let this process write no larger files, as on a disk that has so much room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [10, 80, 200])
@pytest.mark.parametrize("resume", [False, True])
def test_a_start_that_a_full_disk_ended_is_begun_again(tmp_path: Path, room: int, resume: bool) -> None:
    run = tmp_path / "run"
    with files_of_at_most(room), pytest.raises(RunError, match=r"cannot be written: the disk is full"):
        record(run)
    assert not (run / "recipe.yaml").exists()
    (run / "recipe.yaml.01234567.tmp").write_text("kind: ev")  # what a kill leaves behind
    begun = record(run, resume=resume)
    assert read_object(run / MODEL_FILE, "record") == begun.model and not list(run.glob("*.tmp"))
    with pytest.raises(RunError, match="is not empty; go on with it"):
        record(run)
    assert record(run, resume=True).data == DATA


@pytest.mark.parametrize(("name", "text"), [(MODEL_FILE, '{"name": "mine"}'), (DATA_FILE, "{}"), ("notes.txt", "mine")])
def test_files_of_something_else_are_never_taken_for_a_start(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match="is not empty"):
        record(tmp_path)
    with pytest.raises(RunError, match="holds no evaluation"):
        record(tmp_path, resume=True)
    assert (tmp_path / name).read_text() == text


def test_a_disk_that_fills_up_keeps_the_finished_photos(tmp_path: Path) -> None:
    begun = record(tmp_path)
    (tmp_path / "partial").mkdir()
    begun._lines = tmp_path / "partial" / "rank0_0.jsonl"
    begun.add(PhotoScores("a"))
    size = begun._lines.stat().st_size
    with files_of_at_most(size + 5), pytest.raises(RunError, match="the disk is full .* finished photos are kept"):
        begun.add(PhotoScores("b"))
    assert set(record(tmp_path, resume=True).finished()) == {"a"}


def test_an_evaluation_of_an_earlier_version_goes_on_without_the_options_that_are_new(tmp_path: Path) -> None:
    record(tmp_path)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    del recipe["instances"], recipe["multimask_later"], recipe["prompt"]["click_at"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert record(tmp_path, resume=True).data == DATA
    recipe["prompt"]["click_at"] = "index"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RunError, match="prompt.click_at was index and is centre"):
        record(tmp_path, resume=True)
