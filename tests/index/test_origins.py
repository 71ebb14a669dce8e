"""What is written down of where pictures were added from, and what a page may show by it."""

import os
from pathlib import Path

import pytest

from dsh_cli.index.origins import Folders, added_from, note


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def test_what_is_below_a_folder_added_is_shown_and_of_files_what_is_beside_them(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    note("i.lance", ["photos", "one/a.png"], new=True)
    known = added_from("i.lance")
    assert known.added == {str(tmp_path / "photos")} and known.beside == {str(tmp_path / "one")}
    for path, place in (
        ("photos/x/y.png", "photos/x/y.png"),
        ("one/b.png", "one/b.png"),
        ("one/deep/b.png", None),
        ("photos/../one/b.png", "one/b.png"),
        ("photos/../b.png", None),
        ("photos2/b.png", None),
        ("photos", None),
        ("photos/a\0b.png", None),
    ):
        assert known.place(path) == (place and str(tmp_path / place)), path


def test_links_lead_out_of_no_folder_that_is_named(tmp_path: Path) -> None:
    for name in ("data/a.png", "else/b.png"):
        Path(name).parent.mkdir()
        Path(name).touch()
    os.symlink("data", "named")
    os.symlink(tmp_path / "else", "data/out")
    shown = Folders().and_named(["named"])
    assert shown.place("named/a.png") == shown.place("data/a.png") == str(tmp_path / "data/a.png")
    assert shown.place("named/out/b.png") is None and shown.place("else/b.png") is None


def test_an_index_is_one_however_it_is_called_and_another_of_its_name_is_not(tmp_path: Path) -> None:
    os.symlink("i.lance", "link.lance")
    Path("i.lance").mkdir()
    note("i.lance", ["a/x.png"], new=True)
    note("link.lance", ["b/x.png"], new=False)
    for name in ("i.lance", "./i.lance", str(tmp_path / "i.lance"), f"file://{tmp_path}/i.lance", "link.lance"):
        assert added_from(name).beside == {str(tmp_path / "a"), str(tmp_path / "b")}
    assert added_from("j.lance") == added_from("s3://bucket/i.lance") == Folders()
    note("i.lance", ["c/x.png"], new=True)
    assert added_from("i.lance").beside == {str(tmp_path / "c")}


def test_what_cannot_be_written_or_read_is_no_error_and_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note("i.lance", ["a/x.png"], new=True)
    (record,) = (tmp_path / "state" / "dsh" / "indexes").iterdir()
    for damage in (b"", b"[]", b"{}", b"[" * 100_000, b'{"added": 1, "beside": []}', b"\xff"):
        record.write_bytes(damage)
        assert added_from("i.lance") == Folders()
    Path("file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    note("i.lance", ["a/x.png"], new=True)
    assert added_from("i.lance") == Folders()
    monkeypatch.setattr("dsh_cli.index.origins.user_state_path", lambda name: Path("~/.local/state", name))
    note("i.lance", ["a/x.png"], new=True)  # nobody is at home
    assert added_from("i.lance") == Folders() and not Path("~").exists()
