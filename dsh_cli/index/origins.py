"""Folders whose pictures a page may show.

An index names paths, and may be a stranger's: a page that showed whatever they lead to would hand on the user's own
pictures. So it shows those in folders from which this user added to that index, which is written down apart from the
index, among what the system keeps for the user; and those in folders that are named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from platformdirs import user_state_path

from dsh_cli.errors import DshError
from dsh_cli.files import written
from dsh_cli.index.place import local


@dataclass(frozen=True)
class Folders:
    """Folders whose pictures may be shown; all are absolute."""

    added: frozenset[str] = frozenset()  # with all that is below them
    beside: frozenset[str] = frozenset()  # of files that were added one by one: what is right in these folders
    named: frozenset[str] = frozenset()  # with all that is below them, links resolved

    def place(self, path: str) -> str | None:
        """The picture file to open for a path, or None where it is in none of the folders.

        Links are followed below folders added from, as they were when pictures were added, and out of no named one.
        """
        if "\0" in path:  # no file has such a name, and looking for one is an error
            return None
        absolute, real = os.path.abspath(path), os.path.realpath(path)
        if str(Path(absolute).parent) in self.beside or _is_below(absolute, self.added):
            return absolute
        return real if _is_below(real, self.named) else None

    def and_named(self, folders: Iterable[str]) -> Folders:
        """These, and some that the user has named."""
        return replace(self, named=self.named | {os.path.realpath(folder) for folder in folders})


def added_from(uri: str) -> Folders:
    """The folders from which this user added pictures to an index; none where nothing sound is written down."""
    try:
        known = json.loads(_record(uri).read_bytes())
        return Folders(*(frozenset(map(os.path.abspath, known[name])) for name in ("added", "beside")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return Folders()


def note(uri: str, given: Iterable[str], new: bool) -> None:
    """Write down from where pictures are added to an index; where that cannot be, pages need folders named.

    Args:
        uri: the index, which is held.
        given: files and folders.
        new: nothing was in it, and so what is known of one of that name is of another.
    """
    known = Folders() if new else added_from(uri)
    added, beside = set(known.added), set(known.beside)
    for path in map(os.path.abspath, given):
        if os.path.isdir(path):
            added.add(path)
        else:
            beside.add(str(Path(path).parent))
    if added == known.added and beside == known.beside and not new:
        return
    content = json.dumps({"index": _key(uri), "added": sorted(added), "beside": sorted(beside)})
    with contextlib.suppress(OSError, DshError):
        file = _record(uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        with written(file, "free space") as scratch:
            scratch.write_text(content + "\n")


def _record(uri: str) -> Path:
    home = user_state_path("dsh")
    if not home.is_absolute():  # the user has no home, and this folder may be anyone's
        raise FileNotFoundError(home)
    return home / "indexes" / f"{hashlib.blake2b(os.fsencode(_key(uri)), digest_size=16).hexdigest()}.json"


def _key(uri: str) -> str:
    """One name for an index, however it is called."""
    return local(uri) or uri.rstrip("/")


def _is_below(path: str, folders: frozenset[str]) -> bool:
    return bool(folders) and any(str(parent) in folders for parent in Path(path).parents)
