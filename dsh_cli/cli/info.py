"""`dsh info`."""

from __future__ import annotations

from typing import Annotated

import typer

from dsh_cli.cli.shared import Format, Json, app, complain, default_note, form_of, show
from dsh_cli.errors import DshError, UsageError


@app.command(epilog="Example: [bold]dsh info[/] lists the runs, [bold]dsh info runs/mine[/] shows one")
def info(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run folder." + default_note("list all"), show_default=False)
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read every file of RUN, and say which are damaged. TensorBoard events are left out."
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="With --verify: record digests in a run from before there were any, if all of it is whole, and take "
            "away states that a killed training left.",
        ),
    ] = False,
    form: Format = None,
    as_json: Json = False,
) -> None:
    """Show what a run is, or list the runs under runs/."""
    from dsh_cli.runs.folders import list_runs
    from dsh_cli.runs.run import Run
    from dsh_cli.show.views.info import run_info, run_list

    form = form_of(form, as_json)
    if (verify and run is None) or (repair and not verify):
        raise UsageError("`verify` takes a run folder, and `repair` goes with `verify`: dsh info RUN --verify --repair")
    if run is not None and verify:
        from dsh_cli.runs.check import check

        checked = check(run, repair)
        for problem in checked.damaged.values():
            complain(problem)
        show(run_info(checked.run, checked), form)
        if checked.damaged:
            raise typer.Exit(1)
        return
    if run is not None:
        show(run_info(Run.open(run)), form)
        return
    runs, problems = list_runs()
    for problem in problems:
        complain(problem, "warning")
    if not runs and form != "json":
        raise DshError("no runs under runs/; train one with: dsh train --bits 8")
    show(run_list(runs), form)
