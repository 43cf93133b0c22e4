"""The process that reads damaged files under limits, and the object through which others use it.

A reading process imports the product once. It forks a worker, which reads one input after the other with a limit on
its memory and an alarm for each input. When a worker is killed, the input that it was at is known, and another worker
is forked. `python -m tests.fuzz.reading` is that process; it speaks through pipes.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).parents[2]
CPU_SECONDS = 4.0  # of one input, after which it counts as a hang; a sound one takes less than half a second
WAITING = 15  # times as long may pass on the clock: other processes may need the processor too
ENDING_SECONDS = 30  # that the process may take to end before it is killed
MEMORY_BYTES = 1 << 30  # that reading one small file may take
LARGEST_FILE = 256 << 20  # that a reader may write
ALARMS = (signal.SIGALRM, signal.SIGPROF)
Reader = Callable[[Mapping[str, bytes], Path], Any]
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Verdict:
    """What became of an input.

    kind: "accepted", "refused" (the product's own error), "traceback", "memory" (beyond the limit, and the product did
        not say so), "killed" (by a signal) or "hung".
    text: the error, or the last line of the traceback. place: where it was raised, "" if it was no traceback.
    found: what the reader believed.
    """

    kind: str
    text: str = ""
    found: Any = None
    place: str = ""

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("accepted", "refused")


class ReadingProcess:
    """A process that reads damaged files. `folder` is where inputs lie: memory, where the machine has such a place."""

    def __init__(self, *, seconds: float = CPU_SECONDS, readers: str = "tests.fuzz.readers") -> None:
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(prefix="distill-fuzz-", dir=place)
        environment = {
            **os.environ,
            "HOME": self._folder.name,
            "XDG_CACHE_HOME": f"{self._folder.name}/cache",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        words = [sys.executable, "-m", "tests.fuzz.reading", self._folder.name, str(seconds), readers]
        self._process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    @property
    def folder(self) -> Path:
        """Where inputs lie."""
        return Path(self._folder.name)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def read(self, form: str, case: dict[str, bytes]) -> Verdict:
        """Read the files of a case as the command of its format does."""
        assert self._process.stdin is not None and self._process.stdout is not None
        send(self._process.stdin, (form, case))
        try:
            return Verdict(*receive(self._process.stdout))
        except EOFError:
            raise RuntimeError(f"{form}: the reading process has ended; it could not read the sound case") from None

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:  # a busy machine: torch takes its time to end
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()


def send(file: BinaryIO, message: Any) -> None:
    """Write a message of a known length."""
    data = pickle.dumps(message)
    file.write(LENGTH.pack(len(data)) + data)
    file.flush()


def receive(file: BinaryIO) -> Any:
    """Read a message. Raises EOFError when the other side has ended."""
    start = file.read(LENGTH.size)
    if len(start) < LENGTH.size:
        raise EOFError
    return pickle.loads(file.read(LENGTH.unpack(start)[0]))


class Worker:
    """A forked process that reads inputs until one of them kills it."""

    def __init__(self, folder: Path, seconds: float, readers: Mapping[str, Reader]) -> None:
        inward, outward = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(inward[1]), os.close(outward[0])
            _work(os.fdopen(inward[0], "rb"), os.fdopen(outward[1], "wb"), folder, seconds, readers)
        os.close(inward[0]), os.close(outward[1])
        self.requests, self.answers = os.fdopen(inward[1], "wb"), os.fdopen(outward[0], "rb")

    def read(self, message: Any) -> tuple[Any, ...] | None:
        """Return the verdict on an input, or None if it killed the worker."""
        try:
            send(self.requests, message)
            return receive(self.answers)
        except (EOFError, BrokenPipeError):
            return None

    def end(self) -> tuple[Any, ...]:
        """Return how the worker ended."""
        _, status = os.waitpid(self.pid, 0)
        for file in (self.requests, self.answers):
            with contextlib.suppress(OSError):
                file.close()
        if not os.WIFSIGNALED(status):
            return "killed", f"exit {os.waitstatus_to_exitcode(status)}", None
        number = os.WTERMSIG(status)
        return ("hung", "", None) if number in ALARMS else ("killed", signal.Signals(number).name, None)


def main(folder: Path, seconds: float, readers: Mapping[str, Reader]) -> None:
    """Read requests from stdin until it ends, and write verdicts to stdout."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a reader prints must not come between the verdicts
    requests = sys.stdin.buffer
    imported: set[str] = set()
    worker = None
    while True:
        try:
            form, case = receive(requests)
        except EOFError:
            break
        if form not in imported:  # before the fork, so that a new worker starts at once
            if worker is not None:
                worker.requests.close()
                worker.end()
                worker = None
            _warm_up(form, folder, readers)
            imported.add(form)
        if worker is None:
            worker = Worker(folder, seconds, readers)
        verdict = worker.read((form, case))
        if verdict is None:
            verdict, worker = worker.end(), None
        send(answers, verdict)
    if worker is not None:
        worker.requests.close()
        worker.end()


def _warm_up(form: str, folder: Path, readers: Mapping[str, Reader]) -> None:
    """Import what a format's reader needs, by reading a sound case in this process. A refusal ends it."""
    from tests.fuzz.sound import sound_case

    place = folder / "input"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with contextlib.redirect_stdout(sys.stderr):
        readers[form](sound_case(form), place)


def _work(requests: BinaryIO, answers: BinaryIO, folder: Path, seconds: float, readers: Mapping[str, Reader]) -> None:
    """Read inputs, in the forked process. Never return."""
    code = 1
    try:
        warnings.simplefilter("ignore")
        logging.disable()
        for number in ALARMS:
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))
        while True:
            form, case = receive(requests)
            place = folder / "input"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            signal.setitimer(signal.ITIMER_PROF, seconds)  # of the processor; the signal ends the process
            signal.setitimer(signal.ITIMER_REAL, WAITING * seconds)
            verdict = _judge(readers[form], case, place)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            send(answers, verdict)
    except (EOFError, BrokenPipeError):
        code = 0
    finally:
        os._exit(code)


def _judge(read: Reader, case: dict[str, bytes], place: Path) -> tuple[str, str, Any, str]:
    from distill.errors import DistillError
    from tests.fuzz.readers import Faulty, Refused

    try:
        return "accepted", "", read(case, place), ""
    except Refused as error:  # what a command printed
        return "refused", _text(error), {"text": _text(error)}, ""
    except DistillError as error:
        return "refused", _text(error), None, ""
    except Faulty as error:
        lines = str(error).rstrip().splitlines()
        frames = [line for line in lines if "/distill/" in line and line.lstrip().startswith("File ")]
        kind = "memory" if lines[-1].startswith("MemoryError") else "traceback"
        return kind, lines[-1][:200], None, _shorten(frames[-1] if frames else "")
    except BaseException as error:  # noqa: BLE001 - whatever arrives here is what is looked for
        kind = "memory" if isinstance(error, MemoryError) else "traceback"
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/distill/" in frame.filename]
        where = f'File "{frames[-1].filename}", line {frames[-1].lineno}, in {frames[-1].name}' if frames else ""
        return kind, f"{type(error).__name__}: {_text(error)[:200]}", None, _shorten(where)


def _text(error: BaseException) -> str:
    return str(error)[:4000].encode("utf-8", "backslashreplace").decode()


def _shorten(frame: str) -> str:
    return frame.strip().rpartition("/distill/")[2].replace('", line ', ":")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), importlib.import_module(sys.argv[3]).READERS)
