"""The files for clusters: their shells, their YAML, their `distill` lines and their variables."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from tests.fixtures.command_lines import check_command, distill_arguments, parse, shell_lines

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "tools" / "cluster"
SCRIPTS = sorted([*CLUSTER.glob("*.sh"), *CLUSTER.glob("*.sbatch")])
DOCKERFILES = sorted(CLUSTER.glob("Dockerfile.*"))
JOB = CLUSTER / "cache_job.yaml"
# What SLURM sets in a job, and the option without which it does not.
SLURM = {
    "SLURM_JOB_ID": "",
    "SLURM_NNODES": "--nodes",
    "SLURM_NTASKS_PER_NODE": "--ntasks-per-node",
    "SLURM_CPUS_PER_TASK": "--cpus-per-task",
}
VARIABLE = re.compile(r"\$\{?(?P<name>[A-Z][A-Z_]*)")


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def launch_lines(path: Path) -> list[str]:
    """Return the lines of a file's head that show how to launch it: indented commands in its comments."""
    lines = re.sub(r"\\\n#\s*", " ", path.read_text()).splitlines()
    return [line.removeprefix("#").strip() for line in lines if re.match(r"#   ?\s*\S", line)]


def test_every_file_is_looked_at():
    assert {path for path in CLUSTER.iterdir() if path.is_file()} == {*SCRIPTS, *DOCKERFILES, JOB}
    assert len(SCRIPTS) == 3 and len(DOCKERFILES) == 2


@pytest.mark.parametrize("path", [*SCRIPTS, *DOCKERFILES, JOB], ids=names([*SCRIPTS, *DOCKERFILES, JOB]))
def test_the_head_says_how_to_launch(path):
    assert any(f"tools/cluster/{path.name}" in line for line in launch_lines(path))


@pytest.mark.parametrize("path", SCRIPTS, ids=names(SCRIPTS))
def test_bash_reads_it(path):
    subprocess.run([shutil.which("bash") or "bash", "-n", str(path)], check=True, timeout=60)
    assert "set -euo pipefail" in path.read_text()


@pytest.mark.parametrize("path", [*SCRIPTS, *DOCKERFILES, JOB], ids=names([*SCRIPTS, *DOCKERFILES, JOB]))
def test_the_parser_takes_every_command(path):
    for line in shell_lines(path.read_text()):
        if arguments := distill_arguments(line):
            check_command(arguments)


@pytest.mark.parametrize("path", SCRIPTS, ids=names(SCRIPTS))
def test_the_recipe_takes_the_head_s_example(path):
    """The examples name a packaged recipe and its options, as for the command that the script runs."""
    command = {"cache_array.sbatch": ["cache", "build"]}.get(path.name, ["train"])
    examples = [line.partition(path.name)[2].partition("#")[0].split() for line in launch_lines(path)]
    examples = [words for words in examples if words]
    assert examples
    for words in examples:
        check_command([*command, *words])


@pytest.mark.parametrize("path", [p for p in SCRIPTS if p.suffix == ".sbatch"], ids=lambda path: path.name)
def test_sbatch_sees_its_options(path):
    """SLURM reads the comments before the first command alone."""
    head, _, body = path.read_text().partition("\nset -euo pipefail")
    options = re.findall(r"^#SBATCH (--[a-z-]+)(?:=(\S+))?$", head, re.MULTILINE)
    assert len(options) == head.count("\n#SBATCH ")
    assert "#SBATCH" not in body
    given = dict(options)
    assert {"--job-name", "--requeue", "--time", "--output"} <= set(given)
    for match in VARIABLE.finditer(body):
        assert SLURM[match["name"]] in {"", *given}, match["name"]


def test_the_warning_reaches_the_training():
    """With `B:` SLURM would send it to the script alone; and a shell that waits for srun would not pass it on."""
    text = (CLUSTER / "train.sbatch").read_text()
    (warning,) = re.findall(r"^#SBATCH --signal=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"USR1@\d+", warning) and "\nexec srun " in text


def test_one_task_for_each_gpu():
    head = (CLUSTER / "train.sbatch").read_text()
    (tasks,) = re.findall(r"--ntasks-per-node=(\d+)", head)
    (gpus,) = re.findall(r"--gpus-per-node=(\d+)", head)
    assert tasks == gpus


def test_the_variables_of_torchrun_are_explained():
    text = (CLUSTER / "torchrun_two_nodes.sh").read_text()
    head, _, body = text.partition("\nset -euo pipefail")
    used = {match["name"] for match in VARIABLE.finditer(body)}
    assert used == {"HEAD", "PORT", "GPUS"}
    for name in used:
        assert re.search(rf"^# {name} +\S", head, re.MULTILINE), f"{name} is not explained"
        assert re.search(rf'^{name}="\$\{{{name}:[?-]', body, re.MULTILINE), f"{name} has no default and no error"


def test_torchrun_asks_for_its_head(tmp_path):
    done = subprocess.run(
        [str(CLUSTER / "torchrun_two_nodes.sh"), "RECIPE"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "HEAD=NAME" in done.stderr


def test_the_kubernetes_job():
    (job,) = yaml.safe_load_all(JOB.read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] <= spec["completions"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    (container,) = pod["containers"]
    (script,) = container["args"]
    assert container["command"] == ["/bin/sh", "-c"]
    given = {variable["name"] for variable in container.get("env", ())} | {"JOB_COMPLETION_INDEX"}
    assert {match["name"] for match in VARIABLE.finditer(script)} <= given
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    (exit_codes,) = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert exit_codes["containerName"] == container["name"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=names(DOCKERFILES))
def test_the_image_holds_what_the_package_needs(path):
    instructions = [
        line for line in path.read_text().replace("\\\n", " ").splitlines() if line and not line.startswith("#")
    ]
    known = {"FROM", "ARG", "RUN", "COPY", "USER", "ENV", "WORKDIR", "ENTRYPOINT"}
    assert {line.split()[0] for line in instructions} <= known
    assert instructions[0].startswith("FROM ") and ":" in instructions[0]
    assert instructions[-1] == 'ENTRYPOINT ["distill"]'
    (user,) = [line.split()[1] for line in instructions if line.startswith("USER ")]
    assert user.isdecimal() and user != "0"  # Kubernetes' runAsNonRoot reads numbers alone
    sources = {source for line in instructions if line.startswith("COPY ") for source in line.split()[1:-1]}
    assert all((ROOT / source).exists() for source in sources)
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {line.partition("=")[2].strip() for line in setup["options"]["package_dir"].strip().splitlines()}
    assert sources >= packages | {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=names(DOCKERFILES))
def test_the_image_s_torch_is_the_tested_one(path):
    pins = re.findall(r"\b(torch(?:vision)?==[\d.]+)", path.read_text())
    assert pins == re.findall(r"\b(torch(?:vision)?==[\d.]+)", (ROOT / ".ci" / "run").read_text())


@pytest.mark.parametrize("path", DOCKERFILES, ids=names(DOCKERFILES))
def test_the_parser_takes_the_run_line(path):
    (line,) = [line for line in launch_lines(path) if line.startswith("docker run ")]
    parse(line.partition(f" distill:{path.suffix[1:]} ")[2].split())


@pytest.mark.slow
def test_two_machines_train_one_student(teacher_file, photo_shards, tmp_path):
    """Both nodes are this machine here, with one process each on the CPU."""
    index = photo_shards(8)
    options = [
        f"teacher.name={teacher_file}",
        "teacher.source=online",
        "student.name=efficientvit_sam_t",
        "student.image_size=64",
        f"data.images={index.directory}",
        "data.num_workers=0",
        "data.batch_size=2",
        "trainer.max_steps=2",
        "trainer.max_epochs=null",
        "trainer.accelerator=cpu",
        f"run={tmp_path / 'run'}",
    ]
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "torchrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    (programs / "torchrun").chmod(0o755)
    environment = {
        "PATH": f"{programs}:{Path(sys.executable).parent}:/usr/bin:/bin",
        "HEAD": "localhost",
        "PORT": str(free_port()),
        "GPUS": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    command = [str(CLUSTER / "torchrun_two_nodes.sh"), "quickstart/feature", *options]
    nodes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [node.communicate(timeout=180)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(error[-3000:] for error in errors)
    assert (tmp_path / "run" / "student.safetensors").is_file()
    assert "on 2 x cpu" in errors[0] + errors[1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
    return port
