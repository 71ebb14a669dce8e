"""A result in its three forms, and what all views are drawn with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

# What breaks a line or its fields, what a terminal obeys, what turns the direction of text, and what is none.
_BREAKING = re.compile("[\\\\\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]")
_NAMED = {"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"}


@dataclass(frozen=True)
class View:
    """One result in its three forms. `table` is given the width of the terminal; `fields` are those of each line."""

    table: Callable[[int], RenderableType]
    fields: Sequence[tuple[object, ...]]
    record: Mapping[str, Any]

    @property
    def plain(self) -> list[str]:
        """The fields of each line with tabs between them."""
        return ["\t".join(map(field, line)) for line in self.fields]

    @property
    def json(self) -> str:
        """The record on one line."""
        return json_line(self.record)


class Lines(Table):
    """A table in the style of all, in which a string is shown as it is, with what is not printable escaped."""

    def __init__(self) -> None:
        super().__init__(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """A row of strings or what Rich draws."""
        super().add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells), **settings)


def printable(text: str) -> str:
    """Text with control characters and undecodable bytes escaped, safe to show on a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def json_line(record: Mapping[str, Any]) -> str:
    """A record as JSON on one line, in ASCII without control characters."""
    return json.dumps(record).replace("\x7f", r"\u007f")


def lines_table() -> Lines:
    """An empty table in the style of all."""
    return Lines()


def pairs_table(rows: Mapping[str, str]) -> Table:
    """Names and values, a line each."""
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, Text(printable(value)))
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


def field(value: object) -> str:
    r"""A field of a line, a dash where there is no value: nothing in it breaks the line or the tabs.

    Backslash, tab and line ends are written as in C, and of all else in `_BREAKING` the bytes, as in `\xff`. So

        os.fsdecode(text.encode().decode("unicode_escape").encode("latin-1"))

    gives back the name of any file, whatever its bytes are.
    """
    return _BREAKING.sub(_escape, or_dash(value))


def _escape(found: re.Match[str]) -> str:
    char = found[0]
    as_bytes = char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass")
    return _NAMED.get(char) or "".join(f"\\x{byte:02x}" for byte in as_bytes)


def or_dash(value: object) -> str:
    """A value as text, and a dash where there is none."""
    return "-" if value is None else str(value)


def counted(number: int, noun: str) -> str:
    """A number and what it counts."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


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
