"""`dsh neighbors`."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from dsh_cli.cli.shared import (
    Format,
    Json,
    Model,
    Null,
    Quiet,
    Where,
    Workers,
    app,
    arguments,
    complain,
    find_run,
    form_of,
    notice,
    option,
    show,
    status,
)
from dsh_cli.errors import UsageError

if TYPE_CHECKING:
    from dsh_cli.show.pages.neighbors import Page

_Labels = list[str] | None


@app.command(
    epilog="Example: [bold]dsh neighbors image.png --html page.html[/], or [bold]dsh neighbors 0xf7 --radius 1[/]"
)
def neighbors(
    queries: Annotated[
        list[str],
        typer.Argument(
            metavar="QUERY",
            help="Picture files, folders of them, codes such as 0xf7 or 0b1111_0111 (a file of that name goes first), "
            "or - for a list on standard input.",
        ),
    ],
    model: Model = None,
    k: Annotated[
        int | None,
        option("Neighbours of each query.", "10; with --radius all within it", "-k", min=1),
    ] = None,
    radius: Annotated[int | None, typer.Option(help="Only those at most so many bits away.", min=0)] = None,
    split: Annotated[
        str | None, option("Split of the run to look in.", "database where it has one, else train", metavar="SPLIT")
    ] = None,
    index: Annotated[str | None, typer.Option(metavar="INDEX", help="Look in an index, not in the run.")] = None,
    relative_to: Annotated[
        str | None,
        option(
            "Folder to which the paths in the index are relative, for the pictures of --html.",
            "the current one",
            metavar="FOLDER",
        ),
    ] = None,
    label: Annotated[_Labels, typer.Option(metavar="CLASS", help="Only this class. May be repeated.")] = None,
    not_label: Annotated[_Labels, typer.Option(metavar="CLASS", help="Not this class. May be repeated.")] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write a page with the pictures, whole in one file.")
    ] = None,
    null: Null = False,
    device: Where = "auto",
    workers: Workers = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the pictures whose codes are nearest. Those equally near come in the order in which they were added."""
    form = form_of(form, as_json)
    if index is not None and split is not None:
        raise UsageError("--index and --split contradict each other; give one of them")
    if relative_to is not None:
        if index is None or html is None:
            raise UsageError("--relative-to says where --html finds the pictures of --index; give both, or leave it")
        if not os.path.isdir(relative_to):
            raise UsageError(f"--relative-to {relative_to}: no such folder")
    if label and set(label) <= set(not_label or ()):
        raise UsageError("--not-label takes away all that --label names; drop one of them")
    run = find_run(model, quiet)

    from dsh_cli.codes import bits
    from dsh_cli.neighbors import Finder, Query, index_database, is_code, split_database
    from dsh_cli.show.views import neighbors as view

    wanted = label or (), not_label or ()
    if index is None:
        database = split_database(run, split, *wanted)
    else:
        database = index_database(index, run, *wanted, relative_to or "")
    for text in filter(is_code, queries):
        bits.parse(text, run.model.bits)  # a malformed one ends it before anything is done
    finder = Finder(run, database, k, radius)
    if k is not None and k > len(database):
        notice(f"the {database.name} has only {len(database):,} to choose from", quiet)
    failed = False
    on_screen = sys.stdout.isatty()  # the answers themselves show the progress
    with (
        _page_or_none(html) as page,
        status(quiet or on_screen, "looking up") as progress,
    ):
        for done, answer in enumerate(finder.find(arguments(queries, null), device, workers), 1):
            progress(done)
            if isinstance(answer, Query):
                failed = True
                complain(f"{answer.name}: {answer.error}" if answer.picture else f"{answer.error}")
                if form == "json":
                    show(view.unread(answer), form)
                continue
            show(view.neighbors(answer), form)
            if page is not None:
                page.add(answer)
    if page is not None and page.written:
        notice(f"wrote {html}", quiet)
        if lacking := page.lacking():
            notice(lacking, quiet)
    if failed:
        raise typer.Exit(1)


def _page_or_none(file: str | None) -> AbstractContextManager[Page | None]:
    if file is None:
        return nullcontext()

    from dsh_cli.show.pages.neighbors import page

    return page(file)
