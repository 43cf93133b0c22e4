"""Directories that one process holds at a time: a run, an evaluation, a comparison, shards under construction.

The lock is a lease (`distill.leases`), so it holds on shared file systems too. A holder that is known to be dead, or
gives no sign of life, loses it to the next process.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from distill.errors import RunError
from distill.files import write_errors
from distill.leases import STALE_SECONDS, Holder, Lease, Leases, leased_name

LOCK = "lock"  # the file of the lock is lock.claim0 in the directory
WAIT_SECONDS = 0.5  # between two looks at a holder on another machine

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def hold_directory(directory: Path, *, give: str, stale_seconds: float = STALE_SECONDS) -> Iterator[Lease]:
    """Hold a directory in the block, and make it if it is missing. No other process can hold it meanwhile.

    A directory that was made here and is still empty at the end is removed again. If the holder is on another machine,
    this waits until it gives a sign of life or for `stale_seconds`.

    Args:
        give: how the user gives another directory, for the message: "run=DIR".
    Yields:
        The lease. Before it commits something, a long job asks it by `check_held` whether it still holds.
    Raises:
        RunError: another process holds the directory, the path is a file, or it cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise RunError(f"'{directory}' is a file; give a directory: {give}")
    disk_errors = partial(write_errors, raises=RunError)
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    try:
        with _acquire(Leases(directory, stale_seconds=stale_seconds, disk_errors=disk_errors), give) as lease:
            yield lease
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds something, so it stays
                folder.rmdir()


def check_held(lease: Lease) -> None:
    """Raise RunError if another process took this one for dead, as after a long suspension."""
    if not lease.is_held():
        holder = Leases(lease.directory).holder(lease.name)
        raise RunError(
            f"'{lease.directory}' is no longer this process's: {holder or 'another process'} took it over, because "
            "this one gave no sign of life for too long; nothing more is written here"
        )


def contents(directory: Path) -> list[Path]:
    """Return what a directory holds, sorted, without the files of its lock. Return [] if there is no directory."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if leased_name(path.name) != LOCK)


def _acquire(leases: Leases, give: str) -> Lease:
    first: Holder | None = None
    while (lease := leases.acquire(LOCK)) is None:
        holder = leases.holder(LOCK)
        if holder is None:  # released in this moment
            continue
        if leases.is_local(LOCK) or (first is not None and holder != first):
            raise RunError(
                f"'{leases.directory}' is in use by {holder}; wait until it ends, or give another directory: {give}"
            )
        if first is None:
            first = holder
            logger.warning(
                "'%s' is held by %s; waiting up to %.0f seconds for a sign of life",
                leases.directory,
                holder,
                leases.stale_seconds,
            )
        time.sleep(WAIT_SECONDS)
    return lease
