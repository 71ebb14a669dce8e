"""How commands begin and end: Ctrl-C at any moment, streams that are closed or full, files that may not be read."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from tests.support import privileges
from tests.support.commands import dsh, on_terminal, unmeasured
from tests.support.runs import small_run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, closed streams and modes are POSIX's")

PROGRAM = [sys.executable, "-m", "dsh_cli"]


# Ctrl-C


def test_ctrl_c_at_any_moment_of_the_start_is_one_line(tmp_path: Path) -> None:
    """But for the milliseconds in which Python itself starts, and looks for the package."""
    small_run(tmp_path / "run")
    outcomes = set()
    for delay in range(0, 600, 20):
        process = subprocess.Popen(
            [*PROGRAM, "table", "--model", "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=unmeasured()
        )
        time.sleep(delay / 1000)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        said = stderr.decode()
        if process.returncode == 130:
            assert said == "error: stopped by Ctrl-C\n", said
        elif process.returncode == 0:
            assert said == "" and len(stdout.splitlines()) == 3
        else:  # Python's own start, or its end, when all is said
            assert "dsh_cli/cli" not in said and "dsh_cli/__main__.py" not in said, (delay, said)
        outcomes.add(process.returncode)
    assert 130 in outcomes


def test_ctrl_c_is_heeded_from_the_first_line_on(tmp_path: Path) -> None:
    """Where the command line is being imported, the first of its modules sends the signal."""
    script = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *rest):
        if name == "MODULE":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["--version"]
from dsh_cli.__main__ import main
main()
"""
    for module in ("dsh_cli.cli", "typer", "rich.console", "dsh_cli.show.console", "dsh_cli.cli.embed"):
        done = subprocess.run(
            [sys.executable, "-c", script.replace("MODULE", module)], capture_output=True, text=True, env=unmeasured()
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: stopped by Ctrl-C\n"), module


def test_ctrl_c_in_a_callback_is_heeded(tmp_path: Path) -> None:
    """Python prints a traceback of what is raised in one, and goes on; the last of these comes while a command runs."""
    small_run(tmp_path / "run")
    script = """
import os, signal, sys

class Callback:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

class Finder:
    def find_spec(self, name, *rest):
        if name == "MODULE":
            Callback()

sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["table", "--model", "run"]
from dsh_cli.__main__ import main
main()
"""
    for module in ("dsh_cli.cli", "dsh_cli.show.views.table"):
        done = subprocess.run(
            [sys.executable, "-c", script.replace("MODULE", module)], capture_output=True, text=True, env=unmeasured()
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: stopped by Ctrl-C\n"), module


def test_ctrl_c_while_a_class_is_made_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python makes a RuntimeError of it, as seen while torch was being imported."""

    def interrupted(path: str) -> None:
        class Name:
            def __set_name__(self, owner: type, name: str) -> None:
                raise KeyboardInterrupt

        type("Made", (), {"name": Name()})

    monkeypatch.setattr("dsh_cli.runs.run.Run.open", interrupted)
    result = dsh("info", "run")
    assert (result.exit_code, result.stderr) == (130, "error: stopped by Ctrl-C\n")


def test_ctrl_c_that_whoever_started_us_ignores_stays_ignored(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    command = f"trap '' INT; {shlex.join(PROGRAM)} table --model run & sleep 0.15; kill -INT $!; wait $!"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.splitlines()) == 3


# Streams


@pytest.mark.parametrize(
    "command", ["table --model run", "info run", "info run --json", "hash x", "index info i", "train digits", "--help"]
)
def test_a_closed_standard_output_is_an_error_before_anything_is_done(command: str, tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    done = in_shell(f"{command} >&-")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("error: cannot write the output: standard output is closed; ")
    assert sorted(os.listdir()) == ["run"]


def test_a_standard_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    for command in ("table --model run", "--version", "neighbors 0xf0 --model run --html page.html"):
        done = in_shell(f"{command} 1</dev/null")
        said = "error: cannot write the output: Bad file descriptor; send it elsewhere\n"
        assert (done.returncode, done.stderr) == (1, said)
    assert sorted(os.listdir()) == ["run"]  # and no page of it


def test_a_closed_or_full_standard_error_keeps_the_result_and_the_exit_code(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    for to in ("2>&-", "2>/dev/full"):
        done = in_shell(f"table --model run {to}")
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
        assert in_shell(f"table --model none {to}").returncode == 1


def in_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", f"{shlex.join(PROGRAM)} {command}"], capture_output=True, text=True)


# Permissions


@pytest.mark.parametrize(
    ("part", "commands"),
    [
        ("run", ["info run", "table --model run", "train --resume run", "train digits --out run"]),
        ("run/codes", ["table --model run", "neighbors 0xf0 --model run"]),
        ("run/codes/test.safetensors", ["table --model run"]),
        ("run/config.json", ["info run"]),
        ("run/metrics.json", ["info run"]),
        ("run/splits.json", ["neighbors 0xf0 --model run"]),
        ("runs/one", ["table", "info"]),
        ("runs", ["table", "info"]),
        ("photos", ["train photos", "neighbors 0xf0 --model run --html photos/x.html"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_may_not_be_read_is_one_line(part: str, commands: list[str], tmp_path: Path) -> None:
    """Each in a process of its own, of a user who may not."""
    if os.geteuid() == 0 and sys.platform != "linux":
        pytest.skip("modes of files do not keep root out")
    (small_run(tmp_path / "run") / "model.safetensors").write_bytes(b"any")
    shutil.copytree("run", "runs/one")
    os.mkdir("photos")
    os.chmod(part, 0)
    try:
        for command in commands:
            program = privileges.kept_out([*PROGRAM, *command.split()])
            done = subprocess.run(program, capture_output=True, text=True)
            lines = done.stderr.splitlines()
            assert "Traceback" not in done.stderr, done.stderr
            assert done.returncode == 1, done
            assert all(line.startswith(("error: ", "warning: ")) for line in lines) and lines
    finally:
        os.chmod(part, 0o700)


# A live line


@pytest.mark.parametrize("pipe", ["| cat", "> codes.txt"])
def test_no_live_line_stands_where_results_may_show(pipe: str, digits_run: Path) -> None:
    """Those that `cat` wrote had come into the midst of it, and it stayed: "hashing pictures20  0.png"."""
    for number in range(3):
        Image.effect_noise((8, 8), 50).save(f"{number}.png")
    code, shown = on_terminal(["hash", "0.png", "1.png", "2.png", "--model", str(digits_run)], pipe=pipe)
    assert code == 0
    if pipe == "| cat":
        assert re.fullmatch(r"([0-9a-f]{2}  \d\.png\r\n){3}", shown), shown
    else:
        last = shown.rpartition("hashing pictures")[2]
        assert "\x1b[2K" in last and "\x1b[?25h" in last, shown  # shown meanwhile, and taken away


def test_ctrl_c_takes_a_live_line_away_and_shows_the_cursor_where_python_would_go_on(tmp_path: Path) -> None:
    script = "import sys; from dsh_cli.__main__ import _stop; sys.stderr.write('\\x1b[?25l* hashing'); _stop()"
    ours, theirs = os.openpty()
    env = {**unmeasured(), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    assert process.wait(timeout=60) == 130
    assert os.read(ours, 999).endswith(b"hashing\r\x1b[2K\x1b[?25herror: stopped by Ctrl-C\r\n")
    os.close(ours)
