"""An index on disk: nothing in it leads elsewhere, each commit outlasts a loss of power, and what is whole is kept."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsh_cli.errors import IndexStateError
from dsh_cli.index import storage, table
from dsh_cli.index.index import Index, ReadyCodes
from tests.support.calls import recorded
from tests.support.commands import dsh, dsh_json, one_line_error, unmeasured
from tests.support.privileges import kept_out
from tests.support.values import there


def reaching(run: Path) -> list[list[object]]:
    """A command of each kind that opens the index `i`."""
    return [
        ["index", "add", "i", "docs", "--model", run],
        ["index", "remove", "i", "/p/1"],
        ["index", "info", "i"],
        ["index", "verify", "i", "--sample", 0],
        ["index", "verify", "i", "--sample", 0, "--repair"],
        ["index", "export", "i", "--parquet", "x"],
        ["neighbors", "0xf0", "--index", "i", "--model", run],
    ]


def add(uri: str, start: int, count: int = 4) -> Index:
    """So many ready codes, in one commit."""
    index = Index.open(uri)
    numbers = range(start, start + count)
    index.add_codes([ReadyCodes([f"/p/{i}" for i in numbers], np.array([[i] for i in numbers], np.uint8))], 8, "m")
    return index


def paths(uri: str) -> list[str]:
    index = Index.open(uri)
    assert index.codes()[:, 0].tolist() == [int(row.path[3:]) for row in index.rows(np.arange(len(index)))]
    return [row.path for row in index.rows(np.arange(len(index)))]


def manifests(uri: str) -> list[Path]:
    """The newest first."""
    return [path for _, path in storage.manifests(uri)]


# Nothing leads elsewhere


def outside() -> dict[str, bytes]:
    """Files that are none of the index's."""
    return {str(path): path.read_bytes() for path in Path("docs").rglob("*") if path.is_file()}


@pytest.fixture
def docs() -> dict[str, bytes]:
    for name in ("a.txt", "deep/b.txt", "deep/c.lance", "0-1.txn", "18446744073709551614.manifest"):
        Path("docs", name).parent.mkdir(parents=True, exist_ok=True)
        Path("docs", name).write_text(name)
    return outside()


@pytest.mark.parametrize("name", ["_indices", "data", "_deletions", "_transactions", "_versions", "_refs"])
def test_a_folder_of_it_that_is_a_link_is_refused_and_what_it_leads_to_left_alone(
    name: str, docs: dict[str, bytes], digits_run: Path
) -> None:
    index = add("i", 0)
    shutil.rmtree(f"i/{name}", ignore_errors=True)
    os.symlink(os.path.abspath("docs"), f"i/{name}")
    before = sorted(map(str, Path("i").rglob("*")))
    for line in reaching(digits_run):
        said = one_line_error(dsh(*line), 1)
        assert said.startswith(
            f"error: {os.path.abspath('i')}/{name} is a link, and nothing in an index is reached through one; take it"
        )
    with pytest.raises(IndexStateError, match="is a link"):  # laid after it was opened
        index.add_codes([ReadyCodes(["/p/9"], np.zeros((1, 1), np.uint8))], 8, "m")
    with pytest.raises(IndexStateError, match="is a link"):
        index.remove(["/p/1"])
    assert outside() == docs and sorted(map(str, Path("i").rglob("*"))) == before


def linked(file: Path) -> None:
    shutil.copy(file, "copy")
    file.unlink()
    file.symlink_to(Path("copy").absolute())


def in_its_place(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def replace(file: Path) -> None:
        file.unlink()
        make(file)

    return replace


@pytest.mark.skipif(os.name != "posix", reason="FIFOs")
@pytest.mark.parametrize("part", ["data", "_versions", "_transactions"])
@pytest.mark.parametrize("lay", [linked, in_its_place(os.mkfifo)])
def test_a_file_of_it_that_is_none_is_refused(part: str, lay: Callable[[Path], None]) -> None:
    add("i", 0)
    file = next(path for path in Path("i", part).iterdir() if path.suffix != ".json")
    lay(file)
    assert f"{file} is " in one_line_error(dsh("index", "info", "i"), 1)  # at once, where a FIFO would wait


def test_the_folder_itself_may_be_reached_through_a_link() -> None:
    add("i", 0)
    os.symlink("i", "link")
    add("link", 4)
    assert len(paths("i")) == 8 and os.path.islink("link")


def test_a_base_path_is_refused_before_any_request(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        port = listening.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        for number, wanted in enumerate([f"http://127.0.0.1:{port}/".ljust(90, "x"), "s3://bucket/".ljust(90, "x")]):
            uri = f"i{number}"
            add("whole", 0)
            base = os.path.abspath("b").ljust(90, "b")
            os.makedirs(base, exist_ok=True)
            lance.write_dataset(
                lance.dataset("whole").to_table(),
                uri,
                initial_bases=[lance.DatasetBasePath(base, name="b")],
                target_bases=["b"],
            )
            manifest = manifests(uri)[0]
            crafted = manifest.read_bytes().replace(base.encode(), wanted.encode())
            assert wanted.encode() in crafted
            manifest.write_bytes(crafted)
            for line in (
                ["index", "add", uri, "docs", "--model", digits_run],
                ["index", "remove", uri, "/p/1"],
                ["index", "info", uri],
                ["index", "verify", uri, "--sample", 0, "--repair"],
                ["neighbors", "0xf0", "--index", uri, "--model", digits_run],
                ["index", "info", f"file-object-store://{os.path.abspath(uri)}"],
            ):
                assert "has a base path in it, which may lead out" in one_line_error(dsh(*line), 1)
            shutil.rmtree("whole")
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("name", ["../" * 16, "/etc/passwd", "s3://bucket/x", "..\\x", "%2e%2e%2fx"])
@pytest.mark.parametrize("part", ["data", "_transactions"])
def test_names_of_files_that_are_paths_are_refused(name: str, part: str) -> None:
    add("i", 0)
    manifest = manifests("i")[0]
    old = next(Path("i", part).iterdir()).name.encode()
    data = manifest.read_bytes()
    assert old in data
    manifest.write_bytes(data.replace(old, name.encode()[: len(old)].ljust(len(old), b"x")))
    said = one_line_error(dsh("index", "info", "i"), 1)
    assert "has a file named" in said and "may lead out of its folder" in said


def test_what_lance_alone_makes_is_refused() -> None:
    add("i", 0)
    lance.dataset("i").shallow_clone("clone", 1)
    assert "base path" in one_line_error(dsh("index", "info", "clone"), 1)
    shutil.copytree("i", "branched")
    lance.dataset("branched").create_branch("name")
    assert "a folder of other things (tree)" in one_line_error(dsh("index", "info", "branched"), 1)
    shutil.rmtree("branched/tree")
    assert "has a branch in it" in one_line_error(dsh("index", "info", "branched"), 1)
    lance.dataset("i").create_scalar_index("number", "BTREE")
    assert "an index of Lance's own" in one_line_error(dsh("index", "info", "i"), 1)


@pytest.fixture(scope="module")
def a_manifest(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    uri = str(tmp_path_factory.mktemp("manifest") / "i")
    add(uri, 0)
    add(uri, 4)
    return manifests(uri)[0].read_bytes()


@given(data=st.data())
def test_a_manifest_of_any_bytes_is_read_damaged_or_refused(a_manifest: bytes, data: st.DataObject) -> None:
    whole = bytearray(a_manifest)
    start = int.from_bytes(whole[-16:-8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    size = len(whole) - start - 20
    if size >= 0 and data.draw(st.booleans()):  # else nearly all are cut off
        whole[start : start + 4] = size.to_bytes(4, "little")
    with contextlib.suppress(ValueError, IndexStateError):
        storage._parsed(bytes(whole), "i")


def test_a_manifest_too_large_to_be_one_is_refused_and_not_dropped() -> None:
    add("i", 0)
    add("i", 4)
    newest = manifests("i")[0]
    os.truncate(newest, storage._LARGEST + 1)
    for line in (["info", "i"], ["verify", "i", "--sample", 0, "--repair"]):
        assert f"{newest} has more than 2 MiB" in one_line_error(dsh("index", *line), 1)
    assert newest.exists()


@pytest.mark.parametrize("older", [False, True])
def test_a_writer_looks_through_all_versions(older: bool) -> None:
    add("i", 0)
    add("i", 4)
    manifest = manifests("i")[int(older)]
    name = next(Path("i", "_transactions").glob("0-*" if older else "1-*")).name.encode()
    manifest.write_bytes(manifest.read_bytes().replace(name, b"../".ljust(len(name), b"x")))
    if older:
        assert len(paths("i")) == 8
    with pytest.raises(IndexStateError, match="may lead out"):
        add("i", 8)


# A loss of power

COMMITS = """
import numpy as np
from datetime import timedelta
from dsh_cli.index import table
from dsh_cli.index.index import Index, ReadyCodes
table._KEPT, table._FRAGMENTS = timedelta(0), 2
def add(start, count, code):
    codes = ReadyCodes([f"/p/{i}" for i in range(start, start + count)], np.full((count, 1), code, np.uint8))
    Index.open("i").add_codes([codes], 8, "m")
for start in (0, 4, 8):  # makes it, appends, appends and compacts
    add(start, 4, 1)
add(2, 4, 2)  # merges, and compacts
Index.open("i").remove(["/p/1"])  # removes, and compacts
"""

STRACE = shutil.which("strace")


@pytest.mark.skipif(STRACE is None and "CI" not in os.environ, reason="strace is not there")
def test_what_a_commit_names_is_synced_before_it_and_it_before_the_next() -> None:
    assert STRACE is not None, "in CI strace must be there"
    calls = "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
    command = [STRACE, "-f", "-y", "-qq", "-s", "4096", "-e", f"trace={calls}", "-o", "trace"]
    command += [sys.executable, "-c", COMMITS]
    subprocess.run(command, check=True, timeout=120, env=unmeasured())
    index = os.path.abspath("i")
    versions = f"{index}/{storage.VERSIONS}"
    unsynced, newest, commits, kinds = set[str](), None, 0, set[str]()
    for line in Path("trace").read_text().splitlines():
        named = re.findall(rf"{re.escape(index)}[^\">]*", line)
        call = re.sub(r"^\d+ +", "", line).partition("(")[0]
        if not named or "= -1" in line or re.search(r"\.json$|/_transactions/", named[-1]):
            continue
        if call in ("fsync", "fdatasync"):
            unsynced.discard(named[0])
        elif "unlink" in call:
            if not re.search(rf"#|/\.tmp|/{storage.BEGUN}$", named[-1]):  # old versions
                assert not unsynced & {newest, versions}, line
                kinds.add("cleaned up")
        elif Path(named[-1]).parent.name in ("data", "_deletions"):
            unsynced |= {named[-1], str(Path(named[-1]).parent)}
            kinds.add(Path(named[-1]).parent.name)
        elif named[-1].endswith(".manifest"):
            assert not unsynced, (named[-1], unsynced)
            newest, commits, unsynced = named[-1], commits + 1, {named[-1], versions}
    assert not unsynced
    assert commits >= 7 and kinds == {"data", "_deletions", "cleaned up"}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_all_folders_made_for_an_index_are_synced_before_its_first_commit(tmp_path: Path) -> None:
    with recorded() as calls:
        add("a/b/c/i", 0)
    synced = [call.path for call in calls if call.kind == "sync"]
    commit = next(place for place, path in enumerate(synced) if path.endswith(".manifest"))
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c"):
        assert str(folder) in synced[:commit]


def emptied(file: Path) -> None:
    os.truncate(file, 0)


def zeroed(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def halved(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def lost_manifest(lose: Callable[[Path], None]) -> None:
    lose(manifests("i")[0])


def lost_data(lose: Callable[[Path], None]) -> None:
    lose(max(Path("i/data").iterdir(), key=lambda file: file.stat().st_mtime_ns))


LOST = [(lost_manifest, emptied), (lost_manifest, zeroed), (lost_manifest, halved), (lost_manifest, Path.unlink),
        (lost_data, emptied), (lost_data, zeroed), (lost_data, halved), (lost_data, Path.unlink)]  # fmt: skip


@pytest.mark.parametrize(("lost", "how"), LOST)
def test_an_index_whose_newest_version_is_lost_opens_at_the_last_whole_one(
    lost: Callable[[Callable[[Path], None]], None], how: Callable[[Path], None]
) -> None:
    add("i", 0)
    add("i", 4)
    whole = paths("i")
    lost(how)
    assert paths("i") == whole[:4]
    said = dsh("index", "info", "i", "--json")
    assert said.exit_code == 0 and '"rows": 4' in said.stdout
    note = (
        "warning: the newest version of index i is not whole; this is version 1, the last that is; "
        "make it the newest with: dsh index verify i --repair\n"
    )
    assert said.stderr == note
    shutil.copytree("i", "j")
    found = dsh("index", "verify", "j", "--sample", 0, "--json")
    assert found.exit_code == 1 and found.stderr == note.replace("warning: ", "error: j: ").replace(" i ", " j ")
    assert [failure["path"] for failure in json.loads(found.stdout)["failed"]] == ["j"]
    repaired = dsh("index", "verify", "j", "--sample", 0, "--repair")
    assert (repaired.exit_code, repaired.stderr) == (0, "j: the last whole version is the newest now\n")
    assert Index.open("j").note is None and paths("j") == whole[:4]
    add("i", 4, 5)  # goes on from there
    assert Index.open("i").note is None and paths("i") == [*whole, "/p/8"]
    assert dsh("index", "info", "i").stderr == ""


HINTS = ["1", "2", "3", "4", "7", ";", "99999999999999999999"]  # where 3 is right


@pytest.mark.parametrize("hint", HINTS)
def test_a_wrong_hint_of_lances_makes_no_version_less_whole(hint: str) -> None:
    for start in (0, 4, 8):
        add("i", start)
    Path("i/_versions", storage._HINT).write_text(f'{{"version":{hint}}}')
    said = dsh("index", "verify", "i", "--sample", 0)
    assert (said.exit_code, said.stderr, Index.open("i").note, len(paths("i"))) == (0, "", None, 12)
    add("i", 12)
    assert Path("i/_versions", storage._HINT).read_text() == '{"version":4}' and len(paths("i")) == 16


@pytest.mark.parametrize("hint", [None, "1", "4", "7"])
@pytest.mark.parametrize("lost", [2, 3])
def test_that_several_newest_versions_are_lost_is_told_whatever_the_hint_says(
    lost: int, hint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in (0, 4, 8, 12):
        add("i", start)
    for manifest in manifests("i")[:lost]:
        manifest.unlink()
    mark = Path("i/_versions", storage._HINT)
    mark.unlink() if hint is None else mark.write_text(f'{{"version":{hint}}}')
    assert f"this is version {4 - lost}, the last" in there(Index.open("i").note)
    shutil.copytree("i", "j")
    assert dsh("index", "verify", "j", "--sample", 0, "--repair").exit_code == 0
    assert Index.open("j").note is None and len(paths("j")) == 16 - 4 * lost
    monkeypatch.setattr(table.Table, "tidy", lambda self: None)  # as if it had been killed before
    add("i", 50)
    assert Index.open("i").note is None and len(paths("i")) == 20 - 4 * lost


def test_a_commit_that_was_killed_is_not_taken_for_one_that_was_lost() -> None:
    add("i", 0)
    shutil.copytree("i", "j")
    add("i", 4)
    shutil.copytree("i/_transactions", "j/_transactions", dirs_exist_ok=True)
    assert len(os.listdir("j/_transactions")) == 2
    assert Index.open("j").note is None and len(paths("j")) == 4


def test_what_is_left_is_kept_where_the_newest_versions_are_lost_and_none_is_whole() -> None:
    for start in (0, 4, 8, 12):
        add("i", start)
        if start == 4:
            second = max(Path("i/data").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    zeroed(second)
    for place in (3, 1, 0):
        manifests("i")[place].unlink()
    assert "none of its versions is whole; keep what is left" in one_line_error(dsh("index", "info", "i"), 1)
    assert dsh("index", "verify", "i", "--sample", 0, "--repair").exit_code == 0
    assert Index.open("i").note is None and paths("i") == [f"/p/{i}" for i in range(4)]


def test_info_says_how_many_of_the_versions_are_whole() -> None:
    for start in (0, 4, 8):
        add("i", start)
    said = dsh("index", "info", "i", "--format", "table").stdout
    assert "3, 3 versions kept\n" in said
    zeroed(manifests("i")[1])
    assert "3, 3 versions kept, 2 of them whole\n" in dsh("index", "info", "i", "--format", "table").stdout
    lost_data(halved)
    found = dsh("index", "info", "i", "--json")
    assert (found.exit_code, json.loads(found.stdout)["versions"], json.loads(found.stdout)["whole_versions"]) == (
        0, 3, 1
    )  # fmt: skip
    assert Index.open("i").version == 1 and "version 1, the last that is" in found.stderr


def test_neighbors_tells_of_it_too(digits_run: Path) -> None:
    from dsh_cli.runs.run import Run

    model = Run.open(digits_run).fingerprint
    for start in (0, 1):
        Index.open("i").add_codes([ReadyCodes([f"/p/{start}"], np.zeros((1, 1), np.uint8))], 8, model)
    lost_manifest(emptied)
    said = dsh("neighbors", "0x00", "--index", "i", "--model", digits_run, "--json")
    assert said.exit_code == 0 and said.stderr.startswith("warning: the newest version") and '"/p/0"' in said.stdout


def test_what_is_left_is_kept_where_no_version_is_whole() -> None:
    for start in (0, 4, 8):
        add("i", start)
    for manifest in manifests("i")[1:]:
        manifest.unlink()
    lost_data(zeroed)
    assert one_line_error(dsh("index", "info", "i"), 1) == (
        "error: index i is damaged: none of its versions is whole; keep what is left with: dsh index verify i --repair"
    )
    repaired = dsh("index", "verify", "i", "--sample", 0, "--repair", "--json")
    assert repaired.exit_code == 0 and '"rows": 8' in repaired.stdout
    assert repaired.stderr.startswith("4 rows: cannot be read (") and repaired.stderr.endswith(", taken out\n")
    assert paths("i") == [f"/p/{i}" for i in range(8)]
    add("i", 8)
    assert len(paths("i")) == 12 and dsh_json("index", "verify", "i", "--sample", 0)["failed"] == []
    for manifest in manifests("i"):
        zeroed(manifest)
    assert one_line_error(dsh("index", "info", "i"), 1) == (
        "error: index i is damaged: none of its versions is whole; bring i/_versions back from a copy, or, if there is "
        "none, delete i and make it again with: dsh index add"
    )


# No version left, and none yet

GONE = (
    "index i is damaged: all of its versions are gone; bring i/_versions back from a copy, or, if there is none, "
    "delete i and make it again with: dsh index add"
)


def lost_versions() -> None:
    shutil.rmtree("i/_versions")


def lost_all_but_the_hint() -> None:
    for manifest in manifests("i"):
        manifest.unlink()


def lost_all_but_data() -> None:
    for name in ("_versions", "_transactions"):
        shutil.rmtree(f"i/{name}")


@pytest.mark.parametrize("commits", [1, 3])
@pytest.mark.parametrize("lose", [lost_versions, lost_all_but_the_hint, lost_all_but_data])
def test_an_index_without_versions_is_not_taken_for_none_and_keeps_its_files(
    commits: int, lose: Callable[[], None], digits_run: Path
) -> None:
    for number in range(commits):
        add("i", 4 * number)
    whole = paths("i")
    shutil.copytree("i", "copy")
    lose()
    left = sorted(map(str, Path("i").rglob("*")))
    for line in reaching(digits_run):
        assert one_line_error(dsh(*line), 1) == f"error: {GONE}"
    with pytest.raises(IndexStateError, match="all of its versions are gone"):
        add("i", 90)
    assert sorted(map(str, Path("i").rglob("*"))) == left
    for name in ("_versions", "_transactions"):
        shutil.copytree(f"copy/{name}", f"i/{name}", dirs_exist_ok=True)
    assert paths("i") == whole
    add("i", 4 * commits)
    assert len(paths("i")) == len(whole) + 4


def test_nor_is_one_that_loses_them_under_a_writer() -> None:
    opened = add("i", 0)
    lost_versions()
    with pytest.raises(IndexStateError, match="all of its versions are gone"):
        opened.add_codes([ReadyCodes(["/p/9"], np.zeros((1, 1), np.uint8))], 8, "m")
    assert len(os.listdir("i/data")) == 1


def test_nor_is_one_in_object_storage(tmp_path: Path) -> None:
    from lance.file import LanceFileSession

    uri = f"shared-memory://{tmp_path.name}/i"
    add(uri, 0)
    session = LanceFileSession(uri)
    assert not session.contains(storage.BEGUN)
    for name in session.list("_versions"):
        session.delete_file(name)
    for _ in range(2):
        with pytest.raises(IndexStateError, match=f"versions are gone; bring {uri}/_versions back from a copy, or"):
            add(uri, 4)
    assert len(session.list("data")) == 1
    storage.begin(None, uri)  # as if its first commit had been killed
    assert len(Index.open(uri)) == 0
    add(uri, 4)
    assert len(paths(uri)) == 4 and not session.contains(storage.BEGUN)


KILLED = """
import os, signal, sys
import lance, lance.fragment, numpy as np
from dsh_cli.index import storage
from dsh_cli.index.index import Index, ReadyCodes
owner, name, after = {
    "before a file": (lance.fragment, "write_fragments", False),
    "before its commit": (lance.LanceDataset, "commit", False),
    "after its commit": (lance.LanceDataset, "commit", True),
    "before it is said": (storage, "end", False),
}[sys.argv[1]]
whole = getattr(owner, name)
def killed(*args, **kwargs):
    if after:
        whole(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, killed)
Index.open("i").add_codes([ReadyCodes(["/p/0", "/p/1"], np.array([[0], [1]], np.uint8))], 8, "m")
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize(
    ("moment", "rows"),
    [("before a file", 0), ("before its commit", 0), ("after its commit", 2), ("before it is said", 2)],
)
def test_what_a_kill_of_the_first_commit_leaves_is_in_nobodys_way(moment: str, rows: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, moment], env=unmeasured())
    assert done.returncode == -signal.SIGKILL and Path("i", storage.BEGUN).exists()
    assert len(Index.open("i")) == rows
    add("i", 2, 2)
    assert len(paths("i")) == rows + 2 and len(os.listdir("i/data")) == len(paths("i")) // 2  # no leftovers
    assert not Path("i", storage.BEGUN).exists()
    lost_versions()
    with pytest.raises(IndexStateError, match="all of its versions are gone"):
        Index.open("i")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_that_a_first_commit_begins_is_synced_before_any_file_of_it() -> None:
    with recorded() as calls:
        add("i", 0)
    synced = [call.path for call in calls if call.kind == "sync"]
    mark = synced.index(os.path.abspath(f"i/{storage.BEGUN}"))
    first = next(place for place, path in enumerate(synced) if path.endswith(".lance"))
    assert os.path.abspath("i") in synced[mark:first]


def test_an_index_may_be_made_in_a_folder_that_cannot_be_listed() -> None:
    if not hasattr(os, "O_DIRECTORY") or (os.geteuid() == 0 and sys.platform != "linux"):
        pytest.skip("modes of files do not keep this user out")
    program = (
        "import numpy as np; from dsh_cli.index.index import Index, ReadyCodes; "
        "Index.open('shut/i').add_codes([ReadyCodes(['/a'], np.zeros((1, 1), np.uint8))], 8, 'm')"
    )
    os.mkdir("shut", 0o333)
    subprocess.run(kept_out([sys.executable, "-c", program]), check=True)
    os.chmod("shut", 0o700)
    assert len(Index.open("shut/i")) == 1


def test_what_may_not_be_written_is_not_called_a_full_disk() -> None:
    if os.name != "posix" or (os.geteuid() == 0 and sys.platform != "linux"):
        pytest.skip("modes of files do not keep this user out")
    add("i", 0)
    program = (
        "import numpy as np; from dsh_cli.index.index import Index, ReadyCodes; "
        "Index.open('i').add_codes([ReadyCodes(['/a'], np.zeros((1, 1), np.uint8))], 8, 'm')"
    )
    os.chmod("i/data", 0o500)
    done = subprocess.run(kept_out([sys.executable, "-c", program]), stderr=subprocess.PIPE, text=True)
    os.chmod("i/data", 0o700)
    assert "Permission denied" in done.stderr
    assert done.stderr.endswith("; see to its permissions and disk, or choose another place\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is(code: int) -> None:
    full = OSError(f"LanceError(IO): Generic N/A error: {os.strerror(code)} (os error {code}), /rustc/core.rs:250:5")
    for error in (full, OSError(code, os.strerror(code)), ValueError(str(full))):
        with (
            pytest.raises(IndexStateError, match="; free space, or choose another place"),
            table._reaching("i", "write"),
        ):
            raise error


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("suffix", [".manifest", ".lance"])
def test_what_cannot_be_reached_is_not_called_damaged(code: int, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add("i", 0)
    add("i", 4)
    kept = sorted(map(str, Path("i").rglob("*")))
    opened = Path.open

    def failing(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.suffix == suffix:
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing)
        said = one_line_error(dsh("index", "info", "i"), 1)
        assert said.startswith("error: cannot read index i: ") and "see to its permissions, disk or network" in said
        assert one_line_error(dsh("index", "verify", "i", "--sample", 0, "--repair"), 1) == said
        with pytest.raises(IndexStateError, match="cannot read"):
            add("i", 8)
    assert sorted(map(str, Path("i").rglob("*"))) == kept and len(paths("i")) == 8


def test_nor_is_a_folder_that_may_not_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    add("i", 0)

    def refuse(path: str) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(IndexStateError, match="cannot read index i: permission denied; see to its permissions"):
        Index.open("i")


@pytest.mark.parametrize(
    "said",
    [
        "LanceError(IO): Unable to open /i/data/x.lance: Permission denied (os error 13), /rustc/48a/core.rs:250:5",
        "Generic S3 error: error sending request for url (http://bucket)",
        "operation timed out",
        "Input/output error (os error 5)",
    ],
)
def test_nor_is_what_lance_could_not_reach(said: str) -> None:
    unreached = r"cannot read index i: .*see to its permissions, disk or network"
    with pytest.raises(IndexStateError, match=unreached), table._reaching("i"):
        raise OSError(said)
    with pytest.raises(IndexStateError, match="there is no memory for"), table._reaching("i"):
        raise MemoryError
    damaged = r"i is damaged \(bad page\); keep what is left with: dsh index verify i "
    with pytest.raises(IndexStateError, match=damaged), table._reaching("i"):
        raise OSError("bad page, /home/runner/x.rs:1")
    uri = os.path.abspath("connect requests/i")
    with pytest.raises(IndexStateError, match="is damaged"), table._reaching(uri):
        raise OSError(f"bad page in {uri}/data/x.lance")


@pytest.mark.parametrize("error", [OSError("operation timed out"), MemoryError()])
def test_nor_does_a_repair_take_it_out(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    add("i", 0)
    add("i", 4)

    def fail(*arguments: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(lance.LanceFragment, "to_batches", fail)
        assert "index i" in one_line_error(dsh("index", "verify", "i", "--sample", 0, "--repair"), 1)
    assert len(paths("i")) == 8
