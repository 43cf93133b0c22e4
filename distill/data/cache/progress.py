"""The progress of a caching job over all its processes, for a terminal or a log."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from distill.data.cache.job import CacheJob
from distill.text import duration, progress_bar

REFRESH_SECONDS = 2.0
LOG_SECONDS = 60.0  # between two lines where there is no terminal
SPEED_WINDOW_SECONDS = 600.0  # processes report every few seconds: the speed is a mean over this time


@contextlib.contextmanager
def job_progress(job: CacheJob) -> Iterator[None]:
    """Show on stderr how many photos all processes have done, and the time that is left.

    A terminal shows a bar; a log gets a line every minute.
    """
    from rich.console import Console

    console = Console(stderr=True)
    stopped = threading.Event()
    total = len(job.index)

    def show() -> None:
        started = last_line = time.monotonic()
        shown = done_at_start = job.num_done()
        with progress_bar(
            "photos", total, done=done_at_start, shown=console.is_terminal, speed_seconds=SPEED_WINDOW_SECONDS
        ) as advance:
            while not stopped.wait(REFRESH_SECONDS):
                done, now = job.num_done(), time.monotonic()
                advance(done - shown)
                shown = done
                if not console.is_terminal and now - last_line >= LOG_SECONDS:
                    last_line = now
                    console.print(progress_line(done, total, (done - done_at_start) / (now - started)))
            advance(job.num_done() - shown)

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def progress_line(done: int, total: int, photos_per_second: float) -> str:
    """Return one line about a job: how many photos are done, how fast, and the time that is left."""
    left = duration((total - done) / photos_per_second) if photos_per_second > 0 else "unknown time"
    return f"{done:,} of {total:,} photos by all processes, {photos_per_second:,.1f} photos/s, {left} left"
