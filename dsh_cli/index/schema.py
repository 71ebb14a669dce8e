"""What an index is made of: the columns of its table, and what the table says of itself.

    number    order of adding; kept when a row is updated
    path      bytes as the file system has them: absolute, or relative to a folder chosen when adding
    label     bytes; null where unknown
    code      ceil(bits / 8) bytes
    hash      16 bytes, BLAKE2b of the file; with size and mtime_ns null where a code came without its file
    size      bytes of the file
    mtime_ns  when it was last changed

and `code_check`, `label_check` and `file_check`, digests of these; see `digests.py`. Tables of format 1 have none. The
table's metadata has the format, the bits and the fingerprint of the run that made the codes.

An index that keeps outputs has format 3, so that a dsh that knows of none refuses it in one line, and two columns more:

    outputs        bits bytes, int8 in steps of the scale, which the metadata has; see `codes/rescoring.py`
    outputs_check  their digest

It keeps those of all rows, from its first on; one that does not has format 2, and stays without.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from dsh_cli.codes.bits import Packed, is_packed
from dsh_cli.config import MAX_BITS
from dsh_cli.errors import IndexStateError
from dsh_cli.index import digests
from dsh_cli.words import counted

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 3  # of the table; a reader refuses a larger number
DIGEST = 16  # bytes of a hash

_NUMBERS = 1 << 62  # rows are numbered below it
_NUMBER = re.compile("[1-9][0-9]{0,3}")  # of a format, or of bits


def columns(bits: int, checks: bool = True, outputs: bool = False) -> pa.Schema:
    """The columns of an index, with those of checks or without, and with outputs or without."""
    import pyarrow as pa

    fields = [
        pa.field("number", pa.int64(), False),
        pa.field("path", pa.binary(), False),
        pa.field("label", pa.binary()),
        pa.field("code", pa.binary(-(-bits // 8)), False),
        pa.field("hash", pa.binary(DIGEST)),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
    ]
    if outputs:
        fields.append(pa.field("outputs", pa.binary(bits), False))
    return pa.schema(fields + [pa.field(name, pa.uint32(), False) for name in digests.names(outputs) if checks])


def schema(bits: int, model: str, scale: float | None = None) -> pa.Schema:
    """The columns of an index that is written, and what it says of itself; a scale where it keeps outputs."""
    said = {"dsh.format": "2" if scale is None else "3", "dsh.bits": str(bits), "dsh.model": model}
    if scale is not None:
        said["dsh.scale"] = repr(scale)
    return columns(bits, outputs=scale is not None).with_metadata(said)


def about(found: pa.Schema, uri: str) -> tuple[int, str, bool, float | None]:
    """Bits and model of a table, whether its rows have checks, and the scale of their outputs; None without any.

    Raises:
        IndexStateError: it is not an index, or of a newer format, or has other columns than an index has.
    """
    try:
        said = {name.decode(): value.decode() for name, value in (found.metadata or {}).items()}
        kind, bits, model = said["dsh.format"], said["dsh.bits"], said["dsh.model"]
        if not (_NUMBER.fullmatch(kind) and _NUMBER.fullmatch(bits) and int(bits) <= MAX_BITS):
            raise ValueError
        scale = float(said["dsh.scale"]) if kind == "3" else None
        if scale is not None and not 0 < scale < math.inf:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise IndexStateError(f"{uri} is a Lance table, but not an index of dsh; choose another name") from error
    if int(kind) > FORMAT:
        raise IndexStateError(
            f"index {uri} has format {kind}, newer than {FORMAT}, the newest this dsh reads; "
            "upgrade with: pip install --upgrade dsh-cli"
        )
    checks = int(kind) > 1
    ours, theirs = _kinds(columns(int(bits), checks, scale is not None)), _kinds(found)
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            raise strange(uri, f"column {name}: {theirs.get(name, 'none')}, not {ours.get(name, 'none')}")
    return int(bits), model, checks, scale


def check(rows: pa.Table, bits: int, uri: str) -> None:
    """Refuse rows that no dsh has written.

    Raises:
        IndexStateError: there are some.
    """
    for field, column in zip(rows.schema, rows.columns, strict=True):
        if column.null_count and not field.nullable:
            raise strange(uri, f"a row without {field.name}")
        if field.name == "number":
            numbers = column.to_numpy()
            if not (numbers[1:] > numbers[:-1]).all():
                numbers = np.sort(numbers)
            if len(numbers) and (numbers[0] < 0 or numbers[-1] >= _NUMBERS or (numbers[1:] == numbers[:-1]).any()):
                raise strange(uri, "two rows of one number, or numbers that no row has")
        if field.name == "code" and not is_packed(fixed(column), bits):
            raise strange(uri, f"a code of more than {counted(bits, 'bit')}")


def strange(uri: str, what: str) -> IndexStateError:
    """An error that says that no dsh has written what is there."""
    return IndexStateError(f"{uri} is no index of dsh, or a damaged one ({what}); choose another name")


def fixed(column: pa.ChunkedArray) -> Packed:
    """A column of n binaries of w bytes as (n, w)."""
    width = column.type.byte_width
    parts = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width : (chunk.offset + len(chunk)) * width]
        for chunk in column.chunks
    ]
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return joined.reshape(-1, width)


def _kinds(found: pa.Schema) -> dict[str, str]:
    """Names of columns, and what is in them."""
    return {field.name: f"{field.type}{'' if field.nullable else ' not null'}" for field in found}
