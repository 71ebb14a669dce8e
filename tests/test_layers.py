"""The house rules: imports go one way, and the command line starts without the heavy libraries."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dsh_cli
from tests.support.imports import HEAVY, loaded_after

PACKAGE = Path(dsh_cli.__file__).parent
CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"
# Rooms, which are folders or files of the package. A file imports from rooms of rows above its own, and within a room
# no imports go in a circle.
ROWS = [
    {"errors", "threads"},
    {"config", "files"},
    {"codes", "pictures"},
    {"network"},
    {"data"},
    {"runs"},
    {"analysis", "index"},
    {"training", "neighbors"},
    {"show"},
    {"cli"},
    {"__main__", ""},
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def room_of(module: str) -> str:
    """The folder right below the package that a module is in, or itself."""
    return module.partition(".")[0]


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def imported_by(module: str) -> set[str]:
    """The modules of the package that one imports, wherever it does so."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsh_cli"):
            home = (node.module or "").removeprefix("dsh_cli").removeprefix(".")
            inside = [f"{home}.{alias.name}".removeprefix(".") for alias in node.names]
            found |= {name if name in MODULES else home for name in inside}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_from_rows_above_it(module: str) -> None:
    for other in imported_by(module):
        fine = ROW_OF[room_of(other)] < ROW_OF[room_of(module)]
        assert fine or room_of(other) == room_of(module), f"{module} imports {other}"


@pytest.mark.parametrize("module", [module for module in MODULES if ROW_OF[room_of(module)] < ROW_OF["show"]])
def test_the_core_names_no_options(module: str) -> None:
    """But in whole commands, which anyone can type."""
    tree = ast.parse(MODULES[module].read_text())
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    within = {part for string in strings for part in ast.walk(string)}
    alone = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in within]
    for string in (*strings, *alone):
        parts = [part.value for part in ast.walk(string) if isinstance(part, ast.Constant)]
        text = "".join(part for part in parts if isinstance(part, str))
        said = re.sub(r"(dsh train|pip install) [^;]*", "", text)
        assert " " not in said or not re.search(r"(?<![\w-])--[a-z]", said), text


def test_imports_do_not_change_the_process() -> None:
    script = """
import logging, os, pkgutil, signal, socket, sys, warnings
import bokeh, faiss, lance, matplotlib, numba, PIL.Image, sklearn, tensorboard, torch, torchvision, typer, umap

def state():
    loggers = {name: list(getattr(logger, "handlers", ())) for name, logger in logging.root.manager.loggerDict.items()}
    handlers = {name: signal.getsignal(name) for name in signal.valid_signals()}
    return dict(os.environ), list(warnings.filters), loggers, handlers, socket.getdefaulttimeout(), sys.excepthook

before = state()
import dsh_cli
for module in pkgutil.walk_packages(dsh_cli.__path__, "dsh_cli."):
    if module.name != "dsh_cli.__main__":
        __import__(module.name)
        assert state() == before, module.name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_table_for_newcomers_names_every_file_in_its_row() -> None:
    lines = re.findall(r"^\| (\d+) \| `(\w+)[/.py]*` \| (.*) \|$", CONTRIBUTING.read_text(), re.MULTILINE)
    said = {room: (int(row), text) for row, room, text in lines}
    rooms = {room for names in ROWS for room in names} - {""}
    assert {room: row for room, (row, _) in said.items()} == {room: ROW_OF[room] for room in rooms}
    for module in MODULES:
        room, _, file = module.partition(".")
        name = file.rpartition(".")[2] or room
        assert room == "" or f"`{name}`" in said[room][1] or not file or file in ("views", "pages"), module


def test_no_imports_go_in_a_circle() -> None:
    TopologicalSorter({module: imported_by(module) for module in MODULES}).prepare()


def test_the_command_line_imports_nothing_heavy_nor_even_numpy() -> None:
    assert not loaded_after("import dsh_cli.cli") & (HEAVY | {"numpy", "PIL", "faiss", "jinja2"})


def test_the_table_is_made_without_torch(digits_run: Path) -> None:
    code = f"from dsh_cli.cli import app; app(['table', '--model', {str(digits_run)!r}], standalone_mode=False)"
    assert not loaded_after(code) & HEAVY


@pytest.mark.parametrize("name", dsh_cli.__all__)
def test_every_name_of_the_library_is_documented_and_what_it_says_also_after_its_module_was_imported(name: str) -> None:
    thing = getattr(dsh_cli, name)
    assert thing.__doc__ and thing.__name__ == name
    __import__(thing.__module__)
    assert getattr(dsh_cli, name) is thing


@pytest.mark.parametrize("name", ["nothing_of_this_name", "_DIGITS"])
def test_what_the_library_has_not_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(dsh_cli, name)
