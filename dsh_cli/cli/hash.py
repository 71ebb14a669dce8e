"""`dsh hash`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from dsh_cli.cli.shared import (
    Coder,
    Form,
    Format,
    Json,
    Null,
    Quiet,
    Where,
    Workers,
    app,
    arguments,
    complain,
    find_model,
    flush,
    form_of,
    print_table,
    shows_at_once,
    status,
    tell,
    write,
)
from dsh_cli.show.console import ascii_only

if TYPE_CHECKING:
    from dsh_cli.network.encoder import Encoded


@app.command(
    "hash",
    epilog="Example: [bold]dsh hash image.png photos/[/], or [bold]find . -name '*.jpg' -print0 | dsh hash --null -[/]",
)
def hash_pictures(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Picture files, folders of them, files of vectors where the run is of such, or - for a list on "
            "standard input.",
        ),
    ],
    model: Coder = None,
    null: Null = False,
    device: Where = "auto",
    workers: Workers = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print the codes of pictures. One that cannot be read is reported, and the others go on."""
    form = form_of(form, as_json)
    coder = find_model(model, quiet)

    from dsh_cli.data.inputs import encode_paths
    from dsh_cli.pictures.find import LeftOut, expand

    left_out = LeftOut()
    found = expand(arguments(paths, null), left_out)
    all_read = _show_all(encode_paths(coder.encoder(device), found, workers), form, quiet)
    tell(left_out)
    if not all_read:
        raise typer.Exit(1)


def _show_all(items: Iterable[Encoded], form: Form, quiet: bool) -> bool:
    """Show codes as they come, or all in one table; says whether all pictures could be read."""
    from dsh_cli.show.views.hash import hashed_json, hashed_line, hashed_table

    shown: list[Encoded] = []
    all_read = True
    ascii = ascii_only(sys.stdout)
    on_screen = form != "table" and shows_at_once()  # the codes themselves show the progress
    with status(quiet or on_screen, "hashing pictures") as progress:
        for done, item in enumerate(items, 1):
            progress(done)
            if item.error is not None:
                all_read = False
                complain(f"{item.path}: {item.error}")
            if form == "json":
                write(hashed_json(item))
            elif form == "table":
                shown.append(item)
            elif item.error is None:
                write(hashed_line(item, ascii))
    if any(item.error is None for item in shown):
        print_table(lambda width: hashed_table(shown, width))
    flush()
    return all_read
