"""What a training came to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dsh_cli.show.views.info import map_of, of_all
from dsh_cli.show.views.shared import View, counted, pairs_table, plain_record, printable
from dsh_cli.show.views.table import smallest_distance

if TYPE_CHECKING:
    from dsh_cli.training.events import TrainResult


def trained(result: TrainResult) -> View:
    """What a training came to."""
    table = result.table
    bound = table.bound.distance if table.bound else None
    run = result.run
    record: dict[str, Any] = {
        "run": str(run.path),
        "dataset": run.config.data,
        "bits": run.config.bits,
        "epochs": run.config.epochs,
        "seconds": round(result.seconds, 3),
        "map": result.map,
        "min_class_distance": table.min_class_distance,
        "class_distance_bound": bound,
    }
    rows = {
        "run": printable(record["run"]),
        "data": f"{printable(run.config.data)}, {run.config.bits} bits, {counted(run.config.epochs, 'epoch')}",
        "training": f"{result.seconds:.1f} s",
        "mAP": map_of(run),
        "classes": smallest_distance(table) + of_all(run),
        "next": f"dsh table --model {printable(record['run'])}",
    }
    return View(lambda width: pairs_table(rows), plain_record(record), record)
