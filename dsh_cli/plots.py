"""Figures. Matplotlib is imported when one is drawn, for it takes a second."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dsh_cli.errors import DshError, UsageError
from dsh_cli.retrieval import Retrieval

# Wong, Nature Methods 8 (2011): told apart by colour-blind readers too.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_DASHES = ("-", "--", ":", "-.")  # beyond so many colours, and in print


def pr_curves(curves: Mapping[str, Retrieval], out: str) -> None:
    """Draw precision against recall by Hamming radius, a curve for each name, into a .png, .svg or .pdf file.

    Raises:
        UsageError: the name of the file ends otherwise.
        DshError: it cannot be written.
    """
    suffix = Path(out).suffix.lower()
    if suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--pr-curve {out}: the name ends with .png, .svg or .pdf")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, (name, result) in enumerate(curves.items()):
        points = [(lookup.recall, lookup.precision) for lookup in result.lookups if lookup.empty < result.queries]
        axes.plot(
            *zip(*points, strict=True),
            color=_COLOURS[number % len(_COLOURS)],
            linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)],
            marker="o",
            markersize=4,
            label=f"{name}, {result.bits} bits, mAP {result.map:.4f}",
        )
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axes.set_title("Lookup by Hamming radius: a point for each, mean over queries")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    scratch = f"{out}.{os.getpid()}{suffix}"
    try:
        figure.savefig(scratch)
        os.replace(scratch, out)
    except OSError as error:
        raise DshError(f"cannot write {out}: {error.strerror}; choose another --pr-curve") from error
    finally:
        Path(scratch).unlink(missing_ok=True)
