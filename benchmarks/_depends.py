"""What a figure depends on: a digest of the code that makes it, of what it says and not of where it lies.

Definitions are followed by name from where a measurement begins, through all modules of the package. A definition
moved to another file, an import, a module named otherwise, a name made public, an annotation, a docstring and the
words of an error change no figure, and so change no digest.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import dsh_cli

Place = tuple[str, str]  # a module and a name in it

_HERE = Path(__file__).parent
_PACKAGE = Path(dsh_cli.__file__).parent


@dataclass(frozen=True)
class Module:
    """The definitions of a file, and what its other names stand for."""

    definitions: Mapping[str, ast.stmt]
    imported: Mapping[str, Place | str]  # a name of another module, or a module


def digest(begins: Collection[str], without: Collection[str], module: str = "dsh_cli", more: str = "") -> str:
    """Eight digits that change with what the definitions reached say.

    Args:
        begins: names in `module` that a measurement begins with.
        without: names that are not followed.
        module: a module of the package, or of this folder.
        more: what else the figure depends on.
    """
    said = sorted(definitions(begins, without, module).values())
    return hashlib.blake2b("\n".join([more, *said]).encode(), digest_size=4).hexdigest()


def definitions(begins: Collection[str], without: Collection[str], module: str = "dsh_cli") -> dict[Place, str]:
    """What each definition reached says, by where it lies."""
    pending = [place for name in begins if (place := _resolved(module, name))]
    found: dict[Place, str] = {}
    while pending:
        home, name = place = pending.pop()
        if place in found or _bare(name) in without:
            continue
        module_here = _module(home)
        assert module_here is not None  # it has been resolved
        node = _Words(home).visit(copy.deepcopy(module_here.definitions[name]))
        found[place] = _dumped(node)
        pending += _named(node)
    return found


def _named(node: ast.AST) -> Iterator[Place]:
    """The definitions that one mentions; `_Words` has left where they lie beside their names."""
    return (place for part in ast.walk(node) if (place := getattr(part, "place", None)) is not None)


class _Words(ast.NodeTransformer):
    """Takes from a definition what changes no figure, and notes where the names in it are defined."""

    def __init__(self, home: str) -> None:
        self.home = home

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return _noted(ast.Name(_bare(node.id), node.ctx), _resolved(self.home, node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name):
            place = _resolved(self.home, node.value.id, node.attr)
            if place is not None:  # of a module: as if the name had been imported
                return _noted(ast.Name(_bare(node.attr), node.ctx), place)
        self.generic_visit(node)
        node.attr = _bare(node.attr)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        node.name = _bare(node.name)
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = _bare(node.name)
        return self._without_docstring(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is None:
            return ast.Pass()
        assigned: ast.AST = self.visit(ast.Assign([node.target], node.value))
        return assigned

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_Import(self, node: ast.Import) -> ast.AST:
        return ast.Pass()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.Pass()

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        self.generic_visit(node)
        node.body = [part for part in node.body if not isinstance(part, ast.Pass)]
        return node


def _noted(node: ast.AST, place: Place | None) -> ast.AST:
    node.place = place  # type: ignore[attr-defined]
    return node


def _bare(name: str) -> str:
    return name if name.startswith("__") else name.lstrip("_")


def _dumped(node: ast.AST) -> str:
    for part in ast.walk(node):
        vars(part).pop("type_params", None)  # empty ones are of Python 3.12 on: the same digits from every version
    if sys.version_info >= (3, 13):
        return ast.dump(node, show_empty=True)
    return ast.dump(node)


def _resolved(module: str, name: str, attribute: str | None = None) -> Place | None:
    """Where a name of a module, or what it has of another module, is defined; None for all else."""
    if (file := _module(module)) is None:
        return None
    if name in file.definitions:
        return None if attribute is not None else (module, name)
    target = file.imported.get(name)
    if isinstance(target, str):
        return _resolved(target, attribute) if attribute is not None else None
    if target is None:
        return None
    if _module(f"{target[0]}.{target[1]}") is not None:  # a module, imported from its package
        return _resolved(f"{target[0]}.{target[1]}", attribute) if attribute is not None else None
    return _resolved(*target) if attribute is None else None


@cache
def _module(name: str) -> Module | None:
    """A module of the package or of this folder; None for all others."""
    path = Path(*name.split("."))
    bases = (_PACKAGE.parent / path, _HERE / path)
    files = [file for base in bases for file in (base / "__init__.pyi", base / "__init__.py", base.with_suffix(".py"))]
    file = next((file for file in files if file.is_file()), None)
    if file is None or not (file.is_relative_to(_PACKAGE) or file.is_relative_to(_HERE)):
        return None
    tree = ast.parse(file.read_text())
    imported: dict[str, Place | str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            home = ".".join([name, *filter(None, [node.module])]) if node.level else node.module or ""
            imported |= {alias.asname or alias.name: (home, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
    return Module(dict(_defined(tree)), imported)


def _defined(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for part in (part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)):
                yield part.id, node
