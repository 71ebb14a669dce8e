"""Points of codes, and how far they can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsh_cli.show.views.shared import View, pairs_table, plain_record, printable

if TYPE_CHECKING:
    from dsh_cli.analysis.embedding import Embedding


def embedded(embedding: Embedding, out: str, split: str) -> View:
    """What was drawn, and where it is."""
    how, total = embedding.how, int(embedding.counts.sum())
    record = {
        "method": how.method,
        "space": how.space,
        "points": len(embedding.points),
        "out": out,
        "trustworthiness": embedding.trustworthiness,
        "silhouette": embedding.silhouette,
        "seconds": round(embedding.seconds, 3),
    }
    of = "" if embedding.measured == len(embedding.points) else f", of {embedding.measured:,} points"
    points = f"{len(embedding.points):,} of {split} pictures"
    if how.space == "code":
        points = f"{len(embedding.points):,} distinct codes of {total:,} {split} pictures"
    rows = {
        "picture": printable(out),
        "points": f"{points}, {how.method} in {how.dims} dimensions",
        "trustworthiness": f"{embedding.trustworthiness:.3f}, of {embedding.near} neighbours, {embedding.metric}{of}",
        "silhouette": "-"
        if embedding.silhouette is None
        else f"{embedding.silhouette:.3f} by class, Euclidean, in the picture{of}",
        "took": f"{embedding.seconds:.1f} s",
    }
    return View(lambda width: pairs_table(rows), plain_record(record), record)
