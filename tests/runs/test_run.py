"""Run folders: whole or refused, in one clear line."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from dsh_cli import files
from dsh_cli.errors import DshError, RunError
from dsh_cli.runs import storage
from dsh_cli.runs.folders import find_run, list_runs
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json, one_line_error, unmeasured
from tests.support.runs import edit
from tests.support.values import there


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits_run, tmp_path / "copy")


def test_what_a_run_holds(run: Path) -> None:
    assert sorted(path.name for path in run.rglob("*") if path.is_file()) == [
        "centers.safetensors",
        "config.json",
        "metrics.json",
        "model.onnx",
        "model.safetensors",
        "splits.json",
        "test.safetensors",
        "train.safetensors",
        "validation.safetensors",
    ]
    opened = Run.open(run)
    for split, count in opened.counts.items():
        codes = opened.codes(split, "relaxed", "thumbnails")
        assert len(codes) == len(opened.names()[split]) == count
        assert there(codes.relaxed).shape == (count, 8) and there(codes.thumbnails).shape == (count, 8, 8, 1)


def test_a_moved_run_needs_nothing_else(run: Path, tmp_path: Path) -> None:
    moved = run.rename(tmp_path / "elsewhere")
    assert len(dsh_json("table", "--model", moved)["classes"]) == 10


@pytest.mark.parametrize(
    "file", ["model.onnx", "model.safetensors", "config.json", "metrics.json", "codes/test.safetensors"]
)
@pytest.mark.parametrize("harm", ["missing", "truncated", "empty", "pickle"])
def test_harmed_runs_get_one_clear_line(run: Path, file: str, harm: str) -> None:
    path = run / file
    data = path.read_bytes()
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "pickle": pickle.dumps({})}[harm])
    asked = {"model.onnx": ["hash", os.devnull], "model.safetensors": ["export", "--onnx", "m.onnx", "--quiet"]}
    line = one_line_error(dsh(*asked.get(file, ["table"]), "--model", run), 1)
    assert str(run) in line and ("dsh info" if file == "model.onnx" else "dsh train") in line


def test_a_newer_format_says_so(run: Path) -> None:
    edit(run / "config.json", format=3)
    line = one_line_error(dsh("table", "--model", run), 1)
    assert "format 3, newer than 2" in line and "pip install --upgrade" in line


def test_weights_of_another_network_are_refused(run: Path) -> None:
    head = json.loads((run / "config.json").read_text())
    head["model"]["bits"] = 9
    edit(run / "config.json", model=head["model"])
    assert "it is of another model" in one_line_error(dsh("hash", "x.png", "--model", run), 1)
    with pytest.raises(RunError, match=r"does not fit config.json: 'hash_layer.weight'"):
        Run.open(run).load_model()


@pytest.mark.parametrize(
    "model",
    [{"bits": "eight"}, {"bits": 0}, {"channels": 2}, {"image_size": None}, {"backbone": "vgg"}, {"more": 1}],
)
def test_edited_networks_are_refused(run: Path, model: dict[str, object]) -> None:
    head = json.loads((run / "config.json").read_text())
    edit(run / "config.json", model=head["model"] | model)
    assert "is damaged" in one_line_error(dsh("hash", "x.png", "--model", run), 1)


def test_codes_that_do_not_belong_to_the_run_are_refused(run: Path) -> None:
    shutil.copy(run / "codes" / "train.safetensors", run / "codes" / "test.safetensors")
    assert "does not fit config.json" in one_line_error(dsh("table", "--model", run), 1)


def test_what_is_no_run(tmp_path: Path) -> None:
    assert "no run folder at none" in one_line_error(dsh("table", "--model", "none"), 1)
    (tmp_path / "folder").mkdir()
    assert "is not a run folder" in one_line_error(dsh("table", "--model", "folder"), 1)
    (tmp_path / "folder" / "config.json").write_text('{"of": "something else"}')
    assert "is not that of a run" in one_line_error(dsh("table", "--model", "folder"), 1)


def test_info_names_damaged_runs_and_lists_the_others(digits_run: Path, tmp_path: Path) -> None:
    for name in ("good", "bad"):
        shutil.copytree(digits_run, tmp_path / "runs" / name)
    (tmp_path / "runs" / "bad" / "config.json").write_text("{")
    result = dsh("info", "--json")
    assert result.exit_code == 0 and [run["run"] for run in json.loads(result.stdout)["runs"]] == ["runs/good"]
    assert len(result.stderr.splitlines()) == 1 and "runs/bad/config.json" in result.stderr
    assert dsh_json("info", "runs/good")["fingerprint"] == Run.open("runs/good").fingerprint


def test_listing_runs_opens_each_once(digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(digits_run, tmp_path / "runs" / "a")
    reads: list[str] = []

    def read(path: Path, follow: bool) -> int:
        reads.append(path.name)
        return files.open_regular(path, follow)

    monkeypatch.setattr(storage, "open_regular", read)
    assert dsh("info").exit_code == 0
    assert sorted(reads) == ["config.json", "metrics.json"]


def test_an_empty_name_for_a_run_is_refused(tmp_path: Path) -> None:
    assert "--out is empty" in one_line_error(dsh("train", "digits", "--out", ""), 2)
    assert not list(tmp_path.iterdir())


def test_without_model_the_newest_finished_run_is_taken(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no finished run under runs/; train one with: dsh train --bits 8"):
        find_run()
    for name, created, finished in [("a", "2026-01-01", True), ("b", "2026-01-02", True), ("c", "2026-01-03", False)]:
        shutil.copytree(digits_run, tmp_path / "runs" / name)
        edit(tmp_path / "runs" / name / "config.json", created=created)
        edit(tmp_path / "runs" / name / "metrics.json", finished=finished)
    (tmp_path / "runs" / "d").mkdir()
    assert find_run().path.name == "b"
    assert [run.path.name for run in list_runs()[0]] == ["a", "b", "c"]
    result = dsh("table", "--json")
    assert result.exit_code == 0 and "using runs/b" in result.stderr
    assert dsh("table", "--json", "--quiet").stderr == ""
    assert dsh_json("table", "--model", "runs/a") == json.loads(result.stdout)


def test_the_environment_names_a_model(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSH_MODEL", str(digits_run))
    assert dsh_json("table")["bits"] == 8


def test_unfinished_runs_are_not_used(run: Path) -> None:
    edit(run / "metrics.json", finished=False, epochs_done=3)
    line = one_line_error(dsh("table", "--model", run), 1)
    assert "is unfinished" in line and f"--resume {run}" in line


def test_a_failed_write_leaves_nothing_half_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    before = (run / "metrics.json").read_bytes()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DshError, match="cannot write .*metrics.json: no space left on device"):
        storage.write_json(run, "metrics.json", {})
    assert (run / "metrics.json").read_bytes() == before
    assert not list(run.glob(".*"))


def test_a_full_disk_is_one_line_for_tensors_too(run: Path) -> None:
    script = f"""
import resource, signal
import numpy as np
from pathlib import Path
from dsh_cli.errors import DshError
from dsh_cli.runs.storage import write_arrays

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_arrays(Path({str(run)!r}), "centers.safetensors", {{"packed": np.zeros((1 << 16, 1), np.uint8)}})
except DshError as error:
    print(error)
"""
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    command = [sys.executable, "-c", script]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=unmeasured()).stdout
    assert printed == f"cannot write {run}/centers.safetensors: file too large; free space\n"
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before  # and nothing beside them


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited by data segment there alone")
def test_arrays_on_disk_are_written_without_taking_memory(tmp_path: Path) -> None:
    script = """
import resource, sys, tempfile
import numpy as np
from pathlib import Path
from dsh_cli.runs.storage import write_arrays

with tempfile.TemporaryFile() as file:
    array = np.memmap(file, np.uint8, "w+", shape=(300 << 20,))
array[-1] = 7
write_arrays(Path(), "small", {"a": array[-9:]})  # all is imported
data = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (data + (32 << 20),) * 2)
try:
    array.copy()
    sys.exit("the limit does not hold")
except MemoryError:
    write_arrays(Path(), "large", {"a": array})
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    with safe_open(tmp_path / "large", "numpy") as file:
        assert file.get_slice("a").get_shape() == [300 << 20]
        assert file.get_slice("a")[(300 << 20) - 1 :] == 7


def test_files_of_a_run_have_the_modes_that_files_have(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        storage.write_arrays(tmp_path, "new", {"a": np.zeros(3)})
        storage.write_json(tmp_path, "json", {})
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()} == {
        "new": "0o640",
        "json": "0o640",
    }


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "classes", [1, 2, 3]),
        ("config.json", "classes", "abc"),
        ("config.json", "classes", ["a"]),
        ("config.json", "created", 5),
        ("config.json", "source", 5),
        ("config.json", "counts", {"test": "many"}),
        ("config.json", "config", {"data": None}),
        ("config.json", "config", {"lr": "x"}),
        ("config.json", "config", {"device": "gpu9"}),
        ("config.json", "config", {"unheard_of": 1}),
        ("config.json", "model", {"bits": "8"}),
        ("metrics.json", "map", "x"),
        ("metrics.json", "map", []),
        ("metrics.json", "seconds", []),
        ("metrics.json", "device", 1),
        ("metrics.json", "counts", {"test": 1.5}),
    ],
)
def test_edited_runs_get_one_clear_line_and_do_not_hide_the_others(
    run: Path, tmp_path: Path, file: str, key: str, value: object
) -> None:
    content = json.loads((run / file).read_text())
    edit(run / file, **{key: content[key] | value if isinstance(value, dict) else value})
    line = one_line_error(dsh("table", "--model", run), 1)
    assert str(run) in line and ("dsh info" if file == "model.onnx" else "dsh train") in line
    if value != ["a"]:  # which only the codes contradict
        name = next(iter(value)) if isinstance(value, dict) and key in ("config", "model") else key
        assert file in line and name in line
        assert line == one_line_error(dsh("info", run), 1)
    (tmp_path / "runs").mkdir()
    shutil.copytree(run, tmp_path / "runs" / "edited")
    assert len(dsh_json("info")["runs"]) == (value == ["a"])


def test_a_place_that_is_taken_is_refused_before_anything_is_read(run: Path, tmp_path: Path) -> None:
    assert "choose another folder" in one_line_error(dsh("train", "no such set", "--out", run), 2)
    edit(run / "metrics.json", finished=False)
    assert f"--resume {run}" in one_line_error(dsh("train", "no such set", "--out", run), 2)
    (tmp_path / "file").write_text("")
    assert "choose another folder" in one_line_error(dsh("train", "no such set", "--out", tmp_path / "file"), 2)
