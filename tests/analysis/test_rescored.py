"""Rescored rankings measured: against every order that ties can have, against the ranking before, and on digits."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain, groupby, permutations, product
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsh_cli.analysis import rescored
from dsh_cli.analysis.protocols import Comparison, evaluate_run, measure
from dsh_cli.analysis.retrieval import evaluate, spread
from dsh_cli.codes import rescoring
from dsh_cli.codes.bits import hamming, pack
from dsh_cli.codes.sets import CodeSet, taken
from dsh_cli.config import Rescore
from dsh_cli.errors import DataError, UsageError
from dsh_cli.runs.run import Run
from tests.support.codes import made, random_codes
from tests.support.values import there

BY: tuple[Rescore, ...] = ("outputs", "asymmetric")
Groups = list[list[bool]]  # of a ranking: whether each item is relevant


def slow_groups(queries: CodeSet, database: CodeSet | None, query: int, by: Rescore, pool: int) -> Groups:
    """A ranking as groups of ties, by sorting tuples."""
    items = queries if database is None else database
    relaxed, own = there(items.relaxed), there(queries.relaxed)
    scale = rescoring.scale_of(relaxed)
    steps = [int(x) for x in rescoring.steps_of(own[query], scale if by == "outputs" else None)]
    distances = hamming(queries.packed[query], items.packed).tolist()
    others = [row for row in range(len(items)) if database is not None or row != query]
    edge = sorted(distances[row] for row in others)[min(pool, len(others)) - 1]

    def key(row: int) -> tuple[float, ...]:
        if distances[row] > edge:
            return 1, distances[row]
        against = rescoring.quantised(relaxed, scale)[row] if by == "outputs" else np.where(relaxed[row] >= 0, 1, -1)
        lengths = math.sqrt(sum(a * a for a in steps)) * math.sqrt(sum(int(b) ** 2 for b in against))
        product = sum(a * int(b) for a, b in zip(steps, against, strict=True))
        return 0, -round(product / (lengths or 1) * 2**30), distances[row]

    def is_relevant(row: int) -> bool:
        return bool(items.labels[row] == queries.labels[query] >= 0)

    return [[is_relevant(row) for row in rows] for _, rows in groupby(sorted(others, key=key), key)]


def orders(groups: Groups) -> Iterator[list[bool]]:
    for order in product(*(permutations(group) for group in groups)):
        yield list(chain(*order))


def ap(order: Sequence[bool], at: int) -> Fraction:
    possible = min(sum(order), at)
    found = [Fraction(sum(order[: i + 1]), i + 1) for i in range(min(at, len(order))) if order[i]]
    return sum(found, Fraction(0)) / possible if possible else Fraction(0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(2, 6), st.booleans(), st.integers(1, 8), st.sampled_from(BY), st.integers(0, 999))
def test_measures_are_the_mean_over_all_orders_of_ties(
    bits: int, count: int, itself: bool, pool: int, by: Rescore, seed: int
) -> None:
    rng = np.random.default_rng(seed)

    def some(number: int) -> CodeSet:
        relaxed = rng.choice([-1.0, -0.5, 0.5, 1.0], (number, bits)).astype(np.float16)  # so few that scores tie
        return CodeSet(bits, pack(relaxed >= 0), rng.integers(-1, 2, number), ("a", "b"), (), relaxed)

    queries, database = some(count if itself else 3), None if itself else some(count)
    found = evaluate(queries, database, at=(2,), rescore=by, pool=pool)
    all_orders = [list(orders(slow_groups(queries, database, query, by, pool))) for query in range(len(queries))]

    def mean(of: Callable[[list[bool]], Fraction]) -> float:
        return fmean(float(sum(map(of, some), Fraction(0)) / len(some)) for some in all_orders)

    assert found.map == pytest.approx(mean(lambda order: ap(order, len(order))))
    assert found.map_at[2] == pytest.approx(mean(lambda order: ap(order, 2)))
    assert found.precision_at[1] == pytest.approx(mean(lambda order: Fraction(order[0])))
    assert found.map_best == pytest.approx(fmean(float(max(ap(o, len(o)) for o in some)) for some in all_orders))
    assert found.map_worst == pytest.approx(fmean(float(min(ap(o, len(o)) for o in some)) for some in all_orders))


@pytest.mark.parametrize("by", BY)
def test_of_one_class_and_of_none_in_a_row_any_order_is_the_same(by: Rescore) -> None:
    """Longer rankings than all of whose orders can be tried, with groups that come as one."""
    codes = made(200, 3, 12, noise=0.9)
    found = evaluate(codes, rescore=by, pool=40)
    counted = 0.0
    for query in range(len(codes)):
        before = relevant_before = 0
        total = 0.0
        groups = slow_groups(codes, None, query, by, 40)
        for group in groups:
            n, r = len(group), sum(group)
            c = (r - 1) / (n - 1) if n > 1 else 0.0
            total += sum(r / n * (c * j + relevant_before + 1) / (before + 1 + j) for j in range(n))
            before, relevant_before = before + n, relevant_before + r
        counted += total / relevant_before
    assert found.map == pytest.approx(counted / len(codes), abs=1e-12)


@pytest.mark.parametrize("by", BY)
def test_what_is_of_the_codes_stays_and_the_ranking_before_is_told(by: Rescore) -> None:
    codes = made(120, 4, 16, noise=1.0)
    plain, found = evaluate(codes), evaluate(codes, rescore=by, pool=30)
    how = there(found.rescoring)
    assert (how.by, how.pool) == (by, 30) and 30 <= how.pooled <= 119
    assert (how.map, how.map_best, how.map_worst) == (plain.map, plain.map_best, plain.map_worst)
    assert (found.curve, found.health, found.unmatched) == (plain.curve, plain.health, plain.unmatched)
    assert found.map_worst <= found.map <= found.map_best and found.map != plain.map
    assert plain.rescoring is None and "hamming.map" not in plain.figures()
    assert found.figures()["hamming.map"] == plain.map


def test_the_order_of_the_database_changes_no_digit() -> None:
    queries, database = made(30, 3, 6, seed=1, noise=0.8), made(300, 3, 6, seed=2, noise=0.8)
    by_class = taken(database, np.argsort(database.labels, kind="stable"))
    found = [evaluate(queries, of, rescore="outputs", pool=7) for of in (database, by_class)]
    assert found[0] == found[1]
    backwards = taken(queries, np.arange(len(queries))[::-1])
    assert evaluate(backwards, database, rescore="outputs", pool=7) == found[0]


def test_codes_against_codes_are_the_hamming_ranking() -> None:
    codes = random_codes(150, 10, 3, 0)
    signs = rescoring.signs(codes.packed, 10).astype(np.float16)
    with_outputs = replace(codes, relaxed=signs)
    for by in BY:
        found = evaluate(with_outputs, rescore=by, pool=25)
        plain = evaluate(codes)
        for name, value in plain.figures().items():
            assert found.figures()[name] == pytest.approx(value, abs=1e-12), name


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = made(90, 3, 8, noise=0.9)
    whole = evaluate(codes, rescore="outputs", pool=20)
    monkeypatch.setattr(rescored, "_CELLS", 1)
    assert evaluate(codes, rescore="outputs", pool=20) == whole


def test_a_pool_of_all_and_more_takes_all() -> None:
    codes = made(60, 3, 8)
    found = [evaluate(codes, rescore="outputs", pool=pool) for pool in (59, 10**12)]
    assert there(found[0].rescoring).pooled == there(found[1].rescoring).pooled == 59
    assert found[0].map == found[1].map


def test_what_cannot_be_rescored() -> None:
    codes = made(20)
    without = replace(codes, relaxed=None)
    for queries, database in ((without, None), (codes, without)):
        with pytest.raises(DataError, match="no outputs to rescore by"):
            evaluate(queries, database, rescore="outputs")
    assert evaluate(codes, without, rescore="asymmetric").rescoring is not None
    with pytest.raises(UsageError, match="`pool` 0: 1 picture or more"):
        evaluate(codes, rescore="outputs", pool=0)
    with pytest.raises(UsageError, match="give both, or leave it"):
        Comparison(pool=5).check()


def test_runs_rescored_in_different_ways_have_no_mean() -> None:
    codes = made(40)
    plain = evaluate(codes)
    outputs, larger = (evaluate(codes, rescore="outputs", pool=pool) for pool in (5, 6))
    for other in (plain, larger, evaluate(codes, rescore="asymmetric", pool=5)):
        with pytest.raises(UsageError, match="rescored in different ways"):
            spread([outputs, other])
    assert spread([outputs, outputs])["hamming.map"].mean == plain.map


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("pool", [None, 10, 100])
def test_rescoring_digits_never_makes_the_ranking_worse(digits_run: Path, by: Rescore, pool: int | None) -> None:
    run = Run.open(digits_run)
    found = measure(run, Comparison(rescore=by, pool=pool)).evaluation
    how = there(found.rescoring)
    assert how.pool == pool or (pool is None and how.pool == rescored.POOL)
    assert how.map == evaluate_run(run).map
    assert found.map >= how.map - 0.002
    if pool is None:
        assert found.map > how.map


def test_pictures_with_large_outputs_do_not_come_first_for_all() -> None:
    """As those have of which a network is sure that was trained for an epoch."""
    rng = np.random.default_rng(0)
    codes = made(600, 5, 12, noise=0.7)
    sizes = np.exp(rng.normal(0, 1, (600, 1)))
    grown = replace(codes, relaxed=(there(codes.relaxed) * sizes).astype(np.float16))
    assert evaluate(grown, rescore="outputs", pool=200).map >= evaluate(codes).map + 0.01


def test_queries_that_are_the_database_are_left_out_of_their_own_ranking(digits_run: Path) -> None:
    run = Run.open(digits_run)
    found = evaluate_run(run, "paper", rescore="outputs")
    assert found.itself and there(found.rescoring).pooled <= found.database - 1
    assert found == replace(evaluate(run.codes("test", "relaxed"), rescore="outputs"), protocol="paper")
