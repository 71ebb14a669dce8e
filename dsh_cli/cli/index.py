"""`dsh index`: a persistent set of codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
    form_of,
    notice,
    option,
    show,
    tell,
)
from dsh_cli.config import EngineName, Service
from dsh_cli.errors import Interrupted, UsageError
from dsh_cli.show.console import Console
from dsh_cli.words import counted

if TYPE_CHECKING:
    from dsh_cli.index.index import Index, Progress, Report

index = typer.Typer(
    help="Keep the codes of pictures in an index, which dsh neighbors --index looks in.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="Start with: [bold]dsh index add pictures.lance photos/[/], then "
    "[bold]dsh neighbors image.png --index pictures.lance[/]",
)
app.add_typer(index, name="index")

_Index = Annotated[
    str,
    typer.Argument(metavar="INDEX", help="Folder of the index, or a URI of object storage such as s3://bucket/index."),
]
_RelativeTo = Annotated[
    str | None,
    option("Folder to which the paths in the index are relative.", "they are absolute", metavar="FOLDER"),
]


@index.command(
    epilog="Example: [bold]dsh index add pictures.lance photos/ --labels folder[/]; again, it adds what is new. "
    "One process writes at a time, and others wait; in object storage the second of two is refused, and adds what is "
    "left when it is run again"
)
def add(
    uri: _Index,
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Picture files, folders of them, files of vectors where the run is of such, or - for a list on "
            "standard input.",
        ),
    ],
    model: Coder = None,
    labels: Annotated[
        str | None,
        option(
            "folder: the first folder below PATH, or below train/, test/ and the like in it, or that of a file; none; "
            "or a CSV file of path,label.",
            "known ones stay, new pictures have none",
            metavar="folder|none|CSV",
        ),
    ] = None,
    relative_to: _RelativeTo = None,
    keep_outputs: Annotated[
        bool,
        typer.Option(
            "--keep-outputs",
            help="Keep the outputs of the network too, a byte a bit, for dsh neighbors --rescore. An index that keeps "
            "them goes on to; one that holds pictures without them cannot begin.",
        ),
    ] = False,
    null: Null = False,
    device: Where = "auto",
    workers: Annotated[
        int | None,
        option(
            "Threads that decode pictures; with --engine ray its workers, which have a processor each.",
            "one a processor",
            "--workers",
            min=1,
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            "--engine",
            help="local: this process encodes; ray: the workers of Ray, here or on a cluster (extra \\[ray]).",
        ),
    ] = "local",
    ray_address: Annotated[
        str | None,
        option(
            "Cluster of Ray, or auto on a machine of it; pictures have the same paths on all of its machines.",
            "Ray is started here",
            "--ray-address",
            metavar="HOST:PORT",
        ),
    ] = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add pictures that are new, and update those that changed. One that cannot be read is reported, others go on."""
    form = form_of(form, as_json)
    run = find_model(model, quiet)

    from dsh_cli.index.index import Index

    opened = _told(Index.open(uri))
    try:
        with _bar(quiet) as progress:
            report = opened.add(
                run,
                arguments(paths, null),
                labels,
                relative_to,
                device,
                workers,
                progress,
                lambda: _waiting(uri, quiet),
                keep_outputs=keep_outputs,
                engine=engine,
                ray_address=ray_address,
            )
    except KeyboardInterrupt as stopped:
        raise Interrupted("stopped by Ctrl-C; what was committed is kept, and the same command goes on") from stopped
    if report.unlabelled:
        pictures = counted(report.unlabelled, "picture")
        lacking = f"{labels} has no label for {pictures}"
        complain(f"no label for {pictures} in no class folder" if labels == "folder" else lacking, "warning")
    _finish(report, form)


@index.command(
    epilog="Example: [bold]dsh index remove pictures.lance 'photos/*.gif'[/] for all of these; "
    "[bold]dsh index remove pictures.lance photos/ --missing[/] for those that were deleted there"
)
def remove(
    uri: _Index,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]",
            help="Files, folders for all below them, globs in quotes (their * takes slashes too), or - for a list on "
            "standard input.",
        ),
    ] = None,
    missing: Annotated[
        bool, typer.Option("--missing", help="Only pictures whose files are gone: of those of PATH, or of all.")
    ] = False,
    yes: Annotated[
        bool,
        typer.Option("--yes", "-y", help="Also where it looks as if a disk of theirs is not mounted; else it asks."),
    ] = False,
    relative_to: _RelativeTo = None,
    null: Null = False,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take pictures out of an index; their files are left alone."""
    form = form_of(form, as_json)
    if not paths and not missing:
        raise UsageError("nothing to remove; give paths, or --missing for files that are gone")

    from dsh_cli.index.index import Index

    ask = _ask if sys.stdin.isatty() and sys.stderr.isatty() else None
    report = _told(Index.open(uri)).remove(
        arguments(paths, null) if paths else None, missing, relative_to, lambda: _waiting(uri, quiet), yes, ask
    )
    _finish(report, form)


@index.command(epilog="Example: [bold]dsh index info pictures.lance --json[/]")
def info(uri: _Index, form: Format = None, as_json: Json = False) -> None:
    """Show what an index holds: codes, bits, model, versions."""
    form = form_of(form, as_json)

    from dsh_cli.index.index import Index

    _finish(_told(Index.open(uri)).report(), form)


@index.command(epilog="Example: [bold]dsh index verify pictures.lance --sample 1000[/]")
def verify(
    uri: _Index,
    model: Coder = None,
    sample: Annotated[
        int | None, option("So many pictures, at random; with 0 rows alone, which needs no run.", "all", min=0)
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sample.", min=0)] = 0,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Make the last whole version the newest, take out rows that are damaged, and give digests to rows "
            "without.",
        ),
    ] = False,
    relative_to: _RelativeTo = None,
    device: Where = "auto",
    workers: Workers = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look for damaged rows; read and encode pictures again, and say what differs: missing, or content or code changed.

    What was damaged and taken out comes in again with dsh index add.

    The exit code is 1 while anything is wrong at the end, and 0 where all is well, or was mended.
    """
    form = form_of(form, as_json)
    run = None if sample == 0 else find_model(model, quiet)

    from dsh_cli.index.index import Index

    opened = Index.open(uri, salvage=repair)  # whose note, if it has one, is among what failed
    with _bar(quiet) as progress:
        report = opened.verify(
            run,
            sample,
            seed,
            relative_to,
            device,
            workers,
            progress,
            repair,
            lambda: _waiting(uri, quiet),
        )
    if run is not None and run.model.of_vectors and report.rows:
        notice(
            "its codes are of vectors, which are in no file that could be encoded again; rows alone were read", quiet
        )
    for mended in report.repaired:
        notice(f"{mended.path}: {mended.error}", quiet)
    _finish(report, form, quiet)


@index.command(
    epilog="Example: [bold]dsh index export pictures.lance --parquet codes.parquet[/], and with "
    "[bold]--for pgvector[/] to be loaded there (see docs/handing-on.md)"
)
def export(
    uri: _Index,
    parquet: Annotated[str, typer.Option(metavar="FILE", help="Parquet file to write; one of that name is replaced.")],
    service: Annotated[
        Service | None,
        option(
            "Lay the file out as milvus, elasticsearch or pgvector loads it.",
            "as the index has it",
            "--for",
            metavar="SERVICE",
        ),
    ] = None,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Hand all codes on to other systems."""
    form = form_of(form, as_json)

    from dsh_cli.index.index import Index

    report = _told(Index.open(uri)).export(parquet, service)
    notice(f"wrote {parquet}" + (f" for {service}" if service else ""), quiet)
    _finish(report, form)


def _told(opened: Index) -> Index:
    """Say that newer versions are damaged, if they are."""
    if opened.note:
        complain(opened.note, "warning")
    return opened


def _finish(report: Report, form: Form, quiet: bool = False) -> None:
    """Show what came of it; what failed fails the command."""
    from dsh_cli.show.views.index import index_report

    for failure in report.failed:
        complain(f"{failure.path}: {failure.error}")
    for remedy in dict.fromkeys(failure.remedy for failure in report.failed if failure.remedy):
        notice(remedy, quiet)
    tell(report.left_out)
    show(index_report(report), form)
    if report.failed:
        raise typer.Exit(1)


def _ask(said: str) -> bool:
    complain(f"{said}; is their disk not mounted? Take them out? [y/N]", "warning")
    return sys.stdin.readline().strip().lower() in ("y", "yes")  # Typer's own would write to stdout


def _waiting(uri: str, quiet: bool) -> None:
    notice(f"another process is writing {uri}; waiting for it", quiet)


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress | None]:
    """A live bar on stderr while it is a terminal, with rate and time left; yields what moves it, or nothing."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: object) -> Text:
            speed = getattr(task, "speed", None)
            return Text(f"{speed:,.0f}/s" if speed else "", style="cyan")

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), Rate(), TimeRemainingColumn(compact=True))
    with Bar(*columns, console=console, transient=True, expand=True, redirect_stdout=False) as bar:
        task = bar.add_task("pictures", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
