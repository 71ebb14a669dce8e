"""Methods without steps: codes as the formulas have them, with classes or without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.codes.bits import binarize, pack
from dsh_cli.codes.linear import itq, pca, rotation
from dsh_cli.data.listing import UNLABELLED, list_pictures
from dsh_cli.errors import DataError, UsageError
from dsh_cli.runs.run import Run
from dsh_cli.training.recipe import settle
from tests.support.commands import dsh, dsh_json
from tests.support.values import in_memory, there

METHODS = ("itq", "pca", "rotation")


@pytest.fixture
def loose(tmp_path: Path) -> Path:
    """A folder of 40 pictures, of no class: noise about one of 5 colours."""
    rng = np.random.default_rng(0)
    root = tmp_path / "loose"
    root.mkdir()
    for number in range(40):
        noise = rng.integers(0, 60, (16, 16, 3))
        shade = np.array([(number % 5) * 40, 190 - (number % 5) * 40, (number % 2) * 100])
        Image.fromarray((noise + shade).astype(np.uint8)).save(root / f"{number:02}.png")
    return root


@pytest.mark.parametrize("method", METHODS)
def test_codes_of_digits_are_those_of_the_formula(method: Any, tmp_path: Path) -> None:
    config = TrainConfig(data="digits", method=method, bits=16, tensorboard=False, seed=3)
    splits = load_splits(config)
    result = train(config, splits, str(tmp_path / "run"))
    run = result.run

    def pixels(images: Any) -> Any:
        return (images.astype(np.float64) / 255).reshape(len(images), -1)

    vectors = pixels(in_memory(splits.train))
    found = {"itq": lambda: itq(vectors, 16, 3), "pca": lambda: pca(vectors, 16)}.get(
        method, lambda: rotation(vectors, 16, 3)
    )()
    outputs = found(pixels(in_memory(splits.test)))
    sure = (np.abs(outputs) > 1e-3 * np.abs(outputs).mean()).all(axis=1)
    assert sure.mean() > 0.8
    assert (run.codes("test").packed[sure] == pack(binarize(outputs))[sure]).all()
    assert abs(np.abs(there(run.codes("train", "relaxed").relaxed).astype(float)).mean() - 1) < 1e-2
    assert (run.config.epochs, run.config.backbone, run.config.mirror) == (0, "pixels", False)
    assert there(result.map) > 0.3


def test_itq_keeps_classes_better_apart_than_pca(tmp_path: Path) -> None:
    def of(method: str) -> float:
        out = tmp_path / method
        done = dsh_json("train", "digits", "--method", method, "--bits", 32, "--out", out)
        assert done["epochs"] == 0 and done["min_class_distance"] is not None
        return float(done["map"])

    assert of("itq") > of("rotation") > of("pca")


def test_pictures_need_no_classes(loose: Path, tmp_path: Path) -> None:
    run, index = tmp_path / "run", tmp_path / "index"
    done = dsh("train", loose, "--method", "itq", "--bits", 8, "--out", run)
    assert done.exit_code == 0, done.stderr
    assert (
        "without classes (pictures lie beside its folders, or in fewer than two), 40 train" in done.stderr
        and "itq of 768 numbers: quantization error" in done.stderr
    )
    assert Run.open(run).classes == () and Run.open(run).counts == {"train": 40, "validation": 0, "test": 0}
    assert "no classes" in dsh("table", "--model", run, "--format", "table").stdout
    assert "no classes" in dsh("table", "--model", run, "--format", "plain").stderr
    table = dsh_json("table", "--model", run)
    assert table["classes"] == [] and table["split"] == "train" and len(table["bit_balance"]) == 8
    found = dsh("neighbors", loose / "07.png", "--model", run, "-k", 3, "--json", "--html", tmp_path / "page.html")
    answer = json.loads(found.stdout)
    assert answer["predicted_label"] is None and answer["same_class_rate"] is None
    assert answer["neighbors"][0]["distance"] == 0 and answer["neighbors"][0]["label"] is None
    assert "no class is predicted" in dsh("neighbors", "0x0f", "--model", run, "--format", "table").stdout
    page = (tmp_path / "page.html").read_text()
    assert "No class is predicted" in page and page.count("no label") >= 3
    assert dsh_json("embed", "--model", run, "--method", "pca", "--out", tmp_path / "map.html")["silhouette"] is None
    assert dsh_json("embed", "--model", run, "--method", "pca", "--out", tmp_path / "map.png")["points"] == 40
    assert dsh_json("index", "add", index, loose, "--model", run)["added"] == 40
    assert dsh_json("neighbors", loose / "07.png", "--model", run, "--index", index)["predicted_label"] is None
    for form in ("table", "plain", "json"):
        shown = dsh("info", run, "--format", form)
        assert shown.exit_code == 0 and "itq" in shown.stdout
    assert dsh("info", run, "--verify").exit_code == 0
    failed = dsh("evaluate", "--model", run)
    assert failed.exit_code == 1 and "was made of pictures without classes" in failed.stderr


def test_a_list_of_paths_needs_no_classes(loose: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in loose.iterdir())
    (loose / "list.txt").write_text("\n".join(names[:20]))
    done = dsh("train", loose / "list.txt", "--method", "pca", "--bits", 8, "--out", tmp_path / "run")
    assert done.exit_code == 0 and f"{loose}/list.txt: without classes, 20 train\n" in done.stderr
    assert Run.open(tmp_path / "run").names()["train"] == tuple(f"{loose}/{name}" for name in names[:20])


def test_what_is_folders_of_classes_and_what_is_not(loose: Path, photos: Path, tmp_path: Path) -> None:
    assert {label for _, label in list_pictures(photos).parts["train"]} == {"apple", "pear", "plum"}
    (photos / "cover.png").write_bytes((loose / "00.png").read_bytes())
    beside = list_pictures(photos)
    assert {label for _, label in beside.parts["train"]} == {UNLABELLED} and len(beside.parts["train"]) == 19
    (tmp_path / "one").mkdir()
    loose.rename(tmp_path / "one" / "all")
    assert {label for _, label in list_pictures(tmp_path / "one").parts["train"]} == {UNLABELLED}
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no pictures under"):
        list_pictures(tmp_path / "none")


def test_with_classes_it_is_measured_and_compared(photos: Path, tmp_path: Path) -> None:
    for name, options in (("itq", ["--method", "itq"]), ("dsh", ["--epochs", 2])):
        done = dsh("train", photos, "--bits", 4, *options, "--no-tensorboard", "--out", tmp_path / name)
        assert done.exit_code == 0, done.stderr
    compared = dsh("evaluate", "-m", tmp_path / "itq", "-m", tmp_path / "dsh", "--format", "table")
    assert compared.exit_code == 0, compared.stderr


def test_vectors_need_no_labels(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((50, 12)).astype("f4")
    np.savez(tmp_path / "v.npz", vectors=values)
    run = tmp_path / "run"
    done = dsh_json("train", tmp_path / "v.npz", "--method", "pca", "--bits", 6, "--out", run)
    assert done["map"] is None and done["epochs"] == 0
    outputs = pca(values, 6)(values)
    assert (Run.open(run).codes("train").packed == pack(binarize(outputs))).all()


def test_without_labels_a_test_part_is_not_measured(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((50, 12)).astype("f4")
    np.savez(tmp_path / "v.npz", vectors=values, splits=np.array(["train"] * 40 + ["test"] * 10))
    done = dsh("train", tmp_path / "v.npz", "--method", "itq", "--bits", 6, "--out", tmp_path / "run", "--json")
    assert json.loads(done.stdout)["map"] is None and "without classes, 40 train, 10 test" in done.stderr


def test_split_folders_without_classes_are_taken(loose: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    loose.rename(tmp_path / "set" / "train")
    (tmp_path / "set" / "test").mkdir()
    for path in sorted((tmp_path / "set" / "train").iterdir())[:8]:
        path.rename(tmp_path / "set" / "test" / path.name)
    parts = list_pictures(tmp_path / "set").parts
    assert {split: len(files) for split, files in parts.items()} == {"train": 32, "test": 8}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "itq", "--epochs", 3], "--epochs is for learning by steps, and --method itq takes none"),
        (["--method", "pca", "--centers", "auto"], "--centers is for learning by steps"),
        (["--method", "pca", "--hidden", 8], "--hidden is for learning by steps"),
        (["--method", "pca", "--backbone", "resnet18"], "which is worth nothing without weights"),
        (["--method", "itq", "--bits", 100], "a bit is a direction of the features, which have 64; 64 at most"),
        (["--method", "lsh"], "'lsh' is not one of 'dsh', 'itq', 'pca', 'rotation'"),
    ],
)
def test_what_a_method_cannot_do_is_told(options: Any, said: str) -> None:
    done = dsh("train", "digits", *options)
    assert done.exit_code == 2 and said in " ".join(done.stderr.replace("│", " ").split()), done.stderr


def test_pictures_without_classes_are_not_held_out_by_class(loose: Path) -> None:
    for changes in ({"hold_out_classes": 1}, {"protocol": "cifar10"}):
        with pytest.raises(UsageError, match="is of classes, and .* has none"):
            load_splits(TrainConfig(data=str(loose), method="itq", **changes))


def test_a_run_like_one_without_steps_may_take_steps_again(tmp_path: Path) -> None:
    first = dsh_json("train", "digits", "--method", "itq", "--bits", 8, "--out", tmp_path / "a")
    same = dsh_json("train", "--like", tmp_path / "a", "--out", tmp_path / "b")
    assert same["map"] == first["map"]
    done = dsh("train", "--like", tmp_path / "a", "--method", "dsh", "--epochs", 1, "--out", tmp_path / "c")
    assert done.exit_code == 0, done.stderr
    own = settle(TrainConfig(data="digits", epochs=1), load_splits(TrainConfig(data="digits")))
    made = Run.open(tmp_path / "c").config
    assert (made.backbone, made.optimizer, made.lr, made.image_size) == (
        own.backbone,
        own.optimizer,
        own.lr,
        own.image_size,
    )
    back = dsh("train", "--like", tmp_path / "c", "--method", "pca", "--out", tmp_path / "d")
    assert back.exit_code == 0 and Run.open(tmp_path / "d").config.backbone == "pixels", back.stderr


def test_features_of_a_run_are_turned_too(digits_run: Path, tmp_path: Path) -> None:
    done = dsh_json("train", "digits", "--method", "itq", "--bits", 8, "--weights", digits_run, "--out", tmp_path / "a")
    assert done["map"] > 0.9 and Run.open(tmp_path / "a").config.backbone == "airbench"


def test_a_run_stopped_before_its_codes_are_made_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsh_cli.training import fitting

    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "measured", stop)
        done = dsh("train", "digits", "--method", "itq", "--out", tmp_path / "run")
    assert done.exit_code == 130 and "dsh train --resume" in done.stderr
    assert dsh_json("train", "--resume", tmp_path / "run")["bits"] == 8
