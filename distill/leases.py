"""Leases: small files on a shared file system say which worker does which piece of work.

A worker that takes a lease creates the file NAME.claim0 with O_EXCL. Creating a file this way is atomic on local disks
and on the file systems that clusters share (NFS since version 3, Lustre, GPFS). Locks are often off there, or they hold
on one node alone. While the holder works, it writes a new count into the file every few seconds.

A lease is abandoned in two cases. Its process is known to be dead, which workers on the same machine see at once. Or
the file has not changed for `stale_seconds` by the clock of the worker that looks, so the clocks of nodes need not
agree. A worker that finds a lease abandoned creates NAME.claim1, with O_EXCL again. Of many workers that try, one
succeeds; a worker with outdated knowledge meets a file that exists.

Leases save work, but files stay intact without them. A holder that was suspended for too long finds a later lease when
it wakes, and gives up its work. If it did not look, it would rename a file with the same bytes into place.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Annotated

import msgspec
from msgspec import Meta

from distill.files import write_errors
from distill.outside import Count, Line, open_regular

LEASE_MARK = ".claim"  # workers of all versions look for files of this name
STALE_SECONDS = 120.0  # NFS clients may cache what they know of a file for a minute
NUM_BEATS = 24  # signs of life of a holder in that time
POLL_SECONDS = 0.5
LEASE_BYTES = 512  # all texts have one size, so that a new one covers the old one
MOST_LEASE_BYTES = 4096  # that are read: other versions may write more
MOST_GENERATION = 999_999  # N of NAME.claimN, which grows by one with each worker that died
HOST_LENGTH = 64  # characters of the longest name that Linux allows a host
STATE_FIELD, START_FIELD = 0, 19  # of /proc/PID/stat, counted behind the process's name
DEAD_STATES = "ZX"

DiskErrors = Callable[[Path], contextlib.AbstractContextManager[None]]

log = logging.getLogger(__name__)


class Leases:
    """The leases in one directory, as one worker sees them.

    Args:
        stale_seconds: a lease that has not changed for so long counts as abandoned.
        disk_errors: turns an OSError while writing a path into the owner's DistillError.
    """

    def __init__(
        self, directory: Path, *, stale_seconds: float = STALE_SECONDS, disk_errors: DiskErrors = write_errors
    ) -> None:
        self.directory = directory
        self.stale_seconds = stale_seconds
        self.disk_errors = disk_errors
        self._seen: dict[Path, tuple[bytes, float]] = {}  # content, and the time when it was first seen (monotonic)

    def acquire(self, name: str) -> Lease | None:
        """Take the lease on a piece of work. Return None if another worker seems to hold it.

        Raises:
            DistillError: the disk is full, or the directory read-only, or something that is no file has the name of a
                lease.
        """
        generations = self._generations(name)
        if generations and not self._is_abandoned(lease_path(self.directory, name, generations[-1])):
            return None
        generation = generations[-1] + 1 if generations else 0
        if generation > MOST_GENERATION:
            latest = lease_path(self.directory, name, MOST_GENERATION)
            with self.disk_errors(latest):
                raise OSError(errno.EINVAL, "no lease has such a number; remove this file", str(latest))
        lease = Lease(self, name, generation)
        return lease if lease._create() else None

    def holder(self, name: str) -> Holder | None:
        """Return who holds a piece of work, by the latest lease. Return None if nobody does."""
        generations = self._generations(name)
        if not generations:
            return None
        content = self._content(lease_path(self.directory, name, generations[-1]))
        return None if content is None else Holder.parse(content)

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[Lease]:
        """Wait until a piece of work is free, and hold its lease in the block."""
        while (lease := self.acquire(name)) is None:
            time.sleep(POLL_SECONDS)
        with lease:
            yield lease

    def progress(self) -> dict[str, int]:
        """Return how much the holder of each lease says that it has done, by the name of the work."""
        latest: dict[str, int] = {}
        for file in os.listdir(self.directory):
            name = leased_name(file)
            if name is not None:
                latest[name] = max(latest.get(name, 0), int(file.rpartition(LEASE_MARK)[2]))
        return {name: _num_done(lease_path(self.directory, name, generation)) for name, generation in latest.items()}

    def is_local(self, name: str) -> bool:
        """Return whether a process of this machine holds a piece of work. Whether it lives is known at once."""
        holder = self.holder(name)
        return holder is not None and holder.machine is not None and holder.machine == _machine()

    def _generations(self, name: str) -> list[int]:
        with self.disk_errors(self.directory):
            return _generations(self.directory, name)

    def _content(self, path: Path) -> bytes | None:
        """Return the content of a lease file. Return None if it was released in this moment."""
        with self.disk_errors(path):
            try:
                return _read(path)
            except FileNotFoundError:
                return None

    def _is_abandoned(self, path: Path) -> bool:
        content = self._content(path)
        if content is None:
            return False
        if path not in self._seen or self._seen[path][0] != content:
            self._seen[path] = (content, time.monotonic())
        return _is_dead(content) or time.monotonic() - self._seen[path][1] >= self.stale_seconds


@dataclass(frozen=True)
class Holder:
    """Who holds a lease, as its file says; `beat` changes while the holder lives. None: the file does not say."""

    machine: str | None  # the name of its boot and process-id namespace
    host: str | None
    pid: int | None
    since: str | None  # ISO 8601, UTC, by the holder's clock
    beat: int | None

    @classmethod
    def parse(cls, content: bytes) -> Holder:
        """Read the content of a lease file, which another version may have written."""
        lease = _parse(content)
        return cls(lease.machine, lease.host, lease.pid, lease.since, lease.beat)

    def __str__(self) -> str:
        host = "" if self.host is None else f" on {self.host}"
        process = "another process" if self.pid is None else f"process {self.pid}"
        return f"{process}{host}" + ("" if self.since is None else f", since {self.since}")


class _LeaseFile(msgspec.Struct):
    """What a lease file says. None: it does not say."""

    machine: Line | None = None
    host: Line | None = None
    pid: Annotated[int, Meta(ge=0, le=1 << 32)] | None = None
    started: Line | None = None
    since: Line | None = None
    beat: Count | None = None
    num_done: Count = 0


class Lease:
    """A lease that this worker holds: a context manager, which releases it at the end.

    The holder may set `num_done` while it works; other workers read it as progress.
    """

    def __init__(self, leases: Leases, name: str, generation: int) -> None:
        self.directory = leases.directory
        self.name = name
        self.generation = generation
        self.path = lease_path(leases.directory, name, generation)
        self.num_done = 0
        self._disk_errors = leases.disk_errors
        self._since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._beat_seconds = leases.stale_seconds / NUM_BEATS
        self._num_beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {name}", daemon=True)

    def is_held(self) -> bool:
        """Return False if another worker took this one for dead."""
        return self.path.exists() and not lease_path(self.directory, self.name, self.generation + 1).exists()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        with self._disk_errors(self.path):
            earlier = [number for number in _generations(self.directory, self.name) if number < self.generation]
            for generation in (*earlier, self.generation):  # its own file last: what is left always names a holder
                lease_path(self.directory, self.name, generation).unlink(missing_ok=True)

    def _create(self) -> bool:
        with self._disk_errors(self.path):
            try:
                file = self.path.open("xb")
            except FileExistsError:  # another worker was faster
                return False
            try:
                with file:
                    file.write(self._content())
            except OSError:
                self.path.unlink(missing_ok=True)
                raise
        self._thread.start()
        return True

    def _beat(self) -> None:
        while not self._stopped.wait(self._beat_seconds):
            self._num_beats += 1
            try:
                with self.path.open("r+b") as file:  # closed each time: only then other nodes see it
                    file.write(self._content())
            except OSError as error:  # `is_held` finds a lost lease before anything is committed
                log.warning("%s: no sign of life can be given (%s)", self.path, error)

    def _content(self) -> bytes:
        pid = os.getpid()
        content = {
            "machine": _machine(),
            "pid": pid,
            "started": _start_of(pid),
            "beat": self._num_beats,
            "num_done": self.num_done,
            "host": platform.node()[:HOST_LENGTH],
            "since": self._since,
        }
        return json.dumps(content).encode().ljust(LEASE_BYTES - 1) + b"\n"


def lease_path(directory: Path, name: str, generation: int) -> Path:
    """Return the path of the file NAME.claimN."""
    return directory / f"{name}{LEASE_MARK}{generation}"


def leased_name(file: str) -> str | None:
    """Return the name of the work that a lease file of this name is for. Return None if it is not a lease file."""
    name, mark, number = file.rpartition(LEASE_MARK)
    return name if mark and _is_generation(number) else None


def _is_generation(number: str) -> bool:
    """Return whether a number is written as `lease_path` writes it."""
    return number.isascii() and number.isdecimal() and str(int(number)) == number and int(number) <= MOST_GENERATION


def _generations(directory: Path, name: str) -> list[int]:
    """Return the numbers of the lease files of a piece of work, the latest last. Raises OSError."""
    prefix = f"{name}{LEASE_MARK}"
    numbers = [file[len(prefix) :] for file in os.listdir(directory) if file.startswith(prefix)]
    return sorted(int(number) for number in numbers if _is_generation(number))


def _read(path: Path) -> bytes:
    """Return the content of a lease file. Raises OSError, also if it is a link, a pipe or a folder."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "this is a link, and no file", str(path))
    with open_regular(path) as file:
        return file.read(MOST_LEASE_BYTES)


def _num_done(path: Path) -> int:
    try:
        return _parse(_read(path)).num_done
    except OSError:  # released in this moment; `acquire` says what else is wrong
        return 0


def _parse(content: bytes) -> _LeaseFile:
    """Return what a lease file says: nothing while its holder writes it, or if it is in no known form."""
    try:
        return msgspec.json.decode(content, type=_LeaseFile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _LeaseFile()


def _is_dead(content: bytes) -> bool:
    """Return whether the holder was a process of this machine that has ended. Other machines' may be alive."""
    lease = _parse(content)
    if lease.machine is None or lease.machine != _machine() or lease.pid is None:
        return False
    return _start_of(lease.pid) != lease.started


@cache
def _machine() -> str | None:
    """Return a name of this machine's boot and process-id namespace (containers have their own); None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """Return the start of a living process in ticks since boot, which tells it from later processes of the same id.

    Return None if there is no such process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[STATE_FIELD] in DEAD_STATES else fields[START_FIELD]
