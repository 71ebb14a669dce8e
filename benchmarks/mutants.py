"""Whether tests notice: one small fault at a time is put into a module, and its tests must fail.

    python benchmarks/mutants.py                          # all modules below, at most 150 faults of each
    python benchmarks/mutants.py codes.bits --most 1000   # one module, all of its faults
    python benchmarks/mutants.py codes.bits --at 12 40    # these alone, with what their tests said

Faults are made in the syntax tree: another comparison, operator, constant or bound, a condition held true or false, a
call or statement left out, arguments swapped, `min` for `max`. Words of errors, annotations and docstrings are left.
Where there are more than asked for, they are drawn by a fixed seed. Each is tried in a process forked from one that has
imported all libraries and nothing of the package, under a limit of processor time: a test that never ends has noticed.
The list that survives, each with its reason, is in MUTANTS.md.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.util
import os
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
TESTS = {  # of each module, as pytest is told below tests/
    "codes.bits": ["codes/test_bits.py"],
    "codes.bounds": ["codes/test_bounds.py"],
    "codes.centers": [
        "codes/test_centers.py",
        "-k",
        "not few_classes and not many_classes and not ends_of and not again",
    ],
    "codes.nearest": ["codes/test_nearest.py"],
    "codes.sets": ["codes/test_sets.py"],
    "analysis.retrieval": ["analysis/test_retrieval.py", "-k", "not -True]"],  # without the compiled loop
    "analysis.counting": ["analysis/test_retrieval.py", "-k", "tallies or alone or many_equal or refused"],
    "analysis.compiled": ["analysis/test_retrieval.py", "-k", "many_equal or tallies"],
    "analysis.classes": ["analysis/test_classes.py"],
    "training.terms": ["training/test_terms.py"],
    "training.objective": ["training/test_objective.py"],
}
LIBRARIES: tuple[str, ...] = (
    "numpy",
    "scipy.optimize",
    "faiss",
    "numba",
    "torch",
    "torchvision",
    "safetensors.numpy",
    "PIL.Image",
)
LIBRARIES += ("hypothesis.extra.numpy", "typer.testing", "rich.table", "sklearn.datasets", "filelock", "pytest")
_SECONDS = 10  # of a processor for a fault, at least; and three times what the tests take without one

_COMPARED = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}  # fmt: skip
_COMPUTED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
_OPPOSITE = {"min": "max", "minimum": "maximum", "argmin": "argmax", "any": "all", "clamp_min": "clamp_max"}
_OPPOSITE |= {there: here for here, there in _OPPOSITE.items()}
_SYMMETRIC = ("min", "max", "minimum", "maximum", "clip")  # in their first two arguments: swapped, they say the same


def faults(source: str) -> list[tuple[int, str, int, int]]:
    """Each fault: its line, what it is, and its node and number, by which it is made."""
    return [
        (node.lineno, what, place, number)  # type: ignore[attr-defined]
        for place, node in enumerate(_mutable(ast.parse(source)))
        for number, (what, _) in enumerate(_faults(node))
    ]


def with_fault(source: str, place: int, number: int) -> ast.Module:
    """The module with one of them."""
    tree = ast.parse(source)
    node = _mutable(tree)[place]
    _replace(tree, node, list(_faults(node))[number][1])
    return ast.fix_missing_locations(tree)


def _mutable(tree: ast.AST) -> list[ast.AST]:
    """The nodes that faults are made of, in order: none of types, words, imports and decorators."""
    found: list[ast.AST] = []

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.expr | ast.stmt):
            found.append(node)
        if isinstance(node, ast.Raise):
            return
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    walk(child)

    walk(tree)
    return found


def _faults(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may be put in the place of a node, and what that is called."""

    def said(new: ast.AST) -> tuple[str, ast.AST]:
        return f"{_line(node)}  ->  {_line(new)}", new

    def like(**changes: object) -> ast.AST:
        new = copy.deepcopy(node)
        for name, value in changes.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.Compare(ops=[op], left=_):
            yield from (said(like(ops=[other()])) for other in _COMPARED[type(op)])
        case ast.Compare(ops=[first, *others]):
            yield from (said(like(ops=[other(), *others])) for other in _COMPARED[type(first)][:1])
            yield from (said(like(ops=[first, other()])) for other in _COMPARED[type(others[0])][:1])
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _COMPUTED:
            yield said(like(op=_COMPUTED[type(op)]()))
            if isinstance(node, ast.AugAssign):
                yield said(ast.Pass())
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            yield said(operand)
        case ast.BoolOp(op=op):
            yield said(like(op=ast.And() if isinstance(op, ast.Or) else ast.Or()))
        case ast.Constant(value=bool() as value):
            yield said(ast.Constant(not value))
        case ast.Constant(value=int() | float() as value):
            yield said(ast.Constant(value + 1))
            yield said(ast.Constant(value - 1))
        case ast.IfExp() | ast.If():
            yield f"if {_line(node.test)}  ->  if True", like(test=ast.Constant(True))
            yield f"if {_line(node.test)}  ->  if False", like(test=ast.Constant(False))
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield said(like(lower=None))
            if upper is not None:
                yield said(like(upper=None))
        case ast.Return(value=ast.expr()):
            yield said(like(value=ast.Constant(None)))
        case ast.Raise() | ast.Continue() | ast.Break():
            yield said(ast.Pass())
        case ast.Expr(value=value) if not isinstance(value, ast.Constant):
            yield said(ast.Pass())
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield said(ast.Pass())
        case ast.Call(func=function, args=arguments):
            name = getattr(function, "id", getattr(function, "attr", ""))
            if name in _OPPOSITE:
                new = copy.deepcopy(function)
                setattr(new, "id" if isinstance(new, ast.Name) else "attr", _OPPOSITE[name])
                yield said(like(func=new))
            starred = any(isinstance(argument, ast.Starred) for argument in arguments)
            if len({ast.dump(one) for one in arguments[:2]}) == 2 and not starred and name not in _SYMMETRIC:
                yield said(like(args=[arguments[1], arguments[0], *arguments[2:]]))


def _line(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(copy.deepcopy(node))).split())
    return text if len(text) <= 70 else text[:67] + "..."


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list):
                value[:] = [new if child is old else child for child in value]


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module with other code than its file has."""

    def __init__(self, name: str, file: Path, tree: ast.Module) -> None:
        self.name, self.file, self.tree = name, file, tree

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Where the module is."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.file, loader=self)

    def create_module(self, spec: object) -> None:
        """As all modules are made."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the other code."""
        exec(compile(self.tree, str(self.file), "exec"), vars(module))


def noticed(name: str, tree: ast.Module, tests: Sequence[str], seconds: int, show: bool = False) -> tuple[bool, float]:
    """Whether tests fail, or do not end, with a module's code changed; and the processor time that this took."""
    import pytest

    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
        if not show:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, 1)
            os.dup2(nothing, 2)
        sys.meta_path.insert(0, Finder(f"dsh_cli.{name}", ROOT / "dsh_cli" / f"{name.replace('.', '/')}.py", tree))
        with tempfile.TemporaryDirectory() as folder:
            if name == "analysis.compiled":  # Numba knows kept machine code by the file, not by what was changed
                sys.modules["numba"].config.CACHE_DIR = folder
            os.chdir(ROOT / "tests")
            options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", f"--basetemp={folder}/t"]
            options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
            code = 1
            try:
                code = int(pytest.main([*options, *tests]))
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(min(code, 1))
    _, status, usage = os.wait4(pid, 0)
    return status != 0, usage.ru_utime + usage.ru_stime


def measure(name: str, most: int, seed: int, longest: float, at: Sequence[int]) -> None:
    """Try the faults of a module, and print those that nobody notices."""
    source = (ROOT / "dsh_cli" / f"{name.replace('.', '/')}.py").read_text()
    tests = TESTS[name]
    failed, took = noticed(name, ast.parse(source), tests, 600, bool(at))
    if failed:
        sys.exit(f"{name}: its tests fail without a fault")
    limit = max(_SECONDS, round(3 * took))
    everything = faults(source)
    drawn = at or random.Random(seed).sample(range(len(everything)), min(most, len(everything)))
    started, tried, survived = time.perf_counter(), 0, []
    for number in drawn:
        if time.perf_counter() - started > longest:
            break
        tried += 1
        if not noticed(name, with_fault(source, *everything[number][2:]), tests, limit, bool(at))[0]:
            survived.append(number)
    for number in sorted(survived):
        line, what, *_ = everything[number]
        print(f"  {name}:{line} (--at {number})  {what}")
    killed = tried - len(survived)
    print(
        f"{name}: {killed} of {tried} killed, {killed / max(1, tried):.1%} ({len(everything)} there are), "
        f"{time.perf_counter() - started:.0f} s",
        flush=True,
    )


def main() -> None:
    """Parse, and try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}; all")
    parser.add_argument("--most", type=int, default=150, help="faults of a module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="for a module, after which no other fault is tried")
    parser.add_argument("--at", type=int, nargs="+", default=[], help="numbers of faults")
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(ROOT))
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp()
    for library in LIBRARIES:
        importlib.import_module(library)
    from hypothesis import Phase, settings

    settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate], database=None, derandomize=True)
    settings.load_profile("mutants")
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    for module in arguments.modules or TESTS:
        measure(module, arguments.most, arguments.seed, arguments.seconds, arguments.at)


if __name__ == "__main__":
    main()
