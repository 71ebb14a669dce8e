"""Nothing that is read is executed: no module unpickles, and a pickle in the place of any file is one line."""

import ast
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import dsh_cli
from tests.support.commands import dsh, one_line_error

PACKAGE = Path(dsh_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "yaml",
    "runpy",
    "code",
}
_BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_module_reads_what_could_hold_code(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & _MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in _MODULES
        elif isinstance(node, ast.Call):
            named = {keyword.arg: keyword.value for keyword in node.keywords}
            called = ast.unparse(node.func)
            assert called not in _BUILTINS, called
            assert ast.unparse(named.get("allow_pickle", ast.Constant(False))) == "False"
            if called in ("torch.load", "load"):
                assert ast.unparse(named["weights_only"]) == "True"
            assert "allow_pickle" in named or not called.endswith(("np.load", "numpy.load"))
            assert not called.endswith(("jit.load", "read_pickle", "Unpickler"))


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("harmed",))


def test_the_files_below_do_harm_where_they_are_unpickled() -> None:
    pickle.loads(pickle.dumps(Harm()))
    assert Path("harmed").is_dir()


RUN_FILES = [
    "config.json", "metrics.json", "splits.json", "model.safetensors", "centers.safetensors", "codes/test.safetensors",
]  # fmt: skip
FORMS = ["pickle", "torch", "npy"]


def write_harm(path: Path, form: str) -> None:
    if form == "torch":
        torch.save(Harm(), path)
    elif form == "npy":
        with path.open("wb") as file:
            np.save(file, np.array([Harm()], object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Harm()))


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_pickle_in_place_of_a_file_of_a_run_is_one_line(digits_run: Path, name: str) -> None:
    commands = [["table", "--model", "run"], ["info", "run"], ["hash", "x.npy", "--model", "run"]]
    for form in FORMS:
        shutil.rmtree("run", ignore_errors=True)
        shutil.copytree(digits_run, "run")
        write_harm(Path("run", name), form)
        write_harm(Path("x.npy"), "npy")
        for command in commands:
            result = dsh(*command)
            assert result.exception is None or isinstance(result.exception, SystemExit), (form, command)
        assert not Path("harmed").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_in_place_of_data_is_one_line(form: str) -> None:
    for name in ("labels.csv", "raw"):
        write_harm(Path(name), form)
    folder = Path("root/MNIST/raw")
    folder.mkdir(parents=True)
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        write_harm(folder / name, form)
    one_line_error(dsh("train", "labels.csv", "--out", "run", "--quiet"), 1)
    one_line_error(dsh("train", "mnist", "--data-root", "root", "--out", "run", "--quiet"), 1)
    assert not Path("harmed").exists()
