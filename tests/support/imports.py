"""Which modules a piece of code imports."""

import subprocess
import sys

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


def loaded_after(code: str) -> set[str]:
    """All that is imported when a program of its own has run this code and ended, be it by sys.exit."""
    script = f"import atexit, sys\natexit.register(lambda: print('\\nloaded', *sys.modules))\n{code}"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    _, marked, names = printed.rpartition("\nloaded ")
    assert marked
    return set(names.split())


def loaded_by_command(*arguments: object) -> set[str]:
    """All that is imported when a command has run."""
    return loaded_after(f"from dsh_cli.cli import app\napp({list(map(str, arguments))})")
