"""A measurement in a process that does nothing else, so that its peak memory can be told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from distill.errors import DistillError

SHOWN_CHARACTERS = 500  # of a failed process's stderr: its end


def run_formulation(module: str, formulation: str, *arguments: str, less: str = "") -> dict[str, Any]:
    """Run `python -m MODULE FORMULATION ARGUMENTS` and return the JSON object that it prints.

    Args:
        less: what to ask for less of when the process runs out of memory, such as "--images or --masks".
    Raises:
        DistillError: the process failed; the message ends with what it said.
    """
    command = [sys.executable, "-m", module, formulation, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        cause = done.stderr.strip()[-SHOWN_CHARACTERS:]
        if done.returncode == -signal.SIGKILL:
            cause = f"it ran out of memory; ask for fewer {less}" if less else "it ran out of memory"
        raise DistillError(f"the formulation '{formulation}' failed: {cause}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found
