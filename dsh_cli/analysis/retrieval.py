"""Retrieval measured with ties treated honestly: mAP, precision, radius lookup, curves. NumPy only, until it is much.

With k bits there are k + 1 distances, so rankings tie massively, and a measure that sorts depends on its sort. All
measures here follow from how many items, and how many relevant ones, lie at each distance of each query. Where a
measure depends on the order of ties, it is the expectation over random orders. A rescored ranking (`rescored.py`) is
groups of ties too, only smaller ones, and is measured by the same formulas.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from dsh_cli.analysis.counting import Counts, Tally, tallies
from dsh_cli.analysis.health import CodeHealth, code_health
from dsh_cli.analysis.rescored import POOL, Ranked, rankings
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import Among, Rescore
from dsh_cli.errors import DataError, UsageError

PRECISION_AT = (1, 10, 100)
RADII = (0, 1, 2)
MAP_AT = (1000,)  # as most published tables of MNIST and CIFAR-10 have it, where they do not take all
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Within:
    """Looking up all within a Hamming radius: means over the queries, an empty ball counted as 0."""

    radius: int
    precision: float
    recall: float
    empty: int  # queries with nothing that near


@dataclass(frozen=True)
class ClassScore:
    """mAP of the queries of one class; None where it has none."""

    label: str
    map: float | None


@dataclass(frozen=True)
class Rescoring:
    """How a ranking was rescored, and what it was worth before: by Hamming distance alone."""

    by: Rescore  # what the outputs of a query were held against: outputs, or codes
    pool: int  # pictures ordered anew for each query, and all as near as the last of them
    pooled: float  # pictures ordered anew, so, in the mean
    map: float  # as the three of `Evaluation`
    map_best: float
    map_worst: float


@dataclass(frozen=True)
class Evaluation:
    """What a set of codes is worth for retrieval.

    All but `curve`, `per_class` and `health` are means over the queries; those with nothing relevant score 0 and count.
    Where there is a `rescoring`, all measures of a ranking are those of the rescored one; `curve` and `health` are of
    the codes in any case.
    """

    protocol: str
    among: Among  # classes of queries and database
    bits: int
    queries: int
    database: int
    itself: bool  # whether the queries are the database; each is then left out of its own ranking
    map: float  # tie-aware: in expectation over random orders of ties
    map_best: float  # relevant first in each tie
    map_worst: float  # relevant last
    map_at: Mapping[int, float]  # within the first K; divided by min(K, relevant)
    precision_at: Mapping[int, float]  # among the first K, or all where there are fewer
    curve: tuple[Within, ...]  # radius 0 to k
    per_class: tuple[ClassScore, ...]
    health: CodeHealth  # of the database
    unmatched: tuple[str, ...]  # classes of queries that have nothing relevant in the database
    seconds: float = field(compare=False)
    rescoring: Rescoring | None = None

    @property
    def radius(self) -> dict[int, Within]:
        """The curve at the radii people look up; where there are fewer bits, all is within k."""
        return {radius: self.curve[min(radius, self.bits)] for radius in RADII}

    def figures(self) -> dict[str, float]:
        """Every measure that is one number, by a dotted name: those of which runs have a mean."""
        figures = {"map": self.map, "map_best": self.map_best, "map_worst": self.map_worst}
        figures |= {f"map_at.{k}": value for k, value in self.map_at.items()}
        figures |= {f"precision_at.{k}": value for k, value in self.precision_at.items()}
        for radius, within in self.radius.items():
            figures |= {f"radius.{radius}.precision": within.precision, f"radius.{radius}.recall": within.recall}
            figures |= {f"radius.{radius}.empty": within.empty}
        if self.rescoring is not None:
            figures |= {f"hamming.{name}": getattr(self.rescoring, name) for name in ("map", "map_best", "map_worst")}
        return figures


@dataclass(frozen=True)
class Spread:
    """Mean of a figure over runs, and its sample standard deviation (n - 1)."""

    mean: float
    std: float


def evaluate(
    queries: CodeSet,
    database: CodeSet | None = None,
    *,
    at: Sequence[int] = MAP_AT,
    protocol: str = "given",
    rescore: Rescore | None = None,
    pool: int = POOL,
) -> Evaluation:
    """Measure retrieval of `database` codes by `queries`; without a database, by themselves, self-matches excluded.

    10,000 queries against 60,000 codes take about half a second on two cores; `benchmarks/evaluation.py`.

    Args:
        queries: codes with labels.
        database: codes of the same length and classes.
        at: each K to measure mAP@K for.
        protocol: what the comparison is called.
        rescore: order the nearest of each query anew, by the query's outputs against theirs or, `asymmetric`, against
            their codes; see `codes.rescoring`.
        pool: so many of the nearest, and all as near as the last of them.

    Raises:
        UsageError: codes or classes of the two do not go together, or a K or the pool is below 1.
        DataError: there is nothing to look up, or nothing to look it up in; or no outputs to rescore by.
    """
    started = time.perf_counter()
    if not all(k >= 1 for k in at):
        raise UsageError(f"`at` {min(at)}: mAP is over the first K pictures, 1 or more")
    if pool < 1:
        raise UsageError(f"`pool` {pool}: 1 picture or more")
    items = queries if database is None else database
    reachable = len(items) - (database is None)
    if not len(queries) or reachable < 1:
        raise DataError(
            f"nothing to evaluate: {len(queries):,} queries, each against {max(0, reachable):,} pictures; "
            "choose larger splits, or folders with pictures"
        )
    total = len(queries)
    blocks = [(tally.labels, tally.weights, _measures(tally, at)) for tally in tallies(queries, database)]
    label, weight, of = _put_together(blocks)
    precision, recall, empty = (weight @ of[name] / total for name in ("precision", "recall", "empty"))  # (k + 1,)
    rescoring = None
    if rescore is not None:
        before = [_mean(of[name], weight) for name in ("map", "map_best", "map_worst")]
        label, weight, of, pooled = _rescored(rankings(queries, database, rescore, pool), at)
        rescoring = Rescoring(rescore, pool, pooled / total, *before)
    held = np.bincount(items.labels[items.labels >= 0], minlength=len(items.classes))
    least = 2 if database is None else 1  # of a class, for its queries to have something relevant
    return Evaluation(
        protocol=protocol,
        among="all",
        bits=queries.bits,
        queries=total,
        database=len(items),
        itself=database is None,
        map=_mean(of["map"], weight),
        map_best=_mean(of["map_best"], weight),
        map_worst=_mean(of["map_worst"], weight),
        map_at={k: _mean(of[f"map@{k}"], weight) for k in at},
        precision_at={k: _mean(of[f"precision@{k}"], weight) for k in PRECISION_AT},
        curve=tuple(
            Within(radius, float(precision[radius]), float(recall[radius]), round(float(empty[radius]) * total))
            for radius in range(queries.bits + 1)
        ),
        per_class=tuple(
            ClassScore(name, _mean(of["map"][label == i], weight[label == i]) if (label == i).any() else None)
            for i, name in enumerate(queries.classes)
        ),
        health=code_health(items),
        unmatched=tuple(queries.classes[i] for i in np.unique(queries.labels) if i >= 0 and held[i] < least),
        seconds=time.perf_counter() - started,
        rescoring=rescoring,
    )


def mean_average_precision(queries: CodeSet, database: CodeSet | None = None) -> float:
    """Tie-aware mAP of `queries` against `database`; without one, against themselves, self-matches excluded.

    Exact, and the same to the last digit as `evaluate`'s. Memory does not grow with the number of pairs.
    """
    found = [(tie_aware_ap(tally.counts, tally.relevant), tally.weights) for tally in tallies(queries, database)]
    return _mean(np.concatenate([ap for ap, _ in found]), np.concatenate([weight for _, weight in found]))


def spread(evaluations: Sequence[Evaluation]) -> dict[str, Spread]:
    """Mean and deviation of every figure over two or more runs, by the names of `Evaluation.figures`.

    Raises:
        UsageError: they do not measure the same thing: other bits, protocol, classes, or numbers of pictures.
    """
    first = evaluations[0]
    for other in evaluations[1:]:
        for name in ("bits", "protocol", "among", "queries", "database"):
            if (one := getattr(first, name)) != (two := getattr(other, name)):
                what = "classes" if name == "among" else name
                raise UsageError(
                    f"no mean over runs that differ in {what}: {_text(one)} and {_text(two)}; evaluate them one by one"
                )
        if _rescored_how(first) != _rescored_how(other):
            raise UsageError("no mean over runs that are rescored in different ways; evaluate them alike")
        if [score.label for score in first.per_class] != [score.label for score in other.per_class]:
            raise UsageError("no mean over runs that differ in their classes; evaluate them one by one")
    figures = [evaluation.figures() for evaluation in evaluations]
    columns = {name: [of_run[name] for of_run in figures] for name in figures[0]}
    return {name: Spread(fmean(values), stdev(values)) for name, values in columns.items()}


def _rescored_how(evaluation: Evaluation) -> tuple[Rescore, int] | None:
    how = evaluation.rescoring
    return None if how is None else (how.by, how.pool)


def tie_aware_ap(counts: Counts, relevant: Counts, at: int | None = None) -> Floats:
    """Average precision, in expectation over random orders of items at equal distance.

    McSherry and Najork, *Computing information retrieval performance measures efficiently in the presence
    of tied scores*, ECIR 2008, in closed form per group of ties. A group that K cuts through adds its first places.

    Args:
        counts: (q, k + 1) database items at each Hamming distance of each query, or in each group of ties.
        relevant: (q, k + 1) those of the query's class.
        at: the K of AP@K, which is divided by min(K, relevant); None takes all.

    Returns:
        (q,) in [0, 1]; 0 for a query without any relevant item.
    """
    before, relevant_before = _before(counts), _before(relevant)
    most = int(counts.sum(axis=1).max(initial=0))
    harmonic = _harmonic(most)
    at = most if at is None else min(at, most)  # a K of any size
    taken = np.clip(at - before, 0, counts)  # places of the group within the first K
    n, r = counts.astype(np.float64), relevant.astype(np.float64)
    c = np.where(n > 1, (r - 1) / np.maximum(n - 1, 1), 0.0)
    tail = harmonic[before + taken] - harmonic[before]  # H[N + n] - H[N]
    group = r / np.maximum(n, 1) * (c * taken + (relevant_before + 1 - c * (before + 1)) * tail)
    possible = relevant.sum(axis=1)
    return _share(group.sum(axis=1), np.minimum(possible, at))


def ap_bounds(counts: Counts, relevant: Counts) -> tuple[Floats, Floats]:
    """Average precision of the worst and of the best order of ties, (q,) each: relevant items last, or first.

    The i-th relevant of a group adds (R + i) / (N' + i), N' items and R relevant before: 1 - (N' - R) / (N' + i).
    """
    before, relevant_before = _before(counts), _before(relevant)
    harmonic = _harmonic(int(counts.sum(axis=1).max(initial=0)))

    def ap(start: Counts) -> Floats:
        tail = harmonic[start + relevant] - harmonic[start]
        return _share((relevant - (start - relevant_before) * tail).sum(axis=1), relevant.sum(axis=1))

    return ap(before + counts - relevant), ap(before)


def precision_at(counts: Counts, relevant: Counts, at: int) -> Floats:
    """(q,) precision among the first K, in expectation over ties; among all items where there are fewer."""
    taken = np.clip(at - _before(counts), 0, counts)
    hits = (relevant * taken / np.maximum(counts, 1)).sum(axis=1)
    return _share(hits, np.minimum(at, counts.sum(axis=1)))


_Block = tuple[NDArray[np.int64], Counts, dict[str, Floats]]  # labels and weights of queries, and their measures


def _put_together(blocks: Sequence[_Block]) -> _Block:
    labels, weights, measures = zip(*blocks, strict=True)
    of = {name: np.concatenate([values[name] for values in measures]) for name in measures[0]}
    return np.concatenate(labels), np.concatenate(weights), of


def _rescored(ranked: Iterator[Ranked], at: Sequence[int]) -> tuple[NDArray[np.int64], Counts, dict[str, Floats], int]:
    """What `_put_together` gives, of rescored rankings, and the pictures ordered anew in all."""
    blocks: list[_Block] = []
    pooled = 0
    for block in ranked:
        measures = _of_rankings(block.counts, block.relevant, at)
        blocks.append((block.labels, np.ones(len(block.labels), np.int64), measures))
        pooled += int(block.pooled.sum())
    return *_put_together(blocks), pooled


def _measures(tally: Tally, at: Sequence[int]) -> dict[str, Floats]:
    """Each measure for each query of a block: (b,), or (b, k + 1) by radius."""
    found, hits = np.cumsum(tally.counts, axis=1), np.cumsum(tally.relevant, axis=1)
    return {
        **_of_rankings(tally.counts, tally.relevant, at),
        "precision": hits / np.maximum(found, 1),
        "recall": hits / np.maximum(hits[:, -1:], 1),
        "empty": (found == 0).astype(np.float64),
    }


def _of_rankings(counts: Counts, relevant: Counts, at: Sequence[int]) -> dict[str, Floats]:
    """Each measure of a ranking for each query, (b,), from (b, g) items of groups of ties and relevant ones."""
    ap = tie_aware_ap(counts, relevant)
    worst, best = ap_bounds(counts, relevant)
    return {
        "map": ap,
        "map_best": np.maximum(best, ap),  # which rounding alone could turn
        "map_worst": np.minimum(worst, ap),
        **{f"map@{k}": tie_aware_ap(counts, relevant, k) for k in at},
        **{f"precision@{k}": precision_at(counts, relevant, k) for k in PRECISION_AT},
    }


def _share(part: Floats, whole: Counts) -> Floats:
    """Part of a whole, in [0, 1] whatever the rounding; 0 of nothing."""
    share: Floats = np.clip(part / np.maximum(whole, 1), 0.0, 1.0)
    return share


def _before(counts: Counts) -> Counts:
    return np.cumsum(counts, axis=1) - counts


@lru_cache(maxsize=2)
def _harmonic(count: int) -> Floats:
    """H[0] to H[count], the harmonic numbers."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, count + 1))])


def _mean(values: Floats, weights: Counts) -> float:
    """Weighted mean, rounded once: the order and the blocks of the queries change no digit."""
    return math.fsum((values * weights).tolist()) / max(1, int(weights.sum()))


def _text(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
