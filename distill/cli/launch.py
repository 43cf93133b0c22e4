"""The processes of a caching job: who starts them, which shards each begins with, and how far all of them are."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from distill.text import duration

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from distill.data.cache.job import CacheJob

WAIT_DAYS = 30  # no process waits for another once all have started; gloo's own patience is minutes
GRACE_SECONDS = 5.0  # for a process whose parent came to a good end first
REFRESH_SECONDS = 2.0
LOG_SECONDS = 60.0  # between two lines where there is no terminal
SPEED_WINDOW_SECONDS = 600.0  # processes tell how far they are every few seconds: the speed is a mean over this time


def launch_fabric(devices: int | None = None) -> Fabric:
    """Lightning Fabric in the processes that torchrun or srun started, else in `devices` processes that it starts."""
    from datetime import timedelta

    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
    from lightning.fabric.strategies import DDPStrategy

    num_nodes = 1
    plugins = None
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif SLURMEnvironment.detect() and not is_array_task_alone():
        num_nodes = int(os.environ["SLURM_NNODES"])
        devices = int(os.environ["SLURM_NTASKS"]) // num_nodes
    else:
        devices = devices or max(1, torch.cuda.device_count())
        plugins = LightningEnvironment()  # a task of a job array without srun is no rank of a SLURM job
    alone = devices * num_nodes == 1
    strategy = "auto" if alone else DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=WAIT_DAYS))
    fabric = Fabric(accelerator="auto", devices=devices, num_nodes=num_nodes, strategy=strategy, plugins=plugins)
    fabric.launch()
    return fabric


def is_helper(fabric: Fabric) -> bool:
    """Whether the first process on this machine started this one, and goes on with its work should it fail."""
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect() or (SLURMEnvironment.detect() and not is_array_task_alone()):
        return False
    return fabric.global_rank > 0


def end_with_parent() -> None:
    """Let this process end soon after the one that started it, were it killed: no shard is harmed by that."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def is_array_task_alone() -> bool:
    """Whether this is a task of a SLURM job array, run by its batch script without srun."""
    return "SLURM_ARRAY_TASK_ID" in os.environ and "SLURM_STEP_ID" not in os.environ


def job_rank(rank: int, world_size: int) -> tuple[int, int]:
    """Rank and world size over all tasks of a SLURM job array; as they are outside of one.

    Claims decide who writes a shard; ranks only let processes begin at different ones, so tasks may start at any time.
    """
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return rank, world_size
    task, first, step, num_tasks = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1), ("COUNT", 1))
    )
    place = (task - first) // max(step, 1) % num_tasks
    return place * world_size + rank, num_tasks * world_size


@contextlib.contextmanager
def job_progress(job: CacheJob) -> Iterator[None]:
    """Show on stderr the photos that all processes have done, and the time that is left.

    A bar on a terminal, a line a minute in a log.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    bar = Progress(
        *Progress.get_default_columns(),  # description, bar, share, time that is left
        MofNCompleteColumn(),
        console=console,
        disable=not console.is_terminal,
        speed_estimate_period=SPEED_WINDOW_SECONDS,
    )
    stopped = threading.Event()
    total = len(job.index)

    def show() -> None:
        started = said = time.monotonic()
        done_at_start = job.num_done()
        task = bar.add_task("photos", total=total, completed=done_at_start)
        while not stopped.wait(REFRESH_SECONDS):
            done, now = job.num_done(), time.monotonic()
            bar.update(task, completed=done)
            if bar.disable and now - said >= LOG_SECONDS:
                said = now
                console.print(progress_line(done, total, (done - done_at_start) / (now - started)))
        bar.update(task, completed=job.num_done())

    thread = threading.Thread(target=show, name="progress", daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


def progress_line(done: int, total: int, photos_per_second: float) -> str:
    """One line about a job: how many photos, how fast, how long still."""
    left = duration((total - done) / photos_per_second) if photos_per_second > 0 else "unknown time"
    return f"{done:,} of {total:,} photos by all processes, {photos_per_second:,.1f} photos/s, {left} left"
