"""From the published files of a public set to image shards: check the files, unpack them, build or index the shards."""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.data.catalogue import LocatedSplit, PublishedFile, load_dataset
from distill.data.coco import CocoSet
from distill.data.folder import PhotoFolder
from distill.data.lvis import LvisSet
from distill.data.shards.build import BuildReport, build_coco_shards, build_folder_shards
from distill.data.shards.index import INDEX_NAME, ShardIndex
from distill.errors import DataError
from distill.files import TEMPORARY_SUFFIX, hash_file, write_errors
from distill.lock import contents
from distill.text import progress_bar

SMALL_FILE = 64 << 20  # bytes; the hash of a larger file is checked on request alone
# What zipfile raises for an archive that is cut or damaged
ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class LocatedFile:
    """A published file, and the folder of its set, in which it lies or is to lie."""

    folder: Path
    file: PublishedFile

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return self.folder / self.file.name

    @property
    def unpacked(self) -> Path | None:
        """What an archive unpacks to; None if the file is no archive."""
        return None if self.file.unpacks_to is None else self.folder / self.file.unpacks_to

    @property
    def addresses(self) -> str:
        """Where the file is published."""
        return " or ".join((self.file.url, *self.file.mirrors))


@dataclass(frozen=True)
class Prepared:
    """A split whose image shards are ready in `shards`; report: of the build, None if nothing was built."""

    located: LocatedSplit
    shards: Path
    report: BuildReport | None = None


def prepare_splits(
    splits: Sequence[LocatedSplit], *, out: Path | None = None, verify: bool = False, shown: bool = True
) -> list[Prepared]:
    """Check and unpack the files of some splits of one set, and build or index their image shards.

    A split whose shards are finished is left as it is. An archive is unpacked whole or not at all, and so are the
    shards of a split.

    Args:
        out: where to write shards, in a folder of each split's name; None: in the set's own folder.
        verify: check the hashes of large files too, also of what is still there of finished splits.
        shown: whether progress is shown on stderr.
    Raises:
        DataError: files are missing or wrong (all of them are named), or see `build_coco_shards`.
    """
    directories = {split.split.name: split.shards if out is None else out / split.split.name for split in splits}
    finished = {name for name, directory in directories.items() if _is_finished(directory)}
    files = _distinct(split for split in splits if split.split.name not in finished)
    present = [file for file in _distinct(splits) if file.path.is_file()] if verify else []
    check_files(list(dict.fromkeys([*files, *present])), verify=verify, shown=shown)
    for file in files:
        if file.unpacked is not None and not file.unpacked.exists():
            unpack(file, shown=shown)
    prepared = []
    for split in splits:
        name = split.split.name
        report = None if name in finished else _build(split, directories[name], shown=shown)
        prepared.append(Prepared(split, directories[name], report))
    return prepared


def files_of(located: LocatedSplit) -> list[LocatedFile]:
    """Return the files that a split needs, those of the set that has its photos included."""
    dataset, split = located.dataset, located.split
    files = [LocatedFile(located.folder(dataset.name), dataset.files[name]) for name in split.files]
    if dataset.photos_of is None:
        return files
    photos_of = load_dataset(dataset.photos_of, located.root)
    for name in split.photo_files:
        if name not in photos_of.files:
            raise DataError(f"'{dataset.name}' needs '{name}' of '{photos_of.name}', which lists no such file")
    return files + [LocatedFile(located.folder(photos_of.name), photos_of.files[name]) for name in split.photo_files]


def check_files(files: Sequence[LocatedFile], *, verify: bool = False, shown: bool = True) -> None:
    """Check that files are present, of the published size, and of the published hash.

    Hashes are checked of small files, or of all with `verify`. An archive that is unpacked already may be absent.

    Raises:
        DataError: names each file that is missing or wrong, and where to get it.
    """
    problems = [problem for file in files if (problem := _file_problem(file, verify=verify, shown=shown)) is not None]
    if problems:
        count = "1 file is" if len(problems) == 1 else f"{len(problems)} files are"
        raise DataError("\n".join([f"{count} missing or wrong:", *(f"  {problem}" for problem in problems)]))


def unpack(located: LocatedFile, *, shown: bool = True) -> None:
    """Unpack a zip so that what it holds at its top appears whole or not at all.

    Raises:
        DataError: the archive is damaged or holds something else, or the disk is full.
    """
    archive, target, name = located.path, located.unpacked, located.file.unpacks_to
    assert target is not None and name is not None
    temporary = located.folder / f".{archive.name}{TEMPORARY_SUFFIX}"
    shutil.rmtree(temporary, ignore_errors=True)  # what a process that was killed left behind
    try:
        with write_errors(target, note="nothing was unpacked"), zipfile.ZipFile(archive) as content:
            members = content.infolist()
            with progress_bar(f"unpacking {archive.name}", len(members), shown=shown) as advance:
                for member in members:
                    content.extract(member, temporary)
                    advance(1)
            if not (temporary / name).exists():
                raise DataError(f"{archive}: holds no '{name}'; download it again from {located.addresses}")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / name, target)
    except ARCHIVE_ERRORS as error:
        raise DataError(f"{archive}: damaged ({error}); download it again from {located.addresses}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _file_problem(located: LocatedFile, *, verify: bool, shown: bool) -> str | None:
    """Return what is wrong with a file, and the mend; None if nothing is."""
    file, path = located.file, located.path
    where = located.addresses
    if file.is_pattern:
        return None if any(located.folder.glob(file.name)) else f"{path}: no such file; get some from {where}"
    if not path.is_file():
        is_unpacked = located.unpacked is not None and located.unpacked.exists()
        return None if is_unpacked else f"{path}: absent; download it from {where}"
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"{path}: has {size:,} bytes, published are {file.size:,}; download it again from {where}"
    algorithm, published = ("sha256", file.sha256) if file.sha256 is not None else ("md5", file.md5)
    if published is not None and (verify or size <= SMALL_FILE):
        with progress_bar(f"hashing {path.name}", size, shown=shown and size > SMALL_FILE) as advance:
            found = hash_file(path, algorithm, advance=advance)
        if found != published:
            return f"{path}: its {algorithm} is {found}, published is {published}; download it again from {where}"
    return None


def _distinct(splits: Iterable[LocatedSplit]) -> list[LocatedFile]:
    """Return the files of several splits, each once."""
    return list(dict.fromkeys(file for split in splits for file in files_of(split)))


def _is_finished(directory: Path) -> bool:
    """Return whether a folder holds image shards with an index of their own."""
    return (directory / INDEX_NAME).is_file() and ShardIndex.open(directory).is_saved


def _build(located: LocatedSplit, directory: Path, *, shown: bool) -> BuildReport | None:
    """Build the shards of a split, or index those that it is published as."""
    if located.dataset.kind == "tars":
        ShardIndex.build(located.images).save()
        return None
    if directory.is_dir() and contents(directory):
        raise DataError(f"{directory}: not empty, and holds no finished shards; empty it, or give another --out")
    temporary = directory.with_name(f".{directory.name}{TEMPORARY_SUFFIX}")
    shutil.rmtree(temporary, ignore_errors=True)  # what a process that was killed left behind
    try:
        report = _write_shards(located, temporary, shown=shown)
        with write_errors(directory):
            with contextlib.suppress(FileNotFoundError):
                directory.rmdir()  # an empty folder gives way; one that holds something is refused
            os.replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _write_shards(located: LocatedSplit, directory: Path, *, shown: bool) -> BuildReport:
    per_shard = located.dataset.samples_per_shard
    if located.annotations is None:
        folder = PhotoFolder(located.images)
        with progress_bar(str(located.name), len(folder), shown=shown) as advance:
            return build_folder_shards(folder, directory, samples_per_shard=per_shard, advance=advance)
    read = LvisSet if located.dataset.kind == "lvis" else CocoSet
    coco_set = read(located.images, located.annotations)
    with progress_bar(str(located.name), len(coco_set), shown=shown) as advance:
        return build_coco_shards(coco_set, directory, samples_per_shard=per_shard, advance=advance)
