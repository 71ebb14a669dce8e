"""What the command line says of requests that cannot be: every word and exit code, in errors.txt."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsh_cli.config import TrainConfig
from dsh_cli.errors import DshError, UsageError, worded
from tests.support.commands import dsh, one_line_error

GOLDEN = Path(__file__).with_name("errors.txt").read_text().split("\n\n")


@pytest.fixture
def here(digits_run: Path, tmp_path: Path) -> Path:
    """A folder with a run, pictures of two classes, and one picture."""
    shutil.copytree(digits_run, tmp_path / "run")
    for shade, name in enumerate(("apple", "pear")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((8, 8), 40 * number + 100 * shade, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "photos.jpg")
    return tmp_path


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case.splitlines()[0])
def test_what_is_said_of_a_request_that_cannot_be(case: str, here: Path) -> None:
    command, said = case.strip().splitlines()
    code, _, line = said.partition(" ")
    result = dsh(*shlex.split(command.removeprefix("$ dsh ")))
    assert one_line_error(result, int(code)) == line.replace("HERE", str(here))


def test_an_error_of_the_core_names_its_fields() -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig(freeze=True).check()
    assert caught.value.fields == ("freeze", "pretrained", "weights") and "--" not in str(caught.value)
    assert DshError("`compile=False` or `compile`").fields == ("compile", "compile")


def test_fields_are_named_as_asked_and_what_is_none_stays() -> None:
    names = {"bits": "--bits", "amp=False": "--no-amp"}
    assert worded("`bits` 0; `amp=False`; a file `x`; `amp`", names) == "--bits 0; --no-amp; a file `x`; `amp`"
