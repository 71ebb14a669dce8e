"""The system calls by which a program writes files, in their order: by `strace`, or as Python makes them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

_TRACED = "write,writev,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat"
_BY_DESCRIPTOR = re.compile(r"(\w+)\(\d+<([^>]*)>.*= (\d+)$")
_BY_NAME = re.compile(r"(\w+)\((.*)\) = 0$")
_KIND: dict[str, Literal["write", "sync", "move", "delete"]] = {
    **dict.fromkeys(["write", "writev", "pwrite64", "ftruncate"], "write"),
    **dict.fromkeys(["fsync", "fdatasync"], "sync"),
    **dict.fromkeys(["rename", "renameat", "renameat2"], "move"),
    **dict.fromkeys(["unlink", "unlinkat"], "delete"),
}


@dataclass(frozen=True)
class Call:
    """What was done to a file or folder."""

    kind: Literal["write", "sync", "move", "delete"]
    path: str
    to: str = ""  # where it was moved


def traced(command: Sequence[str], log: Path, folder: Path) -> list[Call]:
    """What a program did to the files below a folder, which its calls name in full."""
    strace = ["strace", "-f", "-y", "--seccomp-bpf", "-qq", "-e", f"trace={_TRACED}", "-e", "signal=none", "-s", "0"]
    subprocess.run([*strace, "-s", "4096", "-o", str(log), *command], check=True, capture_output=True)
    return [call for call in map(_parsed, _whole(log)) if call and call.path.startswith(str(folder))]


def _whole(log: Path) -> Iterator[str]:
    """The calls of a log in the order in which they ended, without the number of the thread."""
    unfinished: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        thread, _, call = line.partition(" ")
        if call.endswith("<unfinished ...>"):
            unfinished[thread] = call.strip().removesuffix(" <unfinished ...>")
        elif resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", call):
            yield unfinished.pop(thread) + resumed[1]
        else:
            yield call.strip()


def _parsed(call: str) -> Call | None:
    if (found := _BY_DESCRIPTOR.match(call)) and found[1] in _KIND:
        return Call(_KIND[found[1]], found[2])
    if (found := _BY_NAME.match(call)) and found[1] in _KIND:
        names = re.findall(r'"((?:[^"\\]|\\.)*)"', found[2])
        return Call(_KIND[found[1]], names[0], names[1] if len(names) > 1 else "")
    return None


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """What this process syncs, moves and deletes by `os`; what it writes is not seen."""
    calls: list[Call] = []
    fsync, replace, unlink = os.fsync, os.replace, os.unlink

    def syncing(descriptor: int) -> None:
        calls.append(Call("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def moving(source: Any, target: Any) -> None:
        replace(source, target)
        calls.append(Call("move", os.path.abspath(source), os.path.abspath(target)))

    def deleting(path: Any, **folder: Any) -> None:
        unlink(path, **folder)
        calls.append(Call("delete", os.path.abspath(path)))

    with mock.patch.multiple(os, fsync=syncing, replace=moving, unlink=deleting):
        yield calls


def require_whole(calls: Sequence[Call]) -> list[str]:
    """That each file was written elsewhere, synced, moved into place, and its folder synced; their paths in this order.

    What is written and never moved into place is no file of ours, such as a log.
    """
    moved: list[str] = []
    for at, call in enumerate(calls):
        if call.kind != "move" or os.path.basename(call.to).startswith("."):  # such as what safetensors moves to ours
            continue
        before = [other.kind for other in calls[:at] if other.path == call.path]
        assert before and before[-1] == "sync", f"{call.to} was not synced before it was moved into place: {before}"
        after = calls[at + 1] if at + 1 < len(calls) else None
        assert after == Call("sync", os.path.dirname(call.to)), f"after {call.to} its folder was not synced: {after}"
        moved.append(call.to)
    written = [call.path for call in calls if call.kind == "write" and call.path in moved]
    assert not written, f"written in place: {written}"
    return moved
