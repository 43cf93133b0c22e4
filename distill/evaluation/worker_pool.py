"""Worker processes beside a model, and the event loop that keeps both busy.

An evaluation runs one coroutine for each photo. The coroutine awaits what the workers do, which is to read the photo
and to compare masks, and it calls the model in between. So the model predicts for one photo while the workers compare
the masks of another.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import wait as wait_for_end
from types import TracebackType
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool:
    """Processes that call functions on pickled arguments. With `num` 0, this process makes the calls itself.

    A context manager. The processes start on the first use, and they end with their parent, even if it is killed.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self._executor: ProcessPoolExecutor | None = None
        if num:
            methods = multiprocessing.get_all_start_methods()
            context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
            if "forkserver" in methods:
                context.set_forkserver_preload(
                    ["distill.evaluation.scoring.mask_scoring"]
                )  # imported once for all of them
            self._executor = ProcessPoolExecutor(num, mp_context=context, initializer=_start_worker)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return function(*arguments), computed in a worker. Raises what the function raises."""
        if self._executor is None:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def map_chunks(
        self, function: Callable[[Sequence[Item]], Sequence[Result]], items: Sequence[Item], chunk_size: int
    ) -> list[Result]:
        """Call a function on consecutive chunks of a sequence, each in a worker. Return the results in their order."""
        chunks = [items[start : start + chunk_size] for start in range(0, len(items), chunk_size)]
        results = await asyncio.gather(*(self.run(function, chunk) for chunk in chunks))
        return [result for of_chunk in results for result in of_chunk]


def run_concurrently(coroutines: Iterable[Coroutine[Any, Any, Result]], *, limit: int) -> Iterator[Result]:
    """Run coroutines on an event loop, at most `limit` of them at a time. Yield their results as they come.

    The loop runs only while the caller waits for the next result. What a coroutine raises is raised here, and the
    others are then cancelled. With a limit of 1, the results come in the order of the coroutines.
    """
    rest = iter(coroutines)
    running: list[asyncio.Task[Result]] = []
    loop = asyncio.new_event_loop()
    try:
        while True:
            running += [loop.create_task(coroutine) for coroutine in itertools.islice(rest, limit - len(running))]
            if not running:
                return
            _run_until_done(loop, asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED))
            finished = next(task for task in running if task.done())
            running.remove(finished)
            yield finished.result()
    finally:
        pending = asyncio.all_tasks(loop)
        for task in pending:
            task.cancel()
        if left := {*running, *pending}:
            _run_until_done(loop, asyncio.gather(*left, return_exceptions=True))
        loop.close()


def _run_until_done(loop: asyncio.AbstractEventLoop, awaitable: Awaitable[Any]) -> None:
    """Run a loop until an awaitable is done: in another thread where this one runs a loop already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop.run_until_complete(awaitable)
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(loop.run_until_complete, awaitable).result()


def _start_worker() -> None:
    """Prepare a worker process: it uses one core, and it ends when its parent ends, even if that is killed."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for_end([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
