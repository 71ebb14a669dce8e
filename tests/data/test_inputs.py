"""Files of vectors wherever pictures are taken: hash, neighbors, evaluate, index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dsh_cli.codes.bits import binarize, pack, to_hex
from dsh_cli.codes.rescoring import scale_of
from dsh_cli.index.index import Index
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json
from tests.support.values import there

WIDTH = 12


def lines(*args: object) -> list[Any]:
    done = dsh(*args, "--json")
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def vectors() -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Three classes of a hundred vectors, each about a mean of its own."""
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    values = rng.standard_normal((300, WIDTH)) + 3 * rng.standard_normal((3, WIDTH))[labels]
    return values.astype("f4"), np.array(["cat", "dog", "owl"])[labels]


def write(path: Path, vectors: Any, rows: slice, **more: Any) -> Path:
    values, labels = vectors
    names = np.array([f"row/{row}" for row in range(300)[rows]])
    arrays: dict[str, Any] = {"vectors": values[rows], "labels": labels[rows], "paths": names} | more
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.fixture(scope="module")
def run(vectors: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    file = write(folder / "train.npz", vectors, slice(0, 240))
    dsh_json("train", file, "--bits", 8, "--epochs", 20, "--no-tensorboard", "--out", folder / "run")
    return folder / "run"


def test_codes_of_rows_are_those_of_the_network(vectors: Any, run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "new.npz", vectors, slice(240, 300))
    found = lines("hash", file, "--model", run)
    with torch.inference_mode():
        outputs = Run.open(run).load_model()(torch.from_numpy(vectors[0][240:])).numpy()
    assert [item["code"] for item in found] == to_hex(pack(binarize(outputs)), 8)
    assert [item["path"] for item in found] == [f"row/{row}" for row in range(240, 300)]


def test_a_row_is_a_query(vectors: Any, run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "one.npz", vectors, slice(240, 242))
    first, second = lines("neighbors", file, "--model", run, "-k", 5)
    assert (first["query"], second["query"]) == ("row/240", "row/241")
    assert first["predicted_label"] == vectors[1][240] and second["predicted_label"] == vectors[1][241]
    page = tmp_path / "page.html"
    assert dsh("neighbors", file, "--model", run, "--html", page).exit_code == 0 and page.stat().st_size


def test_rows_are_added_to_an_index_with_their_labels(vectors: Any, run: Path, tmp_path: Path) -> None:
    file, index = write(tmp_path / "all.npz", vectors, slice(0, 300)), tmp_path / "index"
    assert dsh_json("index", "add", index, file, "--model", run)["added"] == 300
    again = dsh_json("index", "add", index, file, "--model", run)
    assert (again["added"], again["rows"]) == (0, 300)
    rows = Index.open(index).rows([0, 299])
    assert [(row.path, row.label) for row in rows] == [("row/0", "cat"), ("row/299", vectors[1][299])]
    (answer,) = lines("neighbors", write(tmp_path / "q.npz", vectors, slice(7, 8)), "--model", run, "--index", index)
    assert answer["neighbors"][0]["distance"] == 0
    assert dsh("index", "verify", index, "--model", run).exit_code == 0
    with_outputs = tmp_path / "outputs"
    for some in (slice(0, 1), slice(1, 300)):
        part = write(tmp_path / f"{some.start}.npz", vectors, some)
        assert dsh("index", "add", with_outputs, part, "--model", run, "--keep-outputs").exit_code == 0
    relaxed = Run.open(run).codes("train", "relaxed").relaxed
    assert Index.open(with_outputs).scale == scale_of(there(relaxed))  # of the run, whatever came first
    other = tmp_path / "other"
    assert dsh("index", "add", other, file, "--model", run, "--labels", "none").exit_code == 0
    assert Index.open(other).rows([0])[0].label is None


def test_rows_named_after_pictures_are_kept_as_these(vectors: Any, run: Path, photos: Path, tmp_path: Path) -> None:
    names = np.array(["photos/apple/0.png", "photos/none.png"])
    file = tmp_path / "v.npz"
    np.savez(file, vectors=vectors[0][:2], paths=names)
    assert photos == tmp_path / "photos"
    dsh_json("index", "add", "absolute", file, "--model", run)
    assert [row.path for row in Index.open("absolute").rows([0, 1])] == [str(photos / "apple" / "0.png"), names[1]]
    dsh_json("index", "add", "relative", file, "--model", run, "--relative-to", photos)
    assert Index.open("relative").rows([0])[0].path == "apple/0.png"
    assert "no such folder" in dsh("index", "add", "i", file, "--model", run, "--relative-to", "none").stderr


def test_files_of_vectors_are_compared(vectors: Any, run: Path, tmp_path: Path) -> None:
    query, database = (
        write(tmp_path / "q.npz", vectors, slice(240, 300)),
        write(tmp_path / "d.npz", vectors, slice(0, 240)),
    )
    found = dsh_json("evaluate", "--model", run, "--query", query, "--database", database)
    assert (found["queries"], found["database"]) == (60, 240) and found["map"] > 0.8
    itself = dsh_json("evaluate", "--model", run, "--query", query, "--database", query)
    assert itself["queries"] == itself["database"] == 60
    assert dsh("evaluate", "--model", run, "--query", database, "--database", query).exit_code == 0  # of other files
    trained = dsh("evaluate", "--model", run, "--query", run.parent / "train.npz", "--database", query)
    assert trained.exit_code == 2 and "has trained on" in trained.stderr


def test_what_a_model_does_not_take_is_told(
    vectors: Any, run: Path, photos: Path, digits_run: Path, tmp_path: Path
) -> None:
    narrow = tmp_path / "narrow.npz"
    np.savez(narrow, vectors=vectors[0][:5, :7])
    nameless = write(tmp_path / "nameless.npz", vectors, slice(240, 245), labels=None)
    good = write(tmp_path / "good.npz", vectors, slice(240, 300))
    picture = photos / "apple" / "0.png"
    said = {
        ("hash", narrow, "--model", run): "holds vectors of 7 numbers, and the model takes 12",
        ("hash", picture, "--model", run): "the model takes vectors of 12 numbers, and no pictures",
        ("hash", good, "--model", digits_run): "holds vectors, and the model takes pictures",
        ("hash", tmp_path / "none.npz", "--model", run): "cannot be read (no such file or directory)",
        ("neighbors", picture, "--model", run): "the model takes vectors of 12 numbers, and no pictures",
        ("index", "add", "i", photos, "--model", run): "the model takes vectors of 12 numbers, and no pictures",
        ("index", "add", "i", good, photos, "--model", run): "has files of vectors beside pictures",
        ("index", "add", "i", good, "--model", digits_run): "holds vectors, and the model takes pictures",
        ("index", "add", "i", good, "--labels", "folder", "--model", run): "files of vectors have labels of their own",
        ("evaluate", "--query", nameless, "--database", good, "--model", run): "has no labels, which say what is right",
        ("evaluate", "--query", good, "--database", photos, "--model", run): "the model takes vectors of 12 numbers",
        ("features", good, "--backbone", "resnet18", "--out", "f.parquet"): "it holds vectors already",
        ("train", good, "--freeze", "--out", "r"): "--freeze: vectors have no backbone that could learn; leave it out",
    }
    for command, expected in said.items():
        done = dsh(*command)
        assert done.exit_code in (1, 2) and expected in " ".join(done.stderr.split()), (command, done.stderr)
    assert (
        dsh("neighbors", narrow, "--model", run).stderr
        == f"error: {narrow}: {said['hash', narrow, '--model', run]}; give such\n"
    )
    dsh_json("index", "add", "i", good, "--model", run)
    verified = dsh("index", "verify", "i", "--model", run)
    assert verified.exit_code == 0 and "its codes are of vectors" in verified.stderr
    some = dsh("hash", good, picture, "--model", run)
    assert some.exit_code == 1 and len(some.stdout.splitlines()) == 60
