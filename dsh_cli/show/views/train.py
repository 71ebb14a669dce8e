"""What a training came to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from dsh_cli.config import DATASETS, SPLITS
from dsh_cli.show.views.info import map_of, of_all, tflop_text
from dsh_cli.show.views.shared import View, counted, listed, pairs_table, plain_record, printable
from dsh_cli.show.views.table import smallest_distance

_CLASSES, _WIDTH = 10, 68  # classes with their counts, and characters of these, that fit in a line

if TYPE_CHECKING:
    from dsh_cli.config import TrainConfig
    from dsh_cli.data.splits import Splits
    from dsh_cli.training.events import TrainResult


def data_lines(config: TrainConfig, splits: Splits) -> list[str]:
    """What is understood of the data, in two or three lines: splits, classes, and those held out."""
    counts = ", ".join(f"{len(names):,} {split}" for split, names in splits.names().items())
    drawn = [split for split in SPLITS if split not in splits.given]
    source = splits.train.source
    where = source if source == config.data else f"{config.data} from {source}"
    classes = splits.train.classes
    how = f" ({' and '.join(drawn) if splits.given else 'all'} drawn by the seed)" if drawn else ""
    lines = [f"{where}: {len(classes):,} classes, {counts}{how}", f"classes{_by_class(splits)}"]
    if config.data in DATASETS and os.path.isdir(config.data):
        lines[0] += f"; for the folder of that name here, give ./{config.data}"
    if splits.unseen is not None:
        held_out = [classes[number] for number in sorted(set(splits.unseen.labels.tolist()))]
        one = "; one class alone finds nothing but itself" if len(held_out) == 1 else ""
        lines.append(f"held out of {len(classes)} classes: {listed(held_out)}{one}")
    return lines


def _by_class(splits: Splits) -> str:
    """Pictures of each class, or, where they are many, of the smallest and the largest."""
    classes = splits.train.classes
    labels = np.concatenate([part.labels for part in splits.parts().values()])
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) <= _CLASSES:
        each = ", ".join(f"{printable(name)} ({count:,})" for name, count in zip(classes, counts, strict=True))
        if len(each) <= _WIDTH:
            return f": {each}"
    few, many = int(counts.argmin()), int(counts.argmax())
    if counts[few] == counts[many]:
        return f" of {counts[few]:,} pictures each"
    return (
        f": {counts[few]:,} ({printable(classes[few])}) to {counts[many]:,} ({printable(classes[many])}) pictures each"
    )


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
        "tflop": result.tflop,
        "map": result.map,
        "min_class_distance": table.min_class_distance,
        "class_distance_bound": bound,
    }
    rows = {
        "run": printable(record["run"]),
        "data": f"{printable(run.config.data)}, {run.config.bits} bits, {counted(run.config.epochs, 'epoch')}",
        "training": f"{result.seconds:.1f} s{tflop_text(result.tflop)}",
        "mAP": map_of(run),
        "classes": smallest_distance(table) + of_all(run),
        "next": f"dsh table --model {printable(record['run'])}",
    }
    return View(lambda width: pairs_table(rows), plain_record(record), record)
