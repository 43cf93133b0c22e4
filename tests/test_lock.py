"""A directory has one holder: another process is refused by name, and a dead holder's lock is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from distill.errors import RunError
from distill.leases import LEASE_BYTES, Leases, _machine, lease_path
from distill.lock import LOCK, check_held, contents, hold_directory

HOLD = """
import sys, time
from pathlib import Path
from distill.lock import hold_directory
with hold_directory(Path(sys.argv[1]), give="run=DIR"):
    print("held", flush=True)
    time.sleep(600)
"""
on_linux = pytest.mark.skipif(_machine() is None, reason="no /proc: only time tells")


def start_holder(directory: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(directory)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    return holder


@on_linux
def test_the_second_is_told_who_holds_it_and_a_dead_holder_is_followed_at_once(tmp_path: Path):
    run = tmp_path / "run"
    holder = start_holder(run)
    refusal = rf"run' is in use by process {holder.pid} on {os.uname().nodename}, since 20.*another directory: run=DIR"
    with pytest.raises(RunError, match=refusal), hold_directory(run, give="run=DIR"):
        pytest.fail("held twice")
    assert contents(run) == [] and holder.poll() is None  # the holder's lock stays
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(10)
    started = time.monotonic()
    with hold_directory(run, give="run=DIR") as lease:
        check_held(lease)
        (run / "result").touch()
    assert time.monotonic() - started < 2
    assert [path.name for path in run.iterdir()] == ["result"]


def write_elsewhere(directory: Path, *, beat: int = 0) -> Path:
    """Write the lock of a holder on another machine, as a shared file system shows it."""
    path = lease_path(directory, LOCK, 0)
    content = {
        "machine": "another boot",
        "pid": 7,
        "started": "1",
        "beat": beat,
        "host": "node7",
        "since": "2030-01-01",
    }
    path.write_bytes(json.dumps(content).encode().ljust(LEASE_BYTES))
    return path


def test_a_holder_on_another_machine_that_gives_a_sign_of_life_is_respected(tmp_path: Path, caplog):
    path = write_elsewhere(tmp_path)
    beat = threading.Timer(0.6, lambda: write_elsewhere(tmp_path, beat=1))
    beat.start()
    held = hold_directory(tmp_path, give="run=DIR", stale_seconds=60)
    with pytest.raises(RunError, match="in use by process 7 on node7, since 2030-01-01"), held:
        pytest.fail("held twice")
    beat.join()
    assert path.exists() and "waiting up to 60 seconds" in caplog.text


def test_a_silent_holder_on_another_machine_loses_the_lock(tmp_path: Path):
    write_elsewhere(tmp_path)
    with hold_directory(tmp_path, give="run=DIR", stale_seconds=1):
        assert Leases(tmp_path).holder(LOCK).pid == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_holder_that_was_suspended_for_too_long_stops_writing(tmp_path: Path):
    with hold_directory(tmp_path, give="run=DIR") as lease:
        later = lease_path(tmp_path, LOCK, 1)
        later.write_bytes(json.dumps({"pid": 8, "host": "node8"}).encode())
        with pytest.raises(RunError, match="process 8 on node8 took it over"):
            check_held(lease)
    assert list(tmp_path.iterdir()) == [later]


def test_a_directory_made_for_nothing_is_removed(tmp_path: Path):
    with pytest.raises(ValueError, match="refused"), hold_directory(tmp_path / "a" / "run", give="run=DIR"):
        raise ValueError("refused")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    held = hold_directory(tmp_path / "file", give="run=DIR")
    with pytest.raises(RunError, match="file' is a file; give a directory: run=DIR"), held:
        pytest.fail("a file was held")
