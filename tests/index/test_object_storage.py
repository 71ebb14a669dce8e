"""An index in object storage, on a real server: every command, what cannot be reached, two who write, and kills."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dsh_cli.errors import IndexStateError
from dsh_cli.index import storage, table
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.index.place import local, reached
from tests.support.commands import dsh, dsh_json, one_line_error, unmeasured
from tests.support.object_storage import BUCKET, KEYS, Server
from tests.support.values import there


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("storage"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What anyone has who uses object storage, and nothing that whoever runs the tests has."""
    for name in [name for name in os.environ if name.upper().startswith(("AWS_", "OBJECT_STORE_"))]:
        monkeypatch.delenv(name)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.endpoint}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def uri(request: pytest.FixtureRequest) -> str:
    name = re.sub(r"\W+", "-", request.node.name)
    return f"s3://{BUCKET}/{name}.lance"


def pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """So many small grey pictures, each different."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{i:04d}.png")
    return folder


def rows(uri: str) -> list[tuple[str, bytes]]:
    """Paths and codes in the order of adding; each path once, all as they were written, none lost."""
    opened = Index.open(uri)
    found = list(
        zip(
            (row.path for row in opened.rows(np.arange(len(opened)))),
            map(bytes, opened.codes()),
            strict=True,
        )
    )
    assert len(dict(found)) == len(found) and not opened._table.damage()
    assert opened._table._total is not None  # by which it shows that some were lost
    return found


# Every command


def test_every_command(uri: str, digits_run: Path, tmp_path: Path) -> None:
    model = ["--model", digits_run]
    folder = pictures(tmp_path / "in" / "one", 4).parent
    added = dsh_json("index", "add", uri, folder, *model, "--labels", "folder", "--keep-outputs")
    assert (added["added"], added["rows"], added["version"], added["whole_versions"]) == (4, 4, 1, None)
    local = dsh_json("index", "add", "i", folder, *model, "--labels", "folder", "--keep-outputs")
    same = {"index": uri, "whole_versions": None}
    assert added == local | same
    pictures(folder / "two", 4, seed=1)
    pictures(folder / "one", 1, seed=2)
    for place in (uri, "i"):
        again = dsh_json("index", "add", place, folder, *model, "--labels", "folder")
        assert (again["added"], again["updated"], again["skipped"]) == (4, 1, 3)
    assert rows(uri) == rows("i") and len(rows(uri)) == 8
    assert dsh_json("index", "info", uri)["rows"] == dsh_json("index", "info", uri + "/")["rows"] == 8
    assert dsh_json("index", "verify", uri, *model)["checked"] == 8
    assert dsh_json("index", "verify", uri, *model, "--repair")["repaired"] == []
    for options in ([], ["--label", "two"], ["--rescore", "outputs"]):
        answers = [
            dsh_json("neighbors", folder / "two" / "0000.png", "--index", place, *model, *options)["neighbors"]
            for place in (uri, "i")
        ]
        assert answers[0] == answers[1] != []
    for place, file in ((uri, "remote.parquet"), ("i", "local.parquet")):
        assert dsh_json("index", "export", place, "--parquet", file)["rows"] == 8
    assert pq.read_table("remote.parquet").equals(pq.read_table("local.parquet"))
    assert dsh_json("index", "remove", uri, folder / "two")["removed"] == 4
    (folder / "one" / "0002.png").unlink()
    assert dsh_json("index", "remove", uri, "--missing", "--yes")["removed"] == 1
    assert len(rows(uri)) == 3
    assert dsh_json("index", "remove", uri, folder)["removed"] == 3 and rows(uri) == []
    assert dsh_json("index", "add", uri, folder, *model)["added"] == 7 and len(rows(uri)) == 7


def test_what_is_damaged_there_is_found_and_taken_out(uri: str) -> None:
    add(uri, 0)
    add(uri, 4)
    name = there(Index.open(uri)._table._dataset).get_fragments()[0].data_files()[0].path
    storage._session(uri).delete_file(f"data/{name}")
    assert "is damaged" in one_line_error(dsh("index", "export", uri, "--parquet", "x"), 1)
    assert dsh("index", "verify", uri, "--sample", 0).exit_code == 1
    assert dsh("index", "verify", uri, "--sample", 0, "--repair").exit_code == 0
    assert [path for path, _ in rows(uri)] == [f"/p{i}" for i in range(4, 8)]


# What cannot be reached


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_an_endpoint_is_named_as_for_any_other_program(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, server.endpoint)
    uri = f"s3://{BUCKET}/{name}"
    add(uri, 0)
    assert len(rows(uri)) == 4
    monkeypatch.setenv(name, "https://example.com")
    assert "allow_http" not in there(reached(uri))
    assert reached("i") is reached("file:///i") is None


def told(uri: str) -> str:
    """What each command says in one line where an index cannot be reached, within reasonable time."""
    commands = [["info", uri], ["export", uri, "--parquet", "x"]]
    lines, began = set(), time.monotonic()
    for command in commands:
        lines.add(one_line_error(dsh("index", *command), 1))
    assert time.monotonic() - began < 30 * len(commands) and len(lines) == 1
    assert not os.path.exists("x")
    return lines.pop()


def test_what_is_not_there_is_said(uri: str, server: Server, monkeypatch: pytest.MonkeyPatch, digits_run: Path) -> None:
    assert told(uri) == f"error: there is no index {uri}; make it with: dsh index add {uri} FOLDER"
    line = told("s3://nobucket/i")
    assert line.startswith("error: cannot read index s3://nobucket/i: NoSuchBucket: ") and "see to its bucket" in line
    monkeypatch.setenv("AWS_ALLOW_HTTP", "false")
    line = told(uri)
    assert f"{server.endpoint} is not https, which AWS_ALLOW_HTTP does not allow" in line
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # where nobody listens
    line = told(uri)
    assert line.startswith(f"error: cannot read index {uri}: http://127.0.0.1:9 does not answer") and "endpoint" in line
    adding = ["index", "add", uri, pictures(Path("in"), 1), "--model", digits_run]
    assert one_line_error(dsh(*adding), 1) == line


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:5577",
        "example.com",
        "http://",
        "http://host:x",
        "ftp://host",
        " http://host",
        "http://a b",
        "http://%z",
    ],
)
def test_an_endpoint_that_is_no_address_is_named(
    endpoint: str, uri: str, server: Server, monkeypatch: pytest.MonkeyPatch, digits_run: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)  # at which Lance panics, or says that the index is damaged
    said = (
        f"error: AWS_ENDPOINT_URL {endpoint}: an endpoint is http://HOST:PORT or https://HOST; set it so, or unset it"
    )
    adding = ["index", "add", uri, pictures(Path("in"), 1), "--model", digits_run]
    for command in (["index", "info", uri], ["index", "remove", uri, "*"], adding):
        assert one_line_error(dsh(*command), 2) == said
    assert reached("gs://bucket/i")  # which it says nothing of


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://", "s3://: such a URI is s3://BUCKET/NAME"),
        ("s3:///i", "s3:///i: such a URI is s3://BUCKET/NAME"),
        ("s3:/bucket/i", "s3:/bucket/i: such a URI is s3://BUCKET/NAME"),
        ("s3:bucket/i", "s3:bucket/i: such a URI is s3://BUCKET/NAME, or ./s3:bucket/i for a folder here"),
        ("gs:bucket", "gs:bucket: such a URI is s3://BUCKET/NAME, or ./gs:bucket for a folder here"),
        ("S3:bucket/i", "S3:bucket/i: such a URI is s3://BUCKET/NAME, or ./S3:bucket/i for a folder here"),
        ("s3://:80/i", "s3://:80/i: such a URI is s3://BUCKET/NAME"),
        ("s3:// bucket/i", "s3:// bucket/i: such a URI is s3://BUCKET/NAME"),
        ("s3://?x", "s3://?x: such a URI is s3://BUCKET/NAME"),
        ("a b://c", "a b://c: such a URI is s3://BUCKET/NAME"),
        ("://x", "://x: such a URI is s3://BUCKET/NAME"),
        ("s4://bucket/i", "s4://bucket/i: there is no storage s4://; give a folder, or s3://BUCKET/NAME"),
    ],
)
def test_a_uri_that_is_none_is_told_and_makes_nothing(uri: str, said: str, digits_run: Path) -> None:
    adding = ["index", "add", uri, pictures(Path("in"), 1), "--model", digits_run]
    for command in (adding, ["index", "info", uri], ["neighbors", "0xff", "--index", uri, "--model", digits_run]):
        assert one_line_error(dsh(*command), 2) == f"error: {said}"
    assert os.listdir() == ["in"]
    for name in ("./s3:bucket/i", "s3", "gs", "az/i", "C:i"):
        assert local(name) == os.path.abspath(name)


def test_credentials_that_are_refused(uri: str, server: Server) -> None:
    server.ask("POST", "moto-api/reset-auth", b"0")
    try:
        line = told(uri)
    finally:
        server.ask("POST", "moto-api/reset-auth", b"1000000")
    assert f"cannot read index {uri}: " in line and "403" in line and "see to its bucket, credentials" in line


# Two who write


def codes(start: int, count: int = 4) -> ReadyCodes:
    packed = np.arange(start, start + count, dtype=np.uint8)[:, None]
    return ReadyCodes([f"/p{i}" for i in range(start, start + count)], packed)


def add(uri: str, start: int, count: int = 4) -> int:
    return Index.open(uri).add_codes([codes(start, count)], 8, "m").added


CHANGES: dict[str, Callable[[Index], object]] = {
    "add": lambda index: index.add_codes([codes(20)], 8, "m"),
    "add the same": lambda index: index.add_codes([codes(20)], 8, "m"),
    "update": lambda index: index.add_codes([ReadyCodes(["/p9"], np.full((1, 1), 99, np.uint8))], 8, "m"),
    "remove": lambda index: index.remove(["/p8", "/p0"]),
    "remove a fragment": lambda index: index.remove([f"/p{i}" for i in range(4)]),
    "remove all": lambda index: index.remove(["/*"]),
    "rewrite": lambda index: index._table.rewrite(),
    "make fewer files": lambda index: index._table._compact(there(index._table._dataset).get_fragments()),
}


@pytest.mark.parametrize(
    "first, second",
    [*(("add", second) for second in CHANGES), *((first, "add") for first in CHANGES if first != "add")],
)
def test_of_two_changes_of_one_version_one_is_refused(uri: str, first: str, second: str) -> None:
    for start in (0, 4, 8):
        add(uri, start)
    opened = Index.open(uri)
    with opened._table.writing(None):
        CHANGES[first](Index.open(uri))
        between = rows(uri)
        opened._table.writing = lambda *_: nullcontext()  # type: ignore[method-assign, assignment]
        with pytest.raises(IndexStateError, match="another process has written index .* run the same command again"):
            CHANGES[second](opened)
    assert rows(uri) == between
    if second not in ("rewrite", "make fewer files"):
        CHANGES[second](Index.open(uri))
    rows(uri)


def test_of_two_who_add_to_an_index_that_was_emptied_one_is_refused(uri: str) -> None:
    add(uri, 0)
    Index.open(uri).remove(["/*"])
    opened = Index.open(uri)
    with opened._table.writing(None):
        add(uri, 4)
        between = rows(uri)
        opened._table.writing = lambda *_: nullcontext()  # type: ignore[method-assign, assignment]
        with pytest.raises(IndexStateError, match="another process has written index"):
            opened.add_codes([codes(8)], 8, "m")
    assert rows(uri) == between


def test_of_two_who_begin_an_index_one_is_refused(uri: str) -> None:
    opened = Index.open(uri)
    with opened._table.writing(None):
        assert add(uri, 0) == 4
        opened._table.writing = lambda *_: nullcontext()  # type: ignore[method-assign, assignment]
        with pytest.raises(IndexStateError, match="another process has written"):
            opened.add_codes([codes(4)], 8, "m")
    assert [path for path, _ in rows(uri)] == [f"/p{i}" for i in range(4)]


def test_who_tidies_up_when_another_came_in_between_leaves_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in range(0, 20, 4):
        add(uri, start)
    opened = Index.open(uri)
    add(uri, 20)
    monkeypatch.setattr(table, "_FRAGMENTS", 2)
    opened._table.tidy()
    assert len(rows(uri)) == 24 and opened.version == 5
    Index.open(uri)._table.tidy()
    assert len(rows(uri)) == 24 and len(there(Index.open(uri)._table._dataset).get_fragments()) == 1
    monkeypatch.setattr(table, "_KEPT", timedelta(0))
    Index.open(uri)._table.tidy()
    assert Index.open(uri).report().versions == 2 and len(rows(uri)) == 24


ADDER = """
import sys
import numpy as np, lance
from dsh_cli.errors import IndexStateError
from dsh_cli.index import index
from dsh_cli.index.index import Index, ReadyCodes
index._READY_ROWS = 4
uri, *numbers = sys.argv[1:]
batches = [ReadyCodes([f"/p{i}"], np.full((1, 1), int(i), np.uint8)) for i in numbers]
print("ready", flush=True)
sys.stdin.readline()
refused = 0
while True:
    try:
        Index.open(uri).add_codes(batches, 8, "m")
        break
    except IndexStateError as error:
        assert "another process has written" in str(error), error
        refused += 1
print(refused)
"""


def test_who_runs_the_same_command_again_as_told_loses_and_doubles_nothing(uri: str) -> None:
    numbers = [[*range(12)], [*range(12)], [*range(6, 24)]]
    adders = [
        subprocess.Popen(
            [sys.executable, "-c", ADDER, uri, *map(str, some)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unmeasured(),
        )
        for some in numbers
    ]  # fmt: skip
    for adder in adders:
        assert there(adder.stdout).readline() == "ready\n"
    for adder in adders:
        there(adder.stdin).write("\n")
        there(adder.stdin).flush()
    refused = []
    for adder in adders:
        said, complaint = adder.communicate(timeout=100)
        assert adder.returncode == 0, complaint
        refused.append(int(said))
    assert any(refused), "none came in between another's commits"
    assert sorted(rows(uri)) == sorted((f"/p{i}", bytes([i])) for i in range(24))


# What ends in the middle

DSH = """
import os, sys, time
from dsh_cli.index import rows, table
from dsh_cli.__main__ import main
name, number, mark, *arguments = sys.argv[1:]
kind = {"put": rows.Writer, "_commit": table.Table}[name]
done, count = getattr(kind, name), 0
def held(*arguments, **options):
    global count
    count += 1
    if count == int(number):
        open(mark, "x").close()
        while os.path.exists(mark):
            time.sleep(0.01)
    return done(*arguments, **options)
setattr(kind, name, held)
rows._COMMIT_SECONDS = rows._COMMIT_SHARE = 0
sys.argv = ["dsh", *arguments]
sys.exit(main())
"""


def add_in_a_process(uri: str, folder: Path, run: Path, name: str, number: int) -> tuple[subprocess.Popen[str], Path]:
    """`dsh index add`, a commit a picture, when it has come to such a call, which waits while there is a file."""
    mark = folder.with_name("waiting")
    command = [sys.executable, "-c", DSH, name, str(number), str(mark), "index", "add", uri, str(folder), "--model"]
    process = subprocess.Popen(
        [*command, str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=unmeasured()
    )
    while not mark.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process, mark


@pytest.mark.parametrize("name", ["in", "others"])
def test_of_two_who_add_at_once_one_is_told_to_try_again(uri: str, name: str, digits_run: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 4)
    other = pictures(tmp_path / name, 4, seed=len(name) - 2)
    process, mark = add_in_a_process(uri, folder, digits_run, "_commit", 2)
    dsh_json("index", "add", uri, other, "--model", digits_run)
    mark.unlink()
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 1 and said == ""
    assert complaint.startswith(f"error: another process has written index {uri} meanwhile; run the same command again")
    assert complaint.count("\n") == 1
    dsh_json("index", "add", uri, folder, "--model", digits_run)
    assert {path for path, _ in rows(uri)} == {
        str(place / f"{i:04d}.png") for place in (folder, other) for i in range(4)
    }
    assert dsh_json("index", "verify", uri, "--model", digits_run)["failed"] == []


@pytest.mark.parametrize("commits", [0, 3])
def test_a_server_that_stops_in_the_middle(
    uri: str, commits: int, server: Server, digits_run: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "in", 8)
    process, mark = add_in_a_process(uri, folder, digits_run, "_commit", commits + 1)
    server.kill()
    mark.unlink()
    began = time.monotonic()
    said, complaint = process.communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert process.returncode == 1 and said == ""
    assert complaint.count("\n") == 1 and complaint.startswith(("error: index ", "error: cannot read index "))
    assert uri in complaint and f"{server.endpoint} does not answer" in complaint and "again" in complaint
    server.start()
    before = rows(uri) if commits else []
    assert len(Index.open(uri)) == commits
    report = dsh_json("index", "add", uri, folder, "--model", digits_run)
    assert (report["added"], report["skipped"]) == (8 - commits, commits)
    assert [path for path, _ in rows(uri)] == [str(folder / f"{i:04d}.png") for i in range(8)]
    assert rows(uri)[:commits] == before
    assert dsh_json("index", "verify", uri, "--model", digits_run)["checked"] == 8


def test_ctrl_c_keeps_what_was_done(uri: str, digits_run: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "in", 8)
    process, _ = add_in_a_process(uri, folder, digits_run, "put", 4)
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 130 and said == "" and "Traceback" not in complaint
    assert len(rows(uri)) == 3
    report = dsh_json("index", "add", uri, folder, "--model", digits_run)
    assert (report["added"], report["skipped"]) == (5, 3) and len(rows(uri)) == 8
