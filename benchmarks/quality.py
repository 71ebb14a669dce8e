"""The table of quality: a row a cell, appended to RESULTS.md; cells that have a valid row are left out.

    python benchmarks/quality.py                          # all cells not yet measured
    python benchmarks/quality.py --only mnist-8 cifar-12  # those alone
    python benchmarks/quality.py --only mnist-8 --seeds 2 --again  # anew, where something disturbed its seconds
    python benchmarks/quality.py --avx2 --only mnist-8    # held to AVX2, in float32: rows that count apart
    python benchmarks/quality.py --busy --only cifar-24   # other programs run meanwhile: seconds are left out
    python benchmarks/quality.py --table                  # write the README's table from the rows, train nothing

A row is valid while what it depends on is unchanged: the cell's own recipe, and what the code says that reads the data
and trains, wherever it lies (`_depends.py`). Cells of cifar10-jpeg take a folder of that name, with train/ and test/ in
it, relative to the current one. Cells that differ in the protocol they are measured under share a training. Measure
alone, for seconds count, or with `--busy`, where those of a row count for nothing.

A row says the newest instructions that the processor had (`isa`, of avx2, avx512, avx512_bf16 and amx_bf16), what was
computed in, the operations, and the most memory the process had while it trained and measured. Rows of avx2 and of
processors with more count apart, and those of a GPU only where seconds are not asked for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import numpy as np
from _depends import digest
from _report import RESULTS, append, forget_peak, hold_to_avx2, isa, number_format, peak
from baseline import seen_and_unseen

from dsh_cli import CodeSet, TrainConfig, evaluate, evaluate_run, load_splits, mean_average_precision, train
from dsh_cli.analysis.protocols import compared
from dsh_cli.config import ModelConfig, ProtocolName
from dsh_cli.data.splits import Splits
from dsh_cli.network.device import choose_device
from dsh_cli.network.model import HashNet
from dsh_cli.training.events import TrainResult
from dsh_cli.training.measuring import encode_dataset

BEGINS = ("load_splits", "train")  # where every figure begins
# What no figure depends on. Where the data comes from, and which files these are, is held by checksums and tests, what
# encodes and measures by tests against slow references, what keeps a run by tests that read it back, and what several
# processes do by those in which two come to what one does; the recipe is compared by its values.
WITHOUT = frozenset(
    ("TrainConfig", "Recipe", "locate", "take_file", "take_pretrained", "Run", "created", "resumed", "reason")
    + ("encode_dataset", "compared", "mean_average_precision", "class_table", "evaluate_run", "evaluate")
    + ("Processes", "ALONE", "joined", "require_alike", "require_shareable", "told_of")
    + ("Plan", "EpochStats", "TrainResult", "listening", "close", "Search", "LeftOut", "Kind")
)
# What no cell takes: vectors, pictures without labels, features, networks of timm, codes that are fitted; and in which
# numbers a network trains by default, for a row says in which it did.
NOT_TAKEN = frozenset(
    ("is_vectors", "read_vectors", "load_vectors", "unlabelled", "list_pictures", "with_features", "Features")
    + ("Featured", "timm_module", "timm_network", "timm_preset", "check_timm", "Pixels")
    + ("settled_linear", "fitted", "LinearCodes", "pca", "itq", "rotation", "bfloat16_pays", "moments_of")
)
CIFAR = "cifar10-jpeg"
# Epochs of the cells that are given more time than the default recipe takes, or less.
MORE, LONG, MNIST_48, FASHION = 6, 35, 12, 6
CIFAR_12, CIFAR_48, CIFAR_SOON, CIFAR_UNSEEN = 13, 15, 3, 4
FASHION_SECONDS = 102.0  # that the recipe before took to mAP .850, on the Xeon of 2026-11-27, see LOG.md
SOON = 400.0  # seconds: a third of what the recipe before took to mAP .79, on the same machine
CLASSES = 10  # of MNIST and CIFAR-10, about equally large
NONE = "-"  # of a figure that a row does not have
README = Path(__file__).parent.parent / "README.md"
MARKS = ("<!-- made by benchmarks/quality.py -->", "<!-- end -->")


Kind = Literal["best", "avx2", "gpu"]


def kind_of(figures: Mapping[str, str]) -> Kind:
    """What a row was measured on: a processor that has AVX2 and no more, one that has more, or a GPU."""
    if "device" in figures:
        return "gpu"
    return "avx2" if figures.get("isa") == "avx2" else "best"


def _map(result: TrainResult) -> float:
    assert result.map is not None  # its pictures are there
    return result.map


@dataclass(frozen=True)
class Cell:
    """A training and one figure of it, measured under the protocol of the training or another of the same splits."""

    group: str
    config: TrainConfig
    measure: Callable[[TrainResult], float] = _map
    protocol: ProtocolName | None = None

    @property
    def name(self) -> str:
        """How its rows begin."""
        plain = " without centers" if self.config.centers == "none" else ""
        return f"quality {self.group}{plain}, seed {self.config.seed}"

    @cached_property
    def code(self) -> str:
        """Eight digits that change with what the figures depend on."""
        without = WITHOUT | NOT_TAKEN
        of_baseline = digest(["seen_and_unseen"], without, "baseline") if self.config.hold_out_classes else ""
        return digest(BEGINS, without, more=f"{self.config!r} {self.protocol} {of_baseline}")

    def rows(self, *kinds: Kind, timed: bool = False) -> list[dict[str, str]]:
        """Its valid rows of these kinds, newest last, or those alone whose seconds count: the figures by name."""
        found = []
        for line in RESULTS.read_text().splitlines():
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) > 3 and cells[2] == self.name:
                figures = dict(part.rsplit(" ", 1) for part in cells[3].split(", ") if " " in part)
                valid = figures.get("code") == self.code and kind_of(figures) in kinds
                if valid and not (timed and figures.get("seconds") == NONE):
                    found.append(figures)
        return found


def published_map(result: TrainResult) -> float:
    """MAP within the first 5,000, of 1,000 test pictures, a hundred of each class, in the training pictures."""
    queries = result.run.codes("test")
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(np.flatnonzero(queries.labels == label))[:100] for label in range(10)])
    sample = CodeSet(queries.bits, queries.packed[rows], queries.labels[rows], queries.classes, ())
    return evaluate(sample, result.run.codes("train"), at=[5000]).map_at[5000]


def without_mirror(result: TrainResult, splits: Splits) -> Callable[[str], CodeSet] | None:
    """Codes of a split by the same weights without averaging over mirror images, made once; None if there are none."""
    model = result.run.model
    if not model.mirror:
        return None
    plain: dict[str, Any] = vars(model) | {"mirror": False}
    net = HashNet(ModelConfig(**plain))
    net.load_state_dict(result.run.load_model().state_dict())
    net = net.eval().to(choose_device(result.run.config.device))
    parts = splits.parts()
    return cache(lambda split: encode_dataset(net, parts[split]))


@cache
def cells() -> list[Cell]:
    """All cells of the table, in the order they are to be measured."""
    mnist = TrainConfig(data="mnist", bits=8, tensorboard=False)
    fashion = replace(mnist, data="fashion-mnist", epochs=FASHION)
    cifar = TrainConfig(data=CIFAR, protocol="paper", bits=12, epochs=CIFAR_12, tensorboard=False)
    cifar48 = replace(cifar, bits=48, epochs=CIFAR_48)
    made = [Cell("mnist-8", replace(mnist, seed=seed)) for seed in range(5)]
    made += [Cell("mnist-8-more", replace(mnist, epochs=MORE)), Cell("mnist-8-long", replace(mnist, epochs=LONG))]
    made += [
        Cell(f"mnist-{bits}", replace(mnist, bits=bits, epochs=MNIST_48), measure=published_map) for bits in (12, 48)
    ]
    for seed in range(5):
        made += [Cell("fashion-8", replace(fashion, seed=seed, centers=kind)) for kind in ("auto", "none")]
    made += [Cell("cifar-12", cifar), Cell("cifar-12", replace(cifar, centers="none"))]
    made += [Cell(f"cifar-{bits}", replace(cifar48, bits=bits)) for bits in (48, 24, 36)]
    made += [Cell("cifar-48-soon", replace(cifar48, epochs=CIFAR_SOON))]
    made += [Cell("cifar-48-cifar10-2", cifar48, protocol="cifar10-2")]
    made += [Cell("mnist-unseen", replace(mnist, hold_out_classes=3))]
    made += [Cell("cifar-unseen", replace(cifar, hold_out_classes=2, epochs=CIFAR_UNSEEN))]
    for seed in (1, 2):
        other = replace(cifar48, seed=seed)
        made += [Cell("cifar-48", other), Cell("cifar-48-cifar10-2", other, protocol="cifar10-2")]
        made += [Cell("cifar-12", replace(cifar, seed=seed))]
    return made


def run(shared: Sequence[Cell], avx2: bool, busy: bool) -> None:
    """Train what these cells share, measure each, append their rows."""
    config = replace(shared[0].config, device="cpu", amp=False) if avx2 else shared[0].config
    device = choose_device(config.device).type
    on = {"isa": isa()} if device == "cpu" else {"device": device}
    splits = load_splits(config)
    forget_peak()
    with tempfile.TemporaryDirectory() as folder:
        if config.hold_out_classes:
            figures = seen_and_unseen(config, splits, f"{folder}/run")
            _append(shared[0], figures | {"epochs": f"{config.epochs or 'default'}"} | on, avx2, busy)
            return
        result = train(config, splits, out=f"{folder}/run")
        bound, memory, recipe = result.table.bound, peak(), result.run.config
        plain = without_mirror(result, splits)
        for cell in shared:
            score = evaluate_run(result.run, cell.protocol).map if cell.protocol else cell.measure(result)
            codes = plain and compared(cell.protocol or recipe.protocol, plain)
            figures = {
                "mAP": f"{score:.4f}",
                **({"plain": f"{mean_average_precision(*codes):.4f}"} if codes else {}),
                "seconds": NONE if busy else f"{result.seconds:.1f}",
                "tflop": NONE if result.tflop is None else f"{result.tflop:.2f}",
                "epochs": f"{recipe.epochs}",
                "distance": f"{result.table.min_class_distance}",
                "limit": f"{bound.distance if bound else NONE}",
                "format": number_format(recipe.amp),
                "threads": f"{recipe.threads}",
                "MiB": f"{memory}",
            }
            _append(cell, figures | on, avx2, busy)


def _append(cell: Cell, figures: Mapping[str, str], avx2: bool, busy: bool) -> None:
    sys.argv[1:] = ["--only", cell.group] + ["--avx2"] * avx2 + ["--busy"] * busy  # which alone would do
    told = ", ".join(f"{name} {value}" for name, value in {**figures, "code": cell.code}.items())
    append(cell.name, told, figures.get("device", "cpu"))


@dataclass(frozen=True)
class Line:
    """One line of the README's table: what is asked, and whether the rows have it."""

    what: str
    asked: str
    reached: str
    fine: bool | None  # None: not measured
    rows: Sequence[Mapping[str, str]] = ()  # that it is made of


@dataclass(frozen=True)
class Asked:
    """What a line of the table asks of a group of cells.

    Attributes:
        what: in words.
        group: of the cells.
        score: mean of their mAP, at least.
        seconds: that each may take at most; rows of a GPU count where there is no such limit.
        tflop: that each may take at most.
        distance: of the closest classes, at least.
        seeds: how many are asked for.
        kind: what they are measured on.
    """

    what: str
    group: str
    score: float | None = None
    seconds: float | None = None
    tflop: float | None = None
    distance: int | None = None
    seeds: int = 1
    kind: Kind = "best"

    def line(self) -> Line:
        """What the rows have of it."""
        kinds: list[Kind] = [self.kind] if self.seconds is not None else ["gpu", self.kind]
        rows = list(newest(self.group, kinds, timed=self.seconds is not None).values())
        asked = "" if self.score is None else f"{self.score:.4g}"
        asked += "" if self.seconds is None else f" in {self.seconds:.0f} s"
        asked += "" if self.tflop is None else f", {self.tflop:g} TFLOP"
        asked += "" if self.distance is None else f", distance {self.distance}"
        asked = asked.removeprefix(", ")
        if len(rows) < self.seeds:
            return Line(self.what, asked, f"{len(rows)} of {self.seeds} measured", None)

        def of(name: str) -> list[float]:
            return [float(row[name]) for row in rows]

        fine, reached = True, []
        if self.score is not None:
            fine = mean(of("mAP")) >= self.score
            plain = (
                f" ({mean(of('plain')):.4f} without the mirror image)" if all("plain" in row for row in rows) else ""
            )
            seconds = [float(row["seconds"]) for row in rows if "device" not in row and row["seconds"] != NONE]
            took = f" in {_range(seconds, '.0f')} s" if seconds else ""
            more = f", mean of {len(rows)} seeds" if len(rows) > self.seeds else ""
            reached.append(f"**{mean(of('mAP')):.4f}**{plain}{took}{more}")
        if self.seconds is not None:
            fine &= max(of("seconds")) <= self.seconds
        if self.tflop is not None:
            fine &= max(of("tflop")) <= self.tflop
        if self.distance is not None:
            fine &= min(of("distance")) >= self.distance
            reached.append("distance **" + ", ".join(f"{value:.0f}" for value in of("distance")) + "**")
        return Line(self.what, asked, ", ".join(reached), fine, rows)


def newest(group: str, kinds: Sequence[Kind], centers: bool = True, timed: bool = False) -> dict[int, dict[str, str]]:
    """The newest row of each cell of a group, with centers or without, by seed: of the last of these kinds it has."""
    found = {}
    for cell in cells():
        if cell.group == group and (cell.config.centers != "none") == centers:
            for kind in kinds:
                for row in cell.rows(kind, timed=timed):
                    found[cell.config.seed] = row
    return found


def _range(values: Sequence[float], form: str) -> str:
    least, most = format(min(values), form), format(max(values), form)
    return least if least == most else f"{least} to {most}"


@dataclass(frozen=True)
class AgainstNone:
    """How much more hash centers are to come to than none, over so many seeds that have both."""

    what: str
    group: str
    gain: float
    seeds: int

    def line(self) -> Line:
        """What the rows have of it."""
        kinds: list[Kind] = ["gpu", "best"]
        centers, none = newest(self.group, kinds), newest(self.group, kinds, centers=False)
        both = sorted(centers.keys() & none.keys())
        asked = f"{self.gain:+.3f}"
        if len(both) < self.seeds:
            return Line(self.what, asked, f"{len(both)} of {self.seeds} pairs measured", None)
        mine, other = (mean(float(rows[seed]["mAP"]) for seed in both) for rows in (centers, none))
        text = f"**{mine - other:+.4f}** ({mine:.4f}, {other:.4f} without)"
        return Line(self.what, asked, text, mine - other >= self.gain, [centers[seed] for seed in both])


def wanted() -> Iterator[Asked | AgainstNone]:
    """The lines of the table."""
    mnist, cifar = "MNIST, 8 bits: mAP", "CIFAR-10 JPEGs, {} bits: mAP"
    held = "MNIST, 8 bits, held to AVX2: mAP"
    yield Asked(f"{held}, mean of 5 seeds", "mnist-8", 0.991, 60, 5, distance=4, seeds=5, kind="avx2")
    yield Asked(f"{mnist}, mean of 5 seeds", "mnist-8", 0.990, 30, distance=4, seeds=5)
    yield Asked(f"{mnist}, more epochs", "mnist-8-more", 0.9935, 75)
    yield Asked(f"{mnist}, longer", "mnist-8-long", 0.9955, tflop=40)
    for bits, score in ((12, 0.990), (48, 0.995)):
        yield Asked(f"MNIST, {bits} bits: mAP@5000, 1,000 queries", f"mnist-{bits}", score, 600)
    fashion = "Fashion-MNIST, 8 bits: mAP, mean of 5 seeds"
    yield Asked(fashion, "fashion-8", 0.870, FASHION_SECONDS, distance=4, seeds=5)
    yield AgainstNone("Fashion-MNIST, 8 bits: mAP, hash centers against none", "fashion-8", -0.002, 5)
    yield Asked(f"{cifar.format(12)}, protocol paper", "cifar-12", 0.85, tflop=350, distance=6)
    for bits, score in ((24, 0.86), (36, 0.865), (48, 0.87)):
        yield Asked(f"{cifar.format(bits)}, protocol paper", f"cifar-{bits}", score, tflop=400)
    yield Asked(f"{cifar.format(48)}, protocol cifar10-2", "cifar-48-cifar10-2", 0.945, tflop=400)
    yield Asked(f"{cifar.format(48)}, protocol paper, soon", "cifar-48-soon", 0.77, SOON)
    yield AgainstNone("CIFAR-10 JPEGs, 12 bits: mAP, hash centers against none", "cifar-12", 0.0, 1)


def unseen_lines() -> Iterator[str]:
    """What came of classes held out, beside the classifier."""
    names = {"dsh": "dsh", "pca": "classifier, sign of a PCA", "id": "classifier, class number as bits"}
    for cell in cells():
        data, held_out = cell.group.removesuffix("-unseen"), cell.config.hold_out_classes
        for figures in (cell.rows("gpu") + cell.rows("avx2", "best"))[-1:] if held_out else []:
            for kind, spoken in names.items():
                values = " | ".join(figures[f"{kind} {classes}"] for classes in ("seen", "unseen", "all"))
                yield f"| {data} | {spoken}, {figures[f'{kind} bits']} bits | {values} |"
            chance = " | ".join(f"{1 / among:.4f}" for among in (CLASSES - held_out, held_out, CLASSES))
            yield f"| {data} | an order at random | {chance} |"


def _tflop(rows: Sequence[Mapping[str, str]]) -> str:
    """What a training of these cost."""
    return _range([float(row["tflop"]) for row in rows], ".3g") if rows else ""


def _on(rows: Sequence[Mapping[str, str]]) -> str:
    """What they were measured on: the newest instructions, or a GPU; and in which numbers."""
    return ", ".join(sorted({f"{row.get('isa', 'a GPU')}, {row.get('format', '')}" for row in rows}))


def write_table() -> None:
    """Put the table between its marks in the README."""
    told = {True: "yes", False: "**no**", None: "-"}
    text = ["| what | asked | reached | TFLOP | measured on | |", "| --- | --- | --- | --- | --- | --- |"]
    text += [
        f"| {line.what} | {line.asked} | {line.reached} | {_tflop(line.rows)} | {_on(line.rows)} | {told[line.fine]} |"
        for line in (one.line() for one in wanted())
    ]
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
    parser.add_argument("--avx2", action="store_true", help="hold the processor to AVX2, and train in float32")
    parser.add_argument("--busy", action="store_true", help="other programs run meanwhile: leave seconds out")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.avx2 and not arguments.table:
        hold_to_avx2()
    on_gpu = not arguments.avx2 and choose_device("auto").type != "cpu"
    here: Kind = "gpu" if on_gpu else "avx2" if isa() == "avx2" else "best"
    timed = set() if arguments.busy else {one.group for one in wanted() if isinstance(one, Asked) and one.seconds}
    trainings: dict[TrainConfig, list[Cell]] = {}
    for cell in [] if arguments.table else cells():
        if arguments.only and cell.group not in arguments.only:
            continue
        there = cell.rows(here, timed=cell.group in timed)
        if (arguments.seeds and cell.config.seed not in arguments.seeds) or (there and not arguments.again):
            continue
        if cell.config.data == CIFAR and not Path(CIFAR).is_dir():
            print(f"{cell.name}: left out, there is no folder {CIFAR} here")
            continue
        trainings.setdefault(cell.config, []).append(cell)
    for shared in trainings.values():
        # a process each, for what one leaves behind would count as memory of the next
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            alone.submit(run, shared, arguments.avx2, arguments.busy).result()
    write_table()


if __name__ == "__main__":
    main()
