"""The table of quality: one training a cell, appended to RESULTS.md; cells that have a valid row are left out.

    python benchmarks/quality.py                          # all cells not yet measured
    python benchmarks/quality.py --only mnist-8 cifar-12  # those alone
    python benchmarks/quality.py --only mnist-8 --seeds 2 --again  # anew, where something disturbed its seconds
    python benchmarks/quality.py --table                  # write the README's table from the rows, train nothing

A row is valid while what it depends on is unchanged: the cell's own recipe, and what the code says that reads the data
and trains, wherever it lies (`_depends.py`). Cells of cifar10-jpeg take a folder of that name, with train/ and test/ in
it, relative to the current one. Measure alone: seconds count.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
from _depends import digest
from _report import RESULTS, append
from baseline import seen_and_unseen

from dsh_cli import CodeSet, TrainConfig, evaluate, load_splits, train
from dsh_cli.network.device import choose_device
from dsh_cli.training.events import TrainResult

BEGINS = ("load_splits", "train")  # where every figure begins
# What no figure depends on. Where the data comes from is held by checksums, what measures by tests against slow
# references, and what keeps a run by tests that read it back; the recipe is compared by its values.
WITHOUT = frozenset(
    ("TrainConfig", "Recipe", "locate", "take_file", "take_pretrained", "Run", "created", "resumed", "reason")
    + ("compared", "mean_average_precision", "class_table", "evaluate_run", "evaluate")
    + ("Plan", "EpochStats", "TrainResult", "listening")
)
CIFAR = "cifar10-jpeg"
CLASSES = 10  # of MNIST and CIFAR-10, about equally large
README = Path(__file__).parent.parent / "README.md"
MARKS = ("<!-- made by benchmarks/quality.py -->", "<!-- end -->")


def _map(result: TrainResult) -> float:
    assert result.map is not None  # its pictures are there
    return result.map


@dataclass(frozen=True)
class Cell:
    """One training and what is measured of it."""

    group: str
    config: TrainConfig
    measure: Callable[[TrainResult], float] = _map

    @property
    def name(self) -> str:
        """How its rows begin."""
        plain = " without centers" if self.config.centers == "none" else ""
        return f"quality {self.group}{plain}, seed {self.config.seed}"

    @property
    def code(self) -> str:
        """Eight digits that change with what the figures depend on."""
        of_baseline = digest(["seen_and_unseen"], WITHOUT, "baseline") if self.config.hold_out_classes else ""
        return digest(BEGINS, WITHOUT, more=f"{self.config!r} {of_baseline}")

    def rows(self) -> list[dict[str, str]]:
        """Its valid rows, newest last: the figures by name. Not those of GPUs: limits are for two cores."""
        found = []
        for line in RESULTS.read_text().splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) > 3 and cells[2] == self.name:
                figures = dict(part.rsplit(" ", 1) for part in cells[3].split(", ") if " " in part)
                if figures.get("code") == self.code and "device" not in figures:
                    found.append(figures)
        return found


def published_map(result: TrainResult) -> float:
    """MAP within the first 5,000, of 1,000 test pictures, a hundred of each class, in the training pictures."""
    queries = result.run.codes("test")
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(queries.labels == label))[:100] for label in range(10)])
    sample = CodeSet(queries.bits, queries.packed[rows], queries.labels[rows], queries.classes, ())
    return evaluate(sample, result.run.codes("train"), at=[5000]).map_at[5000]


def cells() -> list[Cell]:
    """All cells of the table, in the order they are to be measured."""
    mnist = TrainConfig(data="mnist", bits=8, tensorboard=False)
    fashion = replace(mnist, data="fashion-mnist", epochs=4)
    cifar = TrainConfig(data=CIFAR, protocol="paper", bits=12, epochs=16, tensorboard=False)
    made = [Cell("mnist-8", replace(mnist, seed=seed)) for seed in range(5)]
    made += [Cell("mnist-8-long", replace(mnist, epochs=24))]
    made += [Cell(f"mnist-{bits}", replace(mnist, bits=bits, epochs=12), measure=published_map) for bits in (12, 48)]
    for seed in range(5):
        made += [Cell("fashion-8", replace(fashion, seed=seed, centers=kind)) for kind in ("auto", "none")]
    made += [Cell("cifar-12", cifar), Cell("cifar-12", replace(cifar, centers="none"))]
    made += [Cell(f"cifar-{bits}", replace(cifar, bits=bits, epochs=24)) for bits in (48, 24, 36)]
    made += [Cell("mnist-unseen", replace(mnist, hold_out_classes=3))]
    made += [Cell("cifar-unseen", replace(cifar, hold_out_classes=2, epochs=6))]
    return made


def run(cell: Cell) -> None:
    """Train, measure, append a row."""
    splits = load_splits(cell.config)
    with tempfile.TemporaryDirectory() as folder:
        if cell.config.hold_out_classes:
            figures = seen_and_unseen(cell.config, splits, f"{folder}/run")
            figures["epochs"] = f"{cell.config.epochs or 'default'}"
        else:
            result = train(cell.config, splits, out=f"{folder}/run")
            bound = result.table.bound
            figures = {
                "mAP": f"{cell.measure(result):.4f}",
                "seconds": f"{result.seconds:.1f}",
                "epochs": f"{result.run.config.epochs}",
                "distance": f"{result.table.min_class_distance}",
                "limit": f"{bound.distance if bound else '-'}",
            }
    device = choose_device(cell.config.device).type
    figures |= ({} if device == "cpu" else {"device": device}) | {"code": cell.code}
    sys.argv[1:] = ["--only", cell.group]  # which alone would do, and is what the row says
    append(cell.name, ", ".join(f"{name} {value}" for name, value in figures.items()), device)


@dataclass(frozen=True)
class Line:
    """One line of the README's table: what is asked, and whether the rows have it."""

    what: str
    asked: str
    reached: str
    fine: bool | None  # None: not measured


def lines() -> Iterator[Line]:
    """The table, from the valid rows."""

    def by_seed(group: str, name: str = "mAP", kind: str = "auto") -> dict[int, float]:
        mine = [cell for cell in cells() if (cell.group, cell.config.centers) == (group, kind)]
        return {cell.config.seed: float(rows[-1][name]) for cell in mine if (rows := cell.rows())}

    def of(group: str, name: str = "mAP") -> list[float]:
        return list(by_seed(group, name).values())

    def reaches(what: str, group: str, asked: float, limit: float, seeds: int = 1) -> Line:
        values, seconds = of(group), of(group, "seconds")
        if len(values) < seeds:
            return Line(what, f"{asked:.3f}", f"{len(values)} of {seeds} measured", None)
        fine = mean(values) >= asked and max(seconds) <= limit
        took = f"{min(seconds):.0f} to {max(seconds):.0f} s" if seeds > 1 else f"{seconds[0]:.0f} s"
        return Line(what, f"{asked:.3f} in {limit:.0f} s", f"**{mean(values):.4f}** in {took}", fine)

    def apart(what: str, group: str, asked: int, seeds: int) -> Line:
        values = of(group, "distance")
        if len(values) < seeds:
            return Line(what, f"{asked}", f"{len(values)} of {seeds} measured", None)
        shown = ", ".join(f"{value:.0f}" for value in values)
        return Line(what, f"{asked}", f"**{shown}**", min(values) >= asked)

    def against_plain(what: str, group: str, asked: float, seeds: int) -> Line:
        values, plain = by_seed(group), by_seed(group, kind="none")
        pairs = [(values[seed], plain[seed]) for seed in values if seed in plain]
        if not pairs:
            return Line(what, f"{asked:+.3f}", f"0 of {seeds} pairs measured", None)
        difference = mean(mine - other for mine, other in pairs)
        if len(pairs) < seeds:
            said = f"{difference:+.4f} so far, {len(pairs)} of {seeds} pairs measured"
            return Line(what, f"{asked:+.3f}", said, None)
        text = f"**{difference:+.4f}** ({mean(values.values()):.4f}, {mean(plain.values()):.4f} without)"
        return Line(what, f"{asked:+.3f}", text, difference >= asked)

    yield reaches("MNIST, 8 bits: mAP, mean of 5 seeds", "mnist-8", 0.990, 120, 5)
    yield apart("MNIST, 8 bits: smallest class distance, each of 5 seeds", "mnist-8", 4, 5)
    yield reaches("MNIST, 8 bits: mAP, longer", "mnist-8-long", 0.995, 600)
    yield reaches("MNIST, 12 bits: mAP@5000, 1,000 queries", "mnist-12", 0.990, 600)
    yield reaches("MNIST, 48 bits: mAP@5000, 1,000 queries", "mnist-48", 0.995, 600)
    yield apart("Fashion-MNIST, 8 bits: smallest class distance, each of 5 seeds", "fashion-8", 4, 5)
    yield against_plain("Fashion-MNIST, 8 bits: mAP, hash centers against none", "fashion-8", -0.002, 5)
    for bits, asked in ((12, 0.716), (24, 0.751), (36, 0.761), (48, 0.776)):
        yield reaches(f"CIFAR-10 JPEGs, {bits} bits: mAP, protocol paper", f"cifar-{bits}", asked, 2400)
    yield against_plain("CIFAR-10 JPEGs, 12 bits: mAP, hash centers against none", "cifar-12", 0.0, 1)
    yield apart("CIFAR-10 JPEGs, 12 bits: smallest class distance", "cifar-12", 6, 1)


def unseen_lines() -> Iterator[str]:
    """What came of classes held out, beside the classifier."""
    names = {"dsh": "dsh", "pca": "classifier, sign of a PCA", "id": "classifier, class number as bits"}
    for cell in cells():
        data, held_out = cell.group.removesuffix("-unseen"), cell.config.hold_out_classes
        for figures in cell.rows()[-1:] if held_out else []:
            for kind, spoken in names.items():
                values = " | ".join(figures[f"{kind} {classes}"] for classes in ("seen", "unseen", "all"))
                yield f"| {data} | {spoken}, {figures[f'{kind} bits']} bits | {values} |"
            chance = " | ".join(f"{1 / among:.4f}" for among in (CLASSES - held_out, held_out, CLASSES))
            yield f"| {data} | an order at random | {chance} |"


def write_table() -> None:
    """Put the table between its marks in the README."""
    told = {True: "yes", False: "**no**", None: "-"}
    text = ["| what | asked | reached | |", "| --- | --- | --- | --- |"]
    text += [f"| {line.what} | {line.asked} | {line.reached} | {told[line.fine]} |" for line in lines()]
    unseen = list(unseen_lines())
    if unseen:
        text += ["", "| data | codes | seen | unseen | all |", "| --- | --- | --- | --- | --- |", *unseen]
    before, _, rest = README.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    README.write_text(before + "\n".join([MARKS[0], *text, MARKS[1]]) + after)
    print("\n".join(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP")
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--again", action="store_true", help="also cells that have a row; the newest counts")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    for cell in [] if arguments.table else cells():
        if arguments.only and cell.group not in arguments.only:
            continue
        if (arguments.seeds and cell.config.seed not in arguments.seeds) or (cell.rows() and not arguments.again):
            continue
        if cell.config.data == CIFAR and not Path(CIFAR).is_dir():
            print(f"{cell.name}: left out, there is no folder {CIFAR} here")
            continue
        run(cell)
    write_table()


if __name__ == "__main__":
    main()
