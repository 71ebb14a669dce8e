"""What has always been right of folders and files as people have them, kept right."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsh_cli.index.index import Index
from tests.support.commands import dsh, dsh_json

LOSSLESS = {
    "png": {}, "bmp": {}, "tif": {"compression": "tiff_lzw"}, "gif": {}, "ppm": {}, "tga": {},
    "webp": {"lossless": True}, "jp2": {"irreversible": False}, "pcx": {}, "sgi": {},
}  # fmt: skip


def codes(run: Path, *names: object) -> list[str]:
    result = dsh("hash", *names, "--model", run, "--format", "plain")
    assert result.exit_code == 0, result.stderr
    return [line.split()[0] for line in result.stdout.splitlines()]


@pytest.fixture
def digit(tmp_path: Path) -> Image.Image:
    """A grey picture of few levels, which all formats hold."""
    rng = np.random.default_rng(3)
    return Image.fromarray((rng.integers(0, 8, (20, 24)) * 36).astype(np.uint8))


def test_a_picture_has_one_code_in_all_lossless_formats(digits_run: Path, digit: Image.Image) -> None:
    for suffix, options in LOSSLESS.items():
        digit.convert("RGB" if suffix in ("ppm", "webp", "jp2") else "L").save(f"0.{suffix}", **options)  # type: ignore[arg-type]
    found = codes(digits_run, *(f"0.{suffix}" for suffix in LOSSLESS))
    assert len(found) == len(LOSSLESS) and len(set(found)) == 1


def test_colours_that_nobody_sees_change_no_code(digits_run: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 4), np.uint8)
    pixels[..., 3] = 255 * (np.arange(16) > 7)  # the left half is not to be seen
    Image.fromarray(pixels).save("a.png")
    pixels[:, :8, :3] = rng.integers(0, 256, (16, 8, 3))
    Image.fromarray(pixels).save("b.png")
    pixels[:, :8] = 255
    Image.fromarray(pixels[..., :3]).save("white.png")
    assert len(set(codes(digits_run, "a.png", "b.png", "white.png"))) == 1


def test_a_code_is_of_its_picture_alone(digits_run: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(40):
        side = int(rng.integers(3, 60))
        Image.fromarray(rng.integers(0, 256, (side, 2 * side), np.uint8)).save(f"{number:02}.png")
    names = sorted(path.name for path in Path().glob("*.png"))
    together = codes(digits_run, *names)
    assert len(set(together)) > 3
    assert codes(digits_run, *names[::-1], "--workers", 3) == together[::-1]
    assert [codes(digits_run, name)[0] for name in names[:6]] == together[:6]


def test_a_split_may_lack_a_class(photos: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(photos, Path("set", split))
    shutil.rmtree("set/test/pear")
    options = ["--epochs", 1, "--backbone", "small-resnet", "--no-tensorboard", "--quiet", "--out", "run"]
    dsh_json("train", "set", *options)
    table = {row["label"]: row["count"] for row in dsh_json("table", "--model", "run", "--split", "test")["classes"]}
    assert table == {"apple": 6, "pear": 0, "plum": 6}
    shutil.move("set/train/pear", "set/test/pear")  # which then is of no class that was learned
    result = dsh("train", "set", *options[:-1], "again")
    assert result.exit_code == 1 and "'pear', which has no pictures to train on" in result.stderr


def test_runs_indexes_and_their_pictures_may_move(digits_run: Path, photos: Path) -> None:
    shutil.copytree(digits_run, "run")
    dsh_json("index", "add", "x.lance", photos, "--model", "run", "--relative-to", ".")
    before = dsh_json("neighbors", photos / "pear/0.png", "--model", "run", "--index", "x.lance")
    os.mkdir("elsewhere")
    for name in ("run", "x.lance", photos.name):
        shutil.move(name, "elsewhere")
    os.chdir("elsewhere")
    after = dsh_json("neighbors", "photos/pear/0.png", "--model", "run", "--index", "x.lance")
    assert after["neighbors"] == before["neighbors"]
    again = dsh_json("index", "add", "x.lance", "photos", "--model", "run", "--relative-to", ".")
    assert (again["added"], again["skipped"], again["rows"]) == (0, 18, 18)
    assert dsh_json("info", "run", "--verify")["finished"]


def test_python_without_assertions_says_the_same(digits_run: Path, photos: Path) -> None:
    command = ["-m", "dsh_cli", "hash", str(photos), "nothing.png", "--model", str(digits_run), "--json"]
    plain, without = (
        subprocess.run([sys.executable, *options, *command], capture_output=True, text=True) for options in ([], ["-O"])
    )
    assert plain.returncode == without.returncode == 1
    assert (plain.stdout, plain.stderr) == (without.stdout, without.stderr)
    assert len(plain.stdout.splitlines()) == 19


def test_names_that_are_globs_are_names_where_there_are_such_files(digits_run: Path) -> None:
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    for name in ("[1].png", "1.png", "a*.png", "ab.png", "?.png"):
        Path(name).write_bytes(picture.getvalue())
    assert len(codes(digits_run, "[1].png", "a*.png")) == 2
    dsh_json("index", "add", "x.lance", ".", "--model", digits_run)
    assert dsh_json("index", "remove", "x.lance", "[1].png")["removed"] == 1
    assert dsh_json("index", "remove", "x.lance", "a*.png")["removed"] == 1
    left = Index.open("x.lance").rows(np.arange(3))
    assert sorted(Path(row.path).name for row in left) == ["1.png", "?.png", "ab.png"]
    assert dsh_json("index", "remove", "x.lance", "a*")["removed"] == 1
