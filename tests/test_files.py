"""Only regular files are read, and nothing is waited for."""

import os
import socket
import sys
from pathlib import Path

import pytest

from dsh_cli import files
from dsh_cli.errors import reason

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs pipes, sockets and devices")


def test_a_regular_file_is_opened_and_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\r\n\x1a")
    (tmp_path / "link").symlink_to("x")
    for name in ("x", "link"):
        descriptor = files.open_regular(tmp_path / name)
        assert os.read(descriptor, 9) == b"\r\n\x1a"
        os.close(descriptor)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "nothing"])
@pytest.mark.parametrize("swapped_in", [False, True])
def test_what_is_no_file_is_refused_at_once_and_left_closed(
    kind: str, swapped_in: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path("x")
    make(kind, path)
    if swapped_in:  # the look before saw a file
        (tmp_path / "file").touch()
        seen = os.stat(tmp_path / "file")
        monkeypatch.setattr(os, "stat", lambda path, **how: seen)
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(OSError) as error:
        files.open_regular(path)
    messages = {"folder": "is a directory", "nothing": "no such file or directory"}
    other = "no such device or address" if kind == "socket" and swapped_in else "not a regular file"
    assert reason(error.value) == messages.get(kind, other)
    assert len(os.listdir("/dev/fd")) == before


def make(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()


def test_a_link_is_no_file_where_none_is_to_be_followed(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "link").symlink_to("x")
    os.close(files.open_regular(tmp_path / "link"))
    with pytest.raises(OSError, match="not a regular file"):
        files.open_regular(tmp_path / "link", follow=False)
