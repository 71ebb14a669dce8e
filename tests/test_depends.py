"""What a row of benchmarks depends on: what code says, wherever it lies."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "_depends.py"

ONE_FILE = {
    "__init__.pyi": "from .all import train as train",
    "all.py": '''
"""Everything."""
import math
_RATE: float = 0.5  # of learning
UNUSED = 1
class _Net:
    """A network."""
    width: int = 3
    def forward(self, x: float) -> float:
        """Outputs."""
        if x < 0:
            raise ValueError(f"below 0: {x}")
        return _halved(x) * self.width
def _halved(x: float) -> float:
    return x * _RATE
def measured(x):
    return math.sqrt(x)
def train(x: float) -> float:
    return measured(_Net().forward(x))
''',
}
# The same in three files: a name made public, a module imported, another under a name of its own.
THREE_FILES = {
    "__init__.pyi": "from .loop import train as train",
    "loop.py": """
from pkg.nets import net
from pkg import nets
import math
def measured(x):
    return math.sqrt(x)
def train(x):
    from pkg.nets.net import Net
    return measured(Net().forward(x))
""",
    "nets/__init__.py": "",
    "nets/rate.py": "RATE = 0.5",
    "nets/net.py": '''
from __future__ import annotations
from pkg.nets import rate
class Net:
    """Another description."""
    width = 3
    def forward(self, x):
        if x < 0:
            raise TypeError("no")
        return halved(x) * self.width
def halved(x):
    return x * rate.RATE
''',
}


@pytest.fixture
def depends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("_depends", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "_depends", module)  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "_PACKAGE", tmp_path / "pkg")
    return module


def digest(depends: ModuleType, files: dict[str, str], without: tuple[str, ...] = ()) -> str:
    for name, text in files.items():
        path = depends._PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    depends._module.cache_clear()
    return str(depends.digest(["train"], without, "pkg"))


def test_where_code_lies_and_what_it_says_in_words_changes_nothing(depends: ModuleType) -> None:
    one = digest(depends, ONE_FILE)
    assert {name for _, name in depends.definitions(["train"], (), "pkg")} == {
        "train",
        "measured",
        "_Net",
        "_halved",
        "_RATE",
    }
    assert digest(depends, THREE_FILES) == one


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("nets/rate.py", "0.5", "0.25", True),
        ("nets/net.py", "width = 3", "width = 4", True),
        ("nets/net.py", "halved(x) *", "halved(x) +", True),
        ("nets/net.py", "x < 0", "x <= 0", True),
        ("loop.py", "math.sqrt(x)", "math.cbrt(x)", True),
        ("nets/net.py", 'raise TypeError("no")', "raise ValueError", False),
        ("nets/net.py", "def halved(x):", "def halved(x: float) -> float:", False),
        ("loop.py", "import math", "import math\nEPOCHS = 3", False),
    ],
)
def test_what_code_does_changes_it(depends: ModuleType, file: str, old: str, new: str, changes: bool) -> None:
    before = digest(depends, THREE_FILES)
    assert old in THREE_FILES[file]
    changed = {**THREE_FILES, file: THREE_FILES[file].replace(old, new)}
    assert (digest(depends, changed) != before) == changes


def test_what_is_left_out_changes_nothing(depends: ModuleType) -> None:
    before = digest(depends, THREE_FILES, ("measured",))
    changed = {**THREE_FILES, "loop.py": THREE_FILES["loop.py"].replace("math.sqrt(x)", "math.cbrt(x)")}
    assert digest(depends, changed, ("measured",)) == before


def test_what_the_table_of_quality_leaves_out_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was changed would be followed again, and void all rows."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    quality, depends = importlib.import_module("quality"), importlib.import_module("_depends")
    reached = {name.lstrip("_") for _, name in depends.definitions(quality.BEGINS, (), "dsh_cli")}
    reached |= {name.lstrip("_") for _, name in depends.definitions(["seen_and_unseen"], (), "baseline")}
    assert (quality.WITHOUT | quality.NOT_TAKEN) - reached == set()
