"""Which files below folders are pictures, which links are followed, and what is told of the rest."""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from dsh_cli.pictures.find import Kind, LeftOut, Search, expand, find

JPEG = b"\xff\xd8\xff\xe0\0\x10JFIF\0"


def put(root: Path, *names: str, content: bytes = JPEG) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def below(root: Path, left_out: LeftOut | None = None) -> list[str]:
    return [path.removeprefix(f"{root}/") for path in find(root, left_out)]


def test_links_are_followed_to_files_and_to_folders_elsewhere(tmp_path: Path) -> None:
    put(tmp_path, "root/cat/1.jpg", "root/.store/9.jpg", "there/2.jpg", "there/deep/3.jpg")
    root = tmp_path / "root"
    (root / "dog").symlink_to("../there")
    (root / "kept").symlink_to(".store")  # hidden, so found no other way
    (root / "cat" / "again.jpg").symlink_to("1.jpg")
    left_out = LeftOut()
    assert below(root, left_out) == ["cat/1.jpg", "cat/again.jpg", "dog/2.jpg", "dog/deep/3.jpg", "kept/9.jpg"]
    assert not left_out.counts


def test_no_folder_is_taken_twice(tmp_path: Path) -> None:
    put(tmp_path, "root/cat/1.jpg", "there/2.jpg", "there/deep/3.jpg")
    root = tmp_path / "root"
    for link, target in {
        "cat/up": "..",  # to what it lies in
        "cat/itself": ".",
        "out": "../..",  # to what the root lies in
        "copy": "cat",  # to what is found anyway
        "a": "../there/deep",
        "b": "../there",  # of which `deep` was taken
        "c": "../there",
    }.items():
        (root / link).symlink_to(target)
    (tmp_path / "there" / "back").symlink_to("../root/cat")
    (tmp_path / "there" / "round").symlink_to(".")
    left_out = LeftOut(str(root))
    assert below(root, left_out) == ["a/3.jpg", "b/2.jpg", "cat/1.jpg"]
    assert left_out.counts == {Kind.LINK: 8}  # the folder `b/deep` too
    assert left_out.lines() == ["left out: 8 links back, or to folders that are taken anyway, first c"]


def test_many_links_to_one_another_end(tmp_path: Path) -> None:
    """Each of 12 folders has links to all of the others: paths without a folder twice would be a billion."""
    put(tmp_path, "root/x/0.jpg", *(f"{i}/{i}.jpg" for i in range(12)))
    for i in range(12):
        for j in range(12):
            (tmp_path / str(i) / f"to{j}").symlink_to(f"../{j}")
    (tmp_path / "root" / "in").symlink_to("../0")
    assert len(below(tmp_path / "root")) == 13


def test_what_systems_leave_behind_holds_no_pictures(tmp_path: Path) -> None:
    names = ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found", ".Trashes"]
    put(tmp_path, "a/1.jpg", *(f"a/{name}/{name}.jpg" for name in names))
    left_out = LeftOut()
    assert below(tmp_path, left_out) == ["a/1.jpg"] and not left_out.counts
    search = Search(tmp_path)
    assert search.listed(str(tmp_path / "a")) == ([], [f"{tmp_path}/a/1.jpg"])
    assert [*find(tmp_path / "a" / "@eaDir")]  # where it is asked for


def test_pictures_of_a_run_are_not_its_users(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/2.jpg", "runs/a/map.png", "runs/a/tensorboard/sprite.png", "plan/3.jpg")
    names = ("plan/metrics.json", "runs/a/config.json", "runs/a/metrics.json", "runs/a/splits.json")
    put(tmp_path, *names, content=b"{}")
    left_out = LeftOut()
    assert below(tmp_path, left_out) == ["cat/1.jpg", "dog/2.jpg", "plan/3.jpg"]
    assert left_out.lines() == [f"left out: 1 run folder of dsh, whose pictures are of others, {tmp_path}/runs/a"]
    assert below(tmp_path / "runs") == [] and len(below(tmp_path / "runs" / "a")) == 2  # where it is named itself


def test_what_is_left_out_by_its_name_is_told(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "photo", "scan.bak", "IMG_1.CR2", "IMG_2.nef")
    put(tmp_path, "notes.txt", "empty", ".hidden", content=b"")
    put(tmp_path, "words.doc", content=b"JPEG, a word")
    (tmp_path / "gone.lnk").symlink_to("nowhere")
    (tmp_path / "itself").symlink_to("itself")
    os.mkfifo(tmp_path / "pipe")  # which must not be waited for
    left_out = LeftOut(str(tmp_path))
    assert below(tmp_path, left_out) == ["1.jpg"]
    assert left_out.lines() == [
        "left out: 2 pictures not named as such, first photo; rename, as to .jpg",
        "left out: 2 camera raw files, first IMG_1.CR2; export as JPEG or TIFF",
        "left out: 2 links that lead nowhere, first gone.lnk",
    ]
    assert left_out.lines(2) == [left_out.lines()[0], "left out: 2 camera raw files, 2 links that lead nowhere"]
    assert left_out.lines(1) == [
        "left out: 2 pictures not named as such, 2 camera raw files, 2 links that lead nowhere"
    ]
    one = LeftOut()
    one.add(Kind.UNREADABLE, "a.png", "empty file")
    assert one.lines() == ["left out: 1 unreadable picture, a.png (empty file); dsh hash names each"]


def test_formats_that_are_not_read_are_no_pictures(tmp_path: Path) -> None:
    put(tmp_path, "1.jpg", "2.heic", "3.mpo", "4.h5", "5.mpg", "6.eps", "7.wmf", content=b"%!PS")
    left_out = LeftOut()
    assert below(tmp_path, left_out) == ["1.jpg", "2.heic", "3.mpo"] and not left_out.counts


def test_looks_at_other_files_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, *(f"{i:03}.json" for i in range(300)), content=b"{}")
    put(tmp_path, "z.json", "z.dat")
    looks: list[str] = []
    true_open = os.open

    def counted(path: str, *args: int, **more: int) -> int:
        looks.append(os.fspath(path))
        return true_open(path, *args, **more)

    monkeypatch.setattr(os, "open", counted)
    left_out = LeftOut()
    assert below(tmp_path, left_out) == [] and left_out.counts == {Kind.UNNAMED: 1}
    assert len(looks) == 101


def test_a_folder_that_cannot_be_listed_is_given_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    true_scandir = os.scandir

    def refusing(path: str) -> object:
        if path.endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return true_scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert below(tmp_path) == ["a", "b/2.jpg"]


def test_a_system_s_made_up_files_are_left_alone() -> None:
    """Such as those of a process, of which some never end when they are read."""
    if not os.path.isdir(folder := f"/proc/{os.getpid()}"):
        pytest.skip("no /proc here")
    left_out = LeftOut()
    found: Iterable[str] = expand([folder], left_out)
    assert [*found] == [folder] or all(os.path.splitext(path)[1] for path in found)
    assert Kind.UNNAMED not in left_out.counts
