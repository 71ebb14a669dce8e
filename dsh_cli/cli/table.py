"""`dsh table`."""

from __future__ import annotations

from typing import Annotated, Literal

from dsh_cli.cli.shared import Format, Json, Model, Quiet, app, find_run, form_of, notice, option, show


@app.command(epilog="Example: [bold]dsh table[/], or [bold]dsh table --model runs/mine --json[/]")
def table(
    model: Model = None,
    split: Annotated[
        Literal["train", "validation", "test", "unseen"] | None,
        option(
            "Which pictures of the run to tabulate: train, validation, test or unseen.",
            "test, or train where there are none",
            metavar="SPLIT",
        ),
    ] = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the code of each class, its variants, and how far apart the classes are.

    JSON has the distances between all classes up to 1,000 of them, and above that null.
    """
    from dsh_cli.analysis.classes import class_table
    from dsh_cli.show.views.table import class_codes

    form = form_of(form, as_json)
    run = find_run(model, quiet)
    shown = split or run.shown_split
    if not run.classes and form == "plain":
        notice(f"no classes: {run.path} was made of pictures without labels", quiet)
    show(class_codes(class_table(run.codes(shown), shown), run), form)
