"""Picture files as an index sees them: the path it knows them by, their label, and whether they changed."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsh_cli.errors import ImageError, UsageError, reason
from dsh_cli.index.rows import Entry, Known
from dsh_cli.index.schema import DIGEST
from dsh_cli.network.encoder import Code
from dsh_cli.pictures import decode
from dsh_cli.pictures.decode import Form, Picture
from dsh_cli.words import nfc, utf8

_SHARE = 0.1  # of the pictures of an index: a folder with more of them is not taken out unasked

Labeller = Callable[[str, str], str | None]  # given path and file -> label


@dataclass(frozen=True, slots=True)
class Listed:
    """A file that is named, before anyone looks at it: what an index calls it, and what it knows of it."""

    name: str
    entry: Entry | None = None  # None with an error
    stamp: tuple[int, int] | None = None  # size and time of change, as it had them
    digest: bytes | None = None  # of its content
    relabelled: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a file says of it."""

    stamp: tuple[int, int] | None = None  # size and time of change; None with an error
    digest: bytes | None = None  # of its content; None where the stamp is as it was
    error: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What is to be done with a file."""

    entry: Entry | None = None  # None with an error
    changed: bool = False
    error: str = ""


Files = Iterable[tuple[str, str]]  # the path that was given, and a file that it is, or that is below it
Listing = Callable[[str, str], Listed]  # of one of these
Results = Iterator[tuple[str, Found, Code | None]]  # of each, in their order, with a code where it was encoded
Engine = Callable[[Files, Listing], Results]  # makes codes


def listed(root: str, name: str, known: Known, relative_to: str | None, labeller: Labeller | None) -> Listed:
    """What an index knows of a file; the file is not touched."""
    try:
        path = key_of(name, relative_to)
        label = None if labeller is None else labeller(root, name)
        entry = Entry(
            path,
            known.find(path),
            label=None if label is None else utf8(label),
            keep_label=labeller is None,
        )
    except UsageError as error:
        return Listed(name, error=str(error))
    except (OSError, ValueError) as error:
        return Listed(name, error=reason(error))
    if entry.place is None:
        return Listed(name, entry)
    size, mtime_ns, digest, of_label = known.at(entry.place)
    return Listed(name, entry, (size, mtime_ns), digest, labeller is not None and of_label != hash(entry.label))


def look_at(name: str, stamp: tuple[int, int] | None, digest: bytes | None, form: Form) -> tuple[Look, Picture | None]:
    """What there is in a file, and its picture unless its stamp or the digest of its content is as it was."""
    try:
        status = os.stat(name)
        now = status.st_size, status.st_mtime_ns
        if now == stamp:
            return Look(now), None
        digest, picture = content(name, digest, form)
        return Look(now, digest), picture
    except ImageError as error:
        return Look(error=str(error)), None
    except (OSError, ValueError) as error:
        return Look(error=reason(error)), None


def found(file: Listed, look: Look) -> Found:
    """What is to be done with a file, by what is known of it and a look at it."""
    if file.entry is None or look.stamp is None:
        return Found(error=file.error or look.error)
    file.entry.size, file.entry.mtime_ns = look.stamp
    file.entry.digest = look.digest
    return Found(file.entry, file.relabelled if look.digest is None else True)


def content(name: str, known: bytes | None, form: Form) -> tuple[bytes, Picture | None]:
    """Read a file once: the hash of its content, and its picture unless that hash is known."""
    data = decode.read_bytes(name)
    digest = hashlib.blake2b(data, digest_size=DIGEST).digest()
    return digest, None if digest == known else decode.decode(data, form)


def labeller_of(labels: str | None, roots: Sequence[str]) -> Labeller | None:
    """How files get their labels; None where known ones stay.

    Args:
        labels: as in `Index.add`.
        roots: the paths that the files are, or are below.

    Raises:
        DataError: the label file is malformed, or folders of splits stand beside others.
        UsageError: there is no label file.
    """
    if labels is None:
        return None
    if labels == "none":
        return lambda root, name: None
    if labels == "folder":
        splits = {root: found for root in roots if (found := _splits_in(root))}
        return lambda root, name: _folder_label(root, name, splits.get(root, frozenset()))
    if not os.path.isfile(labels):
        raise UsageError(f"`labels` {labels}: no such file; give folder, none, or a CSV file of path,label")

    from dsh_cli.data.listing import list_labels

    listing = list_labels(Path(labels))
    known = {path: label for part in listing.parts.values() for path, label in part}
    return lambda root, name: known.get(os.path.abspath(name))


def _splits_in(root: str) -> frozenset[str]:
    """Names of the folders of splits in one that may be a dataset; none where its folders are of classes."""
    from dsh_cli.data.listing import split_folders

    if not os.path.isdir(root):
        return frozenset()
    try:
        return frozenset(os.path.basename(folder) for folder in split_folders(Path(root)).values())
    except OSError:  # which is told where pictures are looked for in it
        return frozenset()


def _folder_label(root: str, name: str, splits: frozenset[str]) -> str | None:
    """The first folder below the path given, or below its folder of a split; None for one right in the latter.

    For a file, or one right in the folder given, the folder it is in.
    """
    absolute = os.path.abspath(name)
    below = Path(os.path.relpath(absolute, os.path.abspath(root))).parts
    if len(below) > 1 and below[0] in splits:
        return nfc(below[1]) if len(below) > 2 else None
    return nfc(below[0] if len(below) > 1 else Path(absolute).parent.name)


def key_of(path: str, relative_to: str | None) -> bytes:
    """The path under which the index knows a file.

    Raises:
        UsageError: it is not below the folder.
    """
    absolute = os.path.abspath(path)
    if relative_to is None:
        return os.fsencode(absolute)
    relative = os.path.relpath(absolute, relative_to)
    if relative == os.pardir or relative.startswith(os.pardir + os.sep):
        raise UsageError(f"not below {relative_to}, to which paths shall be relative")
    return os.fsencode(relative)


def matches(key: bytes, paths: Sequence[bytes]) -> NDArray[np.bool_]:
    """Which paths are this one, or below it, or, where it is no path, those of this glob."""
    below = b"" if key == b"." else key.rstrip(b"/") + os.fsencode(os.sep)
    exact = np.fromiter((path == key or path.startswith(below) for path in paths), bool, len(paths))
    if exact.any() or not any(sign in key for sign in (b"*", b"?", b"[")):
        return exact
    glob = os.fsdecode(key)
    of_glob = re.compile(f"{fnmatch.translate(glob)}|{fnmatch.translate(os.path.join(glob, '*'))}").match
    return np.fromiter((of_glob(os.fsdecode(path)) is not None for path in paths), bool, len(paths))


def gone(path: str) -> bool:
    """Whether there is no such file; one that cannot be looked at counts as there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def stamp(path: str) -> tuple[int, int] | None:
    """Size and time of change of a file; None where it cannot be looked at."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def lost(names: Sequence[str], missing: NDArray[np.bool_]) -> dict[Path, int]:
    """Folders that look like a disk that is not there, and how many pictures of an index each has.

    All pictures of such a folder are missing, and not all of the folder above it. Either they are many, or nothing
    says that its disk is there: below the folder above no picture is there on the disk that the folder would be on.

    Args:
        names: absolute paths.
        missing: (n,) whether each is gone.
    """
    gone: Counter[Path] = Counter()  # pictures, below each folder
    disks: dict[Path, set[int | None]] = {}  # of pictures that are there, below each folder
    for (folder, is_gone), count in Counter((Path(n).parent, g) for n, g in zip(names, missing, strict=True)).items():
        disk = None if is_gone else _disk(folder)
        for above in (folder, *folder.parents):
            if is_gone:
                gone[above] += count
            else:
                disks.setdefault(above, set()).add(disk)
    found = {}
    for folder, count in gone.items():
        above = folder.parent
        if folder in disks or (above not in disks and above != folder):
            continue
        top = above == above.parent  # what else is on the first disk says nothing of others
        if count > _SHARE * len(names) or top or _disk(folder) not in disks[above]:
            found[folder] = count
    return found


def _disk(folder: Path) -> int | None:
    """The disk of a folder, where it is gone that on which it would be; None behind a link that leads nowhere."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        return there.stat().st_dev
    except OSError:
        return None
