"""An environment without PyTorch does all that does not train; its packages are those that without-torch.txt lists."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dsh_cli
from tests.support.commands import dsh_json

ROOT = Path(__file__).parent.parent
LISTED = [line for line in (ROOT / "without-torch.txt").read_text().splitlines() if not line.startswith("#")]
LEARNING = {"torch", "torchvision", "tqdm", "tensorboard", "onnx"}  # what training takes, and making graphs
WITHOUT = os.environ.get("DSH_WITHOUT")  # the Python of an environment of its own, see .ci/run
SCRIPT = "import sys; sys.path[:0] = [{place!r}]; from dsh_cli.__main__ import main; main()"


def test_what_is_listed_is_what_the_project_takes_but_for_learning() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [line for line in project["dependencies"] if Requirement(line).name not in LEARNING] == LISTED


def closure(lines: list[str]) -> dict[str, Distribution]:
    """What is installed where these are, with all that they require."""
    found: dict[str, Distribution] = {}
    pending = [(Requirement(line), "") for line in lines]
    while pending:
        wanted, extra = pending.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        if name in found and not wanted.extras:
            continue
        found[name] = distribution(name)
        for line in found[name].requires or ():
            pending += [(Requirement(line), extra) for extra in ("", *wanted.extras)]
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with links to these packages, and to no others."""
    there = tmp_path_factory.mktemp("without")
    for name, found in closure(LISTED).items():
        assert name not in LEARNING - {"tqdm"}, name  # which umap takes too
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            target = Path(str(found.locate_file(top)))
            if target.exists() and not (there / top).exists():
                (there / top).symlink_to(target)
    package = Path(dsh_cli.__file__).parent
    (there / "dsh_cli").symlink_to(package)
    head = "Metadata-Version: 2.1\nName: dsh-cli\nVersion: 0.1.0\n"
    (there / "dsh_cli-0.1.0.dist-info").mkdir()
    (there / "dsh_cli-0.1.0.dist-info" / "METADATA").write_text(head)
    return there


def ran(place: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command in that environment."""
    linked = [sys.executable, "-I", "-S", "-c", SCRIPT.format(place=str(place))]
    command = [*([WITHOUT, "-m", "dsh_cli"] if WITHOUT else linked), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "80"})


def json_of(place: Path, *words: object) -> Any:
    done = ran(place, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_is_no_torch(place: Path) -> None:
    script = f"import sys; sys.path[:0] = [{str(place)!r}]; import torch"
    python = [WITHOUT] if WITHOUT else [sys.executable, "-I", "-S"]
    done = subprocess.run([*python, "-c", script if not WITHOUT else "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in done.stderr


def test_all_that_does_not_train_works(place: Path, digits_run: Path, digit_png: Path, photos: Path) -> None:
    model = ["--model", digits_run]
    assert json_of(place, "hash", digit_png, *model) == dsh_json("hash", digit_png, *model)
    assert json_of(place, "table", *model) == dsh_json("table", *model)
    assert json_of(place, "info", digits_run)["finished"]
    assert ran(place, "info", digits_run, "--verify").returncode == 0
    assert json_of(place, "neighbors", digit_png, *model) == dsh_json("neighbors", digit_png, *model)
    assert json_of(place, "evaluate", *model)["map"] == dsh_json("evaluate", *model)["map"]
    folders = ["--query", photos, "--database", photos]
    assert json_of(place, "evaluate", *model, *folders)["map"] == dsh_json("evaluate", *model, *folders)["map"]
    assert json_of(place, "embed", *model, "--method", "pca", "--out", "map.png")
    assert json_of(place, "index", "add", "x.lance", photos, *model)["added"] == 18
    assert json_of(place, "neighbors", digit_png, *model, "--index", "x.lance", "--html", "page.html")
    assert ran(place, "index", "verify", "x.lance", *model).returncode == 0
    assert ran(place, "--help").returncode == 0


def test_what_trains_says_what_to_install(place: Path, digits_run: Path, digit_png: Path) -> None:
    for words in (["train", "digits"], ["export", "--model", digits_run, "--onnx", "m.onnx"]):
        done = ran(place, *words)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("error: ") and "takes PyTorch" in last and "not installed: pip install dsh-cli" in last
    done = ran(place, "hash", digit_png, "--model", digits_run, "--device", "cuda")
    assert (
        done.returncode == 1
        and "--device cuda is asked for, so that its codes take PyTorch, which is not installed: pip" in done.stderr
    )


def test_an_exported_model_takes_no_more(place: Path, digits_run: Path, digit_png: Path) -> None:
    dsh_json("export", "--model", digits_run, "--onnx", "m.onnx")
    assert json_of(place, "hash", digit_png, "--model", "m.onnx") == dsh_json("hash", digit_png, "--model", digits_run)
