"""Results as Rich tables, plain lines or JSON. Knows nothing of who asks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dsh_cli.checkpoint import Run
    from dsh_cli.config import Recipe
    from dsh_cli.encoding import Encoded
    from dsh_cli.metrics import ClassTable
    from dsh_cli.training import TrainResult

_WIDE = 90  # columns from which a third variant is shown
_CLOSEST_SHOWN = 10
_CELL = 4  # columns of one distance in the matrix
_BEST, _GOOD, _NEAR, _CLASH = "bold green", "green", "yellow", "bold white on red"


@dataclass(frozen=True)
class View:
    """One result in its three forms. `table` is given the width of the terminal."""

    table: Callable[[int], RenderableType]
    plain: Sequence[str]
    record: Mapping[str, Any]

    @property
    def json(self) -> str:
        """The record on one line."""
        return json.dumps(self.record)


def printable(text: str) -> str:
    """Text with control characters and undecodable bytes escaped, safe to show on a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


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
    queries, database = run.counts["test"], run.counts["train"]
    rows = {
        "run": printable(record["run"]),
        "data": f"{printable(run.config.data)}, {run.config.bits} bits, {_count(run.config.epochs, 'epoch')}",
        "training": f"{result.seconds:.1f} s",
        "mAP": f"{result.map:.4f}, tie-aware, {queries:,} test queries against {database:,} training pictures",
        "classes": smallest_distance(table),
        "next": f"dsh table --model {printable(record['run'])}",
    }
    return View(lambda width: _pairs(rows), _plain_record(record), record)


def hashed_line(item: Encoded) -> str:
    """As md5sum writes it: code, two blanks, path; a path with a line break or backslash is escaped and so marked."""
    code, path = code_text(item), item.path
    if any(c in path for c in "\\\n\r"):
        return "\\" + f"{code}  " + path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return f"{code}  {path}"


def hashed_json(item: Encoded) -> str:
    """One JSON object: the code of a picture, or its error."""
    if item.packed is None:
        return json.dumps({"path": item.path, "error": item.error})
    return json.dumps({"path": item.path, "code": code_text(item), "bits": item.bits})


def hashed_table(items: Iterable[Encoded], width: int) -> RenderableType:
    """Codes of the pictures that have one; errors go elsewhere."""
    good = [item for item in items if item.packed is not None]
    bits = good[0].bits if good else 0
    show_binary = bits + -(-bits // 4) + 30 <= width
    table = _table()
    table.add_column("code", style="bold", overflow="fold")
    if show_binary:
        table.add_column("binary", no_wrap=True)
    table.add_column("picture", overflow="fold")
    for item in good:
        code = code_text(item)
        binary = [f"{int(code, 16):0{bits}b}"] if show_binary else []
        table.add_row(f"0x{code}", *binary, Text(printable(item.path)))
    return table


def code_text(item: Encoded) -> str:
    """The hex code of a picture that has one."""
    from dsh_cli.codes import to_hex

    assert item.packed is not None
    return to_hex(item.packed[None], item.bits)[0]


def class_codes(table: ClassTable, run: Run) -> View:
    """The table of class codes, with the distances between them."""
    record = {
        "split": table.split,
        "bits": table.bits,
        "classes": [
            {
                "label": row.label,
                "code": row.code,
                "count": row.count,
                "exact": row.exact,
                "variants": [vars(variant) for variant in row.variants],
            }
            for row in table.classes
        ],
        "class_distances": table.class_distances,
        "min_class_distance": table.min_class_distance,
        "class_distance_bound": table.bound.distance if table.bound else None,
        "bit_balance": table.bit_balance,
    }
    plain = [
        "\t".join(
            [_field(r.label), _or_dash(r.code), _or_dash(r.binary), str(r.count), f"{r.exact:.4f}" if r.count else "-"]
        )
        for r in table.classes
    ]
    return View(lambda width: _class_codes_table(table, run, width), plain, record)


def smallest_distance(table: ClassTable) -> str:
    """The smallest distance between two classes beside the best possible, in words."""
    if table.min_class_distance is None or table.bound is None:
        return "no two classes to compare"
    limit = f"no code does better than {table.bound.distance} ({table.bound.source})"
    return f"smallest distance {table.min_class_distance}; {limit}"


def run_info(run: Run) -> View:
    """What a run is."""
    record = _run_record(run) | {
        "source": run.source,
        "classes": run.classes,
        "counts": run.counts,
        "model": vars(run.model),
        "config": vars(run.config),
        "metrics": run.metrics,
        "versions": run.versions,
    }
    config, model = run.config, run.model
    colour = "grey" if model.channels == 1 else "colour"
    counts = ", ".join(f"{count:,} {split}" for split, count in run.counts.items())
    rows = {
        "run": printable(str(run.path)),
        "state": _state(run),
        "data": f"{printable(config.data)} ({counts})"
        + ("" if run.source == config.data else f", from {printable(run.source)}"),
        "classes": f"{len(run.classes)}: {printable(', '.join(run.classes[:10]))}"
        + (", ..." if len(run.classes) > 10 else ""),
        "model": f"{printable(_backbone(config))}, {_count(model.bits, 'bit')}, "
        f"{colour} {model.image_size} x {model.image_size}",
        "loss": f"DSH, margin {config.margin:g}, alpha {config.alpha:g}",
        "recipe": f"{config.optimizer} {config.schedule}, lr {config.lr:g}, weight decay {config.weight_decay:g}, "
        f"batch {config.batch_size}, {_count(config.epochs, 'epoch')}, augment {config.augment}, seed {config.seed}"
        + (f", clip {config.clip:g}" if config.clip is not None else "")
        + (", bfloat16" if config.amp else "")
        + (", compiled" if config.compile else ""),
    }
    if run.finished:
        smallest, bound = run.metrics.get("min_class_distance"), run.metrics.get("class_distance_bound")
        rows["training"] = f"{run.metrics['seconds']:.1f} s on {run.metrics['device']}"
        rows["mAP"] = f"{run.metrics['map']:.4f}, tie-aware, test against train"
        rows["distance"] = f"{smallest} between the closest classes; at most {bound} possible"
    rows["versions"] = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    rows["disk"] = _bytes(run.size)
    return View(lambda width: _pairs(rows), _plain_record(_flat(record)), record)


def run_list(runs: Sequence[Run]) -> View:
    """The runs there are."""
    records = [_run_record(run) for run in runs]

    def table(width: int) -> RenderableType:
        shown = _table()
        for heading in ("run", "data", "bits", "mAP", "distance", "state", "disk"):
            shown.add_column(heading, justify="right" if heading in ("bits", "mAP", "distance", "disk") else "left")
        for run in runs:
            metrics = run.metrics
            distance = f"{metrics['min_class_distance']}/{metrics['class_distance_bound']}" if run.finished else "-"
            shown.add_row(
                Text(printable(str(run.path)), overflow="fold"),
                Text(printable(os.path.basename(run.config.data))),
                str(run.config.bits),
                f"{metrics['map']:.4f}" if run.finished else "-",
                distance,
                _state(run),
                _bytes(run.size),
            )
        total = _bytes(sum(record["bytes"] for record in records))
        return Group(shown, Text(f"{_count(len(runs), 'run')}, {total}", style="dim"))

    plain = [
        f"{_field(record['run'])}\t{_field(record['dataset'])}\t{record['bits']}\t{_field(_or_dash(record['map']))}\t"
        f"{'finished' if record['finished'] else 'unfinished'}\t{record['bytes']}"
        for record in records
    ]
    return View(table, plain, {"runs": records})


def _class_codes_table(table: ClassTable, run: Run, width: int) -> RenderableType:
    digits = -(-table.bits // 4)
    longest = max(len(row.label) for row in table.classes)
    show_binary = longest + digits + table.bits + 50 <= max(width, 80)
    shown = _table()
    shown.add_column("class", overflow="fold")
    shown.add_column("code", style="bold", overflow="fold")
    if show_binary:
        shown.add_column("binary", no_wrap=True)
    shown.add_column("images", justify="right")
    shown.add_column("exact", justify="right")
    shown.add_column("variants (images, distance)", overflow="fold")
    for row in table.classes:
        binary = [row.binary or "-"] if show_binary else []
        code = f"0x{row.code}" if row.code else "-"
        exact = f"{row.exact:.1%}" if row.count else "-"
        shown.add_row(
            Text(printable(row.label)),
            code,
            *binary,
            f"{row.count:,}",
            exact,
            _variants(row.variants, 3 if width >= _WIDE else 2),
        )
    balance = table.bit_balance
    lines = [
        Text(f"{printable(str(run.path))}: {printable(table.split)} split, {_count(table.bits, 'bit')}", style="bold"),
        shown,
        Text(),
        _distance_matrix(table, width),
        Text(),
        Text.assemble("classes: ", (smallest_distance(table), _style(table.min_class_distance, table))),
        Text(f"bits: 1 in {min(balance):.0%} to {max(balance):.0%} of pictures (50% uses a bit best)"),
    ]
    return Group(*lines)


def _variants(variants: Sequence[Any], most: int) -> Text:
    shown = ", ".join(f"0x{v.code} ({v.count:,}, {v.distance})" for v in variants[:most])
    more = len(variants) - most
    return Text(f"{shown}, {more} more" if more > 0 else shown)


def _distance_matrix(table: ClassTable, width: int) -> RenderableType:
    labels = [printable(row.label) for row in table.classes]
    name = min(16, max(map(len, labels)))
    if name + 2 + _CELL * len(labels) > width:
        return _closest_classes(table, labels)
    numbered = any(len(label) >= _CELL for label in labels)
    head = [str(i) for i in range(len(labels))] if numbered else labels
    grid = Table(box=None, padding=(0, 0), show_edge=False, header_style="bold")
    grid.add_column("distance", no_wrap=True, style="bold", min_width=max(name + (4 if numbered else 0), 8))
    for column in head:
        grid.add_column(Text(column), justify="right", min_width=_CELL, no_wrap=True)
    for i, row in enumerate(table.class_distances):
        title = f"{i:>2}  {labels[i][:name]}" if numbered else labels[i]
        cells = [
            Text("·" if i == j else _or_dash(d), style=_style(None if i == j else d, table)) for j, d in enumerate(row)
        ]
        grid.add_row(Text(title), *cells)
    return grid


def _closest_classes(table: ClassTable, labels: Sequence[str]) -> RenderableType:
    pairs = sorted(
        (distance, i, j)
        for i, row in enumerate(table.class_distances)
        for j, distance in enumerate(row)
        if i < j and distance is not None
    )
    grid = _table()
    grid.add_column("distance", justify="right")
    grid.add_column("closest classes")
    for distance, i, j in pairs[:_CLOSEST_SHOWN]:
        grid.add_row(Text(str(distance), style=_style(distance, table)), Text(f"{labels[i]} - {labels[j]}"))
    note = Text(f"{len(grid.rows)} of {len(pairs):,} pairs; --json has the whole matrix", style="dim")
    return Group(grid, note)


def _style(distance: int | None, table: ClassTable) -> str:
    """Colour of a distance between classes, by what is possible."""
    if distance is None or table.bound is None:
        return "dim"
    if distance == 0:
        return _CLASH
    if distance >= table.bound.distance:
        return _BEST
    return _GOOD if 2 * distance > table.bound.distance else _NEAR


def _run_record(run: Run) -> dict[str, Any]:
    metrics = run.metrics
    return {
        "run": str(run.path),
        "finished": run.finished,
        "created": run.created,
        "dataset": run.config.data,
        "bits": run.config.bits,
        "backbone": run.config.backbone,
        "epochs": run.config.epochs,
        "epochs_done": metrics.get("epochs", metrics.get("epochs_done", 0)),
        "map": metrics.get("map"),
        "min_class_distance": metrics.get("min_class_distance"),
        "class_distance_bound": metrics.get("class_distance_bound"),
        "bytes": run.size,
    }


def _state(run: Run) -> str:
    if run.finished:
        return "finished"
    return f"unfinished, {run.metrics.get('epochs_done', 0)} of {_count(run.config.epochs, 'epoch')}"


def _backbone(config: Recipe) -> str:
    """The name of the network, and what it started from."""
    start = " pretrained" if config.pretrained else f" from {config.weights}" if config.weights is not None else ""
    return config.backbone + start + (" and frozen" if config.freeze else "")


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")


def _pairs(rows: Mapping[str, str]) -> Table:
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(name, Text(value))
    return grid


def _plain_record(record: Mapping[str, Any]) -> list[str]:
    return [f"{name}\t{_field(_or_dash(value))}" for name, value in record.items()]


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ",".join(value) if isinstance(value, (list, tuple)) else value
    return flat


def _field(text: str) -> str:
    """A field of a line: nothing in it breaks the line or the tabs."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
