"""Retrieval, of one run or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from dsh_cli.show.views.shared import View, lines_table, or_dash, pairs_table, plain_record
from dsh_cli.words import counted, natural

if TYPE_CHECKING:
    from dsh_cli.analysis.retrieval import Evaluation, Rescoring, Spread

_CLASSES_SHOWN = 10


def evaluated(evaluation: Evaluation, name: str) -> View:
    """What one run is worth for retrieval. `name` is that of the run."""
    record = _record(evaluation)
    return View(lambda width: _evaluated_table(evaluation, name), plain_record(_flat(record)), record)


def evaluated_runs(evaluations: Mapping[str, Evaluation], spread: Mapping[str, Spread]) -> View:
    """Several runs: mean and deviation of each figure, and the figures of each run."""
    first = next(iter(evaluations.values()))
    record: dict[str, Any] = {
        "protocol": first.protocol,
        "classes": first.among,
        "bits": first.bits,
        "queries": first.queries,
        "database": first.database,
        "mean": _nested({name: figure.mean for name, figure in spread.items()}),
        "std": _nested({name: figure.std for name, figure in spread.items()}),
        "runs": [{"run": name, **_record(evaluation)} for name, evaluation in evaluations.items()],
    }
    if first.rescoring is not None:
        record["rescore"] = {"by": first.rescoring.by, "pool": first.rescoring.pool}
    heads = [*list(record.items())[:5], *_flat({"rescore": record.get("rescore", {})}).items()]
    means = [(name, figure.mean, figure.std) for name, figure in spread.items()]
    runs = [
        (name, figure, value)
        for name, evaluation in evaluations.items()
        for figure, value in evaluation.figures().items()
    ]
    return View(lambda width: _runs_table(evaluations, spread), [*heads, *means, *runs], record)


def _record(evaluation: Evaluation) -> dict[str, Any]:
    health, rescoring = evaluation.health, evaluation.rescoring
    record: dict[str, Any] = {
        "protocol": evaluation.protocol,
        "classes": evaluation.among,
        "bits": evaluation.bits,
        "queries": evaluation.queries,
        "database": evaluation.database,
        "map": evaluation.map,
        "map_best": evaluation.map_best,
        "map_worst": evaluation.map_worst,
        "map_at": {str(k): value for k, value in evaluation.map_at.items()},
        "precision_at": {str(k): value for k, value in evaluation.precision_at.items()},
        "radius": {
            str(radius): {"precision": within.precision, "recall": within.recall, "empty": within.empty}
            for radius, within in evaluation.radius.items()
        },
        "pr_curve": [
            {"radius": within.radius, "precision": within.precision, "recall": within.recall}
            for within in evaluation.curve
        ],
        "per_class": [{"label": score.label, "map": score.map} for score in evaluation.per_class],
        "health": {
            "bit_balance": health.bit_balance,
            "bit_correlation": health.bit_correlation,
            "distinct": health.distinct,
            "largest_share": health.largest_share,
        },
        "seconds": round(evaluation.seconds, 3),
    }
    if rescoring is not None:
        record["rescore"] = {
            "by": rescoring.by,
            "pool": rescoring.pool,
            "pooled": rescoring.pooled,
            "hamming": {"map": rescoring.map, "map_best": rescoring.map_best, "map_worst": rescoring.map_worst},
        }
    return record


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names for all there is: points of the curve by radius, classes by label, bits by number."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        match name, value:
            case "pr_curve", _:
                for point in value:
                    at = f"pr_curve.{point['radius']}"
                    flat |= {f"{at}.precision": point["precision"], f"{at}.recall": point["recall"]}
            case "per_class", _:
                flat |= {f"per_class.{score['label']}": score["map"] for score in value}
            case "bit_balance", _:
                flat |= {f"{prefix}bit_balance.{bit}": share for bit, share in enumerate(value)}
            case _, Mapping():
                flat |= _flat(value, f"{prefix}{name}.")
            case _:
                flat[prefix + name] = value
    return flat


def _nested(figures: Mapping[str, float]) -> dict[str, Any]:
    """Undo dotted names."""
    nested: dict[str, Any] = {}
    for name, value in figures.items():
        *folders, last = name.split(".")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return nested


def _title(evaluation: Evaluation) -> list[Text]:
    of = "" if evaluation.among == "all" else f", {evaluation.among} classes only"
    heading = f"protocol {evaluation.protocol}, {counted(evaluation.bits, 'bit')}{of}: "
    if evaluation.itself:
        pictures = f"{evaluation.queries:,} pictures, each against the {evaluation.database - 1:,} others"
        return [Text(heading + pictures, style="bold"), Text("self-matches are excluded", style="dim")]
    pictures = f"{evaluation.queries:,} queries against {evaluation.database:,} pictures"
    return [Text(heading + pictures, style="bold")]


def _evaluated_table(evaluation: Evaluation, name: str) -> RenderableType:
    rows = {
        "mAP": _map(evaluation),
        **_rescored(evaluation),
        **{f"mAP@{k}": f"{value:.4f}" for k, value in evaluation.map_at.items()},
        "precision": ", ".join(f"{value:.4f} at {k}" for k, value in evaluation.precision_at.items()),
    }
    radii = lines_table()
    for heading in ("radius", "precision", "recall", "queries with nothing so near"):
        radii.add_column(heading, justify="right")
    for radius, within in evaluation.radius.items():
        share = within.empty / evaluation.queries
        empty = f"{within.empty:,} ({share:.1%}), precision 0" if within.empty else "0"
        radii.add_row(str(radius), f"{within.precision:.4f}", f"{within.recall:.4f}", empty)
    health = evaluation.health
    balance = health.bit_balance
    last = [
        f"codes: {health.distinct:,} distinct among {evaluation.database:,}; the most common is that of "
        f"{health.largest_share:.1%}",
        f"bits: 1 in {min(balance):.0%} to {max(balance):.0%} of pictures; "
        f"largest correlation of two {health.bit_correlation:.2f}",
    ]
    return Group(
        Styled(name, "bold"),
        *_title(evaluation),
        Text(),
        pairs_table(rows),
        radii,
        *_classes(evaluation),
        *map(Text, last),
    )


def _map(of: Evaluation | Rescoring) -> str:
    return f"{of.map:.4f}, tie-aware; {of.map_worst:.4f} to {of.map_best:.4f} by the order of ties"


def _rescored(evaluation: Evaluation) -> dict[str, str]:
    """Lines on how a ranking was rescored, and on what it was before; none where it was not."""
    rescoring = evaluation.rescoring
    if rescoring is None:
        return {}
    return {"rescored": f"{_how(rescoring)}, {rescoring.pooled:,.0f} in the mean", "before": _map(rescoring)}


def _how(rescoring: Rescoring) -> str:
    by = "outputs" if rescoring.by == "outputs" else "outputs of the queries against codes"
    return (
        f"by {by}: for each query the {rescoring.pool:,} nearest by Hamming distance, and all as near as the last of "
        "them"
    )


def _classes(evaluation: Evaluation) -> list[RenderableType]:
    """The classes found worst, with a word on how many more there are."""
    scored = [(score.map, score.label) for score in evaluation.per_class if score.map is not None]
    scored.sort(key=lambda of: (of[0], natural(of[1])))
    shown = lines_table()
    shown.add_column("class", overflow="fold")
    shown.add_column("mAP", justify="right")
    for value, label in scored[:_CLASSES_SHOWN]:
        shown.add_row(label, f"{value:.4f}")
    more = len(scored) > _CLASSES_SHOWN
    text = f"the {_CLASSES_SHOWN} lowest of {len(scored):,} classes; --json has all\n"
    return [shown, Text(text, style="dim")] if more else [shown]


def _runs_table(evaluations: Mapping[str, Evaluation], spread: Mapping[str, Spread]) -> RenderableType:
    figures = lines_table()
    figures.add_column(f"over {len(evaluations)} runs")
    figures.add_column("mean", justify="right")
    figures.add_column("std", justify="right")
    for name, figure in spread.items():
        digits = 1 if name.endswith("empty") else 4
        figures.add_row(_spoken(name), f"{figure.mean:,.{digits}f}", f"{figure.std:,.{digits}f}")
    note = Text("std: sample standard deviation, n - 1", style="dim")
    first = next(iter(evaluations.values()))
    how = [] if first.rescoring is None else [Text(f"rescored {_how(first.rescoring)}", style="dim")]
    return Group(*_title(first), *how, figures, note, _each_run(evaluations, list(first.map_at)[:1]))


def _each_run(evaluations: Mapping[str, Evaluation], at: Sequence[int]) -> Table:
    runs = lines_table()
    runs.add_column("run", overflow="fold")
    for heading in ("mAP", "worst", "best", *(f"mAP@{k}" for k in at), "P@1", "P@100"):
        runs.add_column(heading, justify="right")
    for name, of_run in evaluations.items():
        values = [of_run.map, of_run.map_worst, of_run.map_best, *(of_run.map_at[k] for k in at)]
        values += [of_run.precision_at[1], of_run.precision_at[100]]
        runs.add_row(name, *(f"{value:.4f}" for value in values))
    return runs


def _spoken(name: str) -> str:
    """A dotted name as people say it."""
    match name.split("."):
        case ["hamming", of_map]:
            return f"{_spoken(of_map)}, before"
        case ["map", *_]:
            return "mAP"
        case ["map_best" | "map_worst" as end]:
            return f"mAP, {end.removeprefix('map_')} order of ties"
        case ["map_at", k]:
            return f"mAP@{k}"
        case ["precision_at", k]:
            return f"precision at {k}"
        case ["radius", radius, "empty"]:
            return f"nothing within {radius}, queries"
        case [_, radius, what]:
            return f"{what} within {radius}"
    return or_dash(name)
