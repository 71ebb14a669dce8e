"""Results as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dsh_cli.errors import UsageError
from dsh_cli.files import written
from dsh_cli.views.shared import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dsh_cli.embedding import Embedding
    from dsh_cli.retrieval import Evaluation

Points = Literal["thumbnails", "dots", "codes"]

# Ten colours that people with any colour vision tell apart: Petroff, Accessible Color Sequences for Data
# Visualization, 2021.
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
METHODS = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}  # as people write them

_DPI = 150  # of pictures made of pixels
_LABEL = 60  # characters of a run's name that a legend has room for
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">")  # which with ten colours make a hundred classes
_PAGE = (11.6, 10.0)  # inches of an embedding
_ROOM = 1.06  # half a side of its plane, whose points reach 1
_DOT = 14.0  # square points of a dot
_CANVAS = 1500  # pixels of the layer of thumbnails, square
_THUMBNAIL = 32  # pixels of a thumbnail there, with its border
_BORDER = 2
_LEGEND, _LEGEND_ROWS = 120, 40
_CLASS = 18  # characters of a class that a legend has room for


def require_writable(file: str) -> None:
    """Refuse a place that no figure could be saved at, before anything is computed.

    Raises:
        UsageError: its folder is missing, or its suffix is not that of a format.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(file).suffix.removeprefix(".").lower() not in formats:
        raise UsageError(f"{file}: no picture format of that suffix; it is one of {', '.join(formats)}")
    require_folder(file)


def require_folder(file: str) -> None:
    """Refuse a place whose folder is missing.

    Raises:
        UsageError: it is.
    """
    if not Path(file).parent.is_dir():
        raise UsageError(f"{file}: there is no folder {Path(file).parent}; make it first")


def precision_recall(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Precision and recall within each radius, a curve for each run: mean over queries, an empty ball counted as 0."""
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for name, evaluation in evaluations.items():
        points = [(within.recall, within.precision) for within in evaluation.curve]
        label = name if len(name) <= _LABEL else f"...{name[-_LABEL:]}"
        label = _plain(printable(label))
        axes.plot(*zip(*points, strict=True), marker=".", label=label)
    first = next(iter(evaluations.values()))
    axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_title(
        f"Within each Hamming radius, {first.bits} bits\n"
        f"protocol {first.protocol}: {first.queries:,} queries, {first.database:,} pictures",
        fontsize="medium",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")
    return figure


def save(figure: Figure, file: str) -> None:
    """Save a figure in the format of the file's suffix.

    Raises:
        DshError: it cannot be written.
    """
    with written(file, "choose another file") as scratch:
        figure.savefig(scratch, dpi=_DPI, format=Path(file).suffix.removeprefix("."))


def embedding(embedding: Embedding, run: str, split: str, points: Points) -> Figure:
    """Points of codes: thumbnails with a border in the colour of their class, dots, or the codes themselves.

    Where they would hide one another only some are drawn as thumbnails or codes, drawn by lot and so fairly to all
    classes; the rest are dots. In three dimensions all are dots.

    Args:
        embedding: what to draw, with thumbnails if they are to be points.
        run: its name.
        split: where the pictures are from.
        points: what a point looks like.
    """
    from matplotlib.figure import Figure

    codes, flat = embedding.codes, embedding.how.dims == 2
    figure = Figure(figsize=_PAGE, layout="constrained")
    axes: Any = figure.add_subplot(projection=None if flat else "3d")
    if flat:
        axes.set_aspect("equal")
        axes.set(xlim=(-_ROOM, _ROOM), ylim=(-_ROOM, _ROOM), xticks=[], yticks=[])
    else:
        axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
        axes.computed_zorder = False  # or points in front would hide names
    styles = _styles(codes.labels, len(codes.classes))
    sizes = _DOT * np.sqrt(embedding.counts) if embedding.counts.max(initial=1) > 1 else np.full(len(codes), _DOT)
    handles = []
    for label, (colour, marker) in styles.items():
        rows = codes.labels == label
        axes.scatter(*embedding.points[rows].T, s=sizes[rows], c=colour, marker=marker, linewidths=0, alpha=0.8)
        handles.append(
            axes.scatter(
                *[[]] * embedding.how.dims,
                s=40,
                c=colour,
                marker=marker,
                label=_short(class_name(codes.classes, label)),
            )
        )
    if flat and points == "thumbnails":
        _draw_thumbnails(axes, embedding, styles)
    elif flat and points == "codes":
        _draw_codes(axes, embedding, styles)
    _name_classes(axes, embedding, list(styles))
    shown = handles[:_LEGEND]
    title = f"{len(handles)} classes" + (f", the first {_LEGEND}" if len(handles) > _LEGEND else "")
    figure.legend(
        handles=shown,
        loc="outside right upper",
        ncols=-(-len(shown) // _LEGEND_ROWS),
        title=title,
        fontsize="medium" if len(shown) <= _LEGEND_ROWS else "x-small",
        frameon=False,
    )
    axes.set_title(_plain("\n".join(heading(embedding, run, split))), loc="left", fontsize="medium")
    return figure


def _styles(labels: NDArray[np.int64], classes: int) -> dict[int, tuple[str, str]]:
    """Colour and marker of each class that has a point; they depend on its number alone."""
    return {
        label: (COLOURS[label % len(COLOURS)], MARKERS[label // len(COLOURS) % len(MARKERS)])
        for label in range(-1, classes)
        if (labels == label).any()
    }


def class_name(classes: Sequence[str], label: int) -> str:
    """The name of a class, or what is said where a picture has none."""
    return classes[label] if label >= 0 else "no label"


def heading(embedding: Embedding, run: str, split: str) -> tuple[str, str]:
    """Two lines that say what is seen, and how far it can be trusted."""
    how, total = embedding.how, int(embedding.counts.sum())
    what = (
        f"relaxed codes of {total:,} {split} pictures"
        if how.space == "relaxed"
        else f"{len(embedding.codes):,} distinct codes of {total:,} {split} pictures"
    )
    of = "" if embedding.measured == len(embedding.points) else f"; both of {embedding.measured:,} points"
    silhouette = (
        ""
        if embedding.silhouette is None
        else (f", silhouette by class {embedding.silhouette:.3f} (Euclidean, in the picture)")
    )
    return (
        f"{printable(run)}: {METHODS[how.method]} of {what}, {embedding.codes.bits} bits",
        f"trustworthiness {embedding.trustworthiness:.3f} (of {embedding.near} neighbours, {embedding.metric})"
        f"{silhouette}{of}",
    )


def _draw_thumbnails(axes: Any, embedding: Embedding, styles: Mapping[int, tuple[str, str]]) -> None:
    """One layer of all thumbnails that have room, over the dots of the others."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    codes = embedding.codes
    assert codes.thumbnails is not None
    layer = np.zeros((_CANVAS, _CANVAS, 4), np.uint8)
    places = (embedding.points * (1, -1) / _ROOM + 1) / 2 * _CANVAS  # (n, 2) across and down
    growth = np.minimum(2.0, embedding.counts**0.25)  # of the codes that many pictures share
    for row in _with_room(places, 0.75 * _THUMBNAIL * growth, embedding):
        side = round(_THUMBNAIL * growth[row])
        inner = side - 2 * _BORDER
        picture = codes.thumbnails[row]
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).convert("RGB")
        enlarge = max(image.size) * 2 <= inner
        image = image.resize((inner, inner), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)
        left, top = (int(round(place - side / 2)) for place in places[row])
        colour = [round(255 * part) for part in to_rgb(styles[int(codes.labels[row])][0])]
        layer[top : top + side, left : left + side] = (*colour, 255)
        layer[top + _BORDER : top + side - _BORDER, left + _BORDER : left + side - _BORDER, :3] = np.asarray(image)
    axes.imshow(layer, extent=(-_ROOM, _ROOM, -_ROOM, _ROOM), zorder=3, interpolation="antialiased")


def _draw_codes(axes: Any, embedding: Embedding, styles: Mapping[int, tuple[str, str]]) -> None:
    codes = embedding.codes
    places = (embedding.points / _ROOM + 1) / 2 * _CANVAS
    texts = codes.hex
    width = 10.0 * max(map(len, texts)) if texts else 0.0  # pixels, about
    for row in _with_room(places, np.full(len(codes), max(24.0, width)), embedding):
        axes.text(
            *embedding.points[row],
            texts[row],
            color=styles[int(codes.labels[row])][0],
            fontsize=7,
            family="monospace",
            ha="center",
            va="center",
            zorder=3,
        )


def _with_room(places: NDArray[np.float64], apart: NDArray[np.float64], embedding: Embedding) -> list[int]:
    """Rows that lie so many pixels apart, across or down, from all before: by the pictures they are of, then by lot."""
    by_lot = np.random.default_rng(embedding.how.seed).permutation(len(places))
    kept: list[int] = []
    taken = np.zeros((0, 3))
    for row in by_lot[np.argsort(-embedding.counts[by_lot], kind="stable")]:
        across = np.abs(taken[:, :2] - places[row])
        if not (across.max(axis=1) < (taken[:, 2] + apart[row]) / 2).any():
            taken = np.vstack([taken, [*places[row], apart[row]]])
            kept.append(int(row))
    return kept


def _name_classes(axes: Any, embedding: Embedding, present: Sequence[int]) -> None:
    """The name of each class at its place; above it where it would hide the points, and where another stands there."""
    from matplotlib import patheffects

    codes = embedding.codes
    size = 16 if len(present) <= 20 else 8
    line = 2 * _ROOM * size / 72 / (_PAGE[1] * 0.9)  # of the plane, a line of text
    outline = [patheffects.withStroke(linewidth=size / 3, foreground="white")]
    above = _THUMBNAIL / _CANVAS * 2 * _ROOM + line / 2
    boxes: list[tuple[float, float, float]] = []  # centre, and half the width
    for label in present:
        place = embedding.place_of(label)
        if embedding.how.dims == 2:
            spread = np.abs(embedding.points[codes.labels == label] - place).mean()
            if embedding.how.space == "code":
                place[1] += above  # its picture, which is the largest
            elif spread < line / 2:  # and the name would hide all of its points
                place[1] += spread + line
        name = _short(class_name(codes.classes, label))
        half = 0.35 * line * len(name)
        if embedding.how.dims == 2:
            step = 0
            while any(abs(x - place[0]) < half + w and abs(y - place[1]) < line for x, y, w in boxes) and step < 40:
                step += 1
                place[1] += line * step * (1 if step % 2 else -1)  # up one, down two, up three
            boxes.append((float(place[0]), float(place[1]), half))
        axes.text(*place, name, fontsize=size, weight="bold", ha="center", va="center", zorder=5, path_effects=outline)


def _short(name: str) -> str:
    """A class's name with room in a legend, and nothing in it read as a formula."""
    name = printable(name)
    return _plain(name if len(name) <= _CLASS else name[: _CLASS - 3] + "...")


def _plain(text: str) -> str:
    """Text in which Matplotlib reads no formula."""
    return text.replace("$", r"\$")
