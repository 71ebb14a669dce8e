"""The files of an index, looked at before Lance opens them: nothing leads elsewhere, and which version is whole.

A version of a Lance table is a manifest in `_versions`, which names the files it consists of. It is read here, as far
as that goes, by the field numbers of Lance's `table.proto`: Lance itself follows a path that a manifest names, to
wherever it leads.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

from dsh_cli.errors import IndexStateError, reason
from dsh_cli.files import sync_folder
from dsh_cli.index.place import local, reached

if TYPE_CHECKING:
    from lance.file import LanceFileSession

VERSIONS = "_versions"
BEGUN = "_begun"  # an empty file, there from before the first file of an index is written until its first commit
TO_SEE_TO = "bucket, credentials, endpoint or network"  # where an index in object storage cannot be reached

_HINT = "latest_version_hint.json"  # in `_versions`: {"version": 3}, written by Lance after each commit
_HINT_BYTES = 1 << 8  # more than it has
_NEWEST = (1 << 64) - 1  # less the number of a version, of 20 digits, is its name, so that the newest is listed first
_MANIFEST = re.compile(r"(\d+)\.manifest")
_TRANSACTION = re.compile(r"(\d+)-.*\.txn")  # made on that version, written before the next one's manifest
_PATH = re.compile(rb"[/\\:%]|\.\.")  # what no name of a file in a folder of Lance's has
_LARGEST = 1 << 21  # bytes of a manifest, with some 100 for each commit of rows: read in seconds, whatever they are


@dataclass(frozen=True)
class Version:
    """A version as its manifest says."""

    number: int
    files: tuple[tuple[str, int | None, bytes], ...]  # path below the index, bytes where known, and how it ends


@dataclass(frozen=True)
class Standing:
    """Where an index stands on disk."""

    whole: int | None  # the newest version that is whole
    damaged: tuple[Path, ...] = ()  # manifests of newer versions, which are not
    readable: int | None = None  # the newest whose manifest is whole, of which rows may be left
    vanished: bool = False  # a newer version was committed whose manifest is not there

    @property
    def is_newest(self) -> bool:
        """Whether nothing newer than the version that is whole was committed."""
        return not self.damaged and not self.vanished


def look_at(folder: str, uri: str, every: bool) -> Standing:
    """Which version of a local index is whole: its manifest, and all files that this one names.

    Args:
        folder: where it lies.
        uri: what messages call it.
        every: look through all versions, as before a change, which cleans up after those that are old.

    Raises:
        IndexStateError: a link, or a path in a manifest, leads out of it; or it cannot be reached.
    """
    try:
        _require_no_links(folder, uri)
        if os.path.isdir(os.path.join(folder, "_refs", "branches")):  # which Lance cleans up in too
            raise _outside(uri, "a branch")
        while True:
            committed = _committed(folder)  # before the versions are listed, for a newer one may come in between
            listed = manifests(folder)
            found = _standing(folder, uri, listed, every)
            newest = max((number for number, _ in listed), default=0)
            found = replace(found, vanished=committed > newest or (not listed and _may_be_committed(folder)))
            if found.is_newest or manifests(folder) == listed:  # else another process has gone on meanwhile
                return found
    except OSError as error:
        raise unreachable(uri, f"{reason(error)}, {error.filename}") from error


def _standing(folder: str, uri: str, listed: list[tuple[int, Path]], every: bool) -> Standing:
    whole, readable, damaged = None, None, list[Path]()
    for number, path in listed:
        if whole is not None and not every:
            break
        version = _version(path, number, uri)
        if version is not None and readable is None:
            readable = number
        if whole is None:
            if version is not None and all(_is_whole(folder, *file) for file in version.files):
                whole = number
            else:
                damaged.append(path)
    return Standing(whole, tuple(damaged), readable)


def look_at_remote(uri: str, every: bool) -> None:
    """Refuse an index in object storage of which the newest version, or any, leads elsewhere.

    Raises:
        IndexStateError: as said; or its versions are gone.
        OSError: Lance's, as the next: it cannot be reached.
        ValueError: what is there cannot be read.
        RuntimeError: as said.
    """
    session = _session(uri)
    session.contains(BEGUN)  # whether anybody answers, for a list is asked for six times before Lance gives it up
    listed = _numbered(session.list(VERSIONS))
    if not listed and session.list("data") and not session.contains(BEGUN):
        listed = _numbered(session.list(VERSIONS))  # for a first commit may have come in between
        if not listed:
            raise lost(uri, "all of its versions are gone")
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in listed[: None if every else 1]:
            copy = Path(scratch, str(number))
            session.download_file(name, copy)
            _parsed(_content(copy, name, uri), uri)


def _session(uri: str) -> LanceFileSession:
    """What reads and writes single files of an index in object storage."""
    from lance.file import LanceFileSession

    return LanceFileSession(uri, storage_options=reached(uri))


def lost(uri: str, what: str) -> IndexStateError:
    """Nothing says which rows an index has, though they may be there."""
    return IndexStateError(
        f"index {uri} is damaged: {what}; bring {uri.rstrip('/')}/{VERSIONS} back from a copy, or, if there is none, "
        f"delete {uri} and make it again with: dsh index add"
    )


def unreachable(uri: str, why: str) -> IndexStateError:
    """What is there may well be whole, but cannot be reached."""
    where = "permissions, disk or network" if local(uri) is not None else TO_SEE_TO
    return IndexStateError(f"cannot read index {uri}: {why}; see to its {where}, and try again")


def begin(path: str | None, uri: str) -> None:
    """Say that what is there from now on was never committed, until `end` or a version says otherwise.

    Args:
        path: where a local index lies; None in object storage.
        uri: where one in object storage is.

    Raises:
        OSError: as the system, or Lance, says.
    """
    if path is None:
        with tempfile.TemporaryDirectory() as scratch:
            empty = Path(scratch, BEGUN)
            empty.touch()
            _session(uri).upload_file(empty, BEGUN)
    else:
        mark = Path(path, BEGUN)
        mark.touch()
        sync([str(mark)])


def end(path: str | None, uri: str) -> None:
    """Say that there is a version, so that without one its files are damage, and no leftovers; as `begin`."""
    if path is None:
        session = _session(uri)
        if session.contains(BEGUN):
            session.delete_file(BEGUN)
    elif (mark := Path(path, BEGUN)).exists():
        mark.unlink()
        sync_folder(mark.parent)


def drop(folder: str, standing: Standing) -> None:
    """Take away versions that are not whole, so that the one before them is the newest.

    Where none is whole, their manifests stay, and what says that others were committed goes.

    Raises:
        OSError: as the system says.
    """
    if standing.is_newest:
        return
    kept = standing.whole or standing.readable or 0
    place = Path(folder, VERSIONS)
    # the hint first, for without it the others are as if never there
    for left in (place / _HINT, *(standing.damaged if standing.whole else ())):
        left.unlink(missing_ok=True)
        sync_folder(place)
    for number, name in _transactions(folder):
        if number > kept:
            name.unlink(missing_ok=True)


def versions(folder: str, uri: str) -> list[int]:
    """Numbers of the versions there are, whole or not, the newest first.

    Raises:
        IndexStateError: they cannot be reached.
    """
    try:
        return [number for number, _ in manifests(folder)]
    except OSError as error:
        raise unreachable(uri, f"{reason(error)}, {error.filename}") from error


def count_versions(folder: str, uri: str) -> tuple[int, int]:
    """How many versions there are, and how many of them are whole.

    Raises:
        IndexStateError: they cannot be reached.
    """
    try:
        while True:
            listed = manifests(folder)
            is_whole = cache(partial(_is_whole, folder))  # of files, which versions share
            whole = 0
            for number, path in listed:
                with suppress(IndexStateError):  # leads out of the index: not whole
                    version = _version(path, number, uri)
                    whole += version is not None and all(starmap(is_whole, version.files))
            if whole == len(listed) or manifests(folder) == listed:  # else another process has gone on meanwhile
                return len(listed), whole
    except OSError as error:
        raise unreachable(uri, f"{reason(error)}, {error.filename}") from error


def files(folder: str, *parts: str) -> set[str]:
    """All files in folders of an index."""
    found = set[str]()
    for part in parts:
        place = os.path.join(folder, part)
        if os.path.isdir(place):
            found.update(os.path.join(place, name) for name in os.listdir(place))
    return found


def sync(paths: Iterable[str]) -> None:
    """Make files, and then the folders that have them, outlast a loss of power.

    Raises:
        OSError: as the system says.
    """
    folders = set()
    for path in map(Path, sorted(paths)):
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        folders.add(path.parent)
    for folder in sorted(folders):
        sync_folder(folder)


def _require_no_links(folder: str, uri: str) -> None:
    """Refuse what is neither file nor folder, for what it may lead to, or wait for."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not getattr(entry, "is_junction", bool)():
                _require_no_links(entry.path, uri)
            elif not entry.is_file(follow_symlinks=False):
                kind = "a link" if entry.is_symlink() else "no file"
                raise IndexStateError(
                    f"{entry.path} is {kind}, and nothing in an index is reached through one; "
                    f"take it out of {uri}, and see where that index came from"
                )


def manifests(folder: str) -> list[tuple[int, Path]]:
    """Numbers of the versions and their manifests, the newest first."""
    place = Path(folder, VERSIONS)
    if not place.is_dir():
        return []
    return [(number, place / name) for number, name in _numbered(os.listdir(place))]


def _numbered(names: Iterable[str]) -> list[tuple[int, str]]:
    """Those of manifests among names or paths, and the numbers of their versions, the newest first."""
    found = [(_MANIFEST.fullmatch(os.path.basename(name)), name) for name in names]
    return sorted(((_number(match[1]), name) for match, name in found if match), reverse=True)


def _may_be_committed(folder: str) -> bool:
    """Whether there are files that may have been committed: those of a first commit under way, or killed, were not."""
    return bool(files(folder, "data", "_deletions", "_transactions")) and not os.path.lexists(
        os.path.join(folder, BEGUN)  # after the files, for a first commit may begin in between
    )


def _committed(folder: str) -> int:
    """The newest version that was committed, as far as shows without its manifest; 0 where nothing does.

    That a version was there shows in a transaction made on it. Whether the newest one of these was committed in turn,
    and not killed before, is said by Lance's hint alone, which is not believed further, for a digit of it may flip.
    """
    made_on = max((number for number, _ in _transactions(folder)), default=0)
    return made_on + (_hinted(folder) > made_on)


def _transactions(folder: str) -> list[tuple[int, Path]]:
    """Transactions, and the numbers of the versions they were made on."""
    named = map(Path, files(folder, "_transactions"))
    return [(int(match[1]), path) for path in named if (match := _TRANSACTION.fullmatch(path.name))]


def _hinted(folder: str) -> int:
    """The newest version by Lance's hint; 0 where there is no sound one."""
    try:
        with Path(folder, VERSIONS, _HINT).open("rb") as file:
            hint = re.search(rb'"version": *(\d+)', file.read(_HINT_BYTES))
        return int(hint[1]) if hint else 0
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _number(name: str) -> int:
    return _NEWEST - int(name) if len(name) == len(str(_NEWEST)) else int(name)


def _version(path: Path, number: int, uri: str) -> Version | None:
    """A version by its manifest; None where that is damaged, or gone.

    Raises:
        OSError: that cannot be told.
        IndexStateError: it leads out of the index, or is too large to be one.
    """
    try:
        version = _parsed(_content(path, str(path), uri), uri)
    except (FileNotFoundError, ValueError):
        return None
    return version if version.number == number else None


def _content(path: Path, name: str, uri: str) -> bytes:
    """The bytes of a manifest.

    Raises:
        OSError: it cannot be read.
        IndexStateError: it is too large to be one.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > _LARGEST:
            raise IndexStateError(
                f"index {uri} is not of dsh: {name} has more than {_LARGEST >> 20} MiB; choose another name"
            )
        return file.read()


def _is_whole(folder: str, name: str, size: int | None, end: bytes) -> bool:
    """Whether a file of a version is there, as long as it was and with its end."""
    try:
        with Path(folder, name).open("rb") as file:
            actual = os.fstat(file.fileno()).st_size
            file.seek(max(0, actual - len(end)))
            return bool(actual) and actual == (size or actual) and file.read(len(end)) == end
    except FileNotFoundError:
        return False


def _parsed(data: bytes, uri: str) -> Version:
    """A manifest: messages of lengths told before them, of which the last is the version, and where that begins.

    Raises:
        ValueError: it is damaged.
        IndexStateError: it leads out of the index.
    """
    start = int.from_bytes(data[-16:-8], "little")
    size = int.from_bytes(data[start : start + 4], "little")
    if data[-4:] != b"LANC" or start + 4 + size != len(data) - 16:
        raise ValueError("no manifest")
    message = data[start + 4 : -16]
    for field, value in _fields(message):
        match field:
            case 6 if _int(value) >= 0:  # index_section, where it begins
                raise _outside(uri, "an index of Lance's own")
            case 18 if _bytes(value):  # base_paths
                raise _outside(uri, "a base path")
            case 20 if _bytes(value):  # branch
                raise _outside(uri, "a branch")
    number, named = 0, list[tuple[str, int | None, bytes]]()
    for field, value in _fields(message):
        match field:
            case 2:  # fragments
                named += _files_of_fragment(_bytes(value), uri)
            case 3:  # version
                number = _int(value)
            case 12:  # transaction_file
                _name(_bytes(value), uri)
    return Version(number, tuple(named))


def _files_of_fragment(data: bytes, uri: str) -> Iterator[tuple[str, int | None, bytes]]:
    fragment = 0
    deletions = None
    for field, value in _fields(data):
        match field:
            case 1:  # id
                fragment = _int(value)
            case 2:  # files
                yield _data_file(_bytes(value), uri)
            case 3:  # deletion_file
                deletions = _bytes(value)
            case 6 | 8 | 10 | 11 if _bytes(value):  # external_row_ids, external versions, overlays
                raise _outside(uri, "files of a kind that dsh does not write")
    if deletions is not None:
        yield _deletion_file(deletions, fragment, uri)


def _data_file(data: bytes, uri: str) -> tuple[str, int | None, bytes]:
    name, size = "", None
    for field, value in _fields(data):
        match field:
            case 1:  # path
                name = _name(_bytes(value), uri)
            case 6:  # file_size_bytes, 0 where unknown
                size = _int(value) or None
            case 7:  # base_id, and there is no base path
                raise ValueError("a base that is not there")
    if not name:
        raise ValueError("a file without a name")
    return os.path.join("data", name), size, b"LANC"


def _deletion_file(data: bytes, fragment: int, uri: str) -> tuple[str, int | None, bytes]:
    parts = {1: 0, 2: 0, 3: 0}  # file_type, read_version, id
    for field, value in _fields(data):
        if field in parts:
            parts[field] = _int(value)
        elif field == 7:  # base_id, and there is no base path
            raise ValueError("a base that is not there")
    suffix, end = (".bin", b"") if parts[1] else (".arrow", b"ARROW1")
    return os.path.join("_deletions", f"{fragment}-{parts[2]}-{parts[3]}{suffix}"), None, end


def _name(name: bytes, uri: str) -> str:
    """The name of a file in a folder of the index; no path."""
    if _PATH.search(name):
        raise _outside(uri, f"a file named {name.decode(errors='backslashreplace')}")
    return name.decode()


def _outside(uri: str, what: str) -> IndexStateError:
    return IndexStateError(
        f"index {uri} has {what} in it, which may lead out of its folder, and is not opened; "
        "make an index of your own with: dsh index add"
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of the fields of a Protocol Buffers message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size = {1: 8, 5: 4}.get(kind)
        if size is None:
            if kind != 2:
                raise ValueError("no such kind of field")
            size, at = _varint(data, at)
        if at + size > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("cut off")


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("no number")
    return value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("no message")
    return value
