"""Batches from memory and from files, and the sampler that keeps classes together."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import Augment, Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.errors import DataError, Interrupted, RunError
from dsh_cli.network.encoding import to_float
from dsh_cli.runs.run import Run
from dsh_cli.show.progress import Notes
from dsh_cli.training.batches import Batches, Lots, _tinted, augment, make_batches
from dsh_cli.training.events import EpochStats, Quiet
from dsh_cli.training.recipe import settle
from tests.support.commands import dsh_json
from tests.support.runs import LOSS, identical, weights
from tests.support.values import in_memory, there

CONFIG = TrainConfig(bits=8, epochs=2, batch_size=8, device="cpu", tensorboard=False)


def labelled(counts: list[int]) -> Dataset:
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.arange(len(labels), dtype=np.uint16).view(np.uint8).reshape(-1, 1, 2, 1)  # each picture tells its row
    return Dataset(pixels, labels, tuple(map(str, range(len(counts)))), tuple(map(str, range(len(labels)))), "made")


def rows_of(images: Tensor) -> NDArray[np.int64]:
    pixels = (images * 255).round().to(torch.int64)
    return (pixels[:, 0, 0, 0] + 256 * pixels[:, 0, 0, 1]).numpy()


def test_a_thousand_classes_of_four_have_positive_pairs_in_every_batch() -> None:
    dataset = labelled([4] * 1000)
    freely, together = (
        Batches(dataset, 200, "none", 0, torch.device("cpu"), per_class=per_class) for per_class in (0, 4)
    )
    partners = []
    for batches in (freely, together):
        seen, shares = [], []
        for images, labels in batches.epoch(0):
            assert (dataset.labels[rows_of(images)] == labels.numpy()).all()
            seen.append(rows_of(images))
            shares.append((np.bincount(labels.numpy(), minlength=1000)[labels.numpy()] > 1).mean())
        assert len(np.unique(np.concatenate(seen))) == 4000  # every picture once an epoch
        partners.append(min(shares))
    assert partners[0] < 0.3 and partners[1] == 1.0


@pytest.mark.parametrize("seed", [0, 1])
def test_classes_of_any_size_stay_together_in_groups(seed: int) -> None:
    dataset = labelled([1, 2, 3, 4, 5, 9, 50])
    batches = Batches(dataset, len(dataset), "none", seed, torch.device("cpu"), per_class=4)
    ((_, labels),) = batches.epoch(0)
    sizes = np.diff(np.flatnonzero(np.diff(labels.numpy(), prepend=-1, append=-1)))
    assert sorted(np.bincount(labels.numpy()).tolist()) == [1, 2, 3, 4, 5, 9, 50]
    # no group is smaller than four but where its class is; neighbours of one class only make groups longer
    small = [size for size in sizes if size < 4]
    assert sorted(small) == [1, 2, 3]
    ((_, again),) = batches.epoch(0)
    ((_, other),) = batches.epoch(1)
    assert (labels == again).all() and not (labels == other).all()


def test_the_sampler_is_chosen_where_classes_are_many_and_can_be_asked_for() -> None:
    config = replace(CONFIG, data="digits", centers="none")
    splits = load_splits(config)
    assert settle(replace(config, batch_size=200), splits).per_class == 0
    assert settle(replace(config, batch_size=8), splits).per_class == 4
    assert settle(replace(config, batch_size=8, per_class=0), splits).per_class == 0


@pytest.mark.parametrize(("centers", "per_class"), [("auto", 0), ("none", 4)])
def test_a_thousand_classes_are_learned_from_end_to_end(tmp_path: Path, centers: str, per_class: int) -> None:
    rng = np.random.default_rng(0)
    for label in range(1000):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        centre = rng.integers(0, 256, (8, 8, 3))
        for i in range(4):
            noisy = np.clip(centre + rng.normal(0, 8, centre.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(tmp_path / "set" / str(label) / f"{i}.png")
    options = ["--bits", 32, "--epochs", 4, "--centers", centers, "--quiet", "--no-tensorboard"]
    answer = dsh_json("train", tmp_path / "set", *options, "--out", tmp_path / "run")
    assert Run.open(tmp_path / "run").config.per_class == per_class
    assert answer["map"] > 0.05  # 0.001 by chance


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_pictures_in_files_give_the_weights_of_those_in_memory(photos: Path, tmp_path: Path, cache: str) -> None:
    """What streams is trained on as what is held: same order, same augmentation, same codes."""
    runs = []
    for memory in (2.0, 0.0):
        config = replace(CONFIG, data=str(photos), memory=memory, cache=cache, workers=2)
        splits = load_splits(config)
        assert isinstance(splits.train.images, np.ndarray) == bool(memory)
        runs.append(train(config, splits, str(tmp_path / f"run{memory}")).run)
    held, streamed = runs
    assert identical(weights(held), weights(streamed))
    assert held.names() == streamed.names() and held.metrics["map"] == streamed.metrics["map"]
    for split in ("train", "test"):
        one, other = (run.codes(split, "relaxed", "thumbnails") for run in runs)
        assert (one.packed == other.packed).all() and (there(one.thumbnails) == there(other.thumbnails)).all()
    assert (tmp_path / "cache" / "dsh" / "pictures").exists() == (cache == "auto")


def test_a_picture_that_vanishes_while_it_trains_is_named_once_and_has_no_code(photos: Path, tmp_path: Path) -> None:
    splits = load_splits(replace(CONFIG, data=str(photos), memory=0.0, cache="off", epochs=3))
    lost = splits.train.names[4]

    class Lose(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            if stats.epoch == 1:
                (photos / lost).unlink()

    said: list[str] = []
    config = replace(CONFIG, data=str(photos), memory=0.0, cache="off", epochs=3)
    run = train(config, splits, str(tmp_path / "run"), listeners=[Lose(), Notes(said.append)]).run
    assert said == [
        f"{lost}: no such file or directory; left out",
        "pictures that could not be read any more, and have no codes: 1 train",
    ]
    opened = Run.open(run.path)
    assert lost not in opened.names()["train"] and len(opened.codes("train")) == opened.counts["train"]
    assert opened.counts["train"] == len(splits.train) - 1 == len(opened.names()["train"])


def test_when_all_vanish_training_says_so_and_leaves_the_run_unfinished(photos: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, data=str(photos), memory=0.0, cache="off", epochs=3)

    class Lose(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            for path in photos.rglob("*.png"):
                path.unlink()

    with pytest.raises(DataError, match="none of the pictures of .* could be read in epoch 2"):
        train(config, load_splits(config), str(tmp_path / "run"), listeners=[Lose()])
    assert not Run.open(tmp_path / "run").finished


def test_pictures_gone_before_the_first_epoch_leave_no_run(photos: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, data=str(photos), memory=0.0, cache="off")
    splits = load_splits(config)
    shutil.rmtree(photos)
    with pytest.raises(DataError, match="none of 14 pictures of .* can be read"):
        train(config, splits, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_only_with_the_pictures_it_began_with(photos: Path, tmp_path: Path) -> None:
    class Stop(Quiet):
        def on_epoch(self, stats: EpochStats) -> None:
            raise KeyboardInterrupt

    config = replace(CONFIG, data=str(photos))
    with pytest.raises(Interrupted):
        train(config, load_splits(config), str(tmp_path / "run"), listeners=[Stop()])
    shutil.copy(next(photos.rglob("*.png")), photos / "plum" / "new.png")
    unfinished = Run.open(tmp_path / "run")
    with pytest.raises(RunError, match="are not those .* began with; train anew with: dsh train --like"):
        train(unfinished.config, load_splits(unfinished.config), resume=unfinished)


def test_waiting_is_measured(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from dsh_cli.pictures import decode

    splits = load_splits(replace(CONFIG, data=str(photos), memory=0.0, cache="off", workers=1))
    batches = Batches(splits.train, 8, "none", 0, torch.device("cpu"))
    read = decode.read

    def slow(path: str, form: decode.Form) -> decode.Picture:
        time.sleep(0.02)
        return read(path, form)

    monkeypatch.setattr(decode, "read", slow)
    list(batches.epoch(0))
    assert batches.waited >= 8 * 0.02


def test_notes_are_few() -> None:
    said: list[str] = []
    notes = Notes(said.append)
    nothing = CodeSet(8, np.empty((0, 1), np.uint8), np.empty(0, np.int64), (), ())
    stats = EpochStats(1, LOSS, 1.0, nothing, None, notes=tuple(f"{i}.png: lost" for i in range(15)))
    for _ in range(3):
        notes.on_epoch(stats)
    assert len(said) == 21 and said[-1] == "more of the same is not shown"


def batches(seed: int = 0, augment: Augment = "digits") -> Batches:
    return Batches(load_splits(TrainConfig(data="digits")).train, 64, augment, seed, torch.device("cpu"))


def test_batches_depend_on_seed_and_epoch_only() -> None:
    one, same, other = batches(), batches(), batches(seed=1)
    first = [images for images, _ in one.epoch(3)]
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, same.epoch(3), strict=True))
    assert not torch.equal(first[0], next(one.epoch(4))[0])
    assert not torch.equal(first[0], next(other.epoch(3))[0])


def test_an_epoch_shows_no_picture_twice_and_batches_are_full() -> None:
    loader = batches(augment="none")
    shown = [images for images, _ in loader.epoch(0)]
    assert len(shown) == len(loader) and all(len(images) == 64 for images in shown)
    names = {image.numpy().tobytes() for images in shown for image in images}
    distinct = {image.tobytes() for image in in_memory(load_splits(TrainConfig(data="digits")).train)}
    assert len(names) > 0.99 * min(len(distinct), 64 * len(loader))


def whole(rng: torch.Generator, count: int) -> Lots:
    """Random numbers of a batch of which all pictures are here."""
    return Lots(rng, count, torch.arange(count))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["none", "digits", "photos"])
def test_augmented_batches_keep_range_shape_and_layout(kind: Augment, channels: int) -> None:
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (8, 32, 32, channels), generator=rng, dtype=torch.uint8)
    varied = augment(pictures, kind, whole(rng, 8), torch.arange(8) < 4)
    assert varied.shape == (8, channels, 32, 32) and varied.min() >= 0 and varied.max() <= 1
    assert varied.is_contiguous(memory_format=torch.channels_last)
    assert (kind == "none") == torch.equal(varied, to_float(pictures))


def test_photos_are_mirrored_as_told_and_digits_never() -> None:
    """A picture dark on the left stays so for digits, and for photos where it is not to be mirrored."""
    pictures = torch.zeros(64, 32, 32, 1, dtype=torch.uint8)
    pictures[:, :, 16:] = 255
    rng, mirrored = torch.Generator().manual_seed(0), torch.arange(64) % 3 == 0
    kinds: tuple[Augment, ...] = ("digits", "photos")
    turned = {kind: augment(pictures, kind, whole(rng, 64), mirrored)[..., 4:8].mean((1, 2, 3)) > 0.5 for kind in kinds}
    assert not turned["digits"].any() and torch.equal(turned["photos"], mirrored)


@pytest.mark.parametrize("files", [False, True])
def test_in_two_epochs_each_picture_is_shown_both_ways_round(tmp_path: Path, files: bool) -> None:
    """Half of them one way first, whichever batch they come in, and whether they are held or read."""
    pixels = np.zeros((60, 32, 32, 1), np.uint8)
    pixels[:, :, 16:] = 4 + 4 * np.arange(60)[:, None, None, None]  # light on the right, which tells the picture
    for number, picture in enumerate(pixels):
        path = tmp_path / "set" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[..., 0]).save(path)
    memory = 0.0 if files else 1.0
    splits = load_splits(replace(CONFIG, data=str(tmp_path / "set"), memory=memory, cache="off", image_size=32))
    count = len(splits.train)
    batches = Batches(splits.train, count, "photos", 5, torch.device("cpu"))

    def shown(epoch: int) -> dict[int, bool]:
        ((images, _),) = batches.epoch(epoch)
        told = (images.amax((1, 2, 3)) * 255 / 4).round().int()
        return dict(zip(told.tolist(), (images[:, 0, :, 4:8].amax((1, 2)) > 0).tolist(), strict=True))

    first, second, third = shown(0), shown(1), shown(2)
    assert len(first) == count and first == third and first.keys() == second.keys()
    assert all(first[number] != second[number] for number in first)
    assert count / 4 < sum(first.values()) < 3 * count / 4


@pytest.mark.parametrize("kind", ["digits", "photos"])
def test_varied_pictures_are_those_cut_from_a_reflected_frame(kind: Augment) -> None:
    """Each is a crop of the picture with its edges mirrored outwards; of photos some are the other way round."""
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (60, 32, 32, 1), generator=rng, dtype=torch.uint8)
    mirrored = torch.rand(60, generator=rng) < 0.5
    moved = (augment(pictures, kind, whole(rng, 60), mirrored) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    places = set()
    for picture, shown, turn in zip(pictures.numpy(), moved, mirrored.tolist(), strict=True):
        frame = np.pad(picture, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
        crops = {(y, x): frame[y : y + 32, x : x + 32] for y in range(5) for x in range(5)}
        found = [
            (y, x, turned)
            for (y, x), crop in crops.items()
            for turned in (False, True)
            if (shown == (crop[:, ::-1] if turned else crop)).all()
        ]
        assert len(found) == 1 and found[0][2] == (turn and kind == "photos")
        places.add(found[0])
    assert {y for y, _, _ in places} == {x for _, x, _ in places} == {0, 1, 2, 3, 4}


def test_colours_of_photos_vary_in_contrast_and_brightness() -> None:
    """Every channel of a picture is a line of what it was: of one slope, 0.8 to 1.2, and of one offset each."""
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randint(80, 176, (40, 8, 8, 3), generator=rng, dtype=torch.uint8)
    plain = to_float(pictures).flatten(2).numpy()
    varied = _tinted(to_float(pictures), whole(rng, 40)).flatten(2).numpy()
    lines = np.array(
        [[np.polyfit(a, b, 1) for a, b in zip(*both, strict=True)] for both in zip(plain, varied, strict=True)]
    )
    slopes, offsets = lines[..., 0], lines[..., 1] - 0.5 * (1 - lines[..., 0])  # (40, 3)
    assert np.ptp(slopes, axis=1).max() < 1e-4 and 0.8 <= slopes.min() < 0.85 and 1.15 < slopes.max() <= 1.2
    assert np.abs(offsets).max() <= 0.05 + 1e-6 and np.ptp(offsets, axis=1).min() > 1e-4
    assert all(
        np.abs(np.polyval(line, a) - b).max() < 1e-4
        for line, a, b in zip(lines[:, 0], plain[:, 0], varied[:, 0], strict=True)
    )


def test_pictures_are_smaller_in_the_first_half_of_a_training() -> None:
    """In whole epochs and parts of one; each is then what the whole one shrinks to."""
    recipe = Recipe(data="digits", epochs=3, batch_size=500, augment="none", grow=True)
    dataset = load_splits(TrainConfig(data="digits")).train  # 1,295 pictures: two batches an epoch
    growing, device = make_batches(recipe, dataset, torch.device("cpu")), torch.device("cpu")
    whole = make_batches(replace(recipe, grow=False), dataset, device)
    sides = [images.shape[-1] for epoch in range(3) for images, _ in growing.epoch(epoch)]
    assert sides == [6, 6, 6, 8, 8, 8] == [growing.shape(step)[-1] for step in range(6)]
    one_step = make_batches(replace(recipe, epochs=1, batch_size=1000), dataset, device)
    assert [images.shape[-1] for images, _ in one_step.epoch(0)] == [8]  # for that is how codes are made
    (small, labels), (large, same) = next(growing.epoch(0)), next(whole.epoch(0))
    assert (labels == same).all()
    expected = torch.nn.functional.interpolate(large, size=(6, 6), mode="bilinear", antialias=True)
    assert torch.equal(small, expected)
