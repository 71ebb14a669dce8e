"""Readers of an index that is written and cleaned meanwhile: what they get is of one version, and none ends for it."""

import threading
import time
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pytest

from dsh_cli.errors import IndexStateError, VersionGone
from dsh_cli.index import table
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.neighbors import Answer, Search
from dsh_cli.runs.run import Run


@pytest.fixture
def run(digits_run: Path) -> Run:
    return Run.open(digits_run)


@pytest.fixture
def cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    """No version is kept once it was replaced."""
    monkeypatch.setattr(table, "_KEPT", timedelta(0))
    monkeypatch.setattr(table, "_KEPT_ALWAYS", 1)


def put(model: str, first: int, count: int = 4) -> None:
    """Codes from one on, each with its hex form as label; those there already are replaced."""
    codes = np.arange(first, first + count, dtype=np.uint8).reshape(-1, 1)
    labels = [f"{first + i:02x}" for i in range(count)]
    Index.open("i").add_codes([ReadyCodes([f"/{i}" for i in range(count)], codes, labels)], 8, model)


def test_a_version_is_kept_for_an_hour_after_it_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_KEPT", timedelta(seconds=1))
    put("m", 0)
    time.sleep(1.1)  # now it is old, and was the newest until it is replaced
    reader = Index.open("i")
    put("m", 10)
    assert reader.codes().ravel().tolist() == [0, 1, 2, 3] and reader.version == 1
    time.sleep(1.1)
    put("m", 20)
    assert 1 not in {version["version"] for version in lance.dataset("i").versions()}


@pytest.mark.usefixtures("cleaned")
def test_a_reader_whose_version_is_cleaned_away_goes_on_with_the_newest() -> None:
    put("m", 0)
    readers = [Index.open("i") for _ in range(5)]
    put("m", 10, 6)
    assert readers[0].codes().ravel().tolist() == [10, 11, 12, 13, 14, 15] and len(readers[0]) == 6
    assert tuple(sorted(readers[1].labels()[1])) == ("0a", "0b", "0c", "0d", "0e", "0f")
    assert readers[2].rows([5])[0].path == "/5"
    assert readers[3].report().rows in (4, 6)
    assert readers[4].export("out").rows == 6


@pytest.mark.usefixtures("cleaned")
def test_what_is_read_later_is_of_the_version_read_before_or_refused() -> None:
    put("m", 0)
    reader = Index.open("i")
    assert reader.codes().ravel().tolist() == [0, 1, 2, 3]
    put("m", 10)
    for read in (reader.labels, lambda: reader.rows([0])):
        with pytest.raises(
            VersionGone, match="version 1 of index i is gone, for it was replaced; open the index again"
        ):
            read()
    assert [row.label for row in Index.open("i").rows([0])] == ["0a"]


@pytest.mark.usefixtures("cleaned")
def test_a_damaged_version_is_not_taken_for_one_cleaned_away() -> None:
    put("m", 0)
    reader = Index.open("i")
    for file in Path("i/data").iterdir():
        file.write_bytes(b"")
    with pytest.raises(IndexStateError, match="damaged") as caught:
        reader.codes()
    assert not isinstance(caught.value, VersionGone)


def test_nor_is_one_that_is_damaged_while_the_one_before_it_is_whole() -> None:
    put("m", 0)
    kept = set(Path("i/data").iterdir())
    Index.open("i").add_codes([ReadyCodes(["/more"], np.zeros((1, 1), np.uint8))], 8, "m")
    reader = Index.open("i")
    for file in set(Path("i/data").iterdir()) - kept:
        file.write_bytes(b"")
    with pytest.raises(IndexStateError, match="damaged") as caught:
        reader.codes()
    assert not isinstance(caught.value, VersionGone)
    assert len(Index.open("i")) == 4


@pytest.mark.usefixtures("cleaned")
def test_neighbors_go_on_with_the_newest(run: Run) -> None:
    put(run.fingerprint, 0)
    finder = Search(index="i", k=1).finder(run)

    def queries() -> list[str]:
        return ["0x00", "0x0d"]

    before = list(finder.find(queries()))
    put(run.fingerprint, 10, 6)
    after = list(finder.find(queries()))
    for answers, codes in ((before, ["00", "01"]), (after, ["0a", "0d"])):
        found = [answer.neighbors[0] for answer in answers if isinstance(answer, Answer)]
        assert [neighbor.code for neighbor in found] == [neighbor.label for neighbor in found] == codes
    assert len(finder.database) == 6
    put(run.fingerprint, 20)
    narrow = Search(index="i", k=1, label=("15",)).finder(run)
    put(run.fingerprint, 20, 3)
    assert [answer.neighbors[0].code for answer in narrow.find(["0x00"]) if isinstance(answer, Answer)] == ["15"]


@pytest.mark.usefixtures("cleaned")
@pytest.mark.parametrize("memory", [0, 2])  # GiB: read for each search, or held
def test_neighbors_in_a_race_with_a_writer_are_of_one_version(memory: float, run: Run) -> None:
    put(run.fingerprint, 0)
    stop = threading.Event()

    def write() -> None:
        for first in range(1, 10_000):
            if stop.is_set():
                return
            put(run.fingerprint, first % 200, 4 + first % 3)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        versions = set()
        finder = Search(index="i", k=4, memory=memory).finder(run)
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for answer in finder.find(["0x00"]):
                assert isinstance(answer, Answer)
                assert all(neighbor.code == neighbor.label for neighbor in answer.neighbors)
                versions.add(id(answer.database))
    finally:
        stop.set()
        writer.join()
    assert len(versions) > 3, "no version was cleaned away"
