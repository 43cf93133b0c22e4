"""Fuzzing of the tar and run-length readers that follows their branches, by atheris (`pip install atheris`).

    python -m tests.fuzz.guided tar -max_total_time=60
    python -m tests.fuzz.guided rle -max_total_time=60

Further options are libFuzzer's. It ends with a traceback and the input when a reader raises anything but its own error.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["distill.data.shards.tar", "distill.data.rle", "tarfile"]):
    from distill.data.rle import decode_mask, to_rle
    from distill.data.shards.tar import list_members

from distill.errors import DistillError
from tests.fuzz import cases
from tests.fuzz.formats import long_names


def read_tar(data: bytes) -> None:
    """Read the headers of a tar."""
    list_members(lambda: io.BytesIO(data), "a.tar")


def read_rle(data: bytes) -> None:
    """Read a segmentation: a compressed code, runs, or polygons, by the first byte."""
    provider = atheris.FuzzedDataProvider(data)
    hw = provider.ConsumeIntInRange(1, 64), provider.ConsumeIntInRange(1, 64)
    form = provider.ConsumeIntInRange(0, 2)
    rest = provider.remaining_bytes()
    if form == 0:
        segmentation: object = {"size": list(hw), "counts": provider.ConsumeBytes(rest).decode("latin-1")}
    elif form == 1:
        segmentation = {"size": list(hw), "counts": provider.ConsumeIntListInRange(rest // 4, -(2**40), 2**40)}
    else:
        segmentation = [provider.ConsumeFloatList(rest // 8)]
    rle = to_rle(segmentation, hw, "an annotation")
    if rle is not None:
        assert decode_mask(rle).shape == hw


READERS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "tar": (read_tar, [cases.shard(), *map(long_names, (1, 2))]),
    "rle": (read_rle, [b"\x18\x20\x00" + cases.RLE["counts"].encode()]),
}


def main() -> None:
    """Read inputs until an error, or until libFuzzer's options end it."""
    read, seeds = READERS[sys.argv.pop(1)]

    def one_input(data: bytes) -> None:
        try:
            read(data)
        except DistillError:
            return

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, corpus], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
