"""Vectors made elsewhere, such as features by another network: of pictures, or of anything, in one file."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsh_cli.data.listing import split_called
from dsh_cli.errors import DataError, reason
from dsh_cli.files import open_regular
from dsh_cli.words import nfc

VECTOR_FILES = (".parquet", ".npz")
MOST = 16384  # numbers in a vector
NO_PICTURES = (
    "the model takes vectors of {width:,} numbers, and no pictures; make such of them with dsh features, by the "
    "network that made those it was trained on"
)
_SHOWN = 200  # characters of a name, in an error
_MEMORY = 1 << 33  # bytes of vectors held at once
_LONGEST = 1 << 16  # characters of a name or label
_ODD = 1_000_000  # times the largest number of the usual vector: beside that all others are as good as zero
# What reading a file that is none, or no longer, comes to.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, RuntimeError, EOFError, MemoryError) + (
    *(zlib.error, zipfile.BadZipFile),
)
# What each column, or array, may be called, in small letters: the first is what it is called here.
_COLUMNS = {
    "vector": ("vector", "vectors", "embedding", "embeddings", "feature", "features"),
    "path": ("path", "paths", "name", "names", "file", "files", "id", "ids"),
    "label": ("label", "labels", "class", "classes", "target", "targets"),
    "split": ("split", "splits"),
}


_HEADS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Vectors:
    """The rows of a file of vectors.

    Attributes:
        source: the file.
        values: (n, d) float32, all finite, and none all zeros.
        names: of the rows: the path of a picture, or any other name.
        labels: of the rows; None where the file has none.
        splits: "train", "validation" or "test", of the rows; None where the file does not say.
    """

    source: str
    values: NDArray[np.float32]
    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    splits: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.values)

    def path_of(self, name: str) -> str | None:
        """The file that a row is named after, absolute; None where there is none."""
        return named_file(self.source, name)


def named_file(source: str, name: str) -> str | None:
    """The file that a row of a file of vectors is named after, absolute; None where there is none."""
    path = Path(source).absolute().parent / name
    try:
        return os.fspath(path) if os.path.isfile(path) else None
    except ValueError:  # no file can have the name
        return None


def is_vectors(path: str | os.PathLike[str]) -> bool:
    """Whether a path is that of a file of vectors, by its name."""
    return Path(path).suffix.lower() in VECTOR_FILES


def read_vectors(path: str | os.PathLike[str]) -> Vectors:
    """Read a Parquet file with a row a vector, or an `.npz` with an array a column.

    Its columns are `vector` (float16, float32 or float64, of one length), `path`, and, where known, `label` and
    `split`; see `_COLUMNS` for other names they may have.

    Raises:
        DataError: it cannot be read, or a row has no such vector; the message names the row, counted from 1.
    """
    file = os.path.abspath(path)
    try:
        columns = _parquet(file) if Path(file).suffix.lower() == ".parquet" else _npz(file)
    except _UNREADABLE as error:
        raise DataError(f"{file} cannot be read ({reason(error)}); mend it, or name another file of vectors") from error
    with np.errstate(over="ignore"):
        values = columns["vector"].astype(np.float32, copy=False)
    if not len(values):
        raise DataError(f"{file} holds no vectors; each row is path, vector and label")
    names = _texts(file, "path", columns.get("path"), len(values))
    names = names or tuple(f"{os.path.basename(file)}#{number}" for number in range(1, len(values) + 1))
    _require_vectors(file, values, names)
    labels = _texts(file, "label", columns.get("label"), len(values))
    splits = _texts(file, "split", columns.get("split"), len(values))
    return Vectors(
        file,
        values,
        names,
        None if labels is None else tuple(nfc(label) for label in labels),
        None if splits is None else _splits(file, splits),
    )


def _columns_of(file: str, names: Sequence[str]) -> dict[str, str]:
    """What each column is called in a file.

    Raises:
        ValueError: it has no vectors.
    """
    there = {name.lower(): name for name in names}
    found = {kind: next((there[one] for one in known if one in there), None) for kind, known in _COLUMNS.items()}
    if found["vector"] is None:
        raise ValueError(f"it has no column 'vector', but {', '.join(names) or 'none'}"[:_SHOWN])
    return {kind: name for kind, name in found.items() if name is not None}


def _parquet(file: str) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with os.fdopen(open_regular(file), "rb") as opened:
        called = _columns_of(file, pq.read_schema(opened).names)
        texts = [name for kind, name in called.items() if kind != "vector"]
        parquet = pq.ParquetFile(opened, read_dictionary=texts)  # each text once, however often it is there
        meta = parquet.metadata
        groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
        leaves = [group.column(number) for group in groups for number in range(group.num_columns)]
        numbers = sum(leaf.num_values for leaf in leaves if leaf.path_in_schema.split(".")[0] == called["vector"])
        _require_room(meta.num_rows, numbers)
        table = parquet.read(list(called.values()))
    for name in texts:
        for chunk in table[name].chunks:
            if (
                pa.types.is_dictionary(chunk.type)
                and (pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0) > _LONGEST
            ):
                raise ValueError(f"its column {name!r} has a text of more than {_LONGEST:,} bytes")
    columns: dict[str, Any] = {kind: table[name].combine_chunks() for kind, name in called.items()}
    vectors = columns["vector"]
    kind = vectors.type
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not nested or not pa.types.is_floating(kind.value_type):
        raise ValueError(f"its column 'vector' is {kind}, and no list of float16, float32 or float64")
    if vectors.null_count:
        raise ValueError(f"row {_first(vectors.is_null().to_numpy(zero_copy_only=False)) + 1:,} has no vector")
    lengths = vectors.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64) if len(vectors) else np.zeros(0)
    width = _width(lengths)
    flat = vectors.flatten()
    if flat.null_count:
        place = _first(flat.is_null().to_numpy(zero_copy_only=False))
        raise ValueError(f"the vector of row {place // width + 1:,} lacks a number")
    columns["vector"] = flat.to_numpy(zero_copy_only=False).reshape(len(vectors), width)
    return {
        kind: values if kind == "vector" else np.array(values.to_pylist(), object) for kind, values in columns.items()
    }


def _npz(file: str) -> dict[str, Any]:
    with os.fdopen(open_regular(file), "rb") as opened, zipfile.ZipFile(opened) as arrays:
        called = _columns_of(file, [name.removesuffix(".npy") for name in arrays.namelist()])
        columns = {kind: _array(arrays, kind, name) for kind, name in called.items()}
    vectors = columns["vector"]
    _width(np.broadcast_to(vectors.shape[1], len(vectors)))
    return {kind: values if kind == "vector" else values.astype(object) for kind, values in columns.items()}


def _array(arrays: zipfile.ZipFile, kind: str, name: str) -> NDArray[Any]:
    """An array of an `.npz`, read once its head says that it is such, and not too large.

    Raises:
        ValueError: it is not.
    """
    with arrays.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        shape, _, dtype = _HEADS[version](file)
    said = f"its array {name!r} is {' x '.join(map(str, shape)) or 'one value'} of {dtype}"
    if kind == "vector":
        if len(shape) != 2 or dtype.kind != "f":
            raise ValueError(f"{said}, and not rows of floats")
        _require_room(shape[0], math.prod(shape))
    elif dtype.kind == "O":
        raise ValueError(f"{said}, of Python; write it as text, such as with .astype(str)")
    elif len(shape) != 1 or dtype.itemsize > 4 * _LONGEST or math.prod(shape) * dtype.itemsize > _MEMORY:
        raise ValueError(f"{said}, and not a row of texts or whole numbers")
    with arrays.open(f"{name}.npy") as file:
        found: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _require_room(count: int, numbers: int) -> None:
    """Refuse more vectors than memory should hold.

    Raises:
        ValueError: they are.
    """
    if 4 * numbers > _MEMORY:
        raise ValueError(f"{count:,} vectors of {numbers:,} numbers in all take more than {_MEMORY >> 30} GiB")


def _width(lengths: NDArray[Any]) -> int:
    """The numbers that all vectors have.

    Raises:
        ValueError: they have different numbers, none, or too many.
    """
    if not len(lengths):
        return 1
    other = np.flatnonzero(lengths != lengths[0])
    if len(other):
        raise ValueError(
            f"the vector of row {other[0] + 1:,} has {lengths[other[0]]:,} numbers, and that of row 1 {lengths[0]:,}"
        )
    if not 1 <= lengths[0] <= MOST:
        raise ValueError(f"its vectors have {lengths[0]:,} numbers; from 1 to {MOST:,} are read")
    return int(lengths[0])


def _require_vectors(file: str, values: NDArray[Any], names: Sequence[str]) -> None:
    """Refuse numbers that are none, and vectors that say nothing.

    Raises:
        DataError: there is such a row.
    """
    size = np.maximum(values.max(axis=1), -values.min(axis=1)).astype(np.float64)
    finite = np.isfinite(size)
    usual = size <= _ODD * np.median(size[finite]) if finite.any() else finite
    for fine, what in (
        (finite, "has numbers that are not finite"),
        (size > 0, "is all zeros"),
        (usual, f"has a number more than {_ODD:,} times as large as others have, which looks like damage"),
    ):
        if not fine.all():
            row, count = _first(~fine), int((~fine).sum())
            more = f", and those of {count - 1:,} more" if count > 1 else ""
            raise DataError(
                f"{file}: the vector of row {row + 1:,} ({names[row][-_SHOWN:]}) {what}{more}; take these rows out, or "
                "make their features again"
            )


def _texts(file: str, what: str, values: NDArray[Any] | None, count: int) -> tuple[str, ...] | None:
    """A column of names or whole numbers as text; None where there is none.

    Raises:
        DataError: it has another length, or a row of it is no such thing.
    """
    if values is None or all(value is None for value in values.flat):
        return None
    if values.shape != (count,):
        raise DataError(f"{file}: {len(values):,} of {what!r}, and {count:,} vectors; give one for each")
    for number, value in enumerate(values, 1):
        if isinstance(value, bool) or not isinstance(value, (str, int, np.integer)) or value == "":
            said = "no" if value is None or value == "" else f"a {type(value).__name__} in place of a"
            raise DataError(f"{file}: row {number:,} has {said} {what!r}; give each row one, as text or a whole number")
    return tuple(str(value) for value in values)


def _splits(file: str, texts: Sequence[str]) -> tuple[str, ...]:
    known: Mapping[str, str | None] = {text: split_called(text) for text in set(texts)}
    for number, text in enumerate(texts, 1):
        if known[text] is None:
            raise DataError(f"{file}: row {number:,} is of split {text[:_SHOWN]!r}; it is train, validation or test")
    return tuple(split for text in texts if (split := known[text]) is not None)


def _first(where: Any) -> int:
    return int(np.flatnonzero(where)[0])
