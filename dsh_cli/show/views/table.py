"""The table of class codes."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from dsh_cli.show.views.shared import View, lines_table, or_dash, printable
from dsh_cli.words import counted

if TYPE_CHECKING:
    from dsh_cli.analysis.classes import ClassTable
    from dsh_cli.runs.run import Run

_WIDE = 90  # columns from which a third variant is shown
_DIGITS = 16  # shown of the code of a variant
_CLOSEST_SHOWN = 10
_CLASSES_SHOWN = 1000  # rows on a terminal; plain lines and JSON have all
_MATRIX = 1000  # classes up to which JSON has their distances, a million numbers
_CELL = 4  # columns of one distance in the matrix
_BEST, _GOOD, _NEAR, _CLASH = "bold green", "green", "yellow", "bold white on red"


def class_codes(table: ClassTable, run: Run) -> View:
    """The table of class codes, with the distances between them."""
    record = {
        "split": table.split,
        "bits": table.bits,
        "classes": [
            {
                "label": row.label,
                "code": row.code,
                "count": row.count,
                "exact": row.exact,
                "variants": [vars(variant) for variant in row.variants],
            }
            for row in table.classes
        ],
        "class_distances": _matrix(table) if len(table.classes) <= _MATRIX else None,
        "min_class_distance": table.min_class_distance,
        "class_distance_bound": table.bound.distance if table.bound else None,
        "bit_balance": table.bit_balance,
    }
    plain = [(r.label, r.code, r.binary, r.count, f"{r.exact:.4f}" if r.count else None) for r in table.classes]
    return View(lambda width: _class_codes_table(table, run, width), plain, record)


def _matrix(table: ClassTable) -> list[list[int | None]]:
    """Distances between classes, None where one has no pictures."""
    return [[None if distance < 0 else distance for distance in row] for row in table.class_distances.tolist()]


def smallest_distance(table: ClassTable) -> str:
    """The smallest distance between two classes beside the best possible, in words."""
    if table.min_class_distance is None or table.bound is None:
        return "no two classes to compare"
    limit = f"no code does better than {table.bound.distance} ({table.bound.source})"
    return f"smallest distance {table.min_class_distance}; {limit}"


def _class_codes_table(table: ClassTable, run: Run, width: int) -> RenderableType:
    if not table.classes:
        heading = Styled(f"{run.path}: {table.split} split, {counted(table.bits, 'bit')}", "bold")
        return Group(heading, Text("no classes: the run was made of pictures without labels"), _balance(table))
    digits = -(-table.bits // 4)
    longest = max(len(row.label) for row in table.classes)
    show_binary = longest + digits + table.bits + 50 <= max(width, 80)
    shown = lines_table()
    shown.add_column("class", overflow="fold")
    shown.add_column("code", style="bold", overflow="fold")
    if show_binary:
        shown.add_column("binary", no_wrap=True)
    shown.add_column("images", justify="right")
    shown.add_column("exact", justify="right")
    shown.add_column("variants (images, distance)", overflow="fold")
    for row in table.classes[:_CLASSES_SHOWN]:
        binary = [row.binary or "-"] if show_binary else []
        code = f"0x{row.code}" if row.code else "-"
        exact = f"{row.exact:.1%}" if row.count else "-"
        shown.add_row(
            row.label,
            code,
            *binary,
            f"{row.count:,}",
            exact,
            _variants(row.variants, 3 if width >= _WIDE else 2),
        )
    total = len(table.classes)
    cut = f"the first {_CLASSES_SHOWN:,} of {total:,} classes; --format plain has all\n"
    lines: list[RenderableType] = [
        Styled(f"{run.path}: {table.split} split, {counted(table.bits, 'bit')}", "bold"),
        shown,
        Text(cut if total > _CLASSES_SHOWN else "", style="dim"),
        _distance_matrix(table, width),
        Text(),
        Text.assemble("classes: ", (smallest_distance(table), _style(table.min_class_distance, table))),
        _balance(table),
    ]
    return Group(*lines)


def _balance(table: ClassTable) -> Text:
    balance = table.bit_balance
    return Text(f"bits: 1 in {min(balance):.0%} to {max(balance):.0%} of pictures (50% uses a bit best)")


def _variants(variants: Sequence[Any], most: int) -> Text:
    shown = ", ".join(f"0x{_short(v.code)} ({v.count:,}, {v.distance})" for v in variants[:most])
    more = len(variants) - most
    return Text(f"{shown}, {more} more" if more > 0 else shown)


def _short(code: str) -> str:
    """The digits of a code, of a long one the first: its variants are told by count and distance."""
    return code if len(code) <= _DIGITS else f"{code[: _DIGITS - 1]}…"


def _distance_matrix(table: ClassTable, width: int) -> RenderableType:
    labels = [printable(row.label) for row in table.classes]
    name = min(16, max(map(len, labels)))
    if name + 2 + _CELL * len(labels) > width:
        return _closest_classes(table, labels)
    numbered = any(len(label) >= _CELL for label in labels)
    head = [str(i) for i in range(len(labels))] if numbered else labels
    grid = Table(box=None, padding=(0, 0), show_edge=False, header_style="bold")
    grid.add_column("distance", no_wrap=True, style="bold", min_width=max(name + (4 if numbered else 0), 8))
    for column in head:
        grid.add_column(column, justify="right", min_width=_CELL, no_wrap=True)
    for i, row in enumerate(_matrix(table)):
        title = f"{i:>2}  {labels[i][:name]}" if numbered else labels[i]
        cells = [
            Text("·" if i == j else or_dash(d), style=_style(None if i == j else d, table)) for j, d in enumerate(row)
        ]
        grid.add_row(title, *cells)
    return grid


def _closest_classes(table: ClassTable, labels: Sequence[str]) -> RenderableType:
    grid = lines_table()
    grid.add_column("distance", justify="right")
    grid.add_column("closest classes")
    for pair in table.closest(_CLOSEST_SHOWN):
        names = f"{labels[pair.first]} - {labels[pair.second]}"
        grid.add_row(Text(str(pair.distance), style=_style(pair.distance, table)), names)
    whole = "; --json has the whole matrix" if len(labels) <= _MATRIX else ""
    note = Text(f"{len(grid.rows)} of {comb(len(table.present), 2):,} pairs{whole}", style="dim")
    return Group(grid, note)


def _style(distance: int | None, table: ClassTable) -> str:
    """Colour of a distance between classes, by what is possible."""
    if distance is None or table.bound is None:
        return "dim"
    if distance == 0:
        return _CLASH
    if distance >= table.bound.distance:
        return _BEST
    return _GOOD if 2 * distance > table.bound.distance else _NEAR
