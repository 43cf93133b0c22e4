"""A caching job whose processes are started by torchrun on two nodes, a SLURM job array, or the command itself."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill.cli import main as cli
from distill.config.loading import load_recipe
from distill.data.cache.estimate import plan_cache_job
from distill.data.cache.progress import progress_line
from distill.data.cache.run import run_cache_job
from distill.data.cache.spot_check import spot_check_cache
from distill.data.cache.stats import read_cache_stats
from distill.text import duration
from tests.fixtures.caches import contents, promised

COMMAND = ["distill.cli.main", "cache", "build"]
ARRAY = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_STEP": "2"}
TIMEOUT = 180


@pytest.fixture
def recipe(teacher_file: Path, photo_shards, tmp_path: Path) -> list[str]:
    """Return the arguments of a job over ten shards."""
    photo_shards(40, 4)
    return ["quickstart/cache", f"teacher.name={teacher_file}", f"data.images={tmp_path / 'images'}"]


def test_every_step_is_a_python_call(recipe, tmp_path):
    config = load_recipe(recipe[0], [*recipe[1:], f"cache.dir={tmp_path / 'cache'}"], kinds=("cache",))
    plan = plan_cache_job(config, num_devices=2)
    assert (plan.num_images, plan.num_devices, plan.codec) == (40, 2, "fp16") and not (tmp_path / "cache").exists()

    lines: list[str] = []
    totals = run_cache_job(config, devices=1, report=lines.append)
    assert totals is not None and (totals.samples, totals.bad) == (40, 0)
    assert lines[0].startswith("plan: 40 photos as fp16") and "40 embeddings" in lines[-1]
    before = contents(tmp_path / "cache")
    assert run_cache_job(config, devices=1, report=lines.append) == totals
    assert "10 of 10 shards are finished and kept" in lines and contents(tmp_path / "cache") == before

    stats = read_cache_stats(tmp_path / "cache")
    assert (stats.num_finished, stats.num_samples, stats.num_expected, stats.bad) == (10, 40, 40, ())
    assert stats.num_bytes == totals.bytes and stats.manifest.totals == totals
    other = dataclasses.replace(config, cache=dataclasses.replace(config.cache, codec="int8", precision="bf16"))
    found = spot_check_cache(tmp_path / "cache", other, 5)  # codec and precision are the cache's own
    assert len(found.samples) == 5 and not found.outliers


def test_progress_lines():
    assert progress_line(500, 11_000_000, 100.0) == (
        "500 of 11,000,000 photos by all processes, 100.0 photos/s, 31 h left"
    )
    assert progress_line(0, 10, 0.0).endswith("unknown time left")
    assert [duration(seconds) for seconds in (7.2, 300, 36_000)] == ["7 s", "5 min", "10 h"]


def test_a_task_of_a_job_array(recipe, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Run a task whose batch script has no srun: it must not wait for the tasks that SLURM's variables name."""
    for name, value in (ARRAY | {"SLURM_ARRAY_TASK_COUNT": "5", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}).items():
        monkeypatch.setenv(name, value)
    assert cli.main(["cache", "build", *recipe, f"cache.dir={tmp_path / 'cache'}"]) == 0
    output = capsys.readouterr().out
    assert "40 embeddings" in output and "on 5 devices" in output


@pytest.mark.slow
def test_two_nodes_build_one_cache(recipe, tmp_path, one_thread):
    """Start two torchruns that meet over the loopback, each a node with one process."""
    assert cli.main(["cache", "build", *recipe, f"cache.dir={tmp_path / 'alone'}"]) == 0
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", "cache", "--rdzv-endpoint", f"127.0.0.1:{port}", "-m"]
    nodes = [
        subprocess.Popen(
            [*torchrun, *COMMAND, *recipe, f"cache.dir={tmp_path / 'cache'}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [node.communicate(timeout=TIMEOUT)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum("40 embeddings" in output for output in outputs) == 1 and "on 2 devices" in "".join(outputs)
    assert promised(tmp_path / "cache") == promised(tmp_path / "alone")


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them(recipe, tmp_path):
    """Kill the first process: the other one ends soon after, and the same command completes the job."""
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", *COMMAND, *recipe, f"cache.dir={cache}"]
    job = subprocess.Popen([*command, "--devices", "2"], stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + TIMEOUT
    while job.poll() is None and not list(cache.glob("sa_*.tar")) and time.monotonic() < until:
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    until = time.monotonic() + TIMEOUT  # a busy machine took most of the time until the first shard
    while time.monotonic() < until:
        try:
            os.killpg(job.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.2)
    else:
        pytest.fail("a process outlived the one that started it")
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)
    assert cli.main(["cache", "verify", str(cache)]) == 0
