"""Files outlast a loss of power whole: each is written, synced, moved into place, and its folder synced."""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.calls import Call, recorded, require_whole, traced
from tests.support.commands import DIGITS, dsh, dsh_json

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None and "CI" not in os.environ, reason="needs strace")
TRAIN = [*DIGITS, "--backbone", "small-resnet", "--epochs", "2"]


def saved_in_order(moved: list[str], run: Path) -> list[str]:
    """The files of a run, but TensorBoard's, in the order of saving, without the number that a state has."""
    names = [str(Path(path).relative_to(run)) for path in moved]
    return ["state.safetensors" if n.startswith("state") else n for n in names if not n.startswith("tensorboard/")]


def require_run(moved: list[str], run: Path, epochs: int) -> None:
    names = saved_in_order(moved, run)
    assert names.index("splits.json") < names.index("config.json") < names.index("state.safetensors")
    states = [at for at, name in enumerate(names) if name == "state.safetensors"]
    assert len(states) == epochs and all(names[at + 1] == "metrics.json" for at in states)
    assert names[-3:] == ["metrics.json", "model.onnx", "metrics.json"]  # finished, and then with its graph
    end = names[states[-1] + 2 : -2]
    codes = {f"codes/{split}.safetensors" for split in ("train", "validation", "test")}
    assert {*end} - {"splits.json"} == {"model.safetensors", *codes, "metrics.json"}


@needs_strace
def test_the_files_of_a_run_are_synced_before_and_after_they_are_moved(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "dsh_cli", *TRAIN, "--tensorboard", "--out", str(run)]
    calls = traced(command, tmp_path / "log", run)
    require_run(require_whole(calls), run, epochs=2)
    saved = [at for at, call in enumerate(calls) if call.kind == "move" and call.to.endswith("/metrics.json")]
    deleted = [at for at, call in enumerate(calls) if call.kind == "delete" and "/state" in call.path]
    assert saved[-2] + 1 < max(deleted) < saved[-1]  # the last state goes when the results are there to stay


@linux
def test_in_process_a_run_is_saved_in_the_same_order(tmp_path: Path) -> None:
    with recorded() as calls:
        dsh_json(*TRAIN, "--out", tmp_path / "run")
    require_run(
        require_whole([call for call in calls if str(tmp_path / "run") in call.path]), tmp_path / "run", epochs=2
    )


@linux
def test_pages_and_pictures_are_saved_so_too(digits_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(digits_run, tmp_path / "copy")
    commands = {
        "page.html": ["embed", "--method", "pca", "--model", run, "--out", tmp_path / "page.html"],
        "neighbors.html": ["neighbors", "0x00", "--model", run, "--html", tmp_path / "neighbors.html"],
        "map.png": ["embed", "--method", "pca", "--model", run, "--out", tmp_path / "map.png"],
        "curve.svg": ["evaluate", "--model", run, "--pr-curve", tmp_path / "curve.svg"],
    }
    for name, command in commands.items():
        with recorded() as calls:
            result = dsh(*command)
        assert result.exit_code == 0, result.stderr
        ours = [call for call in calls if Path(call.path).is_relative_to(tmp_path)]
        assert require_whole(ours) == [str(tmp_path / name)], name


@needs_strace
def test_a_file_is_written_synced_moved_and_its_folder_synced(tmp_path: Path) -> None:
    script = (
        f"from dsh_cli.files import written\nwith written({str(tmp_path / 'file')!r}, '') as it: it.write_bytes(b'1')"
    )
    calls = traced([sys.executable, "-c", script], tmp_path / "log", tmp_path)
    scratch = calls[0].path
    assert Path(scratch).parent == tmp_path and scratch != str(tmp_path / "file")
    assert calls == [
        Call("write", scratch),
        Call("sync", scratch),
        Call("move", scratch, str(tmp_path / "file")),
        Call("sync", str(tmp_path)),
    ]


@needs_strace
def test_the_cache_writes_its_database_only_when_its_log_is_synced(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / "pictures" / f"{number}.png")
    script = f"""
from pathlib import Path
from dsh_cli.pictures.cache import PictureCache
from dsh_cli.pictures.decode import Form
files = sorted(map(str, Path({str(tmp_path / "pictures")!r}).iterdir()))
cache = PictureCache(Path({str(tmp_path / "cache")!r}), Form(192, 3))
for start in range(0, 40, 8):
    cache.read(files[start : start + 8])
"""
    calls = traced([sys.executable, "-c", script], tmp_path / "log", tmp_path / "cache")
    dirty: set[str] = set()  # files with writes that are not synced
    of_database = 0
    for call in calls:
        log = call.path.endswith(("-wal", "-journal"))
        database = call.path.endswith(".sqlite")
        if call.kind == "write" and database:
            assert not [path for path in dirty if path.endswith(("-wal", "-journal"))]
            of_database += 1
        if call.kind == "delete" and log:
            assert not [path for path in dirty if path.endswith(".sqlite")]
        if call.kind == "write":
            dirty.add(call.path)
        elif call.kind == "sync":
            dirty.discard(call.path)
    assert of_database > 2  # of more than a thousand pages the log is moved into it


def test_a_check_of_the_order_can_fail(tmp_path: Path) -> None:
    right = [Call("write", "/a/.s"), Call("sync", "/a/.s"), Call("move", "/a/.s", "/a/s"), Call("sync", "/a")]
    assert require_whole(right) == ["/a/s"]
    for wrong in (right[:1] + right[2:], right[:3], [right[1], right[0], *right[2:]], [*right, Call("write", "/a/s")]):
        with pytest.raises(AssertionError):
            require_whole(wrong)
