"""`dsh export`."""

from __future__ import annotations

from typing import Annotated

import typer

from dsh_cli.cli.shared import Format, Json, Model, Quiet, app, find_run, form_of, show, steps


@app.command(
    epilog="Example: [bold]dsh export --onnx model.onnx[/], then [bold]dsh hash image.png --model model.onnx[/]"
)
def export(
    onnx: Annotated[
        str,
        typer.Option("--onnx", metavar="FILE", help="File to write, such as model.onnx; one of that name is replaced."),
    ],
    model: Model = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a run into one ONNX file, by which codes are made without PyTorch, here or in other programs."""
    form = form_of(form, as_json)
    run = find_run(model, quiet)

    from dsh_cli.export import export as write
    from dsh_cli.show.views.export import exported

    with steps(quiet, "exporting") as tell:
        made = write(run, onnx, tell)
    show(exported(made), form)
