"""What a stranger's run, index or file name says is shown as text: no terminal obeys it, and no line is forged."""

import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from rich.panel import Panel
from rich.text import Text

import dsh_cli
from dsh_cli.codes.bits import from_hex
from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.runs.run import Run
from dsh_cli.show.console import Console
from dsh_cli.show.views.shared import View, field
from tests.support.commands import dsh, dsh_json, on_terminal, undone
from tests.support.runs import TRAIN, edit, small_run

# Escapes, C1 controls, overrides and isolates, what is invisible, markup, line ends, tab, a byte, half a pair.
HOSTILE = "\x1b]0;owned\x07\x9b31m\x7f\u202eabc\u2066\u200b\ufeff[/b][red]\r\nFORGED\tx\udcff\ud800\u2028\\`=cmd|'x'!A1"
NAME = HOSTILE.replace("\ud800", "").replace("/", "")  # of a file: there is no half of a pair in bytes
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]")
COLOUR = re.compile(r"\x1b\[[\d;]*m")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such names are there")


def harmless(shown: str) -> None:
    found = OBEYED.search(shown)
    assert found is None, (found, shown)
    assert not any(line.startswith("FORGED") for line in shown.splitlines()), shown


def say(*arguments: object) -> str:
    """All that a command says, which must be harmless and no traceback."""
    result = dsh(*arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
    harmless(result.stdout)
    harmless(result.stderr)
    return result.stdout + result.stderr


def in_all_forms(*arguments: object) -> str:
    return "".join(say(*arguments, "--format", form) for form in ("table", "plain", "json"))


def hostile_run(folder: Path) -> Path:
    """A finished run whose every free text is hostile, the names of its classes and pictures too."""
    classes = [f"{label}{HOSTILE}" for label in ("cat", "dog", "owl")]
    named = {label[:3]: label for label in classes}
    train = [(named[label or ""], code) for label, code in TRAIN]
    test = [(named["cat"], "f0"), (named["dog"], "0f")]
    names = [f"{HOSTILE}{row}" for row in range(len(train))]
    small_run(folder, train, validation=test, test=test, classes=classes, names=names)
    head = json.loads((folder / "config.json").read_text())
    texts = {"data": HOSTILE, "weights": HOSTILE, "cache": HOSTILE, "data_root": HOSTILE, "backbone": HOSTILE}
    head |= {"source": HOSTILE, "created": HOSTILE, "versions": {HOSTILE: HOSTILE, "torch": HOSTILE}}
    head["config"] = texts
    head["model"]["backbone"] = HOSTILE
    (folder / "config.json").write_text(json.dumps(head))
    edit(folder / "metrics.json", device=HOSTILE, **{HOSTILE: HOSTILE})
    (folder / "model.safetensors").write_bytes(b"any")
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return hostile_run(tmp_path / "run")


# Runs


@pytest.mark.parametrize(
    "command",
    [
        ["info", "RUN"],
        ["table", "--model", "RUN"],
        ["table", "--model", "RUN", "--split", "train"],
        ["evaluate", "--model", "RUN", "--protocol", "test-vs-train"],
        ["neighbors", "0xf0", "--model", "RUN", "--html", "page.html"],
        ["neighbors", "0xf0", "--model", "RUN", "--label", f"cat{HOSTILE}"],
        ["neighbors", "0xf0", "--model", "RUN", "--label", HOSTILE],
        ["embed", "--model", "RUN", "--method", "pca"],
        ["embed", "--model", "RUN", "--split", HOSTILE],
        ["hash", "none.png", "--model", "RUN"],
        ["train", "--like", "RUN", "--epochs", "1"],
        ["train", "--resume", "RUN"],
    ],
    ids=lambda command: f"{command[0]}-{len(command)}",
)
def test_no_command_shows_of_a_run_what_a_terminal_obeys(command: list[str], run: Path) -> None:
    assert in_all_forms(*(run if word == "RUN" else word for word in command))


def test_the_list_of_runs_shows_nothing_that_a_terminal_obeys(run: Path) -> None:
    os.mkdir("runs")
    shutil.copytree(run, Path("runs", NAME))
    broken = Path("runs", f"broken{NAME}")
    shutil.copytree(run, broken)
    edit(broken / "config.json", config={HOSTILE: HOSTILE})
    said = in_all_forms("info")
    assert "broken" in said and "finished" in said
    assert in_all_forms("table")


@pytest.mark.parametrize(
    "name", ["epochs", "epochs_done", "map", "seconds", "min_class_distance", "finished", "counts"]
)
def test_of_a_figure_that_is_none_nothing_is_shown_that_a_terminal_obeys(name: str, run: Path) -> None:
    edit(run / "metrics.json", **{name: HOSTILE})
    in_all_forms("info", run)
    edit(run / "metrics.json", finished=False, epochs_done=HOSTILE)
    in_all_forms("info", run)


def test_what_is_shown_of_a_run_can_be_read(run: Path) -> None:
    told = "".join(say("info", run, "--format", "table").split())
    assert r"1.0son\x1b]0;owned\x07\x9b31m\x7f\u202eabc\u2066\u200b\ufeff[/b][red]\r\nFORGED\tx\udcff\ud800" in told
    (class_line, *_) = dsh("table", "--model", run).stdout.splitlines()
    assert undone(class_line.split("\t")[0]).startswith("cat\x1b]0;owned\x07")
    assert dsh_json("table", "--model", run)["classes"][0]["label"] == f"cat{HOSTILE}"


# Names


@pytest.mark.parametrize(
    "command",
    [
        ["info", NAME],
        ["table", "--model", NAME],
        ["hash", NAME, "--model", "run"],
        ["neighbors", NAME, "--model", "run"],
        ["neighbors", "0xf0", "--model", "run", "--html", f"{NAME}/page.html"],
        ["neighbors", "0xf0", "--model", "run", "--index", NAME],
        ["embed", "--model", "run", "--method", "pca", "--out", f"{NAME}.png"],
        ["embed", "--model", "run", "--method", "pca", "--out", f"{NAME}.html"],
        ["embed", "--model", "run", "--method", "pca", "--out", NAME],
        ["evaluate", "--model", "run", "--pr-curve", f"{NAME}.png"],
        ["evaluate", "--model", "run", "--query", NAME, "--database", NAME],
        ["train", NAME],
        ["train", "digits", "--out", f"{NAME}/x/y", "--weights", NAME],
        ["train", "digits", "--backbone", HOSTILE],
        ["train", "--bits", HOSTILE],
        ["index", "add", NAME, NAME, "--model", "run", "--labels", NAME],
        ["index", "info", NAME],
        ["index", "export", NAME, "--parquet", NAME],
        ["index", "remove", NAME, NAME],
        ["index", "add", NAME, "run", "--model", "run"],
        [HOSTILE],
        ["info", f"--{HOSTILE}"],
    ],
    ids=lambda command: f"{command[0][:5].strip()}-{len(command)}".encode("ascii", "replace").decode(),
)
def test_no_command_repeats_of_a_request_what_a_terminal_obeys(command: list[str], tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    say(*command)


def test_no_name_of_an_index_is_obeyed(tmp_path: Path) -> None:
    run = Run.open(small_run(tmp_path / "run"))
    (tmp_path / "run" / "model.safetensors").write_bytes(b"any")
    codes = ReadyCodes([f"/{NAME}", NAME], from_hex(["f0", "0f"], 8), [NAME, None])
    uri = "[b]\u202e\u2066x.lance"  # Lance itself takes no control characters
    Index.open(uri).add_codes([codes], 8, run.fingerprint)
    for command in (
        ["index", "info", uri],
        ["index", "verify", uri, "--model", run.path],
        ["index", "remove", uri, NAME],
        ["index", "remove", uri, f"/{NAME}", "none"],
        ["neighbors", "0xf0", "--model", run.path, "--index", uri, "--html", "page.html"],
    ):
        in_all_forms(*command)
    Index.open("again").add_codes([codes], 8, run.fingerprint)
    (line, _) = dsh("neighbors", "0xf0", "--model", run.path, "--index", "again").stdout.splitlines()
    fields = line.split("\t")
    assert len(fields) == 6 and (undone(fields[3]), undone(fields[5])) == (NAME, f"/{NAME}")


def test_markup_in_a_path_is_none_for_a_live_line(digits_run: Path, tmp_path: Path) -> None:
    """Seen on a real terminal, where lines are live."""
    shutil.copytree(digits_run, tmp_path / "[/b][red]")
    picture = f"{NAME}.png"
    Image.effect_noise((8, 8), 50).save(picture)
    for command in (
        ["evaluate", "--model", "[/b][red]"],
        ["embed", "--model", "[/b][red]", "--method", "pca"],
        ["hash", picture, "--model", "[/b][red]", "--json"],
        ["index", "add", "i[/b]", picture, "--model", "[/b][red]"],
    ):
        code, shown = on_terminal(command, columns=100)
        assert code == 0 and "Traceback" not in shown, shown
        drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", shown)  # Rich's colours and its live lines
        harmless(drawn)


# The console, and lines


def test_a_view_that_forgets_to_escape_shows_nothing_obeyed_even_so() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", width=300)
    console.print(HOSTILE, style="red")
    console.print(Panel(Text.assemble("a", (HOSTILE, "bold")), title=Text(HOSTILE)))
    shown = file.getvalue()
    assert COLOUR.search(shown) and "[/b][red]" in shown
    assert OBEYED.search(COLOUR.sub("", shown)) is None


@given(st.lists(st.binary(), min_size=1, max_size=4))
@example([b"\xff\x80\t", b"\\t", b"\xe2\x80\xa8", "\x85\u202e é 日本語 👨‍👩‍👧".encode()])
def test_fields_of_a_line_can_be_undone_whatever_the_bytes(names: list[bytes]) -> None:
    texts = [os.fsdecode(name) for name in names]
    (line,) = View(lambda width: "", [tuple(texts)], {}).plain()
    assert len(line.splitlines()) <= 1 and OBEYED.search(line) is None
    assert line.encode().decode() == line  # it is UTF-8
    assert [os.fsencode(undone(part)) for part in line.split("\t")] == names


@given(st.text(st.characters()))
def test_a_field_is_one_line_and_one_field_whatever_the_text(text: str) -> None:
    shown = field(text + "\ud800")
    assert len(shown.splitlines()) == 1 and "\t" not in shown
    shown.encode()


@pytest.mark.parametrize(
    "name", ["a b.png", "café.png", "cafe\u0301.png", "日本語　写真.jpg", "👨‍👩‍👧🏴󠁧󠁢󠁥󠁮󠁧󠁿.png", "-x.png", "=1+1", "'\"$;"]
)
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    assert field(name) == name


def test_json_has_no_control_characters() -> None:
    view = View(lambda width: "", [], {HOSTILE: HOSTILE})
    assert view.json.isascii() and OBEYED.search(view.json) is None
    assert json.loads(view.json) == {HOSTILE: HOSTILE}


def test_nothing_in_the_package_goes_around_the_console() -> None:
    """Rich's own console reads markup, and so do columns and spinners that are given a string to parse."""
    package = Path(dsh_cli.__file__).parent
    for file in package.rglob("*.py"):
        text, name = file.read_text(), file.relative_to(package).as_posix()
        if name != "show/console.py":
            assert not re.search(r"from rich(\.console)? import [^\n]*\b(Console|print)\b|import rich\b", text), name
        assert "from_markup" not in text and not re.search(r"Spinner\([^)]*text=(?!Text)", text), name
        if name.startswith(("show/", "cli/")) and name != "cli/shared.py":
            assert not re.search(r"sys\.std(out|err)\.(write|buffer)|\btyper\.(echo|secho)\b", text), name
