"""`dsh neighbors`."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from dsh_cli.cli.shared import (
    Coder,
    Form,
    Format,
    Json,
    Null,
    Quiet,
    Rescored,
    Rescoring,
    Where,
    Workers,
    app,
    arguments,
    complain,
    find_model,
    form_of,
    notice,
    option,
    show,
    shows_at_once,
    status,
    tell,
)

if TYPE_CHECKING:
    from dsh_cli.neighbors import Answer, Query
    from dsh_cli.show.pages.neighbors import Page

_Labels = list[str] | None


@app.command(
    cls=Rescoring,
    epilog="Example: [bold]dsh neighbors image.png --html page.html[/], or [bold]dsh neighbors 0xf7 --radius 1[/]",
)
def neighbors(
    queries: Annotated[
        list[str],
        typer.Argument(
            metavar="QUERY",
            help="Picture files, folders of them, files of vectors where the run is of such, codes such as 0xf7 or "
            "0b1111_0111 (a file of that name goes first), or - for a list on standard input.",
        ),
    ],
    model: Coder = None,
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
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="On the page of --html, show pictures of the index below this folder too, though they were not added "
            "to it here. May be repeated.",
        ),
    ] = None,
    label: Annotated[_Labels, typer.Option(metavar="CLASS", help="Only this class. May be repeated.")] = None,
    not_label: Annotated[_Labels, typer.Option(metavar="CLASS", help="Not this class. May be repeated.")] = None,
    rescore: Rescored = None,
    pool: Annotated[
        int | None,
        option("With --rescore, order so many times -k of the nearest anew.", "100; with --radius alone all", min=1),
    ] = None,
    threads: Annotated[int | None, option("Threads that search.", "one a processor", min=1)] = None,
    memory: Annotated[
        float | None,
        option(
            "GiB of codes of an index to hold; a larger one is read from its disk, once for 256 queries.",
            "2",
            min=0,
        ),
    ] = None,
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
    """Find the pictures whose codes are nearest. Those equally near come in the order in which they were added.

    So do those that --rescore finds equal, and of those equally near at the edge of its pool the first are in it.
    """
    form = form_of(form, as_json)

    from dsh_cli.neighbors import Search

    of, without = tuple(label or ()), tuple(not_label or ())
    shown = tuple(pictures or ())
    search = Search(split, index, of, without, k, radius, html, relative_to, shown, rescore, pool, threads, memory)
    search.check()
    finder = search.finder(find_model(model, quiet), queries)
    if finder.database.note:
        complain(finder.database.note, "warning")
    if k is not None and k > len(finder.database):
        notice(f"the {finder.database.name} has only {len(finder.database):,} to choose from", quiet)
    all_read = _show_all(finder.find(arguments(queries, null), device, workers), html, form, quiet)
    tell(finder.left_out)
    if not all_read:
        raise typer.Exit(1)


def _show_all(answers: Iterable[Answer | Query], html: str | None, form: Form, quiet: bool) -> bool:
    """Show answers as they come, and put them on a page; says whether all queries could be read."""
    from dsh_cli.codes.bits import looks_like_code
    from dsh_cli.neighbors import Query
    from dsh_cli.show.views import neighbors as view

    all_read = True
    on_screen = shows_at_once()  # the answers themselves show the progress
    with _page_or_none(html) as page, status(quiet or on_screen, "looking up") as progress:
        for done, answer in enumerate(answers, 1):
            progress(done)
            if isinstance(answer, Query):
                all_read = False
                complain(f"{answer.error}" if looks_like_code(answer.name) else f"{answer.name}: {answer.error}")
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
    return all_read


def _page_or_none(file: str | None) -> AbstractContextManager[Page | None]:
    if file is None:
        return nullcontext()

    from dsh_cli.show.pages.neighbors import page

    return page(file)
