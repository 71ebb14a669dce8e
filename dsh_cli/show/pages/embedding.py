"""An embedding as one page to explore: pan, zoom, look at pictures, find neighbours; it asks nothing of the network.

Drawn by Bokeh, whose script is put into the page whole: one Python package, kept since 2013, whose tooltips
may hold pictures, as Plotly's may not, and which draws fewer points while the plane moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dsh_cli.analysis.embedding import Embedding
from dsh_cli.files import written
from dsh_cli.show.pages.html import TEMPLATES, data_uri
from dsh_cli.show.style import COLOURS, MARKERS, class_name, free_place, heading, short
from dsh_cli.show.views.shared import printable

_DOT, _LARGEST = 7.0, 30.0  # pixels across a point
_NEAREST = 12  # neighbours listed for a point
_TILE = 96  # pixels of a picture in a tooltip, about
_DRAWN, _LOD = 2000, 10  # points from which a tenth is drawn while the plane moves, so that it moves smoothly
_LEGEND = 24  # classes that a legend has room for; more are named at their points alone
_FULL = 0.85  # opacity of points
# Of Bokeh's style, which it sets where the page's does not reach.
_FIELD = """:host {
  --color: var(--ink); --background-color: var(--card); --border-color: var(--soft);
  --input-focus-border-color: var(--accent);
}
.bk-input::placeholder { color: var(--soft); opacity: 1 }"""
_SHEET = 1 << 20  # characters of a sheet of pictures; browsers drop a custom property of more than twice that
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


def write_page(file: str, embedding: Embedding, run: str, split: str) -> None:
    """Write the page.

    Raises:
        DshError: it cannot be written.
    """
    text = page(embedding, run, split)
    with written(file, "choose another `out` FILE") as scratch:
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
    script, parts = components(_parts(embedding, columns, [count for count, _ in sheets]), wrap_script=False)
    libraries = Resources(mode="inline", components=["bokeh", "bokeh-widgets"], log_level="error").js_raw
    return TEMPLATES.get_template("embedding.html").render(
        title=title,
        trust=trust,
        sheets=[uri for _, uri in sheets],
        libraries=map(Markup, libraries),
        parts={name: Markup(part) for name, part in parts.items()},
        script=Markup(script),
    )


def _parts(embedding: Embedding, columns: int, sheets: Sequence[int]) -> dict[str, Any]:
    """Bokeh's models: search, points, and a panel for neighbours; of pictures on sheets of so many."""
    from bokeh.document import Document
    from bokeh.layouts import column
    from bokeh.models import ColumnDataSource, HoverTool, TapTool
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
        nonselection_fill_alpha=_FULL,
        **looks,
    )
    for over in (hits, marks):  # what a search and a click have found
        plot.scatter("x", "y", source=over, color="own", **looks)
    _add_legend(plot, source.data, looks)
    names = _name_classes(plot, embedding)
    scale = max(1, round(_TILE / max(height, width)))
    tile_w, tile_h = width * scale, height * scale
    plot.add_tools(
        HoverTool(
            renderers=[points],
            limit=1,
            point_policy="snap_to_data",
            tooltips=TEMPLATES.get_template("tooltip.html").render(
                width=tile_w, height=tile_h, sheet=columns * tile_w, shared=embedding.how.space == "code"
            ),
        ),
        TapTool(renderers=[points], mode="replace"),
    )
    example = f"a class, a file, or a code such as 0x{codes.hex[0]}"
    box = TextInput(name="search", title="Search", placeholder=example, width=300, stylesheets=[_FIELD])
    said = Div(text="", width=300, name="said")
    hint = TEMPLATES.get_template("hint.html").render()
    panel = Div(name="panel", text=hint, width=320, height=640, styles={"overflow-y": "auto"})
    tapped = _call(
        "listNearest",
        source=source,
        marks=marks,
        panel=panel,
        hint=hint,
        ratio=height / width,
        columns=columns,
        nearest=_NEAREST,
    )
    source.selected.js_on_change("indices", tapped)
    typed = _call("findPoints", source=source, over=hits, box=box, said=said, bits=codes.bits)
    box.js_on_change("value_input", typed)
    parts = {"search": column(box, said), "plot": plot, "neighbours": panel}
    document = Document()
    for part in parts.values():
        document.add_root(part)
    document.js_on_event("document_ready", _call("followScheme", plot=plot, points=points, names=names, box=box))
    return parts


def _call(function: str, **given: Any) -> Any:
    """What calls a function of the page's scripts."""
    from bokeh.models import CustomJS

    return CustomJS(args=given, code=f"{function}({{ {', '.join(given)} }})")


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


def _name_classes(plot: Any, embedding: Embedding) -> Any:
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
    labels = LabelSet(
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
    plot.add_layout(labels)
    return labels


def _sheets(thumbnails: NDArray[np.uint8], columns: int) -> list[tuple[int, Markup]]:
    """Sheets of pictures in their order: how many are on each, and the sheet as a data URI."""
    sheet = _sheet(thumbnails, columns)
    if len(sheet) <= _SHEET:
        return [(len(thumbnails), sheet)]
    step = max(1, len(thumbnails) * _SHEET // (len(sheet) * columns)) * columns  # pictures, in whole rows
    parts = [thumbnails[start : start + step] for start in range(0, len(thumbnails), step)]
    return [(len(part), _sheet(part, columns)) for part in parts]


def _sheet(thumbnails: NDArray[np.uint8], columns: int) -> Markup:
    """One picture of all, row by row, as a data URI: PNG of grey ones, JPEG of others."""
    count, height, width, channels = thumbnails.shape
    rows = -(-count // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:count] = thumbnails
    grid = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = grid.reshape(rows * height, columns * width, channels)
    return data_uri(sheet, "png" if channels == 1 else "jpeg")
