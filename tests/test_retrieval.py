"""Retrieval measures against slow references: loops over ranks, and means over every order of ties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metrics import code_set, random_codes

from dsh_cli import retrieval
from dsh_cli.codes import hamming
from dsh_cli.errors import DataError
from dsh_cli.retrieval import ap_bounds, histograms, mean_average_precision, measure, precision_at, tie_aware_ap


def average_precision(relevant):
    """The textbook definition for one ranking without ties."""
    hits, total = 0, 0.0
    for rank, hit in enumerate(relevant, 1):
        hits += hit
        total += hit * hits / rank
    return total / max(1, sum(relevant))


def expectation_over_orders(distances, relevant):
    """Mean of AP over every order that sorts by distance."""
    groups = [[r for d, r in zip(distances, relevant, strict=True) if d == value] for value in sorted(set(distances))]
    orders = itertools.product(*(list(itertools.permutations(group)) for group in groups))
    values = [average_precision([r for group in order for r in group]) for order in orders]
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(12))
def test_tie_aware_ap_is_the_mean_over_all_orders_of_ties(seed):
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 3, 7)
    relevant = rng.integers(0, 2, 7)
    counts = np.bincount(distances, minlength=4)[None]
    hits = np.bincount(distances, relevant, minlength=4).astype(int)[None]
    assert tie_aware_ap(counts, hits)[0] == pytest.approx(expectation_over_orders(distances, relevant), abs=1e-12)


def test_without_ties_it_is_plain_average_precision():
    relevant = [1, 0, 1, 1, 0]
    value = tie_aware_ap(np.ones((1, 5), int), np.array([relevant]))
    assert value[0] == pytest.approx(average_precision(relevant))


def test_a_query_without_relevant_items_scores_zero_and_counts():
    queries = code_set(["00", "00"], [0, 2])
    database = code_set(["00", "ff"], [0, 1])
    assert mean_average_precision(queries, database) == pytest.approx(0.5)


@pytest.mark.parametrize(("bits", "block"), [(4, None), (40, None), (12, 64)])
def test_map_equals_a_slow_reference(bits, block, monkeypatch):
    if block:
        monkeypatch.setattr("dsh_cli.retrieval._BLOCK", block)
    queries, database = random_codes(40, bits, 4, 1), random_codes(200, bits, 4, 2)
    distances = hamming(queries.packed, database.packed)
    slow = []
    for row, label in zip(distances, queries.labels, strict=True):
        counts = np.bincount(row, minlength=bits + 1)[None]
        hits = np.bincount(row[database.labels == label], minlength=bits + 1)[None]
        slow.append(tie_aware_ap(counts, hits)[0])
    assert mean_average_precision(queries, database) == pytest.approx(np.mean(slow), abs=1e-12)


def test_map_against_itself_leaves_self_matches_out():
    codes = code_set(["00", "00", "ff"], [0, 1, 0])
    # Query 0: "00" of class 1 at 0, then "ff" at 8, relevant second. Query 2: a tie of two at 8, one relevant.
    assert mean_average_precision(codes) == pytest.approx((1 / 2 + 0 + (1 + 1 / 2) / 2) / 3)


def orders(distances, relevant):
    """Every ranking that sorts by distance."""
    groups = [[r for d, r in zip(distances, relevant, strict=True) if d == value] for value in sorted(set(distances))]
    for order in itertools.product(*(set(itertools.permutations(group)) for group in groups)):
        yield [int(r) for group in order for r in group]


def histogram(distances, relevant, bits=4):
    counts = np.bincount(distances, minlength=bits + 1)[None]
    return counts, np.bincount(distances, relevant, minlength=bits + 1).astype(int)[None]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("at", [1, 2, 3, 5, 7, 20])
def test_what_is_cut_at_k_is_the_mean_over_all_orders_of_ties(seed, at):
    rng = np.random.default_rng(seed)
    distances, relevant = rng.integers(0, 3, 7), rng.integers(0, 2, 7)
    counts, hits = histogram(distances, relevant)
    total = relevant.sum()
    ap, precision = [], []
    for ranking in orders(distances, relevant):  # all equally likely: equal ones were drawn together
        first = ranking[:at]
        found = [sum(first[: i + 1]) / (i + 1) for i, r in enumerate(first) if r]
        ap.append(sum(found) / max(1, min(at, total)))
        precision.append(sum(first) / min(at, 7))
    assert tie_aware_ap(counts, hits, at)[0] == pytest.approx(np.mean(ap), abs=1e-12)
    assert precision_at(counts, hits, at)[0] == pytest.approx(np.mean(precision), abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=80, deadline=None)
def test_bounds_are_the_best_and_the_worst_order(items):
    distances, relevant = np.array([d for d, _ in items]), np.array([int(r) for _, r in items])
    counts, hits = histogram(distances, relevant)
    best = average_precision(relevant[np.lexsort((-relevant, distances))])
    worst = average_precision(relevant[np.lexsort((relevant, distances))])
    low, high = ap_bounds(counts, hits)
    assert low[0] == pytest.approx(worst, abs=1e-12) and high[0] == pytest.approx(best, abs=1e-12)
    assert low[0] - 1e-12 <= tie_aware_ap(counts, hits)[0] <= high[0] + 1e-12


def slow_measures(queries, database, at):
    """A loop over queries and ranks; ties in expectation by the closed form, which has its own tests."""
    own = database is None
    items = queries if own else database
    out = {"map": [], "radius": [], "precision": [], "map_at": []}
    for i, label in enumerate(queries.labels):
        keep = np.arange(len(items)) != i if own else np.ones(len(items), bool)
        distances = hamming(queries.packed[i], items.packed)[keep]
        relevant = (items.labels[keep] == label).astype(int)
        counts, hits = histogram(distances, relevant, queries.bits)
        out["map"].append(tie_aware_ap(counts, hits)[0])
        out["map_at"].append(tie_aware_ap(counts, hits, at)[0])
        balls = []
        for radius in range(queries.bits + 1):
            ball = distances <= radius
            found = relevant[ball].sum()
            balls.append((found / ball.sum() if ball.any() else 0, found / max(1, relevant.sum()), not ball.any()))
        out["radius"].append(balls)
    return out


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("bits", [3, 12, 70])
@pytest.mark.parametrize("compiled", [False, True])
def test_every_measure_equals_a_slow_reference(bits, own, compiled, monkeypatch):
    monkeypatch.setattr(retrieval, "_COMPILED", 0 if compiled else 1 << 62)
    monkeypatch.setattr(retrieval, "_BLOCK", 500)
    queries = random_codes(60, bits, 4, 1)
    database = None if own else random_codes(150, bits, 4, 2)
    result = measure(queries, database, at=(10,))
    slow = slow_measures(queries, database, 10)
    assert result.map == pytest.approx(np.mean(slow["map"]), abs=1e-9)
    assert result.map == mean_average_precision(queries, database)  # to the last digit
    assert result.map_at[10] == pytest.approx(np.mean(slow["map_at"]), abs=1e-9)
    balls = np.array(slow["radius"], float)  # (q, k + 1, 3)
    for lookup in result.lookups:
        precision, recall, _ = balls[:, lookup.radius].mean(axis=0)
        assert (lookup.precision, lookup.recall) == pytest.approx((precision, recall), abs=1e-9)
        assert lookup.empty == balls[:, lookup.radius, 2].sum()
    assert result.lookups[bits].recall == 1 and result.lookups[bits].empty == 0
    assert result.database == (59 if own else 150) and result.self_excluded == own
    for score in result.per_class:
        chosen = queries.labels == int(score.label)
        assert score.queries == chosen.sum()
        assert score.map == pytest.approx(np.mean(np.array(slow["map"])[chosen]), abs=1e-9)


def test_histograms_count_every_pair_once():
    queries, database = random_codes(50, 6, 3, 0), random_codes(80, 6, 3, 1)
    blocks = list(histograms(queries, database))
    assert sum(int(weights.sum()) for _, _, weights, _ in blocks) == 50
    for counts, relevant, _, labels in blocks:
        assert (counts.sum(axis=1) == 80).all() and (relevant <= counts).all()
        assert (relevant.sum(axis=1) == np.bincount(database.labels, minlength=3)[labels]).all()


def test_a_class_without_queries_has_no_score_and_k_beyond_the_database_is_all_of_it():
    queries, database = code_set(["00", "0f"], [0, 1]), code_set(["00", "ff", "0f"], [0, 1, 1])
    result = measure(queries, database, at=(1000,))
    assert result.per_class[2].map is None and result.per_class[2].queries == 0
    assert result.map_at[1000] == pytest.approx(result.map)
    assert result.precision_at[100] == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_nothing_to_measure_is_said():
    with pytest.raises(DataError, match="0 queries"):
        measure(code_set([], []), code_set(["00"], [0]))
    with pytest.raises(DataError, match="1 queries against 0 pictures"):
        measure(code_set(["00"], [0]))
