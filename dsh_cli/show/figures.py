"""Results as pictures."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsh_cli.errors import DshError, UsageError
from dsh_cli.files import written
from dsh_cli.show.style import COLOURS, MARKERS, ROOM, class_name, free_place, heading, short
from dsh_cli.show.views.shared import printable
from dsh_cli.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dsh_cli.analysis.embedding import Embedding
    from dsh_cli.analysis.retrieval import Evaluation


Points = Literal["thumbnails", "dots", "codes"]

_DPI = 150  # of pictures made of pixels
_LABEL = 60  # characters of a run's name that a legend has room for
_SIDE, _LEGEND_WIDTH = 10.0, 1.6  # inches of an embedding, and of a column of its legend
_DOT = 14.0  # square points of a dot
_CANVAS = 1500  # pixels of the layer of thumbnails, square
_THUMBNAIL, _LARGEST = 32, 96  # pixels of a thumbnail there, with its border, and of one where few leave room
_ROOMY = 1000  # points, from which down thumbnails grow
_BORDER = 2
_LEGEND, _LEGEND_ROWS = 120, 40
_FEW = 20  # classes whose names are large
_FORMATS = (".png", ".svg", ".pdf")
# Fonts for what Matplotlib's own lacks, where they are installed.
_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei",
    "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Emoji", "Segoe UI Symbol", "Symbola",
)  # fmt: skip


def require_writable(file: str, or_else: str, pages: Sequence[str] = ()) -> None:
    """Refuse a place that nothing could be saved at, before anything is computed.

    Args:
        file: where a picture is to be.
        or_else: what to do instead.
        pages: other suffixes that will do.

    Raises:
        UsageError: its folder is missing, or its suffix is not that of a format.
        DshError: it is a folder, or in one that cannot be written to.
    """
    path = Path(file)
    if os.path.isdir(file):
        raise DshError(f"cannot write {file}: it is a folder; {or_else}")
    if path.suffix.lower() not in (*_FORMATS, *pages):
        known = [*_FORMATS, *pages[:1]]
        raise UsageError(f"{file or repr(file)}: the name must end in {', '.join(known[:-1])} or {known[-1]}")
    folder = Path(os.path.realpath(file)).parent  # where a link leads
    if not folder.is_dir():
        raise UsageError(f"{file}: there is no folder {folder if path.is_symlink() else path.parent}; make it first")
    if not os.access(folder, os.W_OK):
        raise DshError(f"cannot write {file}: nothing can be written to its folder; {or_else}")


def precision_recall(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Precision and recall within each radius, a curve for each run: mean over queries, an empty ball counted as 0."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    with rc_context({"font.family": _fonts()}):
        return _precision_recall(Figure(figsize=(6.4, 4.8), layout="constrained"), evaluations)


def _precision_recall(figure: Figure, evaluations: Mapping[str, Evaluation]) -> Figure:
    axes = figure.subplots()
    for name, evaluation in evaluations.items():
        points = [(within.recall, within.precision) for within in evaluation.curve]
        label = name if len(name) <= _LABEL else f"...{name[-_LABEL:]}"
        label = _plain(printable(label))
        axes.plot(*zip(*points, strict=True), marker=".", label=label)
    first = next(iter(evaluations.values()))
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(
        f"Within each Hamming radius, {counted(first.bits, 'bit')}\n"
        f"protocol {first.protocol}: {first.queries:,} queries, {first.database:,} pictures",
        fontsize="medium",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    return figure


def save(figure: Figure, file: str, folder: Path | None = None) -> tuple[str, ...]:
    """Save a figure in the format of the file's suffix, the same bytes for the same figure.

    Args:
        figure: what to save.
        file: where.
        folder: as in `written`.

    Returns:
        What is to be said of it.

    Raises:
        DshError: it cannot be written.
    """
    from matplotlib import rc_context

    suffix = Path(file).suffix.lower()
    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
    with (
        written(file, "choose another file", folder) as scratch,
        rc_context({"svg.hashsalt": "dsh"}),
        warnings.catch_warnings(record=True, action="always") as caught,
    ):
        figure.savefig(scratch, dpi=_DPI, format=suffix.removeprefix("."), metadata=date)
    found = (re.match(r"Glyph (\d+) ", str(warning.message)) for warning in caught)
    lacking = "".join(dict.fromkeys(chr(int(match[1])) for match in found if match))
    if not lacking:
        return ()
    some = printable(lacking[:10]) + ("..." if len(lacking) > 10 else "")
    return (f"none of the fonts looked for has {some}; where names have these, the picture has boxes",)


@cache
def _fonts() -> list[str]:
    """Matplotlib's own font, and those of `_FONTS` that are here for what it lacks."""
    from matplotlib import font_manager

    here = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FONTS if name in here)]


def embedding(embedding: Embedding, run: str, split: str, points: Points) -> Figure:
    """Points of codes: thumbnails with a border in the colour of their class, dots, or the codes themselves.

    Where they would hide one another only some are drawn as thumbnails or codes, see `_with_room`; the rest are dots.
    In three dimensions all are dots.

    Args:
        embedding: what to draw, with thumbnails if they are to be points.
        run: its name.
        split: where the pictures are from.
        points: what a point looks like.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = -(-min(_LEGEND, len(np.unique(embedding.codes.labels))) // _LEGEND_ROWS)
    with rc_context({"font.family": _fonts()}):
        figure = Figure(figsize=(_SIDE + _LEGEND_WIDTH * columns, _SIDE), layout="constrained")
        return _embedding(figure, embedding, run, split, points)


def _embedding(figure: Figure, embedding: Embedding, run: str, split: str, points: Points) -> Figure:
    codes, flat = embedding.codes, embedding.how.dims == 2
    axes: Any = figure.add_subplot(projection=None if flat else "3d")
    if flat:
        axes.set_aspect("equal")
        axes.set(xlim=(-ROOM, ROOM), ylim=(-ROOM, ROOM), xticks=[], yticks=[])
    else:
        axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
        axes.computed_zorder = False  # or points in front would hide names
    styles = _styles(codes.labels, len(codes.classes))
    sizes = _DOT * np.sqrt(embedding.counts) if embedding.counts.max(initial=1) > 1 else np.full(len(codes), _DOT)
    written_out = _rows_with_room_for_codes(embedding) if flat and points == "codes" else []
    dots = np.ones(len(codes), bool)
    dots[written_out] = False
    alike: dict[tuple[str, str], list[int]] = {}  # classes by what their points look like
    for label, style in styles.items():
        alike.setdefault(style, []).append(label)
    for (colour, marker), labels in alike.items():
        rows = dots & np.isin(codes.labels, labels)
        axes.scatter(*embedding.points[rows].T, s=sizes[rows], c=colour, marker=marker, linewidths=0, alpha=0.8)
    nowhere: list[list[float]] = [[]] * embedding.how.dims
    shown = [
        axes.scatter(*nowhere, s=40, c=colour, marker=marker, label=_plain(short(class_name(codes.classes, label))))
        for label, (colour, marker) in islice(styles.items(), _LEGEND)
    ]
    if flat and points == "thumbnails":
        _draw_thumbnails(axes, embedding, styles)
    for row in written_out:
        size = 9 * min(2.0, float(embedding.counts[row]) ** 0.125)
        _halo(axes, embedding.points[row], codes.hex[row], size, styles[int(codes.labels[row])][0], family="monospace")
    side = _thumbnail_side(embedding) if points == "thumbnails" else 1.5 * _DOT
    _name_classes(axes, embedding, list(styles), side / _CANVAS * 2 * ROOM)
    title = f"{len(styles)} classes" + (f", the first {_LEGEND}" if len(styles) > _LEGEND else "")
    figure.legend(
        handles=shown,
        loc="outside right center",
        ncols=-(-len(shown) // _LEGEND_ROWS),
        title=title,
        fontsize="medium" if len(shown) <= _LEGEND_ROWS else "x-small",
        frameon=False,
    )
    axes.set_title(_plain("\n".join(heading(embedding, run, split))), loc="left", fontsize="medium")
    return figure


def _styles(labels: NDArray[np.int64], class_count: int) -> dict[int, tuple[str, str]]:
    """Colour and marker of each class that has a point; they depend on its number alone."""
    return {
        label: (COLOURS[label % len(COLOURS)], MARKERS[label // len(COLOURS) % len(MARKERS)])
        for label in range(-1, class_count)
        if (labels == label).any()
    }


def _draw_thumbnails(axes: Any, embedding: Embedding, styles: Mapping[int, tuple[str, str]]) -> None:
    """One layer of all thumbnails that have room, over the dots of the others."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    codes = embedding.codes
    assert codes.thumbnails is not None
    layer = np.zeros((_CANVAS, _CANVAS, 4), np.uint8)
    places = (embedding.points * (1, -1) / ROOM + 1) / 2 * _CANVAS  # (n, 2) across and down
    growth = np.minimum(2.0, embedding.counts**0.25)  # of codes that many pictures share
    sides = np.minimum(_LARGEST, _thumbnail_side(embedding) * growth)
    for row in _with_room(places, 0.75 * sides, embedding):
        side = round(sides[row])
        inner = side - 2 * _BORDER
        picture = codes.thumbnails[row]
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).convert("RGB")
        enlarge = max(image.size) * 2 <= inner
        image = image.resize((inner, inner), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)
        left, top = (int(round(place - side / 2)) for place in places[row])
        colour = [round(255 * part) for part in to_rgb(styles[int(codes.labels[row])][0])]
        layer[top : top + side, left : left + side] = (*colour, 255)
        layer[top + _BORDER : top + side - _BORDER, left + _BORDER : left + side - _BORDER, :3] = np.asarray(image)
    axes.imshow(layer, extent=(-ROOM, ROOM, -ROOM, ROOM), zorder=3, interpolation="antialiased")


def _thumbnail_side(embedding: Embedding) -> float:
    """Pixels of the layer."""
    return float(min(_LARGEST, _THUMBNAIL * max(1.0, _ROOMY / len(embedding.points)) ** 0.5))


def _rows_with_room_for_codes(embedding: Embedding) -> list[int]:
    places = (embedding.points / ROOM + 1) / 2 * _CANVAS
    width = 14.0 * -(-embedding.codes.bits // 4)  # pixels, about
    return _with_room(places, np.full(len(places), max(24.0, width)), embedding)


def _halo(axes: Any, place: NDArray[np.float32], text: str, size: float, colour: str, **more: Any) -> None:
    """Text that can be read on anything, in the middle of a place."""
    from matplotlib import patheffects

    outline = [patheffects.withStroke(linewidth=size / 4, foreground="white")]
    dark = _darker(colour)
    axes.text(*place, text, color=dark, fontsize=size, ha="center", va="center", zorder=5, path_effects=outline, **more)


def _darker(colour: str) -> tuple[float, ...]:
    """A colour in which text on white can be read."""
    from matplotlib.colors import to_rgb

    return tuple(0.55 * part for part in to_rgb(colour))


def _with_room(places: NDArray[np.float64], apart: NDArray[np.float64], embedding: Embedding) -> list[int]:
    """Rows that lie so many pixels apart, across or down, from all before.

    Those of many pictures come first, then those nearer to another class, which one looks for, then others by lot.
    """
    codes = embedding.codes
    strayed = [
        label >= 0 and near != codes.classes[label]
        for near, label in zip(embedding.nearest, codes.labels.tolist(), strict=True)
    ]
    by_lot = np.random.default_rng(embedding.how.seed).permutation(len(places))
    by_lot = by_lot[np.argsort(~np.array(strayed, bool)[by_lot], kind="stable")]
    kept: list[int] = []
    taken = np.zeros((0, 3))
    for row in by_lot[np.argsort(-embedding.counts[by_lot], kind="stable")]:
        across = np.abs(taken[:, :2] - places[row])
        if not (across.max(axis=1) < (taken[:, 2] + apart[row]) / 2).any():
            taken = np.vstack([taken, [*places[row], apart[row]]])
            kept.append(int(row))
    return kept


def _name_classes(axes: Any, embedding: Embedding, present: Sequence[int], side: float) -> None:
    """The name of each class at its place, or near, where it hides neither its points nor another name.

    `side` is the width of a point in units of the plane.

    Of more than a few classes, and in three dimensions, those without room are left out; the legend names most.
    """
    codes, flat, few = embedding.codes, embedding.how.dims == 2, len(present) <= _FEW
    size = 14 if few else 7
    line = 2 * ROOM * 1.3 * size / 72 / (_SIDE * 0.9)  # of the plane, a line of text
    boxes: list[tuple[float, float, float]] = []  # centre, and half the width
    if not flat:
        axes.figure.draw_without_rendering()  # or it is not known where a place will be
    for label in present:
        place = embedding.place_of(label)
        name = _plain(short(class_name(codes.classes, label)))
        half = 0.35 * line * len(name)
        if flat:
            rows = codes.labels == label
            spread = np.abs(embedding.points[rows] - place).mean()
            if embedding.how.space == "code":
                place[1] += side + line / 2  # above its picture, which is the largest
            elif not few or rows.sum() < 8 or spread < line / 2:  # and the name would hide all of its points
                place[1] += min(spread, line) + side / 2 + line / 2
            at = place
        else:
            at = _on_screen(axes, place)
        free = free_place(at, half, line, boxes, (40 if few else 4) if flat else 0)
        if free is None:
            continue
        boxes.append((*free, half))
        _halo(axes, np.array(free) if flat else place, name, size, "black", weight="bold")


def _on_screen(axes: Any, place: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where a place in space is seen, in units of the plane."""
    from mpl_toolkits.mplot3d.proj3d import proj_transform

    across, down, _ = proj_transform(*place, axes.get_proj())
    box = axes.get_window_extent()
    pixels = axes.transData.transform((across, down))
    return np.array((pixels - [box.x0, box.y0]) / box.size * 2 * ROOM - ROOM, np.float32)


def _plain(text: str) -> str:
    """Text in which Matplotlib reads no formula."""
    return text.replace("$", r"\$")
