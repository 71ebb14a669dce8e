"""`dsh table` and `dsh info`: what a run holds."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dsh_cli.cli.shared import Format, Json, Model, Quiet, app, complain, default_note, find_run, form_of, show
from dsh_cli.errors import DshError


@app.command(epilog="Example: [bold]dsh table[/], or [bold]dsh table --model runs/mine --json[/]")
def table(
    model: Model = None,
    split: Annotated[
        Literal["train", "validation", "test", "unseen"], typer.Option(help="Which pictures of the run to tabulate.")
    ] = "test",
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the code of each class, its variants, and how far apart the classes are."""
    from dsh_cli import views
    from dsh_cli.analysis.classes import class_table

    form = form_of(form, as_json)
    run = find_run(model, quiet)
    show(views.class_codes(class_table(run.codes(split), split), run), form)


@app.command(epilog="Example: [bold]dsh info[/] lists the runs, [bold]dsh info runs/mine[/] shows one")
def info(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run folder." + default_note("list all"), show_default=False)
    ] = None,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Show what a run is, or list the runs under runs/."""
    from dsh_cli import views
    from dsh_cli.runs.folders import damaged_runs, list_runs
    from dsh_cli.runs.run import Run

    form = form_of(form, as_json)
    if run is not None:
        show(views.run_info(Run.open(run)), form)
        return
    runs = list_runs()
    for problem in damaged_runs():
        complain(problem, "warning")
    if not runs and form != "json":
        raise DshError("no runs under runs/; train one with: dsh train --bits 8")
    show(views.run_list(runs), form)
