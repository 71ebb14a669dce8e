"""An embedding as one page to explore: pan, zoom, look at pictures, find neighbours; it asks nothing of the network.

Drawn by Bokeh, whose script is put into the page whole: one Python package, kept since 2013, whose tooltips
may hold pictures, as Plotly's may not, and which draws fewer points while the plane moves.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.analysis.embedding import Embedding
from dsh_cli.files import written
from dsh_cli.show.style import COLOURS, MARKERS, class_name, free_place, heading, short
from dsh_cli.show.views.shared import printable

_DOT, _LARGEST = 7.0, 30.0  # pixels across a point
_NEAREST = 12  # neighbours listed for a point
_TILE = 96  # pixels of a picture in a tooltip, about
_DRAWN, _LOD = 2000, 10  # points from which a tenth is drawn while the plane moves, so that it moves smoothly
_LEGEND = 24  # classes that a legend has room for; more are named at their points alone
_FULL = 0.85  # opacity of points
_QUIET = "#e3e3de"  # of points that a search has left out: pale, for many faint ones on a heap would be strong again
_SHEET = 1 << 20  # characters of a sheet of pictures; browsers drop a custom property of more than twice that
# nothing but what the file holds; Bokeh makes functions of the page's own scripts
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "base-uri 'none'; form-action 'none'"
)
# All of them filled: others would be drawn by their line alone, and points have none.
_SHAPES = {
    "o": "circle",
    "s": "square",
    "^": "triangle",
    "D": "diamond",
    "v": "inverted_triangle",
    "P": "plus",
    "X": "square_pin",
    "<": "hex",
    "*": "star",
    ">": "triangle_pin",
}

_STYLE = """
:root{color-scheme:light}
%(sheets)s
*{box-sizing:border-box}
body{margin:0;background:#fff;color:#1c1d1a;
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
header{padding:1rem 1.25rem .25rem}
h1{font-size:1.25rem;margin:0;overflow-wrap:anywhere}
header p{margin:.25rem 0 0;color:#62645c;font-size:.875rem;overflow-wrap:anywhere}
main{padding:.5rem 1.25rem 1.25rem;display:grid;grid-template-columns:minmax(0,1fr) 21rem;gap:0 1.5rem}
main>*{min-width:0}#search{grid-column:1/-1}
@media(max-width:60rem){main{grid-template-columns:minmax(0,1fr)}}
"""

# Pictures are cut from sheets of many: custom properties reach into Bokeh's shadow roots.
_TOOLTIP = (
    '<div style="display:flex;gap:10px;align-items:center;max-width:340px;font-size:13px"><div class="dsh-picture" '
    'style="flex:none;width:{w}px;height:{h}px;background:var(--sheet@sheet) calc(-{w}px * @across) '
    'calc(-{h}px * @down)/{sheet}px auto;image-rendering:pixelated;border:3px solid @own"></div>'
    '<div style="min-width:0;overflow-wrap:anywhere"><b>@label</b><br><code>0x@code</code><br>nearest class: @near<br>'
    "<small>@name</small>{shared}</div></div>"
)
_HINT = '<div style="font-size:14px;color:#62645c">Click a point: its nearest codes are listed here.</div>'

_SCRIPT = """
const words = code => { const out = []; for (let at = code.length; at > 0; at -= 8)
  out.push(parseInt(code.slice(Math.max(0, at - 8), at), 16)); return out }
const ones = x => { x -= (x >>> 1) & 0x55555555; x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
  return (((x + (x >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24 }
const text = value => String(value).replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`)
const d = source.data
const mark = (over, rows) => {  // drawn over all others, in their own colours
  over.data = Object.fromEntries(["x", "y", "size", "marker", "own"].map(key => [key, rows.map(row => d[key][row])])) }
"""
_ON_TAP = (
    _SCRIPT
    + """
const picked = source.selected.indices
if (!picked.length) { panel.text = hint; mark(marks, []); return }
const me = picked[0], mine = words(d.code[me])  // of several under the pointer the one its tooltip shows
const found = d.code.map((code, row) => ({row, away: words(code).reduce((sum, w, i) => sum + ones(w ^ mine[i]), 0)}))
  .filter(item => item.row != me)
found.sort((a, b) => a.away - b.away || a.row - b.row)
const tile = (row, width) => `<div role="img" aria-label="${text(d.label[row])}" style="flex:none;width:${width}px;` +
  `height:${width * ratio}px;background:var(--sheet${d.sheet[row]}) ${-d.across[row] * width}px ` +
  `${-d.down[row] * width * ratio}px/${columns * width}px auto;` +
  `image-rendering:pixelated;border:2px solid ${d.own[row]}"></div>`
const line = (row, note) => `<div style="display:flex;gap:.6em;align-items:center;margin:.35em 0">${tile(row, 44)}` +
  `<div style="min-width:0;overflow-wrap:anywhere"><b>${text(d.label[row])}</b> ${note}<br>` +
  `<code>0x${d.code[row]}</code>` +
  `<br><small>${text(d.name[row])}</small></div></div>`
const near = found.slice(0, nearest), same = found.filter(item => !item.away).length
mark(marks, [me, ...near.map(item => item.row)])
panel.text = `<div style="font-size:14px">${line(me, "")}` +
  `${same ? `${same.toLocaleString("en")} other point${same == 1 ? " has" : "s have"} its code` : ""}<hr>` +
  `<b>Nearest by Hamming distance</b>` +
  near.map(item => line(item.row, `${item.away} bit${item.away == 1 ? "" : "s"} away`)).join("") +
  "</div>"
"""
)
_ON_SEARCH = (
    _SCRIPT
    + """
const wanted = box.value_input.trim().toLowerCase(), rows = [...d.code.keys()]
const ones_and_zeros = wanted.replace(/^0b/, "").replaceAll("_", "")
const binary = /^[01]+$/.test(ones_and_zeros) && ones_and_zeros.length == bits
const digits = wanted.replace(/^0x/, "").replaceAll("_", "")
const prefix = binary ? BigInt("0b" + ones_and_zeros).toString(16).padStart(d.code[0].length, "0") : digits
const tests = [row => d.label[row].toLowerCase() == wanted]  // the first of these that finds anything counts
if (binary || wanted.startsWith("0x") || digits.length == d.code[0].length)
  tests.push(row => prefix && d.code[row].startsWith(prefix))
if (!wanted.startsWith("0x"))
  tests.push(row => d.label[row].toLowerCase().includes(wanted), row => d.name[row].toLowerCase().includes(wanted))
const hits = wanted ? tests.map(test => rows.filter(test)).find(found => found.length) ?? [] : []
const found = new Set(hits)
d.colour = rows.map(row => !wanted || found.has(row) ? d.own[row] : quiet)
mark(over, hits)
source.change.emit()
const count = number => number.toLocaleString("en")
said.text = !wanted ? "" : hits.length ? `${count(hits.length)} of ${count(d.code.length)} points`
  : "nothing found; search for a class, a file, or a code such as 0x" + d.code[0]
"""
)


def write_page(file: str, embedding: Embedding, run: str, split: str) -> None:
    """Write the page.

    Raises:
        DshError: it cannot be written.
    """
    text = page(embedding, run, split)
    with written(file, "choose another --out FILE") as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")


def page(embedding: Embedding, run: str, split: str) -> str:
    """The page as text."""
    from bokeh.embed import components
    from bokeh.resources import Resources

    codes = embedding.codes
    assert codes.thumbnails is not None
    columns = max(1, math.isqrt(max(0, len(codes) - 1)) + 1)
    title, trust = heading(embedding, run, split)
    sheets = _sheets(codes.thumbnails, columns)
    script, parts_of = components(_parts(embedding, columns, [count for count, _ in sheets]), wrap_script=False)
    body = "\n".join(f'<div id="{name}">{part}</div>' for name, part in parts_of.items())
    uris = "".join(f"--sheet{i}:url({uri});" for i, (_, uri) in enumerate(sheets))
    style = _STYLE % {"sheets": f":root{{{uris}}}"}
    parts = Resources(mode="inline", components=["bokeh", "bokeh-widgets"], log_level="error").js_raw
    bokeh = "\n".join(f"<script>{part}</script>" for part in parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'<title>{_text(title)}</title>\n<link rel="icon" href="data:,">\n<style>{style}</style>\n{bokeh}\n</head>\n'
        f"<body>\n<header><h1>{_text(title)}</h1>\n<p>{_text(trust)}</p>\n"
        "<p>Wheel or drag to move; point at a picture to see it; click it for its neighbours.</p></header>\n"
        f"<main>{body}</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _parts(embedding: Embedding, columns: int, sheets: Sequence[int]) -> dict[str, Any]:
    """Bokeh's models: search, points, and a panel for neighbours; of pictures on sheets of so many."""
    from bokeh.layouts import column
    from bokeh.models import ColumnDataSource, CustomJS, HoverTool, TapTool
    from bokeh.models.widgets import Div, TextInput
    from bokeh.plotting import figure

    codes = embedding.codes
    assert codes.thumbnails is not None
    height, width = codes.thumbnails.shape[1:3]
    source = ColumnDataSource(_columns(embedding, columns, sheets))
    hits, marks = (ColumnDataSource({key: [] for key in ("x", "y", "size", "marker", "own")}) for _ in range(2))
    plot = figure(
        name="map",
        height=640,
        sizing_mode="stretch_width",
        match_aspect=True,
        lod_threshold=_DRAWN,
        lod_factor=_LOD,
        lod_interval=200,
        tools="pan,wheel_zoom,box_zoom,reset,save",
        active_scroll="wheel_zoom",
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    plot.axis.visible = False
    plot.grid.visible = False
    looks: dict[str, Any] = {"size": "size", "marker": "marker", "alpha": _FULL, "line_color": None}
    points = plot.scatter(
        "x",
        "y",
        source=source,
        color="colour",
        nonselection_fill_color=_QUIET,
        nonselection_fill_alpha=_FULL,
        **looks,
    )
    for over in (hits, marks):  # what a search and a click have found
        plot.scatter("x", "y", source=over, color="own", **looks)
    _add_legend(plot, source.data, looks)
    _name_classes(plot, embedding)
    scale = max(1, round(_TILE / max(height, width)))
    tile_w, tile_h = width * scale, height * scale
    plot.add_tools(
        HoverTool(
            renderers=[points],
            limit=1,
            point_policy="snap_to_data",
            tooltips=_TOOLTIP.format(
                w=tile_w,
                h=tile_h,
                sheet=columns * tile_w,
                shared="<br>pictures with this code: @pictures" if embedding.how.space == "code" else "",
            ),
        ),
        TapTool(renderers=[points], mode="replace"),
    )
    example = f"a class, a file, or a code such as 0x{codes.hex[0]}"
    box = TextInput(name="search", title="Search", placeholder=example, width=300)
    said = Div(text="", width=300, name="said")
    panel = Div(name="panel", text=_HINT, width=320, height=640, styles={"overflow-y": "auto"})
    tap = {"source": source, "marks": marks, "panel": panel, "hint": _HINT, "ratio": height / width, "columns": columns}
    source.selected.js_on_change("indices", CustomJS(args={**tap, "nearest": _NEAREST}, code=_ON_TAP))
    search = {"source": source, "over": hits, "box": box, "said": said, "quiet": _QUIET, "bits": codes.bits}
    box.js_on_change("value_input", CustomJS(args=search, code=_ON_SEARCH))
    return {"search": column(box, said), "plot": plot, "neighbours": panel}


def _columns(embedding: Embedding, columns: int, sheets: Sequence[int]) -> dict[str, Any]:
    codes, counts = embedding.codes, embedding.counts
    labels = codes.labels.tolist()
    places = np.concatenate([np.arange(count) for count in sheets])
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    size = np.minimum(_LARGEST, _DOT * np.sqrt(counts)) if counts.max(initial=1) > 1 else np.full(len(codes), _DOT)
    return {
        "x": embedding.points[:, 0],
        "y": embedding.points[:, 1],
        "size": size.astype(np.float32),
        "colour": colours,
        "own": colours,
        "marker": [_SHAPES[MARKERS[label // len(COLOURS) % len(MARKERS)]] for label in labels],
        "number": labels,
        "label": [printable(class_name(codes.classes, label)) for label in labels],
        "near": [printable(name) for name in embedding.nearest],
        "code": codes.hex,
        "name": [printable(name) for name in codes.names],
        "pictures": counts,
        "sheet": np.repeat(np.arange(len(sheets)), sheets),
        "across": places % columns,
        "down": places // columns,
    }


def _add_legend(plot: Any, data: dict[str, Any], looks: dict[str, Any]) -> None:
    """What colour and shape each class has, by points that are nowhere, and so stay as they are in a search."""
    from bokeh.models import ColumnDataSource
    from bokeh.models.annotations import Legend, LegendItem

    rows = sorted({number: row for row, number in reversed(list(enumerate(data["number"])))}.items())
    if len(rows) > _LEGEND:
        return
    key = {name: [data[name][row] for _, row in rows] for name in ("own", "marker")}
    nowhere = dict.fromkeys(("x", "y"), [math.nan] * len(rows))
    renderer = plot.scatter(
        "x", "y", source=ColumnDataSource({**key, **nowhere, "size": [_DOT] * len(rows)}), color="own", **looks
    )
    items = [
        LegendItem(label={"value": short(data["label"][row])}, renderers=[renderer], index=place)
        for place, (_, row) in enumerate(rows)
    ]
    plot.add_layout(Legend(items=items, title="class"), "right")


def _name_classes(plot: Any, embedding: Embedding) -> None:
    """The name of each class at its place, or near; of many those that have room, and pointing tells the others."""
    from bokeh.models import ColumnDataSource
    from bokeh.models.annotations import LabelSet

    codes = embedding.codes
    present = [label for label in range(len(codes.classes)) if (codes.labels == label).any()]
    few = len(present) <= _LEGEND
    size = 15 if few else 11  # pixels
    unit = 2.0 / 600  # of the plane, a pixel as the page opens
    boxes: list[tuple[float, float, float]] = []
    names = []
    for label in present:
        name = short(codes.classes[label])
        half = 0.32 * size * unit * len(name)
        place = free_place(embedding.place_of(label), half, 1.2 * size * unit, boxes, 10 if few else 2)
        if place is not None:
            boxes.append((*place, half))
            names.append(name)
    plot.add_layout(
        LabelSet(
            x="x",
            y="y",
            text="name",
            source=ColumnDataSource({"x": [x for x, _, _ in boxes], "y": [y for _, y, _ in boxes], "name": names}),
            text_align="center",
            text_baseline="middle",
            text_font_style="bold",
            text_font_size=f"{size}px",
            background_fill_color="white",
            background_fill_alpha=0.75,
        )
    )


def _sheets(thumbnails: NDArray[np.uint8], columns: int) -> list[tuple[int, str]]:
    """Sheets of pictures in their order: how many are on each, and the sheet as a data URI."""
    sheet = _sheet(thumbnails, columns)
    if len(sheet) <= _SHEET:
        return [(len(thumbnails), sheet)]
    step = max(1, len(thumbnails) * _SHEET // (len(sheet) * columns)) * columns  # pictures, in whole rows
    parts = [thumbnails[start : start + step] for start in range(0, len(thumbnails), step)]
    return [(len(part), _sheet(part, columns)) for part in parts]


def _sheet(thumbnails: NDArray[np.uint8], columns: int) -> str:
    """One picture of all, row by row, as a data URI: PNG of grey ones, JPEG of others."""
    count, height, width, channels = thumbnails.shape
    rows = -(-count // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:count] = thumbnails
    grid = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = grid.reshape(rows * height, columns * width, channels)
    data, kind = io.BytesIO(), "png" if channels == 1 else "jpeg"
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(data, kind, quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _text(text: str) -> str:
    return html.escape(printable(text))
