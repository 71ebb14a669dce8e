"""Codes of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from dsh_cli.show.views.shared import lines_table, printable

if TYPE_CHECKING:
    from dsh_cli.network.encoding import Encoded


def hashed_line(item: Encoded) -> str:
    """As md5sum writes it: code, two blanks, path; a path with a line break or backslash is escaped and so marked."""
    code, path = code_text(item), item.path
    if any(c in path for c in "\\\n\r"):
        return "\\" + f"{code}  " + path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{code}  {path}"


def hashed_json(item: Encoded) -> str:
    """One JSON object: the code of a picture, or its error."""
    if item.packed is None:
        return json.dumps({"path": item.path, "error": item.error})
    return json.dumps({"path": item.path, "code": code_text(item), "bits": item.bits})


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
        table.add_row(f"0x{code}", *binary, Text(printable(item.path)))
    return table


def code_text(item: Encoded) -> str:
    """The hex code of a picture that has one."""
    from dsh_cli.codes.bits import to_hex

    assert item.packed is not None
    return to_hex(item.packed[None], item.bits)[0]
