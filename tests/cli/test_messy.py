"""A folder as they are in the wild, by every command that takes folders: what it takes of it, and what it says."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.support import messy
from tests.support.commands import dsh, dsh_json, dsh_process, on_terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="makes links and pipes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return messy.make(tmp_path)


def test_a_training_says_in_six_lines_what_it_understood_of_a_messy_folder(folder: Path) -> None:
    command = ["train", folder, "--bits", "8", "--epochs", "2", "--backbone", "small-resnet", "--no-tensorboard"]
    result = dsh(*command, "--out", "run")
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    counts = ", ".join(f"{count} {split}" for split, count in messy.COUNTS.items())
    assert lines[0] == f"{folder}: 3 classes, {counts}"
    classes = ", ".join(f"{name} ({count})" for name, count in zip(messy.CLASSES, messy.EACH, strict=True))
    assert lines[1] == f"classes: {classes}"
    for line, told in zip(lines[2:6], messy.TOLD, strict=True):
        assert line.startswith(f"warning: {told}")
    assert "left out" not in "".join(lines[6:])
    assert dsh_json("info", "run")["classes"] == messy.CLASSES
    code, shown = on_terminal([*map(str, command), "--out", "again"], 80)
    assert code == 0 and "3 classes" in shown and "\x1b[2J" not in shown

    hashed = dsh("hash", folder, "--model", "run", "--format", "plain")
    assert hashed.exit_code == 1  # for the one that cannot be read
    taken = sum(messy.COUNTS.values()) + 3  # beside class folders
    assert len(hashed.stdout.splitlines()) == taken
    assert (
        "2 camera raw files" in hashed.stderr and "2 links back, or to folders that are taken anyway" in hashed.stderr
    )

    added = dsh("index", "add", "x.lance", folder, "--model", "run", "--labels", "folder")
    assert added.exit_code == 1
    assert dsh_json("index", "info", "x.lance")["rows"] == taken
    assert [line for line in added.stderr.splitlines() if "left out" in line] == [
        line for line in hashed.stderr.splitlines() if "left out" in line
    ]

    measured = dsh("evaluate", "--model", "run", "--query", folder / "Test", "--database", folder / "val", "--json")
    assert measured.exit_code == 0, measured.stderr
    assert "1 picture beside class folders" in measured.stderr and "1 camera raw file" in measured.stderr
    near = dsh("neighbors", folder / "val", "--model", "run", "--label", "cafe\u0301", "--json")
    assert near.exit_code == 0, near.stderr
    assert {n["label"] for line in near.stdout.splitlines() for n in json.loads(line)["neighbors"]} == {"caf\u00e9"}


def test_the_first_lines_name_few_classes_and_count_many(photos: Path) -> None:
    command = ["train", photos, "--epochs", 1, "--backbone", "small-resnet", "--no-tensorboard", "--bits", 8]
    lines = dsh(*command, "--out", "few").stderr.splitlines()
    assert lines[0].endswith(
        f"{photos}: 3 classes, 14 train, 1 validation, 3 test (validation and test drawn by the seed)"
    )
    assert lines[1] == "classes: apple (6), pear (6), plum (6)"
    for number in range(9):
        (photos / f"apple {number}").symlink_to(photos / "apple")  # of which only one is taken
        shutil.copytree(photos / "pear", photos / f"pear {number}")
    lines = dsh(*command, "--out", "many").stderr.splitlines()
    assert lines[1] == "classes of 6 pictures each"
    (photos / "plum" / "0.png").unlink()
    lines = dsh(*command, "--out", "unequal").stderr.splitlines()
    assert lines[1] == "classes: 5 (plum) to 6 (apple) pictures each"


def test_a_named_set_is_not_taken_for_a_folder_without_a_word(photos: Path) -> None:
    photos.rename("digits")
    command = ["--epochs", 1, "--backbone", "small-resnet", "--no-tensorboard"]
    lines = dsh("train", "digits", *command, "--out", "set").stderr.splitlines()
    assert lines[0].endswith("; for the folder of that name here, give ./digits")
    lines = dsh("train", "./digits", *command, "--out", "folder").stderr.splitlines()
    assert "./digits" not in lines[0] and "14 train" in lines[0]


POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_names_are_the_same_under_a_locale_that_lacks_their_letters(folder: Path, tmp_path: Path) -> None:
    """Python then gives bytes of names as halves of characters, in files, in folders and on the command line."""
    options = ["--epochs", "1", "--backbone", "small-resnet", "--no-tensorboard", "--quiet"]
    for run, env in (("utf-8", {}), ("posix", POSIX)):
        done = dsh_process("train", "messy", *options, "--out", run, cwd=tmp_path, env=os.environ | env)
        assert done.returncode == 0, done.stderr
        command = ["index", "add", "x.lance", "messy", "--model", "utf-8", "--labels", "folder", "--json"]
        done = dsh_process(*command, cwd=tmp_path, env=os.environ | env)
        assert json.loads(done.stdout)["updated"] == 0
        command = ["neighbors", "messy/Train/item 2/0.jpg", "-m", run, "--label", "cafe\u0301", "--json", "-k", "40"]
        done = dsh_process(*command, cwd=tmp_path, env=os.environ | env)
        assert done.returncode == 0, done.stderr
        assert {near["label"] for near in json.loads(done.stdout)["neighbors"]} == {"caf\u00e9"}
        (tmp_path / "labels.csv").write_text("messy/Train/cafe\u0301/0.png,caf\u00e9\n" * 1, "utf-8")
        done = dsh_process("index", "add", f"{run}.lance", "messy/Train/cafe\u0301/0.png", "-m", run, "--labels",
                           "labels.csv", cwd=tmp_path, env=os.environ | env)  # fmt: skip
        assert done.returncode == 0 and b"no label" not in done.stderr, done.stderr
    assert dsh_json("info", tmp_path / "posix")["classes"] == dsh_json("info", tmp_path / "utf-8")["classes"]
