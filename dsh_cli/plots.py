"""Results as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dsh_cli.errors import DISK_FULL, DshError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dsh_cli.retrieval import Evaluation

_DPI = 150  # of pictures made of pixels
_LABEL = 60  # characters of a run's name that a legend has room for


def require_writable(file: str) -> None:
    """Refuse a place that no figure could be saved at, before anything is computed.

    Raises:
        UsageError: its folder is missing, or its suffix is not that of a format.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if Path(file).suffix.removeprefix(".").lower() not in formats:
        raise UsageError(f"{file}: no picture format of that suffix; it is one of {', '.join(formats)}")
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
        label = label.replace("$", r"\$")  # or it would be read as a formula
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
    try:
        figure.savefig(file, dpi=_DPI)
    except OSError as error:
        what_to_do = "free space" if error.errno in DISK_FULL else "choose another file"
        raise DshError(f"cannot write {file}: {error.strerror}; {what_to_do}") from error
