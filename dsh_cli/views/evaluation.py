"""Retrieval of one run, or of several beside each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dsh_cli.retrieval import RADII
from dsh_cli.views.shared import View, field, flattened, lines_table, or_dash, pairs_table, plain_record, printable

if TYPE_CHECKING:
    from dsh_cli.evaluation import Evaluation

_CLASSES_SHOWN = 20


def evaluated(results: Sequence[Evaluation]) -> View:
    """What `dsh evaluate` found: all of one run, or the figures of several with mean and standard deviation."""
    records = [_record(result) for result in results]
    if len(results) == 1:
        plain = plain_record(flattened(_without_lists(records[0])))
        return View(lambda width: _one(results[0]), plain, records[0])
    means, deviations = (_over(records, of) for of in (mean, stdev))
    runs = [{"run": str(result.run.path), **record} for result, record in zip(results, records, strict=True)]
    record = {
        "protocol": results[0].protocol,
        "bits": results[0].retrieval.bits,
        "runs": runs,
        "mean": means,
        "std": deviations,
    }
    plain = [
        "\t".join([name, *(f"{value:.6f}" for value in values)])
        for name, values in (
            *((field(run["run"]), _figures(run).values()) for run in runs),
            ("mean", means.values()),
            ("std", deviations.values()),
        )
    ]
    return View(lambda width: _several(results, records, means, deviations), plain, record)


def _record(result: Evaluation) -> dict[str, Any]:
    found = result.retrieval
    return {
        "protocol": result.protocol,
        "bits": found.bits,
        "queries": found.queries,
        "database": found.database,
        "map": found.map,
        "map_best": found.map_best,
        "map_worst": found.map_worst,
        "map_at": {str(k): value for k, value in found.map_at.items()},
        "precision_at": {str(k): value for k, value in found.precision_at.items()},
        "radius": {
            str(look.radius): {"precision": look.precision, "recall": look.recall, "empty": look.empty}
            for look in found.lookups
            if look.radius in RADII
        },
        "pr_curve": [
            {"radius": look.radius, "precision": look.precision, "recall": look.recall} for look in found.lookups
        ],
        "per_class": [{"label": score.label, "map": score.map} for score in found.per_class],
        "health": {
            "distinct_codes": result.health.distinct,
            "largest_share": result.health.largest_share,
            "largest_correlation": result.health.largest_correlation,
            "bit_balance": result.health.bit_balance,
        },
        "seconds": round(found.seconds, 3),
    }


def _without_lists(record: dict[str, Any]) -> dict[str, Any]:
    health = {**record["health"], "bit_balance": [f"{share:.4f}" for share in record["health"]["bit_balance"]]}
    per_class = {score["label"]: or_dash(score["map"]) for score in record["per_class"]}
    return {**record, "pr_curve": None, "health": health, "per_class": per_class}


def _figures(record: dict[str, Any]) -> dict[str, float]:
    """The figures that several runs are compared by."""
    return {
        "map": record["map"],
        "map_worst": record["map_worst"],
        "map_best": record["map_best"],
        **{f"map_at.{k}": value for k, value in record["map_at"].items()},
        **{f"precision_at.{k}": value for k, value in record["precision_at"].items()},
        **{f"radius.{r}.precision": look["precision"] for r, look in record["radius"].items()},
        **{f"radius.{r}.recall": look["recall"] for r, look in record["radius"].items()},
    }


def _over(records: Sequence[dict[str, Any]], of: Callable[[list[float]], float]) -> dict[str, float]:
    columns = [_figures(record) for record in records]
    return {name: of([column[name] for column in columns]) for name in columns[0]}


def _one(result: Evaluation) -> RenderableType:
    found, health = result.retrieval, result.health
    others = "the others, none against itself" if found.self_excluded else f"{found.database:,} pictures"
    balance = health.bit_balance
    rows = {
        "protocol": f"{printable(result.protocol)}: {found.queries:,} queries against {others}",
        "mAP": f"{found.map:.4f}, ties in expectation; {found.map_worst:.4f} to {found.map_best:.4f} by their order",
        **{f"mAP@{k:,}": f"{value:.4f}" for k, value in found.map_at.items()},
        "precision": ", ".join(f"{value:.4f} at {k}" for k, value in found.precision_at.items()),
        "codes": f"{health.distinct:,} distinct; the most common has {health.largest_share:.1%} of the pictures",
        "bits": f"1 in {min(balance):.0%} to {max(balance):.0%} of pictures (50% uses a bit best); "
        f"largest correlation {health.largest_correlation:.2f}",
    }
    radius = lines_table()
    for heading in ("radius", "precision", "recall", "empty balls"):
        radius.add_column(heading, justify="right")
    for look in found.lookups:
        if look.radius in RADII:
            radius.add_row(str(look.radius), f"{look.precision:.4f}", f"{look.recall:.4f}", f"{look.empty:,}")
    return Group(
        Text(f"{printable(str(result.run.path))}: {found.bits} bits", style="bold"),
        pairs_table(rows),
        radius,
        _classes(result),
        Text(f"{found.seconds:.2f} s; queries with nothing in their ball count as 0", style="dim"),
    )


def _classes(result: Evaluation) -> Table:
    """MAP by class, the worst first where they are many."""
    scores = list(result.retrieval.per_class)
    shown = scores
    if len(scores) > _CLASSES_SHOWN:
        shown = sorted(scores, key=lambda score: 2.0 if score.map is None else score.map)[:_CLASSES_SHOWN]
    table = lines_table()
    table.add_column("class" if shown is scores else f"class ({len(shown)} worst of {len(scores):,})", overflow="fold")
    table.add_column("queries", justify="right")
    table.add_column("mAP", justify="right")
    for score in shown:
        value = "-" if score.map is None else f"{score.map:.4f}"
        table.add_row(Text(printable(score.label)), f"{score.queries:,}", value)
    return table


def _several(
    results: Sequence[Evaluation],
    records: Sequence[dict[str, Any]],
    means: dict[str, float],
    deviations: dict[str, float],
) -> RenderableType:
    first = results[0].retrieval
    table = lines_table()
    table.add_column("run", overflow="fold")
    names = {"map": "mAP", "map_worst": "worst", "map_best": "best"}
    for k in first.map_at:
        names[f"map_at.{k}"] = f"mAP@{k}"
    names["precision_at.100"] = "P@100"
    for heading in names.values():
        table.add_column(heading, justify="right")
    for result, record in zip(results, records, strict=True):
        figures = _figures(record)
        table.add_row(Text(printable(str(result.run.path))), *(f"{figures[name]:.4f}" for name in names))
    table.add_section()
    table.add_row("mean", *(f"{means[name]:.4f}" for name in names), style="bold")
    table.add_row("standard deviation", *(f"{deviations[name]:.4f}" for name in names))
    head = (
        f"{printable(results[0].protocol)}: {first.queries:,} queries, {first.database:,} searched, {first.bits} bits"
    )
    return Group(Text(head, style="bold"), table)
