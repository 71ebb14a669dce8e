"""`dsh evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from dsh_cli.cli.shared import Format, Json, Quiet, app, find_run, form_of, notice, option, show, status
from dsh_cli.config import Protocol
from dsh_cli.errors import UsageError


@app.command(
    epilog="Example: [bold]dsh evaluate[/], or "
    "[bold]dsh evaluate -m runs/one -m runs/two --protocol paper --pr-curve curves.png[/]"
)
def evaluate(
    model: Annotated[
        list[str] | None,
        option(
            "Run folder; several give mean and standard deviation.",
            "newest finished under runs/",
            "--model",
            "-m",
            metavar="RUN",
            envvar="DSH_MODEL",
        ),
    ] = None,
    protocol: Annotated[
        Protocol | None,
        option(
            "test-vs-train; paper: test pictures among themselves; cifar10: 1,000 queries, 5,000 to train on, the "
            "others searched; cifar10-1: those trained on searched too; cifar10-2: test against all others.",
            "what the run was trained for",
        ),
    ] = None,
    query: Annotated[
        str | None, typer.Option(metavar="DIR", help="Labelled folder or CSV of queries, in place of a protocol.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(metavar="DIR", help="Labelled folder or CSV that --query is searched in.")
    ] = None,
    at: Annotated[list[int] | None, option("K of mAP@K; may be given more than once.", 1000, metavar="K")] = None,
    pr_curve: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw precision against recall: .png, .svg or .pdf.")
    ] = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure retrieval: mAP with ties treated honestly, precision, lookup by radius, the health of the codes."""
    form = form_of(form, as_json)
    if (query is None) != (database is None):
        raise UsageError("--query and --database go together: pictures of the one are searched in the other")
    if query is not None and protocol is not None:
        raise UsageError("--protocol says which pictures are queries, and so do --query and --database; give one")
    runs = [find_run(path, quiet) for path in model] if model else [find_run(None, quiet)]

    from dsh_cli import evaluation, plots, views
    from dsh_cli.retrieval import AT

    ranks = tuple(dict.fromkeys(at or AT))
    if query is not None and database is not None:
        notice("whether the run has trained on these pictures is not known", quiet)
        results = []
        for run in runs:
            with status(quiet, "encoding pictures"):
                results.append(evaluation.evaluate_paths(run, query, database, ranks))
    else:
        evaluation.require_comparable(runs, protocol)
        results = [evaluation.evaluate(run, protocol, ranks) for run in runs]
    if pr_curve is not None:
        plots.pr_curves({str(result.run.path): result.retrieval for result in results}, pr_curve)
        notice(f"drew {pr_curve}", quiet)
    show(views.evaluated(results), form)
