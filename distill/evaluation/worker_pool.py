"""Work in other processes, and many tasks that wait for it in one."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.connection import wait as wait_for_end
from types import TracebackType
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

# A task yields futures, is resumed with the list of their results, and returns its own result.
Task = Generator[list["Future[Any]"], list[Any], Result]


class Workers:
    """Processes that compute functions of pickled arguments; with `num` 0 the caller computes them at once.

    A context manager. The processes start on the first use, import this package anew and end with their parent,
    however that ends.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self._executor: ProcessPoolExecutor | None = None
        if num:
            methods = multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
            if "forkserver" in methods:
                context.set_forkserver_preload(["distill.evaluation.mask_scoring"])  # imported once for all of them
            self._executor = ProcessPoolExecutor(num, mp_context=context, initializer=_begin)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """The result to come of function(*arguments); what it raises comes out of the future."""
        if self._executor is not None:
            return self._executor.submit(function, *arguments)
        future: Future[Result] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # noqa: BLE001 - raised again where the result is asked for
            future.set_exception(error)
        return future


def drive(tasks: Iterable[Task[Result]], *, at_once: int) -> Iterator[Result]:
    """Run tasks, `at_once` of them under way, each as soon as what it waits for is there; results as they come."""
    rest = iter(tasks)
    under_way: list[tuple[Task[Result], list[Future[Any]]]] = []
    while True:
        while len(under_way) < at_once and (task := next(rest, None)) is not None:
            under_way.append((task, next(task)))
        if not under_way:
            return
        ready = [i for i, (_, futures) in enumerate(under_way) if all(future.done() for future in futures)]
        if not ready:
            wait([future for _, futures in under_way for future in futures if not future.done()], None, FIRST_COMPLETED)
            continue
        task, futures = under_way.pop(ready[0])  # the eldest, so that none waits for long
        try:
            under_way.insert(ready[0], (task, task.send([future.result() for future in futures])))
        except StopIteration as end:
            yield end.value


def _begin() -> None:
    """Start a worker: one core for it, and an end with its parent, were that killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for_end([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
