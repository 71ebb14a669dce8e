"""`dsh embed`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dsh_cli.cli.shared import Format, Json, Model, Quiet, app, find_run, form_of, notice, option, show, steps
from dsh_cli.errors import UsageError

_PAGES = (".html", ".htm")
_MOST_BITS = 64  # of codes that are drawn as points


@app.command(
    epilog="Example: [bold]dsh embed --method umap[/], or [bold]dsh embed --out map.html[/] for a page to explore"
)
def embed(
    model: Model = None,
    method: Annotated[
        Literal["tsne", "umap", "pca"], typer.Option(help="t-SNE, UMAP, or principal components.")
    ] = "tsne",
    split: Annotated[str, typer.Option(help="Which pictures of the run to show.")] = "test",
    sample: Annotated[int, typer.Option(metavar="N", help="Pictures at most, each class in proportion.")] = 2000,
    space: Annotated[
        Literal["relaxed", "code"],
        typer.Option(help="Euclidean on relaxed codes, or Hamming on distinct codes, sized by how many share each."),
    ] = "relaxed",
    out: Annotated[
        str | None,
        option(
            "Picture (.png, .svg, .pdf), or a page to explore (.html).",
            "<run>/<method>.png",
            "--out",
            "-o",
            metavar="FILE",
        ),
    ] = None,
    points: Annotated[
        Literal["thumbnails", "dots", "codes"] | None,
        option("What a point of a picture looks like.", "thumbnails; dots in three dimensions"),
    ] = None,
    dims: Annotated[int, typer.Option(help="2, or 3 for a picture in perspective.")] = 2,
    perplexity: Annotated[float | None, option("t-SNE: about how many neighbours a point has.", "30")] = None,
    neighbors: Annotated[int | None, option("UMAP: neighbours of a point.", "15")] = None,
    min_dist: Annotated[float | None, option("UMAP: how near two points may come, 0 to 1.", "0.1")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same picture.")] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the points to the run's projector in TensorBoard, too.")
    ] = False,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the space of codes: a picture with the pictures as points, or a page to explore."""
    form = form_of(form, as_json)
    if dims != 2 and points not in (None, "dots"):
        raise UsageError(f"--points {points} and --dims {dims} contradict each other; three dimensions have dots")

    from dsh_cli.analysis import embedding as core
    from dsh_cli.show import figures
    from dsh_cli.show.views.embed import embedded

    if tensorboard:
        from dsh_cli.show.projector import require_utf8, write_embedding

        require_utf8(model or "", "leave `tensorboard` out")
    options = {"perplexity": ("tsne", perplexity), "neighbors": ("umap", neighbors), "min_dist": ("umap", min_dist)}
    given: dict[str, Any] = {name: value for name, (_, value) in options.items() if value is not None}
    for name in given:
        if options[name][0] != method:
            asked = f"--{name.replace('_', '-')}"
            raise UsageError(f"{asked} is for --method {options[name][0]}; leave it out, or choose that")
    how = core.Projection(method, space, dims, seed=seed, **given)
    how.check()
    run = find_run(model, quiet)
    if points == "codes" and run.model.bits > _MOST_BITS:
        raise UsageError(f"--points codes: codes of {run.model.bits} bits are too long; {_MOST_BITS} bits at most")
    file = str(run.path / f"{method}.png") if out is None else out
    page = Path(file).suffix.lower() in _PAGES
    if page and dims != 2:
        raise UsageError("--dims 3: a page is flat; take a picture such as .png, or --dims 2")
    if page and points is not None:
        raise UsageError("--points is for pictures; a page has dots, and shows a picture where the pointer is")
    figures.require_writable(file, "choose another --out FILE", _PAGES)
    notes: tuple[str, ...] = ()
    with steps(quiet, "reading codes") as tell:
        embedding = core.embed_run(run, split, how, sample, tell)
        tell(f"drawing {file}")
        if page:
            from dsh_cli.show.pages.embedding import write_page

            write_page(file, embedding, run.path.name, split)
        else:
            notes = figures.save(figures.embedding(embedding, run.path.name, split, points or "thumbnails"), file)
        if tensorboard:
            write_embedding(run, embedding, split)
            notes = (
                *notes,
                f"TensorBoard has the points under {method}: tensorboard --logdir {shlex.quote(str(run.path))}",
            )
    for note in (*embedding.notes, *notes):
        notice(note, quiet)
    show(embedded(embedding, file, split), form)
