"""`dsh features`: pictures in, a file of vectors out, which other commands take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from dsh_cli.config import ModelConfig
from dsh_cli.data.vectors import read_vectors
from dsh_cli.network.encoding import to_float
from dsh_cli.network.model import HashNet
from dsh_cli.network.presets import preset
from dsh_cli.pictures import decode
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json
from tests.support.values import there

NAME = "squeezenet1_1"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a small network of torchvision, in a file."""
    torch.manual_seed(0)
    net = HashNet(ModelConfig(NAME, 1, 3, 224))
    file = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file({name: value.contiguous() for name, value in net.backbone.state_dict().items()}, file)
    return file


def test_features_are_those_of_the_network_by_its_own_pictures(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "photos.parquet"
    said = dsh_json("features", photos, "--backbone", NAME, "--weights", weights, "--out", out)
    assert said == {
        "out": str(out),
        "backbone": NAME,
        "width": 512,
        "rows": 18,
        "labels": 18,
        "failed": [],
    }
    found = read_vectors(out)
    assert set(there(found.labels)) == {"apple", "pear", "plum"} and all(Path(name).is_file() for name in found.names)
    torch.manual_seed(0)
    net, expected = HashNet(ModelConfig(NAME, 1, 3, 224)).eval(), preset(NAME)
    form = decode.Form(224, 3, expected.fit, expected.interpolation)
    pictures = np.stack([decode.read(name, form) for name in found.names])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (expected.mean, expected.std))
    with torch.inference_mode():
        slow = net.backbone((to_float(torch.from_numpy(pictures)) - mean) / std).numpy()
    assert np.allclose(found.values, slow, atol=1e-3 * np.abs(slow).max())


def test_a_file_of_features_is_trained_on(weights: Path, photos: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "photos.parquet", tmp_path / "run"
    dsh_json("features", photos, "--backbone", NAME, "--weights", weights, "--out", out)
    done = dsh_json("train", out, "--bits", 8, "--no-tensorboard", "--out", run)
    assert done["map"] > 0.9
    shown = there(Run.open(run).codes("train", "thumbnails").thumbnails)
    assert shown.shape[1:] == (48, 48, 3) and shown.std() > 10  # of the pictures themselves
    answer = json.loads(dsh("neighbors", out, "--model", run, "--json").stdout.splitlines()[0])
    assert Path(answer["neighbors"][0]["path"]).is_file()


def test_splits_and_pictures_of_no_class_are_kept_as_they_are(weights: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "set" / split)
    out = tmp_path / "set.parquet"
    dsh_json("features", tmp_path / "set", "--backbone", NAME, "--weights", weights, "--out", out)
    assert sorted(set(there(read_vectors(out).splits))) == ["test", "train"] and len(read_vectors(out)) == 36
    loose = tmp_path / "loose.parquet"
    options = ["--backbone", NAME, "--weights", weights, "--relative-to", photos]
    pictures = [photos / "apple" / "0.png", photos / "pear" / "0.png"]
    said = dsh_json("features", *pictures, *options, "--out", loose)
    assert said["labels"] == 0 and read_vectors(loose).names == ("apple/0.png", "pear/0.png")
    assert pq.read_schema(loose).names == ["path", "vector"]
    assert pq.read_schema(loose).metadata[b"dsh.backbone"] == NAME.encode()


def test_a_run_gives_the_features_of_its_network(digits_run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.parquet"
    said = dsh_json("features", photos, "--weights", digits_run, "--out", out)
    assert (said["backbone"], said["width"]) == ("airbench", Run.open(digits_run).load_model().outputs)


def test_what_cannot_be_read_is_told_and_the_others_are_written(weights: Path, photos: Path, tmp_path: Path) -> None:
    broken = photos / "apple" / "0.png"
    broken.write_bytes(b"no picture")
    out = tmp_path / "f.parquet"
    options = ["--backbone", NAME, "--weights", weights, "--out", out]
    done = dsh("features", photos, *options, "--json")
    said = json.loads(done.stdout)
    assert done.exit_code == 1 and str(broken) in done.stderr and said["rows"] == said["labels"] == 17
    assert len(read_vectors(out)) == 17
    out.unlink()
    none = dsh("features", broken, *options)
    assert none.exit_code == 1 and "none of 1 pictures can be read" in none.stderr and not out.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--out", "f.txt", "--backbone", NAME],
            "--out f.txt: features are written as Parquet; name a file that ends in .parquet",
        ),
        (["--out", "f.parquet"], "--backbone: features of which network?"),
        (["--out", "f.parquet", "--backbone", "resnet1"], "there is no such network; did you mean resnet18"),
        (["--out", "f.parquet", "--backbone", "auto"], "it has no weights of its own; give a run as --weights"),
        (["--out", "f.parquet", "--backbone", "vectors"], "it has no weights of its own; give a run as --weights"),
        (["--out", "f.parquet", "--backbone", "airbench"], "it has no weights of its own; give a run as --weights"),
        (["--out", "f.parquet", "--backbone", NAME, "--weights", "none.pt"], "none.pt"),
        (["--out", "f.parquet", "--backbone", NAME, "--image-size", 3], "--image-size 3: 8 to 1024"),
        (["--out", "no/f.parquet", "--backbone", NAME, "--weights", "W"], "no such file or directory"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(options: list[object], said: str, weights: Path, photos: Path) -> None:
    given = [weights if one == "W" else one for one in options]
    done = dsh("features", photos, *given)
    assert done.exit_code in (1, 2) and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_an_empty_folder_is_told(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = dsh("features", tmp_path / "empty", "--backbone", NAME, "--weights", weights, "--out", "f.parquet")
    assert done.exit_code == 1 and "no pictures under" in done.stderr
