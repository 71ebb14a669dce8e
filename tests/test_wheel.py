"""A wheel is whole: every file of the package is in it, and every module of it can be imported."""

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import unmeasured

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"  # a copy, for building leaves files behind
    shutil.copytree(ROOT / "dsh_cli", source / "dsh_cli", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = place.glob("*.whl")
    with zipfile.ZipFile(built) as opened:
        yield opened


def files_of_the_package() -> set[str]:
    files = (path for path in (ROOT / "dsh_cli").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_a_wheel_has_the_templates_styles_and_scripts(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.startswith("dsh_cli/")}
    assert packed == files_of_the_package()
    assert {"dsh_cli/py.typed", "dsh_cli/__init__.pyi"} <= packed


def test_every_module_of_a_wheel_can_be_imported(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    script = """
import dsh_cli, importlib, pkgutil, sys
for found in pkgutil.walk_packages(dsh_cli.__path__, "dsh_cli."):
    importlib.import_module(found.name)
print(*(module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "dsh_cli"), sep="\\n")
"""
    environment = unmeasured() | {"PYTHONPATH": str(tmp_path / "installed"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    imported = {Path(file).relative_to(tmp_path / "installed").as_posix() for file in done.stdout.splitlines()}
    assert imported == {name for name in files_of_the_package() if name.endswith(".py")}
