"""Plain tars: where their members lie, how members are appended, and open files that may be forked.

A tar from elsewhere is believed only as far as its headers are checked here: the checksum of each, sizes that lie
within the file, and extended headers of bounded length. Each step of the reader goes forward in the file.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from distill.errors import DataError
from distill.outside import open_regular

TAR_BLOCK = 512  # tar's unit: a header is one block, and two blocks of zeros end the file
END_MARK = bytes(TAR_BLOCK)
NAME_FIELD = 100  # bytes of a member's name in its header
MOST_SUFFIX_BYTES = len(".jpeg")  # of a photo or its annotations
MAX_OPEN_FILES = 16  # per process and thread

# Fields of a header block: POSIX.1-1988 ustar
NAME, SIZE, CHECKSUM, KIND = slice(0, NAME_FIELD), slice(124, 136), slice(148, 156), slice(156, 157)
MAGIC, PREFIX = slice(257, 263), slice(345, 500)
POSIX_MAGIC = b"ustar\0"  # GNU's magic is "ustar ", and it uses the field of the prefix for times
BLANK_CHECKSUM = 8 * ord(" ")  # the checksum counts its own field as spaces
BASE_256 = 0x80  # first byte of a number that is not octal but binary: GNU's format
SIGN_BIT = 0x100  # old tars sum signed bytes

FILES = b"\x000" + b"7"  # regular files: of V7, of POSIX, and contiguous ones
LINKS = b"12"  # hard and symbolic
BARE = LINKS + b"3456"  # links, devices, folders and pipes have no content, whatever their size field says
GNU_NAME, GNU_TARGET, PAX_GLOBAL = b"L", b"K", b"g"  # K: the target of a link
EXTRA = GNU_NAME + GNU_TARGET + PAX_GLOBAL + b"xX"  # headers that say more of the member after them; x, X: PAX, Solaris
IN_PARTS = b"SM"  # GNU's sparse files, and parts of a file on several volumes
PAX_SPARSE = b"GNU.sparse."  # GNU's sparse files in PAX headers
MOST_EXTRA_BYTES = 1 << 20  # of one extended header: names have 4,096 bytes at most, attributes 65,536
MOST_DIGITS = 20  # of a number in an extended header


class TarMember(NamedTuple):
    """A file in a tar: its name, and the byte range of its content. A link has no content.

    Bytes of the name that are no UTF-8 are surrogates, as in names that the operating system gives.
    """

    name: str
    offset: int
    size: int
    is_link: bool = False


class TarHeader(NamedTuple):
    """What a header block says of its member: the name, the bytes of its content, and tar's type flag."""

    name: bytes
    size: int
    kind: bytes


class TarHeaderError(ValueError):
    """A block that is no header of a tar."""


def list_members(open_tar: Callable[[], BinaryIO], origin: str) -> list[TarMember]:
    """Return the files and links of an uncompressed tar in their order. Only its headers are read.

    Args:
        open_tar: opens the tar for reading.
        origin: names the tar in errors.

    Raises:
        DataError: the file is no tar, or is cut off, even between two members, where tar readers see a normal end. Or
            a member is stored in parts.
    """
    try:
        with open_tar() as file:
            return list(_members(file, origin))
    except (TarHeaderError, OSError) as error:
        raise DataError(f"{origin}: no tar, or a damaged one ({error}); fetch or build the shard again") from error


def parse_header(block: bytes) -> TarHeader:
    """Read a header block of 512 bytes. Raises TarHeaderError when it is none."""
    written = _octal(block[CHECKSUM])
    counted = sum(block) - sum(block[CHECKSUM]) + BLANK_CHECKSUM
    if written != counted and written != _signed_sum(block):
        raise TarHeaderError("the checksum of a header is wrong")
    kind, name = block[KIND], block[NAME].split(b"\0", 1)[0]
    if block[MAGIC] == POSIX_MAGIC and block[PREFIX][0]:
        name = block[PREFIX].split(b"\0", 1)[0] + b"/" + name
    field = block[SIZE]
    return TarHeader(name, _base_256(field) if field[0] >= BASE_256 else _octal(field), kind)


def append_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file without owner and time, so that equal content gives equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def header_fits(block: bytes, key: str, size: int) -> bool:
    """Return whether the header block before a member's content is of a file of this key and size.

    A name of over 100 bytes is in an extended header, and writers differ in what they put here: any name fits then. A
    size of 0 stands where an extended header gives it.
    """
    try:
        header = parse_header(block)
    except TarHeaderError:
        return False
    if header.kind not in FILES or header.size not in (size, 0):
        return False
    expected = key.encode()
    if 0 not in block[NAME] or len(expected) + MOST_SUFFIX_BYTES > NAME_FIELD:
        return True
    stem = header.name.rsplit(b"/", 1)[-1].split(b".", 1)[0]
    return stem in (expected, key.encode("ascii", "replace"))


class _Extra(NamedTuple):
    """What extended headers say of the member that follows them. None: they do not say it."""

    name: bytes | None = None
    size: int | None = None
    in_parts: bool = False


def _members(file: BinaryIO, origin: str) -> Iterator[TarMember]:
    """Yield the files and links of an open tar."""
    end = file.seek(0, io.SEEK_END)
    offset, num_members, extra = 0, 0, _Extra()
    while (block := _read(file, offset, TAR_BLOCK, end)) != END_MARK:
        if len(block) < TAR_BLOCK:
            raise _cut_off(origin, offset, num_members)
        header = parse_header(block)
        is_extra = header.kind in EXTRA
        size = 0 if header.kind in BARE else header.size if is_extra or extra.size is None else extra.size
        offset += TAR_BLOCK
        if size > end - offset:
            raise DataError(
                f"{origin}: cut off, or damaged: member {num_members + 1} has {size:,} bytes, and only "
                f"{end - offset:,} follow its header; fetch or build it again"
            )
        if is_extra:
            extra = _with(extra, header.kind, _extra_content(file, offset, size, end))
        else:
            name = (header.name if extra.name is None else extra.name).decode("utf-8", "surrogateescape")
            if extra.in_parts or header.kind in IN_PARTS:
                raise DataError(f"{origin}: {ascii(name)} is stored in parts; pack the shard again, not sparse")
            is_folder = header.kind == b"\0" and name.endswith("/")  # V7 has no flag for folders
            if (header.kind in FILES and not is_folder) or header.kind in LINKS:
                yield TarMember(name, offset, size, header.kind in LINKS)
            num_members += 1
            extra = _Extra()
        offset += size + -size % TAR_BLOCK
    if extra != _Extra():
        raise TarHeaderError("an extended header without the member that it extends")


def _read(file: BinaryIO, offset: int, size: int, end: int) -> bytes:
    """Return `size` bytes from `offset` on, or fewer at the end of the file."""
    if offset >= end:
        return b""
    file.seek(offset)
    return file.read(size)


def _cut_off(origin: str, offset: int, num_members: int) -> DataError:
    if offset == 0:
        return DataError(f"{origin}: no tar, it is too short; fetch or build the shard again")
    return DataError(
        f"{origin}: cut off after {num_members} members (the end mark is missing); fetch or build it again"
    )


def _extra_content(file: BinaryIO, offset: int, size: int, end: int) -> bytes:
    if size > MOST_EXTRA_BYTES:
        raise TarHeaderError(f"an extended header of {size:,} bytes, and {MOST_EXTRA_BYTES:,} are allowed")
    return _read(file, offset, size, end)


def _with(extra: _Extra, kind: bytes, content: bytes) -> _Extra:
    """Add to `extra` what an extended header says."""
    if kind == GNU_TARGET:
        return extra
    if kind == GNU_NAME:
        return extra._replace(name=content.split(b"\0", 1)[0])
    records = dict(_pax_records(content))
    said = _Extra(
        name=records.get(b"path") or extra.name,
        size=_decimal(records[b"size"]) if records.get(b"size") else extra.size,
        in_parts=extra.in_parts or any(key.startswith(PAX_SPARSE) for key in records),
    )
    if kind == PAX_GLOBAL:
        if said != extra:
            raise TarHeaderError("one name or size for all members")
        return extra
    return said


def _pax_records(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the records "LENGTH KEY=VALUE\\n" of a PAX header; the length counts the complete record."""
    at = 0
    while at < len(content) and content[at]:  # zeros may fill the block
        digits = content[at : at + MOST_DIGITS].split(b" ", 1)[0]
        end = at + _decimal(digits)
        key, equals, value = content[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or content[end - 1 : end] != b"\n":
            raise TarHeaderError("an extended header without its form")
        yield key, value
        at = end


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > MOST_DIGITS:
        raise TarHeaderError(f"{ascii(digits[:MOST_DIGITS])} is no number")
    return int(digits)


def _octal(field: bytes) -> int:
    """Return a number in octal digits, which ends at a zero or a space. An empty field is 0."""
    digits = field.split(b"\0", 1)[0].strip(b" ")
    try:
        if digits.isdigit() or not digits:
            return int(digits or b"0", 8)
    except ValueError:  # an 8 or a 9
        pass
    raise TarHeaderError(f"{ascii(field)} in a header is no number")


def _base_256(field: bytes) -> int:
    if field[0] != BASE_256:
        raise TarHeaderError("a negative size, or one beyond all files")
    return int.from_bytes(field[1:], "big")


def _signed_sum(block: bytes) -> int:
    """Return the checksum as old tars wrote it."""
    summed = block[: CHECKSUM.start] + block[CHECKSUM.stop :]
    return sum(summed) - SIGN_BIT * sum(byte >= BASE_256 for byte in summed) + BLANK_CHECKSUM


class OpenFiles:
    """Files that each process and thread opens when it first reads them. The last few stay open.

    The object may be forked or pickled: open files are not passed on.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, path: Path) -> BinaryIO:
        """Return the open file, at an arbitrary position. Raises OSError, also for a pipe or a device."""
        files = self._files()
        if path in files:
            files.move_to_end(path)
        else:
            files[path] = open_regular(path)
            if len(files) > MAX_OPEN_FILES:
                files.popitem(last=False)[1].close()
        return files[path]

    def close(self) -> None:
        """Close the files that this thread opened."""
        files = self._files()
        while files:
            files.popitem()[1].close()

    def _files(self) -> OrderedDict[Path, BinaryIO]:
        if getattr(self._local, "process", None) != os.getpid():
            # After a fork a child's descriptors share their position with the parent's, so they are not used
            self._local.process = os.getpid()
            self._local.files = OrderedDict()
        files: OrderedDict[Path, BinaryIO] = self._local.files
        return files

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[()]]:
        return OpenFiles, ()
