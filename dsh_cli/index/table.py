"""The Lance table of an index: its columns, opened, locked, read, and changed by one commit at a time.

    number    order of adding; kept when a row is updated
    path      bytes as the file system has them: absolute, or relative to a folder chosen when adding
    label     bytes; null where unknown
    code      ceil(bits / 8) bytes
    hash      16 bytes, BLAKE2b of the file; with size and mtime_ns null where a code came without its file
    size      bytes of the file
    mtime_ns  when it was last changed

The table's metadata has the bits and the fingerprint of the run that made the codes. Every change is one commit of
Lance: readers see it whole or not at all. Writers of a local index wait for each other at a lock on its folder, which
the system frees when its process ends. In object storage there is no such lock: let one process write at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from dsh_cli.codes.bits import Packed
from dsh_cli.config import MAX_BITS
from dsh_cli.errors import IndexStateError, UsageError, VersionGone, reason

if TYPE_CHECKING:
    import lance
    import pyarrow as pa

FORMAT = 1  # of the table; a reader refuses a larger number
DIGEST = 16  # bytes of a hash

_NUMBERS = 1 << 62  # rows are numbered below it
_MANY = 1 << 20  # rows that need no second look before memory is asked for
_FRAGMENTS = 16  # files of a table from which they are made into fewer
_KEPT = timedelta(hours=1)  # versions stay so long after they were replaced, for those who still read them
_ON_DISK = ("file", "file+uring", "file-object-store")  # schemes by which Lance reaches a local folder
_OF_LANCE = {"data", "_versions", "_transactions", "_deletions", "_indices", "_refs", "_branches"}


class Table:
    """The table at the version it was opened at, and after each change made through it."""

    def __init__(self, uri: str, dataset: lance.LanceDataset | None) -> None:
        self.uri = uri
        self._require_lock: Callable[[], None] = lambda: None
        self._take(dataset)

    def _take(self, dataset: lance.LanceDataset | None) -> None:
        """Stand on a version of the table."""
        self._dataset = dataset
        self._order: NDArray[np.int64] | None = None
        self.rows, self.bits, self.model = 0, 0, ""  # the last two also where all rows were removed
        if dataset is not None:
            with _reaching(self.uri):
                self.rows = dataset.count_rows()
                schema = dataset.schema
            self.bits, self.model = _about(schema, self.uri)
            self._require_bytes(dataset)

    @classmethod
    def open(cls, uri: str) -> Table:
        """The last committed version, or an empty one where there is none yet; see `Index.open`."""
        return cls(uri, _open(uri))

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
        with self._reading():
            return len(self._dataset.versions())

    def read(self, columns: list[str]) -> pa.Table:
        """Columns of all rows, in the order in which they lie in the table."""
        import pyarrow as pa

        if self._dataset is None:
            return pa.table({name: pa.array([], _schema(8)[0].type if name == "number" else pa.binary())
                             for name in columns})  # fmt: skip
        with self._reading():
            # what is wrong with a file is an error when a row of it is taken, and may be an abort in Lance's streams
            sizes = [fragment.count_rows() for fragment in self._dataset.get_fragments()]
            self._dataset.take(np.cumsum([0, *sizes])[:-1], columns=columns)
            table = self._dataset.to_table(columns=columns)
        self._check(table)
        return table

    def at(self, places: NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Columns of rows by where they lie in the table."""
        if self._dataset is None:
            return self.read(columns)
        with self._reading():
            table = self._dataset.take(places, columns=columns)
        self._check(table)
        return table

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tell a version that is gone from one that is damaged. Only Lance's own calls belong inside."""
        try:
            with _reaching(self.uri):
                yield
        except IndexStateError as error:
            newest = _open(self.uri)
            if newest is None or newest.version == self.version:
                raise
            raise VersionGone(
                f"version {self.version} of index {self.uri} is gone, for it was replaced; open the index again"
            ) from error

    def _require_bytes(self, dataset: lance.LanceDataset) -> None:
        """Refuse to make room for more rows than can be in the files of a local index.

        Raises:
            IndexStateError: the table says that it has more.
        """
        path = _local(self.uri)
        if path is None or self.rows < _MANY:
            return
        with _reaching(self.uri):
            names = [file.path for fragment in dataset.get_fragments() for file in fragment.data_files()]
            if self.rows > sum(Path(path, "data", name).stat().st_size for name in names):  # a row has bytes, not bits
                raise _strange(self.uri, f"{self.rows:,} rows in files too small for them")

    def _check(self, table: pa.Table) -> None:
        """Refuse rows that no dsh has written.

        Raises:
            IndexStateError: there are some.
        """
        for field, column in zip(table.schema, table.columns, strict=True):
            if column.null_count and not field.nullable:
                raise _strange(self.uri, f"a row without {field.name}")
            if field.name == "number":
                numbers = column.to_numpy()
                order = np.sort(numbers)
                if len(order) and (order[0] < 0 or order[-1] >= _NUMBERS or (order[1:] == order[:-1]).any()):
                    raise _strange(self.uri, "two rows of one number, or numbers that no row has")
            spare = (1 << (-self.bits % 8)) - 1
            if field.name == "code" and spare and (fixed(column)[:, -1] & spare).any():
                raise _strange(self.uri, f"a code of more than {self.bits} bits")

    def places(self) -> NDArray[np.int64]:
        """Where the rows lie in the table, in the order of adding."""
        if self._order is None:
            order = order_of(self.read(["number"]))
            self._order = np.arange(self.rows) if order is None else order
        return self._order

    @contextmanager
    def writing(self, waiting: Callable[[], None] | None) -> Iterator[None]:
        """Be the only writer, on the newest version."""
        with _locked(self.uri, waiting) as self._require_lock:
            self._take(_open(self.uri))
            yield

    def append(self, table: pa.Table) -> None:
        """Commit new rows."""
        import lance

        # a table without rows may be of another model
        mode = "create" if self._dataset is None else "append" if self.rows else "overwrite"
        self._require_lock()
        with _reaching(self.uri, "write"):
            self._take(lance.write_dataset(table, _local(self.uri) or self.uri, mode=mode))

    def merge(self, table: pa.Table) -> None:
        """Replace rows that have the same number, and append the others, in one commit."""
        dataset = self._again()
        with _reaching(self.uri, "write"):
            dataset.merge_insert("number").when_matched_update_all().when_not_matched_insert_all().execute(table)
        self._take(_open(self.uri))

    def delete(self, numbers: NDArray[np.int64]) -> None:
        """Take out the rows of these numbers, in one commit."""
        if len(numbers):
            dataset = self._again()
            with _reaching(self.uri, "write"):
                dataset.delete(f"number IN ({','.join(map(str, numbers.tolist()))})")
            self._take(_open(self.uri))

    def tidy(self) -> None:
        """Few files, and no old versions but those that someone may still read."""
        if self._dataset is None:
            return
        self._require_lock()
        with _reaching(self.uri, "write"):
            fragments = self._dataset.get_fragments()
            # Lance finds rows by number slowly in a fragment that others were removed from: 2.7 ms a row, not 0.02.
            if len(fragments) > _FRAGMENTS or any(fragment.num_deletions for fragment in fragments):
                self._dataset.optimize.compact_files(
                    target_rows_per_fragment=1 << 20, materialize_deletions_threshold=0.0
                )
                self._take(_open(self.uri))
            kept = self._dataset.versions()
            replaced = [
                old["version"]
                for old, new in pairwise(kept)
                if cast(datetime, new["timestamp"]) <= datetime.now() - _KEPT
            ]
            # under the lock what belongs to no version was left by a process that was killed
            self._dataset.cleanup_old_versions(
                versions=[*replaced, self.version], delete_unverified=_local(self.uri) is not None
            )

    def _again(self) -> lance.LanceDataset:
        """The newest version for a change: Lance moves the one it changes, and places are told by the old one."""
        self._require_lock()
        dataset = _open(self.uri)
        assert dataset is not None
        return dataset


def of_rows(
    numbers: NDArray[np.int64],
    paths: Sequence[bytes],
    labels: Sequence[bytes | None],
    packed: Packed,
    digests: Sequence[bytes | None],
    sizes: Sequence[int | None],
    mtimes: Sequence[int | None],
    bits: int,
    model: str,
) -> pa.Table:
    """Rows to be written."""
    import pyarrow as pa

    about = {"dsh.format": str(FORMAT), "dsh.bits": str(bits), "dsh.model": model}
    schema = _schema(packed.shape[1]).with_metadata(about)
    codes = pa.py_buffer(np.ascontiguousarray(packed))
    columns = [
        pa.array(numbers),
        pa.array(paths, pa.binary()),
        pa.array(labels, pa.binary()),
        pa.FixedSizeBinaryArray.from_buffers(schema.field("code").type, len(packed), [None, codes]),
        pa.array(digests, pa.binary(DIGEST)),
        pa.array(sizes, pa.int64()),
        pa.array(mtimes, pa.int64()),
    ]
    return pa.table(columns, schema=schema)


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


def _open(uri: str) -> lance.LanceDataset | None:
    """The table at a URI; None where none has been committed."""
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
            raise IndexStateError(f"cannot read index {uri}: {reason(error)}") from error

    import lance

    with _reaching(uri):
        try:
            dataset = lance.dataset(path or uri)
        except ValueError as error:
            if re.search(r"was not found: Not found: .*_versions\b", str(error)):
                return None
            raise
        schema = dataset.schema
    _about(schema, uri)
    return dataset


def _about(schema: pa.Schema, uri: str) -> tuple[int, str]:
    """Bits and model of a table.

    Raises:
        IndexStateError: it is not an index, or of a newer format, or has other columns than an index has.
    """
    try:
        about = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
        kind, bits, model = about["dsh.format"], about["dsh.bits"], about["dsh.model"]
        if not (re.fullmatch("[1-9][0-9]{0,3}", kind) and re.fullmatch("[1-9][0-9]{0,3}", bits)):
            raise ValueError
        if int(bits) > MAX_BITS:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise IndexStateError(f"{uri} is a Lance table, but not an index of dsh; choose another name") from error
    if int(kind) > FORMAT:
        raise IndexStateError(
            f"index {uri} has format {kind}, newer than {FORMAT}, the newest this dsh reads; "
            "upgrade with: pip install --upgrade dsh-cli"
        )
    ours, theirs = _columns(_schema(-(-int(bits) // 8))), _columns(schema)
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise _strange(uri, f"column {name}: {theirs.get(name, 'none')}, not {ours.get(name, 'none')}")
    return int(bits), model


def _columns(schema: pa.Schema) -> dict[str, str]:
    """Names of columns, and what is in them."""
    return {field.name: f"{field.type}{'' if field.nullable else ' not null'}" for field in schema}


def _strange(uri: str, what: str) -> IndexStateError:
    """An error that says that no dsh has written what is there."""
    return IndexStateError(f"{uri} is no index of dsh, or a damaged one ({what}); choose another name")


def _local(uri: str) -> str | None:
    """The path of a local index, absolute and without links: the same however it is named. None in object storage.

    Raises:
        UsageError: it is no name of an index.
    """
    if not uri:
        raise UsageError("the index has an empty name")
    scheme, colon, path = uri.partition(":")
    if colon and scheme.lower() in _ON_DISK:
        # as RFC 8089 has it; Lance would drop a host, and what follows ? or #
        found = re.fullmatch(r"(?://(?:localhost)?|(?!//))(/[^?#]*)", path, re.IGNORECASE)
        if found is None:
            raise UsageError(f"{uri}: such a URI is file:///PATH, with %3F and %23 for ? and #; or give the path alone")
        path = os.fsdecode(unquote_to_bytes(found[1]))
    elif "://" in uri:
        return None
    else:
        path = uri
    try:
        path = os.path.realpath(path)
        path.encode()
    except ValueError as error:
        raise UsageError(f"{uri}: the name of an index is text in UTF-8; choose another name") from error
    return path


@contextmanager
def _locked(uri: str, waiting: Callable[[], None] | None) -> Iterator[Callable[[], None]]:
    """Be the only one who writes a local index; yields what refuses to go on where that is no longer so.

    Its folder is locked, which is one however it is named, and of which a second writer cannot have another. Where
    the system locks no folders (Windows, NFS) a file beside it is.
    """
    path = _local(uri)
    if path is None:
        yield lambda: None
        return
    held, there = path, os.path.isdir(path)

    def require() -> None:
        with suppress(OSError):
            if os.path.samestat(status, os.stat(held)):
                return
        raise IndexStateError(
            f"{held} was removed or replaced while index {uri} was written; run the same command again"
        )

    with ExitStack() as stack:
        try:
            if not _lock_folder(path, waiting, stack):
                held = f"{path}.lock"
                _lock_file(held, waiting, stack)
            status = os.stat(held)
        except (OSError, NotImplementedError) as error:
            raise IndexStateError(
                f"cannot write index {uri}: {reason(error)} (its lock {held}); choose another place"
            ) from error
        try:
            yield require
        finally:
            if not there:
                with suppress(OSError):  # there is something in it
                    Path(path).rmdir()


def _lock_folder(path: str, waiting: Callable[[], None] | None, stack: ExitStack) -> bool:
    """Make a folder and lock it; whether the system can. It is free when its process ends, however it ends."""
    try:
        import fcntl
    except ImportError:
        return False
    while True:
        Path(path).mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as attempt:  # others may remove it
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            attempt.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                    waiting = None
                fcntl.flock(folder, fcntl.LOCK_EX)
            except OSError:
                return False
            if os.path.samestat(os.fstat(folder), os.stat(path)):
                stack.push(attempt.pop_all())
                return True


def _lock_file(path: str, waiting: Callable[[], None] | None, stack: ExitStack) -> None:
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if waiting is not None:
            waiting()
        lock.acquire()
    stack.callback(lock.release)


@contextmanager
def _reaching(uri: str, doing: str = "read") -> Iterator[None]:
    """Lance's errors, in one line. Only its own calls belong inside."""
    try:
        yield
    except BaseException as error:
        # a panic of Lance's is of a type of its own, and no Exception
        if not isinstance(error, (OSError, ValueError, RuntimeError, MemoryError)) and not _is_panic(error):
            raise
        said = re.split(r", /(?:home|rustc)/", " ".join(str(error).split()))[0]
        said = said if len(said) <= 300 else said[:299] + "…"
        what = "is damaged or cannot be read" if doing == "read" else "cannot be written"
        hint = (
            f"delete {uri} and make it again with: dsh index add"
            if doing == "read"
            else "free space, or choose another place"
        )
        raise IndexStateError(f"index {uri} {what} ({said}); {hint}") from error


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"


def _schema(width: int) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("number", pa.int64(), False),
            pa.field("path", pa.binary(), False),
            pa.field("label", pa.binary()),
            pa.field("code", pa.binary(width), False),
            pa.field("hash", pa.binary(DIGEST)),
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
        ]
    )
