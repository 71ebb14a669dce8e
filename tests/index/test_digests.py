"""Damage: a bit that flipped, a file cut off, rows lost; each is told, or changes no answer."""

import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dsh_cli.errors import DshError, IndexStateError
from dsh_cli.index import digests, schema, storage, table
from dsh_cli.index.index import Index, ReadyCodes, Row
from dsh_cli.index.table import Table
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json
from tests.support.values import there

BITS = 12


def filled(uri: str, *batches: int) -> Index:
    """An index of ready codes, so many a commit, every other with a label."""
    rng, start = np.random.default_rng(0), 0
    for count in batches:
        packed = rng.integers(0, 256, (count, 2), np.uint8)
        packed[:, 1] &= 0xF0
        numbers = range(start, start + count)
        labels = [f"class {i % 7}" if i % 2 else None for i in numbers]
        Index.open(uri).add_codes([ReadyCodes([f"/p/{i}.png" for i in numbers], packed, labels)], BITS, "model")
        start += count
    return Index.open(uri)


Answers = tuple[object, ...]


def answers(uri: str) -> Answers:
    """All that an index says of what it holds, as `neighbors`, `info` and `export` ask for it."""
    index = Index.open(uri)
    labels, classes = index.labels()
    rows: list[Row] = index.rows(np.arange(len(index)))
    known = tuple(classes[label] if label >= 0 else None for label in labels)
    return index.codes().tobytes(), known, rows, len(index), index.bits, index.model, index.version, index.note


def outcome(uri: str, whole: Answers) -> str:
    """What a user sees of an index, of whose files some are damaged: "told", "same", or "changed"."""
    try:
        told = bool(Index.open(uri).verify(None, sample=0).failed) or Index.open(uri).note is not None
        said = answers(uri)
    except DshError:
        return "told"
    return "told" if told else "same" if said == whole else "changed"


def places(folder: Path, count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Files, each as likely as any other, and a place in each."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    chosen = random.Random(seed)
    for _ in range(count):
        file = chosen.choice(files)
        yield file, chosen.randrange(file.stat().st_size)


def flipped(uri: str, count: int, seed: int) -> list[tuple[str, Path, int]]:
    """What comes of a bit flipped in one place after another."""
    whole, found = answers(uri), []
    for number, (file, place) in enumerate(places(Path(uri), count, seed)):
        data = file.read_bytes()
        damaged = bytearray(data)
        damaged[place] ^= 1 << number % 8
        file.write_bytes(damaged)
        found.append((outcome(uri, whole), file, place))
        file.write_bytes(data)
    assert answers(uri) == whole
    return found


@pytest.fixture(params=["", "with rows removed"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An index of two commits, or one that was killed after a removal, before its files were made whole."""
    filled("i", 120, 60)
    if request.param:
        monkeypatch.setattr(Table, "_compact", lambda *args: None)
        Index.open("i").remove([f"/p/{i}.png" for i in range(0, 90, 3)])
        assert list(Path("i/_deletions").iterdir())
    return "i"


def test_a_bit_that_flips_anywhere_is_told_or_changes_nothing(made: str) -> None:
    found = flipped(made, 150, seed=0)
    assert [place for place in found if place[0] == "changed"] == []
    assert sum(place[0] == "told" for place in found) > 20


def test_a_file_cut_off_anywhere_is_told_or_changes_nothing(made: str) -> None:
    whole, found = answers("i"), []
    for file, place in places(Path("i"), 50, seed=0):
        data = file.read_bytes()
        file.write_bytes(data[:place])
        found.append((outcome("i", whole), file, place))
        file.write_bytes(data)
    assert [place for place in found if place[0] == "changed"] == []
    assert sum(place[0] == "told" for place in found) > 15


def test_a_file_that_is_lost_is_told_or_changes_nothing(made: str) -> None:
    whole, total, told = answers("i"), Index.open("i")._table._total, set[str]()
    newest = storage.manifests("i")[0][1]
    for file in sorted(path for path in Path("i").rglob("*") if path.is_file()):
        os.rename(file, "away")
        found = outcome("i", whole)
        if found == "told":
            told.add("newest" if file == newest else file.parent.name)
            shutil.copytree("i", "j")
            Index.open("j", salvage=True).verify(None, sample=0, repair=True)
            assert outcome("j", answers("j")) == "same"
            shutil.rmtree("j")
        else:
            assert found == "same", file
            assert Index.open("i")._table._total == total, f"rows lost after {file} would not show"
        os.rename("away", file)
    assert told == {"newest", "data"} | ({"_deletions"} if Path("i/_deletions").is_dir() else set())
    assert answers("i") == whole


# Sums

Value = tuple[bytes, bytes | None, bytes]  # path, label, code

ROWS = st.lists(
    st.tuples(st.binary(max_size=9), st.none() | st.binary(max_size=3), st.binary(min_size=3, max_size=3)), min_size=1
)


def rows(values: Sequence[Value]) -> pa.Table:
    paths, labels, codes = zip(*values, strict=True)
    nothing = [None] * len(paths)
    packed = np.frombuffer(b"".join(codes), np.uint8).reshape(-1, 3)
    return table.of_rows(np.arange(len(paths)), paths, labels, packed, nothing, nothing, nothing, 24, "m")


def sums(of: pa.Table) -> dict[str, list[int]]:
    return {name: digests.sums(of, name, "24 m").tolist() for name in digests.COLUMNS}


@given(ROWS, st.integers(0), st.integers(1, 9))
def test_sums_are_those_of_each_row_alone_however_the_rows_lie(values: list[Value], first: int, size: int) -> None:
    made = rows(values)
    assert sums(made) == {name: made[name].to_pylist() for name in digests.COLUMNS}
    first %= len(values)
    assert sums(made[first:]) == {name: of[first:] for name, of in sums(made).items()}
    assert sums(pa.Table.from_batches(made.to_batches(max_chunksize=size))) == sums(made)


@given(ROWS, st.data())
def test_one_value_that_differs_shows_in_its_row_alone(values: list[Value], data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, len(values) - 1)), data.draw(st.integers(0, 2))
    new = data.draw(ROWS.map(lambda rows: rows[0]).filter(lambda new: new[column] != values[row][column]))
    path, label, code = (new[i] if i == column else values[row][i] for i in range(3))
    assert path is not None and code is not None
    changed = [*values[:row], (path, label, code), *values[row + 1 :]]
    before, after = sums(rows(values)), sums(rows(changed))
    check = ("file_check", "label_check", "code_check")[column]
    assert before.pop(check)[row] != after.pop(check)[row]
    assert before == after


@pytest.mark.parametrize("about", ["24 other", "25 m"])
def test_sums_are_of_one_index(about: str) -> None:
    made = rows([(b"a", b"b", b"c  ")])
    assert all(digests.sums(made, name, about).tolist() != made[name].to_pylist() for name in digests.COLUMNS)


# An index of which a row was changed behind its back

CHANGES = [
    {"code": "X'0110'"}, {"label": "X'61'"}, {"label": "NULL"}, {"path": "X'2f702f3939'"},
    {"size": "1"}, {"mtime_ns": "0"}, {"number": "99"},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_row_that_was_changed_is_found_and_taken_out(change: dict[str, str]) -> None:
    whole = filled("i", 9).rows(np.arange(9))
    lance.dataset("i").update(change, where="number = 3")
    index = Index.open("i")
    with pytest.raises(IndexStateError, match="1 row is not what was written; see which with: dsh index verify i, and"):
        index.rows(np.arange(9))
    if "code" in change or "number" in change:
        with pytest.raises(IndexStateError, match="is not what was written"):
            index.codes()
    if "label" in change or "number" in change:
        with pytest.raises(IndexStateError, match="is not what was written"):
            index.labels()
    path = "/p/99" if "path" in change else "/p/3.png"
    found = dsh("index", "verify", "i", "--sample", 0)
    assert found.exit_code == 1 and found.stderr == (
        f"error: {path}: not what was written\n"
        "damaged: dsh index verify i --repair takes out such rows, and dsh index add adds them again\n"
    )
    repaired = dsh("index", "verify", "i", "--sample", 0, "--repair", "--json")
    assert (repaired.exit_code, repaired.stderr) == (0, f"{path}: not what was written, taken out\n")
    answer = json.loads(repaired.stdout)
    assert (answer["rows"], answer["removed"], answer["failed"]) == (8, 1, [])
    assert answer["repaired"] == [{"path": path, "error": "not what was written, taken out"}]
    index = Index.open("i")
    assert index.rows(np.arange(8)) == whole[:3] + whole[4:] and len(index.codes()) == 8
    assert Index.open("i").verify(None, sample=0).failed == ()


def test_rows_that_are_lost_or_come_back_are_told() -> None:
    filled("i", 9, 9)
    Index.open("i").remove(["/p/3.png"])
    newest = storage.manifests("i")[0][1]
    total = hex(there(Index.open("i")._table._total))[2:].encode()
    data = newest.read_bytes()
    assert data.count(total) == 1
    newest.write_bytes(data.replace(total, total[:-1] + (b"0" if total[-1:] != b"0" else b"1")))
    with pytest.raises(IndexStateError, match="it has not the rows that were written"):
        Index.open("i").codes()
    report = Index.open("i").verify(None, sample=0, repair=True)
    assert [(mended.path, mended.error) for mended in report.repaired] == [
        ("i", "rows were lost, or others came back; what is there now counts as all there is")
    ]
    assert report.failed == () and report.rows == 17 == len(Index.open("i").codes())


def test_that_nobody_knows_whether_rows_were_lost_is_told_until_it_is_repaired(digits_run: Path) -> None:
    model = Run.open(digits_run).fingerprint
    Index.open("i").add_codes([ReadyCodes([f"/p/{i}" for i in range(9)], np.zeros((9, 1), np.uint8))], 8, model)
    newest = storage.manifests("i")[0][1]
    newest.write_bytes(newest.read_bytes().replace(b"dsh.total", b"dsh.tatol"))
    for line in (["--sample", "0"], ["--model", digits_run]):
        found = json.loads(dsh("index", "verify", "i", *line, "--json").stdout)
        assert found["failed"][0]["error"].startswith("whether rows were lost cannot be told")
    assert found["checked"] == 9  # pictures are looked at all the same
    Index.open("i").add_codes([ReadyCodes(["/p/9"], np.zeros((1, 1), np.uint8))], 8, model)
    assert len(Index.open("i").verify(None, sample=0).failed) == 1
    Index.open("i").verify(None, sample=0, repair=True)
    assert Index.open("i").verify(None, sample=0).failed == () and len(Index.open("i")) == 10


def test_an_index_whose_only_manifest_is_lost_is_not_taken_for_none() -> None:
    filled("i", 9)
    storage.manifests("i")[0][1].unlink()
    with pytest.raises(IndexStateError, match="all of its versions are gone; bring i/_versions back from a copy"):
        Index.open("i")


@pytest.mark.parametrize(
    ("old", "new"), [(b"code_check", b"code_chesk"), (b"dsh.format\x12\x012", b"dsh.format\x12\x011")]
)
def test_an_index_that_lost_the_word_that_it_has_digests_is_not_read_as_one_without(old: bytes, new: bytes) -> None:
    filled("i", 9)
    lance.dataset("i").update({"code": "X'0110'"}, where="number = 3")
    newest = storage.manifests("i")[0][1]
    data = newest.read_bytes()
    assert old in data
    newest.write_bytes(data.replace(old, new))
    with pytest.raises(IndexStateError, match="damaged"):
        Index.open("i").codes()


def test_what_is_damaged_is_not_written_again_as_if_it_were_whole(digits_run: Path) -> None:
    run = Run.open(digits_run)
    os.mkdir("in")
    for i in range(4):
        Image.effect_noise((8, 8), 90).save(f"in/{i}.png")
    Index.open("i").add(run, ["in"])
    lance.dataset("i").update({"code": "X'ff'"}, where="number = 2")
    os.utime("in/2.png", (1, 1))  # has the same content, so that its code would be kept
    with pytest.raises(IndexStateError, match="1 row is not what was written"):
        Index.open("i").add(run, ["in"])
    verified = dsh("index", "verify", "i", "--model", digits_run, "--repair", "--json")
    assert verified.exit_code == 0 and verified.stderr.endswith("in/2.png: not what was written, taken out\n")
    assert json.loads(verified.stdout)["checked"] == 3
    assert Index.open("i").add(run, ["in"]).added == 1 and len(Index.open("i").codes()) == 4


# An index of format 1, whose rows have no digests


def of_format_1(uri: str, model: str = "model") -> None:
    old = filled("new", 20)._table
    rows = old.read(schema.columns(BITS, checks=False).names)
    about = {"dsh.format": "1", "dsh.bits": str(BITS), "dsh.model": model}
    lance.write_dataset(rows.replace_schema_metadata(about), uri)


def test_an_index_without_digests_is_read_says_so_and_gets_them() -> None:
    of_format_1("i")
    new, old = Index.open("new"), Index.open("i")
    assert old.codes().tobytes() == new.codes().tobytes() and old.rows(range(20)) == new.rows(range(20))
    assert old.labels()[0].tolist() == new.labels()[0].tolist()
    assert dsh_json("index", "info", "i")["digests"] is False
    said = dsh("index", "verify", "i", "--sample", 0, "--format", "table")
    assert said.exit_code == 0 and "none, so damage does not show" in said.stdout
    for uri in ("added", "removed", "repaired"):
        shutil.copytree("i", uri)
    Index.open("added").add_codes([ReadyCodes(["/p/20"], np.zeros((1, 2), np.uint8))], BITS, "model")
    assert Index.open("removed").remove(["/p/0.png"]).removed == 1
    assert dsh("index", "verify", "repaired", "--sample", 0, "--repair").exit_code == 0
    for uri, count in (("added", 21), ("removed", 19), ("repaired", 20)):
        index = Index.open(uri)
        assert index.report().digests and len(index.codes()) == count
        assert index.verify(None, sample=0).failed == ()
    assert Index.open("repaired").rows(range(20)) == new.rows(range(20))
