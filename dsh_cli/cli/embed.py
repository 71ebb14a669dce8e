"""`dsh embed`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from dsh_cli.cli.shared import Format, Json, Model, Quiet, app, find_run, form_of, notice, option, show, steps


@app.command(
    epilog="Example: [bold]dsh embed --method umap[/], or [bold]dsh embed --out map.html[/] for a page to explore"
)
def embed(
    model: Model = None,
    method: Annotated[
        Literal["tsne", "umap", "pca"], typer.Option(help="t-SNE, UMAP, or principal components.")
    ] = "tsne",
    split: Annotated[
        str | None, option("Which pictures of the run to show.", "test, or train where there are none")
    ] = None,
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
    seed: Annotated[
        int,
        typer.Option(
            help="Draws the sample, and where UMAP and t-SNE start; with 0 t-SNE starts from principal components. The "
            "same seed gives the same picture."
        ),
    ] = 0,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the points to the run's projector in TensorBoard, too.")
    ] = False,
    form: Format = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the space of codes: a picture with the pictures as points, or a page to explore."""
    form = form_of(form, as_json)

    from dsh_cli.analysis.embedding import Projection, embed_run
    from dsh_cli.show.drawing import Drawing
    from dsh_cli.show.views.embed import embedded

    drawing = Drawing(out, points, dims, tensorboard)
    drawing.check(model)
    how = Projection.for_method(method, space, dims, seed, perplexity, neighbors, min_dist)
    run = find_run(model, quiet)
    file, split = drawing.place(run, method), split or run.shown_split
    with steps(quiet, "reading codes") as tell:
        embedding = embed_run(run, split, how, sample, tell)
        tell(f"drawing {file}")
        notes = drawing.draw(embedding, file, run, split)
    for note in (*embedding.notes, *notes):
        notice(note, quiet)
    show(embedded(embedding, file, split), form)
