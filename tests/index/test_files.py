"""Labels by folder: the classes that a training would see in the same folder."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from dsh_cli.data.listing import list_folder
from dsh_cli.errors import DataError
from dsh_cli.index.files import labeller_of
from dsh_cli.index.index import Index
from tests.support.commands import dsh, one_line_error
from tests.support.values import there

TREES = [
    ["train/a/1.png", "test/a/2.png", "val/b/3.png"],
    ["Training/a/1.png", "DEV/a/x/2.png", "Testing/train/3.png"],
    ["train/a/1.png"],
    ["bus/1.png", "train/2.png", "tram/x/3.png"],  # that on rails
    ["train/cafe\u0301/1.png", "test/caf\u00e9/2.png"],
    ["train/a/1.png", "0.png", ".git/x/4.png", "__MACOSX/a/3.png"],
]


def made(folder: str, files: Sequence[str]) -> str:
    for file in files:
        Path(folder, file).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, file).touch()
    return folder


@pytest.mark.parametrize("files", TREES)
def test_labels_by_folder_are_the_classes_that_a_training_would_see(files: list[str]) -> None:
    labeller = there(labeller_of("folder", [made("in", files), "in/"]))
    listed = [item for part in list_folder(Path("in")).parts.values() for item in part]
    assert listed and all(labeller(root, path) == label for path, label in listed for root in ("in", "in/"))


@pytest.mark.parametrize(
    "files",
    [
        ["train/a/1.png", "test/a/2.png", "annotations/3.png"],
        ["train/a/1.png", "a/2.png", "b/3.png"],
        ["train/a/1.png", "val/a/2.png", "Dev/a/3.png"],
    ],
)
def test_a_folder_whose_classes_cannot_be_told_is_refused_as_by_a_training(files: list[str], digits_run: Path) -> None:
    with pytest.raises(DataError) as refused:
        list_folder(Path(made("in", files)).absolute())
    line = ["index", "add", "i", "in", "--model", digits_run]
    assert one_line_error(dsh(*line, "--labels", "folder"), 1) == f"error: {refused.value}"
    assert not os.path.exists("i")


def test_a_picture_in_no_class_folder_of_a_split_has_no_label_and_is_told(digits_run: Path) -> None:
    for file in ("0.png", "test/0.png", "train/a/1.png", "train/b/2.png"):
        Path("in", file).parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((8, 8), 90).save(f"in/{file}")
    done = dsh("index", "add", "i", "in", "--model", digits_run, "--labels", "folder")
    assert done.exit_code == 0 and done.stderr.endswith("warning: no label for 1 picture in no class folder\n")
    assert [row.label for row in Index.open("i").rows(range(4))] == ["in", None, "a", "b"]
