"""The house rules: imports go one way, the command line starts quickly, and tests share by `support` alone."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dsh_cli
from tests.support.commands import unmeasured
from tests.support.imports import HEAVY, loaded_after, loaded_by_command

PACKAGE = Path(dsh_cli.__file__).parent
CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"
# Rooms, which are folders or files of the package. A file imports from rooms of rows above its own, and within a room
# no imports go in a circle.
ROWS = [
    {"errors", "speaking", "threads", "words"},
    {"bounded", "config", "files"},
    {"codes", "pictures"},
    {"network"},
    {"data"},
    {"runs"},
    {"analysis", "index"},
    {"export", "training", "neighbors"},
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
        if isinstance(node, ast.Import):
            found |= {name for alias in node.names if (name := alias.name.removeprefix("dsh_cli.")) in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsh_cli"):
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
        said = re.sub(r"(dsh train|pip install|ray start) [^;]*", "", text)
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
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=unmeasured())
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
    loaded = loaded_by_command("table", "--model", digits_run)
    assert "dsh_cli.analysis.classes" in loaded and not loaded & HEAVY


def needed_by(module: str) -> set[str]:
    """The packages that importing a module brings in: not those that it imports inside functions or for types alone."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(MODULES[module].read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_torch_is_needed_by_the_network_and_its_training_alone(module: str) -> None:
    if room_of(module) not in ("network", "training"):
        assert not needed_by(module) & {"torch", "torchvision"}
    if module in ("network.model", "training.loop"):
        assert "torch" in needed_by(module)  # or the rule could not be broken


FREE_OF_TORCH = [
    "cli",
    "data.inputs",
    "index.index",
    "neighbors",
    "runs.exported",
    *(name for name in MODULES if room_of(name) == "analysis"),
]


@pytest.mark.parametrize("module", FREE_OF_TORCH)
def test_what_does_without_torch_does_not_get_it_from_others(module: str) -> None:
    name = f"dsh_cli.{module}"
    loaded = loaded_after(f"import {name}")
    assert name in loaded and not loaded & {"torch", "torchvision"}


@pytest.mark.parametrize("module", ["neighbors", "index.index"])
def test_codes_are_looked_up_without_what_trains(module: str) -> None:
    assert not of_training(loaded_after(f"import dsh_cli.{module}"))


def test_pictures_are_hashed_without_what_trains(digits_run: Path, photos: Path) -> None:
    loaded = loaded_by_command("hash", photos / "plum" / "0.png", "--model", digits_run)
    assert "onnxruntime" in loaded and not loaded & {"torch", "torchvision", "onnx", "dsh_cli.network.encoding"}
    assert not of_training(loaded)


def of_training(loaded: set[str]) -> set[str]:
    return {name for name in loaded if name.startswith("dsh_cli.training")}


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


TESTS = Path(__file__).parent


@pytest.mark.parametrize("file", sorted(TESTS.rglob("*.py")), ids=lambda file: str(file.relative_to(TESTS)))
def test_what_tests_share_lies_in_support(file: Path) -> None:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = {name: name.split(".") for name in names}
    ours = {name for name, (first, *_) in parts.items() if first in ("tests", "conftest") or first.startswith("test_")}
    assert {name for name in ours if parts[name][:2] != ["tests", "support"]} == set()
