"""What codes are worth on features that everyone has: a row a way, length and seed, appended to RESULTS.md.

    python benchmarks/clipart.py FOLDER                       # makes what it is measured on
    python benchmarks/features.py FOLDER                      # all rows not yet measured but those of pictures
    python benchmarks/features.py FOLDER --pictures           # those of networks trained on the pictures too: hours
    python benchmarks/features.py FOLDER --only dsh-32 itq-32 --seeds 0
    python benchmarks/features.py FOLDER --search             # milliseconds a query at 1,000,000 codes
    python benchmarks/features.py --table                     # print the table from the rows, measure nothing

A seed draws the classes that are held out, and of the others a fifth of each to test on and a tenth to validate on
(`data/splits.py`). Seen: test pictures of classes trained on, looked up in the training pictures. Unseen: those of
classes held out, looked up in the other pictures of these. mAP is tie-aware. Drawings are unevenly many of a class,
1,529 to 24, so beside the mean over queries each row has the mean over classes.

Few: half of the drawings are stars and icons, which any network tells apart; with at most 50 of a class to learn from
they count for no more than others, and it is as in a folder that somebody has collected.

What learns without labels learns from the training pictures, as `dsh` does. Signs are those of features less their
mean over training pictures, for features of this network are means of what is never below 0.

A row is valid while the code it depends on is unchanged (`_depends.py`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from _depends import digest
from _report import RESULTS, append
from baseline import classifier
from clipart import BACKBONE, FEATURES, LABELS, WEIGHTS
from numpy.typing import NDArray
from quality import WITHOUT as OF_QUALITY

from dsh_cli import CodeSet, TrainConfig, evaluate, load_splits, train
from dsh_cli.analysis.protocols import compared
from dsh_cli.analysis.retrieval import tie_aware_ap
from dsh_cli.codes.bits import binarize, pack
from dsh_cli.codes.linear import LinearCodes, itq, pca, rotation
from dsh_cli.codes.nearest import nearest
from dsh_cli.config import Among
from dsh_cli.data.splits import Splits
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.training.recipe import settle
from dsh_cli.training.start import deterministic

WITHOUT = OF_QUALITY | {"with_features", "Features"}  # for no network here stays as it is: features are in a file
SEEDS = (0, 1, 2)
HELD_OUT = 8  # classes of 38
AMONG: tuple[Among, ...] = ("seen", "unseen")
FINE_TUNING = {"epochs": 4, "lr": 1e-3}  # of a network that knows much already: the default rate would undo it
FEW = 50  # pictures of a class, as in a small folder of photographs
NONE = "not measured"
ROWS, K, REPEATS = 1_000_000, 10, 21  # of a search
BLOCK = 100_000  # vectors of floats that are searched at once, as often as it takes to come to `ROWS`
README = Path(__file__).parent.parent / "README.md"
MARKS = ("<!-- made by benchmarks/features.py -->", "<!-- end -->")

Figures = dict[str, str]


@dataclass(frozen=True)
class Work:
    """A measurement asked for: where the data lie, by which seed, with how many bits."""

    folder: Path
    seed: int
    bits: int

    def config(self, file: str, **changes: Any) -> TrainConfig:
        """A training on a file of the folder."""
        data = str(self.folder / file)
        plain = TrainConfig(data, hold_out_classes=HELD_OUT, bits=max(1, self.bits), seed=self.seed, tensorboard=False)
        return replace(plain, **changes)

    def splits(self) -> Splits:
        """The features, split."""
        return load_splits(self.config(FEATURES))


def cosine(work: Work) -> Figures:
    """The features themselves, by the cosine of their angle."""
    splits, figures = work.splits(), Figures()
    parts = {name: _vectors(part) for name, part in splits.parts().items()}
    parts = {name: part / np.linalg.norm(part, axis=1, keepdims=True) for name, part in parts.items()}
    unseen = np.isin(splits.test.labels, splits.parts()["unseen"].labels)
    for among, database, queries in (("seen", "train", ~unseen), ("unseen", "unseen", unseen)):
        labels = splits.test.labels[queries]
        relevant = labels[:, None] == splits.parts()[database].labels
        ap = ranked_ap(parts["test"][queries] @ parts[database].T, relevant)
        figures |= _of_queries(among, ap, labels)
    return figures


def ranked_ap(scores: NDArray[np.floating], relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(q,) tie-aware average precision of (q, n) scores, the largest first, and which items are relevant."""
    found = np.empty(len(scores))
    for query, (score, fits) in enumerate(zip(scores, relevant, strict=True)):
        _, group = np.unique(-score, return_inverse=True)
        counts = np.bincount(group)
        hits = np.bincount(group, weights=fits, minlength=len(counts)).astype(np.int64)
        found[query] = tie_aware_ap(counts[None], hits[None])[0]
    return found


def sign(work: Work) -> Figures:
    """A bit a dimension: whether it is above its mean."""
    splits = work.splits()
    average = _vectors(splits.train).mean(axis=0)
    return _measured(lambda split: _coded(_vectors(splits.parts()[split]) - average, splits, split))


def principal(work: Work) -> Figures:
    """Signs of the principal directions."""
    return _linear(work, lambda vectors: pca(vectors, work.bits))


def rotated(work: Work) -> Figures:
    """Signs of the principal directions, turned at random."""
    return _linear(work, lambda vectors: rotation(vectors, work.bits, work.seed))


def quantized(work: Work) -> Figures:
    """Signs of the principal directions, turned so that they lose least: ITQ."""
    return _linear(work, lambda vectors: itq(vectors, work.bits, work.seed))


def _linear(work: Work, learn: Callable[[NDArray[np.floating]], LinearCodes]) -> Figures:
    splits = work.splits()
    started = time.perf_counter()
    codes = learn(_vectors(splits.train))
    seconds = time.perf_counter() - started
    return _measured(lambda split: _coded(codes(_vectors(splits.parts()[split])), splits, split)) | _took(seconds)


def on_features(work: Work) -> Figures:
    """`dsh train features.npz`, by its defaults."""
    return _trained(work.config(FEATURES))


def fine_tuned(work: Work) -> Figures:
    """`dsh train drawings.csv --backbone timm:... --weights FILE`: the network of the features learns on."""
    more = {"backbone": BACKBONE, "weights": str(work.folder / WEIGHTS), **FINE_TUNING}
    return _trained(work.config(LABELS, **more))


def from_nothing(work: Work) -> Figures:
    """`dsh train drawings.csv`, by its defaults."""
    return _trained(work.config(LABELS))


def few_on_features(work: Work) -> Figures:
    """`on_features`, with `FEW` pictures of a class to learn from, and to look up in."""
    return _trained(work.config(FEATURES), FEW)


def few_from_nothing(work: Work) -> Figures:
    """`from_nothing`, likewise."""
    return _trained(work.config(LABELS), FEW)


def _trained(config: TrainConfig, most: int | None = None) -> Figures:
    """What a training comes to, on so many pictures of a class at most."""
    splits = load_splits(config)
    if most is not None:
        splits = replace(splits, train=splits.train.take(_drawn(splits.train.labels, most, config.seed)))
    with tempfile.TemporaryDirectory() as folder:
        result = train(config, splits, out=f"{folder}/run")
        run = result.run
        more = {"epochs": f"{run.config.epochs}", "distance": f"{result.table.min_class_distance}"}
        return _measured(lambda split: run.codes(split, "relaxed")) | _took(result.seconds) | more


def _drawn(labels: NDArray[np.int64], most: int, seed: int) -> NDArray[np.bool_]:
    """Which (n,) pictures are so many of each class at most, drawn by a seed."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        chosen[order[labels[order] == label][:most]] = True
    return chosen


def class_number(work: Work) -> Figures:
    """A classifier on the features by the recipe of `dsh`, and the number of the class it predicts as a code."""
    config = work.config(FEATURES)
    splits = load_splits(config)
    recipe = settle(config, splits)
    started = time.perf_counter()
    with deterministic(recipe.seed, recipe.threads):
        encoder = TorchEncoder(classifier(recipe, splits))
    seconds = time.perf_counter() - started
    bits = number_bits(splits)

    def codes(split: str) -> CodeSet:
        features = splits.parts()[split].features
        assert features is not None
        numbers = encoder.of_features(features).argmax(axis=1)
        return _packed((numbers[:, None] >> np.arange(bits)) & 1 > 0, splits, split)

    return _measured(codes) | _took(seconds) | {"bits": f"{bits}"}


def number_bits(splits: Splits) -> int:
    """Bits of the number of a class that is trained on."""
    return max(1, (len(np.unique(splits.train.labels)) - 1).bit_length())


def _vectors(part: Any) -> NDArray[np.float32]:
    """(n, d) features of a split."""
    found: NDArray[np.float32] = part.features[:, 0]
    return found


def _coded(outputs: NDArray[np.floating], splits: Splits, split: str) -> CodeSet:
    return replace(_packed(binarize(outputs), splits, split), relaxed=outputs.astype(np.float16))


def _packed(bits: NDArray[np.bool_], splits: Splits, split: str) -> CodeSet:
    part = splits.parts()[split]
    return CodeSet(bits.shape[1], pack(bits), part.labels, part.classes, ())


def _measured(codes: Callable[[str], CodeSet]) -> Figures:
    """What the codes of the splits are worth, on seen and on unseen classes."""
    figures = {"bits": f"{codes('test').bits}"}
    for among in AMONG:
        found = evaluate(*compared("test-vs-train", codes, True, among))
        each = [score.map for score in found.per_class if score.map is not None]
        figures |= {among: f"{found.map:.4f}", f"{among} by class": f"{mean(each):.4f}"}
        again = rescored(codes, among)
        figures |= {} if again is None else {f"{among} rescored": f"{again:.4f}"}
    return figures


def rescored(codes: Callable[[str], CodeSet], among: Among) -> float | None:
    """MAP where the nearest by Hamming distance are put in order by outputs, as `dsh evaluate --rescore` does it."""
    queries, database = compared("test-vs-train", codes, True, among)
    return None if queries.relaxed is None else evaluate(queries, database, rescore="outputs").map


def _of_queries(among: str, ap: NDArray[np.float64], labels: NDArray[np.int64]) -> Figures:
    by_class = mean(float(ap[labels == label].mean()) for label in np.unique(labels))
    return {among: f"{ap.mean():.4f}", f"{among} by class": f"{by_class:.4f}"}


def _took(seconds: float) -> Figures:
    return {"seconds": f"{seconds:.1f}"}


@dataclass(frozen=True)
class Cell:
    """A way to codes, and how long these are.

    Attributes:
        way: the function that measures it.
        short: how its rows are called.
        what: in the table.
        bits: of a code; 0 where the way itself says how many, or there are no bits.
        of_pictures: whether a network is trained on the pictures themselves, which takes long.
    """

    way: Callable[[Work], Figures]
    short: str
    what: str
    bits: int = 0
    of_pictures: bool = False

    @property
    def name(self) -> str:
        """How it is asked for, and how its rows begin."""
        return f"{self.short}-{self.bits}" if self.bits else self.short

    @property
    def code(self) -> str:
        """Eight digits that change with what the figures depend on."""
        return digest([self.way.__name__], WITHOUT, "features", more=f"{self.bits} {HELD_OUT} {FINE_TUNING}")

    def rows(self) -> dict[int, Figures]:
        """The newest valid row of each seed."""
        return {
            int(what.rpartition(" ")[2]): figures
            for what, figures in _rows(f"features {self.name}, seed ")
            if figures.get("code") == self.code
        }


def cells() -> list[Cell]:
    """The lines of the table."""
    made = [Cell(cosine, "cosine", "float features, cosine"), Cell(sign, "sign", "sign of the features")]
    for way, short, what in (
        (principal, "pca", "PCA"),
        (rotated, "rotation", "PCA, turned at random"),
        (quantized, "itq", "ITQ"),
    ):
        made += [Cell(way, short, what, bits) for bits in (32, 64)]
    made += [Cell(on_features, "dsh", "dsh on the features", bits) for bits in (16, 32, 64)]
    made += [Cell(fine_tuned, "fine-tuned", "dsh, fine-tuned from them", 32, of_pictures=True)]
    made += [Cell(from_nothing, "from-nothing", "dsh from nothing", 32, of_pictures=True)]
    fewer = f", {FEW} pictures a class at most"
    made += [Cell(few_on_features, "few", f"dsh on the features{fewer}", 32)]
    made += [Cell(few_from_nothing, "few-from-nothing", f"dsh from nothing{fewer}", 32, of_pictures=True)]
    return [*made, Cell(class_number, "class-number", "classifier, class number as bits")]


def _rows(begins: str) -> Iterator[tuple[str, Figures]]:
    """What rows that begin so are of, and their figures by name."""
    for line in RESULTS.read_text().splitlines():
        columns = [column.strip() for column in line.split("|")]
        if len(columns) > 3 and columns[2].startswith(begins):
            yield columns[2], dict(part.rsplit(" ", 1) for part in columns[3].split(", ") if " " in part)


def describe(work: Work) -> None:
    """A row of what a seed holds out, and how many pictures are where; once."""
    what = f"features split, seed {work.seed}"
    if not any(True for _ in _rows(what)):
        splits = work.splits()
        counts = ", ".join(f"{name} {len(part)}" for name, part in splits.parts().items())
        held = [splits.test.classes[label] for label in np.unique(splits.parts()["unseen"].labels)]
        append(what, f"{counts}; held out: {' '.join(held)}")


def search() -> None:
    """Rows of how long the nearest of a million takes to find, one query at once: codes, and floats by their cosine."""
    rng = np.random.default_rng(0)
    for bits in (5, 16, 32, 64, 1280):
        codes = rng.integers(0, 256, (ROWS, -(-bits // 8)), np.uint8)
        queries = rng.integers(0, 256, (REPEATS, codes.shape[1]), np.uint8)
        _append_search(f"{bits} bits", [partial(nearest, codes, query[None], bits, K) for query in queries])

    import faiss

    width = 1280
    block = faiss.IndexFlatIP(width)
    block.add(rng.standard_normal((BLOCK, width), np.float32))
    wanted = rng.standard_normal((REPEATS, width), np.float32)

    def all_blocks(query: NDArray[np.float32]) -> None:
        for _ in range(ROWS // BLOCK):
            block.search(query[None], K)

    _append_search(f"{width} floats", [partial(all_blocks, query) for query in wanted])


def _append_search(what: str, searches: Sequence[Callable[[], object]]) -> None:
    took = []
    for work in searches:
        started = time.perf_counter()
        work()
        took.append(1e3 * (time.perf_counter() - started))
    sys.argv[1:] = ["FOLDER", "--search"]
    append(f"features search, {what}", f"ms {median(took):.2f}, best {min(took):.2f}")


def lines() -> Iterator[str]:
    """The table, from the valid rows: means over seeds."""
    yield (
        "| codes | bits | bytes each | mAP seen classes | by class | mAP unseen classes | by class "
        "| the same rescored: seen, unseen | ms a query at 1,000,000 | seeds |"
    )
    yield f"|{' --- |' * 10}"
    for cell in cells():
        rows = list(cell.rows().values())
        bits = cell.bits or int(rows[0].get("bits", 0)) if rows else cell.bits
        floats = cell.way is cosine
        size = "5,120" if floats else f"{-(-bits // 8)}" if bits else ""
        times = [figures for _, figures in _rows(f"features search, {'1280 floats' if floats else f'{bits} bits'}")]
        again = [_mean(rows, f"{among} rescored") for among in AMONG]
        columns = [
            cell.what,
            f"{bits}" if bits else "",
            size,
            *(column for among in AMONG for column in (_mean(rows, among), _mean(rows, f"{among} by class"))),
            "-" if floats else NONE if NONE in again else ", ".join(again),
            times[-1]["ms"] if times else NONE,
            f"{len(rows)}",
        ]
        yield f"| {' | '.join(columns)} |"


def _mean(rows: Sequence[Mapping[str, str]], name: str) -> str:
    """Of a figure over seeds, with the least and the most where there are more than one."""
    values = [float(row[name]) for row in rows if name in row]
    if not values:
        return NONE
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def write_table() -> None:
    """Print the table, and put it between its marks in the README where it has these."""
    text = list(lines())
    print("\n".join(text))
    whole = README.read_text()
    if MARKS[0] in whole:
        before, _, rest = whole.partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        README.write_text(before + "\n".join([MARKS[0], *text, MARKS[1]]) + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="made by clipart.py")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="such as itq-32, dsh-16, cosine")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--again", action="store_true", help="also rows that there are; the newest counts")
    parser.add_argument("--pictures", action="store_true", help="also networks trained on the pictures themselves")
    parser.add_argument("--search", action="store_true", help="measure the search alone")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.search:
        search()
    elif not arguments.table:
        folder: Path | None = arguments.folder
        if folder is None or not (folder / FEATURES).exists():
            sys.exit(f"there is no {FEATURES} in {folder}; make one with: python benchmarks/clipart.py FOLDER")
        for seed in arguments.seeds:
            for cell in cells():
                wanted = cell.name in arguments.only if arguments.only else arguments.pictures or not cell.of_pictures
                if wanted and (arguments.again or seed not in cell.rows()):
                    sys.argv[1:] = ["FOLDER", "--only", cell.name, "--seeds", str(seed)]  # which alone would do
                    work = Work(folder, seed, cell.bits)
                    describe(work)
                    figures = cell.way(work) | {"code": cell.code}
                    told = ", ".join(f"{name} {value}" for name, value in figures.items())
                    append(f"features {cell.name}, seed {seed}", told)
    write_table()


if __name__ == "__main__":
    main()
