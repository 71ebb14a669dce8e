"""The one way to a terminal: what is shown there is text that its stream can write, and no terminal obeys it."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dsh_cli.show.views.shared import printable

_MARKS = {"…": "~", "·": "."}  # of views, Rich and Typer, and what is as wide in ASCII; Rich has other boxes and bars


def ready() -> None:
    """Make the standard streams write any text: what their encoding lacks is escaped, or a mark of ASCII."""
    codecs.register_error("dsh", _escaped)
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "dsh"), (sys.stderr, "dsh")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=errors)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(_MARKS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost), error.end


def ascii_only(stream: Any) -> bool:
    """Whether a stream has another encoding than one of Unicode's; then it gets ASCII where that can be chosen."""
    return not _codec(stream).startswith("utf")


def _codec(stream: Any) -> str:
    return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name


class Console(rich.console.Console):
    """Rich's console, for which no string is markup, and which escapes what a terminal would obey or not show.

    Views hand out names as strings, which are escaped before they are measured, so that columns fit. Of a `Text` what
    a terminal would obey is escaped even so.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    @property
    def encoding(self) -> str:
        """That of the stream, by the name that Rich knows."""
        return _codec(self.file)

    @property
    def spinner(self) -> str:
        """Rich's name of a spinner that the stream can show."""
        return "line" if self.options.ascii_only else "dots"

    def shown(self, text: str) -> str:
        """Text as the stream can write it, and nothing in it that a terminal would obey."""
        text = printable(text)
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding) if ascii_only(self.file) else text

    def render_str(self, text: str, **settings: Any) -> Text:
        """A string as Rich lays it out."""
        return super().render_str(self.shown(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All that is drawn, in pieces; Rich's own control codes among them are marked as such, and stay."""
        for part in super().render(renderable, options):
            if part.control or part.text.isprintable():
                yield part
            else:
                yield Segment("\n".join(map(printable, part.text.split("\n"))), part.style)
