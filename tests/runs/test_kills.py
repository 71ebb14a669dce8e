"""A writer of a run that is killed between any two steps leaves one that opens, and is gone on with to the same end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsh_cli import Run, TrainConfig, load_splits, train
from dsh_cli.runs import storage
from dsh_cli.runs.check import check
from tests.support.commands import dsh

# One process that begins a run or goes on with it, in place of a training: epoch n has the weights n. It is forked for
# each place to be killed at, for torch takes seconds to import.
WRITER = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import torch
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.network.model import HashNet
from dsh_cli.runs.check import check
from dsh_cli.runs.folders import created, require_free, resumed
from dsh_cli.runs.run import Run

import dsh_cli.runs.check, dsh_cli.runs.run
# the graph is made when the run is finished, see below
dsh_cli.runs.check.has_engine = dsh_cli.runs.run.has_engine = lambda: False

EPOCHS = 4
RECIPE, MODEL = Recipe(data="d", image_size=8, epochs=EPOCHS, margin=16.0), ModelConfig("small-resnet", 8, 1, 8)
NAMES = {"train": ("1", "2"), "validation": (), "test": ("3", "4")}
SPLITS = SimpleNamespace(train=SimpleNamespace(classes=("a", "b"), source="nowhere"), names=lambda: NAMES)
NET = HashNet(MODEL)

def weights(value):
    return {name: torch.full_like(tensor, value) for name, tensor in NET.state_dict().items()}

def codes(names):
    count = len(names)
    arrays = np.zeros((count, 1), np.uint8), np.zeros(count, np.int64)
    more = np.zeros((count, 8), np.float16), np.zeros((count, 4, 4, 1), np.uint8)
    return CodeSet(8, *arrays, ("a", "b"), names, *more)

def go_on(run):
    state = run.load_state()
    done = int(state["epochs_done"]) if state else 0
    assert not state or all((state[name] == tensor).all() for name, tensor in weights(done).items())
    for epoch in range(done + 1, EPOCHS + 1):
        if epoch == 2:
            run.write_centers(np.array([[1], [2]], np.uint8))
        run.write_state({**weights(epoch), "epochs_done": torch.tensor(epoch)}, epochs_done=epoch)
    NET.load_state_dict(weights(EPOCHS))
    lost = {**NAMES, "test": ("4",)}  # one went unreadable on the way
    results = {"epochs": EPOCHS, "seconds": 1.0, "map": 0.5, "min_class_distance": 2, "class_distance_bound": 8}
    run.write_results(NET, {split: codes(names) for split, names in lost.items()}, {**results, "device": "cpu"})

def train(path):
    if os.path.lexists(path / "config.json"):
        with resumed(path) as run:
            assert run.names() == NAMES
            go_on(run)
    else:
        require_free(path)
        with created(RECIPE, MODEL, SPLITS, path) as run:
            go_on(run)

def end(path):
    run = Run.open(path)
    assert run.finished and run.names()["test"] == ("4",) and len(run.codes("test")) == 1 and run.has_centers
    assert check(path).damaged == {}
    return {str(file.relative_to(path)): file.read_bytes().hex() for file in sorted(path.rglob("*")) if file.is_file()}

def killed_at(place, path):
    # the exit code of a writer that is killed before or after the one of its changes to the folder
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    counter = iter(range(10**6))
    def counted(function):
        def call(*args, **kwargs):
            if next(counter) == place:
                os._exit(9)
            done = function(*args, **kwargs)
            if next(counter) == place:
                os._exit(9)
            return done
        return call
    for name in ("replace", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        train(path)
        os._exit(0)
    except BaseException as error:
        print("writer", place, repr(error), flush=True)
        os._exit(1)

assert killed_at(-1, Path("whole")) == 0
said = {"places": 0, "begun anew": 0, "finished": 0, "differs": []}
whole = end(Path("whole"))
for place in range(10**6):
    path = Path(f"run{place}")
    if (code := killed_at(place, path)) == 0:
        break
    assert code == 9, (place, code)
    said["places"] += 1
    is_run = os.path.lexists(path / "config.json")
    said["begun anew"] += not is_run
    if is_run and Run.open(path).finished:
        said["finished"] += 1
        check(path, repair=True)  # sweeps
    else:
        train(path)
    result, wanted = end(path), dict(whole)
    for name in ("config.json", "metrics.json"):  # have the time
        result.pop(name), wanted.pop(name)
    if result != wanted:
        said["differs"].append([place, sorted(result.keys() ^ wanted.keys())])
print(json.dumps(said))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_a_writer_killed_at_any_change_leaves_a_run_that_ends_the_same(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WRITER], capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["differs"] == []
    # 3 files to begin with, centers, 4 states, weights, 3 of codes, names, each with metrics.json, and what goes again
    assert said["places"] >= 60 and said["begun anew"] >= 6 and said["finished"] >= 2


def test_a_writer_killed_before_the_graph_is_named_leaves_a_whole_run_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digit_png: Path
) -> None:
    class Killed(BaseException):
        pass

    def write_bytes(run: Path, name: str, data: bytes) -> str:
        storage.write_bytes(run, name, data)
        raise Killed

    monkeypatch.setattr("dsh_cli.runs.run.write_bytes", write_bytes)
    config = TrainConfig(data="digits", epochs=1, device="cpu", tensorboard=False)
    with pytest.raises(Killed):
        train(config, load_splits(config), str(tmp_path / "run"))
    run, found = Run.open(tmp_path / "run"), check(tmp_path / "run")
    assert run.finished and not run.has_graph and found.damaged == {} and found.strays == ("model.onnx",)
    assert dsh("hash", digit_png, "--model", run.path).exit_code == 0
