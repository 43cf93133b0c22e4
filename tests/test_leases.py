"""Leases have one holder at a time, whichever process dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distill.data.cache.checksummed_json import disk_errors
from distill.errors import CacheError, DataError
from distill.leases import Leases, _machine, _start_of, lease_path, leased_name

ELSEWHERE = {"machine": "another boot", "pid": 1, "started": "1", "beat": 3, "num_done": 5}


def write_lease(directory: Path, name: str = "a.tar", generation: int = 0, **changes: object) -> Path:
    path = lease_path(directory, name, generation)
    path.write_text(json.dumps(ELSEWHERE | changes))
    return path


def test_one_holder(tmp_path: Path):
    first, second = Leases(tmp_path), Leases(tmp_path)
    lease = first.acquire("a.tar")
    assert lease is not None
    with lease:
        assert lease.is_held() and second.acquire("a.tar") is None and first.acquire("a.tar") is None
        with second.hold("b.tar") as other:
            assert other.is_held()
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar.claim0"]
        assert leased_name("a.tar.claim0") == "a.tar" and leased_name("a.tar") is None
    assert not list(tmp_path.iterdir())
    with second.hold("a.tar") as lease:
        assert lease.is_held()


def test_one_of_many_threads(tmp_path: Path):
    """Let all threads find the same abandoned lease at once: one takes it over."""
    write_lease(tmp_path, machine=_machine(), pid=os.getpid(), started="another process of this id")
    start, taken = threading.Barrier(16), []

    def acquire() -> None:
        leases = Leases(tmp_path)
        start.wait()
        lease = leases.acquire("a.tar")
        if lease is not None:
            taken.append(lease)

    threads = [threading.Thread(target=acquire) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1 and taken[0].generation == 1
    with taken[0] as lease:
        assert lease.is_held()
    assert not list(tmp_path.iterdir())


def _hold_for_ever(directory: Path, ready: multiprocessing.synchronize.Event) -> None:
    with Leases(directory).hold("a.tar"):
        ready.set()
        time.sleep(600)


@pytest.mark.skipif(_machine() is None, reason="no /proc: only time tells")
def test_a_killed_process_of_this_machine_is_known_at_once(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold_for_ever, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60) and Leases(tmp_path).acquire("a.tar") is None
    os.kill(process.pid, signal.SIGKILL)
    while _start_of(process.pid) is not None:  # a zombie at first
        time.sleep(0.01)
    with Leases(tmp_path).hold("a.tar") as lease:
        assert lease.generation == 1 and lease.is_held()
    assert not list(tmp_path.iterdir())
    process.join()


def test_silence_elsewhere_is_death(tmp_path: Path):
    """Count by the clock of the worker that looks, and start again at each sign of life."""
    leases = Leases(tmp_path, stale_seconds=0.3)
    write_lease(tmp_path)
    assert leases.acquire("a.tar") is None
    time.sleep(0.2)
    write_lease(tmp_path, beat=4)
    assert leases.acquire("a.tar") is None
    time.sleep(0.2)
    assert leases.acquire("a.tar") is None
    time.sleep(0.2)
    with leases.hold("a.tar") as lease:
        assert lease.generation == 1


def test_an_empty_claim_is_being_written(tmp_path: Path):
    leases = Leases(tmp_path, stale_seconds=0.2)
    lease_path(tmp_path, "a.tar", 0).touch()
    assert leases.acquire("a.tar") is None and leases.progress() == {"a.tar": 0}
    time.sleep(0.25)
    with leases.hold("a.tar"):
        pass


def test_a_holder_gives_signs_of_life(tmp_path: Path):
    looking = Leases(tmp_path, stale_seconds=0.5)
    with Leases(tmp_path, stale_seconds=0.5).hold("a.tar") as lease:
        lease.num_done = 3
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            assert looking.acquire("a.tar") is None
            time.sleep(0.05)
        assert looking.progress() == {"a.tar": 3}


def test_a_holder_that_was_taken_for_dead(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with Leases(tmp_path, stale_seconds=0.5).hold("a.tar") as lease:
        later = write_lease(tmp_path, generation=1)
        assert not lease.is_held()
        lease.path.unlink()  # as the later holder does when it releases its lease
        time.sleep(0.1)
    assert "no sign of life" in caplog.text
    assert list(tmp_path.iterdir()) == [later]


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"\xff\xfe",
        b"[]",
        b'{"pid": "1"}',
        b'{"machine": 7, "pid": 1}',
        b'{"pid": -1}',
        b'{"num_done": -5}',
        b'{"num_done": %s}' % (b"9" * 4000),
        b'{"num_done": 1e999}',
        b'{"host": "\\u001b[2J"}',
        b" " * (64 << 20),
    ],
)
def test_rubbish_in_a_lease_says_nothing(tmp_path: Path, content: bytes):
    """Take it for a lease that is being written: it is abandoned when it has not changed for long."""
    lease_path(tmp_path, "a.tar", 0).write_bytes(content)
    leases = Leases(tmp_path, stale_seconds=0.1)
    assert leases.acquire("a.tar") is None and leases.progress() == {"a.tar": 0}
    assert str(leases.holder("a.tar")) == "another process"
    time.sleep(0.15)
    with leases.hold("a.tar"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lease_that_is_no_file_is_named(tmp_path: Path):
    """Neither wait for a pipe, nor look for the target of a link for ever."""
    path = lease_path(tmp_path, "a.tar", 0)
    for make in (
        os.mkfifo,
        os.mkdir,
        lambda path: os.symlink("nowhere", path),
        lambda path: os.symlink("/dev/zero", path),
    ):
        make(path)
        leases = Leases(tmp_path)
        for look in (leases.acquire, leases.holder):
            with pytest.raises(DataError, match=r"a\.tar\.claim0: "):
                look("a.tar")
        assert leases.progress() == {"a.tar": 0}
        path.rmdir() if path.is_dir() else path.unlink()


def test_numbers_that_no_lease_has(tmp_path: Path):
    """Ignore files whose names only look like leases, and do not count up to a number that a file's name gives."""
    for number in ("007", "٣", "9" * 200, "1_0", "+1"):
        (tmp_path / f"a.tar.claim{number}").touch()
        assert leased_name(f"a.tar.claim{number}") is None
    leases, started = Leases(tmp_path), time.monotonic()
    with leases.hold("a.tar") as lease:
        assert lease.path.name == "a.tar.claim0"
    last = write_lease(tmp_path, generation=999_998, machine=_machine(), pid=1 << 31)
    with leases.hold("a.tar") as lease:
        assert lease.path.name == "a.tar.claim999999"
    assert not last.exists() and time.monotonic() - started < 5
    write_lease(tmp_path, generation=999_999, machine=_machine(), pid=1 << 31)
    with pytest.raises(DataError, match="no lease has such a number; remove this file"):
        leases.acquire("a.tar")


@pytest.mark.skipif(sys.platform != "linux", reason="a directory that nobody, root included, can write to")
def test_a_read_only_directory():
    leases = Leases(Path("/sys/kernel"), disk_errors=disk_errors)
    with pytest.raises(CacheError, match=r"a.tar.claim0: cannot be written: .*not writable; choose another cache.dir"):
        leases.acquire("a.tar")


def test_process_ids(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    if _machine() is not None:
        assert _start_of(process.pid) is not None
    process.communicate(b"\n")
    assert _start_of(process.pid) is None
