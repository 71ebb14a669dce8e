"""How the rows of an index are laid out in a Parquet file: as it has them, or as a service loads them.

    milvus         id, path, label, code as a list of bytes, for a BINARY_VECTOR
    elasticsearch  id, path, label, code in hex, two digits a byte, for a dense_vector of bits
    pgvector       id, path, path_bytes, label, code in digits 0 and 1, one a bit, for a column bit(bits)

`id` is the place in the order of adding, from 0. Bytes are those of the packed form, whose spare bits are 0 in every
code, and so change no distance where a service takes whole bytes alone. All three take more bits than a code can have:
Elasticsearch 4,096, Milvus 32,768, an index of pgvector 64,000. How each loads its file is in docs/handing-on.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dsh_cli.codes.bits import Packed, to_binary, to_hex
from dsh_cli.config import Service
from dsh_cli.errors import DshError
from dsh_cli.index.schema import DIGEST, fixed

if TYPE_CHECKING:
    import pyarrow as pa

# Bytes of a text at most, and of what.
_LONGEST = {"milvus": ("a VARCHAR of Milvus", 65_535), "elasticsearch": ("a keyword of Elasticsearch", 32_766)}
_SHOWN = 60  # characters of a path in a message


@dataclass(frozen=True)
class Layout:
    """The columns of a file, and how rows become such."""

    uri: str  # of the index, for messages
    bits: int
    model: str
    scale: float | None  # of its outputs; None where it keeps none
    service: Service | None  # what the file is for; None: whatever reads Parquet

    @cached_property
    def schema(self) -> pa.Schema:
        """What the file has, and what it says of itself."""
        import pyarrow as pa

        about = {"dsh.bits": str(self.bits), "dsh.model": self.model}
        path, label = pa.field("path", pa.string(), False), pa.field("label", pa.string())
        path_bytes = pa.field("path_bytes", pa.binary(), False)
        if self.service is not None:
            kind = pa.list_(pa.uint8()) if self.service == "milvus" else pa.string()
            fields = [pa.field("id", pa.int64(), False), path, label, pa.field("code", kind, False)]
            if self.service == "pgvector":  # the others have no use for it
                fields.insert(2, path_bytes)
            return pa.schema(fields, metadata=about | {"dsh.for": self.service})
        fields = [
            path,
            path_bytes,
            label,
            pa.field("code", pa.binary(-(-self.bits // 8)), False),
            pa.field("hash", pa.binary(DIGEST)),
            pa.field("size", pa.int64()),
            pa.field("mtime_ns", pa.int64()),
        ]
        if self.scale is not None:
            fields.append(pa.field("outputs", pa.binary(self.bits), False))
            about["dsh.scale"] = repr(self.scale)
        return pa.schema(fields, metadata=about)

    @property
    def needs(self) -> list[str]:
        """Columns of the index that `of` is given."""
        return [name for name in self.schema.names if name not in ("id", "path_bytes")]

    def of(self, rows: pa.Table, start: int) -> pa.Table:
        """Rows of an index as the file has them.

        Args:
            rows: the columns that it `needs`.
            start: place of the first of them in the order of adding.

        Raises:
            DshError: the service does not take a path or label.
        """
        import pyarrow as pa

        path, label = _text(rows["path"]), _text(rows["label"])
        if self.service is None:
            return pa.table([path, rows["path"], label, *rows.columns[2:]], schema=self.schema)
        self._require(self.service, path, "the path", path)
        self._require(self.service, label, "the label of", path)
        columns = {
            "id": pa.array(np.arange(start, start + len(rows))),
            "path": path,
            "path_bytes": rows["path"],
            "label": label,
            "code": self._code(fixed(rows["code"])),
        }
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

    def _code(self, packed: Packed) -> pa.Array:
        import pyarrow as pa

        count, width = packed.shape
        match self.service:
            case "milvus":
                return pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * width, packed.ravel())
            case "elasticsearch":
                return pa.array(to_hex(packed, 8 * width))  # of all bits of the bytes, spare ones too
            case _:
                return pa.array(to_binary(packed, self.bits))

    def _require(self, service: Service, texts: pa.Array, what: str, paths: pa.Array) -> None:
        """Refuse texts that a service would not take, which it might say when it has loaded half of them."""
        import pyarrow.compute as pc

        if service == "pgvector":
            wrong, limit = pc.match_substring(texts, "\0"), "has a NUL character, and no text of PostgreSQL can"
        else:
            name, most = _LONGEST[service]
            wrong, limit = pc.greater(pc.binary_length(texts), most), f"has more bytes than the {most:,} of {name}"
        rows = np.flatnonzero(pc.fill_null(wrong, False))
        if rows.size:
            path = paths[int(rows[0])].as_py()
            shown = path if len(path) <= _SHOWN else f"{path[:_SHOWN]}..."
            raise DshError(
                f"{what} {shown} in index {self.uri} {limit}; take it out with: dsh index remove {self.uri} PATH, or "
                "write the file without `service` and lay it out yourself"
            )


def _text(column: pa.ChunkedArray) -> pa.Array:
    """Binaries as text, with bytes that are not UTF-8 escaped."""
    import pyarrow as pa

    return pa.array(
        [None if v is None else v.decode("utf-8", "backslashreplace") for v in column.to_pylist()], pa.string()
    )
