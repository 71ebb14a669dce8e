"""Rows of an index on their way in: what is known of a path, and commits of those that are new or changed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed
from dsh_cli.codes.rescoring import Outputs
from dsh_cli.index.schema import DIGEST, fixed
from dsh_cli.index.table import Table, of_rows

if TYPE_CHECKING:
    import pyarrow as pa

_COMMIT_SECONDS, _COMMIT_SHARE = 10.0, 0.05  # seconds of work lost to a kill, at most, or this share of what was done


@dataclass(slots=True)
class Entry:
    """A row to be written. What is None stays as it is in the row at `place`; what has no place is new."""

    path: bytes
    place: int | None = None
    packed: Packed | None = None
    digest: bytes | None = None
    size: int | None = None
    mtime_ns: int | None = None
    label: bytes | None = None
    keep_label: bool = False
    outputs: Outputs | None = None  # (k,), where the index keeps them


@dataclass(frozen=True)
class Failure:
    """A path that could not be done, and why; or what `verify` found, or has repaired."""

    path: str
    error: str
    remedy: str = ""  # what to do about this and all of its kind, where `error` does not say it


@dataclass
class Counts:
    """What was done to an index."""

    added: int = 0
    updated: int = 0
    skipped: int = 0
    removed: int = 0
    unlabelled: int = 0
    failed: list[Failure] = field(default_factory=list)
    repaired: list[Failure] = field(default_factory=list)


class Known:
    """What an index knows of each path, in a few dozen bytes a row. Paths are known by their 64-bit hash.

    That two paths share one is as good as excluded, and costs no more than a row encoded in vain: before a row is
    written its path is compared.
    """

    def __init__(self, table: Table, stamps: bool = True) -> None:
        keys = np.empty(table.rows, np.int64)
        if stamps:
            self._label, self._size, self._mtime_ns = (np.empty(table.rows, np.int64) for _ in range(3))
            self._digest = np.empty((table.rows, DIGEST), np.uint8)
        place = 0
        for part in table.parts(["path", "label", "size", "mtime_ns", "hash"] if stamps else ["path"]):
            some = slice(place, place := place + len(part))
            keys[some] = _hashes(part["path"])
            if stamps:
                self._label[some] = _hashes(part["label"])
                self._size[some], self._mtime_ns[some] = (
                    part[name].fill_null(-1).to_numpy() for name in ("size", "mtime_ns")
                )
                self._digest[some] = fixed(part["hash"].fill_null(b"\0" * DIGEST))
        self._place = np.argsort(keys, kind="stable")
        self.keys = keys[self._place]

    def find(self, path: bytes) -> int | None:
        """Where the row of a path lies in the table."""
        if not len(self.keys):
            return None
        key = hash(path)
        at = int(np.searchsorted(self.keys, key))
        return int(self._place[at]) if at < len(self.keys) and self.keys[at] == key else None

    def at(self, place: int) -> tuple[int, int, bytes, int]:
        """Size, time of change and hash of the content of a row, and the hash of its label."""
        digest = self._digest[place].tobytes()
        return int(self._size[place]), int(self._mtime_ns[place]), digest, int(self._label[place])


class Writer:
    """Collects rows, and commits them in batches. It must be the only one; see `Table.writing`.

    Where there is a scale, all rows have outputs.
    """

    def __init__(self, table: Table, bits: int, model: str, commit_rows: int, scale: float | None = None) -> None:
        self.table, self.bits, self.model, self.commit_rows, self.scale = table, bits, model, commit_rows, scale
        self.counts = Counts()
        self._base = table.snapshot()  # the version by which places are told
        self._next = table.next_number()
        self._pending: list[Entry] = []
        self._begun = self._committed = time.monotonic()

    def put(self, entry: Entry) -> None:
        """Take a row, and commit all if it is time."""
        self._pending.append(entry)
        now = time.monotonic()
        wait = max(_COMMIT_SECONDS, _COMMIT_SHARE * (now - self._begun))
        if len(self._pending) >= self.commit_rows or now - self._committed > wait:
            self.commit()

    def commit(self) -> None:
        """Write what has been taken, in one commit."""
        pending, self._pending = self._pending, []
        old = self._fill(pending)
        if not pending:
            return
        packed = np.stack([entry.packed for entry in pending if entry.packed is not None])
        numbers = np.array([-1 if entry.place is None else old[entry.place] for entry in pending], np.int64)
        outputs = None
        if self.scale is not None:
            outputs = np.stack([entry.outputs for entry in pending if entry.outputs is not None])
        new = numbers < 0
        numbers[new] = self._next + np.arange(new.sum())
        order = np.argsort(numbers, kind="stable")
        rows = of_rows(
            numbers[order],
            [pending[i].path for i in order],
            [pending[i].label for i in order],
            packed[order],
            [pending[i].digest for i in order],
            [pending[i].size for i in order],
            [pending[i].mtime_ns for i in order],
            self.bits,
            self.model,
            None if outputs is None else outputs[order],
            self.scale,
        )
        if new.all():
            self.table.append(rows)
        else:
            self.table.merge(rows)
        self._next += int(new.sum())
        self.counts.added += int(new.sum())
        self._committed = time.monotonic()

    def append(self, paths: list[bytes], packed: Packed, labels: list[bytes | None], outputs: Outputs | None) -> None:
        """Commit new rows that are known by path and code alone, and by outputs where these are kept."""
        if not paths:
            return
        nothing = [None] * len(paths)
        numbers = np.arange(self._next, self._next + len(paths))
        more = (nothing, nothing, nothing, self.bits, self.model, outputs, self.scale)
        rows = of_rows(numbers, paths, labels, packed, *more)
        self.table.append(rows)
        self._next += len(paths)
        self.counts.added += len(paths)

    def _fill(self, pending: list[Entry]) -> dict[int, int]:
        """Complete the entries from the rows they replace, and count them. Gives the numbers of those rows."""
        replacing = [entry for entry in pending if entry.place is not None]
        places = np.array([entry.place for entry in replacing], np.int64)
        if not len(places):
            return {}
        names = ["number", "path", "label", "hash", "code"]
        rows = self._base.at(places, names if self.scale is None else [*names, "outputs"])
        numbers: dict[int, int] = {}
        columns = (column.to_pylist() for column in rows.columns)
        for entry, number, path, label, digest, code, *kept in zip(replacing, *columns, strict=True):
            if path != entry.path:  # two paths of one hash
                entry.place = None
                continue
            assert entry.place is not None
            numbers[entry.place] = number
            same = entry.packed is None
            if entry.packed is None:
                entry.packed = np.frombuffer(code, np.uint8)
                entry.outputs = np.frombuffer(kept[0], np.int8) if kept else None
            if entry.digest is None and same:
                entry.digest = digest
            if entry.keep_label:
                entry.label = label
            if same and entry.label == label:
                self.counts.skipped += 1  # of another time, but the same content
            else:
                self.counts.updated += 1
        return numbers


class Fresh:
    """Keys that came, each once. So many of them are sorted together as came before that few have to be sorted anew."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.int64]] = []  # sorted, each longer than the next

    def take(self, keys: NDArray[np.int64]) -> bool:
        """Take keys; says whether each is new."""
        keys = np.sort(keys)
        if (keys[1:] == keys[:-1]).any() or any(among(keys, run).any() for run in self._runs):
            return False
        while self._runs and len(self._runs[-1]) <= len(keys):
            keys = np.sort(np.concatenate([self._runs.pop(), keys]), kind="stable")  # of two sorted runs: a merge
        self._runs.append(keys)
        return True


def _hashes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.fromiter(map(hash, column.to_pylist()), np.int64, len(column))


def among(keys: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which keys are among those known, which are sorted."""
    if not len(known):
        return np.zeros(len(keys), bool)
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
    return found
