"""Measures of retrieval against slow references: every order of ties, textbook definitions, plain sorting."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dsh_cli.analysis import counting
from dsh_cli.analysis.counting import tallies
from dsh_cli.analysis.retrieval import ap_bounds, evaluate, mean_average_precision, precision_at, spread, tie_aware_ap
from dsh_cli.codes.bits import hamming, pack
from dsh_cli.codes.sets import CodeSet
from dsh_cli.errors import DataError, UsageError
from tests.support.codes import code_set, random_codes


def average_precision(relevant: Sequence[int], at: int | None = None) -> float:
    """The textbook definition for one ranking without ties."""
    hits, total = 0, 0.0
    for rank, hit in enumerate(relevant[:at], 1):
        hits += hit
        total += hit * hits / rank
    return total / max(1, min(sum(relevant), at or len(relevant)))


def all_orders(distances: NDArray[np.int64], relevant: NDArray[np.int64]) -> Iterator[list[int]]:
    """Every ranking that sorts by distance."""
    groups = [[r for d, r in zip(distances, relevant, strict=True) if d == value] for value in sorted(set(distances))]
    for order in itertools.product(*(list(itertools.permutations(group)) for group in groups)):
        yield [int(r) for group in order for r in group]


def histograms(
    distances: NDArray[np.int64], relevant: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (
        np.bincount(distances, minlength=4)[None],
        np.bincount(distances, relevant, minlength=4).astype(np.int64)[None],
    )


@pytest.mark.parametrize("seed", range(12))
def test_every_measure_over_ties_is_that_over_all_their_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    distances, relevant = rng.integers(0, 3, 7), rng.integers(0, 2, 7)
    counts, hits = histograms(distances, relevant)
    orders = list(all_orders(distances, relevant))
    values = [average_precision(order) for order in orders]
    assert tie_aware_ap(counts, hits)[0] == pytest.approx(np.mean(values), abs=1e-12)
    worst, best = ap_bounds(counts, hits)
    assert (worst[0], best[0]) == pytest.approx((min(values), max(values)), abs=1e-12)
    for k in range(1, 10):
        cut = np.mean([average_precision(order, k) for order in orders])
        assert tie_aware_ap(counts, hits, k)[0] == pytest.approx(cut, abs=1e-12)
        first = np.mean([sum(order[:k]) / len(order[:k]) for order in orders])
        assert precision_at(counts, hits, k)[0] == pytest.approx(first, abs=1e-12)


def test_map_is_the_mean_of_sorting_in_random_orders() -> None:
    queries, database = random_codes(6, 10, 3, 1), random_codes(300, 10, 3, 2)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(400):
        order = rng.permutation(len(database))
        distances = hamming(queries.packed, database.packed[order])
        ranked = database.labels[order][np.argsort(distances, axis=1, kind="stable")]
        same = ranked == queries.labels[:, None]
        values.append(np.mean([average_precision(row.tolist()) for row in same]))
    deviation = np.std(values) / np.sqrt(len(values))
    assert evaluate(queries, database).map == pytest.approx(np.mean(values), abs=4 * deviation)
    assert deviation < 1e-3


def test_without_ties_there_is_one_value() -> None:
    relevant = [1, 0, 1, 1, 0]
    counts, hits = np.ones((1, 5), int), np.array([relevant])
    expected = pytest.approx(average_precision(relevant), abs=1e-12)
    assert tie_aware_ap(counts, hits)[0] == expected
    assert [bound[0] for bound in ap_bounds(counts, hits)] == [expected, expected]


def test_map_at_k_is_divided_by_what_could_be_found() -> None:
    """Three relevant, one of them in the first two: half of min(2, 3), not all of the one that was found."""
    counts, hits = np.ones((1, 5), int), np.array([[1, 0, 0, 1, 1]])
    assert tie_aware_ap(counts, hits, 2)[0] == pytest.approx(1 / 2)
    assert tie_aware_ap(counts, hits, 100)[0] == tie_aware_ap(counts, hits)[0]


def test_a_query_without_relevant_items_scores_zero_and_counts() -> None:
    queries = code_set(["00", "00"], [0, 2])
    database = code_set(["00", "ff"], [0, 1])
    assert mean_average_precision(queries, database) == pytest.approx(0.5)
    evaluation = evaluate(queries, database)
    assert (evaluation.map, evaluation.map_at[1000], evaluation.precision_at[1]) == pytest.approx((0.5, 0.5, 0.5))
    assert evaluation.unmatched == ("c",)
    assert [(score.label, score.map) for score in evaluation.per_class] == [("a", 1.0), ("b", None), ("c", 0.0)]


def slow_evaluation(queries: CodeSet, database: CodeSet, itself: bool = False) -> dict[str, float]:
    """Query by query, place by place, from all distances."""
    bits = queries.bits
    sums: dict[str, float] = {}

    def add(name: str, value: float) -> None:
        sums[name] = sums.get(name, 0.0) + value / len(queries)

    for place, (row, label) in enumerate(zip(hamming(queries.packed, database.packed), queries.labels, strict=True)):
        same = database.labels == label
        if itself:
            row, same = np.delete(row, place), np.delete(same, place)
        expected, before, hits = [], 0, 0  # chance that each place is relevant, and its expected precision if so
        for distance in range(bits + 1):
            n, r = int((row == distance).sum()), int((same & (row == distance)).sum())
            for i in range(n):
                more = i * (r - 1) / (n - 1) if n > 1 else 0
                expected.append((r / n, r / n * (hits + 1 + more) / (before + i + 1)))
            before, hits = before + n, hits + r
            add(f"precision within {distance}", hits / before if before else 0.0)
            add(f"recall within {distance}", hits / same.sum() if same.any() else 0.0)
            add(f"empty within {distance}", (before == 0) * len(queries))
        possible = max(1, int(same.sum()))
        add("map", sum(ap for _, ap in expected) / possible)
        for k in (1, 5, 1000):
            add(f"map_at.{k}", sum(ap for _, ap in expected[:k]) / min(k, possible))
        for k in (1, 10, 100):
            add(f"precision_at.{k}", sum(chance for chance, _ in expected[:k]) / min(k, len(expected)))
        for name, order in (("map_worst", np.lexsort((same, row))), ("map_best", np.lexsort((~same, row)))):
            add(name, average_precision(same[order].astype(int).tolist()))
    return sums


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("bits", "itself"), [(4, False), (8, True), (48, False), (64, True), (65, False), (200, True)])
def test_evaluate_equals_a_slow_reference(
    bits: int, itself: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_COMPILE_FROM", 0 if compiled else 1 << 62)
    monkeypatch.setattr(counting, "_CELLS", 16 * (bits + 1))  # several blocks
    monkeypatch.setattr(counting, "_BLOCK", 1000)
    queries, database = random_codes(40, bits, 4, 1), random_codes(230, bits, 4, 2)
    evaluation = evaluate(database) if itself else evaluate(queries, database, at=(1, 5, 1000))
    slow = slow_evaluation(database if itself else queries, database, itself)
    figures = evaluation.figures()
    for name, value in figures.items():
        if not name.startswith("radius"):
            assert value == pytest.approx(slow[name], abs=1e-9), name
    for within in evaluation.curve:
        assert within.precision == pytest.approx(slow[f"precision within {within.radius}"], abs=1e-9)
        assert within.recall == pytest.approx(slow[f"recall within {within.radius}"], abs=1e-9)
        assert within.empty == round(slow[f"empty within {within.radius}"])
    assert [figures[f"radius.{r}.precision"] for r in (0, 1, 2)] == [w.precision for w in evaluation.curve[:3]]
    assert evaluation.map == mean_average_precision(database if itself else queries, None if itself else database)


def test_where_machine_code_cannot_be_kept_it_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsh_cli.analysis import compiled

    def njit(function: object, nogil: bool, cache: bool = False) -> tuple[object, str]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return function, "compiled"

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled._compiled(len) == (len, "compiled")


def test_many_equal_codes_are_counted_with_their_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile of the compiled loop is 1,024 codes; here a class has more, and codes repeat."""
    queries, database = random_codes(50, 7, 2, 1), random_codes(5000, 7, 2, 2)
    wide = [replace(part, bits=40, packed=np.tile(part.packed, (1, 5))) for part in (queries, database)]
    rng = np.random.default_rng(3)
    distinct = replace(wide[1], packed=wide[1].packed ^ rng.integers(0, 256, wide[1].packed.shape, np.uint8))
    for one, other in ((queries, database), (wide[0], distinct)):
        found = []
        for limit in (0, 1 << 62):
            monkeypatch.setattr(counting, "_COMPILE_FROM", limit)
            found.append(list(tallies(one, other)))
        for compiled, plain in zip(*found, strict=True):
            assert np.array_equal(compiled.counts, plain.counts)
            assert np.array_equal(compiled.relevant, plain.relevant)
            assert (compiled.counts.sum(axis=1) == 5000).all()
        assert sum(tally.weights.sum() for tally in found[0]) == 50


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("cells", "block"), [(1, 1), (100, 100), (1 << 19, 1 << 22)])
@pytest.mark.parametrize(("bits", "itself"), [(5, True), (5, False), (70, True), (70, False)])
def test_tallies_count_every_item_by_distance(
    bits: int, itself: bool, cells: int, block: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_CELLS", cells), ("_BLOCK", block), ("_COMPILE_FROM", 0 if compiled else 1 << 62)):
        monkeypatch.setattr(counting, name, value)
    queries, database = (
        replace(codes, labels=codes.labels - 1)  # of unknown class, some of them
        for codes in (random_codes(30, bits, 3, 1), random_codes(40, bits, 3, 2))
    )
    if itself:
        database = queries
    expected: Counter[tuple[int, tuple[int, ...], tuple[int, ...]]] = Counter()
    for place, (row, label) in enumerate(zip(hamming(queries.packed, database.packed), queries.labels, strict=True)):
        others = np.arange(len(database)) != (place if itself else -1)
        same = others & (database.labels == label) & (label >= 0)
        counts, relevant = (np.bincount(row[which], minlength=bits + 1).tolist() for which in (others, same))
        expected[int(label), tuple(counts), tuple(relevant)] += 1
    found: Counter[tuple[int, tuple[int, ...], tuple[int, ...]]] = Counter()
    blocks = list(tallies(queries, None if itself else database))
    rows = [len(tally.counts) for tally in blocks]
    assert rows[0] == max(rows) == min(sum(rows), max(1, cells // (bits + 1)))
    for tally in blocks:
        for label, counts, relevant, weight in zip(
            tally.labels.tolist(), tally.counts.tolist(), tally.relevant.tolist(), tally.weights.tolist(), strict=True
        ):
            found[label, tuple(counts), tuple(relevant)] += weight
    assert found == expected


def test_the_compiled_loop_is_for_much_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(counting, "_counted", lambda *_: used.append("NumPy"))
    monkeypatch.setattr(counting, "_counted_compiled", lambda *_: used.append("compiled"))
    queries, database = random_codes(50, 100, 2, 1), random_codes(70, 100, 2, 2)  # of two words each
    list(tallies(queries, database))
    for limit in (50 * 70 * 2, 50 * 70 * 2 + 1):
        monkeypatch.setattr(counting, "_COMPILE_FROM", limit)
        list(tallies(queries, database))
    assert used == ["NumPy", "compiled", "NumPy"]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 12), st.integers(2, 30), st.integers(1, 4), st.integers(0, 2**32), st.booleans()
)
def test_properties(bits: int, queries: int, items: int, classes: int, seed: int, itself: bool) -> None:
    rng = np.random.default_rng(seed)
    flips = rng.random()
    names = tuple(map(str, range(classes)))

    def codes(count: int) -> CodeSet:
        return CodeSet(bits, pack(rng.random((count, bits)) < flips), rng.integers(0, classes, count), names, ())

    one, other = codes(queries), codes(items)
    evaluation = evaluate(other) if itself else evaluate(one, other)
    assert 0 <= evaluation.map_worst <= evaluation.map <= evaluation.map_best <= 1
    curve = evaluation.curve
    assert [within.radius for within in curve] == list(range(bits + 1))
    assert all(a.recall <= b.recall + 1e-12 and a.empty >= b.empty for a, b in itertools.pairwise(curve))
    assert curve[-1].empty == 0
    assert all(0 <= value <= 1 for name, value in evaluation.figures().items() if "empty" not in name)
    for tally in tallies(other) if itself else tallies(one, other):
        assert (tally.relevant <= tally.counts).all() and (tally.relevant >= 0).all()
        assert (tally.counts.sum(axis=1) == items - itself).all()
    scored = np.bincount((other if itself else one).labels, minlength=classes)
    mean = sum(score.map * n for score, n in zip(evaluation.per_class, scored, strict=True) if n) / scored.sum()
    assert mean == pytest.approx(evaluation.map, abs=1e-12)
    order = rng.permutation(items)  # of what is looked up in, and in which the queries come
    shuffled = CodeSet(bits, other.packed[order], other.labels[order], names, ())
    assert (evaluate(shuffled) if itself else evaluate(one, shuffled)) == evaluation


def test_the_only_one_of_a_class_is_all_of_it() -> None:
    evaluation = evaluate(code_set(["00"], [0]), code_set(["01", "ff"], [0, 1]), at=(1, 50))
    assert [within.recall for within in evaluation.curve] == [0] + [1] * 8
    assert [within.precision for within in evaluation.curve] == [0] + [1] * 7 + [1 / 2]
    assert [within.empty for within in evaluation.curve] == [1] + [0] * 8


def test_the_classes_that_are_not_in_the_database_are_told() -> None:
    queries = code_set(["00"] * 4, [0, 1, 2, -1])
    assert evaluate(queries, code_set(["00"], [1])).unmatched == ("a", "c")


def test_every_measure_is_a_figure() -> None:
    figures = evaluate(random_codes(9, 12, 3, 0), at=(1, 50)).figures()
    radius = [f"radius.{r}.{of}" for r in (0, 1, 2) for of in ("precision", "recall", "empty")]
    precision = ["precision_at.1", "precision_at.10", "precision_at.100"]
    assert [*figures] == ["map", "map_best", "map_worst", "map_at.1", "map_at.50", *precision, *radius]


def test_against_itself_self_matches_are_left_out() -> None:
    codes = code_set(["00", "00", "ff"], [0, 1, 0])
    # Query 0: "00" of class 1 at 0, then "ff" at 8, relevant second. Query 2: a tie of two at 8, one relevant.
    assert mean_average_precision(codes) == pytest.approx((1 / 2 + 0 + (1 + 1 / 2) / 2) / 3)
    evaluation = evaluate(codes)
    assert evaluation.itself and evaluation.unmatched == ("b",)
    assert evaluation.radius[0].empty == 1 and evaluation.precision_at[1] == pytest.approx((0 + 0 + 1 / 2) / 3)
    assert evaluate(codes, codes).precision_at[1] > evaluation.precision_at[1]


def test_codes_of_unknown_class_are_relevant_to_nothing() -> None:
    queries, database = code_set(["00", "00"], [0, -1]), code_set(["00", "00"], [0, -1])
    assert mean_average_precision(queries, database) == pytest.approx((3 / 4 + 0) / 2)
    assert mean_average_precision(queries) == 0


def test_codes_shorter_than_a_radius_are_all_within() -> None:
    codes = code_set(["0", "1"], [0, 0], bits=1)
    evaluation = evaluate(codes, codes)
    assert len(evaluation.curve) == 2 and evaluation.radius[2] == evaluation.curve[1]


def test_what_cannot_be_measured_is_refused() -> None:
    codes, empty = code_set(["00", "ff"], [0, 1]), code_set([], [])
    with pytest.raises(DataError, match="0 queries"):
        evaluate(empty, codes)
    with pytest.raises(DataError, match="against 0 pictures"):
        evaluate(code_set(["00"], [0]))
    with pytest.raises(UsageError, match="`at` 0"):
        evaluate(codes, at=(5, 0))
    with pytest.raises(UsageError, match="different length"):
        evaluate(codes, random_codes(3, 12, 3, 0))
    with pytest.raises(UsageError, match="different classes"):
        evaluate(codes, replace(codes, classes=("x", "y", "z")))


def test_spread_over_runs() -> None:
    runs = [evaluate(random_codes(30, 8, 3, seed), random_codes(60, 8, 3, seed + 9)) for seed in range(3)]
    found = spread(runs)
    values = [run.precision_at[10] for run in runs]
    assert (found["precision_at.10"].mean, found["precision_at.10"].std) == pytest.approx(
        (np.mean(values), np.std(values, ddof=1))
    )
    assert set(found) == set(runs[0].figures()) and "radius.2.empty" in found
    for change, message in (
        ({"bits": 9}, "bits: 8 and 9"),
        ({"protocol": "paper"}, "protocol: given and paper"),
        ({"among": "seen"}, "differ in classes: all and seen"),
        ({"queries": 31}, "queries: 30 and 31"),
        ({"database": 61_000}, "database: 60 and 61,000"),
        ({"per_class": runs[0].per_class[:2]}, "classes"),
    ):
        with pytest.raises(UsageError, match=message):
            spread([runs[0], replace(runs[1], **change)])


def test_health_of_the_database() -> None:
    codes = code_set(["f0", "f0", "0f", "f1"], [0, 0, 1, 1])
    health = evaluate(codes, codes).health
    assert health.bit_balance == (0.75, 0.75, 0.75, 0.75, 0.25, 0.25, 0.25, 0.5)
    assert (health.distinct, health.largest_share) == (3, 0.5)
    assert health.bit_correlation == pytest.approx(1.0)
