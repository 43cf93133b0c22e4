"""Reading what comes from outside: bounded files, and JSON that becomes typed objects or one clear error.

A format is declared once, as a msgspec.Struct or a type with bounds, where its reader lives. `read_json` and `convert`
check types, ranges, lengths and depth; what they return can be believed. Everything else that comes from outside, such
as headers of tars, is read by one reader of its own that raises the same errors.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec
import yaml
from msgspec import Meta

from distill.errors import DataError, DistillError

T = TypeVar("T")

MOST_PIXELS = 1 << 16  # of a photo's side: JPEG's limit, 65,535, and PNGs are no larger in practice
MOST_PHOTO_PIXELS = 178_956_970  # of a photo: where Pillow refuses to decode, by its defaults
MOST_JSON_BYTES = 4 << 30  # LVIS's largest file has 1.2 GB
MOST_YAML_BYTES = 1 << 17  # a recipe has a few kilobytes, and PyYAML reads about 30 a second
MOST_YAML_VALUES = 100_000  # with aliases written out: `&a` and `*a` make a tree of billions out of ten lines
MOST_YAML_DEPTH = 50
HALVES = re.compile("[\ud800-\udfff]")  # of characters: UTF-8 has none, and no file or terminal takes them
NO_UNICODE = "a text in it has halves of characters, such as \\ud800"
INT64 = (1 << 63) - 1
IN_WORDS = re.compile(r"`str` matching regex .*?\(\?#(.+?)\).*?(?= - at `|$)")  # of an error of msgspec
# Opening a pipe waits for its writer otherwise; for files it says nothing
WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)

Side = Annotated[int, Meta(ge=1, le=MOST_PIXELS)]  # of a photo, in pixels
Count = Annotated[int, Meta(ge=0, le=1 << 40)]
Identity = Annotated[int, Meta(ge=-INT64, le=INT64)]  # of an image, an annotation or a category
Coordinate = Annotated[float, Meta(ge=-1e6, le=1e6)]  # in pixels; annotators draw a little over the border
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Name = Annotated[str, Meta(min_length=1, max_length=4096)]
# A pattern begins with a comment of regular expressions, which stands for it in errors. Control characters end lines,
# and terminals obey them.
Line = Annotated[str, Meta(max_length=4096, pattern=r"(?#text without control characters)\A[^\x00-\x1f\x7f-\x9f]*\Z")]
Bytes = Annotated[int, Meta(ge=0, le=INT64)]  # of a file


def read_bytes(
    path: Path, what: str, mend: str, *, most: int = MOST_JSON_BYTES, raises: type[DistillError] = DataError
) -> bytes:
    """Read a regular file of at most `most` bytes.

    Args:
        what: names the file in errors, such as "annotations".
        mend: the end of the errors, such as "give a COCO-format JSON".
    Raises:
        DistillError: of the class `raises`: the file is absent, is a folder, a pipe or a device, is too large, or
            cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise raises(f"{path}: the {what} must be a file, and this is none; {mend}")
        if status.st_size > most:
            raise raises(f"{path}: {status.st_size:,} bytes are too many for the {what} (at most {most:,}); {mend}")
        return path.read_bytes()
    except OSError as error:
        raise raises(f"{path}: the {what} cannot be read ({error.strerror}); {mend}") from error
    except ValueError as error:  # a NUL in the name
        raise raises(f"{str(path)!r}: no name of a file ({error}); {mend}") from error


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without a buffer. A pipe is not waited for.

    Raises:
        OSError: the file is absent or cannot be read, or the path is a folder, a pipe or a device.
    """
    file = open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | WITHOUT_WAITING))  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "this is a pipe or a device, and no file", str(path))
    return file


def parse_json(
    data: bytes,
    form: type[T],
    origin: str,
    mend: str,
    *,
    lax: bool = False,
    raises: type[DistillError] = DataError,
) -> T:
    """Parse JSON as `form`. Fields that the form does not have are ignored.

    Args:
        form: a msgspec.Struct or another type that msgspec decodes.
        origin: names the file in errors.
        mend: the end of the errors.
        lax: also take 139.0 for 139, and "139" for either, as exports of annotations hold them.
    Raises:
        DistillError: of the class `raises`: no JSON, or not of this form; the message names the place in the file.
    """
    try:
        return msgspec.json.decode(data, type=form, strict=not lax)
    except msgspec.ValidationError as error:
        raise raises(f"{origin}: {reason(error)}; {mend}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise raises(f"{origin}: not JSON ({reason(error)}{_no_number(data, error)}); {mend}") from error
    except RecursionError as error:
        raise raises(f"{origin}: lists or objects in it are nested too deeply; {mend}") from error


def read_json(
    path: Path, form: type[T], what: str, mend: str, *, lax: bool = False, raises: type[DistillError] = DataError
) -> T:
    """Read a JSON file as `form`. See `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, what, mend, raises=raises), form, str(path), mend, lax=lax, raises=raises)


def read_scalars(path: Path) -> list[dict[str, int | float]]:
    """Read the lines of a run's metrics.jsonl: `step` and numbers by name. A line that a kill cut short is left out.

    NaN, which a failed training logs, stays.

    Raises:
        DataError: the file is no file, or a line has something else than numbers, or no step.
    """
    mend = "restore it, or remove it"
    lines = []
    for number, text in enumerate(read_bytes(path, "metrics of a run", mend).splitlines(), start=1):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):  # the process died while writing it
            continue
        origin = f"{path}: line {number}"
        try:
            lines.append(msgspec.convert(row, dict[str, int | float]))
        except msgspec.ValidationError as error:
            raise DataError(f"{origin}: {reason(error)}; {mend}") from error
        if not 0 <= lines[-1].get("step", -1) <= INT64:
            raise DataError(f"{origin}: it names no step; {mend}")
    return lines


def parse_yaml(text: str | bytes, origin: str, mend: str, *, raises: type[DistillError] = DataError) -> Any:
    """Parse YAML to dicts, lists, texts and numbers.

    Raises:
        DistillError: of the class `raises`: no YAML, too large, nested too deeply, or blown up by aliases.
    """
    try:
        if len(text) > MOST_YAML_BYTES:
            raise raises(f"{origin}: {len(text):,} bytes are too many (at most {MOST_YAML_BYTES:,}); {mend}")
        content = yaml.safe_load(text.decode("utf-8") if isinstance(text, bytes) else text)
        _check_size(content, origin, mend, raises)
        return content
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # also numbers of Python's that are none: a year 0
        raise raises(f"{origin}: not YAML ({' '.join(str(error).split())[:300]}); {mend}") from error
    except RecursionError as error:
        raise raises(f"{origin}: lists or sections in it are nested too deeply; {mend}") from error
    except (TypeError, AttributeError, LookupError) as error:  # a list as a key, a tag without a value
        raise raises(f"{origin}: not YAML of plain values ({error}); {mend}") from error


def read_yaml(path: Path, what: str, mend: str, *, raises: type[DistillError] = DataError) -> Any:
    """Read a YAML file. See `read_bytes` and `parse_yaml`."""
    return parse_yaml(read_bytes(path, what, mend, most=MOST_YAML_BYTES, raises=raises), str(path), mend, raises=raises)


def _check_size(content: Any, origin: str, mend: str, raises: type[DistillError]) -> None:
    """Refuse a tree that is too deep, has too many values, or text that is none. What aliases repeat counts again."""
    num_values, level = 0, [content]
    for _ in range(MOST_YAML_DEPTH):
        level = [node for node in level if isinstance(node, (dict, list))]
        if not level:
            return
        num_values += sum(map(len, level))
        if num_values > MOST_YAML_VALUES:
            raise raises(f"{origin}: more than {MOST_YAML_VALUES:,} values, aliases written out; {mend}")
        texts = (item for node in level for item in ([*node, *node.values()] if isinstance(node, dict) else node))
        if any(isinstance(text, str) and HALVES.search(text) for text in texts):
            raise raises(f"{origin}: {NO_UNICODE}; {mend}")
        level = [item for node in level for item in (node.values() if isinstance(node, dict) else node)]
    raise raises(f"{origin}: lists or sections in it are nested too deeply; {mend}")


def convert(content: Any, form: type[T], origin: str, mend: str, *, raises: type[DistillError] = DataError) -> T:
    """Check an object of dicts, lists and numbers, such as YAML's or a checkpoint's, and return it as `form`.

    NaN and infinities are refused wherever they stand, which JSON cannot hold but YAML and pickles can.
    """
    try:
        check_finite(content, origin, mend, raises=raises)
        return msgspec.convert(content, type=form)
    except msgspec.ValidationError as error:
        raise raises(f"{origin}: {reason(error)}; {mend}") from error
    except UnicodeEncodeError as error:
        raise raises(f"{origin}: {NO_UNICODE}; {mend}") from error
    except RecursionError as error:
        raise raises(f"{origin}: lists or objects in it are nested too deeply; {mend}") from error


def check_finite(content: Any, origin: str, mend: str, *, raises: type[DistillError] = DataError) -> None:
    """Refuse an object of dicts and lists that holds NaN or an infinity."""
    if isinstance(content, float) and not math.isfinite(content):
        raise raises(f"{origin}: {content} in it is no finite number; {mend}")
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, (list, tuple)):
        for item in content:
            check_finite(item, origin, mend, raises=raises)


def inside(folder: Path, name: str, origin: str, *, raises: type[DistillError] = DataError) -> Path:
    """Return the path of a file that `name`, from outside, places below `folder`.

    Raises:
        DistillError: of the class `raises`: the name is absolute, or leaves the folder by "..", or holds a NUL.
    """
    parts = Path(name).parts
    if "\0" in name or not parts or Path(name).is_absolute() or ".." in parts:
        raise raises(
            f"{origin}: the file name {name!r} does not lie in {folder}; use names below the folder, without '..'"
        )
    return folder / name


def reason(error: Exception) -> str:
    """Return the message of msgspec in words, in one line: "Expected `int`, got `str` at $.images[0].height"."""
    text = " ".join(str(error).split()).rstrip(".")
    return IN_WORDS.sub(r"\1", text).replace(" - at `", " at `")


def _no_number(data: bytes, error: Exception) -> str:
    """Return a hint where the invalid character begins NaN or an infinity, which Python writes and JSON has not."""
    place = re.search(r"byte (\d+)", str(error))
    found = place and re.compile(rb"-?(NaN|Infinity)").match(data, int(place[1]))
    return f": {found[0].decode()} is no number of JSON" if found else ""
