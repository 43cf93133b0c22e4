"""Claims: which worker does which piece of work, said by small files that every node of a shared file system sees.

A claim is a file NAME.claim0 that its holder created with O_EXCL. That is atomic on local disks and on the file
systems that clusters share (NFS since version 3, Lustre, GPFS), where locks are often off or end at the node. While it
works, the holder writes a new count into the file every few seconds. A claim is abandoned when its process is known to
be dead (the same machine sees that at once), or when the file has not changed for `stale_seconds` by the clock of the
one who looks, so nodes' clocks need not agree. Whoever finds it abandoned creates NAME.claim1, exclusively again: of
many who try, one succeeds, and one who judged by old knowledge meets a file that exists.

Claims save work; they are not what keeps files whole. A holder that was suspended for too long and awakes finds a
later claim and gives its work up, and had it not looked, it would have renamed the same bytes into place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import TracebackType

from distill.data.cache.sealed_json import disk_errors

CLAIM_MARK = ".claim"
STALE_SECONDS = 120.0  # more than the minute for which NFS clients may keep what they know of a file
BEATS = 24  # signs of life in that time
POLL_SECONDS = 0.5
CLAIM_BYTES = 256  # one size, so that a new text covers the old one
STATE_FIELD, START_FIELD = 0, 19  # of /proc/PID/stat, counted behind the process's name
DEAD_STATES = "ZX"

log = logging.getLogger(__name__)


class Claims:
    """The claims in one directory, as one worker sees them.

    Args:
        stale_seconds: a claim that has not changed for this long is taken for a dead worker's.
    """

    def __init__(self, directory: Path, *, stale_seconds: float = STALE_SECONDS) -> None:
        self.directory = directory
        self.stale_seconds = stale_seconds
        self._seen: dict[Path, tuple[bytes, float]] = {}  # content, and when it was first seen (monotonic)

    def take(self, name: str) -> Claim | None:
        """Claim a piece of work; None while another worker, as far as is known, holds it.

        Raises:
            CacheError: the disk is full, or the directory read-only.
        """
        generations = self._generations(name)
        if generations and not self._is_abandoned(claim_path(self.directory, name, generations[-1])):
            return None
        claim = Claim(self.directory, name, generations[-1] + 1 if generations else 0, self.stale_seconds / BEATS)
        return claim if claim._create() else None

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[Claim]:
        """Wait for a piece of work to be free, and hold it."""
        while (claim := self.take(name)) is None:
            time.sleep(POLL_SECONDS)
        with claim:
            yield claim

    def progress(self) -> dict[str, int]:
        """What the holders of all claims say they have done, by name."""
        latest: dict[str, int] = {}
        for file in os.listdir(self.directory):
            name = claimed_name(file)
            if name is not None:
                latest[name] = max(latest.get(name, 0), int(file.rpartition(CLAIM_MARK)[2]))
        return {name: _num_done(claim_path(self.directory, name, generation)) for name, generation in latest.items()}

    def _generations(self, name: str) -> list[int]:
        prefix = f"{name}{CLAIM_MARK}"
        with disk_errors(self.directory):
            numbers = [file[len(prefix) :] for file in os.listdir(self.directory) if file.startswith(prefix)]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def _is_abandoned(self, path: Path) -> bool:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # released in this moment
            return False
        if path not in self._seen or self._seen[path][0] != content:
            self._seen[path] = (content, time.monotonic())
        return _is_dead(content) or time.monotonic() - self._seen[path][1] >= self.stale_seconds


class Claim:
    """A piece of work that this worker holds; a context manager, which releases it.

    `num_done` may be set while working: others read it as progress.
    """

    def __init__(self, directory: Path, name: str, generation: int, beat_seconds: float) -> None:
        self.directory = directory
        self.name = name
        self.generation = generation
        self.path = claim_path(directory, name, generation)
        self.num_done = 0
        self._beat_seconds = beat_seconds
        self._num_beats = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {name}", daemon=True)

    def is_held(self) -> bool:
        """False when another worker took this one for dead."""
        return self.path.exists() and not claim_path(self.directory, self.name, self.generation + 1).exists()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        with disk_errors(self.path):
            for generation in range(self.generation + 1):  # its own last: what is left always names a holder
                claim_path(self.directory, self.name, generation).unlink(missing_ok=True)

    def _create(self) -> bool:
        with disk_errors(self.path):
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
            except OSError as error:  # is_held tells, before anything is committed, whether it was lost
                log.warning("%s: no sign of life can be given (%s)", self.path, error)

    def _content(self) -> bytes:
        pid = os.getpid()
        content = {
            "machine": _machine(),
            "pid": pid,
            "started": _start_of(pid),
            "beat": self._num_beats,
            "num_done": self.num_done,
        }
        return json.dumps(content).encode().ljust(CLAIM_BYTES - 1) + b"\n"


def claim_path(directory: Path, name: str, generation: int) -> Path:
    """NAME.claimN."""
    return directory / f"{name}{CLAIM_MARK}{generation}"


def claimed_name(file: str) -> str | None:
    """The work that a file of this name claims; None when it is no claim."""
    name, mark, number = file.rpartition(CLAIM_MARK)
    return name if mark and number.isdecimal() else None


def _num_done(path: Path) -> int:
    try:
        num_done = _parse(path.read_bytes()).get("num_done")
    except FileNotFoundError:  # released in this moment
        return 0
    return num_done if isinstance(num_done, int) else 0


def _parse(content: bytes) -> dict[str, object]:
    """A claim's text; empty when it is being written."""
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _is_dead(content: bytes) -> bool:
    """Whether a claim's process ran on this machine and is no more. A process of another machine may live."""
    claim = _parse(content)
    machine, pid = claim.get("machine"), claim.get("pid")
    if machine is None or machine != _machine() or not isinstance(pid, int):
        return False
    return _start_of(pid) != claim.get("started")


@cache
def _machine() -> str | None:
    """This boot of this machine, and its space of process ids (a container has its own); None where not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_of(pid: int) -> str | None:
    """When a living process was started, in ticks since the boot: a later process of its id has another."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[STATE_FIELD] in DEAD_STATES else fields[START_FIELD]
