"""What a run is, and the runs there are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from dsh_cli.config import UNSEEN
from dsh_cli.show.views.shared import (
    View,
    flattened,
    lines_table,
    listed,
    or_dash,
    pairs_table,
    plain_record,
    printable,
    size_text,
)
from dsh_cli.words import counted

if TYPE_CHECKING:
    from dsh_cli.config import Recipe
    from dsh_cli.runs.check import Checked
    from dsh_cli.runs.run import Run

_METHODS = {
    "itq": "itq: principal components, turned to be near their signs",
    "pca": "pca: signs of principal components",
    "rotation": "rotation: principal components, turned at random",
}


def run_info(run: Run, checked: Checked | None = None) -> View:
    """What a run is, and what came of reading all of it."""
    whole = checked is None or not checked.damaged
    record = _run_record(run) | {
        "fingerprint": run.fingerprint if run.finished and whole else None,
        "source": run.source,
        "classes": run.classes,
        "counts": run.counts,
        "model": vars(run.model),
        "config": vars(run.config),
        "metrics": run.metrics,
        "versions": run.versions,
        "digests": run.digests is not None,
        "verified": None
        if checked is None
        else {"files": checked.files, "damaged": checked.damaged, "strays": checked.strays},
    }
    config, model = run.config, run.model
    colour = "grey" if model.channels == 1 else "colour"
    counts = ", ".join(f"{count:,} {split}" for split, count in run.counts.items())
    rows = {
        "run": printable(str(run.path)),
        "state": _state(run),
        "fingerprint": or_dash(record["fingerprint"]),
        "data": f"{printable(config.data)} ({counts})"
        + ("" if run.source == config.data else f", from {printable(run.source)}"),
        "classes": (f"{len(run.classes)}: {listed(run.classes)}" if run.classes else "none")
        + (f"; held out of the training: {_held_out(run, whole)}" if config.hold_out_classes else ""),
        "model": f"{printable(_backbone(config))}, {counted(model.bits, 'bit')}, "
        + (f"of {model.width:,} numbers" if model.of_vectors else f"{colour} {model.image_size} x {model.image_size}"),
        **({"loss": _loss(run), "recipe": _steps(config)} if config.method == "dsh" else {"method": _without(config)}),
    }
    if run.finished:
        smallest, bound = run.metrics.get("min_class_distance"), run.metrics.get("class_distance_bound")
        cost = tflop_text(run.metrics.get("tflop"))
        rows["training"] = f"{run.metrics['seconds']:.1f} s on {run.metrics['device']}{cost}"
        rows["mAP"] = map_of(run)
        if run.classes:
            rows["distance"] = f"{smallest} between the closest classes{of_all(run)}; at most {bound} possible"
    rows["versions"] = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    rows["disk"] = size_text(run.size)
    if run.digests is None:
        command = f"dsh info {printable(str(run.path))} --verify --repair"
        rows["digests"] = f"none, so damage may not be seen; record them with: {command}"
    if checked is not None:
        damaged = len(checked.damaged)
        rows["verified"] = counted(checked.files, "file") + (f", {damaged} damaged" if damaged else ", all whole")
        if checked.strays:
            command = f"dsh info {printable(str(run.path))} --verify --repair"
            rows["strays"] = f"{listed(checked.strays)}: left by a killed training; take away with: {command}"
    return View(lambda width: pairs_table(rows), plain_record(flattened(record)), record)


def by_method(run: Run) -> str:
    """How codes were learned, in few words."""
    return counted(run.config.epochs, "epoch") if run.config.method == "dsh" else run.config.method


def _steps(config: Recipe) -> str:
    """How it was trained."""
    return (
        f"{config.optimizer} {config.schedule}, lr {config.lr:g}, weight decay {config.weight_decay:g}, "
        + (f"hidden layer of {config.hidden:,}, " if config.hidden else "")
        + (f"dropout {config.dropout:g}, " if config.dropout else "")
        + f"batch {config.batch_size}, {counted(config.epochs, 'epoch')}, augment {config.augment}, seed {config.seed}"
        + (f", clip {config.clip:g}" if config.clip is not None else "")
        + (", bfloat16" if config.amp else "")
        + (", compiled" if config.compile else "")
    )


def _without(config: Recipe) -> str:
    """The method, of those that take no steps."""
    more = "" if config.method == "pca" else f", seed {config.seed}"
    return f"{_METHODS[config.method]}{more}"


def _held_out(run: Run, whole: bool) -> str:
    return listed(run.held_out()) if run.finished and whole else str(run.config.hold_out_classes)


def of_all(run: Run) -> str:
    """What is to be said of a figure of all classes where some were held out."""
    held_out = run.config.hold_out_classes
    return f" (of all {len(run.classes)} classes, {held_out} held out)" if held_out else ""


def _loss(run: Run) -> str:
    config = run.config
    of_pairs = f"DSH, margin {config.margin:g}, alpha {config.alpha:g}"
    if config.centers == "none":
        return f"{of_pairs}, no hash centers"
    if config.smoothing is None:  # of an earlier version, which had both
        return f"{of_pairs}, {'hash centers' if run.has_centers else 'no hash centers'}"
    return f"choice of a hash center, smoothing {config.smoothing:g}"


def tflop_text(tflop: float | None) -> str:
    """What is to be said of what a training cost, after its seconds; nothing where it was not counted."""
    if tflop is None:
        return ""
    return f", {tflop:,.0f} TFLOP" if tflop >= 100 else f", {tflop:.3g} TFLOP"


def map_of(run: Run) -> str:
    """The mAP of a finished run, and what it is of."""
    value = run.metrics["map"]
    if value is None and not run.classes:
        return "none without classes"
    return (
        "not measured, for the pictures could not be read any more"
        if value is None
        else f"{value:.4f}, tie-aware, {_compared(run)}"
    )


def _compared(run: Run) -> str:
    """The protocol in words, with its counts."""
    from dsh_cli.analysis.protocols import sizes

    queries, database = sizes(run.config.protocol, run.counts)
    unseen = run.counts.get(UNSEEN, 0)
    match run.config.protocol:
        case "test-vs-train":
            more = f" and {unseen:,} of classes held out" if unseen else ""
            return f"{queries:,} test queries against {database - unseen:,} training pictures{more}"
        case "paper":
            return f"protocol paper: {queries:,} test pictures against each other"
        case name:
            return f"protocol {name}: {queries:,} queries against {database:,}"


def run_list(runs: Sequence[Run]) -> View:
    """The runs there are."""
    records = [_run_record(run) for run in runs]

    def table(width: int) -> RenderableType:
        shown = lines_table()
        for heading in ("run", "data", "bits", "mAP", "distance", "state", "disk"):
            right = heading in ("bits", "mAP", "distance", "disk")
            shown.add_column(heading, justify="right" if right else "left", overflow="fold")
        for run, record in zip(runs, records, strict=True):
            metrics = run.metrics
            distance = f"{metrics['min_class_distance']}/{metrics['class_distance_bound']}" if run.finished else "-"
            shown.add_row(
                str(run.path),
                os.path.basename(run.config.data),
                str(run.config.bits),
                "-" if metrics.get("map") is None else f"{metrics['map']:.4f}",
                distance,
                _state(run),
                size_text(record["bytes"]),
            )
        total = size_text(sum(record["bytes"] for record in records))
        return Group(shown, Text(f"{counted(len(runs), 'run')}, {total}", style="dim"))

    plain = [
        (
            *(r[name] for name in ("run", "dataset", "bits", "map")),
            "finished" if r["finished"] else "unfinished",
            r["bytes"],
        )
        for r in records
    ]
    return View(table, plain, {"runs": records})


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
        "tflop": metrics.get("tflop"),
        "map": metrics.get("map"),
        "min_class_distance": metrics.get("min_class_distance"),
        "class_distance_bound": metrics.get("class_distance_bound"),
        "bytes": run.size,
    }


def _state(run: Run) -> str:
    if run.finished:
        return "finished"
    return f"unfinished, {run.metrics.get('epochs_done', 0)} of {counted(run.config.epochs, 'epoch')}"


def _backbone(config: Recipe) -> str:
    """The name of the network, and what it started from."""
    start = " pretrained" if config.pretrained else f" from {config.weights}" if config.weights is not None else ""
    return config.backbone + start + (" and frozen" if config.freeze else "")
