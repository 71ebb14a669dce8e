"""Encoding on Ray, on a real cluster of two nodes: the rows of the local engine, whatever is killed meanwhile."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import lance
import numpy as np
import psutil
import pyarrow as pa
import pytest
from PIL import Image

from dsh_cli.errors import EngineError, RunError, UsageError
from dsh_cli.index import ray_engine
from dsh_cli.index.index import Index, Report
from dsh_cli.pictures.decode import INTAKE
from dsh_cli.runs import parcel
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json, one_line_error, unmeasured
from tests.support.imports import loaded_by_command
from tests.support.ray_cluster import ROOM, Nodes, nodes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

COUNT = 120  # pictures, in blocks of a dozen


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as up:
        yield up


@pytest.fixture(scope="module")
def ray(cluster: Nodes) -> Iterator[Any]:
    """Ray, connected for all tests that are in this process, so that its workers are started once."""
    with ray_engine._connected(cluster.address, None, 0) as module:
        yield module


@pytest.fixture
def run(digits_run: Path) -> Run:
    return Run.open(digits_run)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_BLOCK", 12)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Pictures of two classes, large enough that a worker can be caught with them."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = tmp_path / "in" / ("one", "two")[i % 2] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (300, 300), np.uint8)).save(path, compress_level=0)
    return str(tmp_path / "in")


def table(uri: str) -> pa.Table:
    return lance.dataset(uri).to_table()


def said(report: Report) -> dict[str, Any]:
    """All but what tells one index from another."""
    of_index = dict.fromkeys(("index", "version", "versions", "whole_versions"))
    return {**vars(report), "left_out": report.left_out.lines(), **of_index}


def both(run: Run, paths: list[str], **settings: Any) -> Report:
    """Add with both engines, and give what was done, of which all is the same."""
    local = Index.open("local").add(run, paths, **settings)
    on_ray = Index.open("ray").add(run, paths, engine="ray", **settings)
    assert said(local) == said(on_ray)
    assert table("local").equals(table("ray"), check_metadata=True)
    return on_ray


def test_rows_skips_updates_and_failures_are_those_of_the_local_engine(ray: Any, run: Run, folder: str) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    Path(folder, "one", odd).write_bytes(Path(folder, "one", "000.png").read_bytes())
    Path(folder, "two", "empty.png").touch()
    Path(folder, "two", "text.jpg").write_text("no picture")
    os.mkdir("here")
    Image.new("RGB", (9, 7), "red").save("here/relative.png")
    given = [folder, "here", "gone.png", "", "a\0b.png", f"{folder}/one/../one/000.png"]
    first = both(run, given, labels="folder", keep_outputs=True)
    assert (first.added, first.skipped, len(first.failed)) == (COUNT + 2, 0, 5)
    assert dict((f.path, f.error) for f in first.failed)[f"{folder}/two/empty.png"] == "empty file"
    again = both(run, given, labels="folder", keep_outputs=True)
    assert (again.added, again.updated, again.skipped, len(again.failed)) == (0, 0, COUNT + 2, 5)

    os.utime(f"{folder}/one/002.png", (1, 1))  # the same content
    Image.new("L", (9, 9)).save(f"{folder}/one/004.png")  # another
    os.rename(f"{folder}/two/001.png", f"{folder}/one/001.png")
    changed = both(run, given, keep_outputs=True, labels="folder")
    assert (changed.added, changed.updated, changed.skipped) == (1, 1, COUNT)
    assert both(run, [folder], labels="none").updated == COUNT + 1  # no picture of which is encoded again


def test_unchanged_pictures_are_not_decoded_by_workers(ray: Any, run: Run, folder: str) -> None:
    Index.open("i").add(run, [folder])
    before = table("i")
    for path in Path(folder).rglob("*.png"):
        status = path.stat()
        path.write_bytes(b"\0" * status.st_size)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    report = Index.open("i").add(run, [folder], engine="ray")
    assert (report.skipped, report.failed) == (COUNT, ()) and table("i").equals(before)


def test_paths_are_relative_and_labels_of_a_file_as_with_the_local_engine(ray: Any, run: Run, folder: str) -> None:
    Path("labels.csv").write_text(f"path,label\n{folder}/one/000.png,cat\n")
    report = both(run, [f"{folder}/one", "labels.csv"], labels="labels.csv", relative_to=folder)
    assert report.unlabelled == COUNT // 2 - 1 and [failure.path for failure in report.failed] == ["labels.csv"]
    assert Index.open("ray").rows([0])[0].path == "one/000.png"


def test_an_exported_model_and_a_run_without_graph_are_sent_too(ray: Any, run: Run, folder: str) -> None:
    from dsh_cli.runs.exported import Exported

    dsh_json("export", "--model", run.path, "--onnx", "model.onnx")
    exported = Exported.open("model.onnx")
    Index.open("ray").add(exported, [f"{folder}/one"], engine="ray")
    Index.open("local").add(exported, [f"{folder}/one"])
    assert table("local").equals(table("ray"), check_metadata=True)


def test_lance_ray_reads_an_index_as_the_documents_say(ray: Any, run: Run, folder: str) -> None:
    import lance_ray

    Index.open("photos.lance").add(run, [folder])
    codes = lance_ray.read_lance(os.path.abspath("photos.lance"), columns=["path", "code"]).take_all()
    assert codes == table("photos.lance").select(["path", "code"]).to_pylist()


def test_of_a_worker_killed_halfway_no_row_is_lost_or_doubled(cluster: Nodes, ray: Any, run: Run, folder: str) -> None:
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if done == 1:
            killed.append(cluster.kill_one())

    report = Index.open("ray").add(run, [folder], engine="ray", progress=kill)
    assert killed and not psutil.pid_exists(killed[0])
    Index.open("local").add(run, [folder])
    assert (report.added, report.failed) == (COUNT, ())
    assert table("local").equals(table("ray"), check_metadata=True)


def test_pictures_that_take_every_worker_with_them_end_it_in_one_line(
    cluster: Nodes, ray: Any, run: Run, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_ATTEMPTS", 2)
    killer = threading.Thread(target=lambda: [cluster.kill_one() for _ in range(2)])
    killer.start()
    with pytest.raises(
        EngineError, match=r"^2 Ray workers in a row were lost at the pictures from .*000.png to .*022.png; "
    ):
        Index.open("i").add(run, [f"{folder}/one"], engine="ray", workers=1, commit_rows=1)
    killer.join()
    assert Index.open("i").version == 0


def test_errors_of_workers_are_those_of_the_local_engine(
    ray: Any, run: Run, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = parcel.packed

    def damaged(run: Run, device: str) -> dict[str, bytes]:
        files = packed(run, device)
        return files | {"model.onnx": files["model.onnx"][:-1] + b"?"}

    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "packed", damaged)
        with pytest.raises(RunError, match="damaged"):
            Index.open("i").add(run, [folder], engine="ray")
    with monkeypatch.context() as patch:
        patch.setattr(ray_engine, "INTAKE", 99)
        with pytest.raises(EngineError, match="another version of dsh"):
            Index.open("i").add(run, [folder], engine="ray")
    with monkeypatch.context() as patch:
        elsewhere = ModuleType("only_here")
        patch.setitem(sys.modules, "only_here", elsewhere)
        elsewhere.intake = lambda: 0  # type: ignore[attr-defined]
        elsewhere.intake.__module__, elsewhere.intake.__qualname__ = "only_here", "intake"
        patch.setattr(ray_engine, "_intake", elsewhere.intake)
        with pytest.raises(EngineError, match="a machine of the Ray cluster, has another version of dsh, or none;"):
            ray_engine._require_machines(ray)

    def ended(asked: str) -> Callable[[], int]:
        """The worker dies when it is asked for the first time."""

        def intake() -> int:
            if not os.path.exists(asked):
                Path(asked).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return INTAKE

        return intake

    for attempts in (1, 0):
        with monkeypatch.context() as patch:
            asked = os.path.abspath(f"asked-{attempts}")
            patch.setattr(ray_engine, "_ATTEMPTS", attempts)
            patch.setattr(ray_engine, "_intake", ended(asked))
            if attempts:
                ray_engine._require_machines(ray)
            else:
                with pytest.raises(EngineError, match="a machine of the Ray cluster, was lost or lost its workers"):
                    ray_engine._require_machines(ray)
        assert os.path.exists(asked)
    with pytest.raises(EngineError, match="has no GPU"):
        Index.open("i").add(run, [folder], engine="ray", device="cuda")
    assert Index.open("i").version == 0


# Drivers in processes of their own

STOPPING = """
import os, signal, sys
from contextlib import contextmanager
from dsh_cli.cli import app, index
from dsh_cli.index import ray_engine

@contextmanager
def bar(quiet):
    yield lambda done, total: done == 40 and os.kill(os.getpid(), signal.SIGINT)

index._bar, ray_engine._BLOCK = bar, 12
app(sys.argv[1:])
"""
DYING = """
import os, signal, sys
from dsh_cli.index import ray_engine
from dsh_cli.index.index import Index
from dsh_cli.runs.run import Run

ray_engine._BLOCK = 12
uri, folder, run, address = sys.argv[1:]
Index.open(uri).add(Run.open(run), [folder], commit_rows=16, engine="ray", ray_address=address,
                    progress=lambda done, total: done == 40 and os.kill(os.getpid(), signal.SIGKILL))
"""


def started(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=2 * ROOM,
        env=unmeasured(),
    )


def test_ctrl_c_ends_it_in_one_line_and_keeps_what_is_done(cluster: Nodes, run: Run, folder: str) -> None:
    line = ["index", "add", "i", folder, "--model", run.path, "--engine", "ray", "--ray-address", cluster.address]
    done = started(STOPPING, *line)
    assert (done.returncode, done.stdout, done.stderr) == (
        130,
        "",
        "error: stopped by Ctrl-C; what was committed is kept, and the same command goes on\n",
    )
    assert len(Index.open("i")) in (39, 40)
    Index.open("i").add(run, [folder])
    Index.open("local").add(run, [folder])
    assert table("i").equals(table("local"), check_metadata=True)


def test_a_driver_that_is_killed_leaves_a_whole_index_and_no_lock(cluster: Nodes, run: Run, folder: str) -> None:
    done = started(DYING, "i", folder, run.path, cluster.address)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "")
    assert 32 <= len(Index.open("i")) < 40
    Index.open("i").add(run, [folder])
    Index.open("local").add(run, [folder])
    assert table("i").sort_by("number").equals(table("local"), check_metadata=True)


def test_ray_is_started_here_says_nothing_of_a_worker_lost_and_leaves_nothing(run: Run, folder: str) -> None:
    command = [sys.executable, "-m", "dsh_cli", "index", "add", "i", folder, "--model", str(run.path), "--json"]
    with (
        TemporaryDirectory(dir="/tmp", prefix="t-") as scratch,  # of a short name
        subprocess.Popen(
            [*command, "--engine", "ray", "--workers", "1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**unmeasured(), "TMPDIR": scratch},
        ) as process,
    ):
        Nodes("", process.pid, 0).kill_one()
        seen: dict[int, psutil.Process] = {}
        while process.poll() is None:
            seen |= {child.pid: child for child in psutil.Process(process.pid).children(recursive=True)}
            time.sleep(0.1)
        assert process.stdout is not None and process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (0, "")
        assert json.loads(process.stdout.read())["added"] == COUNT
        _, alive = psutil.wait_procs(seen.values(), timeout=30)
        assert seen and not alive
        # but for the model that the worker was opening when it was killed
        ours = {name for name in os.listdir(scratch) if name.startswith("dsh-")}
        assert all(name.startswith("dsh-model-") for name in ours)
        assert not list(Path(scratch).rglob("session_*"))
    Index.open("local").add(run, [folder])
    assert table("i").equals(table("local"), check_metadata=True)


# What is refused


def test_what_cannot_be_is_one_line_and_makes_no_index(run: Run, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ["index", "add", "i", folder, "--model", run.path]
    said = one_line_error(dsh(*line, "--ray-address", "10.0.0.1:6379"), 2)
    assert said == "error: --ray-address 10.0.0.1:6379 is of a cluster of Ray, and --engine is local; give ray"
    ray = [*line, "--engine", "ray"]
    for address in ("ray://10.0.0.1:10001", "10.0.0.1", "host:x", ":6379", "host:0"):
        said = one_line_error(dsh(*ray, "--ray-address", address), 2)
        assert said.startswith(f"error: --ray-address {address}: it is HOST:PORT")
    said = one_line_error(dsh(*ray, "--device", "mps"), 2)
    assert said == "error: --device mps: --engine ray computes on cpu, or on cuda with a GPU a worker"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        said = one_line_error(dsh(*ray), 1)
    assert said == "error: --engine ray takes Ray, which is not installed: pip install 'dsh-cli[ray]'"
    Path("vectors.npz").touch()
    with pytest.raises(UsageError, match="`engine` ray is for pictures"):
        Index.open("i").add(run, ["vectors.npz"], engine="ray")
    with pytest.raises(UsageError, match="`engine` spark: it is local or ray"):
        Index.open("i").add(run, [folder], engine="spark")  # type: ignore[arg-type]
    assert not os.path.exists("i")


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_an_address_at_which_no_ray_answers_is_one_line_within_seconds(
    run: Run, folder: str, answer: bytes | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def serve() -> None:
            link, _ = server.accept()
            with link:
                link.recv(24)
                link.sendall(answer or b"")

        thread = threading.Thread(target=serve)
        if answer is None:
            server.close()
        else:
            thread.start()
        began = time.monotonic()
        line = ["index", "add", "i", folder, "--model", run.path, "--engine", "ray", "--ray-address", address]
        said = one_line_error(dsh(*line), 1)
        assert time.monotonic() - began < 30
        if answer is not None:
            thread.join()
    assert said.startswith(f"error: no Ray cluster can be used at --ray-address {address} (")
    assert said.endswith("; start one with: ray start --head") and not os.path.exists("i")


def test_the_local_engine_imports_no_ray(run: Run, folder: str) -> None:
    assert "ray" not in loaded_by_command("index", "add", "i", folder, "--model", run.path)


# The last, for the cluster is no longer whole


def test_of_a_machine_lost_halfway_no_row_is_lost_or_doubled(cluster: Nodes, ray: Any, run: Run, folder: str) -> None:
    def lose(done: int, total: int) -> None:
        if done == 1:
            os.kill(cluster.second, signal.SIGKILL)

    report = Index.open("ray").add(run, [folder], engine="ray", progress=lose)
    Index.open("local").add(run, [folder])
    assert (report.added, report.failed) == (COUNT, ())
    assert table("local").equals(table("ray"), check_metadata=True)
