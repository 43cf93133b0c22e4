"""The processes of a job on several devices: who starts them, and which rank each has."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.fabric import Fabric

WAIT_DAYS = 30  # processes wait for each other only at the start; gloo's default timeout is minutes
GRACE_SECONDS = 5.0  # time for a process to finish after its parent has ended


def launch_fabric(devices: int | None = None, accelerator: str = "auto") -> Fabric:
    """Return Lightning Fabric in the processes that torchrun or srun started, or start `devices` processes.

    Processes that are started here run the same program with the same arguments from its first line.

    Args:
        devices: the number of processes on this machine, where nothing else has started them. The default is one for
            each GPU, or one process on a machine without a GPU.
        accelerator: as Lightning names it: `cpu`, `cuda`, or `auto` for a GPU if there is one.
    """
    from datetime import timedelta

    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.fabric.strategies.ddp import DDPStrategy

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
    is_alone = devices * num_nodes == 1
    strategy = "auto" if is_alone else DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=WAIT_DAYS))
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, plugins=plugins)
    fabric.launch()
    return fabric


def is_helper(fabric: Fabric) -> bool:
    """Return whether `launch_fabric` started this process from the first process on this machine.

    The first process does the work of such a process if it fails.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect() or (SLURMEnvironment.detect() and not is_array_task_alone()):
        return False
    return fabric.global_rank > 0


def end_with_parent() -> None:
    """Let this process end soon after the process that started it, even if that one was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()


def is_array_task_alone() -> bool:
    """Return whether this is a task of a SLURM job array that its batch script runs without srun."""
    return "SLURM_ARRAY_TASK_ID" in os.environ and "SLURM_STEP_ID" not in os.environ


def job_rank(rank: int, world_size: int) -> tuple[int, int]:
    """Return rank and world size over all tasks of a SLURM job array. Outside of one, return them as they are.

    These ranks are for work that needs no communication: the tasks of an array start at any time.
    """
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return rank, world_size
    task, first, step, num_tasks = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("MIN", 0), ("STEP", 1), ("COUNT", 1))
    )
    position = (task - first) // max(step, 1) % num_tasks
    return position * world_size + rank, num_tasks * world_size
