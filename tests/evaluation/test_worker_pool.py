"""Coroutines over worker processes: their order, their number, their errors and their end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.data.rle import encode_mask
from distill.errors import DataError
from distill.evaluation.scoring.mask_scoring import Frame, ScoringRequest, crop_positive, first_clicks, score_masks
from distill.evaluation.worker_pool import WorkerPool, run_concurrently

DAMAGED = {"size": [9, 9], "counts": "1"}


def requests() -> list[ScoringRequest]:
    """Return five requests to score a blob against another blob, in photos of 60 x 80."""
    noise = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    low_res = F.interpolate(noise, (32, 32), mode="bicubic")[:, 0].numpy()
    truth = F.interpolate(noise[:1].flip(-1), (60, 80), mode="bicubic")[0, 0].numpy() > 0
    frame = Frame(prompt_size=128, low_res_size=32)
    return [ScoringRequest([crop_positive(logits, frame)], (60, 80), encode_mask(truth)) for logits in low_res]


def score_concurrently(workers: WorkerPool) -> list[list[object]]:
    return list(run_concurrently([workers.map_chunks(score_masks, requests(), 2)], limit=1))


def test_worker_processes_compute_what_this_one_does():
    with WorkerPool(1) as workers, WorkerPool(0) as none:
        assert score_concurrently(workers) == score_concurrently(none) == [score_masks(requests())]
        with pytest.raises(DataError, match="the runs of its code"):
            list(run_concurrently([workers.run(first_clicks, [DAMAGED])], limit=1))
        assert score_concurrently(workers) == [score_masks(requests())]  # an error does not break the pool


def test_coroutines_go_on_as_soon_as_they_can():
    log = []

    async def coroutine(name: str, num_steps: int) -> str:
        for step in range(num_steps):
            log.append((name, await workers.run(lambda step=step: step)))
            await asyncio.sleep(0)
        return name

    with WorkerPool(0) as workers:
        results = list(run_concurrently([coroutine("a", 20), coroutine("b", 1), coroutine("c", 2)], limit=2))
    assert results == ["b", "c", "a"]
    assert sorted(log) == [*(("a", step) for step in range(20)), ("b", 0), ("c", 0), ("c", 1)]
    assert log.index(("b", 0)) < log.index(("a", 1)) and log.index(("c", 1)) < log.index(("a", 19))


def test_no_more_than_the_limit_are_begun():
    begun, ended = [], []

    async def coroutine(number: int) -> int:
        begun.append(number)
        await asyncio.sleep(0.001 * (number % 3))
        ended.append(number)
        return number

    results = []
    for result in run_concurrently((coroutine(number) for number in range(20)), limit=3):
        assert len(begun) - len(ended) <= 3 and len(begun) <= len(results) + 3
        results.append(result)
    assert results != sorted(results) == list(range(20))


def test_without_workers_all_is_done_in_order_and_only_when_asked_for():
    begun: list[int] = []

    async def coroutine(number: int) -> int:
        begun.append(number)
        return await WorkerPool(0).run(abs, -number)

    results = run_concurrently((coroutine(number) for number in range(5)), limit=1)
    assert [next(results), next(results)] == [0, 1]
    assert begun == [0, 1]
    assert list(results) == [2, 3, 4]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_cancels_the_others(num_workers, caplog):
    ends = []

    async def waits() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async def fails() -> None:
        await workers.map_chunks(first_clicks, [encode_mask(np.ones((9, 9), bool)), DAMAGED, DAMAGED], 1)

    with WorkerPool(num_workers) as workers, pytest.raises(DataError, match="the runs of its code"):
        list(run_concurrently([waits(), fails(), waits()], limit=3))
    assert ends == ["cancelled", "cancelled"]
    gc.collect()
    assert not caplog.records  # asyncio logs tasks and errors that nobody waited for


def test_a_caller_that_stops_early_cancels_the_others():
    ends = []

    async def coroutine(seconds: float) -> float:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            ends.append(seconds)
            raise
        return seconds

    results = run_concurrently([coroutine(60), coroutine(0)], limit=2)
    assert next(results) == 0
    results.close()
    assert ends == [60]


def test_it_runs_where_an_event_loop_runs_already_as_in_a_notebook():
    async def cell() -> list[list[object]]:
        with WorkerPool(0) as workers:
            return score_concurrently(workers)

    assert asyncio.run(cell()) == [score_masks(requests())]


PARENT = """
import os, sys, time
from distill.evaluation.worker_pool import WorkerPool, run_concurrently

if __name__ == "__main__":
    with WorkerPool(1) as workers:
        print(next(run_concurrently([workers.run(os.getpid)], limit=1)), flush=True)
        try:
            list(run_concurrently([workers.run(time.sleep, float(sys.argv[1]))], limit=1))
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


@pytest.fixture
def start_parent(tmp_path: Path) -> Iterator[Callable[[float], tuple[subprocess.Popen[str], int]]]:
    """Return a function that starts a process with one worker, which sleeps. It returns both: process and id."""
    (tmp_path / "parent.py").write_text(PARENT)
    parents: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, str(tmp_path / "parent.py"), str(seconds)]
        # A shell's background jobs, and their children, ignore SIGINT.
        restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        parents.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=restore)
        )
        assert parents[-1].stdout is not None
        return parents[-1], int(parents[-1].stdout.readline())

    yield start
    for parent in parents:
        parent.kill()
        parent.wait()


def wait_for_end_of(process: int) -> None:
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {process} still runs")


def test_workers_end_with_a_killed_parent(start_parent):
    parent, worker = start_parent(600)
    parent.kill()
    wait_for_end_of(worker)


def test_workers_end_with_an_interrupted_parent(start_parent):
    parent, worker = start_parent(1)
    time.sleep(0.3)
    parent.send_signal(signal.SIGINT)
    assert parent.stdout.read() == "interrupted\n"
    assert parent.wait() == 0
    wait_for_end_of(worker)
