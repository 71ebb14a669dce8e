"""Neighbours as one page with their pictures: a single file that opens from disk and asks nothing of the network."""

from __future__ import annotations

import base64
import contextlib
import html
import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.errors import DshError, ImageError
from dsh_cli.files import saving
from dsh_cli.neighbors import Answer, Finder, Neighbor
from dsh_cli.pictures import decode
from dsh_cli.show.views.neighbors import away, calibration, predicted_class, shared_class, short
from dsh_cli.show.views.shared import counted, printable

CARDS = 500  # neighbours of a query with a picture on the page, at most

_SIDE = 224  # pixels of a picture taken from its file, at most
_COARSE = 32  # pixels below which a picture is enlarged with sharp edges
_CODE = 16  # hex digits up to which a code is shown whole on a card
_CUT = 12  # characters of a longer one
_GONE = "picture not found"

_STYLE = """
:root{color-scheme:light dark;--page:#f6f6f3;--card:#fff;--line:#dfdfd8;--ink:#1c1d1a;--soft:#62645c;--quiet:#ecece6;
--mark:#b3261e;--same:#1f6f43;--accent:#27509b}
@media(prefers-color-scheme:dark){:root{--page:#141513;--card:#1e1f1c;--line:#34362f;--ink:#ecece6;--soft:#a3a599;
--quiet:#2a2c27;--mark:#ff9a8f;--same:#7fd1a0;--accent:#9dbcff}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif;-webkit-text-size-adjust:100%}
header,main,footer{max-width:76rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:2.5rem}
h1{font-size:1.75rem;line-height:1.2;font-weight:650;letter-spacing:-.015em;margin:0;text-wrap:balance}
header p,footer p{color:var(--soft);margin:.35rem 0 0;overflow-wrap:anywhere}
section{display:grid;grid-template-columns:17rem minmax(0,1fr);gap:2rem;padding:2rem 0;border-top:1px solid var(--line)}
section:first-child{border-top:0}
.query{align-self:start;position:sticky;top:1.5rem}
h2{font-size:1.05rem;line-height:1.35;margin:.85rem 0 .2rem;overflow-wrap:anywhere}
.query p{margin:.45rem 0 0;font-size:.875rem;color:var(--soft);overflow-wrap:anywhere}
.query p.class{font-size:1rem;color:var(--ink)}
ol{list-style:none;margin:0;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(9.5rem,1fr));gap:1rem;
align-content:start}
li{background:var(--card);border:1px solid var(--line);border-radius:.6rem;overflow:hidden;display:flex;
flex-direction:column}
.picture{display:block;width:100%;aspect-ratio:1;object-fit:contain;background:var(--quiet)}
.coarse{image-rendering:pixelated}
.query .picture{border-radius:.6rem;border:1px solid var(--line)}
.gone{display:grid;place-items:center;text-align:center;padding:1rem;color:var(--soft);font-size:.8125rem}
.bits{display:grid;place-items:center;padding:1rem;text-align:center;font:600 1.5rem/1.35 ui-monospace,SFMono-Regular,
Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere;overflow:hidden}
.bits.long{font-size:.8125rem;font-weight:400}
.strip{display:block;width:100%;height:5px;background:var(--quiet)}
.strip path{fill:var(--mark);stroke:var(--mark);stroke-width:1px;vector-effect:non-scaling-stroke}
.about{padding:.6rem .7rem .7rem;display:flex;flex-direction:column;gap:.1rem;min-width:0}
.top{display:flex;justify-content:space-between;align-items:baseline;gap:.5rem}
.label{font-weight:620;overflow-wrap:anywhere;min-width:0}
.same .label::after{content:" \\2713";color:var(--same)}
.rank{color:var(--soft);font-size:.8125rem;font-variant-numeric:tabular-nums}
.away{font-size:.875rem;font-variant-numeric:tabular-nums}
.code{font:.8125rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.code mark{background:none;color:var(--mark);font-weight:700;text-decoration:underline;text-underline-offset:.2em}
.path,.query p.path{font-size:.75rem;line-height:1.4;color:var(--soft);overflow-wrap:anywhere}
.more{color:var(--soft);font-size:.875rem;margin:.9rem 0 0}
footer{padding-bottom:3rem;font-size:.8125rem}
footer p:first-child{border-top:1px solid var(--line);padding-top:1rem;margin:0}
@media(max-width:48rem){header,main,footer{padding-left:1rem;padding-right:1rem}header{padding-top:1.5rem}
h1{font-size:1.4rem}section{display:block;padding:1.5rem 0}
.query{position:static;margin-bottom:1.25rem;display:grid;grid-template-columns:7rem minmax(0,1fr);gap:0 1rem}
.query .picture{grid-row:1/span 6;align-self:start}.query.wide{display:block}h2{margin-top:0}
.query.wide .bits{aspect-ratio:auto;margin-bottom:.85rem}
ol{grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:.75rem}}
@media print{:root{color-scheme:light}.query{position:static}li{break-inside:avoid}}
"""
# nothing but what the file holds, whatever a name in it may say
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Page:
    """A page that is being written, a query after the other."""

    def __init__(self, path: Path, finder: Finder) -> None:
        self.path, self.finder = path, finder
        self.written = 0  # queries on it
        self.pictures = self.missing = 0  # of neighbours: in all, and those that cannot be shown
        self.astray = False  # whether a relative path leads to no file
        self._scratch = path.with_name(f".{path.name}.{os.getpid()}") if path.name else path
        with self._saving():
            self._file = self._scratch.open("w", encoding="utf-8", newline="\n")
            self._file.write(_head(finder))

    def add(self, answer: Answer) -> None:
        """Show a query and its neighbours."""
        for part in _section(answer, self):
            with self._saving():
                self._file.write(part)
        self.written += 1

    def finish(self) -> None:
        """Put the page in its place, if anything is on it."""
        with self._saving():
            self._file.write(_foot(self))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if self.written:
                os.replace(self._scratch, self.path)

    def discard(self) -> None:
        """Leave nothing beside the page's place."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._scratch.unlink()

    def _saving(self) -> AbstractContextManager[None]:
        return saving(self.path, "choose another --html FILE")


@contextmanager
def page(path: str | os.PathLike[str], finder: Finder) -> Iterator[Page]:
    """A page that appears at `path`, whole, when its context ends, unless by an error or with no query on it.

    Raises:
        DshError: it cannot be written there.
    """
    target = Path(path)
    if os.path.lexists(target) and not target.is_file():
        raise DshError(f"cannot write {target}: it is there and no file; choose another --html FILE")
    shown = Page(target, finder)
    try:
        yield shown
        shown.finish()
    finally:
        shown.discard()


def _head(finder: Finder) -> str:
    run, database = finder.run, finder.database
    title = f"Nearest pictures by {counted(database.bits, 'bit')}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'<title>{_text(title)}</title>\n<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f"<header><h1>{_text(title)}</h1>\n"
        f"<p>{_text(str(run.path))}, among {len(database):,} of the {_text(database.name)}</p></header>\n<main>\n"
    )


def _foot(page: Page) -> str:
    missing = f"<p>{_text(_capital(lacking(page)))}.</p>\n" if page.missing else ""
    return (
        f"</main>\n<footer>{missing}<p>The strip under a picture is its code, from the first bit to the last; coloured "
        "bits differ from the query’s. A tick marks the query’s class. Of equally near pictures the first added comes "
        "first.</p></footer>\n</body>\n</html>\n"
    )


def lacking(page: Page) -> str:
    """How many pictures the page lacks, and what may be done about it, in words."""
    lacks = f"{page.missing:,} of {counted(page.pictures, 'picture')} cannot be shown"
    if not page.astray:
        return lacks
    folder = os.path.abspath(page.finder.database.folder)
    return f"{lacks}: relative paths were looked for in {folder}; name another folder with --relative-to"


def _section(answer: Answer, page: Page) -> Iterator[str]:
    finder, name, code = page.finder, answer.query.name, answer.code
    yield f'<section>\n<div class="query{"" if answer.query.picture else " wide"}">'
    if answer.query.picture:
        yield _picture(_from_file(name), f"query {name}")
        yield f"<h2>{_text(os.path.basename(name))}</h2>"
        yield f'<p class="code">{_code(code, code)}</p><p class="path">{_path(name)}</p>'
    else:
        yield f'<div class="picture bits{" long" if len(code) > _CODE else ""}">0x{_text(code)}</div>'
        yield f"<h2>Code {_text(name if len(name) <= _CODE + 2 else short(name, _CUT + 2))}</h2>"
    yield f'<p class="class">{_text(_capital(predicted_class(answer)))}.</p>'
    yield f"<p>{_text(_capital(shared_class(answer, finder)))}.</p>"
    if known := calibration(answer, finder.calibration):
        yield f"<p>{_text(_capital(known))}.</p>"
    yield "</div>\n<div>\n<ol>\n"
    shown = answer.neighbors[:CARDS]
    for neighbor, pixels in zip(shown, _pictures(shown, finder), strict=True):
        page.pictures += 1
        if isinstance(pixels, str):
            page.missing += 1
            page.astray |= pixels == _GONE and not Path(neighbor.path).is_absolute()
        yield _card(neighbor, pixels, answer)
    yield "</ol>\n"
    if more := len(answer.neighbors) - len(shown):
        yield f'<p class="more">And {more:,} more that are not shown here.</p>\n'
    yield "</div>\n</section>\n"


def _card(neighbor: Neighbor, pixels: NDArray[np.uint8] | str, answer: Answer) -> str:
    label = "no label" if neighbor.label is None else neighbor.label
    same = ' class="same"' if neighbor.label == answer.predicted.label else ""
    told = f"neighbour {neighbor.rank}, {label}, {away(neighbor.distance)}: {neighbor.path}"
    return (
        f"<li{same}>{_picture(pixels, told)}{_strip(neighbor, answer)}"
        f'<div class="about"><div class="top"><span class="label">{_text(label)}</span>'
        f'<span class="rank">{neighbor.rank}</span></div>'
        f'<span class="away">{away(neighbor.distance)}</span>'
        f'<span class="code">{_code(neighbor.code, answer.code)}</span>'
        f'<span class="path">{_path(neighbor.path)}</span></div></li>\n'
    )


def _strip(neighbor: Neighbor, answer: Answer) -> str:
    """The bits of a code in a row, those that differ filled."""
    differing = f"{int(neighbor.code, 16) ^ int(answer.code, 16):0{answer.bits}b}"
    path = "".join(f"M{at} 0h1v1h-1z" for at, bit in enumerate(differing) if bit == "1")
    told = f"{neighbor.distance} of {counted(answer.bits, 'bit')} differ"
    return (
        f'<svg class="strip" viewBox="0 0 {answer.bits} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{told}"><path d="{path}"/></svg>'
    )


def _code(code: str, query: str) -> str:
    if len(code) > _CODE:
        return f"0x{short(code, _CUT)}"
    return "0x" + "".join(c if c == d else f"<mark>{c}</mark>" for c, d in zip(code, query, strict=True))


def _pictures(shown: tuple[Neighbor, ...], finder: Finder) -> Iterator[NDArray[np.uint8] | str]:
    if finder.database.thumbnails is not None:
        yield from finder.database.thumbnails([neighbor.row for neighbor in shown])
    else:
        folder = finder.database.folder
        yield from (_from_file(os.path.join(folder, neighbor.path)) for neighbor in shown)


def _from_file(path: str) -> NDArray[np.uint8] | str:
    """The centred square of a picture file, as networks see it, in colour; or, in words, why there is none."""
    try:
        shape = decode.probe(path)
        return decode.read(path, min(_SIDE, shape.width, shape.height), 3)
    except ImageError as error:
        return f"picture cannot be read: {error}" if os.path.lexists(path) else _GONE


def _picture(pixels: NDArray[np.uint8] | str, told: str) -> str:
    if isinstance(pixels, str):
        return f'<div class="picture gone" role="img" aria-label="{_text(told)}">{_text(pixels)}</div>'
    small, coarse = (max(pixels.shape[:2]) < limit for limit in (decode.THUMBNAIL + 1, _COARSE))
    image, data = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), io.BytesIO()
    image.save(data, "PNG" if small else "JPEG", quality=88)
    source = f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode()}"
    return f'<img class="picture{" coarse" if coarse else ""}" src="{source}" alt="{_text(told)}">'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _path(path: str) -> str:
    """A path that is broken at its slashes first."""
    return _text(path).replace("/", "/<wbr>")


def _text(text: str) -> str:
    """A text as it may stand anywhere in the page, control characters and undecodable bytes escaped."""
    return html.escape(printable(text))
