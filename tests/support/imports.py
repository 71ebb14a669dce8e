"""Which modules a piece of code imports."""

import subprocess
import sys


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
