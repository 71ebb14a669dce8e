"""One index has one lock, however it is named, and nothing beside a writer lets a second one in."""

import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from dsh_cli.errors import IndexStateError, UsageError
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.index.place import local
from tests.support.values import there

posix = pytest.mark.skipif(os.name != "posix", reason="folders cannot be locked there")

ADDER = """
import sys, time
import numpy as np, lance
from dsh_cli.index import index
from dsh_cli.index.index import Index, ReadyCodes
index._READY_ROWS = 50
uri, rows, pace = sys.argv[1:]
paths = [f"/p{i}" for i in range(int(rows))]
def batches():
    for start in range(0, len(paths), 50):
        print("batch", flush=True)
        time.sleep(float(pace))
        some = paths[start : start + 50]
        yield ReadyCodes(some, np.zeros((len(some), 1), np.uint8))
print("ready", flush=True)
sys.stdin.readline()
report = Index.open(uri).add_codes(batches(), 8, "m", waiting=lambda: print("waiting", flush=True))
print(report.added, report.updated, flush=True)
"""


class Adder:
    """Adds codes of the same paths as any other, in a process of its own, when told to."""

    def __init__(self, uri: str, rows: int = 500, pace: float = 0.01) -> None:
        command = [sys.executable, "-c", ADDER, uri, str(rows), str(pace)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )

    def reach(self, word: str) -> None:
        while (line := there(self.process.stdout).readline()) != f"{word}\n":
            assert line, there(self.process.stderr).read()

    def go(self) -> None:
        self.reach("ready")
        there(self.process.stdin).write("\n")
        there(self.process.stdin).flush()

    def finish(self) -> tuple[int, ...]:
        said, complaint = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, complaint
        return tuple(map(int, said.splitlines()[-1].split()))


def paths_of(uri: str) -> list[str]:
    opened = Index.open(uri)
    return [row.path for row in opened.rows(np.arange(len(opened)))]


def names_of(folder: Path, name: str) -> list[str]:
    """Ways to name a folder that is in the one worked in."""
    (folder / "link").symlink_to(folder)
    (folder / "to the index").symlink_to(name)
    path = quote(str(folder / name))
    return [
        name, f"{name}/", f"./{name}", f"sub/../{name}", f"{folder}/{name}", f"//{folder}//{name}", f"link/{name}",
        "to the index", f"file:{path}", f"file://{path}", f"file://localhost{path}", f"FILE://LocalHost{path}/",
        f"file://{path.replace('i', '%69')}", f"file-object-store://{path}", f"File+Uring://{path}",
        f"file://{quote(str(folder))}/link/sub/%2E./{quote(name)}",
    ]  # fmt: skip


@posix
def test_an_index_is_one_however_it_is_named(tmp_path: Path) -> None:
    name = "an index é#1?%41"
    (tmp_path / "sub").mkdir()
    for number, uri in enumerate(names_of(tmp_path, name)):
        opened = Index.open(uri)
        opened.add_codes([ReadyCodes([f"/p{number}"], np.zeros((1, 1), np.uint8))], 8, "m")
        assert opened.uri == uri and local(uri) == str(tmp_path / name)
        assert len(Index.open(name)) == len(opened) == number + 1
    assert sorted(os.listdir(tmp_path)) == [name, "link", "sub", "to the index"]


@pytest.mark.parametrize(
    "uri",
    ["file:i", "file://host/i", "file:///i?x", "file:///i#x", "file:", "file:///%ff", "i\0", "file:///i%00", "i\udcff"],
)
def test_what_names_no_index_is_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="file:///PATH|UTF-8"):
        Index.open(uri)
    assert os.listdir() == []


@posix
def test_four_who_add_the_same_under_four_names_add_each_once(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    uris = ["i", str(tmp_path / "i"), "link/i", f"file://localhost{tmp_path}/%69"]
    adders = [Adder(uri) for uri in uris]
    for adder in adders:
        adder.go()
    assert sorted(adder.finish() for adder in adders) == [(0, 500), (0, 500), (0, 500), (500, 0)]
    assert sorted(paths_of("i")) == sorted(f"/p{i}" for i in range(500))


@posix
def test_what_is_deleted_beside_a_writer_lets_no_second_in() -> None:
    first, second = Adder("i", pace=0.05), Adder("i")
    first.go()
    first.reach("batch")
    first.reach("batch")
    for name in os.listdir():
        if name != "i":
            os.remove(name)
    second.go()
    second.reach("waiting")
    assert (first.finish(), second.finish()) == ((500, 0), (0, 500))
    assert len(paths_of("i")) == len(set(paths_of("i"))) == 500 and os.listdir() == ["i"]


@posix
def test_a_writer_whose_index_is_replaced_says_so_and_leaves_the_other_alone() -> None:
    first = Adder("i", pace=0.2)
    first.go()
    first.reach("batch")
    first.reach("batch")
    os.rename("i", "moved")
    Index.open("i").add_codes([ReadyCodes(["/other"], np.zeros((1, 1), np.uint8))], 8, "m")
    complaint = first.process.communicate(timeout=120)[1]
    assert "was removed or replaced while index i was written; run the same command again" in complaint
    assert paths_of("i") == ["/other"] and len(paths_of("moved")) in (0, 50)


@posix
def test_who_waits_for_an_index_that_is_deleted_makes_a_new_one() -> None:
    waiting = threading.Event()
    done: list[int] = []
    opened = Index.open("i")

    def add() -> None:
        codes = ReadyCodes(["/p"], np.zeros((1, 1), np.uint8))
        done.append(Index.open("i").add_codes([codes], 8, "m", waiting=waiting.set).added)

    with opened._table.writing(None):
        thread = threading.Thread(target=add)
        thread.start()
        assert waiting.wait(30)
        shutil.rmtree("i")
    thread.join()
    assert done == [1] and paths_of("i") == ["/p"]


def test_where_folders_cannot_be_locked_a_file_beside_is(monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    lock = fcntl.flock

    def flock(descriptor: int, how: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "as NFS says")
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    codes = ReadyCodes(["/p"], np.zeros((1, 1), np.uint8))
    assert Index.open("i").add_codes([codes], 8, "m").added == 1 and os.path.exists("i.lock")
    opened = Index.open("i")
    with pytest.raises(IndexStateError, match=r"i\.lock was removed or replaced"), opened._table.writing(None):
        os.remove("i.lock")
        opened._table.delete(np.array([0]))
    assert paths_of("i") == ["/p"]


@posix
def test_an_addition_that_fails_leaves_nothing() -> None:
    with pytest.raises(UsageError):
        Index.open("deep/i").add_codes([], 0, "m")
    assert not os.path.exists("deep/i")
