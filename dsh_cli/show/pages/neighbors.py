"""Neighbours as one page with their pictures: a single file that opens from disk and asks nothing of the network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dsh_cli.config import Fit
from dsh_cli.errors import ImageError
from dsh_cli.files import saving, written
from dsh_cli.neighbors import Answer, Database, Neighbor
from dsh_cli.pictures import decode
from dsh_cli.show.pages.html import TEMPLATES, data_uri
from dsh_cli.show.views.neighbors import away, calibration, predicted_class, rescored, score, shared_class, short
from dsh_cli.words import counted

CARDS = 500  # neighbours of a query with a picture on the page, at most

_SIDE = 224  # pixels of a picture taken from its file, at most
_COARSE = 32  # pixels below which a picture is enlarged with sharp edges
_CODE = 16  # hex digits up to which a code is shown whole on a card
_CUT = 12  # characters of a longer one
_GONE = "picture not found"
_LEFT_OUT = "picture left out"
_OR_ELSE = "choose another `html` FILE"
_SECTIONS = Markup("\0")  # where they go; no text has it, for control characters are escaped


class Page:
    """A page that is being written, a query after the other."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.written = 0  # queries on it
        self.pictures = self.missing = 0  # of neighbours: in all, and those that cannot be shown
        self.left_out = 0  # of the latter those in no folder whose pictures may be shown
        self.astray = False  # whether a relative path leads to no file
        self._database: Database | None = None  # of the queries on it
        self._file = file

    def add(self, answer: Answer) -> None:
        """Show a query and its neighbours, which are of one database on all of a page."""
        if self._database is None:
            self._database = answer.database
            with self._saving():
                self._file.write(self._frame(answer.database)[0])
        for part in _section(answer, self):
            with self._saving():
                self._file.write(part)
        self.written += 1

    def finish(self) -> None:
        """Write what comes after the last query."""
        if self._database is None:
            raise _NothingOnIt
        with self._saving():
            self._file.write(self._frame(self._database)[1])

    def lacking(self) -> str:
        """How many pictures the page lacks, and what may be done about it, in words; nothing where it has them all."""
        if self._database is None or not self.missing:
            return ""
        why = []
        if self.left_out:
            why.append(
                f"{self.left_out:,} left out, for nobody here has added their folder to the index; "
                "to show them name it with --pictures, or with --relative-to where paths are relative"
            )
        if self.astray:
            folder = os.path.abspath(self._database.folder)
            why.append(f"relative paths were looked for in {folder}; name another folder with --relative-to")
        lacks = f"{self.missing:,} of {counted(self.pictures, 'picture')} cannot be shown"
        return f"{lacks}: {'; '.join(why)}" if why else lacks

    def _frame(self, database: Database) -> tuple[str, str]:
        """The page before its sections, and after them."""
        text = TEMPLATES.get_template("neighbors.html").render(
            title=f"Nearest pictures by {counted(database.bits, 'bit')}",
            database=database,
            sections=_SECTIONS,
            lacking=self.lacking(),
        )
        before, _, after = text.partition(_SECTIONS)
        return before, after

    def _saving(self) -> AbstractContextManager[None]:
        return saving(self.path, _OR_ELSE)


class _NothingOnIt(Exception):
    """Says to `written` that there is nothing to keep."""


@contextmanager
def page(path: str | os.PathLike[str]) -> Iterator[Page]:
    """A page that appears at `path`, whole, when its context ends, unless by an error or with no query on it.

    Raises:
        DshError: it cannot be written there.
    """
    with saving(Path(path), _OR_ELSE), suppress(FileNotFoundError):
        os.lstat(path)  # a name that is too long is told before anything is done
    with (
        suppress(_NothingOnIt),
        written(path, _OR_ELSE) as scratch,
        scratch.open("w", encoding="utf-8", newline="\n") as file,
    ):
        shown = Page(Path(path), file)
        yield shown
        shown.finish()


def _section(answer: Answer, page: Page) -> Iterator[str]:
    query, code = answer.query, answer.code
    name = query.name if len(query.name) <= _CODE + 2 else short(query.name, _CUT + 2)
    known = [shared_class(answer), rescored(answer), calibration(answer)]
    template = TEMPLATES.get_template("section.html")
    return template.generate(
        query=query,
        name=os.path.basename(query.name) if query.picture else name,
        picture=_picture(_from_file(query.name, answer.database.fit)) if query.picture else None,
        code=f"0x{code}",
        digits=_digits(code, code),
        is_long=len(code) > _CODE,
        predicted=predicted_class(answer),
        known=list(filter(None, known)),
        cards=_cards(answer, page),  # read as they are written, one at a time
        more=len(answer.neighbors[CARDS:]),
    )


def _cards(answer: Answer, page: Page) -> Iterator[dict[str, Any]]:
    shown = answer.neighbors[:CARDS]
    for neighbor, pixels in zip(shown, _pictures(shown, answer.database), strict=True):
        page.pictures += 1
        if isinstance(pixels, str):
            page.missing += 1
            page.left_out += pixels == _LEFT_OUT
            page.astray |= pixels == _GONE and not Path(neighbor.path).is_absolute()
        yield {
            "rank": neighbor.rank,
            "path": neighbor.path,
            "label": "no label" if neighbor.label is None else neighbor.label,
            "same": answer.is_shared(neighbor),
            "bits": answer.bits,
            "distance": neighbor.distance,
            "away": away(neighbor.distance),
            "score": "" if neighbor.score is None else f"score {score(neighbor.score)}",
            "digits": _digits(neighbor.code, answer.code),
            "strip": _strip(neighbor.code, answer),
            "picture": _picture(pixels),
        }


def _strip(code: str, answer: Answer) -> Markup:
    """A path that fills, of the bits in a row, those that differ."""
    differing = f"{int(code, 16) ^ int(answer.code, 16):0{answer.bits}b}"
    return Markup("".join(f"M{at} 0h1v1h-1z" for at, bit in enumerate(differing) if bit == "1"))


def _digits(code: str, query: str) -> list[tuple[str, bool]]:
    """The hex digits of a code, and whether they differ from the query's; a long code is cut, and tells nothing."""
    if len(code) > _CODE:
        return [(short(code, _CUT), False)]
    return [(mine, mine != theirs) for mine, theirs in zip(code, query, strict=True)]


def _pictures(shown: tuple[Neighbor, ...], database: Database) -> Iterator[NDArray[np.uint8] | str]:
    if database.thumbnails is not None:
        yield from database.thumbnails([neighbor.row for neighbor in shown])
    else:
        yield from (_from_recorded(neighbor.path, database) for neighbor in shown)


def _from_recorded(path: str, database: Database) -> NDArray[np.uint8] | str:
    """The picture at a path that an index names, if it may be shown."""
    place = database.shown.place(os.path.join(database.folder, path))
    return _LEFT_OUT if place is None else _from_file(place, database.fit)


def _from_file(path: str, fit: Fit) -> NDArray[np.uint8] | str:
    """A picture file made square as the network sees it, in colour; or, in words, why there is none."""
    try:
        shape = decode.probe(path)
        side = min(shape.width, shape.height) if fit == "crop" else max(shape.width, shape.height)
        return decode.read(path, decode.Form(min(_SIDE, side), 3, fit))
    except ImageError as error:
        return f"picture cannot be read: {error}" if os.path.lexists(path) else _GONE


def _picture(pixels: NDArray[np.uint8] | str) -> dict[str, Any]:
    """What a template shows: a picture, or why there is none."""
    if isinstance(pixels, str):
        return {"gone": pixels}
    small, coarse = (max(pixels.shape[:2]) < limit for limit in (decode.THUMBNAIL + 1, _COARSE))
    return {"gone": "", "coarse": coarse, "source": data_uri(pixels, "png" if small else "jpeg")}
