"""The hooks and the hosted workflow run what `make check` runs."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def recipe_of(target: str) -> list[str]:
    """Return the commands of a Makefile's target, with $(BIN) as it is."""
    (body,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return [line.strip() for line in body.splitlines()]


def test_the_hooks_do_what_make_check_does_before_its_tests():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repo,) = config["repos"]
    assert repo["repo"] == "local"
    hooks = {hook["id"]: hook for hook in repo["hooks"]}
    assert {hook["language"] for hook in hooks.values()} == {"system"}
    commands = {" ".join(hook["entry"].split()[:2]) for hook in hooks.values()}
    programs = {command.replace("$(BIN)", ".venv/bin") for command in (*recipe_of("check"), *recipe_of("types"))}
    for program in programs:
        first = " ".join(program.split()[:2])
        if "$(MAKE)" not in first:
            assert first in commands, f"no hook runs {first}"
    named = [word for hook in hooks.values() for word in hook["entry"].split() if word.startswith("tests/")]
    assert named and all((ROOT / name).is_file() for name in named)


def test_the_workflow_runs_make_check_on_every_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    job = workflow["jobs"]["check"]
    versions = job["strategy"]["matrix"]["python"]
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    assert f"python_requires = >={versions[0]}" in (ROOT / "setup.cfg").read_text()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert runs[-1] == "make check"
    pins = re.findall(r"\b(torch(?:vision)?==[\d.]+)", "\n".join(runs))
    assert pins == re.findall(r"\b(torch(?:vision)?==[\d.]+)", (ROOT / ".ci" / "run").read_text())


def test_the_workflow_tests_the_lowest_versions_and_audits():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    assert set(workflow["jobs"]) == {"check", "lowest", "audit"}
    setup, tests = (step for step in workflow["jobs"]["lowest"]["steps"][1:])
    assert f"python_requires = >={setup['with']['python-version']}" in (ROOT / "setup.cfg").read_text()
    assert tests["run"].startswith("make test-lowest")
    assert any("-c tests/lowest.txt" in line for line in recipe_of("test-lowest"))
    assert "pip-audit" in workflow["jobs"]["audit"]["steps"][-1]["run"]


def test_the_workflow_uploads_nothing():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    for job in workflow["jobs"].values():
        used = [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]
        assert used == ["actions/checkout", "actions/setup-python"]
    assert workflow["permissions"] == {"contents": "read"}
