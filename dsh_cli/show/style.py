"""What pictures and pages share: colours, markers, names, headings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dsh_cli.show.views.shared import printable
from dsh_cli.words import counted

if TYPE_CHECKING:
    from dsh_cli.analysis.embedding import Embedding


# Ten colours that people with any colour vision tell apart: Petroff, Accessible Color Sequences for Data
# Visualization, 2021.
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
METHODS = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}  # as people write them
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">")  # which with ten colours make a hundred classes
ROOM = 1.07  # half a side of its plane, whose points reach 1, with room for the largest thumbnail there
_CLASS = 18  # characters of a class that a legend has room for


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
        f"{printable(run)}: {METHODS[how.method]} of {what}, {counted(embedding.codes.bits, 'bit')}",
        f"trustworthiness {embedding.trustworthiness:.3f} (of {embedding.near} neighbours, {embedding.metric})"
        f"{silhouette}{of}",
    )


def free_place(
    place: NDArray[np.float32], half: float, line: float, boxes: Sequence[tuple[float, float, float]], steps: int
) -> tuple[float, float] | None:
    """Where a name of half a width meets no other, up to so many lines above or below, inside the plane."""
    across = float(np.clip(place[0], -ROOM + half, ROOM - half)) if half < ROOM else 0.0
    for step in range(steps + 1):
        down = float(place[1]) + line * ((step + 1) // 2) * (1 if step % 2 else -1)
        down = float(np.clip(down, -ROOM + line / 2, ROOM - line / 2))
        if not any(abs(x - across) < half + w and abs(y - down) < line for x, y, w in boxes):
            return across, down
    return None


def short(name: str) -> str:
    """A class's name with room in a legend, and nothing in it that a terminal or a page would obey."""
    name = printable(name)
    return name if len(name) <= _CLASS else name[: _CLASS - 3] + "..."
