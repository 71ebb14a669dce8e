"""Folders of runs, made by one process each: real processes race for them."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.errors import UsageError
from dsh_cli.runs import folders
from dsh_cli.runs.folders import created, require_free, resumed
from dsh_cli.runs.run import Run
from dsh_cli.runs.storage import write_json
from tests.support.commands import dsh, one_line_error

RACER = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.errors import DshError
from dsh_cli.runs.folders import created

train = SimpleNamespace(classes=("a", "b"), source="nowhere")
splits = SimpleNamespace(train=train, names=lambda: {"train": ("1", "2"), "test": ("3",)})
recipe, model = Recipe(data="d", image_size=8, epochs=1, margin=16.0), ModelConfig("resnet9", 8, 1, 8)
Path(f"ready{sys.argv[1]}").touch()
while not Path("go").exists():
    pass
for number in range(int(sys.argv[2])):
    out = None if sys.argv[3] == "named" else f"run{number}"
    try:
        with created(recipe, model, splits, out) as run:
            time.sleep(0.002)
        print(run.path)
    except DshError as error:
        print(type(error).__name__, error)
"""


def race(racers: int, rounds: int, kind: str) -> list[str]:
    """What processes say that make folders at once."""
    command = [sys.executable, "-c", RACER]
    running = [
        subprocess.Popen([*command, str(number), str(rounds), kind], stdout=subprocess.PIPE, text=True)
        for number in range(racers)
    ]
    while not all(Path(f"ready{number}").exists() for number in range(racers)):
        assert all(process.poll() is None for process in running)
    Path("go").touch()
    said = [process.communicate(timeout=120)[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    return [line for text in said for line in text.splitlines()]


def test_of_several_that_make_one_folder_one_has_it_and_the_others_leave_it_alone() -> None:
    rounds = 40
    said = race(4, rounds, "given")
    winners = sorted(line for line in said if line.startswith("run"))
    assert winners == sorted(f"run{number}" for number in range(rounds))  # one each
    losers = [line for line in said if not line.startswith("run")]
    assert len(losers) == 3 * rounds
    for line in losers:
        assert "is there already; choose another folder" in line or "another process is training run" in line, line
    for winner in winners:
        assert Run.open(winner).names() == {"train": ("1", "2"), "test": ("3",)}
        assert sorted(path.name for path in Path(winner).iterdir()) == ["config.json", "metrics.json", "splits.json"]


def test_runs_begun_in_one_second_have_names_of_their_own() -> None:
    said = race(4, 5, "named")
    assert len(set(said)) == 20 and all(Path(line, "config.json").is_file() for line in said), said


@pytest.mark.parametrize("left", [(), (".lock",), (".lock", "splits.json", ".config.json.77")])
def test_what_a_killed_writer_left_is_no_run_and_in_nobodys_way(tmp_path: Path, left: tuple[str, ...]) -> None:
    (tmp_path / "out").mkdir()
    for name in left:
        (tmp_path / "out" / name).touch()
    require_free("out")
    (tmp_path / "out" / "config.json").touch()
    with pytest.raises(UsageError, match="`out` out is there already"):
        require_free("out")


@pytest.mark.parametrize("name", ["splits.json", "config.json"])
def test_what_ctrl_c_leaves_before_there_is_a_run_is_in_nobodys_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(run: Path, file: str, content: object) -> str:
        if file == name:
            raise KeyboardInterrupt
        return write_json(run, file, content)

    splits: Any = SimpleNamespace(train=SimpleNamespace(classes=("a",), source="s"), names=lambda: {"train": ("1",)})
    recipe, model = Recipe(data="d", image_size=8, epochs=1, margin=16.0), ModelConfig("resnet9", 8, 1, 8)
    monkeypatch.setattr(folders, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt), created(recipe, model, splits, "out"):
        pass
    require_free("out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_users_is_not_taken_for_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "splits.json").write_text("mine")
    with pytest.raises(UsageError, match="`out` out is there already"):
        require_free("out")


def test_two_trainings_of_one_folder_end_as_one(tmp_path: Path) -> None:
    options = ["train", "digits", "--epochs", "1", "-q", "--no-tensorboard", "--out", "both", "--json"]
    command = [sys.executable, "-m", "dsh_cli", *options]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert sorted(process.returncode == 0 for process in both) == [False, True]
    (error,) = [err for (_, err), process in zip(said, both, strict=True) if process.returncode]
    assert len(error.splitlines()) == 1 and error.startswith("error: ")
    assert Run.open(tmp_path / "both").finished


def test_a_run_that_was_finished_meanwhile_is_not_trained_anew(digits_run: Path) -> None:
    before = {file: file.read_bytes() for file in digits_run.rglob("*") if file.is_file()}
    refused = pytest.raises(UsageError, match="is finished; for the same recipe again: dsh train --like")
    with refused, resumed(digits_run):
        pass
    assert {file: file.read_bytes() for file in digits_run.rglob("*") if file.is_file()} == before


def test_a_place_that_cannot_be_written_to_is_refused_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: os.fspath(path) != str(tmp_path) and access(path, mode))
    for words in (["--out", tmp_path / "a" / "b"], []):
        line = one_line_error(dsh("train", "no-such-data", *words), 2)
        assert f"a run cannot be written in {tmp_path}; make it writable, or choose another folder with --out" in line
