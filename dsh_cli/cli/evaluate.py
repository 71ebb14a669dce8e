"""`dsh evaluate`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dsh_cli.cli.shared import (
    Format,
    Json,
    Quiet,
    Rescored,
    Rescoring,
    Where,
    Workers,
    app,
    complain,
    find_run,
    form_of,
    notice,
    option,
    show,
    status,
    tell,
)
from dsh_cli.config import Among, Device, ProtocolName

if TYPE_CHECKING:
    from dsh_cli.analysis.protocols import Comparison
    from dsh_cli.analysis.retrieval import Evaluation
    from dsh_cli.runs.run import Run
    from dsh_cli.show.views.shared import View


@app.command(
    cls=Rescoring,
    epilog="Example: [bold]dsh evaluate[/], [bold]dsh evaluate -m runs/a -m runs/b --pr-curve out.png[/], or "
    "[bold]dsh evaluate --query new/ --database photos/[/]",
)
def evaluate(
    models: Annotated[
        list[str] | None,
        option(
            "Run folder; give several for their mean and deviation.",
            "$DSH_MODEL, else newest finished under runs/",
            "--model",
            "-m",
            metavar="RUN",
        ),
    ] = None,
    protocol: Annotated[
        ProtocolName | None,
        option(
            "Which pictures are looked up in which; see dsh train --protocol.",
            "that of the run",
            "--protocol",
            metavar="PROTOCOL",
        ),
    ] = None,
    among: Annotated[
        Among | None,
        option("Of which classes queries and database are, where dsh train has held some out.", "all", "--classes"),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Pictures to look up, a folder per class, or a file of vectors with labels, in place of a protocol.",
        ),
    ] = None,
    database: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Pictures to look them up in, likewise.")
    ] = None,
    at: Annotated[
        list[int] | None, option("mAP within the first K; give several.", 1000, "--at", metavar="K", min=1)
    ] = None,
    rescore: Rescored = None,
    pool: Annotated[
        int | None,
        option(
            "With --rescore, order so many of the nearest anew for each query, and all as near as the last of them.",
            1000,
            metavar="PICTURES",
            min=1,
        ),
    ] = None,
    pr_curve: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Draw precision and recall by radius, a curve for each run (.png, .svg, .pdf)."
        ),
    ] = None,
    device: Where = "auto",
    workers: Workers = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure retrieval under a named protocol, with ties treated honestly."""
    form = form_of(form, as_json)

    from dsh_cli.analysis.protocols import Comparison

    comparison = Comparison(protocol, among, query, database, tuple(at or ()), rescore, pool)
    _require_possible(comparison, pr_curve)
    evaluations, all_read = _measure_all(_different_runs(models, quiet), comparison, device, workers, quiet)
    view = _view(evaluations)
    _draw_curves(evaluations, pr_curve, quiet)
    _say([*evaluations.values()][-1], comparison.at, quiet)
    show(view, form)
    if not all_read:
        raise typer.Exit(1)


def _require_possible(comparison: Comparison, pr_curve: str | None) -> None:
    """Refuse what contradicts itself, or has no place, before any run is opened."""
    comparison.check()
    if pr_curve is not None:
        from dsh_cli.show import figures

        figures.require_writable(pr_curve, "choose another `pr_curve` FILE")


def _different_runs(models: list[str] | None, quiet: bool) -> list[Run]:
    """The runs asked for, else that of the environment, else the newest; none twice."""
    from dsh_cli.analysis.protocols import require_different

    # which, as the default of an option, would be split at blanks
    given: list[str | None] = [*models] if models else [os.environ.get("DSH_MODEL")]
    runs = [find_run(model or None, quiet) for model in given]
    require_different(runs)
    return runs


def _measure_all(
    runs: Sequence[Run], comparison: Comparison, device: Device, workers: int | None, quiet: bool
) -> tuple[dict[str, Evaluation], bool]:
    """The measures by the paths of the runs, and whether all pictures could be read; says what else is to be known."""
    from dsh_cli.analysis.protocols import measure

    evaluations: dict[str, Evaluation] = {}
    all_read = True
    folders = comparison.query is not None
    for run in runs:
        with status(quiet, "hashing pictures" if folders else f"measuring {run.path}") as progress:
            measured = measure(run, comparison, device, workers, progress)
        evaluations[str(run.path)] = measured.evaluation
        all_read = all_read and not measured.skipped
        for picture in measured.skipped:
            complain(f"{picture.path}: {picture.error}")
        tell(measured.left_out)
        if not folders and comparison.among in (None, "all") and (held_out := len(run.held_out())):
            notice(f"{held_out} of {len(run.classes)} classes were held out of the training; see --classes", quiet)
    return evaluations, all_read


def _view(evaluations: Mapping[str, Evaluation]) -> View:
    from dsh_cli.analysis.retrieval import spread
    from dsh_cli.show.views.evaluate import evaluated, evaluated_runs

    if len(evaluations) > 1:
        return evaluated_runs(evaluations, spread([*evaluations.values()]))
    ((name, evaluation),) = evaluations.items()
    return evaluated(evaluation, name)


def _draw_curves(evaluations: Mapping[str, Evaluation], pr_curve: str | None, quiet: bool) -> None:
    if pr_curve is not None:
        from dsh_cli.show import figures

        for note in figures.save(figures.precision_recall(evaluations), pr_curve):
            notice(note, quiet)


def _say(evaluation: Evaluation, asked: Sequence[int], quiet: bool) -> None:
    """What a reader of the figures should know of them."""
    from dsh_cli.analysis.protocols import FOLDERS
    from dsh_cli.show.views.shared import listed

    where = f"protocol {evaluation.protocol}: {evaluation.queries:,} queries, {evaluation.database:,} database"
    notice(where + (", self-matches excluded" if evaluation.itself else ""), quiet)
    if evaluation.protocol == FOLDERS:
        notice("whether the run has trained on copies of these pictures is not known", quiet)
    if evaluation.unmatched:
        text = "no other picture" if evaluation.itself else "no picture in the database"
        complain(f"{text} is of class {listed(evaluation.unmatched, 5)}; queries of it score 0, and count", "warning")
    if sum(score.map is not None for score in evaluation.per_class) == 1:
        complain("all queries are of one class; if the database is too, every answer is right", "warning")
    if large := [k for k in asked if k > evaluation.database - evaluation.itself]:
        notice(f"mAP@{large[0]} takes all {evaluation.database - evaluation.itself:,} pictures there are", quiet)
