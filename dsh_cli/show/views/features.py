"""A file of features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsh_cli.show.views.shared import View, pairs_table, plain_record, printable
from dsh_cli.words import counted

if TYPE_CHECKING:
    from dsh_cli.training.feature_file import Made


def featured(made: Made) -> View:
    """What was written; pictures that could not be read are told elsewhere, and counted here."""
    record: dict[str, Any] = {
        "out": made.out,
        "backbone": made.backbone,
        "width": made.width,
        "rows": made.rows,
        "labels": made.labels,
    }
    classes = f", {made.labels:,} with a class" if made.labels else ", without classes"
    failed = f", {len(made.skipped):,} failed" if made.skipped else ""
    method = "" if made.labels else " --method itq"
    rows = {
        "file": printable(made.out),
        "holds": f"{counted(made.rows, 'vector')} of {made.width:,} numbers, by {printable(made.backbone)}",
        "pictures": f"{made.rows:,} done{classes}{failed}",
        "next": f"dsh train {printable(made.out)} --bits 32{method}",
    }
    said = {"failed": [{"path": one.path, "error": one.error} for one in made.skipped]}
    return View(lambda width: pairs_table(rows), plain_record({**record, "failed": len(made.skipped)}), record | said)
