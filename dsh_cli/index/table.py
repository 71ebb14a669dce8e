"""The Lance table of an index: its columns, opened, locked, read, and changed by one commit at a time.

    number    order of adding; kept when a row is updated
    path      bytes as the file system has them: absolute, or relative to a folder chosen when adding
    label     bytes; null where unknown
    code      ceil(bits / 8) bytes
    hash      16 bytes, BLAKE2b of the file; with size and mtime_ns null where a code came without its file
    size      bytes of the file
    mtime_ns  when it was last changed

and `code_check`, `label_check` and `file_check`, digests of these; see `digests.py`. Tables of format 1 have none.

The table's metadata has the bits and the fingerprint of the run that made the codes. Every change is one commit of
Lance: readers see it whole or not at all, and a loss of power leaves it or the one before, for its files are synced
before it, and it is before the next. Writers of a local index wait for each other at a lock beside it, which
the system frees when its process ends. In object storage there is no such lock: let one process write at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed
from dsh_cli.errors import IndexStateError, UsageError, reason
from dsh_cli.index import digests, storage

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

FORMAT = 2  # of the table; a reader refuses a larger number
DIGEST = 16  # bytes of a hash

_FRAGMENTS = 16  # files of a table from which they are made into fewer
_FRAGMENT_ROWS = 1 << 20  # of a file, at most
_KEPT = timedelta(hours=1)  # old versions stay so long, for those who still read them
_KEPT_ALWAYS = 2  # versions, so that there is one to go back to
_TOTAL = "dsh.total"  # property of a commit: the sum of the checks of all rows
_OF_LANCE = {"data", "_versions", "_transactions", "_deletions", "_indices", "_refs"}
_UNREACHED = re.compile(  # in what Lance says of a place that it could not read, as against what it read there
    r"os error (?!2\b)\d+|permission|denied|forbidden|unauthorized|credential|time[d ]*out|connect|request", re.I
)
_SYNCED = ("data", "_deletions", "_transactions", storage.VERSIONS)


@dataclass(frozen=True)
class Damage:
    """A row that is not what was written, or rows that cannot be read."""

    place: int  # of the first, where they lie in the table
    count: int
    path: str | None  # None where it cannot be read
    what: str


class Table:
    """The table at the version it was opened at, and after each change made through it."""

    def __init__(self, uri: str, dataset: lance.LanceDataset | None, note: str | None = None) -> None:
        self.uri, self.note = uri, note
        self._synced: set[str] = set()  # files, by a writer
        self._take(dataset)

    def _take(self, dataset: lance.LanceDataset | None) -> None:
        """Stand on a version of the table."""
        self._dataset = dataset
        self._order: NDArray[np.int64] | None = None
        self.rows, self.bits, self.model = 0, 0, ""  # the last two also where all rows were removed
        self.has_checks = True
        if dataset is not None:
            with _reaching(self.uri):
                self.rows = dataset.count_rows()
                self.bits, self.model = _about(dataset.schema.metadata or {}, self.uri)
                # both, so that damage to one of them does not let other damage pass
                self.has_checks = dataset.schema.metadata[b"dsh.format"] != b"1" or "code_check" in dataset.schema.names

    @classmethod
    def open(cls, uri: str, salvage: bool = False) -> Table:
        """The last committed version that is whole, or an empty one where there is none yet; see `Index.open`.

        Args:
            uri: where it is.
            salvage: take one that is not whole, if none is.
        """
        dataset, standing = _open(uri, salvage=salvage)
        note = None
        if standing.damaged and standing.whole is not None:
            note = (
                f"the newest version of index {uri} is not whole; this is version {standing.whole}, the last that is; "
                f"make it the newest with: dsh index verify {uri} `repair`"
            )
        return cls(uri, dataset, note)

    def snapshot(self) -> Table:
        """The version it stands on, kept when the table is changed."""
        return Table(self.uri, self._dataset)

    @property
    def version(self) -> int:
        """Number of the version; 0 before the first commit."""
        return 0 if self._dataset is None else int(self._dataset.version)

    def versions(self) -> int:
        """How many are kept."""
        if self._dataset is None:
            return 0
        with _reaching(self.uri):
            path = _local(self.uri)
            return len(self._dataset.versions()) if path is None else storage.count_versions(path)

    def read(self, columns: list[str]) -> pa.Table:
        """Columns of all rows, in the order in which they lie in the table."""
        import pyarrow as pa

        if self._dataset is None:
            return pa.table({name: pa.array([], _schema(8)[0].type if name == "number" else pa.binary())
                             for name in columns})  # fmt: skip
        with _reaching(self.uri):
            return self._dataset.to_table(columns=columns)

    def whole(self, column: str) -> tuple[pa.ChunkedArray, NDArray[np.int64] | None]:
        """Codes or labels of all rows as they were written, and their order of adding; None where they lie in it.

        Raises:
            IndexStateError: some are not, or rows are lost.
        """
        if self._dataset is None or not self.has_checks:
            table = self.read(["number", column])
        else:
            check = f"{column}_check"
            table = self.read(["number", column, check])
            stored = table[check].to_numpy()
            self._require(digests.sums(table, check, self._seed) == stored)
            if column == "code" and self._total not in (None, digests.total(stored)):
                raise self._damaged("it has not the rows that were written")
        return table[column], order_of(table)

    def at(self, places: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Columns of rows by where they lie in the table, as they were written.

        Raises:
            IndexStateError: some are not.
        """
        if self._dataset is None:
            return self.read(columns)
        with _reaching(self.uri):
            table = self._dataset.take(places, columns=_schema(8).names if self.has_checks else columns)
        self._require(self._whole(table))
        return table.select(columns)

    def places(self) -> NDArray[np.int64]:
        """Where the rows lie in the table, in the order of adding."""
        if self._order is None:
            order = order_of(self.read(["number"]))
            self._order = np.arange(self.rows) if order is None else order
        return self._order

    def damage(self) -> list[Damage]:
        """Rows that are not what was written, and, if there are none, whether some are missing."""
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
        if not found and self.has_checks and self._total not in (None, total & (1 << 64) - 1):
            found.append(Damage(place, 0, None, "rows were lost, or others came back"))
        return found

    # Changing

    @contextmanager
    def writing(self, waiting: Callable[[], None] | None, salvage: bool = False) -> Iterator[None]:
        """Be the only writer, on the newest version that is whole, of which all rows have checks."""
        with _locked(self.uri, waiting):
            dataset, standing = _open(self.uri, every=True, salvage=salvage)
            self._take(dataset)
            path = _local(self.uri)
            if path is not None:
                with _reaching(self.uri, "write"):
                    self._synced = storage.files(path, *_SYNCED)
                    if standing.whole is not None:
                        storage.drop(standing.damaged)
            if not self.has_checks:
                self.rewrite()
            yield

    def append(self, table: pa.Table) -> None:
        """Commit new rows."""
        from lance.fragment import write_fragments

        # a table without rows may be of another model
        mode = "create" if self._dataset is None else "append" if self.rows else "overwrite"
        with _reaching(self.uri, "write"):
            change = write_fragments(table, self._dataset or self.uri, mode=mode, return_transaction=True)
        self._commit(change, _total(table), begin=mode != "append")

    def merge(self, table: pa.Table) -> None:
        """Replace rows that have the same number, and append the others, in one commit."""
        assert self._dataset is not None
        old = self.read(["number", "code_check"])
        replaced = np.isin(old["number"].to_numpy(), table["number"].to_numpy())
        more = _total(table) - _total(old.filter(replaced))
        with _reaching(self.uri, "write"):
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
        with _reaching(self.uri, "write"):
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

        schema = _schema(-(-self.bits // 8)).with_metadata(_metadata(self.bits, self.model))
        total = 0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal total
            for part, _, _ in self._parts():
                if part is not None:
                    kept = _checked(part.filter(self._whole(part)), self._seed, schema)
                    total += _total(kept)
                    yield from kept.to_batches()

        with _reaching(self.uri, "write"):
            reader = pa.RecordBatchReader.from_batches(schema, batches())
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
        with _reaching(self.uri, "write"):
            fragments = self._dataset.get_fragments()
            # Lance finds rows by number slowly in a fragment that others were removed from: 2.7 ms a row, not 0.02.
            if len(fragments) > _FRAGMENTS or any(fragment.num_deletions for fragment in fragments):
                self._compact(fragments)
            # under the lock what belongs to no version was left by a process that was killed
            self._dataset.cleanup_old_versions(
                older_than=_KEPT,
                retain_versions=_KEPT_ALWAYS,
                delete_unverified=_local(self.uri) is not None,
            )

    def _compact(self, fragments: list[lance.LanceFragment]) -> None:
        """Make few full files without removed rows of those that are neither, in one commit."""
        import lance
        from lance.fragment import write_fragments

        assert self._dataset is not None
        groups = []
        for unfit, run in groupby(fragments, lambda f: f.num_deletions > 0 or f.physical_rows < _FRAGMENT_ROWS):
            old = list(run)
            if unfit and (len(old) > 1 or old[0].num_deletions):
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

        path = _local(self.uri)
        before = 0 if begin else self._total
        # where others may commit between, as in object storage, nobody knows the sum
        if path is not None and before is not None:
            change.transaction_properties = {_TOTAL: f"{before + more & (1 << 64) - 1:x}"}
        with _reaching(self.uri, "write"):
            if path is not None:
                self._sync(path, "data", "_deletions")
            new = self._dataset is None
            self._take(lance.LanceDataset.commit(self._dataset or self.uri, change))
            if path is not None:
                self._sync(path, "_transactions", storage.VERSIONS)
                if new:
                    storage.sync_folder(Path(os.path.realpath(path)).parent)
                if storage.look_at(path, self.uri, every=False).whole != self.version:
                    raise OSError(f"what pylance {lance.__version__} wrote cannot be read again")

    def _sync(self, path: str, *parts: str) -> None:
        """Make files written since, and the folders they are in, outlast a loss of power."""
        fresh = storage.files(path, *parts) - self._synced
        storage.sync(fresh)
        storage.sync_folder(Path(path))
        self._synced |= fresh

    # Inside

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
            change = self._dataset.read_transaction(self._dataset.version)
        except (OSError, ValueError, RuntimeError):
            return None
        try:
            return int((change and change.transaction_properties or {})[_TOTAL], 16)
        except (KeyError, ValueError):
            return None

    def _parts(self) -> Iterator[tuple[pa.Table | None, int, str]]:
        """All rows, as many as may be read at once; None for those that cannot be. With their count, and why not."""
        import pyarrow as pa

        assert self._dataset is not None
        columns = _schema(8, self.has_checks).names
        with _reaching(self.uri):
            fragments = self._dataset.get_fragments()
        for fragment in fragments:
            left = 0
            try:
                with _reaching(self.uri):
                    left = fragment.count_rows()
                    for batch in fragment.to_batches(columns=columns):
                        left -= len(batch)
                        yield pa.Table.from_batches([batch]), len(batch), ""
            except IndexStateError as error:
                yield None, left, _said(error.__cause__ or error)

    def _whole(self, part: pa.Table) -> NDArray[np.bool_]:
        """Which rows are what was written, as far as can be told."""
        whole = np.ones(len(part), bool)
        for name in digests.COLUMNS if self.has_checks else ():
            whole &= digests.sums(part, name, self._seed) == part[name].to_numpy()
        return whole

    def _require(self, whole: NDArray[np.bool_]) -> None:
        if not whole.all():
            count = int((~whole).sum())
            raise self._damaged(f"{count:,} row{' is' if count == 1 else 's are'} not what was written")

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
) -> pa.Table:
    """Rows to be written."""
    import pyarrow as pa

    schema = _schema(packed.shape[1], checks=False)
    codes = pa.py_buffer(np.ascontiguousarray(packed))
    columns = [
        pa.array(numbers),
        pa.array(paths, pa.binary()),
        pa.array(labels, pa.binary()),
        pa.FixedSizeBinaryArray.from_buffers(schema.field("code").type, len(packed), [None, codes]),
        pa.array(hashes, pa.binary(DIGEST)),
        pa.array(sizes, pa.int64()),
        pa.array(mtimes, pa.int64()),
    ]
    whole = _schema(packed.shape[1]).with_metadata(_metadata(bits, model))
    return _checked(pa.table(columns, schema=schema), f"{bits} {model}", whole)


def _checked(rows: pa.Table, about: str, schema: pa.Schema) -> pa.Table:
    """Rows with their checks, by a schema that has both."""
    import pyarrow as pa

    columns = [
        pa.array(digests.sums(rows, name, about)) if name in digests.COLUMNS else rows[name] for name in schema.names
    ]
    return pa.table(columns, schema=schema)


def _total(rows: pa.Table) -> int:
    """The sum of the checks of rows."""
    return digests.total(rows["code_check"].to_numpy())


def _metadata(bits: int, model: str) -> dict[str, str]:
    return {"dsh.format": str(FORMAT), "dsh.bits": str(bits), "dsh.model": model}


def fixed(column: pa.ChunkedArray) -> Packed:
    """A column of n binaries of w bytes as (n, w)."""
    width = column.type.byte_width
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        for chunk in column.chunks
    ]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return joined.reshape(-1, width)


def order_of(table: pa.Table) -> NDArray[np.int64] | None:
    """The order of adding; None where the rows lie in it."""
    numbers = table["number"].to_numpy()
    return None if (numbers[1:] > numbers[:-1]).all() else np.argsort(numbers, kind="stable")


def _open(uri: str, every: bool = False, salvage: bool = False) -> tuple[lance.LanceDataset | None, storage.Standing]:
    """The table at a URI, and where it stands; None where none has been committed.

    Args:
        uri: where it is.
        every: as in `storage.look_at`.
        salvage: take a version that is not whole, if none is.
    """
    if not uri:
        raise UsageError("the index has an empty name")
    path, standing = _local(uri), storage.Standing(None)
    if path is not None:
        if not os.path.lexists(path):
            return None, standing
        if not os.path.isdir(path):
            raise IndexStateError(f"{uri} is a file, not an index; an index is a folder made by: dsh index add")
        try:
            if strange := sorted(set(os.listdir(path)) - _OF_LANCE):
                raise IndexStateError(
                    f"{uri} is a folder of other things ({strange[0]}), not an index; choose another name"
                )
        except OSError as error:
            raise IndexStateError(f"cannot read index {uri}: {reason(error)}") from error

        standing = storage.look_at(path, uri, every)
        if not standing.damaged and standing.whole is None:
            return None, standing

    import lance

    number = standing.readable if standing.whole is None and salvage else standing.whole
    if path is not None and number is None:
        left = f"delete {uri} and make it again with: dsh index add"
        if standing.readable is not None:
            left = f"keep what is left with: dsh index verify {uri} `repair`"
        raise IndexStateError(f"index {uri} is damaged: none of its versions is whole; {left}")
    with _reaching(uri):
        try:
            if path is None:
                storage.look_at_remote(uri, every)
            dataset = lance.dataset(uri, version=number)
        except ValueError as error:
            if re.search(r"was not found: Not found: .*_versions\b", str(error)):
                return None, standing
            raise
    _about(dataset.schema.metadata or {}, uri)
    return dataset, standing


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
            f"cannot write index {uri}: {reason(error)} (its lock {real}.lock); choose another place"
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
        said = _said(error)
        if doing == "write":
            raise IndexStateError(
                f"index {uri} cannot be written ({said}); free space, or choose another place"
            ) from error
        if _UNREACHED.search(said):
            raise storage.unreachable(uri, said) from error
        raise IndexStateError(
            f"index {uri} is damaged ({said}); keep what is left with: dsh index verify {uri} `repair`"
        ) from error


def _said(error: BaseException) -> str:
    """What an error of Lance's says, in one line, without where in its source."""
    said = re.split(r", /(?:home|rustc)/", " ".join(str(error).split()))[0]
    return said if len(said) <= 300 else said[:299] + "…"


def _schema(width: int, checks: bool = True) -> pa.Schema:
    import pyarrow as pa

    checked = [pa.field(name, pa.uint32(), False) for name in digests.COLUMNS] if checks else []
    fields = [
        pa.field("number", pa.int64(), False),
        pa.field("path", pa.binary(), False),
        pa.field("label", pa.binary()),
        pa.field("code", pa.binary(width), False),
        pa.field("hash", pa.binary(DIGEST)),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
    ]
    return pa.schema(fields + checked)
