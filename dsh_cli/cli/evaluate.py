"""`dsh evaluate`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from dsh_cli.cli.shared import (
    Format,
    Json,
    Quiet,
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
)
from dsh_cli.config import Classes, Device, ProtocolName
from dsh_cli.errors import UsageError

if TYPE_CHECKING:
    from dsh_cli.analysis.retrieval import Evaluation
    from dsh_cli.runs.run import Run


@app.command(
    epilog="Example: [bold]dsh evaluate[/], [bold]dsh evaluate -m runs/a -m runs/b --pr-curve out.png[/], or "
    "[bold]dsh evaluate --query new/ --database photos/[/]"
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
        option("Which pictures are looked up in which; see dsh train --protocol.", "that of the run", "--protocol"),
    ] = None,
    classes: Annotated[
        Classes | None,
        option("Of which classes queries and database are, where dsh train has held some out.", "all", "--classes"),
    ] = None,
    query: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Pictures to look up, a folder per class, in place of a protocol."),
    ] = None,
    database: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Pictures to look them up in, a folder per class.")
    ] = None,
    at: Annotated[
        list[int] | None, option("mAP within the first K; give several.", 1000, "--at", metavar="K", min=1)
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
    if (query is None) != (database is None):
        raise UsageError("--query and --database go together; for one folder against itself give it for both")
    if query is not None and protocol is not None:
        raise UsageError("--query and --protocol contradict each other; give one of them")
    if query is not None and classes is not None:
        raise UsageError("--query and --classes contradict each other; give one of them")

    from dsh_cli.analysis import retrieval
    from dsh_cli.show import figures
    from dsh_cli.show.views.evaluate import evaluated, evaluated_runs

    if pr_curve is not None:
        figures.require_writable(pr_curve, "choose another --pr-curve FILE")
    given: list[str | None] = (
        [*models] if models else [os.environ.get("DSH_MODEL")]
    )  # which, as an option's, would be split at blanks
    runs = [find_run(model or None, quiet) for model in given]
    _require_different(runs)
    ks = tuple(dict.fromkeys(at or retrieval.MAP_AT))
    evaluations: dict[str, Evaluation] = {}
    failed = False
    for run in runs:
        if query is None or database is None:
            evaluation = _of_run(run, protocol, ks, classes or "all", quiet)
        else:
            evaluation, unread = _of_folders(run, query, database, ks, device, workers, quiet)
            failed = failed or unread
        evaluations[str(run.path)] = evaluation
    view = (
        evaluated(evaluation, str(run.path))
        if len(evaluations) == 1
        else evaluated_runs(evaluations, retrieval.spread(list(evaluations.values())))
    )
    if pr_curve is not None:
        for note in figures.save(figures.precision_recall(evaluations), pr_curve):
            notice(note, quiet)
    _say(evaluation, at or [], quiet)
    show(view, form)
    if failed:
        raise typer.Exit(1)


def _require_different(runs: list[Run]) -> None:
    """Refuse a run given twice, whose deviation from itself would be 0."""
    seen: dict[str, Run] = {}
    for run in runs:
        if (first := seen.setdefault(os.path.realpath(run.path), run)) is not run:
            raise UsageError(f"--model {first.path} and --model {run.path} are one run; give each run once")


def _of_run(run: Run, protocol: str | None, at: tuple[int, ...], classes: Classes, quiet: bool) -> Evaluation:
    from dsh_cli.analysis.protocols import evaluate_run

    with status(quiet, f"measuring {run.path}"):
        evaluation = evaluate_run(run, protocol, at, classes)
    if classes == "all" and (held_out := len(run.held_out())):
        notice(f"{held_out} of {len(run.classes)} classes were held out of the training; see --classes", quiet)
    return evaluation


def _of_folders(
    run: Run, query: str, database: str, at: tuple[int, ...], device: Device, workers: int | None, quiet: bool
) -> tuple[Evaluation, bool]:
    """The measures, and whether pictures could not be read."""
    from dsh_cli.analysis.protocols import evaluate_folders

    with status(quiet, "hashing pictures") as progress:
        result = evaluate_folders(run, query, database, at, device, workers, progress)
    for picture in result.skipped:
        complain(f"{picture.path}: {picture.error}")
    return result.evaluation, bool(result.skipped)


def _say(evaluation: Evaluation, asked: list[int], quiet: bool) -> None:
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
