"""The house rules: imports go one way, and the command line starts without the heavy libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dsh_cli

PACKAGE = Path(dsh_cli.__file__).parent
ROWS = [
    {"errors"},
    {"config"},
    {"codes", "bounds", "images", "sources", "model", "losses", "compiled"},
    {"centers", "files", "pictures", "metrics", "search", "weights", "index_table"},
    {"data", "retrieval", "index_rows"},
    {"batches", "checkpoint", "index_files"},
    {"encoding"},
    {"protocols"},
    {"training"},
    {"listeners", "index", "embedding"},
    {"board", "neighbors"},
    {"views.shared"},
    {"plots", "show.pages.html"},
    {"views.classes", "views.hashing", "views.embedding", "views.evaluation", "views.index", "views.neighbors"},
    {"views.runs", "show.pages.neighbors", "show.pages.embedding"},
    {"views"},
    {"cli.shared"},
    {"cli.train", "cli.hashing", "cli.runs", "cli.embed", "cli.evaluation", "cli.index", "cli.neighbors"},
    {"cli"},
    {"__main__", "__init__"},
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=name_of)
def test_a_file_imports_only_from_rows_above_it(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dsh_cli"):
            module = node.module.removeprefix("dsh_cli").removeprefix(".")
            inside = [f"{module}.{alias.name}".removeprefix(".") for alias in node.names]
            for name in (name if name in ROW_OF else module for name in inside):
                assert ROW_OF[name] < ROW_OF[name_of(file)], f"{file.name} imports {name}"


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return set(printed.split())


HEAVY = {
    "bokeh",
    "torch",
    "torchvision",
    "sklearn",
    "umap",
    "lance",
    "matplotlib",
    "numba",
    "scipy",
    "pandas",
    "pyarrow",
}


def test_the_command_line_imports_nothing_heavy_nor_even_numpy():
    assert not loaded_after("import dsh_cli.cli") & (HEAVY | {"numpy", "PIL", "faiss", "jinja2"})


def test_the_table_is_made_without_torch(digits_run):
    code = f"from dsh_cli.cli import app; app(['table', '--model', {str(digits_run)!r}], standalone_mode=False)"
    assert not loaded_after(code) & HEAVY


@pytest.mark.parametrize("name", dsh_cli.__all__)
def test_every_exported_name_is_what_it_says_also_after_its_module_was_imported(name):
    home = dsh_cli._HOMES[name]
    __import__(f"dsh_cli.{home}")
    assert getattr(dsh_cli, name).__module__ == f"dsh_cli.{home}"
