"""`dsh features`."""

from __future__ import annotations

from typing import Annotated

import typer

from dsh_cli.cli.shared import (
    Format,
    Json,
    Null,
    Quiet,
    Where,
    Workers,
    app,
    arguments,
    complain,
    form_of,
    option,
    show,
    status,
    tell,
)
from dsh_cli.config import Fit, Interpolation


@app.command(
    epilog="Example: [bold]dsh features photos/ --backbone timm:tf_efficientnet_lite0 --out photos.parquet[/], then "
    "[bold]dsh train photos.parquet --bits 32[/]"
)
def features(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Picture files, folders of them, or - for a list on standard input. A folder with a folder per class "
            "gives labels.",
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="File to write, .parquet.")],
    backbone: Annotated[
        str | None,
        option(
            "A model of torchvision such as resnet18, or timm:NAME.", "that of the run in --weights", metavar="NAME"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        option(
            "Weights for that: a safetensors file or a state dict of PyTorch; or a run.",
            "those torchvision or timm has",
            metavar="FILE",
        ),
    ] = None,
    image_size: Annotated[int | None, option("Side of the pictures in pixels.", "as the weights expect")] = None,
    fit: Annotated[
        Fit | None, option("How a picture becomes square; see dsh train --fit.", "as the weights expect")
    ] = None,
    interpolation: Annotated[
        Interpolation | None, option("Where a picture is resized.", "as the weights expect")
    ] = None,
    relative_to: Annotated[
        str | None, option("Folder to which the paths in the file are relative.", "they are absolute", metavar="FOLDER")
    ] = None,
    null: Null = False,
    device: Where = "auto",
    workers: Workers = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write what a network gives of pictures to a file, which dsh train and other commands take in their place."""
    form = form_of(form, as_json)

    from dsh_cli.show.views.features import featured
    from dsh_cli.training.feature_file import Asked, make_features

    asked = Asked([*arguments(paths, null)], out, backbone, weights, image_size, fit, interpolation, relative_to)
    asked.check()
    with status(quiet, "features") as progress:
        made = make_features(asked, device, workers, progress)
    for picture in made.skipped:
        complain(f"{picture.path}: {picture.error}")
    tell(made.left_out)
    show(featured(made), form)
    if made.skipped:
        raise typer.Exit(1)
