"""An index: what it keeps, skips and refuses; that it is whole after a kill, in a race, and for a reader meanwhile."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from PIL import Image

from dsh_cli.codes.bits import pack, to_hex
from dsh_cli.codes.nearest import nearest
from dsh_cli.errors import DataError, DshError, ImageError, IndexStateError, UsageError
from dsh_cli.index import schema, storage, table
from dsh_cli.index.index import Index, ReadyCodes, Report, Row
from dsh_cli.index.place import local, locked
from dsh_cli.pictures import decode
from dsh_cli.pictures.decode import Form, Picture
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json, dsh_process, one_line_error
from tests.support.runs import edit, reseal
from tests.support.values import there

NOT_UTF8 = os.fsdecode(b"caf\xe9.png")


def pictures(folder: Path | str, count: int, start: int = 0, seed: int = 0) -> str:
    """So many small grey pictures, each different."""
    rng = np.random.default_rng(seed)
    os.makedirs(folder, exist_ok=True)
    for i in range(start, start + count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(f"{folder}/{i:04d}.png")
    return str(folder)


@pytest.fixture
def run(digits_run: Path) -> Run:
    return Run.open(digits_run)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Two classes of four pictures."""
    for number, label in enumerate(("one", "two")):
        pictures(tmp_path / "in" / label, 4, seed=number)
    return str(tmp_path / "in")


def contents(uri: str, base: str | None = None) -> dict[str, tuple[str, str | None]]:
    """Path -> code and label, in order; each path once."""
    opened = Index.open(uri)
    rows = opened.rows(np.arange(len(opened)))
    codes = to_hex(opened.codes(), there(opened.bits)) if len(opened) else []
    found = {os.path.relpath(row.path, base) if base else row.path: (code, row.label)
             for row, code in zip(rows, codes, strict=True)}  # fmt: skip
    assert len(found) == len(rows)
    return found


def counts(report: Report) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.skipped, report.removed, len(report.failed)


def hashed(path: str, run_folder: Path) -> str:
    return str(dsh_json("hash", path, "--model", run_folder)["code"])


# Adding


def test_the_command_line_adds_what_hash_prints_and_says_what_it_did(digits_run: Path, folder: str) -> None:
    line = ["index", "add", "i.lance", folder, "--model", digits_run]
    first = dsh_json(*line)
    fingerprint = Run.open(digits_run).fingerprint
    assert first == {
        "index": "i.lance", "bits": 8, "rows": 8, "model": fingerprint, "version": 1, "versions": 1,
        "whole_versions": 1, "digests": True, "outputs": False, "outputs_scale": None,
        "added": 8, "updated": 0, "skipped": 0, "removed": 0, "failed": [],
    }  # fmt: skip
    assert dsh_json(*line) | {"added": 8, "skipped": 0} == first
    info = dsh_json("index", "info", "i.lance")
    assert info == first | {"added": 0}
    result = dsh("hash", folder, "--model", digits_run)
    expected = {path: (code, None) for code, path in (row.split("  ") for row in result.stdout.splitlines())}
    assert contents("i.lance") == expected and list(contents("i.lance")) == sorted(expected)
    table = dsh("index", "info", "i.lance", "--format", "table").stdout
    assert "8 codes of 8 bits" in table and fingerprint in table
    assert f"model\t{fingerprint}\n" in dsh("index", "info", "i.lance").stdout


def test_neighbors_looks_in_it(digits_run: Path, folder: str) -> None:
    dsh_json("index", "add", "i.lance", folder, "--model", digits_run, "--labels", "folder")
    query = f"{folder}/two/0002.png"
    answer = dsh_json("neighbors", query, "--index", "i.lance", "--model", digits_run, "-k", 8)
    opened = Index.open("i.lance")
    rows, distances = nearest(opened.codes(), opened.codes()[6:7], 8, 8)
    assert [n["path"] for n in answer["neighbors"]] == [row.path for row in opened.rows(rows[0])]
    assert [n["distance"] for n in answer["neighbors"]] == distances[0].tolist()
    assert query in [n["path"] for n in answer["neighbors"] if n["distance"] == 0 and n["label"] == "two"]


def test_neighbors_of_a_label_are_found_without_reading_every_row(
    run: Run, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.open("i").add(run, [f"{folder}/two"], labels="folder")
    Index.open("i").add(run, [f"{folder}/one"])
    Index.open("i").add(run, [f"{folder}/one/0001.png"], labels="folder")  # which moves it in the table, not in order
    Index.open("i").remove([f"{folder}/two/0000.png"])
    opened = Index.open("i")
    numbers, names = opened.labels()
    assert [None if n < 0 else names[n] for n in numbers] == [row.label for row in opened.rows(np.arange(7))]
    asked, rows = [], Index.rows_at

    def counted(self: Index, some: Sequence[int]) -> list[Row]:
        asked.append(len(some))
        return rows(self, some)

    monkeypatch.setattr(Index, "rows_at", counted)
    line: list[object] = ["neighbors", "0xf0", "--index", "i", "--model", run.path, "-k", 2]
    for option, kept in ((["--label", "two"], {"two"}), (["--not-label", "two"], {"one", None}),
                         (["--label", "two", "--label", "one"], {"two", "one"})):  # fmt: skip
        assert {n["label"] for n in dsh_json(*line, *option)["neighbors"]} <= kept
        assert len(dsh_json(*line, *option, "-k", 9)["neighbors"]) == sum(
            row.label in kept for row in opened.rows(range(7))
        )
    assert max(asked) <= 5
    Index.open("j").add(run, [folder])
    assert Index.open("j").labels()[0].tolist() == [-1] * 8 and Index.open("none").labels()[0].tolist() == []
    said = one_line_error(dsh("neighbors", "0xf0", "--index", "j", "--model", run.path, "--label", "two"), 2)
    assert "no class 'two' in index j; its classes: none" in said


def test_what_is_unchanged_is_not_even_read_and_what_changed_keeps_its_place(
    run: Run, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.open("i").add(run, [folder])
    before = contents("i", folder)
    Image.effect_noise((8, 8), 90).save(f"{folder}/one/0001.png")  # changed
    os.utime(f"{folder}/one/0002.png", (1, 1))  # touched
    pictures(f"{folder}/two", 1, start=9, seed=9)  # new
    reads, decoded = [], []
    read, pixels = decode.read_bytes, decode.decode

    def reading(path: str) -> bytes:
        reads.append(path)
        return read(path)

    def decoding(data: bytes, form: Form) -> Picture:
        decoded.append(data)
        return pixels(data, form)

    with monkeypatch.context() as patch:
        patch.setattr(decode, "read_bytes", reading)
        patch.setattr(decode, "decode", decoding)
        report = Index.open("i").add(run, [folder])
    assert counts(report) == (1, 1, 7, 0, 0) and report.rows == 9
    assert sorted(reads) == [f"{folder}/{name}.png" for name in ("one/0001", "one/0002", "two/0009")]  # once each
    assert len(decoded) == 2
    after = contents("i", folder)
    assert list(after) == [*before, "two/0009.png"]
    assert after["one/0001.png"] == (hashed(f"{folder}/one/0001.png", run.path), None)
    assert {p: c for p, c in after.items() if p in before and p != "one/0001.png"} == {
        p: c for p, c in before.items() if p != "one/0001.png"
    }
    assert counts(Index.open("i").add(run, [folder])) == (0, 0, 9, 0, 0)
    assert Index.open("i").rows([2])[0].mtime_ns == 10**9


def test_search_and_rows_agree_after_many_changes(run: Run, folder: str) -> None:
    rng = random.Random(0)
    expected: dict[str, None] = {}
    for step in range(12):
        names = [f"{folder}/{rng.choice(['one', 'two'])}/{rng.randrange(12):04d}.png" for _ in range(4)]
        for name in names:
            Image.effect_noise((8, 8), 60 + rng.randrange(60)).save(name)
        Index.open("i").add(run, names, commit_rows=rng.choice([1, 2, 100]))
        for name in names:
            expected.setdefault(name, None)
        gone = rng.choice(sorted(expected))
        if step % 2:
            assert Index.open("i").remove([gone]).removed == 1
            del expected[gone]
        found = contents("i")
        assert list(found) == list(expected)
        assert [code for code, _ in found.values()] == [hashed(name, run.path) for name in expected]


def test_many_small_additions_leave_few_files_and_keep_the_order(run: Run, tmp_path: Path) -> None:
    import lance

    for i in range(20):
        Index.open("i").add(run, [pictures(tmp_path / "in", 1, start=19 - i, seed=i)])
    assert [Path(path).name for path in contents("i")] == [f"{i:04d}.png" for i in range(19, -1, -1)]
    assert len(lance.dataset("i").get_fragments()) <= table._FRAGMENTS


def test_old_versions_do_not_pile_up(run: Run, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "_KEPT", timedelta(0))
    for i in range(3):
        Index.open("i").add(run, [pictures(f"{folder}/one", 1, start=10 + i, seed=i)])
    assert Index.open("i").report().versions == 2 and len(contents("i")) == 7  # one to go back to


def test_paths_given_twice_or_in_several_ways_are_added_once(run: Run, folder: str) -> None:
    os.chdir(folder)
    report = Index.open("i").add(run, ["one/0001.png", "one", ".", f"{folder}/two/../one/0001.png", "two"])
    assert counts(report) == (8, 0, 0, 0, 0)
    assert [os.path.relpath(path) for path in contents("i")][:2] == ["one/0001.png", "one/0000.png"]


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_paths_and_labels_that_are_not_utf8_survive(run: Run, digits_run: Path, tmp_path: Path) -> None:
    label = os.fsdecode(b"\xe9t\xe9")
    pictures(f"in/{label}", 1)
    os.rename(f"in/{label}/0000.png", f"in/{label}/{NOT_UTF8}")
    Index.open("i").add(run, ["in"], labels="folder")
    path = f"{tmp_path}/in/{label}/{NOT_UTF8}"
    assert [(row.path, row.label) for row in Index.open("i").rows([0])] == [(path, label)]
    assert counts(Index.open("i").add(run, ["in"])) == (0, 0, 1, 0, 0)
    Index.open("i").export("out.parquet")
    import pyarrow.parquet as pq

    row = pq.read_table("out.parquet").to_pylist()[0]
    assert row["path_bytes"] == os.fsencode(path) and row["path"].endswith(r"\xe9t\xe9/caf\xe9.png")
    Path("list").write_bytes(os.fsencode(path) + b"\n")
    removed = dsh_process("index", "remove", "i", "-", "--json", input=Path("list").read_bytes())
    assert json.loads(removed.stdout)["removed"] == 1, removed.stderr


def test_relative_paths(run: Run, folder: str, tmp_path: Path) -> None:
    Index.open("i").add(run, [folder], relative_to=folder)
    assert list(contents("i"))[0] == "one/0000.png"
    os.rename(folder, tmp_path / "moved")
    moved = str(tmp_path / "moved")
    assert counts(Index.open("i").add(run, [moved], relative_to=moved)) == (0, 0, 8, 0, 0)
    assert Index.open("i").verify(run, relative_to=moved).failed == ()
    for line in (["verify", "i", "--model", run.path], ["add", "i", moved, "--model", run.path]):
        assert "name it with --relative-to" in one_line_error(dsh("index", *line), 2)
    assert "no such folder" in one_line_error(
        dsh("index", "verify", "i", "--relative-to", "nowhere", "--model", run.path), 2
    )
    pictures("elsewhere", 1)
    failed = Index.open("i").add(run, ["elsewhere"], relative_to=moved).failed
    assert len(failed) == 1 and "not below" in failed[0].error
    assert counts(Index.open("i").remove([f"{moved}/one"], relative_to=moved)) == (0, 0, 0, 4, 0)
    # relative to where one happens to be all are gone
    error = one_line_error(dsh("index", "remove", "i", "--missing"), 2)
    assert "--relative-to" in error and len(Index.open("i")) == 4
    assert Index.open("i").remove(missing=True, relative_to=moved).removed == 0
    os.remove(f"{moved}/two/0000.png")
    said = dsh("index", "verify", "i", "--model", run.path, "--relative-to", moved).stderr
    assert said.endswith(f"missing: dsh index remove i --missing --relative-to {moved} takes them out\n")


def test_absolute_and_relative_paths_are_not_mixed(run: Run, folder: str) -> None:
    Index.open("i").add(run, [folder])
    error = one_line_error(dsh("index", "add", "i", folder, "--relative-to", folder, "--model", run.path), 2)
    assert "absolute; leave --relative-to out" in error and len(Index.open("i")) == 8


def test_pictures_that_a_label_file_says_nothing_of_are_counted(digits_run: Path, folder: str) -> None:
    Path("labels.csv").write_text(f"path,label\n{folder}/one/0000.png,uno\n")
    done = dsh("index", "add", "i", folder, "--model", digits_run, "--labels", "labels.csv")
    assert done.stderr.endswith("warning: labels.csv has no label for 7 pictures\n") and done.exit_code == 0


def test_labels(run: Run, folder: str) -> None:
    def labels() -> list[str | None]:
        return [label for _, label in contents("i").values()]

    Index.open("i").add(run, [folder])
    assert labels() == [None] * 8
    assert counts(Index.open("i").add(run, [folder], labels="folder")) == (0, 8, 0, 0, 0)
    assert labels() == ["one"] * 4 + ["two"] * 4
    before = contents("i")
    Image.effect_noise((8, 8), 90).save(f"{folder}/one/0001.png")
    assert counts(Index.open("i").add(run, [folder])) == (0, 1, 7, 0, 0)  # known labels stay
    assert labels() == ["one"] * 4 + ["two"] * 4
    Path("labels.csv").write_text(f"path,label\n{folder}/one/0000.png,uno\n{folder}/two/0000.png,dos\n")
    report = Index.open("i").add(run, [folder], labels="labels.csv")
    assert counts(report) == (0, 8, 0, 0, 0) and report.unlabelled == 6
    assert labels() == ["uno", None, None, None, "dos", None, None, None]
    assert counts(Index.open("i").add(run, [folder], labels="none")) == (0, 2, 6, 0, 0)
    assert labels() == [None] * 8 and list(contents("i")) == list(before)
    Index.open("j").add(run, [f"{folder}/one", f"{folder}/two/0000.png"], labels="folder")
    assert [label for _, label in contents("j").values()] == ["one"] * 4 + ["two"]
    with pytest.raises(UsageError, match="no such file"):
        Index.open("i").add(run, [folder], labels="nowhere.csv")
    Path("labels.csv").write_text("path,label\nnone.png,uno\n")
    with pytest.raises(DataError, match="line 2"):
        Index.open("i").add(run, [folder], labels="labels.csv")


def test_what_cannot_be_read_is_reported_and_the_others_go_on(digits_run: Path, folder: str) -> None:
    Path(folder, "one", "0001.png").write_text("no picture")
    os.symlink("nowhere", f"{folder}/two/x.png")
    result = dsh("index", "add", "i", folder, "none.png", "--model", digits_run, "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert answer["rows"] == answer["added"] == 7
    assert sorted(f["path"] for f in answer["failed"]) == [
        f"{folder}/one/0001.png", f"{folder}/two/x.png", "none.png"
    ]  # fmt: skip
    assert len(result.stderr.splitlines()) == 3 and "no such file" in result.stderr
    Path(folder, "one", "0002.png").write_text("no picture now")
    assert json.loads(dsh("index", "add", "i", folder, "--model", digits_run, "--json").stdout)["rows"] == 7


def test_lists_on_standard_input(digits_run: Path, folder: str) -> None:
    names = [f"{folder}/one/{i:04d}.png" for i in range(3)]
    result = dsh("index", "add", "i", "-", "--model", digits_run, "--json", input="\n".join(names) + "\n")
    assert json.loads(result.stdout)["added"] == 3, result.stderr
    assert list(contents("i")) == names


def note(seen: list[tuple[int, int]], done: int, total: int) -> None:
    seen.append((done, total))


def test_progress_reaches_its_end(run: Run, folder: str) -> None:
    for expected in ((8, 0), (0, 8)):
        seen: list[tuple[int, int]] = []
        report = Index.open("i").add(run, [folder], progress=partial(note, seen))
        assert (report.added, report.skipped) == expected
        assert seen[-1] == (8, 8) and [done for done, _ in seen] == list(range(1, 9))


# Ready codes, any number of bits


@pytest.mark.parametrize("bits", [1, 8, 12, 33, 64, 65, 1024])
def test_ready_codes_of_any_length(bits: int, tmp_path: Path) -> None:
    packed = pack(np.random.default_rng(bits).integers(0, 2, (500, bits)))
    names = [f"/somewhere/{i}" for i in range(500)]
    batches = [ReadyCodes(names[:200], packed[:200], ["a"] * 200), ReadyCodes(names[200:], packed[200:])]
    report = Index.open("i").add_codes(batches, bits, "model")
    assert (report.added, report.bits, report.model, report.version) == (500, bits, "model", 1)
    opened = Index.open("i")
    assert (opened.codes() == packed).all()
    assert [(r.path, r.label, r.hash) for r in opened.rows([0, 499])] == [
        ("/somewhere/0", "a", None), ("/somewhere/499", None, None)
    ]  # fmt: skip
    changed = ~packed[[3, 250]] & pack(np.ones((2, bits)))
    again = ReadyCodes(["new", names[250], names[3]], np.concatenate([packed[:1], changed[::-1]]))
    assert counts(opened.add_codes([again], bits, "model")) == (1, 2, 0, 0, 0)
    expected = np.concatenate([packed, packed[:1]])
    expected[[3, 250]] = changed
    assert (Index.open("i").codes() == expected).all()


def test_many_ready_codes_are_committed_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.index.index._READY_ROWS", 100)
    packed = np.random.default_rng(0).integers(0, 256, (300, 2), np.uint8)
    held = []

    def batches() -> Iterator[ReadyCodes]:
        for start in range(0, 300, 60):
            held.append(len(Index.open("i")))
            yield ReadyCodes([f"/{i}" for i in range(start, start + 60)], packed[start : start + 60])

    assert Index.open("i").add_codes(batches(), 16, "model").added == 300
    assert held == [0, 0, 120, 120, 240]
    assert (Index.open("i").codes() == packed).all()


@pytest.mark.skipif(os.name != "posix", reason="another process waits for a lock")
def test_who_waits_for_another_process_is_told(run: Run, folder: str) -> None:
    with Index.open("i")._table.writing(lambda: None):
        command = [sys.executable, "-m", "dsh_cli", "index", "add", "i", folder, "--model", str(run.path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        too_late = threading.Timer(120, process.kill)
        too_late.start()
        said = there(process.stderr).readline()
    process.communicate()
    too_late.cancel()
    assert said == "another process is writing i; waiting for it\n"
    assert process.returncode == 0 and len(Index.open("i")) == 8


def test_ready_codes_that_do_not_fit(run: Run, folder: str) -> None:
    code = np.array([[0xF0]], np.uint8)
    with pytest.raises(UsageError, match="comes twice"):
        Index.open("i").add_codes([ReadyCodes(["a", "a"], code.repeat(2, 0))], 8, "m")
    with pytest.raises(UsageError, match="shape"):
        Index.open("i").add_codes([ReadyCodes(["a"], code)], 9, "m")
    with pytest.raises(UsageError, match="bits set behind"):
        Index.open("i").add_codes([ReadyCodes(["a"], code | np.uint8(1))], 7, "m")
    with pytest.raises(UsageError, match="1 to 1024"):
        Index.open("i").add_codes([], 0, "m")
    assert len(Index.open("i")) == 0
    Index.open("i").add_codes([ReadyCodes(["a"], code)], 8, "m")
    Index.open("i").add_codes([ReadyCodes(["a"], code, ["cat"])], 8, "m")
    Index.open("i").add_codes([ReadyCodes(["a", "s3://b/x.png"], code.repeat(2, 0))], 8, "m")
    assert [row.label for row in Index.open("i").rows([0, 1])] == ["cat", None]  # as with add, known ones stay
    with pytest.raises(IndexError):
        Index.open("i").rows([-1])
    assert Index.open("i").remove(["s3://b/x.png"]).removed == 1
    with pytest.raises(IndexStateError, match="of model m"):
        Index.open("i").add_codes([ReadyCodes(["b"], code)], 8, "n")
    with pytest.raises(IndexStateError, match=f"of model m.*{run.fingerprint}"):
        Index.open("i").add(run, [folder])


# Removing, verifying, handing on


def test_remove(digits_run: Path, folder: str) -> None:
    run = Run.open(digits_run)
    Index.open("i").add(run, [folder])
    assert dsh_json("index", "remove", "i", f"{folder}/one/0000.png")["removed"] == 1
    assert dsh_json("index", "remove", "i", f"{folder}/*3.png")["removed"] == 2
    os.remove(f"{folder}/two/0001.png")
    assert dsh_json("index", "remove", "i", "--missing")["removed"] == 1
    assert [os.path.relpath(path, folder) for path in contents("i")] == [
        "one/0001.png", "one/0002.png", "two/0000.png", "two/0002.png"
    ]  # fmt: skip
    result = dsh("index", "remove", "i", "nothing", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["failed"] == [
        {"path": "nothing", "error": "not in the index"}
    ]
    assert "nothing to remove" in one_line_error(dsh("index", "remove", "i"), 2)
    os.chdir(folder)
    assert dsh_json("index", "remove", f"{folder}/../i", "one", ".")["rows"] == 0
    os.chdir("..")
    assert dsh_json("index", "info", "i") | {"version": 0, "versions": 0, "whole_versions": 0} == {
        "index": "i", "bits": None, "rows": 0, "model": None, "version": 0, "versions": 0, "whole_versions": 0,
        "digests": True, "outputs": False, "outputs_scale": None,
        "added": 0, "updated": 0, "skipped": 0, "removed": 0, "failed": [],
    }  # fmt: skip
    assert counts(Index.open("i").add_codes([ReadyCodes(["a"], np.zeros((1, 3), np.uint8))], 24, "other"))[0] == 1
    assert (Index.open("i").bits, Index.open("i").model) == (24, "other")


def test_a_path_with_signs_of_a_glob_is_itself(run: Run, tmp_path: Path) -> None:
    pictures("in[1]", 2)
    pictures("in1", 1)
    Index.open("i").add(run, ["in[1]", "in1"])
    assert Index.open("i").remove(["in[1]"]).removed == 2
    assert Index.open("i").remove(["in[1]"]).removed == 1  # now the glob


def test_verify_says_what_differs(digits_run: Path, folder: str) -> None:
    run = Run.open(digits_run)
    Index.open("i").add(run, [folder])
    answer = dsh_json("index", "verify", "i", "--model", digits_run)
    assert (answer["checked"], answer["failed"]) == (8, [])
    rows_alone = dsh("index", "verify", "i", "--sample", 0, "--format", "table").stdout
    assert "rows and 0 pictures checked, 0 differ" in rows_alone
    os.remove(f"{folder}/one/0000.png")
    Path(folder, "one", "0001.png").write_bytes(b"no picture")
    with open(f"{folder}/one/0002.png", "ab") as file:
        file.write(b"\0")  # other content, same pixels
    shutil.copy(f"{folder}/one/0003.png", f"{folder}/two/0000.png")
    os.remove(f"{folder}/two/0002.png")
    rotten = Path(folder, "two", "0003.png")
    status, content = rotten.stat(), bytearray(rotten.read_bytes())
    content[-6] ^= 1  # of the last chunk, in which there is nothing
    rotten.write_bytes(content)
    os.utime(rotten, ns=(status.st_atime_ns, status.st_mtime_ns))
    wrong = Index.open("i").codes()[5:6] ^ np.uint8(0b10000001)
    name = f"{folder}/two/0001.png"
    Index.open("i").add_codes([ReadyCodes([name], wrong)], 8, run.fingerprint)
    result = dsh("index", "verify", "i", "--model", digits_run, "--json")
    found = {os.path.relpath(f["path"], folder): f["error"] for f in json.loads(result.stdout)["failed"]}
    assert result.exit_code == 1
    assert found.pop("two/0000.png").startswith("changed content")
    assert found == {
        "one/0000.png": "missing",
        "two/0002.png": "missing",
        "two/0003.png": "changed content, but neither size nor time",
        "one/0001.png": "cannot be read: not a picture, or of a format Pillow does not know",
        "one/0002.png": "changed content",
        "two/0001.png": "changed code (2 bits)",
    }
    assert [line for line in result.stderr.splitlines() if not line.startswith("error: ")] == [
        "missing: dsh index remove i --missing takes them out",
        "cannot be read: see to these files, or take them out with: dsh index remove i PATH",
        "changed content: dsh index add i PATH encodes them again",
        "changed code: dsh index remove i PATH, and then dsh index add i PATH, encodes them again",
        "neither size nor time: get these files back from a copy, or dsh index remove i PATH, and then dsh index add i "
        "PATH",
    ]
    sampled = json.loads(dsh("index", "verify", "i", "--model", digits_run, "--json", "--sample", 3).stdout)
    assert sampled["checked"] == 3 and len(sampled["failed"]) <= 3
    assert dsh_json("index", "remove", "i", "--missing")["removed"] == 2  # as it said
    assert dsh_json("index", "remove", "i", f"{folder}/one/0001.png", name, rotten)["removed"] == 3
    os.remove(f"{folder}/one/0001.png")
    added = dsh_json("index", "add", "i", folder, "--model", digits_run)
    assert (added["added"], added["updated"], added["skipped"]) == (2, 2, 1)
    assert dsh_json("index", "verify", "i", "--model", digits_run)["failed"] == []


def test_export(run: Run, folder: str) -> None:
    import pyarrow.parquet as pq

    Index.open("i").add(run, [folder], labels="folder")
    Index.open("i").remove([f"{folder}/one/0001.png"])
    Image.effect_noise((8, 8), 90).save(f"{folder}/one/0002.png")
    Index.open("i").add(run, [folder])
    assert dsh("index", "export", "i", "--parquet", "out.parquet").exit_code == 0
    table = pq.read_table("out.parquet")
    assert (
        table.schema.metadata[b"dsh.bits"] == b"8" and table.schema.metadata[b"dsh.model"].decode() == run.fingerprint
    )
    exported = {row["path"]: (row["code"].hex(), row["label"]) for row in table.to_pylist()}
    assert list(exported.items()) == list(contents("i").items()) and list(exported)[-1].endswith("one/0001.png")
    assert all(row["size"] == os.stat(row["path"]).st_size for row in table.to_pylist())
    os.mkfifo("pipe")
    for name in ("none/out.parquet", "out.parquet/x.parquet", "pipe", "."):
        assert "cannot write" in one_line_error(dsh("index", "export", "i", "--parquet", name), 1)
    assert Path("pipe").is_fifo()
    Index.open("i").remove([folder])
    for line in (
        ["index", "export", "i", "--parquet", "x"],
        ["neighbors", "0xf0", "--index", "i", "--model", run.path],
    ):
        assert "i is empty; add pictures with: dsh index add i FOLDER" in one_line_error(dsh(*line), 1)
    assert dsh_json("index", "verify", "i", "--model", run.path)["checked"] == 0
    assert not list(Path().glob("*.part"))


# What is no index, or not this run's


def test_what_counts_as_empty(run: Run, folder: str, tmp_path: Path) -> None:
    os.mkdir("made")
    for parts in ("data", "_versions", "_transactions"):
        os.makedirs(f"killed/{parts}")
    Path("killed/data/half.lance").write_bytes(b"half a file")
    Path("killed", storage.BEGUN).touch()
    for uri in ("absent", "made", "killed"):
        opened = Index.open(uri)
        assert (len(opened), opened.bits, opened.model, opened.version) == (0, None, None, 0)
        assert opened.codes().shape[0] == 0 and opened.rows([]) == []
        for line in (
            ["neighbors", "0xf0", "--model", run.path, "--index", uri],
            ["index", "info", uri],
            ["index", "remove", uri, "x"],
            ["index", "verify", uri, "--model", run.path],
            ["index", "export", uri, "--parquet", "x"],
        ):
            said = one_line_error(dsh(*line), 1)
            assert said == f"error: there is no index {uri}; make it with: dsh index add {uri} FOLDER"
        assert not os.path.exists(f"{uri}.lock")
        assert opened.add(run, [folder]).rows == 8 and len(opened) == 8 == len(Index.open(uri))
    assert one_line_error(dsh("index", "info", "absent2", "--json"), 1).startswith("error: there is no index absent2;")
    assert not os.path.exists("absent2") and not os.path.exists("absent2.lock")  # looking makes nothing


def test_what_is_no_index_is_refused_and_left_alone(digits_run: Path, folder: str, tmp_path: Path) -> None:
    import lance
    import pyarrow as pa

    Path("file").write_text("text")
    lance.write_dataset(pa.table({"a": [1]}), "others.lance")
    for uri, word in ((folder, "a folder of other things"), ("file", "is a file"), ("others.lance", "not an index")):
        for line in (["add", uri, folder, "--model", digits_run], ["info", uri], ["remove", uri, "x"]):
            assert word in one_line_error(dsh("index", *line), 1)
    assert sorted(os.listdir(folder)) == ["one", "two"] and lance.dataset("others.lance").version == 1
    assert "empty name" in one_line_error(dsh("index", "info", ""), 2)


def test_another_model_is_refused_with_both_fingerprints(
    run: Run, digits_run: Path, folder: str, tmp_path: Path
) -> None:
    Index.open("i").add(run, [folder])
    other = tmp_path / "other"
    shutil.copytree(digits_run, other)
    assert Run.open(other).fingerprint == run.fingerprint  # a copy is the same model
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(DshError, match=r"model\.safetensors is damaged"):
        _ = Run.open(other).fingerprint
    reseal(other)
    changed = Run.open(other).fingerprint
    assert changed != run.fingerprint and len(changed) == 16
    for line in (["index", "add", "i", folder], ["index", "verify", "i"], ["neighbors", "0xf0", "--index", "i"]):
        said = one_line_error(dsh(*line, "--model", other), 1)
        assert run.fingerprint in said and changed in said
    assert len(Index.open("i")) == 8


def test_the_fingerprint_of_a_run_is_that_of_earlier_versions(run: Run) -> None:
    """What the network was built from when indexes were first made, and its weights."""
    model = {"backbone": run.model.backbone, "bits": 8, "channels": 1, "image_size": 8}
    settings = json.dumps({"intake": decode.INTAKE, "model": model}, sort_keys=True)
    weights = (run.path / "model.safetensors").read_bytes()
    assert run.fingerprint == hashlib.blake2b(settings.encode() + weights, digest_size=8).hexdigest()


def test_the_fingerprint_follows_what_decides_the_codes(
    run: Run, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(digits_run, other)
    edit(other / "config.json", created="another day")
    assert Run.open(other).fingerprint == run.fingerprint
    model = json.loads((other / "config.json").read_text())["model"]
    edit(other / "config.json", model=model | {"image_size": model["image_size"] + 1})
    assert Run.open(other).fingerprint != run.fingerprint
    edit(other / "config.json", model=model | {"mirror": True})
    assert Run.open(other).fingerprint != run.fingerprint
    edit(other / "config.json", model=model)
    monkeypatch.setattr("dsh_cli.pictures.decode.INTAKE", 99)
    assert Run.open(digits_run).fingerprint != run.fingerprint
    (other / "model.safetensors").unlink()
    with pytest.raises(DshError, match=r"model\.safetensors.*dsh train"):
        _ = Run.open(other).fingerprint


@pytest.mark.parametrize("part", ["data", "_versions"])
@pytest.mark.parametrize("left", [0.0, 0.5])
def test_truncated_files_get_one_line(part: str, left: float, run: Run, folder: str) -> None:
    Index.open("i").add(run, [folder])
    for file in Path("i", part).iterdir():
        if file.suffix != ".json":
            file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    line = one_line_error(dsh("neighbors", "0xf0", "--model", run.path, "--index", "i"), 1)
    hint = "dsh index verify i --repair" if part == "data" else "make it again with: dsh index add"
    assert "damaged" in line and line.endswith(hint)
    assert "damaged" in one_line_error(dsh("index", "add", "i", folder, "--model", run.path), 1)


def test_an_index_of_a_newer_format(monkeypatch: pytest.MonkeyPatch, run: Run, folder: str) -> None:
    Index.open("i").add(run, [folder], keep_outputs=True)
    monkeypatch.setattr(schema, "FORMAT", 2)  # the newest of a dsh that knew of no outputs
    assert "newer than 2" in one_line_error(dsh("index", "info", "i"), 1)


@pytest.mark.skipif(sys.platform == "win32", reason="folders are locked otherwise there")
def test_a_read_only_place(run: Run, folder: str, read_only: str) -> None:
    line = one_line_error(dsh("index", "add", f"{read_only}/i", folder, "--model", run.path), 1)
    assert f"cannot write index {read_only}/i" in line and "choose another place" in line


def test_a_uri_goes_the_way_of_object_storage(run: Run, folder: str, tmp_path: Path) -> None:
    uri = f"shared-memory://{tmp_path.name}/i"  # Lance's object storage in memory
    assert Index.open(uri).add(run, [folder]).rows == 8
    Image.effect_noise((8, 8), 90).save(f"{folder}/one/0001.png")
    assert counts(Index.open(uri).add(run, [folder])) == (0, 1, 7, 0, 0)
    assert len(contents(uri)) == 8 and not os.path.exists("i")
    assert counts(Index.open(uri).remove([f"{folder}/one"])) == (0, 0, 0, 4, 0)
    assert Index.open(f"file://{tmp_path}/j").add(run, [folder]).rows == 8
    assert len(Index.open("j")) == 8


# Killed, raced, read meanwhile

WRITER = """
import os, sys, time
import dsh_cli.network.encoding, dsh_cli.training.loop, lance
from dsh_cli.runs.run import Run
from dsh_cli.index.index import Index
uri, run, commit_rows, pace, *paths = sys.argv[1:]
run = Run.open(run)
run.load_model()
merge_insert = lance.LanceDataset.merge_insert
def told(*arguments):
    print("merging", flush=True)
    return merge_insert(*arguments)
lance.LanceDataset.merge_insert = told
print("ready", flush=True)
sys.stdin.readline()
def progress(done, total):
    print(done, flush=True)
    time.sleep(float(pace))
report = Index.open(uri).add(run, paths, commit_rows=int(commit_rows), workers=2, progress=progress,
                             waiting=lambda: print("waiting", flush=True))
print(report.added, report.updated, report.skipped, len(report.failed), flush=True)
"""


PACE = 0.005  # seconds; so a writer is still at work when a busy machine gets round to killing it


class Writer:
    """`add` in a process of its own, which begins when told to, and rests for `pace` seconds after each picture."""

    def __init__(self, uri: str, run: Run, commit_rows: int, *paths: object, pace: float = 0.0) -> None:
        command = [sys.executable, "-c", WRITER, uri, str(run.path), str(commit_rows), str(pace), *map(str, paths)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.told, self.said = there(self.process.stdin), there(self.process.stdout)

    def ready(self) -> Self:
        assert self.said.readline() == "ready\n"
        return self

    def go(self) -> Self:
        self.told.write("\n")
        self.told.flush()
        return self

    def reach(self, done: int) -> None:
        """Wait until so many pictures are done."""
        for line in self.said:
            if line.strip().isdigit() and int(line) >= done:
                return

    def reach_merge(self, number: int) -> None:
        """Wait until a commit of updates begins, the first or a later one."""
        for _ in range(number):
            while (line := self.said.readline()) != "merging\n":
                assert line

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def finish(self) -> tuple[list[str], tuple[int, ...]]:
        lines = self.process.communicate(timeout=120)[0].splitlines()
        assert self.process.returncode == 0
        return [line for line in lines if line == "waiting"], tuple(map(int, lines[-1].split()))


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_at_any_point_it_holds_whole_batches_and_is_completed(run: Run, tmp_path: Path) -> None:
    rng = random.Random(0)
    total, batch = 300, 20
    paths = pictures(tmp_path / "in", total)
    Index.open("whole").add(run, [str(paths)])
    expected = contents("whole")
    moments = [0, 1, rng.randrange(total), rng.randrange(total), total - 1]
    writers = [Writer(f"i{n}", run, batch, paths, pace=PACE) for n in range(len(moments))]
    kept = []
    for n, (writer, moment) in enumerate(zip(writers, moments, strict=True)):
        writer.ready().go()
        writer.reach(moment)
        time.sleep(rng.random() * 0.02)
        writer.kill()
        opened = Index.open(f"i{n}")
        kept.append(len(opened))
        assert len(opened) % batch == 0 and len(opened.codes()) == len(opened)
        assert contents(f"i{n}").items() <= expected.items()
        began = time.monotonic()
        report = opened.add(run, [str(paths)])
        assert time.monotonic() - began < 30  # nothing waits for the dead
        assert (report.rows, report.added, report.skipped) == (total, total - kept[-1], kept[-1])
        assert list(contents(f"i{n}").items()) == list(expected.items())
    assert len(set(kept)) > 1 and any(0 < rows < total for rows in kept)


def stored(uri: str) -> dict[str, tuple[int, bytes, bytes]]:
    """Path -> number, hash and code, as they lie in the table; each path and each number once."""
    import lance

    rows = lance.dataset(uri).to_table(columns=["path", "number", "hash", "code"]).to_pylist()
    assert len({row["path"] for row in rows}) == len({row["number"] for row in rows}) == len(rows)
    return {row["path"]: (row["number"], row["hash"], row["code"]) for row in rows}


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_while_it_updates_it_loses_doubles_and_moves_no_row_and_is_completed(run: Run, tmp_path: Path) -> None:
    rng = random.Random(0)
    total, batch = 200, 20
    paths = pictures(tmp_path / "in", total)
    Index.open("old").add(run, [str(paths)])
    moments = [1, 2, *(rng.randrange(1, total // batch - 1) for _ in range(4))]  # merges: most kills fall into one
    for uri in ("new", *(f"i{n}" for n in range(len(moments)))):
        shutil.copytree("old", uri)
    pictures(paths, total - 30, seed=1)  # changed; the last 30 stay
    pictures(paths, 15, start=total, seed=2)  # new
    assert counts(Index.open("new").add(run, [str(paths)])) == (15, total - 30, 30, 0, 0)
    old, new = stored("old"), stored("new")
    assert all(new[path][0] == number for path, (number, *_) in old.items())
    writers = [Writer(f"i{n}", run, batch, paths, pace=PACE) for n in range(len(moments))]
    partly = 0
    for n, (writer, moment) in enumerate(zip(writers, moments, strict=True)):
        writer.ready().go()
        writer.reach_merge(moment)
        time.sleep(rng.random() * 0.006)  # about what it takes
        writer.kill()
        found = stored(f"i{n}")
        assert old.keys() <= found.keys()
        assert all(row in (old.get(path), new[path]) for path, row in found.items())
        partly += old != found != new
        report = Index.open(f"i{n}").add(run, [str(paths)])
        done = sum(row != old.get(path) for path, row in found.items())
        assert (report.added + report.updated, report.skipped) == (total - 15 - done, 30 + done)
        assert stored(f"i{n}") == new and list(contents(f"i{n}")) == list(contents("new"))
    assert partly > 1, "no kill fell between two commits"


def test_two_at_once_on_an_index_that_is_not_there_lose_and_double_nothing(run: Run, tmp_path: Path) -> None:
    first, second, both = (pictures(tmp_path / name, 60, seed=n) for n, name in enumerate(("a", "b", "c")))
    writers = [Writer("i", run, 15, first, both).ready(), Writer("i", run, 15, both, second).ready()]
    for writer in writers:
        writer.go()
    waited, done = zip(*(writer.finish() for writer in writers), strict=True)
    assert sum(map(len, waited)) <= 1
    assert sorted(done) == [(60, 0, 60, 0), (120, 0, 0, 0)]
    found = contents("i")  # which asserts that no path comes twice
    assert sorted(found) == sorted(f"{place}/{name}" for place in (first, second, both) for name in os.listdir(place))


def test_a_reader_meanwhile_sees_whole_versions(run: Run, tmp_path: Path) -> None:
    paths = pictures(tmp_path / "in", 600)
    Index.open("whole").add(run, [str(paths)])
    expected = list(contents("whole").items())
    writer = Writer("i", run, 20, paths).ready().go()
    sizes = []
    while writer.process.poll() is None:
        opened = Index.open("i")
        found = list(contents("i").items())
        assert len(found) % 20 == 0 and found == expected[: len(found)]
        assert len(opened.codes()) == len(opened) <= len(found)  # the version it was opened at
        sizes.append(len(found))
    writer.finish()
    assert sizes == sorted(sizes) and list(contents("i").items()) == expected
    assert len(set(sizes)) > 2, "the writer was done before it could be watched"


def test_a_lock_that_is_held_is_waited_for(run: Run, folder: str) -> None:
    import threading

    held, waiting = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(local("i"), "i", None):
            held.set()
            waiting.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(30)
    report = Index.open("i").add(run, [folder], waiting=waiting.set)
    thread.join()
    assert waiting.is_set() and report.added == 8


def test_ctrl_c_keeps_what_was_done(run: Run, folder: str) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.open("i").add(run, [folder], progress=stop)
    assert len(Index.open("i")) == 5
    assert counts(Index.open("i").add(run, [folder])) == (3, 0, 5, 0, 0)


def test_a_file_that_vanishes_while_it_is_read(run: Run, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = decode.read_bytes

    def vanishing(path: str) -> bytes:
        if path.endswith("two/0001.png"):
            raise ImageError("no such file or directory")
        return read(path)

    monkeypatch.setattr(decode, "read_bytes", vanishing)
    assert counts(Index.open("i").add(run, [folder])) == (7, 0, 0, 0, 1)


def test_looking_does_not_import_torch(run: Run, folder: str) -> None:
    Index.open("i").add(run, [folder])
    for line in (["index", "info", "i"], ["neighbors", "0xf0", "--index", "i", "--model", str(run.path)]):
        script = f"""
import sys, contextlib
from dsh_cli.cli import app
with contextlib.suppress(SystemExit):
    app({line!r})
sys.exit('torch' in sys.modules)
"""
        done = subprocess.run([sys.executable, "-c", script], capture_output=True)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_rows_are_found_at_once_also_where_others_were_removed() -> None:
    packed = np.zeros((200_000, 8), np.uint8)
    Index.open("i").add_codes([ReadyCodes([f"/p{i}" for i in range(200_000)], packed)], 64, "m")
    index = Index.open("i")
    assert index.remove(["/p7", "/p100000"]).removed == 2
    started = time.perf_counter()
    found = index.rows(np.arange(0, 199_998, 100))
    assert [row.path for row in found][:2] == ["/p0", "/p101"]
    assert time.perf_counter() - started < 2  # 2.7 ms a row in a fragment with deleted rows: 5.4 s
