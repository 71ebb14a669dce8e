"""An index that stays on its disk is searched as one in memory, in memory that does not grow with its rows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lance
import numpy as np
import pyarrow as pa
import pytest

from dsh_cli import neighbors
from dsh_cli.codes.bits import hamming, pack, parse
from dsh_cli.codes.blocks import Block
from dsh_cli.config import Rescore
from dsh_cli.errors import IndexStateError, UsageError, VersionGone
from dsh_cli.index import table
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.index.search import OnDisk
from dsh_cli.index.table import Table
from dsh_cli.neighbors import Answer, Neighbor, Rescored, Search
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json, one_line_error, unmeasured

T = TypeVar("T")
COUNT = 200
NAMES = ["cat", "dog", None, "ö", "owl"]


def codes(numbers: range, model: str, labels: bool = True) -> ReadyCodes:
    rng = np.random.default_rng(numbers.start)
    relaxed = rng.normal(0, 1, (len(numbers), 8)).astype(np.float32)
    packed = pack(relaxed >= 0) & np.uint8(0x3F)  # few codes, and so many ties
    known = [NAMES[i % 5] for i in numbers] if labels else None
    return ReadyCodes([f"/{i}" for i in numbers], packed, known, relaxed)


@pytest.fixture
def run(digits_run: Path) -> Run:
    return Run.open(digits_run)


@pytest.fixture(params=["as added", "with gaps", "updated"])
def uri(run: Run, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An index of several files, with rows removed, or updated too, so that they do not lie as they were added."""
    monkeypatch.setattr(table, "_FRAGMENTS", 100)
    model = run.fingerprint
    for start in range(0, COUNT, 40):
        Index.open("i").add_codes([codes(range(start, start + 40), model)], 8, model)
    if request.param != "as added":
        Index.open("i").remove([f"/{i}" for i in range(3, COUNT, 7)])
    if request.param == "updated":
        Index.open("i").add_codes([codes(range(30, 60), model)], 8, model)
        Index.open("i").add_codes([codes(range(120, 125), model, labels=False)], 8, model)
        Index.open("i").add_codes([codes(range(COUNT, COUNT + 20), model)], 8, model)
    assert Index.open("i")._table.in_order == (request.param != "updated")
    return "i"


def small_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_BLOCK_ROWS", (1, rows))
    monkeypatch.setattr(table, "_READ_ROWS", rows)


def answers(run: Run, memory: float, queries: list[str], **search: Any) -> list[tuple[Neighbor, ...]]:
    finder = Search(index="i", memory=memory, **search).finder(run)
    assert isinstance(finder.database.codes, OnDisk) == (memory == 0)
    return [answer.neighbors for answer in finder.find(queries) if isinstance(answer, Answer)]


QUERIES = [f"0x{code:02x}" for code in range(0, 256, 23)]
SEARCHES: list[dict[str, Any]] = [
    {"k": 1}, {"k": 17}, {"k": 500}, {"radius": 1}, {"radius": 8}, {"radius": 2, "k": 9},
    {"label": ("cat", "ö"), "k": 12}, {"not_label": ("dog",), "k": 30}, {"label": ("owl",), "radius": 3},
    {"rescore": "outputs", "k": 3, "pool": 5}, {"rescore": "asymmetric", "k": 3, "pool": 5},
    {"rescore": "outputs", "radius": 2}, {"rescore": "asymmetric", "radius": 2, "not_label": ("cat",)},
]  # fmt: skip


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_a_search_of_the_disk_finds_what_one_in_memory_does(
    rows: int, uri: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = Index.open(uri)
    packed, known = index.codes(), index.rows(range(len(index)))
    for search in SEARCHES:
        held = answers(run, 2, QUERIES, **search)
        with monkeypatch.context() as patch:
            small_blocks(rows, patch)
            assert answers(run, 0, QUERIES, threads=2, **search) == held, search
            assert answers(run, 2, QUERIES, threads=1, **search) == held, search
        if "rescore" in search:
            continue
        for query, found in zip(QUERIES, held, strict=True):
            distances = hamming(parse(query, 8), packed).tolist()
            wanted, without = search.get("label", ()), search.get("not_label", ())
            slow = sorted(
                (distance, row)
                for row, (distance, of) in enumerate(zip(distances, known, strict=True))
                if (not wanted or of.label in wanted) and of.label not in without
                if distance <= search.get("radius", 8)
            )[: search.get("k")]
            assert [(n.distance, n.row, n.path, n.label) for n in found] == [
                (distance, row, known[row].path, known[row].label) for distance, row in slow
            ]
            assert [n.code for n in found] == [packed[row].tobytes().hex() for _, row in slow]


@pytest.mark.parametrize("by", ["outputs", "asymmetric"])
def test_pools_are_cut_alike(by: Rescore, uri: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(13, monkeypatch)
    told: list[list[Rescored | None]] = []
    for memory in (0.0, 2.0):
        found = Search(index="i", k=2, rescore=by, pool=7, memory=memory).finder(run).find(QUERIES)
        told.append([answer.rescored for answer in found if isinstance(answer, Answer)])
    assert told[0] == told[1] and any(one is not None and one.cut is not None for one in told[0])


def test_many_queries_share_a_reading_and_what_has_no_room_waits_for_the_next(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.open("i").add_codes([codes(range(100), run.fingerprint)], 8, run.fingerprint)
    readings, each = [], OnDisk.each

    def counted(self: OnDisk, work: Callable[[Block], T], threads: int) -> Iterator[T]:
        readings.append(threads)
        return each(self, work, threads)

    monkeypatch.setattr(OnDisk, "each", counted)
    queries = [f"0x{i % 256:02x}" for i in range(300)]
    expected = answers(run, 2, queries, k=3)
    readings.clear()
    assert answers(run, 0, queries, k=3, threads=3) == expected and readings == [3, 3]  # of 256, and of the rest
    expected = answers(run, 2, queries[:20], radius=8)
    monkeypatch.setattr(neighbors, "_POOLED", 450)  # all 100 codes are near to each query
    readings.clear()
    assert answers(run, 0, queries[:20], radius=8) == expected and len(readings) == 5


def test_how_much_is_held_is_told_by_codes_order_and_places(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Index.open("i").add_codes([codes(range(100), run.fingerprint)], 8, run.fingerprint)
    for memory, search, on_disk in (
        (100 * 17 / 2**30, {}, False),
        (100 * 17 / 2**30 * 0.99, {}, True),
        (20 * 17 / 2**30, {"label": ("cat",)}, False),
        (20 * 17 / 2**30 * 0.99, {"label": ("cat",)}, True),
    ):
        found = Search(index="i", memory=memory, **search).finder(run).database  # type: ignore[arg-type]
        assert isinstance(found.codes, OnDisk) == on_disk and len(found) == (20 if search else 100)


# Blocks, as programs have them


@pytest.mark.parametrize("rows", [1, 9, 1000])
def test_blocks_are_all_rows_with_their_places_and_order(rows: int, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index.open(uri)
    packed, known = index.codes(), index.rows(range(len(index)))
    small_blocks(rows, monkeypatch)
    index = Index.open(uri)
    for labels in (None, {"cat", None}, {"none such"}):
        chosen = [i for i, row in enumerate(known) if labels is None or row.label in labels]
        found: list[tuple[int, int, bytes]] = []
        for block in index.blocks(lambda block: block, labels, threads=2):
            assert len(block) <= rows
            places = block.places + np.arange(len(block)) if isinstance(block.places, int) else block.places
            order = block.order + np.arange(len(block)) if isinstance(block.order, int) else block.order
            assert (np.diff(order) > 0).all()
            assert (index.numbers(places) == index.numbers(places[::-1])[::-1]).all()
            found += zip(order.tolist(), places.tolist(), map(bytes, block.packed), strict=True)
        found.sort()
        ranks = index.numbers(np.array([place for _, place, _ in found], np.int64))
        assert ranks.tolist() == chosen
        assert [code for *_, code in found] == [packed[i].tobytes() for i in chosen]
        lies = [place for _, place, _ in found]
        assert index.rows_at(lies) == [known[i] for i in chosen]
        assert (index.outputs_at(lies) == index.outputs(chosen)).all()
    counts = index.label_counts()
    assert counts == {name: sum(row.label == name for row in known) for name in {row.label for row in known}}


def test_numbers_beyond_the_rows_are_refused(uri: str) -> None:
    index = Index.open(uri)
    for numbers in ([len(index)], [-1], [0, 10**12]):
        with pytest.raises(IndexError):
            index.rows(numbers)
        with pytest.raises(IndexError):
            index.outputs(numbers)
    assert index.rows([]) == []


def test_an_empty_index_has_no_blocks() -> None:
    index = Index.open("none")
    assert list(index.blocks(lambda block: block)) == [] and index.label_counts() == {}


def test_what_is_held_of_a_block_is_its_codes_alone_where_rows_lie_as_added(run: Run) -> None:
    Index.open("i").add_codes([codes(range(100), run.fingerprint)], 8, run.fingerprint)
    (block,) = Index.open("i").blocks(lambda block: block)
    assert (block.order, block.places) == (0, 0)
    (block,) = Index.open("i").blocks(lambda block: block, {"cat"})
    assert isinstance(block.order, np.ndarray) and len(block) == 20


# Damage, and versions that go


def test_damage_is_told_before_any_answer_as_in_memory(uri: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(16, monkeypatch)
    first, last = (Index.open(uri).rows([number])[0].path for number in (0, len(Index.open(uri)) - 1))
    for path in (first, last):
        lance.dataset(uri).update({"code": "X'01'"}, where=f"path = X'{path.encode().hex()}'")
    said = set()
    for memory in (0, 2):
        result = dsh("neighbors", "0xf0", "--index", uri, "--model", run.path, "--memory", memory)
        assert result.stdout == ""
        said.add(one_line_error(result, 1))
    assert len(said) == 1 and "2 rows are not what was written" in said.pop()


def test_a_label_that_was_changed_is_told_where_labels_are_read(run: Run) -> None:
    Index.open("i").add_codes([codes(range(50), run.fingerprint)], 8, run.fingerprint)
    lance.dataset("i").update({"label": "X'646f67'"}, where="number = 0")
    assert answers(run, 0, ["0x00"], k=1) == answers(run, 2, ["0x00"], k=1)
    for memory in (0, 2):
        with pytest.raises(IndexStateError, match="1 row is not what was written"):
            Search(index="i", label=("dog",), memory=memory).finder(run)


@pytest.mark.parametrize("memory", [0, 2])
def test_rows_that_were_lost_are_told(memory: float, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Index.open("i").add_codes([codes(range(50), run.fingerprint)], 8, run.fingerprint)
    total = Table._total.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Table, "_total", property(lambda self: total(self) + 1))
    with pytest.raises(IndexStateError, match="it has not the rows that were written"):
        list(Search(index="i", memory=memory).finder(run).find(["0x00"]))


@pytest.mark.parametrize("more", [1, -1])
def test_more_rows_or_fewer_than_the_table_says_are_told(more: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the list of those that were removed is damaged."""
    Index.open("i").add_codes([codes(range(50), run.fingerprint)], 8, run.fingerprint)
    small_blocks(7, monkeypatch)
    take = Table._take

    def taking(self: Table, dataset: lance.LanceDataset | None) -> None:
        take(self, dataset)
        self.rows += more

    monkeypatch.setattr(Table, "_take", taking)
    for read in (Index.codes, Index.labels, Index.label_counts, lambda index: index.rows([1])):
        with pytest.raises(IndexStateError, match="it has not the rows that were written"):
            read(Index.open("i"))
    with pytest.raises(IndexStateError, match="it has not the rows that were written"):
        Index.open("i").add_codes([codes(range(9), run.fingerprint)], 8, run.fingerprint)
    for memory in (0, 2):
        with pytest.raises(IndexStateError, match="it has not the rows that were written"):
            list(Search(index="i", memory=memory).finder(run).find(["0x00"]))


def test_two_rows_of_one_number_among_what_was_found_are_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    Index.open("i").add_codes([codes(range(10), run.fingerprint)], 8, run.fingerprint)
    rows = lance.dataset("i").to_table()
    lance.write_dataset(pa.concat_tables([rows, rows.slice(4, 1)]).replace_schema_metadata(rows.schema.metadata), "j")
    small_blocks(3, monkeypatch)
    with pytest.raises(IndexStateError, match="two rows of one number"):
        list(Search(index="j", k=11, memory=0).finder(run).find(["0x00"]))
    for place in (4, 10):
        with pytest.raises(IndexStateError, match="two rows of one number"):
            Index.open("j").numbers(np.array([place]))
    assert Index.open("j").numbers(np.array([3, 9])).tolist() == [3, 10]
    with pytest.raises(IndexStateError, match="two rows of one number"):
        Index.open("j").codes()


def test_a_search_of_the_disk_whose_version_is_gone_goes_on_with_the_newest(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_KEPT", timedelta(0))
    monkeypatch.setattr(table, "_KEPT_ALWAYS", 1)
    model = run.fingerprint
    Index.open("i").add_codes([codes(range(10), model)], 8, model)
    for search in (Search(index="i", memory=0), Search(index="i", memory=0, label=("cat",))):
        finder = search.finder(run)
        assert isinstance(finder.database.codes, OnDisk)
        Index.open("i").add_codes([codes(range(10 + len(Index.open("i"))), model)], 8, model)  # all updated, some new
        (answer,), (fresh,) = finder.find(["0x0f"]), search.finder(run).find(["0x0f"])
        assert isinstance(answer, Answer) and isinstance(fresh, Answer)
        assert answer.neighbors == fresh.neighbors and len(finder.database) == len(fresh.database) > 2
    pinned = Index.open("i")
    pinned.pin()
    Index.open("i").add_codes([codes(range(5), model)], 8, model)
    with pytest.raises(VersionGone):
        pinned.blocks(lambda block: block)


# The command


def test_the_command_has_both_options(uri: str, run: Run) -> None:
    line = ["neighbors", "0x1f", "--index", uri, "--model", run.path, "-k", 5]
    expected = dsh_json(*line)
    for options in (["--memory", 0], ["--memory", 0, "--threads", 1], ["--threads", 3], ["--memory", 0.5]):
        assert dsh_json(*line, *options) == expected
    assert "--memory" in one_line_error(dsh(*line, "--memory", -1), 2)
    assert "--threads" in one_line_error(dsh(*line, "--threads", 0), 2)
    said = one_line_error(dsh("neighbors", "0x1f", "--model", run.path, "--memory", 1), 2)
    assert said == "error: --memory says how many codes of --index are held; give both, or leave it"
    for memory in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="`memory`"):
            Search(index=uri, memory=memory).check()


# Memory

MEASURE = """
import sys, tracemalloc
import numpy as np
import faiss, lance, pyarrow.compute
from dsh_cli.codes.blocks import nearest_in
from dsh_cli.index import table
from dsh_cli.index.index import Index
from dsh_cli.index.search import codes_of
from tests.support.memory import peak

table._BLOCK_ROWS, table._READ_ROWS = (1 << 12, 1 << 14), 1 << 14
tracemalloc.start()
index = Index.open(sys.argv[1])
index.pin()
labels = None if sys.argv[2] == "all" else frozenset(["even"])
count = index.label_counts()["even"] if labels else len(index)
found = nearest_in(codes_of(index, labels, count, 0, 2), np.zeros((9, 8), np.uint8), 64, 10, None, 2)
index.rows_at(found[0].places), index.numbers(found[0].places), Index.open(sys.argv[1]).rows([0, 99])
index.report()
print([tracemalloc.get_traced_memory()[1] / 2**20, peak()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its own process")
def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    a_file, few, many = 100_000, 400_000, 2_000_000
    monkeypatch.setattr("dsh_cli.index.index._READY_ROWS", a_file)
    monkeypatch.setattr(table, "_FRAGMENTS", many)  # some files of one length, for which Lance has room
    rng = np.random.default_rng(0)
    for rows in (few, many):
        packed = rng.integers(0, 256, (rows, 8), np.uint8)
        parts = (slice(start, start + a_file) for start in range(0, rows, a_file))
        Index.open(f"{rows}").add_codes(
            [ReadyCodes([f"/{i}" for i in range(p.start, p.stop)], packed[p], ["even", "odd"] * (a_file // 2))
             for p in parts], 64, "model"
        )  # fmt: skip
    an_array = 8 * (many - few) / 2**20
    paths = os.pathsep.join(path for path in sys.path if path)  # where what tests share is
    # in one arena, else each of Lance's threads keeps what it once had
    one = unmeasured() | {"MALLOC_ARENA_MAX": "1", "PYTHONPATH": paths}
    for what in ("all", "labels"):
        (held, whole), (held_of_many, whole_of_many) = (
            json.loads(subprocess.check_output([sys.executable, "-c", MEASURE, f"{rows}", what], env=one))
            for rows in (few, many)
        )
        assert held_of_many - held < an_array / 8, f"{what}: NumPy and Python {held:.1f} and {held_of_many:.1f} MiB"
        assert whole_of_many - whole < 2 * an_array, f"{what}: {whole} and {whole_of_many} MiB in all"
