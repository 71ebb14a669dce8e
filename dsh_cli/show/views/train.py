"""What a training came to."""

from __future__ import annotations

import os
import shlex
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from dsh_cli.config import DATASETS, SPLITS
from dsh_cli.data.splits import NATIVE_UP_TO
from dsh_cli.show.views.info import by_method, map_of, of_all, tflop_text
from dsh_cli.show.views.shared import View, listed, pairs_table, plain_record, printable
from dsh_cli.show.views.table import smallest_distance
from dsh_cli.words import counted

_FEW = 20_000  # photographs to train on
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
    if not classes:
        why = " (pictures lie beside its folders, or in fewer than two)" if os.path.isdir(source) else ""
        there = ", ".join(f"{len(part):,} {split}" for split, part in splits.parts().items() if len(part))
        return [f"{where}: without classes{why}, {there}"]
    lines = [f"{where}: {len(classes):,} classes, {counts}{how}", f"classes{_by_class(splits)}"]
    if config.data in DATASETS and os.path.isdir(config.data):
        lines[0] += f"; for the folder of that name here, give ./{config.data}"
    if splits.unseen is not None:
        held_out = [classes[number] for number in sorted(set(splits.unseen.labels.tolist()))]
        one = "; one class alone finds nothing but itself" if len(held_out) == 1 else ""
        lines.append(f"held out of {len(classes)} classes: {listed(held_out)}{one}")
    return lines


def advice(config: TrainConfig, splits: Splits) -> list[str]:
    """What does better than what is asked for, if anything: of few photographs, features of a network that knows many.

    See `benchmarks/features.py`.
    """
    from dsh_cli.network.presets import FOR_PHOTOS, chosen

    train, config = splits.train, chosen(config)
    from_nothing = config.method == "dsh" and config.weights is None and not config.pretrained
    photographs = train.channels == 3 and train.image_size > NATIVE_UP_TO and config.data not in DATASETS
    if not (from_nothing and photographs and len(train) < _FEW):
        return []
    here = f"{shlex.quote(config.data)} --bits {config.bits} --backbone {FOR_PHOTOS[0]} --pretrained --freeze"
    install = "" if find_spec("timm") else " (after: pip install 'dsh-cli[timm]')"
    return [
        f"{len(train):,} photographs are few to train a network from nothing; for classes that are trained on, "
        f"features of one that has seen millions come to more: dsh train {here}{install}"
    ]


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
        "data": f"{printable(run.config.data)}, {counted(run.config.bits, 'bit')}, {by_method(run)}",
        "training": f"{result.seconds:.1f} s{tflop_text(result.tflop)}",
        "mAP": map_of(run),
        "classes": smallest_distance(table) + of_all(run) if run.classes else "none",
        "next": f"dsh {'table' if run.classes else 'neighbors PICTURE'} --model {printable(record['run'])}",
    }
    return View(lambda width: pairs_table(rows), plain_record(record), record)
