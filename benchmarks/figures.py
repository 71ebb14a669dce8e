"""Make the pictures of img/ from a real run: python benchmarks/figures.py RUN."""

from __future__ import annotations

import base64
import io
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from rich.console import Console
from torch import nn

from dsh_cli import Run, class_table
from dsh_cli.analysis.embedding import Embedding, Projection, embed_run
from dsh_cli.network.model import Shortcut
from dsh_cli.show.figures import embedding, save
from dsh_cli.show.pages.embedding import write_page
from dsh_cli.show.style import COLOURS
from dsh_cli.show.views.table import class_codes
from dsh_cli.training.terms import pair_term

IMG = Path(__file__).parent.parent / "img"
WIDTH = 84  # columns
INK, SOFT = "#1c1d1a", "#62645c"


def main() -> None:
    run = Run.open(sys.argv[1])
    IMG.mkdir(exist_ok=True)
    table(run)
    save(model(run), str(IMG / "model.png"))
    save(loss(run.config.margin, run.config.alpha, run.config.bits), str(IMG / "loss.png"))
    for method in ("tsne", "umap"):
        made = embed_run(run, "test", Projection(method))
        save(embedding(made, run.config.data, "test", "thumbnails"), str(IMG / f"{method}.png"))
        if method == "umap":
            explore(made, run.config.data)


def explore(made: Embedding, name: str) -> None:
    """The page to explore in a browser, where there is one: a point clicked, the pointer over it."""
    sys.path.append(str(IMG.parent))
    from tests.support import browser

    program = browser.find()
    if program is None:
        print("no Chromium on the PATH: explore.png stays as it is")
        return
    row = 0
    with tempfile.TemporaryDirectory() as folder, browser.started(program) as tab:
        page = Path(folder, "page.html")
        write_page(str(page), made, name, "test")
        tab.open(page.as_uri())
        time.sleep(1)
        x, y = tab.value(
            f"""(() => {{ const map = Bokeh.documents[0].get_model_by_name("map"), view = Bokeh.index.find_one(map)
            const box = view.canvas_view.el.getBoundingClientRect(), data = map.renderers[0].data_source.data
            const [across, down] = [view.frame.x_scale, view.frame.y_scale]
            return [box.x + across.compute(data.x[{row}]), box.y + down.compute(data.y[{row}])]
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        time.sleep(1)
        tab.value("document.activeElement.blur()")
        for away in (30, 0):
            tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + away, y=y)
            time.sleep(1)
        picture = tab.call("Page.captureScreenshot", format="png")["data"]
        (IMG / "explore.png").write_bytes(base64.b64decode(picture))


def table(run: Run) -> None:
    """What `dsh table` prints."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(class_codes(class_table(run.codes("test"), "test"), run).table(WIDTH))
    console.save_svg(str(IMG / "table.svg"), title="dsh table")


def model(run: Run) -> Figure:
    """The layers of a run's network with the shapes they give, as a picture goes through them."""
    net = run.load_model()
    config = net.config
    shapes: list[tuple[str, tuple[int, ...]]] = [("picture", (config.channels, config.image_size, config.image_size))]
    spans: list[tuple[int, int]] = []  # layers that a shortcut passes by

    def convolution(module: nn.Conv2d, given: Any, output: torch.Tensor) -> None:
        shapes.append((f"{module.kernel_size[0]} x {module.kernel_size[1]}", tuple(output.shape[1:])))

    def pooling(module: nn.Module, given: Any, output: torch.Tensor) -> None:
        shapes[-1] = (shapes[-1][0] + "\npool", tuple(output.shape[1:]))

    def shortcut(module: nn.Module, given: Any, output: torch.Tensor) -> None:
        spans.append((len(shapes) - 3, len(shapes) - 1))

    kinds = {nn.Conv2d: convolution, nn.MaxPool2d: pooling, Shortcut: shortcut}
    for module in net.modules():
        for kind, hook in kinds.items():
            if isinstance(module, kind):
                module.register_forward_hook(hook)
    net(torch.zeros(1, *shapes[0][1]))
    shapes.append(("mean", (net.hash_layer.in_features,)))
    shapes.append(("linear", (config.bits,)))
    weights = sum(parameter.numel() for parameter in net.parameters())
    return _draw_layers(shapes, spans, f"{config.backbone}: {weights:,} weights, read from {run.path.name}")


def _draw_layers(shapes: list[tuple[str, tuple[int, ...]]], spans: list[tuple[int, int]], title: str) -> Figure:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots()
    tallest = max(shape[1] for _, shape in shapes if len(shape) == 3)
    left, places = 0.0, []
    for number, (name, shape) in enumerate(shapes):
        flat = len(shape) == 1
        height = 1.0 if flat else 0.25 + 3.0 * shape[1] / tallest
        width = 0.22 if flat else 0.12 + 0.09 * math.sqrt(shape[0])
        colour = COLOURS[3] if number == 0 else COLOURS[1] if number == len(shapes) - 1 else COLOURS[0]
        axes.add_patch(
            FancyBboxPatch((left, -height / 2), width, height, "round,pad=0,rounding_size=0.04", fc=colour, ec=INK)
        )
        middle = left + width / 2
        size = f"{shape[0]}" if flat else f"{shape[0]} of\n{shape[1]} x {shape[2]}"
        axes.text(middle, -2.0, size, ha="center", va="top", fontsize=10, color=INK)
        axes.text(middle, -2.75, name, ha="center", va="top", fontsize=9, color=SOFT)
        places.append((left, left + width, height / 2))
        left += width + 0.75
    for (_, end, _), (start, _, _) in zip(places, places[1:], strict=False):
        axes.annotate("", (start - 0.05, 0), (end + 0.05, 0), arrowprops={"arrowstyle": "->", "color": INK})
    for first, last in spans:
        (_, right_of_first, one), (_, right_of_last, other) = places[first], places[last]
        top = 0.3 + max(one, other)
        begins, ends = right_of_first + 0.3, right_of_last + 0.45
        axes.plot([begins, begins, ends], [0.06, top, top], color=COLOURS[2], lw=1.2)
        axes.annotate("", (ends, 0.1), (ends, top), arrowprops={"arrowstyle": "->", "color": COLOURS[2]})
        axes.text((begins + ends) / 2, top + 0.1, "plus", ha="center", va="bottom", color=COLOURS[2], fontsize=10)
    axes.set(xlim=(-0.4, left - 0.4), ylim=(-3.6, 2.1))
    axes.set_title(title, loc="left", fontsize="medium")
    axes.axis("off")
    return figure


def loss(margin: float, alpha: float, bits: int) -> Figure:
    """The formula, and what a pair costs by its squared distance, as `terms.pair_term` computes it."""
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    axes = figure.subplots()
    squared = np.linspace(0, 2 * margin, 400)
    cost = {}
    for same in (True, False):
        labels = torch.tensor([0, 0 if same else 1])
        pairs = [torch.tensor([[0.0], [math.sqrt(value)]]) for value in squared]
        cost[same] = [float(pair_term(pair, labels, margin)) for pair in pairs]
    axes.plot(squared, cost[True], color=COLOURS[0], lw=2.5, label="of one class")
    axes.plot(squared, cost[False], color=COLOURS[2], lw=2.5, ls="--", label="of two classes")
    axes.axvline(margin, color=SOFT, lw=1)
    axes.annotate(
        f"margin m = {margin:g}:\n{margin / 4:g} of {bits} bits differ",
        (margin, max(cost[True]) * 0.12),
        xytext=(8, 0),
        textcoords="offset points",
        color=SOFT,
    )
    axes.set(
        xlabel=r"squared distance $\|b_1-b_2\|_2^2$ of two outputs (one differing bit adds 4)",
        ylabel="cost of the pair",
    )
    axes.set(xlim=(0, 2 * margin), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="a pair", frameon=False, loc="upper left")
    formula = (
        r"$L=\frac{1}{2}(1-y)\,\|b_1-b_2\|_2^2+\frac{1}{2}\,y\,\max(m-\|b_1-b_2\|_2^2,\,0)"
        r"+\alpha\,(\||b_1|-1\|_1+\||b_2|-1\|_1)$"
    )
    axes.set_title(f"{formula}\n", fontsize=13)
    axes.text(
        0.5,
        1.02,
        rf"y = 0 for one class, 1 for two; here k = {bits}, $\alpha$ = {alpha:g}",
        ha="center",
        color=SOFT,
        transform=axes.transAxes,
    )
    return figure


if __name__ == "__main__":
    main()
