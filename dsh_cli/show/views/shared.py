"""A result in its three forms, and what all views are drawn with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class View:
    """One result in its three forms. `table` is given the width of the terminal."""

    table: Callable[[int], RenderableType]
    plain: Sequence[str]
    record: Mapping[str, Any]

    @property
    def json(self) -> str:
        """The record on one line."""
        return json.dumps(self.record)


def printable(text: str) -> str:
    """Text with control characters and undecodable bytes escaped, safe to show on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def lines_table() -> Table:
    """An empty table in the style of all."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")


def pairs_table(rows: Mapping[str, str]) -> Table:
    """Names and values, a line each."""
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, Text(value))
    return grid


def plain_record(record: Mapping[str, Any]) -> list[str]:
    """A record as lines of name, tab, value."""
    return [f"{name}\t{field(or_dash(value))}" for name, value in record.items()]


def flattened(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested record with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ",".join(value) if isinstance(value, (list, tuple)) else value
    return flat


def field(text: str) -> str:
    """A field of a line: nothing in it breaks the line or the tabs."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


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
