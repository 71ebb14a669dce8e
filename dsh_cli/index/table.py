"""The Lance table of an index: opened, read, and changed by one commit at a time. Its columns are `schema.py`'s.

Every change is one commit of Lance: readers see it whole or not at all, and a loss of power leaves it or the one
before, for its files are synced before it, and it is before the next. Writers of a local index wait for each other at
a lock on its folder, which the system frees when its process ends.

In object storage there is no such lock. There a commit is a version's manifest, written only where none of its number
is yet, and one that was made on another version than the last is refused: who comes second is told to run the same
command again. Lance alone would let two who add rows follow each other, with the same numbers in both.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed
from dsh_cli.codes.rescoring import Outputs
from dsh_cli.errors import IndexStateError, UsageError, VersionGone, lacking_memory, lacking_space, reason
from dsh_cli.files import sync_folder
from dsh_cli.index import digests, storage
from dsh_cli.index.place import local, locked, reached
from dsh_cli.index.schema import DIGEST, about, check, columns, fixed, schema, strange
from dsh_cli.threads import ahead
from dsh_cli.words import counted

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

_MANY = 1 << 20  # rows that need no second look before memory is asked for
_FRAGMENTS = 16  # files of a table from which they are made into fewer
_FRAGMENT_ROWS = 1 << 20  # of a file, at most
_READ_ROWS = 1 << 18  # read at once where little is wanted of each
_BLOCK_ROWS = 1 << 14, 1 << 20  # of a block that is searched, at least and at most
_BLOCKS = 1 << 28  # bytes of all blocks that are there at once, about
_IO_BYTES = 1 << 25  # that Lance reads ahead of a block, about; by itself it takes 2 GiB
_KEPT = timedelta(hours=1)  # versions stay so long after they were replaced, for those who still read them
_KEPT_ALWAYS = 2  # versions, so that there is one to go back to
_TOTAL = "dsh.total"  # property of a commit: the sum of the checks of all rows
_OF_LANCE = {"data", "_versions", "_transactions", "_deletions", "_indices", "_refs"}
_UNREACHED = re.compile(  # in what Lance says of a place that it could not read, as against what it read there
    r"os error (?!2\b)\d+|permission|denied|forbidden|unauthorized|credential|time[d ]*out|connect|request", re.I
)
_SYNCED = ("data", "_deletions", "_transactions", storage.VERSIONS)

T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """A row that is not what was written, or rows that cannot be read."""

    place: int  # of the first, where they lie in the table
    count: int
    path: str | None  # None where it cannot be read
    what: str


class _Read(NamedTuple):
    """What is known of a block that was read, and what was made of it: nothing, where rows are not what was written."""

    made: list[object]  # one, or none
    spoilt: int  # rows that are not what was written
    total: int  # of the checks of codes
    first: int  # number, -1 of no row
    last: int  # the largest, likewise
    ascends: bool  # from each number to the next


class Table:
    """The table at the version it was opened at, and after each change made through it."""

    def __init__(self, uri: str, path: str | None, dataset: lance.LanceDataset | None, note: str | None = None) -> None:
        self.uri, self.note = uri, note
        self._path = path  # where a local one lies
        self._require_lock: Callable[[], None] = lambda: None
        self._synced: set[str] = set()  # files, by a writer
        self._take(dataset)

    def _take(self, dataset: lance.LanceDataset | None) -> None:
        """Stand on a version of the table."""
        self._dataset = dataset
        self._order: NDArray[np.int64] | None = None
        self._in_order: bool | None = None  # None: nobody has looked
        self._last = -1  # the largest number, where somebody has
        self.rows, self.bits, self.model = 0, 0, ""  # the last two also where all rows were removed
        self.has_checks = True
        self.scale: float | None = None  # of outputs, where it keeps them
        if dataset is not None:
            with _reaching(self.uri):
                self.rows, found = dataset.count_rows(), dataset.schema
            self.bits, self.model, self.has_checks, self.scale = about(found, self.uri)

    @classmethod
    def open(cls, uri: str, salvage: bool = False) -> Table:
        """The last committed version that is whole, or an empty one where there is none yet; see `Index.open`.

        Args:
            uri: where it is.
            salvage: take one that is not whole, if none is.
        """
        path = local(uri)
        dataset, standing = _open(path, uri, salvage=salvage)
        note = None
        if not standing.is_newest and standing.whole is not None:
            note = (
                f"the newest version of index {uri} is not whole; this is version {standing.whole}, the last that is; "
                f"make it the newest with: dsh index verify {uri} `repair`"
            )
        return cls(uri, path, dataset, note)

    def snapshot(self) -> Table:
        """The version it stands on, kept when the table is changed."""
        return Table(self.uri, self._path, self._dataset)

    @property
    def version(self) -> int:
        """Number of the version; 0 before the first commit."""
        return 0 if self._dataset is None else int(self._dataset.version)

    def versions(self) -> tuple[int, int | None]:
        """How many are kept, and how many of them are whole; None where nobody knows, as in object storage."""
        if self._dataset is None:
            return 0, 0
        if self._path is not None:
            return storage.count_versions(self._path, self.uri)
        with self._reading():
            return len(self._dataset.versions()), None

    def read(self, names: list[str]) -> pa.Table:
        """Columns of all rows, in the order in which they lie in the table."""
        table = self._stored(names)
        check(table, self.bits, self.uri)
        return table

    def parts(self, names: list[str]) -> Iterator[pa.Table]:
        """As `read`, some rows at a time, and never held together."""
        for _, part in self._batches(names, _READ_ROWS):
            check(part, self.bits, self.uri)
            yield part

    def each(
        self,
        columns: Sequence[str],
        work: Callable[[int, pa.Table], T],
        threads: int = 1,
        rows: int | None = None,
    ) -> Iterator[T]:
        """What `work` makes of codes, labels or neither, so many rows at a time in the order in which they lie.

        It is called by threads, which also check the rows, while the next are read, with the place of the first row
        and a table of "number" and the columns. All is as it was written only when the last has been yielded without
        an error.

        Raises:
            IndexStateError: some rows are not what was written, or rows are lost.
            VersionGone: this version is no longer there; where it is not when it is called, that is raised at once.
        """
        checks = [f"{name}_check" for name in columns] if self.has_checks else []
        batches = self._batches(["number", *columns, *checks], rows or _READ_ROWS)

        def read(parts: list[tuple[int, pa.Table]]) -> list[_Read]:
            return [self._read_part(place, part, checks, work) for place, part in parts]

        def each() -> Iterator[T]:
            spoilt = total = 0
            last, ascends = -1, True
            for _, part in ahead(batches, read, threads, 1, 0):
                spoilt, total = spoilt + part.spoilt, total + part.total
                ascends &= part.ascends and (part.first > last or part.first < 0)
                last = max(last, part.last)
                if not spoilt:
                    yield cast(T, part.made[0])
            self._require_none(spoilt)
            if "code_check" in checks and self._total not in (None, total & (1 << 64) - 1):
                raise self._damaged("it has not the rows that were written")
            self._in_order, self._last = ascends, last

        return each()

    def block_rows(self, threads: int, more: int = 0) -> int:
        """Rows of a block that is searched by so many threads, with so many bytes a row read beside its code.

        So that there are enough of them for the threads, and all that are there at once take no more than they may.
        """
        a_row = 64 + 2 * -(-self.bits // 8) + more  # as it was read, and what is made of it
        there = 2 * threads + 4  # ahead of the search, in it, and on the way
        least, most = _BLOCK_ROWS
        return max(1, min(most, _BLOCKS // (there * a_row), max(least, -(-self.rows // threads))))

    @property
    def in_order(self) -> bool:
        """Whether rows lie in the order of adding."""
        if self._in_order is None:
            for _ in self.each([], lambda place, part: None):
                pass
        return bool(self._in_order)

    def next_number(self) -> int:
        """The number of the next row that is added.

        Raises:
            IndexStateError: two rows have one number.
        """
        if not self.in_order:
            self.places()
        return self._last + 1

    def where(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where rows lie in the table, by how many were added before them.

        Raises:
            IndexError: there is no such row.
        """
        if not self.in_order:
            return self.places()[ranks]
        if len(ranks) and ranks.max() >= self.rows:
            raise IndexError(f"there are {self.rows:,} rows, numbered from 0")
        return ranks

    def ranks(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many rows were added before those that lie there; all numbers are read, and none are kept.

        Raises:
            IndexStateError: another row has the number of one of them.
        """
        if self.in_order or not len(places):
            return places
        assert self._dataset is not None
        wanted, at = np.unique(places, return_inverse=True)
        with self._reading():
            numbers = self._dataset.take(wanted, columns=["number"])["number"].to_numpy()

        def count(place: int, part: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            there = np.sort(part["number"].to_numpy())
            return np.searchsorted(there, numbers), np.searchsorted(there, numbers, "right")

        below, up_to = np.zeros(len(numbers), np.int64), np.zeros(len(numbers), np.int64)
        for fewer, no_more in self.each([], count):
            below += fewer
            up_to += no_more
        if (up_to - below != 1).any():
            raise strange(self.uri, "two rows of one number")
        return below[at]

    def at(self, places: NDArray[np.int64], names: list[str]) -> pa.Table:
        """Columns of rows by where they lie in the table, as they were written.

        Raises:
            IndexStateError: some are not.
        """
        if self._dataset is None:
            return self.read(names)
        with self._reading():
            table = self._dataset.take(places, columns=self._columns if self.has_checks else names)
        self._require(self._whole(table))
        check(table, self.bits, self.uri)
        return table.select(names)

    def outputs(self, places: NDArray[np.int64]) -> Outputs:
        """(n, k) outputs of rows by where they lie in the table, as they were written, of a table that keeps them.

        Raises:
            IndexStateError: some are not.
        """
        assert self._dataset is not None
        (name,) = digests.OUTPUTS
        wanted, at = np.unique(places, return_inverse=True)
        with self._reading():
            table = self._dataset.take(wanted, columns=[*digests.OUTPUTS[name], name])
        self._require(digests.sums(table, name, self._seed) == table[name].to_numpy())
        check(table, self.bits, self.uri)
        return fixed(table["outputs"]).view(np.int8)[at]

    def places(self) -> NDArray[np.int64]:
        """Where the rows lie in the table, in the order of adding."""
        if self._order is None:
            if self.in_order:
                self._order = np.arange(self.rows)
            else:
                numbers = np.concatenate(list(self.each([], lambda place, part: part["number"].to_numpy())))
                self._order = np.argsort(numbers, kind="stable")
                if (np.diff(numbers[self._order]) == 0).any():
                    raise strange(self.uri, "two rows of one number")
        return self._order

    def damage(self) -> list[Damage]:
        """Rows that are not what was written, and, if there are none, whether some are missing, or nobody can tell."""
        found: list[Damage] = []
        place = total = 0
        for part, count, error in self._parts():
            if part is None:
                found.append(Damage(place, count, None, f"cannot be read ({error})"))
            elif self.has_checks:
                total += _total(part)
                found += [
                    Damage(place + row, 1, os.fsdecode(part["path"][row].as_py()), "not what was written")
                    for row in np.flatnonzero(~self._whole(part)).tolist()
                ]
            place += count
        if found or not self.has_checks:
            return found
        if self._total is None and self._path is not None and self.rows:
            found.append(Damage(place, 0, None, "whether rows were lost cannot be told, for their sum is not there"))
        elif self._total not in (None, total & (1 << 64) - 1):
            found.append(Damage(place, 0, None, "rows were lost, or others came back"))
        return found

    # Changing

    @contextmanager
    def writing(self, waiting: Callable[[], None] | None, salvage: bool = False) -> Iterator[None]:
        """Be the only writer, on the newest version that is whole, of which all rows have checks."""
        with locked(self._path, self.uri, waiting) as self._require_lock:
            dataset, standing = _open(self._path, self.uri, every=True, salvage=salvage)
            self._take(dataset)
            if dataset is not None:
                with self._changing():
                    storage.end(self._path, self.uri)  # of a first commit that was killed after it
            if self._path is not None:
                with self._changing():
                    self._synced = storage.files(self._path, *_SYNCED)
                    storage.drop(self._path, standing)
                    self.note = None
            if not self.has_checks:
                self.rewrite()
            yield

    def append(self, table: pa.Table) -> None:
        """Commit new rows."""
        from lance.fragment import write_fragments

        # a table without rows may be of another model
        mode = "create" if self._dataset is None else "append" if self.rows else "overwrite"
        with self._changing():
            if mode == "create":
                storage.begin(self._path, self.uri)
            # where all rows were removed a table is no truth value
            place = (self._path or self.uri) if self._dataset is None else self._dataset
            said = reached(self.uri)
            change = write_fragments(table, place, mode=mode, return_transaction=True, storage_options=said)
        self._commit(change, _total(table), begin=mode != "append")

    def merge(self, table: pa.Table) -> None:
        """Replace rows that have the same number, and append the others, in one commit."""
        assert self._dataset is not None
        more, numbers = _total(table), table["number"].to_numpy()
        for part in self.parts(["number", "code_check"]):
            more -= _total(part.filter(np.isin(part["number"].to_numpy(), numbers)))
        with self._changing():
            change, _ = (
                self._dataset.merge_insert("number")
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .execute_uncommitted(table)
            )
        self._commit(change, more)

    def delete(self, numbers: NDArray[np.int64]) -> None:
        """Take out the rows of these numbers, in one commit."""
        if not len(numbers):
            return
        import lance

        assert self._dataset is not None
        old = self.read(["number", "code_check"])
        gone = np.isin(old["number"].to_numpy(), numbers)
        updated, emptied, place = list[lance.FragmentMetadata](), list[int](), 0
        with self._changing():
            for fragment in self._dataset.get_fragments():
                rows = slice(place, place + fragment.count_rows())
                place = rows.stop
                if gone[rows].all():
                    emptied.append(fragment.fragment_id)
                elif gone[rows].any():
                    chosen = old["number"].to_numpy()[rows][gone[rows]]
                    left = fragment.delete(f"number IN ({','.join(map(str, chosen.tolist()))})")
                    assert left is not None
                    updated.append(left)
        change = lance.LanceOperation.Delete(updated, emptied, "number IN ...")
        self._commit(lance.Transaction(self.version, change), -_total(old.filter(gone)))

    def rewrite(self) -> None:
        """Write anew, with their checks, all rows that can be read and are what was written."""
        if self._dataset is None or not self.rows:
            return
        import pyarrow as pa
        from lance.fragment import write_fragments

        ours, total = schema(self.bits, self.model, self.scale), 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal total
            for part, _, _ in self._parts():
                if part is not None:
                    kept = _checked(part.filter(self._whole(part)), self._seed, ours)
                    total += _total(kept)
                    yield from kept.to_batches()

        with self._changing():
            reader = pa.RecordBatchReader.from_batches(ours, batches())
            change = write_fragments(
                reader,
                self._dataset,
                mode="overwrite",
                max_rows_per_file=_FRAGMENT_ROWS,
                return_transaction=True,
            )
        self._commit(change, total, begin=True)

    def tidy(self) -> None:
        """Few files, and no old versions but those that someone may still read, and one to go back to."""
        if self._dataset is None:
            return
        with suppress(_Overtaken):  # what was to be done is done, and who came in between tidies up as well
            self._tidy(self._dataset)

    def _tidy(self, dataset: lance.LanceDataset) -> None:
        with self._changing():
            fragments = dataset.get_fragments()
            # Lance finds rows by number slowly in a fragment that others were removed from: 2.7 ms a row, not 0.02.
            if len(fragments) > _FRAGMENTS or any(fragment.num_deletions for fragment in fragments):
                self._compact(fragments)
            assert self._dataset is not None
            kept = self._dataset.versions()
            replaced = [
                old["version"]
                for old, new in pairwise(kept[: len(kept) + 1 - _KEPT_ALWAYS])
                if cast(datetime, new["timestamp"]) <= datetime.now() - _KEPT
            ]
            if self._path is not None:
                # under the lock what belongs to no version was left by a process that was killed
                self._dataset.cleanup_old_versions(versions=[*replaced, self.version], delete_unverified=True)
            elif replaced:  # and what is in no version for a week, by when nobody is about to commit it
                self._dataset.cleanup_old_versions(versions=replaced)

    def _compact(self, fragments: list[lance.LanceFragment]) -> None:
        """Make few full files without removed rows of those that are neither, in one commit."""
        import lance
        from lance.fragment import write_fragments

        assert self._dataset is not None
        groups = []
        for unfit, run in groupby(fragments, lambda f: f.num_deletions > 0 or f.physical_rows < _FRAGMENT_ROWS):
            old = list(run)
            if unfit and (len(old) > 1 or old[0].num_deletions):
                _try(old, self._columns)
                rows = self._dataset.scanner(fragments=old).to_reader()
                new = write_fragments(rows, self._dataset, mode="append", max_rows_per_file=_FRAGMENT_ROWS)
                groups.append(lance.LanceOperation.RewriteGroup([fragment.metadata for fragment in old], new))
        if groups:
            self._commit(lance.Transaction(self.version, lance.LanceOperation.Rewrite(groups, [])), 0)

    def _commit(self, change: lance.Transaction, more: int, begin: bool = False) -> None:
        """Make what has been written the newest version, so that it outlasts a loss of power.

        Args:
            change: what Lance has written.
            more: by how much the sum of all checks changes.
            begin: whether these are all rows.
        """
        import lance

        path = self._path
        before = 0 if begin else self._total
        if before is not None:
            change.transaction_properties = {_TOTAL: f"{before + more & (1 << 64) - 1:x}"}
        new = self._dataset is None
        if path is not None:
            with self._changing():
                self._sync(path, "data", "_deletions")
        with self._changing():
            if path is None:
                self._take(self._commit_alone(change))
            else:
                self._take(lance.LanceDataset.commit(path if self._dataset is None else self._dataset, change))
                self._sync(path, "_transactions", storage.VERSIONS)
                if new:
                    sync_folder(Path(path).parent)
                if storage.look_at(path, self.uri, every=False).whole != self.version:
                    raise OSError(f"what pylance {lance.__version__} wrote cannot be read again")
            if new:
                storage.end(path, self.uri)

    def _commit_alone(self, change: lance.Transaction) -> lance.LanceDataset:
        """Commit in object storage, where others may write too, if nobody else has since the version stood on."""
        import lance

        if self._dataset is not None:
            change.operation = _touching(change.operation, self._dataset.get_fragments())
        place = self.uri if self._dataset is None else self._dataset  # without rows it is no truth value
        # without retries what replaces all rows is not fitted to what came in between
        return lance.LanceDataset.commit(place, change, max_retries=0, storage_options=reached(self.uri))

    def _sync(self, path: str, *parts: str) -> None:
        """Make files written since, and the folders they are in, outlast a loss of power."""
        fresh = storage.files(path, *parts) - self._synced
        storage.sync(fresh)
        sync_folder(Path(path))
        self._synced |= fresh

    # Inside

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell a version that is gone from one that is damaged. Only Lance's own calls belong inside."""
        try:
            with _reaching(self.uri):
                yield
        except IndexStateError as error:
            if not self._is_gone():
                raise
            raise VersionGone(
                f"version {self.version} of index {self.uri} is gone, for it was replaced; open the index again"
            ) from error

    def _is_gone(self) -> bool:
        """Whether there is another version in place of this one; an older one alone is what damage leaves."""
        try:
            newest, _ = _open(self._path, self.uri)
            if newest is None or newest.version >= self.version or self._path is None:
                return newest is not None and newest.version != self.version
            return self.version not in storage.versions(self._path, self.uri)
        except IndexStateError:
            return False

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Refuse to write where the lock is gone. Only Lance's own calls belong inside."""
        self._require_lock()
        try:
            with _reaching(self.uri, "write"):
                yield
        except IndexStateError as error:
            # of an index that another process has begun meanwhile, Lance says many things
            if self._path is None and self._dataset is None and _open(None, self.uri)[0] is not None:
                raise _overtaken(self.uri) from error
            raise

    def _batches(self, names: list[str], rows: int) -> Iterator[tuple[int, pa.Table]]:
        """Columns of all rows, whatever is in them, so many at a time, each time with the place of the first."""
        if self._dataset is None:
            return iter(())
        import pyarrow as pa

        with self._reading():
            _try(self._dataset.get_fragments(), names)
            reader = self._dataset.scanner(
                columns=names,
                batch_size=rows,
                batch_readahead=2,
                fragment_readahead=2,
                io_buffer_size=_IO_BYTES,
                scan_in_order=True,
            ).to_reader()

        def read() -> Iterator[tuple[int, pa.Table]]:
            place = 0
            while True:
                with self._reading():
                    batch = next(reader, None)
                end = place if batch is None else place + len(batch)
                if end > self.rows or (batch is None and end < self.rows):  # which those who read have room for
                    raise self._damaged("it has not the rows that were written")
                if batch is None:
                    return
                yield place, pa.Table.from_batches([batch])
                place = end

        return read()

    def _read_part(
        self, place: int, part: pa.Table, checks: list[str], work: Callable[[int, pa.Table], object]
    ) -> _Read:
        """Check some rows, and do what is to be done with them if they are as they were written."""
        whole, total = np.ones(len(part), bool), 0
        for name in checks:
            stored = part[name].to_numpy()
            whole &= digests.sums(part, name, self._seed) == stored
            total += digests.total(stored) if name == "code_check" else 0
        spoilt = len(part) - int(whole.sum())
        made: list[object] = []
        if not spoilt:
            check(part, self.bits, self.uri)
            made.append(work(place, part.drop_columns(checks)))
        numbers = part["number"].to_numpy()
        ends = (int(numbers[0]), int(numbers.max())) if len(numbers) else (-1, -1)
        return _Read(made, spoilt, total, *ends, bool((numbers[1:] > numbers[:-1]).all()))

    def _stored(self, names: list[str]) -> pa.Table:
        """Columns of all rows, whatever is in them."""
        if self._dataset is None:
            return columns(8).empty_table().select(names)
        with self._reading():
            _try(self._dataset.get_fragments(), names)
            return self._dataset.to_table(columns=names)

    @property
    def _columns(self) -> list[str]:
        """Names of all columns."""
        return list(columns(self.bits, self.has_checks, self.scale is not None).names)

    @property
    def _seed(self) -> str:
        """What goes into each check."""
        return f"{self.bits} {self.model}"

    @property
    def _total(self) -> int | None:
        """The sum of the checks of all rows as it was committed; None where nobody knows."""
        if self._dataset is None:
            return 0
        try:
            with _reaching(self.uri):
                change = self._dataset.read_transaction(self._dataset.version)
            return int((change and change.transaction_properties or {})[_TOTAL], 16)
        except (IndexStateError, KeyError, ValueError):
            return None

    def _parts(self) -> Iterator[tuple[pa.Table | None, int, str]]:
        """All rows, as many as may be read at once; None for those that cannot be. With their count, and why not."""
        import pyarrow as pa

        assert self._dataset is not None
        names = self._columns
        with _reaching(self.uri):
            fragments = self._dataset.get_fragments()
        for fragment in fragments:
            left = 0
            try:
                with self._reading():
                    left = fragment.count_rows()
                    _try([fragment], names)
                    for batch in fragment.to_batches(columns=names):
                        left -= len(batch)
                        yield pa.Table.from_batches([batch]), len(batch), ""
            except _Damaged as error:
                yield None, left, _said(error.__cause__ or error)

    def _whole(self, part: pa.Table) -> NDArray[np.bool_]:
        """Which rows are what was written, as far as can be told."""
        whole = np.ones(len(part), bool)
        for name in digests.names(self.scale is not None) if self.has_checks else ():
            whole &= digests.sums(part, name, self._seed) == part[name].to_numpy()
        return whole

    def _require(self, whole: NDArray[np.bool_]) -> None:
        self._require_none(int((~whole).sum()))

    def _require_none(self, count: int) -> None:
        """Refuse rows that are not what was written, where there are so many."""
        if count:
            raise self._damaged(f"{counted(count, 'row')} {'is' if count == 1 else 'are'} not what was written")

    def _damaged(self, what: str) -> IndexStateError:
        return IndexStateError(
            f"index {self.uri} is damaged: {what}; see which with: dsh index verify {self.uri}, and take them out with "
            "`repair`"
        )


def of_rows(
    numbers: NDArray[np.int64],
    paths: Sequence[bytes],
    labels: Sequence[bytes | None],
    packed: Packed,
    hashes: Sequence[bytes | None],
    sizes: Sequence[int | None],
    mtimes: Sequence[int | None],
    bits: int,
    model: str,
    outputs: Outputs | None = None,
    scale: float | None = None,
) -> pa.Table:
    """Rows to be written, with (n, bits) outputs and their scale or without both."""
    import pyarrow as pa

    plain = columns(bits, checks=False, outputs=outputs is not None)
    codes = pa.py_buffer(np.ascontiguousarray(packed))
    values = [
        pa.array(numbers),
        pa.array(paths, pa.binary()),
        pa.array(labels, pa.binary()),
        pa.FixedSizeBinaryArray.from_buffers(plain.field("code").type, len(packed), [None, codes]),
        pa.array(hashes, pa.binary(DIGEST)),
        pa.array(sizes, pa.int64()),
        pa.array(mtimes, pa.int64()),
    ]
    if outputs is not None:
        steps = pa.py_buffer(np.ascontiguousarray(outputs))
        values.append(pa.FixedSizeBinaryArray.from_buffers(plain.field("outputs").type, len(outputs), [None, steps]))
    return _checked(pa.table(values, schema=plain), f"{bits} {model}", schema(bits, model, scale))


def _checked(rows: pa.Table, seed: str, ours: pa.Schema) -> pa.Table:
    """Rows with their checks, by a schema that has both."""
    import pyarrow as pa

    values = [
        pa.array(digests.sums(rows, name, seed)) if name in digests.names(True) else rows[name] for name in ours.names
    ]
    return pa.table(values, schema=ours)


def _total(rows: pa.Table) -> int:
    """The sum of the checks of rows."""
    return digests.total(rows["code_check"].to_numpy())


def _open(
    path: str | None, uri: str, every: bool = False, salvage: bool = False
) -> tuple[lance.LanceDataset | None, storage.Standing]:
    """The table at a place, and where it stands; None where none has been committed.

    Args:
        path: where it lies; None in object storage.
        uri: what messages call it.
        every: as in `storage.look_at`.
        salvage: take a version that is not whole, if none is.
    """
    import lance

    if path is None:
        with _reaching(uri):
            try:
                storage.look_at_remote(uri, every)
                return lance.dataset(uri, storage_options=reached(uri)), storage.Standing(None)
            except ValueError as error:
                if re.search(r"was not found: Not found: .*_versions\b", str(error)):
                    return None, storage.Standing(None)
                raise
    while True:
        standing = _look_at(path, uri, every)
        number = standing.readable if standing.whole is None and salvage else standing.whole
        if number is None and standing.is_newest:
            return None, standing
        if number is None:
            if standing.readable is None:
                raise storage.lost(
                    uri, "none of its versions is whole" if standing.damaged else "all of its versions are gone"
                )
            raise IndexStateError(
                f"index {uri} is damaged: none of its versions is whole; keep what is left with: "
                f"dsh index verify {uri} `repair`"
            )
        try:
            with _reaching(uri):
                dataset = lance.dataset(path, version=number)
                _ = dataset.schema  # read here, for a damaged one is a panic
            if standing.whole is not None:
                _require_bytes(dataset, path, uri)
            return dataset, standing
        except IndexStateError as error:
            if _look_at(path, uri, every) == standing:  # else another process has gone on meanwhile
                if isinstance(error, _Damaged):
                    raise _unopened(path, uri, number, error) from error
                raise


def _unopened(path: str, uri: str, number: int, error: _Damaged) -> IndexStateError:
    """An error that says what to do about a version whose manifest looks whole, and which Lance refuses."""
    manifests = dict(storage.manifests(path))
    left = f"delete {uri} and make it again with: dsh index add"
    if len(manifests) > 1:  # not taken out by a repair, for it may be of a newer Lance
        left = f"move {manifests[number]} elsewhere, and go back a version with: dsh index verify {uri} `repair`"
    said = _said(error.__cause__ or error)
    return _Damaged(f"index {uri} is damaged: its version {number} cannot be opened ({said}); upgrade dsh, or {left}")


def _look_at(path: str, uri: str, every: bool) -> storage.Standing:
    """Which version of what may be a local index is whole."""
    if not os.path.lexists(path):
        return storage.Standing(None)
    if not os.path.isdir(path):
        raise IndexStateError(f"{uri} is a file, not an index; an index is a folder made by: dsh index add")
    try:
        if others := sorted(set(os.listdir(path)) - _OF_LANCE - {storage.BEGUN}):
            raise IndexStateError(f"{uri} is a folder of other things ({others[0]}), not an index; choose another name")
    except OSError as error:
        raise storage.unreachable(uri, reason(error)) from error
    return storage.look_at(path, uri, every)


def _require_bytes(dataset: lance.LanceDataset, path: str, uri: str) -> None:
    """Refuse to make room for more rows than can be in the files of a local index.

    Raises:
        IndexStateError: the table says that it has more.
    """
    with _reaching(uri):
        rows = dataset.count_rows()
        if rows < _MANY:
            return
        names = [file.path for fragment in dataset.get_fragments() for file in fragment.data_files()]
        if rows > sum(Path(path, "data", name).stat().st_size for name in names):  # a row has bytes, not bits
            raise strange(uri, f"{rows:,} rows in files too small for them")


def _try(fragments: list[lance.LanceFragment], names: list[str]) -> None:
    """Take a row of each file: what is wrong with one is an error there, and may be an abort in Lance's streams."""
    for fragment in fragments:
        fragment.take([0], columns=names)


def _touching(change: Any, fragments: Sequence[lance.LanceFragment]) -> Any:
    """A change of rows as Lance knows it, made one of the first fragment too, as all are in object storage.

    Lance refuses one that was made on a fragment of which another commit has come since, and lets others follow.
    """
    from lance import LanceOperation

    match change:
        case LanceOperation.Append():
            change = LanceOperation.Update(new_fragments=list(change.fragments))
        case LanceOperation.Rewrite():
            change = LanceOperation.Update(
                removed_fragment_ids=[old.id for group in change.groups for old in group.old_fragments],
                new_fragments=[new for group in change.groups for new in group.new_fragments],
            )
        case LanceOperation.Overwrite():  # of all of them
            return change
    first = fragments[0].metadata
    gone = change.deleted_fragment_ids if isinstance(change, LanceOperation.Delete) else change.removed_fragment_ids
    if first.id not in [*gone, *(fragment.id for fragment in change.updated_fragments)]:
        change.updated_fragments = [*change.updated_fragments, first]
    return change


class _Damaged(IndexStateError):
    """What was reached is not what was written."""


class _Overtaken(IndexStateError):
    """Another process has committed meanwhile, in object storage."""


def _overtaken(uri: str) -> _Overtaken:
    return _Overtaken(
        f"another process has written index {uri} meanwhile; run the same command again, which does what is left, and "
        "let one process write at a time"
    )


@contextmanager
def _reaching(uri: str, doing: str = "read") -> Iterator[None]:
    """Lance's errors, in one line. Only its own calls belong inside."""
    try:
        yield
    except BaseException as error:
        # a panic of Lance's is of a type of its own, and no Exception
        is_panic = type(error).__name__ == "PanicException"
        if not is_panic and not isinstance(error, (OSError, ValueError, RuntimeError, MemoryError)):
            raise
        said, answer = _said(error), _answer(error) if local(uri) is None else None
        if (asked := lacking_memory(error)) is not None:
            raise IndexStateError(
                f"index {uri} cannot be {'read' if doing == 'read' else 'written'}: there is no memory for {asked}; "
                "end other programs, or raise the limit (see: ulimit -v)"
            ) from error
        if type(error).__name__ == "CommitConflictError" and local(uri) is None:
            raise _overtaken(uri) from error
        if found := re.search(r"No object store provider found for scheme: '([^']*)'", said):
            raise UsageError(f"{uri}: there is no storage {found[1]}://; give a folder, or s3://BUCKET/NAME") from error
        if doing == "write":
            what_to_do = "free space" if lacking_space(error) else "see to its permissions and disk"
            what_to_do += ", or choose another place"
            if answer is not None:
                said, what_to_do = answer, f"see to its {storage.TO_SEE_TO}, and run the same command again"
            raise IndexStateError(f"index {uri} cannot be written ({said}); {what_to_do}") from error
        if answer is not None:
            raise storage.unreachable(uri, answer) from error
        place = (local(uri) or uri.partition("://")[2]).strip("/")  # whose folders may be called anything
        if _UNREACHED.search(said.replace(place, "")) and not is_panic:
            raise storage.unreachable(uri, said) from error
        raise _Damaged(
            f"index {uri} is damaged ({said}); keep what is left with: dsh index verify {uri} `repair`"
        ) from error


def _answer(error: BaseException) -> str | None:
    """What object storage has answered in place of what was asked for, in one line; None where it is another error.

    That an object is not there is no such answer.
    """
    said = str(error)
    if found := re.search(r"<Code>(\w+)</Code>\s*<Message>([^<]*)</Message>", said):
        return None if found[1] == "NoSuchKey" else f"{found[1]}: {found[2].strip().rstrip('.')}"
    if "Failed to get AWS credentials" in said:
        return "no credentials were found, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    where = re.search(r"[a-z]+://[^/\s?]+", said)
    if (status := re.search(r"status code: ((?!404)\d+ [A-Za-z ]*\w)", said)) and where:
        return f"{where[0]} answered {status[1]}"
    if where and "builder error" in said:
        return f"{where[0]} is not https, which AWS_ALLOW_HTTP does not allow"
    return f"{where[0]} does not answer" if where and "error sending request" in said else None


def _said(error: BaseException) -> str:
    """What an error of Lance's says, in one line, without where in its source."""
    said = re.split(r", /(?:home|rustc)/", " ".join(str(error).split()))[0]
    return said if len(said) <= 300 else said[:297] + "..."
