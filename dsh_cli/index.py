"""A persistent set of codes: pictures added, updated, removed and verified; a Lance table, on disk or object storage.

    number    order of adding; kept when a row is updated
    path      bytes as the file system has them: absolute, or relative to a folder chosen when adding
    label     bytes; null where unknown
    code      ceil(bits / 8) bytes
    hash      16 bytes, BLAKE2b of the file; with size and mtime_ns null where a code came without its file
    size      bytes of the file
    mtime_ns  when it was last changed

The table's metadata has the bits and the fingerprint of the run that made the codes. Every change is one commit of
Lance: readers see it whole or not at all. Writers of a local index wait for each other at a lock beside it, which
the system frees when its process ends. In object storage there is no such lock: let one process write at a time.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsh_cli import images
from dsh_cli.codes import Packed
from dsh_cli.config import MAX_BITS
from dsh_cli.errors import DshError, ImageError, IndexStateError, UsageError
from dsh_cli.pictures import Picture

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

    from dsh_cli.checkpoint import Run

FORMAT = 1  # of the table; a reader refuses a larger number

_COMMIT_ROWS = 1 << 16  # rows a commit, at most
_COMMIT_SECONDS, _COMMIT_SHARE = 10.0, 0.05  # seconds of work lost to a kill, at most, or this share of what was done
_READY_ROWS = 1 << 18  # rows a commit where codes are ready, at least
_FRAGMENTS = 16  # files of a table from which they are made into fewer
_KEPT = timedelta(hours=1)  # old versions stay so long, for those who still read them
_DIGEST = 16  # bytes
_OF_LANCE = {"data", "_versions", "_transactions", "_deletions", "_indices", "_refs", "_branches"}

Progress = Callable[[int, int], None]  # pictures done, pictures in all
_Labeller = Callable[[str, str], str | None]  # given path and file -> label


@dataclass(frozen=True)
class Row:
    """A picture of an index."""

    path: str
    label: str | None  # None where unknown
    size: int | None  # bytes of the file; None, as the next two, where the code came without it
    mtime_ns: int | None
    hash: str | None  # hex


@dataclass(frozen=True)
class Failure:
    """A path that could not be done, and why; or what `verify` found."""

    path: str
    error: str


@dataclass(frozen=True)
class Report:
    """What an index holds, and what was done to it."""

    index: str
    bits: int | None  # None, as the model, of an empty index
    rows: int
    model: str | None  # fingerprint of the run
    version: int  # 0 before the first commit
    versions: int  # kept, this one included
    added: int = 0
    updated: int = 0
    skipped: int = 0  # unchanged
    removed: int = 0
    checked: int | None = None  # pictures `verify` looked at
    failed: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class ReadyCodes:
    """Codes that are there already: n paths, (n, ceil(bits / 8)) packed codes, and n labels where known."""

    paths: Sequence[str]
    packed: Packed
    labels: Sequence[str | None] | None = None


@dataclass
class _Entry:
    """A row to be written. What is None stays as it is in the row at `place`; what has no place is new."""

    path: bytes
    place: int | None = None
    packed: Packed | None = None
    digest: bytes | None = None
    size: int | None = None
    mtime_ns: int | None = None
    label: bytes | None = None
    keep_label: bool = False


@dataclass(frozen=True)
class _Found:
    """What is to be done with a file."""

    entry: _Entry | None = None  # None with an error
    changed: bool = False
    error: str = ""


@dataclass
class _Counts:
    added: int = 0
    updated: int = 0
    skipped: int = 0
    removed: int = 0
    failed: list[Failure] = field(default_factory=list)


class Index:
    """An index as it was when it was opened, and after each change made through it.

    Its rows are numbered from 0 in the order of adding. A URI is a local path or one of Lance's for object storage.
    """

    def __init__(self, uri: str, dataset: lance.LanceDataset | None) -> None:
        self.uri = uri
        self._take(dataset)

    @classmethod
    def open(cls, uri: str | os.PathLike[str]) -> Index:
        """The last committed version; where there is none yet, an empty index.

        Raises:
            IndexStateError: there is something else, or the index is damaged or of a newer format.
        """
        return cls(os.fspath(uri), _open(os.fspath(uri)))

    def __len__(self) -> int:
        return self._rows

    @property
    def bits(self) -> int | None:
        """Length of the codes; None where there are none."""
        return self._bits if self._rows else None

    @property
    def model(self) -> str | None:
        """Fingerprint of the run that made the codes; None where there are none."""
        return self._model if self._rows else None

    @property
    def version(self) -> int:
        """Number of the version; 0 before the first commit."""
        return 0 if self._dataset is None else int(self._dataset.version)

    def codes(self) -> Packed:
        """All codes, (n, ceil(bits / 8)), in the order of adding."""
        if self._dataset is None or not self._rows:
            return np.zeros((0, 0), np.uint8)
        table = self._read(["number", "code"])
        codes = _fixed(table["code"])
        order = _order(table)
        return codes if order is None else codes[order]

    def labels(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """(n,) places in the names given with them, in the order of adding; -1 where the label is unknown."""
        table = self._read(["number", "label"])
        coded = table["label"].combine_chunks().dictionary_encode()
        numbers = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        order = _order(table)
        names = tuple(os.fsdecode(name) for name in coded.dictionary.to_pylist())
        return numbers if order is None else numbers[order], names

    def rows(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[Row]:
        """Some rows by their place in the order of adding.

        Raises:
            IndexError: there is no such row.
        """
        places = self._places()[np.asarray(numbers, np.int64)]
        table = self._at(places, ["path", "label", "size", "mtime_ns", "hash"])
        return [
            Row(
                path=os.fsdecode(path),
                label=None if label is None else os.fsdecode(label),
                size=size,
                mtime_ns=mtime_ns,
                hash=None if digest is None else digest.hex(),
            )
            for path, label, size, mtime_ns, digest in zip(*(column.to_pylist() for column in table), strict=True)
        ]

    def require(self, run: Run) -> None:
        """Refuse the codes of another model; an empty index takes any.

        Raises:
            IndexStateError: the run is not the one that made the codes.
        """
        self._require(run.fingerprint, run.model.bits, str(run.path))

    def report(self) -> Report:
        """What the index holds."""
        return self._report(_Counts())

    # Changing

    def add(
        self,
        run: Run,
        paths: Iterable[str],
        labels: str | None = None,
        relative_to: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        progress: Progress | None = None,
        waiting: Callable[[], None] | None = None,
        commit_rows: int = _COMMIT_ROWS,
    ) -> Report:
        """Encode picture files, and the pictures below folders, and keep their codes.

        What has the size and time of change it had is skipped, and so is what has the same content; what changed
        is encoded again and keeps its place. What cannot be read is reported, and what the index knew of it stays.

        Args:
            run: makes the codes.
            paths: files and folders; what is named twice is added once.
            labels: "folder": the first folder below the path given, or the folder of a file; "none": no labels;
                else a CSV file of path,label. None: those known stay, and new pictures have none.
            relative_to: folder to which the paths kept are relative; None: they are absolute.
            device: where pictures are encoded.
            workers: threads that read and encode them; None: one a processor.
            progress: told of the pictures done.
            waiting: called when another process is writing, before waiting for it.
            commit_rows: rows a commit, at most.

        Raises:
            IndexStateError: the index is of another model, damaged, or cannot be written.
            DataError: the label file is malformed.
        """
        from dsh_cli.training import choose_device

        given = list(paths)
        labeller = _labeller(labels)
        with self._writing(waiting):
            self.require(run)
            net = run.load_model(choose_device(device))
            writer = _Writer(self, run.model.bits, run.fingerprint, commit_rows)
            known, seen = _Known(self), set[int]()
            total = sum(1 for _ in images.expand(given)) if progress else 0

            from dsh_cli.encoding import Encoder

            encoder = Encoder(net)

            def read(named: tuple[str, str]) -> tuple[_Found, Picture | None]:
                return _look_at(*named, known, relative_to, labeller, encoder.size, encoder.channels)

            files = ((root, name) for root in given for name in images.expand([root]))
            try:
                for done, ((_, name), found, packed) in enumerate(encoder.each(files, read, workers), 1):
                    if found.entry is None:
                        writer.counts.failed.append(Failure(name, found.error))
                    elif (key := hash(found.entry.path)) not in seen:
                        seen.add(key)
                        if found.changed:
                            found.entry.packed = packed
                            writer.put(found.entry)
                        else:
                            writer.counts.skipped += 1
                    if progress:
                        progress(done, total)
            except KeyboardInterrupt:
                writer.commit()
                raise
            writer.commit()
            self._tidy()
            return self._report(writer.counts)

    def add_codes(
        self, batches: Iterable[ReadyCodes], bits: int, model: str, waiting: Callable[[], None] | None = None
    ) -> Report:
        """Keep codes that are ready, of pictures or anything else that has a path; those there already are updated.

        Memory does not grow with the codes but for 8 bytes each. Batches are committed whole, small ones together.

        Args:
            batches: paths are kept as they are.
            bits: length of the codes.
            model: names what made them; for those of a run its fingerprint.
            waiting: as in `add`.

        Raises:
            UsageError: the codes are not of so many bits, or a path comes twice.
            IndexStateError: as in `add`.
        """
        with self._writing(waiting):
            if not 1 <= bits <= MAX_BITS:
                raise UsageError(f"{bits} bits: a code has 1 to {MAX_BITS}")
            self._require(model, bits, "the codes given")
            writer = _Writer(self, bits, model, _READY_ROWS)
            known, fresh = _Known(self, stamps=False), np.zeros(0, np.int64)
            for paths, packed, labels in _grouped(batches, bits):
                keys = np.fromiter(map(hash, paths), np.int64, len(paths))
                order = np.sort(keys)
                if (order[1:] == order[:-1]).any() or _among(order, fresh).any():
                    raise UsageError("a path comes twice among the codes given; each has one code")
                fresh = np.sort(np.concatenate([fresh, order]), kind="stable")  # of two sorted runs: a merge
                there = _among(keys, known.keys)
                new = np.flatnonzero(~there)
                writer.append(
                    [paths[i] for i in new] if there.any() else paths,
                    packed[new] if there.any() else packed,
                    [labels[i] for i in new] if there.any() else labels,
                )
                for i in np.flatnonzero(there):
                    entry = _Entry(paths[i], known.find(paths[i]), packed[i], label=labels[i])
                    writer.put(entry)
                writer.commit()
            self._tidy()
            return self._report(writer.counts)

    def remove(
        self,
        patterns: Iterable[str] = (),
        missing: bool = False,
        relative_to: str | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> Report:
        """Take pictures out of the index; their files are left alone.

        Args:
            patterns: paths of files, of folders for all that is below them, and globs of both; their `*` takes
                slashes too.
            missing: also those whose files are gone.
            relative_to: the folder to which the paths in the index are relative, if they are.
            waiting: as in `add`.

        Raises:
            IndexStateError: the index is damaged, or cannot be written.
        """
        with self._writing(waiting):
            counts = _Counts()
            table = self._read(["number", "path"])
            paths: list[bytes] = table["path"].to_pylist()
            chosen = np.zeros(len(paths), bool)
            for pattern in patterns:
                matches = _matches(_key(pattern, relative_to), paths)
                if not matches.any():
                    counts.failed.append(Failure(pattern, "not in the index"))
                chosen |= matches
            if missing:
                base = relative_to or ""
                chosen |= np.fromiter((_gone(os.path.join(base, os.fsdecode(p))) for p in paths), bool, len(paths))
            self._delete(table["number"].to_numpy()[chosen])
            counts.removed = int(chosen.sum())
            self._tidy()
            return self._report(counts)

    # Reading

    def verify(
        self,
        run: Run,
        sample: int | None = None,
        seed: int = 0,
        relative_to: str | None = None,
        device: str = "auto",
        workers: int | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Read and encode pictures again, and say what differs: `failed` has their paths, and what it is.

        Args:
            run: the one that made the codes.
            sample: look at so many, chosen by the seed; None: all.
            seed: of the sample.
            relative_to: the folder to which the paths in the index are relative, if they are.
            device: where pictures are encoded.
            workers: threads that read and encode them; None: one a processor.
            progress: told of the pictures done.

        Raises:
            IndexStateError: the index is of another model, or damaged.
        """
        from dsh_cli.encoding import Encoder
        from dsh_cli.training import choose_device

        self.require(run)
        rows = np.arange(len(self))
        if sample is not None and sample < len(rows):
            rows = np.sort(np.random.default_rng(seed).choice(len(rows), sample, replace=False))
        counts, codes = _Counts(), self.codes()
        encoder = Encoder(run.load_model(choose_device(device)))

        def listed() -> Iterator[tuple[int, Row]]:
            for start in range(0, len(rows), _COMMIT_ROWS):
                some = rows[start : start + _COMMIT_ROWS]
                yield from zip(some.tolist(), self.rows(some), strict=True)

        def read(numbered: tuple[int, Row]) -> tuple[tuple[bytes | None, str], Picture | None]:
            try:
                name = os.path.join(relative_to or "", numbered[1].path)
                digest, picture = _content(name, None, encoder.size, encoder.channels)
                return (digest, ""), picture
            except ImageError as error:
                return (None, str(error)), None

        for done, ((number, row), (digest, error), packed) in enumerate(encoder.each(listed(), read, workers), 1):
            if error:
                missing = _gone(os.path.join(relative_to or "", row.path))
                counts.failed.append(Failure(row.path, "missing" if missing else f"cannot be read: {error}"))
            elif found := _differences(row, codes[number], digest, packed):
                counts.failed.append(Failure(row.path, found))
            if progress:
                progress(done, len(rows))
        return self._report(counts, checked=len(rows))

    def export(self, file: str | os.PathLike[str]) -> Report:
        """Write all rows, in the order of adding, as a Parquet file, whole or not at all.

        Columns: `path` as text, in which bytes that are not UTF-8 are escaped as in `\\xff`; `path_bytes` exactly;
        `label`, likewise text; `code`, `hash`, `size`, `mtime_ns` as in the index. The file's metadata has `dsh.bits`
        and `dsh.model`.

        Raises:
            DshError: it cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._dataset is None or self.bits is None:
            raise IndexStateError(f"index {self.uri} is empty; add pictures with: dsh index add {self.uri} FOLDER")
        schema = pa.schema(
            [
                pa.field("path", pa.string(), False),
                pa.field("path_bytes", pa.binary(), False),
                pa.field("label", pa.string()),
                pa.field("code", pa.binary(-(-self.bits // 8)), False),
                pa.field("hash", pa.binary(_DIGEST)),
                pa.field("size", pa.int64()),
                pa.field("mtime_ns", pa.int64()),
            ],
            metadata={"dsh.bits": str(self.bits), "dsh.model": str(self.model)},
        )
        places = self._places()
        scratch = Path(f"{os.fspath(file)}.{os.getpid()}.part")
        try:
            with pq.ParquetWriter(scratch, schema) as writer:
                for start in range(0, len(places), _COMMIT_ROWS):
                    rows = self._at(places[start : start + _COMMIT_ROWS], ["path", "label", *schema.names[3:]])
                    paths, labels = rows["path"], rows["label"]
                    columns = [_text(paths), paths, _text(labels), *rows.columns[2:]]
                    writer.write_table(pa.table(columns, schema=schema))
            os.replace(scratch, file)
        except OSError as error:
            raise DshError(f"cannot write {os.fspath(file)}: {images.reason(error)}; choose another FILE") from error
        finally:
            scratch.unlink(missing_ok=True)
        return self.report()

    # Inside

    def _take(self, dataset: lance.LanceDataset | None) -> None:
        """Stand on a version of the table."""
        self._dataset = dataset
        self._order: NDArray[np.int64] | None = None
        self._rows, self._bits, self._model = 0, 0, ""
        if dataset is not None:
            with _reaching(self.uri):
                self._rows = dataset.count_rows()
                self._bits, self._model = _about(dataset.schema.metadata or {}, self.uri)

    def _require(self, model: str, bits: int, what: str) -> None:
        if not self._rows or (model, bits) == (self._model, self._bits):
            return
        raise IndexStateError(
            f"index {self.uri} holds codes of {self._bits} bits of model {self._model}, and {what} "
            f"is model {model} of {bits} bits; choose that run with --model, or another index"
        )

    def _report(self, counts: _Counts, checked: int | None = None) -> Report:
        versions = 0
        if self._dataset is not None:
            with _reaching(self.uri):
                versions = len(self._dataset.versions())
        return Report(
            index=self.uri,
            bits=self.bits,
            rows=len(self),
            model=self.model,
            version=self.version,
            versions=versions,
            added=counts.added,
            updated=counts.updated,
            skipped=counts.skipped,
            removed=counts.removed,
            checked=checked,
            failed=tuple(counts.failed),
        )

    def _read(self, columns: list[str]) -> pa.Table:
        """Columns of all rows, in the order in which they lie in the table."""
        import pyarrow as pa

        if self._dataset is None:
            return pa.table({name: pa.array([], _schema(8)[0].type if name == "number" else pa.binary())
                             for name in columns})  # fmt: skip
        with _reaching(self.uri):
            return self._dataset.to_table(columns=columns)

    def _at(self, places: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Columns of rows by where they lie in the table."""
        if self._dataset is None:
            return self._read(columns)
        with _reaching(self.uri):
            return self._dataset.take(places, columns=columns)

    def _places(self) -> NDArray[np.int64]:
        """Where the rows lie in the table, in the order of adding."""
        if self._order is None:
            order = _order(self._read(["number"]))
            self._order = np.arange(self._rows) if order is None else order
        return self._order

    @contextmanager
    def _writing(self, waiting: Callable[[], None] | None) -> Iterator[None]:
        """Be the only writer, on the newest version."""
        with _locked(self.uri, waiting):
            self._take(_open(self.uri))
            yield

    def _write(self, table: pa.Table, mode: str) -> None:
        import lance

        with _reaching(self.uri, "write"):
            self._take(lance.write_dataset(table, self.uri, mode=mode))

    def _merge(self, table: pa.Table) -> None:
        """Replace rows that have the same number, and append the others, in one commit."""
        dataset = self._again()
        with _reaching(self.uri, "write"):
            dataset.merge_insert("number").when_matched_update_all().when_not_matched_insert_all().execute(table)
        self._take(_open(self.uri))

    def _again(self) -> lance.LanceDataset:
        """The newest version for a change: Lance moves the one it changes, and places are told by the old one."""
        dataset = _open(self.uri)
        assert dataset is not None
        return dataset

    def _delete(self, numbers: NDArray[np.int64]) -> None:
        if len(numbers):
            dataset = self._again()
            with _reaching(self.uri, "write"):
                dataset.delete(f"number IN ({','.join(map(str, numbers.tolist()))})")
            self._take(_open(self.uri))

    def _tidy(self) -> None:
        """Few files, and no old versions but those that someone may still read."""
        if self._dataset is None:
            return
        with _reaching(self.uri, "write"):
            fragments = self._dataset.get_fragments()
            # Lance finds rows by number slowly in a fragment that others were removed from: 2.7 ms a row, not 0.02.
            if len(fragments) > _FRAGMENTS or any(fragment.num_deletions for fragment in fragments):
                self._dataset.optimize.compact_files(
                    target_rows_per_fragment=1 << 20, materialize_deletions_threshold=0.0
                )
                self._take(_open(self.uri))
            # under the lock what belongs to no version was left by a process that was killed
            self._dataset.cleanup_old_versions(older_than=_KEPT, delete_unverified=_local(self.uri) is not None)


class _Known:
    """What an index knows of each path, in a few dozen bytes a row. Paths are known by their 64-bit hash.

    That two paths share one is as good as excluded, and costs no more than a row encoded in vain: before a row is
    written its path is compared.
    """

    def __init__(self, index: Index, stamps: bool = True) -> None:
        table = index._read(["path", "label", "size", "mtime_ns", "hash"] if stamps else ["path"])
        paths = table["path"].to_pylist()
        keys = np.fromiter(map(hash, paths), np.int64, len(paths))
        self._place = np.argsort(keys, kind="stable")
        self.keys = keys[self._place]
        if stamps and len(paths):
            self._label = np.fromiter(map(hash, table["label"].to_pylist()), np.int64, len(paths))
            self._size, self._mtime_ns = (table[name].fill_null(-1).to_numpy() for name in ("size", "mtime_ns"))
            self._digest = _fixed(table["hash"].fill_null(b"\0" * _DIGEST))

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


class _Writer:
    """Collects rows, and commits them in batches. It must be the only one; see `Index._writing`."""

    def __init__(self, index: Index, bits: int, model: str, commit_rows: int) -> None:
        self.index, self.bits, self.model, self.commit_rows = index, bits, model, commit_rows
        self.counts = _Counts()
        self._base = Index(index.uri, index._dataset)  # the version by which places are told
        numbers = index._read(["number"])["number"].to_numpy()
        self._next = int(numbers.max()) + 1 if len(numbers) else 0
        self._pending: list[_Entry] = []
        self._begun = self._committed = time.monotonic()

    def put(self, entry: _Entry) -> None:
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
        new = numbers < 0
        numbers[new] = self._next + np.arange(new.sum())
        order = np.argsort(numbers, kind="stable")
        table = _table(
            numbers[order],
            [pending[i].path for i in order],
            [pending[i].label for i in order],
            packed[order],
            [pending[i].digest for i in order],
            [pending[i].size for i in order],
            [pending[i].mtime_ns for i in order],
            self._about(),
        )
        if new.all():
            self._write_new(table)
        else:
            self.index._merge(table)
        self._next += int(new.sum())
        self.counts.added += int(new.sum())
        self._committed = time.monotonic()

    def append(self, paths: list[bytes], packed: Packed, labels: list[bytes | None]) -> None:
        """Commit new rows that are known by path and code alone."""
        if not paths:
            return
        nothing = [None] * len(paths)
        numbers = np.arange(self._next, self._next + len(paths))
        self._write_new(_table(numbers, paths, labels, packed, nothing, nothing, nothing, self._about()))
        self._next += len(paths)
        self.counts.added += len(paths)

    def _write_new(self, table: pa.Table) -> None:
        dataset = self.index._dataset
        # a table without rows may be of another model
        self.index._write(table, "create" if dataset is None else "append" if len(self.index) else "overwrite")

    def _about(self) -> dict[str, str]:
        return {"dsh.format": str(FORMAT), "dsh.bits": str(self.bits), "dsh.model": self.model}

    def _fill(self, pending: list[_Entry]) -> dict[int, int]:
        """Complete the entries from the rows they replace, and count them. Gives the numbers of those rows."""
        replacing = [entry for entry in pending if entry.place is not None]
        places = np.array([entry.place for entry in replacing], np.int64)
        if not len(places):
            return {}
        rows = self._base._at(places, ["number", "path", "label", "hash", "code"])
        numbers: dict[int, int] = {}
        columns = (column.to_pylist() for column in rows.columns)
        for entry, number, path, label, digest, code in zip(replacing, *columns, strict=True):
            if path != entry.path:  # two paths of one hash
                entry.place = None
                continue
            assert entry.place is not None
            numbers[entry.place] = number
            same = entry.packed is None
            if entry.packed is None:
                entry.packed = np.frombuffer(code, np.uint8)
            if entry.digest is None and same:
                entry.digest = digest
            if entry.keep_label:
                entry.label = label
            if same and entry.label == label:
                self.counts.skipped += 1  # of another time, but the same content
            else:
                self.counts.updated += 1
        return numbers


def _open(uri: str) -> lance.LanceDataset | None:
    """The table at a URI; None where none has been committed."""
    if not uri:
        raise UsageError("the index has an empty name")
    path = _local(uri)
    if path is not None:
        if not os.path.lexists(path):
            return None
        if not os.path.isdir(path):
            raise IndexStateError(f"{uri} is a file, not an index; an index is a folder made by: dsh index add")
        try:
            if strange := sorted(set(os.listdir(path)) - _OF_LANCE):
                raise IndexStateError(
                    f"{uri} is a folder of other things ({strange[0]}), not an index; choose another name"
                )
        except OSError as error:
            raise IndexStateError(f"cannot read index {uri}: {images.reason(error)}") from error

    import lance

    with _reaching(uri):
        try:
            dataset = lance.dataset(uri)
        except ValueError as error:
            if re.search(r"was not found: Not found: .*_versions\b", str(error)):
                return None
            raise
    _about(dataset.schema.metadata or {}, uri)
    return dataset


def _about(metadata: dict[bytes, bytes], uri: str) -> tuple[int, str]:
    """Bits and model, by the metadata of a table."""
    try:
        about = {name.decode(): value.decode() for name, value in metadata.items() if name.startswith(b"dsh.")}
        kind, bits, model = int(about["dsh.format"]), int(about["dsh.bits"]), about["dsh.model"]
    except (KeyError, ValueError) as error:
        raise IndexStateError(f"{uri} is a Lance table, but not an index of dsh; choose another name") from error
    if kind > FORMAT:
        raise IndexStateError(
            f"index {uri} has format {kind}, newer than {FORMAT}, the newest this dsh reads; "
            "upgrade with: pip install --upgrade dsh-cli"
        )
    return bits, model


def _local(uri: str) -> str | None:
    """The path of a local index; None for object storage."""
    if uri.startswith("file://"):
        return uri.removeprefix("file://")
    return None if "://" in uri else uri


@contextmanager
def _locked(uri: str, waiting: Callable[[], None] | None) -> Iterator[None]:
    """Hold the lock beside a local index. The system frees it when the process ends, however it ends."""
    path = _local(uri)
    if path is None:
        yield
        return
    import filelock

    if not uri:
        raise UsageError("the index has an empty name")
    real = os.path.realpath(path)
    lock = filelock.FileLock(f"{real}.lock")
    try:
        Path(real).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if waiting is not None:
                waiting()
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise IndexStateError(
            f"cannot write index {uri}: {images.reason(error)} (its lock {real}.lock); choose another place"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _reaching(uri: str, doing: str = "read") -> Iterator[None]:
    """Lance's errors, in one line. Only its own calls belong inside."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        said = re.split(r", /(?:home|rustc)/", " ".join(str(error).split()))[0]
        said = said if len(said) <= 300 else said[:299] + "…"
        what = "is damaged or cannot be read" if doing == "read" else "cannot be written"
        hint = "make it again with: dsh index add" if doing == "read" else "free space, or choose another place"
        raise IndexStateError(f"index {uri} {what} ({said}); {hint}") from error


def _schema(width: int) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("number", pa.int64(), False),
            pa.field("path", pa.binary(), False),
            pa.field("label", pa.binary()),
            pa.field("code", pa.binary(width), False),
            pa.field("hash", pa.binary(_DIGEST)),
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
        ]
    )


def _table(
    numbers: NDArray[np.int64],
    paths: Sequence[bytes],
    labels: Sequence[bytes | None],
    packed: Packed,
    digests: Sequence[bytes | None],
    sizes: Sequence[int | None],
    mtimes: Sequence[int | None],
    about: dict[str, str],
) -> pa.Table:
    import pyarrow as pa

    schema = _schema(packed.shape[1]).with_metadata(about)
    codes = pa.py_buffer(np.ascontiguousarray(packed))
    columns = [
        pa.array(numbers),
        pa.array(paths, pa.binary()),
        pa.array(labels, pa.binary()),
        pa.FixedSizeBinaryArray.from_buffers(schema.field("code").type, len(packed), [None, codes]),
        pa.array(digests, pa.binary(_DIGEST)),
        pa.array(sizes, pa.int64()),
        pa.array(mtimes, pa.int64()),
    ]
    return pa.table(columns, schema=schema)


def _fixed(column: pa.ChunkedArray) -> Packed:
    """A column of n binaries of w bytes as (n, w)."""
    width = column.type.byte_width
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        for chunk in column.chunks
    ]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return joined.reshape(-1, width)


def _order(table: pa.Table) -> NDArray[np.int64] | None:
    """The order of adding; None where the rows lie in it."""
    numbers = table["number"].to_numpy()
    return None if (numbers[1:] > numbers[:-1]).all() else np.argsort(numbers, kind="stable")


def _grouped(batches: Iterable[ReadyCodes], bits: int) -> Iterator[tuple[list[bytes], Packed, list[bytes | None]]]:
    """Batches as bytes, several together until they are worth a commit."""
    paths: list[bytes] = []
    labels: list[bytes | None] = []
    packed: list[Packed] = []
    spare = (1 << (-bits % 8)) - 1
    for batch in batches:
        count, width = len(batch.paths), -(-bits // 8)
        if batch.packed.shape != (count, width) or len(batch.labels or batch.paths) != count:
            raise UsageError(f"{count} paths with codes of shape {batch.packed.shape}; {bits} bits are {width} bytes")
        if spare and (batch.packed[:, -1] & spare).any():
            raise UsageError(f"codes of {bits} bits with bits set behind them; pack them with numpy.packbits")
        paths += map(os.fsencode, batch.paths)
        labels += [None if x is None else os.fsencode(x) for x in batch.labels] if batch.labels else [None] * count
        packed.append(batch.packed)
        if len(paths) >= _READY_ROWS:
            yield paths, np.concatenate(packed), labels
            paths, packed, labels = [], [], []
    if paths:
        yield paths, np.concatenate(packed), labels


def _among(keys: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which keys are among those known, which are sorted."""
    if not len(known):
        return np.zeros(len(keys), bool)
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys
    return found


def _key(path: str, relative_to: str | None) -> bytes:
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


def _matches(key: bytes, paths: Sequence[bytes]) -> NDArray[np.bool_]:
    """Which paths are this one, or below it, or, where it is no path, those of this glob."""
    below = b"" if key == b"." else key.rstrip(b"/") + os.fsencode(os.sep)
    exact = np.fromiter((path == key or path.startswith(below) for path in paths), bool, len(paths))
    if exact.any() or not any(sign in key for sign in (b"*", b"?", b"[")):
        return exact
    glob = os.fsdecode(key)
    matches = re.compile(f"{fnmatch.translate(glob)}|{fnmatch.translate(os.path.join(glob, '*'))}").match
    return np.fromiter((matches(os.fsdecode(path)) is not None for path in paths), bool, len(paths))


def _gone(path: str) -> bool:
    """Whether there is no such file; one that cannot be looked at counts as there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False
    return False


def _look_at(
    root: str,
    name: str,
    known: _Known,
    relative_to: str | None,
    labeller: _Labeller | None,
    size: int,
    channels: int,
) -> tuple[_Found, Picture | None]:
    """What is to be done with a file, and its picture where that must be encoded."""
    try:
        status = os.stat(name)
        path = _key(name, relative_to)
        label = None if labeller is None else labeller(root, name)
        entry = _Entry(
            path,
            known.find(path),
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            label=None if label is None else os.fsencode(label),
            keep_label=labeller is None,
        )
        digest = None
        if entry.place is not None:
            old_size, old_mtime_ns, digest, of_label = known.at(entry.place)
            if (old_size, old_mtime_ns) == (status.st_size, status.st_mtime_ns):
                return _Found(entry, labeller is not None and of_label != hash(entry.label)), None
        entry.digest, picture = _content(name, digest, size, channels)
        return _Found(entry, changed=True), picture
    except (ImageError, UsageError) as error:
        return _Found(error=str(error)), None
    except (OSError, ValueError) as error:
        return _Found(error=images.reason(error)), None


def _content(name: str, known: bytes | None, size: int, channels: int) -> tuple[bytes, Picture | None]:
    """Read a file once: the hash of its content, and its picture unless that hash is known."""
    data = images.read_bytes(name)
    digest = hashlib.blake2b(data, digest_size=_DIGEST).digest()
    return digest, None if digest == known else images.decode(data, size, channels)


def _differences(row: Row, code: Packed, digest: bytes | None, packed: Packed | None) -> str:
    """What differs of a picture, in words; nothing where all is as it was."""
    found = []
    if row.hash is not None and digest is not None and digest.hex() != row.hash:
        found.append("changed content")
    if packed is not None and (packed != code).any():
        bits = int(np.bitwise_count(packed ^ code).sum())
        found.append(f"changed code ({bits} bit{'' if bits == 1 else 's'})")
    return ", ".join(found)


def _text(column: pa.ChunkedArray) -> pa.Array:
    """Binaries as text, with bytes that are not UTF-8 escaped."""
    import pyarrow as pa

    return pa.array([None if v is None else v.decode("utf-8", "backslashreplace") for v in column.to_pylist()])


def _labeller(labels: str | None) -> _Labeller | None:
    """How files get their labels; None where known ones stay."""
    if labels is None:
        return None
    if labels == "none":
        return lambda root, name: None
    if labels == "folder":
        return _folder_label
    if not Path(labels).is_file():
        raise UsageError(f"--labels {labels}: no such file; give folder, none, or a CSV file of path,label")

    from dsh_cli.data import list_labels

    listing = list_labels(Path(labels))
    known = {path: label for part in listing.parts.values() for path, label in part}
    return lambda root, name: known.get(os.path.abspath(name))


def _folder_label(root: str, name: str) -> str:
    """The first folder below the path given; for a file, or one right in the folder given, the folder it is in."""
    absolute = os.path.abspath(name)
    below = Path(os.path.relpath(absolute, os.path.abspath(root))).parts
    return below[0] if len(below) > 1 else Path(absolute).parent.name
