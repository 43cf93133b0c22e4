"""Readers that do what no reader of the product may, under names of formats, for the tests of the fuzz suite."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.text import duration


def misbehave(files: Mapping[str, bytes], folder: Path) -> Any:
    """Do what the file says."""
    deed = files.get("deed", b"").decode()
    if deed == "refuse":
        raise DataError("no")
    if deed == "raise":
        return duration("long")  # type: ignore[arg-type] # a traceback inside the product
    if deed == "allocate":
        return len(bytearray(8 << 30))
    if deed == "grow":
        held = []
        while True:
            held.append(bytes(1 << 24))  # zeros that are not touched cost no time
    if deed == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if deed == "compute":
        while True:
            pass
    if deed == "sleep":
        time.sleep(1000)
    return {"text": deed}


READERS = {"tar": misbehave}
