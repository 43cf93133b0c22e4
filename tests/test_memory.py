"""Freed memory is kept where that was asked for, and the peak is the most that the process held."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distill.memory import peak_memory

COUNT_FAULTS = """
import resource, sys
import torch
from distill.memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(8):
    torch.ones(1 << 24)
before = faults()
for _ in range(8):
    torch.ones(1 << 24)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the GNU C library")
def test_a_large_tensor_takes_the_memory_of_the_one_before():
    faults = {}
    for name in ("kept", "given back"):
        done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, name], capture_output=True, text=True, check=True)
        faults[name] = int(done.stdout)
    assert faults["kept"] < faults["given back"] / 8


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_memory()
    held = bytearray(200 << 20)
    held[:: 1 << 12] = bytes(len(held[:: 1 << 12]))
    assert peak_memory() - before >= 0 and peak_memory() >= len(held)
