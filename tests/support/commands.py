"""Commands run as a user runs them, in this process or in one of their own, and what they must say."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from dsh_cli.cli import app

DIGITS = ["train", "digits", "--epochs", "12", "--batch-size", "64", "--quiet", "--no-tensorboard"]


def every_command() -> list[str]:
    """All commands and groups, by the words they are called with, in the order --help lists them."""

    def below(group: TyperGroup, words: str) -> Iterator[str]:
        for name, command in group.commands.items():
            yield words + name
            if isinstance(command, TyperGroup):
                yield from below(command, f"{words}{name} ")

    whole = get_command(app)
    assert isinstance(whole, TyperGroup)
    return list(below(whole, ""))


def dsh(
    *args: object, input: str | None = None, env: Mapping[str, str] | None = None, encoding: str = "utf-8"
) -> Result:
    """Run a command in this process."""
    return CliRunner(charset=encoding).invoke(app, [str(arg) for arg in args], input, env)


def dsh_json(*args: object) -> Any:
    """Run a command that must succeed, and give what it printed as JSON."""
    result = dsh(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def dsh_process(
    *args: str | bytes | os.PathLike[str],
    input: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "dsh_cli", *(os.fspath(arg) for arg in args)]
    return subprocess.run(command, input=input, capture_output=True, timeout=300, cwd=cwd, env=env)


def undone(field: str) -> str:
    """What a field of a plain line says, by the line that docs/output.md gives."""
    return os.fsdecode(field.encode().decode("unicode_escape").encode("latin-1"))


def unmeasured() -> dict[str, str]:
    """The environment of a process whose coverage is not of interest, or cannot be written down."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def one_line_error(result: Result, exit_code: int) -> str:
    """What a command said that must fail: one line on stderr, nothing on stdout."""
    assert result.exit_code == exit_code, (result.exit_code, result.stderr, result.exception)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def on_terminal(arguments: Sequence[str], columns: int = 120, pipe: str = "") -> tuple[int, str]:
    """The exit code of a command on a pseudo-terminal, and all that it showed there.

    Args:
        arguments: of the command.
        columns: of the terminal.
        pipe: what a shell has after the command, such as "| cat".
    """
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "dsh_cli", *arguments]
    if pipe:
        command = ["sh", "-c", f"{shlex.join(command)} {pipe}"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the other side has closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    return process.wait(timeout=60), shown.decode()
