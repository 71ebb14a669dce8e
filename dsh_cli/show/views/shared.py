"""A result in its three forms, and what all views are drawn with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

# What breaks a line or its fields, what a terminal obeys, what turns the direction of text, and what is none.
_BREAKING = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]")
_NOT_ASCII = re.compile(r"[^ -\[\]-~]")  # and what breaks a line
_NAMED = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


@dataclass(frozen=True)
class View:
    """One result in its three forms. `table` is given the width of the terminal; `fields` are those of each line."""

    table: Callable[[int], RenderableType]
    fields: Sequence[tuple[object, ...]]
    record: Mapping[str, Any]

    def plain(self, ascii: bool = False) -> list[str]:
        """The fields of each line with tabs between them, as in `field`."""
        return ["\t".join(field(value, ascii) for value in line) for line in self.fields]

    @property
    def json(self) -> str:
        """The record on one line."""
        return json_line(self.record)


def printable(text: str) -> str:
    """Text with control characters and undecodable bytes escaped, safe to show on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def json_line(record: Mapping[str, Any]) -> str:
    """A record as JSON on one line, in ASCII without control characters."""
    return json.dumps(record).replace("\x7f", r"\u007f")


def lines_table() -> Table:
    """An empty table in the style of all; a string in it is shown as it is, with what cannot be shown escaped."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")


def pairs_table(rows: Mapping[str, str]) -> Table:
    """Names and values, a line each."""
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, value)
    return grid


def plain_record(record: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """A record as lines of name and value."""
    return list(record.items())


def flattened(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested record with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = (",".join(value) or None) if isinstance(value, (list, tuple)) else value
    return flat


def field(value: object, ascii: bool = False) -> str:
    r"""A field of a line, a dash where there is no value: nothing in it breaks the line or the tabs.

    Backslash, tab and line ends are written as in C, and of all else in `_BREAKING` the bytes that it has in the name
    of a file, as in `\xff`; so of all that is not ASCII, if `ascii`. Then

        os.fsdecode(text.encode().decode("unicode_escape").encode("latin-1"))

    gives back the name of any file, whatever its bytes are.
    """
    return (_NOT_ASCII if ascii else _BREAKING).sub(_escape, or_dash(value))


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    try:
        as_bytes = os.fsencode(char)
    except UnicodeEncodeError:  # in no name of a file here
        as_bytes = char.encode("utf-8", "surrogatepass")
    return _NAMED.get(char) or "".join(f"\\x{byte:02x}" for byte in as_bytes)


def or_dash(value: object) -> str:
    """A value as text, and a dash where there is none."""
    return "-" if value is None else str(value)


def listed(names: Sequence[str], most: int = 10) -> str:
    """Names after one another, and where there are more, that there are."""
    return ", ".join(map(printable, names[:most])) + (", ..." if len(names) > most else "")


def size_text(size: float) -> str:
    """Bytes in the unit that people read."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
