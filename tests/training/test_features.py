"""Training on what is computed once: features of a backbone that stays as it is, and vectors from elsewhere."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from dsh_cli import TrainConfig, encode, load_splits, train
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DataError, Interrupted, UsageError
from dsh_cli.network.encoding import TorchEncoder, to_float
from dsh_cli.network.model import HashNet
from dsh_cli.runs.run import Run
from dsh_cli.training.events import EpochStats, Featured, Plan, Quiet
from dsh_cli.training.features import Features, digest_of
from tests.support.commands import dsh, dsh_json
from tests.support.values import there

BASE = TrainConfig(epochs=2, seed=1, tensorboard=False, device="cpu", amp=False, backbone="small-resnet")


class Counted(Quiet):
    """What was said of features."""

    def __init__(self) -> None:
        self.told: list[Featured] = []

    def on_features(self, featured: Featured) -> None:
        self.told.append(featured)


@pytest.fixture
def frozen(photos: Path, tmp_path: Path) -> TrainConfig:
    """A request for a frozen backbone, with weights of a run."""
    config = replace(BASE, data=str(photos), image_size=24, bits=6, mirror=True)
    run = train(config, load_splits(config), str(tmp_path / "first")).run
    return replace(config, weights=str(run.path), freeze=True, cache=str(tmp_path / "kept"))


def features_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures went through a backbone, a number a call, from now on."""
    counts: list[int] = []
    own = TorchEncoder.features

    def counting(self: TorchEncoder, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        counts.append(len(pictures))
        return own(self, pictures)

    monkeypatch.setattr(TorchEncoder, "features", counting)
    return counts


def test_features_are_made_once_and_never_again(
    frozen: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, heard = features_made(monkeypatch), Counted()
    splits = load_splits(frozen)
    pictures = sum(map(len, splits.parts().values()))
    made = train(replace(frozen, epochs=5), splits, str(tmp_path / "a"), listeners=[heard])
    assert sum(counts) == 2 * pictures  # and their mirror images
    assert heard.told[-1] == Featured(pictures, pictures, 0) and heard.told[-1].made == pictures
    other = replace(frozen, bits=12, seed=5)
    again = Counted()
    assert train(other, load_splits(other), str(tmp_path / "b"), listeners=[again]).run.finished
    assert sum(counts) == 2 * pictures and again.told[-1] == Featured(pictures, pictures, pictures)
    assert len(list((tmp_path / "kept").glob("features-*.sqlite"))) == 1
    assert made.map is not None and made.map > 0.5


def test_copies_of_a_picture_are_not_known_from_before(
    frozen: TrainConfig, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsh_cli.network.encoder._BATCH", 2)  # so that they come one after the other
    for number in range(3):
        shutil.copy(photos / "plum" / "0.png", photos / "plum" / f"copy{number}.png")
    heard = Counted()
    train(frozen, load_splits(frozen), str(tmp_path / "run"), listeners=[heard])
    assert heard.told[-1].kept == 0 and heard.told[-1].made == 21
    again = Counted()
    train(frozen, load_splits(frozen), str(tmp_path / "again"), listeners=[again])
    assert again.told[-1].kept == 21


def test_without_a_cache_nothing_is_kept(frozen: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = features_made(monkeypatch)
    for name in ("a", "b"):
        train(replace(frozen, cache="off"), load_splits(frozen), str(tmp_path / name))
    pictures = sum(map(len, load_splits(frozen).parts().values()))
    assert sum(counts) == 2 * 2 * pictures and not list(tmp_path.rglob("features-*"))


def test_features_are_those_of_the_backbone_and_of_mirror_images(frozen: TrainConfig, tmp_path: Path) -> None:
    run = Run.open(there(frozen.weights))
    net, splits = run.load_model(), load_splits(frozen)
    recipe = replace(run.config, cache="off", augment="photos")
    found, notes = Features(net, recipe, lambda featured: None).of(splits)
    assert notes == () and found.names() == splits.names()
    for name, part in splits.parts().items():
        assert isinstance(part.images, np.ndarray)
        features = there(found.parts()[name].features)
        for view, images in enumerate((part.images, part.images[:, :, ::-1])):
            with torch.inference_mode():
                slow = net.eval().features(to_float(torch.from_numpy(images.copy()))).numpy()
            assert np.allclose(features[:, view], slow, atol=1e-4)
    plain = HashNet(replace(run.model, mirror=False))
    alone, _ = Features(plain, replace(recipe, augment="none"), lambda featured: None).of(splits)
    assert there(alone.train.features).shape[1] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"mirror": True, "epochs": 30},
        {"mirror": False, "epochs": 30},
        {"mirror": True, "augment": "none", "epochs": 30},
        {"method": "itq", "epochs": None, "mirror": True},
        {"method": "itq", "epochs": None, "mirror": False, "augment": "photos"},
    ],
)
def test_a_run_on_features_gives_pictures_the_codes_it_has_of_them(
    frozen: TrainConfig, tmp_path: Path, changes: Any
) -> None:
    run = train(replace(frozen, **changes), load_splits(frozen), str(tmp_path / "run")).run
    kept = run.codes("train", "relaxed", "thumbnails")
    assert there(kept.thumbnails).shape == (len(kept), 24, 24, 3)
    found = encode(run.load_model(), list(run.names()["train"]))
    sure = (np.abs(there(kept.relaxed)) > 1e-2).all(axis=1)
    assert sure.any() and (found.packed[sure] == kept.packed[sure]).all()


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_how_large_features_are_changes_nothing(
    frozen: TrainConfig, tmp_path: Path, hidden: int, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(frozen, hidden=hidden, epochs=20, cache="off")
    plain = train(config, load_splits(config), str(tmp_path / "plain")).run
    own = TorchEncoder.features
    monkeypatch.setattr(
        TorchEncoder, "features", lambda self, pictures: own(self, pictures) * np.float32(scale) + scale
    )
    found = train(config, load_splits(config), str(tmp_path / "scaled")).run
    relaxed, expected = (there(run.codes("train", "relaxed").relaxed).astype(float) for run in (found, plain))
    assert np.abs(expected).mean() > 0.1 and np.abs(relaxed - expected).max() < 0.02


class Stopping(Quiet):
    """Ctrl-C after an epoch."""

    def on_epoch(self, stats: EpochStats) -> None:
        raise KeyboardInterrupt


def test_a_run_that_is_resumed_has_the_weights_of_one_that_was_not(
    frozen: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(frozen, hidden=16, dropout=0.3, epochs=3)
    splits = load_splits(config)
    whole = train(config, splits, str(tmp_path / "whole")).run
    with pytest.raises(Interrupted):
        train(config, splits, str(tmp_path / "part"), listeners=[Stopping()])
    shutil.rmtree(there(config.weights))
    counts = features_made(monkeypatch)
    part = Run.open(tmp_path / "part")
    resumed = train(part.config, load_splits(part.config), resume=part).run
    assert counts == []  # of before
    for name, value in whole.load_model().state_dict().items():
        assert torch.equal(value, resumed.load_model().state_dict()[name]), name


def test_what_changes_features_has_a_cache_of_its_own(frozen: TrainConfig) -> None:
    model = Run.open(there(frozen.weights)).model
    torch.manual_seed(0)
    net = HashNet(model)
    same = [replace(model, bits=24), replace(model, mirror=False)]
    for other in same:
        copied = HashNet(other)
        weights = {k: v for k, v in net.state_dict().items() if not k.startswith("hash_layer")}
        copied.load_state_dict(weights, strict=False)
        assert digest_of(copied) == digest_of(net)
    changed = HashNet(model)
    changed.load_state_dict(net.state_dict())
    changed.std[0] += 1
    assert digest_of(changed) != digest_of(net) != digest_of(HashNet(replace(model, image_size=32)))


def test_a_damaged_cache_is_made_anew(frozen: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_splits(frozen)
    first = train(frozen, splits, str(tmp_path / "a")).run
    (file,) = (tmp_path / "kept").glob("features-*.sqlite")
    data = bytearray(file.read_bytes())
    for place in range(200, len(data), 61):
        data[place] ^= 0x55
    file.write_bytes(bytes(data))
    counts = features_made(monkeypatch)
    again = train(frozen, splits, str(tmp_path / "b")).run
    assert sum(counts) and (first.codes("test").packed == again.codes("test").packed).all()


def test_pictures_that_cannot_be_read_are_left_out_and_told(frozen: TrainConfig, photos: Path, tmp_path: Path) -> None:
    config = replace(frozen, memory=0.0)  # they stay in their files, and are not read before
    splits = load_splits(config)
    broken = Path(splits.train.names[0])
    broken.write_bytes(broken.read_bytes()[:100])

    class Heard(Quiet):
        notes: tuple[str, ...] = ()

        def on_start(self, plan: Plan) -> None:
            self.notes = plan.run.notes

    heard = Heard()
    run = train(config, splits, str(tmp_path / "run"), listeners=[heard]).run
    assert [note for note in heard.notes if str(broken) in note and note.endswith("left out")]
    assert str(broken) not in run.names()["train"] and len(run.codes("train")) == len(splits.train) - 1
    for path in splits.train.names:
        Path(path).write_bytes(b"")
    with pytest.raises(DataError, match="none of .* pictures of .* can be read"):
        train(config, splits, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def vectors_of(path: Path, labels: Any, values: Any, **more: Any) -> Path:
    names = more.pop("paths", [f"{row}" for row in range(len(values))])
    np.savez(path, vectors=values, paths=np.array(names), labels=np.array(labels), **more)
    return path


@pytest.fixture(scope="module")
def digit_vectors() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The pixels of scikit-learn's digits, 64 numbers each, turned so that no number is a pixel."""
    from sklearn.datasets import load_digits

    data, labels = load_digits(return_X_y=True)
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]
    return (data @ turned).astype(np.float32), labels


@pytest.mark.parametrize("hidden", [0, 64])
def test_vectors_are_learned_from(digit_vectors: Any, hidden: int, tmp_path: Path) -> None:
    values, labels = digit_vectors
    file = vectors_of(tmp_path / "digits.npz", labels, values)
    out = tmp_path / "run"
    done = dsh_json("train", file, "--bits", 16, "--hidden", hidden, "--no-tensorboard", "--out", out)
    assert done["map"] > (0.95 if hidden else 0.7), done
    run = Run.open(out)
    assert (run.model.backbone, run.model.width, run.model.hidden) == ("vectors", 64, hidden)
    assert (
        dsh_json("train", "--like", out, "--quiet", "--no-tensorboard", "--out", tmp_path / "again")["map"]
        == (done["map"])
    )


def test_vectors_keep_the_splits_of_their_file(digit_vectors: Any, tmp_path: Path) -> None:
    values, labels = digit_vectors
    split = np.where(np.arange(len(values)) % 4, "train", "test")
    file = vectors_of(tmp_path / "digits.npz", labels, values, splits=split)
    splits = load_splits(TrainConfig(data=str(file)))
    assert set(splits.test.names) == {str(row) for row in range(0, len(values), 4)} and splits.given == (
        "train",
        "test",
    )
    assert splits.train.width == 64 and splits.train.image_size == 0


def test_pictures_that_vectors_are_named_after_are_shown(digit_vectors: Any, tmp_path: Path) -> None:
    values, labels = (some[:60] for some in digit_vectors)
    (tmp_path / "pictures").mkdir()
    paths = [f"pictures/{row}.png" for row in range(60)]
    for row, path in enumerate(paths[:-1]):  # the last is missing
        Image.new("RGB", (60, 60), (row, 0, 0)).save(tmp_path / path)
    file = vectors_of(tmp_path / "digits.npz", labels, values, paths=paths)
    config = TrainConfig(data=str(file), epochs=1, tensorboard=False, bits=8)
    run = train(config, load_splits(config), str(tmp_path / "run")).run
    for split, names in run.names().items():
        for name, thumbnail in zip(names, there(run.codes(split, "thumbnails").thumbnails), strict=True):
            row = int(re.findall("[0-9]+", name)[0])
            assert (thumbnail == ([row, 0, 0] if row < 59 else 255)).all()
    for outside in (str(tmp_path / "pictures"), "../pictures"):  # of whoever reads a stranger's file
        (tmp_path / "below").mkdir(exist_ok=True)
        astray = [f"{outside}/{row}.png" for row in range(60)]
        strange = vectors_of(tmp_path / "below" / "digits.npz", labels, values, paths=astray)
        asked = replace(config, data=str(strange))
        made = train(asked, load_splits(asked), str(tmp_path / f"strange{len(outside)}")).run
        assert there(made.codes("train", "thumbnails").thumbnails).shape[1:] == (1, 1, 1)
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    nameless = train(config, load_splits(config), str(tmp_path / "other")).run
    assert there(nameless.codes("test", "thumbnails").thumbnails).shape[1:] == (1, 1, 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backbone", "resnet18"), "vectors have been through one already"),
        (("--freeze", "--weights", "x.npz"), "vectors have no backbone that could learn"),
        (("--mirror",), "--mirror is of pictures, and"),
        (("--fit", "pad"), "--fit is of pictures"),
        (("--image-size", 64), "--image-size is of pictures"),
        (("--weights", "x.npz"), "--weights is of pictures"),
        (("--optimizer", "muon"), "vectors need none; choose adamw or sgd"),
    ],
)
def test_what_vectors_do_not_take_is_told(digit_vectors: Any, options: Any, said: str, tmp_path: Path) -> None:
    values, labels = digit_vectors
    file = vectors_of(tmp_path / "x.npz", labels, values)
    done = dsh("train", file, *options)
    assert done.exit_code == 2 and said in done.stderr


def test_a_recipe_goes_from_pictures_to_vectors_and_back(
    digit_vectors: Any, digits_run: Path, frozen: TrainConfig, tmp_path: Path
) -> None:
    values, labels = (some[:200] for some in digit_vectors)
    file = vectors_of(tmp_path / "x.npz", labels, values)
    options = ["--epochs", 1, "--no-tensorboard", "--quiet", "--out"]
    train(frozen, load_splits(frozen), str(tmp_path / "frozen"))
    for number, run in enumerate((digits_run, tmp_path / "frozen")):
        done = dsh("train", file, "--like", run, *options, tmp_path / f"v{number}")
        assert done.exit_code == 0, done.stderr
        made = Run.open(tmp_path / f"v{number}").config
        assert (made.backbone, made.hidden, made.dropout, made.optimizer) == ("vectors", 512, 0.2, "adamw")
    back = dsh("train", "digits", "--like", tmp_path / "v0", *options, tmp_path / "back")
    assert back.exit_code == 0, back.stderr
    assert Run.open(tmp_path / "back").config.backbone == "airbench"


def test_pixels_are_not_kept_twice(tmp_path: Path) -> None:
    dsh_json("train", "digits", "--method", "pca", "--cache", tmp_path / "kept", "--out", tmp_path / "run")
    assert not (tmp_path / "kept").exists()


def test_a_backbone_of_vectors_is_for_vectors(splits_of_photos: Splits, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`backbone` vectors is for files of vectors"):
        train(TrainConfig(backbone="vectors", tensorboard=False), splits_of_photos, str(tmp_path / "run"))


@pytest.fixture
def splits_of_photos(photos: Path) -> Splits:
    return load_splits(TrainConfig(data=str(photos), image_size=24))


def test_a_file_without_labels_needs_another_method(digit_vectors: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", vectors=digit_vectors[0])
    with pytest.raises(DataError, match="has no labels"):
        load_splits(TrainConfig(data=str(tmp_path / "x.npz")))
