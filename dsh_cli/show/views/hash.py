"""Codes of pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType

from dsh_cli.show.views.shared import field, json_line, lines_table

if TYPE_CHECKING:
    from dsh_cli.network.encoder import Encoded


def hashed_line(item: Encoded, ascii: bool = False) -> str:
    """As md5sum writes it: code, two blanks, path as in `field`; before all that a backslash where that escapes any."""
    path = field(item.path, ascii)
    mark = "" if path == item.path else "\\"
    return f"{mark}{code_text(item)}  {path}"


def hashed_json(item: Encoded) -> str:
    """One JSON object: the code of a picture, or its error."""
    if item.packed is None:
        return json_line({"path": item.path, "error": item.error})
    return json_line({"path": item.path, "code": code_text(item), "bits": item.bits})


def hashed_table(items: Iterable[Encoded], width: int) -> RenderableType:
    """Codes of the pictures that have one; errors go elsewhere."""
    good = [item for item in items if item.packed is not None]
    bits = good[0].bits if good else 0
    show_binary = bits + -(-bits // 4) + 30 <= width
    table = lines_table()
    table.add_column("code", style="bold", overflow="fold")
    if show_binary:
        table.add_column("binary", no_wrap=True)
    table.add_column("picture", overflow="fold")
    for item in good:
        code = code_text(item)
        binary = [f"{int(code, 16):0{bits}b}"] if show_binary else []
        table.add_row(f"0x{code}", *binary, item.path)
    return table


def code_text(item: Encoded) -> str:
    """The hex code of a picture that has one."""
    from dsh_cli.codes.bits import to_hex

    assert item.packed is not None
    return to_hex(item.packed[None], item.bits)[0]
