"""`remove --missing`: files that were deleted go, and those of a disk that is not mounted stay until that is agreed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsh_cli.errors import DshError
from dsh_cli.index import files
from dsh_cli.index.files import lost
from dsh_cli.index.index import Index, ReadyCodes
from tests.support.commands import dsh, dsh_json, one_line_error


def indexed(*folders: tuple[str, int]) -> None:
    """An index of so many files in each folder."""
    names = []
    for folder, count in folders:
        os.makedirs(folder, exist_ok=True)
        names += [os.path.abspath(f"{folder}/{number:03d}.png") for number in range(count)]
    for name in names:
        Path(name).touch()
    Index.open("i").add_codes([ReadyCodes(names, np.zeros((len(names), 1), np.uint8))], 8, "m")


def test_all_that_are_missing_are_taken_out_only_when_told_so() -> None:
    indexed(("disk/a", 120), ("disk/b", 80))
    os.rename("disk", "elsewhere")
    said = one_line_error(dsh("index", "remove", "i", "--missing"), 1)
    assert said == (
        "error: 200 of 200 pictures in index i are missing, all there are; mount their disk if it is not, or take them "
        "out with --yes"
    )
    assert len(Index.open("i")) == 200
    with pytest.raises(DshError, match="`yes`"):
        Index.open("i").remove(missing=True)
    assert dsh_json("index", "remove", "i", "--missing", "--yes")["removed"] == 200


def test_a_whole_root_that_is_missing_is_taken_out_only_when_told_so(tmp_path: Path) -> None:
    indexed(("one/a", 20), ("two/a", 8), ("two/b", 5), ("three", 50))
    os.rename("two", "elsewhere")
    os.remove("one/a/000.png")
    said = one_line_error(dsh("index", "remove", "i", "--missing"), 1)
    assert f"14 of 83 pictures in index i are missing, all 13 below {tmp_path}/two; mount" in said
    os.rename("elsewhere/b", "elsewhere/c")
    os.rename("elsewhere", "two")  # of which only a small folder is gone
    assert dsh_json("index", "remove", "i", "--missing")["removed"] == 6


def test_a_small_folder_goes_unasked_whether_deleted_or_emptied() -> None:
    indexed(*((f"photos/{number}", 5) for number in range(12)))
    shutil.rmtree("photos/3")
    assert dsh_json("index", "remove", "i", "--missing")["removed"] == 5
    for name in os.listdir("photos/4"):
        os.remove(f"photos/4/{name}")
    os.remove("photos/5/000.png")
    assert dsh_json("index", "remove", "i", "--missing")["removed"] == 6


def test_what_is_named_alone_is_taken_out_unasked() -> None:
    indexed(("a", 10), ("b", 10))
    shutil.rmtree("a")
    assert dsh_json("index", "remove", "i", "a")["removed"] == 10


def test_of_what_is_named_only_what_is_missing_is_taken_out(tmp_path: Path) -> None:
    indexed(("photos/a", 10), ("photos/b", 10), ("disk", 10))
    os.rename("disk", "elsewhere")  # which nobody asks about below
    for name in ("photos/a/000.png", "photos/b/001.png", "photos/b/002.png"):
        os.remove(name)
    assert json.loads(dsh("index", "remove", "i", "-", "--missing", "--json", input="").stdout)["removed"] == 0
    assert dsh_json("index", "remove", "i", "photos/a", "--missing")["removed"] == 1
    assert dsh_json("index", "remove", "i", "photos/*2.png", "--missing")["removed"] == 1
    assert dsh_json("index", "remove", "i", "photos", "--missing")["removed"] == 1
    assert dsh_json("index", "remove", "i", "photos", "--missing")["removed"] == 0
    said = one_line_error(dsh("index", "remove", "i", "photos/b", "disk", "--missing"), 1)
    assert f"10 of 18 such pictures in index i are missing, all 10 below {tmp_path}/disk; mount" in said
    assert dsh_json("index", "remove", "i", "disk", "--missing", "--yes")["rows"] == 17


def test_a_small_disk_is_told_from_a_small_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("mnt/big/a", "mnt/small", "pictures/a"):
        (tmp_path / folder).mkdir(parents=True)
    mounted = {tmp_path / "mnt/big": 2}

    def disk(folder: Path) -> int:
        return next((mounted[path] for path in (folder, *folder.parents) if path in mounted), 1)

    monkeypatch.setattr(files, "_disk", disk)
    names = [f"{tmp_path}/mnt/big/a/{number}" for number in range(200)]

    def looks_lost(*missing: str) -> dict[Path, int]:
        return lost([*names, *(f"{tmp_path}/{name}" for name in missing)], np.arange(200 + len(missing)) >= 200)

    assert looks_lost("mnt/small/deep/1", "mnt/small/2") == {tmp_path / "mnt/small": 2}  # an empty mount point
    assert looks_lost("mnt/small2/deep/1") == {tmp_path / "mnt/small2": 1}  # that went with its disk
    assert looks_lost("mnt/big/b/1") == looks_lost("mnt/big/a/b/c/1", "mnt/big/a/b/2") == {}
    assert lost([*names, "/srv/1"], np.arange(201) == 200) == {Path("/srv"): 1}
    assert lost(["/a/1", "/b/1"], np.array([True, True])) == {Path("/"): 2}


def test_a_link_that_leads_nowhere_is_a_disk_that_is_not_there(tmp_path: Path) -> None:
    indexed(("photos/a", 50))
    os.symlink(tmp_path / "disk", "photos/b")
    indexed(("disk", 2))
    names = [f"{tmp_path}/photos/b/{number:03d}.png" for number in range(2)]
    Index.open("j").add_codes([ReadyCodes([*names, *(f"{tmp_path}/photos/a/{number:03d}.png" for number in range(50))],
                                          np.zeros((52, 1), np.uint8))], 8, "m")  # fmt: skip
    os.rename("disk", "elsewhere")
    assert f"all 2 below {tmp_path}/photos/b" in one_line_error(dsh("index", "remove", "j", "--missing"), 1)


@pytest.mark.parametrize(("answer", "removed"), [("y", 10), ("n", 0)])
def test_on_a_terminal_it_asks(answer: str, removed: int) -> None:
    pty = pytest.importorskip("pty")
    indexed(("disk", 10))
    shutil.rmtree("disk")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dsh_cli", "index", "remove", "i", "--missing", "--json"]
    process = subprocess.Popen(command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE)
    said = b""
    while b"Take them out?" not in said:
        said += os.read(ours, 1000)
    os.write(ours, f"{answer}\n".encode())
    answered = process.communicate(timeout=60)[0]
    os.close(theirs)
    os.close(ours)
    assert b"10 of 10 pictures in index i are missing, all there are" in said
    assert process.returncode == (0 if removed else 1) and len(Index.open("i")) == 10 - removed
    assert bool(answered) == bool(removed)
