"""Streams that cannot write every character: never a traceback, columns that fit, names that can be undone."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsh_cli.codes.bits import from_hex
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_process, every_command, on_terminal, undone, unmeasured
from tests.support.runs import small_run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such names are there")

ENCODINGS = ["ascii", "latin-1", "cp1252"]
CLASSES = ["日本", "😀 é", "bytes\udcff", "a…b"]
NAMES = [f"{name}/{number}\\…é\udcfe日.png" for number, name in enumerate(CLASSES)]
OLD = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # a locale of ASCII, as Python takes it


def odd_run(folder: Path, long: bool = False) -> Path:
    """A run of classes and pictures whose names not every encoding has."""
    codes = ["f0" * 10, "0f" * 10, "ff" * 10, "3c" * 10] if long else ["f0", "0f", "ff", "3c"]
    rows = list(zip(CLASSES, codes, strict=True))
    several = [*rows, (CLASSES[0], codes[1]), (CLASSES[0], codes[3])]
    return small_run(folder, rows, 80 if long else 8, rows, several, CLASSES, NAMES)


@pytest.fixture
def run() -> Path:
    """Also an index of its pictures."""
    run = Run.open(odd_run(Path("日é")))
    (run.path / "model.safetensors").write_bytes(b"any")
    Index.open("é.lance").add_codes(
        [ReadyCodes(NAMES, from_hex(["f0", "0f", "ff", "3c"], 8), CLASSES)], 8, run.fingerprint
    )
    return run.path


COMMANDS = [
    ["info"],
    ["info", "日é"],
    ["info", "nosuch日"],
    ["table", "--model", "日é"],
    ["evaluate", "--model", "日é"],
    ["neighbors", "0xf0", "nosuch日é…", "--model", "日é", "--html", "é日.html"],
    ["neighbors", "0xf0", "--model", "日é", "--label", "nosuch日"],
    ["embed", "--model", "日é", "--method", "pca", "--split", "train", "--out", "é日.html"],
    ["embed", "--model", "日é", "--method", "pca", "--split", "日"],
    ["hash", "nosuch日é…", "--model", "日é"],
    ["index", "info", "é.lance"],
    ["index", "verify", "é.lance", "--sample", "0"],
    ["index", "remove", "é.lance", "nosuch日"],
    ["index", "export", "é.lance", "--parquet", "日.parquet"],
    ["index", "add", "é.lance", "nosuch日", "--model", "日é", "--labels", "日.csv"],
    ["train", "nosuch日…"],
    ["日…é"],
    ["info", "--日"],
]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: ascii(" ".join(command[:2])))
def test_no_command_says_what_its_stream_cannot_write(command: list[str], encoding: str, run: Path) -> None:
    os.mkdir("runs")
    shutil.copytree(run, "runs/写真")
    for form in ("table", "plain", "json"):
        result = dsh(*command, "--format", form, encoding=encoding)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        said = result.stdout_bytes + result.stderr_bytes
        assert said and "~" not in said.decode(encoding), said  # of names nothing is lost
        if form != "table":
            assert result.stdout_bytes.isascii()
        for line in result.stdout.splitlines():
            assert form != "table" or len(line) <= 80, line


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_columns_fit_what_is_written_in_them(encoding: str, run: Path) -> None:
    shown = dsh("table", "--model", run, "--format", "table", encoding=encoding).stdout.splitlines()
    table = [line for line in shown if line.startswith(("+", "|"))]
    assert len({len(line) for line in table}) == 1
    names = [r"|a\u2026b ", r"|bytes\udcff ", r"|\u65e5\u672c ", r"|\U0001f600 \xe9 "]
    if encoding != "ascii":
        names = [name.replace(r"\xe9", "é") for name in names]
    if encoding == "cp1252":
        names = [name.replace(r"\u2026", "…") for name in names]
    assert all(any(line.startswith(name) for line in table) for name in names), table
    marks = [line[-16:] for line in shown if re.match(r" \d  ", line)]
    own = "." if encoding == "ascii" else "·"
    assert [row[4 * number + 3] for number, row in enumerate(marks)] == [own] * 4


def test_long_codes_are_cut_with_a_mark_of_ascii(tmp_path: Path) -> None:
    long = odd_run(tmp_path / "run", long=True)
    for command in (["table"], ["neighbors", "0x" + "f0" * 10]):
        shown = dsh(*command, "--model", long, "--format", "table", encoding="latin-1").stdout
        assert "f0f0f0" in shown and "\\u2026 " not in shown, shown
    assert re.search(
        "0xf0f0f0f0f0f0f0f~ |0x3c3c3c3c3c3c3c3~ ",
        dsh("table", "--model", long, "--format", "table", encoding="ascii").stdout,
    )


@pytest.mark.parametrize("encoding", [*ENCODINGS, "shift-jis", "utf-8", "utf-16"])
def test_names_are_undone_as_is_documented_whatever_the_encoding(encoding: str, run: Path) -> None:
    (*_, plain) = dsh("table", "--model", run, "--split", "train", encoding=encoding).stdout.splitlines()
    found = dsh("neighbors", "0xf0", "--model", run, "--index", "é.lance", "--json", encoding=encoding)
    answer = json.loads(found.stdout_bytes.decode(encoding))
    assert sorted(n["path"] for n in answer["neighbors"]) == sorted(NAMES)
    lines = dsh("neighbors", "0xf0", "--model", run, "--index", "é.lance", encoding=encoding).stdout.splitlines()
    fields = [line.split("\t") for line in lines]
    assert sorted(undone(line[5]) for line in fields) == sorted(NAMES)
    assert sorted(undone(line[3]) for line in fields) == sorted(CLASSES)
    assert encoding.startswith("utf") or plain.isascii()


@pytest.mark.parametrize("command", every_command())
def test_help_is_written_in_marks_that_the_stream_has(command: str) -> None:
    for columns in ("80", "30"):
        result = dsh(*command.split(), "--help", encoding="ascii", env={"COLUMNS": columns})
        assert result.exit_code == 0 and "\\" not in result.stdout, result.stdout
        assert "\n+- Options ---" in result.stdout


@pytest.fixture
def pictures(tmp_path: Path) -> list[bytes]:
    """Files of names in Japanese, with an emoji, and of bytes that are not UTF-8."""
    folder = tmp_path / "p"
    folder.mkdir()
    names = ["日本.png".encode(), "😀 é.png".encode(), b"\xff\xe9.png"]
    for name in names:
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    return [b"p/" + name for name in names]


@pytest.mark.parametrize("setting", [{"PYTHONIOENCODING": "latin-1"}, OLD], ids=["latin-1", "POSIX"])
def test_codes_of_files_are_written_in_any_locale(
    setting: dict[str, str], pictures: list[bytes], digits_run: Path
) -> None:
    env = {**unmeasured(), **setting}
    done = dsh_process("hash", "p", *pictures, "-", "nosuch日", "--model", digits_run, input=pictures[0], env=env)
    assert done.returncode == 1 and done.stdout.isascii(), done.stderr
    assert done.stderr.startswith(b"error: nosuch") and done.stderr.isascii() and done.stderr.count(b"\n") == 1
    lines = done.stdout.decode().splitlines()
    assert all(re.match(r"\\[0-9a-f]{2}  p/", line) for line in lines)
    assert sorted(os.fsencode(undone(line[5:])) for line in lines) == sorted([*pictures, *pictures, pictures[0]])
    if setting is not OLD:
        return
    of_json = dsh_process("hash", "p", "--json", "--quiet", "--model", digits_run, env=env).stdout.splitlines()
    fields = [json.loads(line)["path"] for line in of_json]
    assert sorted(field.encode("utf-8", "surrogateescape") for field in fields) == sorted(pictures)


def test_folders_are_measured_in_a_locale_that_lacks_the_names_of_a_run(pictures: list[bytes], tmp_path: Path) -> None:
    for number, name in enumerate(("日本", "é")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for shade in range(6):
            grey = np.full((8, 8), 40 * shade + 9 * number, np.uint8)
            Image.fromarray(grey).save(tmp_path / "data" / name / f"{shade}.png")
    asked = ["train", "data", "--bits", "8", "--epochs", "1", "--backbone", "small-resnet", "--no-tensorboard"]
    assert dsh(*asked, "--out", "run").exit_code == 0
    env = {**unmeasured(), **OLD}
    done = dsh_process("evaluate", "--model", "run", "--query", "data", "--database", "data", env=env)
    assert done.returncode == 2 and b"has trained on" in done.stderr, done.stderr


@pytest.mark.parametrize("command", ["train", "hash"])
def test_what_moves_on_a_terminal_is_ascii_where_it_must_be(
    command: str, pictures: list[bytes], digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    train = "digits --epochs 1 --backbone small-resnet --no-tensorboard"
    arguments, part = {"train": (train, "img/s"), "hash": (f"p --model {digits_run}", "hashing pictures")}[command]
    code, shown = on_terminal([command, *arguments.split()])
    assert code == 0 and part in shown and shown.isascii(), shown
    assert "\\u2" not in shown, shown  # as of a spinner, a bar or a box
