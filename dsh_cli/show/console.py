"""The one way to a terminal: what is shown there is text, and no terminal obeys it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from dsh_cli.show.views.shared import printable


class Console(rich.console.Console):
    """Rich's console, for which no string is markup, and which escapes what a terminal would obey.

    Views escape what they lay out, so that columns fit; what one of them forgets is escaped here.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """All that is drawn, in pieces; Rich's own control codes among them are marked as such, and stay."""
        for part in super().render(renderable, options):
            if part.control or part.text.isprintable():
                yield part
            else:
                yield Segment("\n".join(map(printable, part.text.split("\n"))), part.style)
