"""What a training takes over of another run's recipe, and what contradicts itself."""

import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dsh_cli.config import Recipe, TrainConfig
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits, load_splits
from dsh_cli.errors import RunError, UsageError
from dsh_cli.pictures.cache import PictureCache
from dsh_cli.pictures.decode import Form
from dsh_cli.runs.run import Run
from dsh_cli.training.recipe import Request, changed, model_config, settle
from tests.support.imports import HEAVY, loaded_after
from tests.support.runs import edit, small_run

# Of a run in which nothing is as it is by default, nor open.
RECIPE = Recipe(
    data="cifar10",
    protocol="paper",
    data_root="/data",
    hold_out_classes=2,
    bits=12,
    backbone="resnet18",
    pretrained=True,
    freeze=True,
    hidden=64,
    dropout=0.1,
    image_size=64,
    fit="pad",
    interpolation="bicubic",
    augment="photos",
    grow=False,
    mirror=False,
    margin=20.0,
    alpha=0.1,
    centers="auto",
    smoothing=0.1,
    epochs=9,
    batch_size=100,
    per_class=4,
    optimizer="sgd",
    schedule="step",
    lr=1e-3,
    weight_decay=1e-4,
    clip=1.0,
    seed=7,
    device="cpu",
    workers=3,
    threads=1,
    memory=1.0,
    cache="off",
    amp=True,
    compile=True,
    tensorboard=False,
)
OTHERS = {  # a value for each field that is not the recipe's
    "data": "mnist",
    "protocol": "cifar10-2",
    "data_root": "/else",
    "hold_out_classes": 0,
    "bits": 24,
    "method": "pca",
    "backbone": "resnet34",
    "pretrained": False,
    "weights": "/",
    "freeze": False,
    "hidden": 0,
    "dropout": 0.3,
    "image_size": 32,
    "fit": "stretch",
    "interpolation": "bilinear",
    "augment": "none",
    "grow": True,
    "mirror": True,
    "margin": 30.0,
    "alpha": 0.2,
    "centers": "none",
    "smoothing": 0.3,
    "epochs": 2,
    "batch_size": 50,
    "per_class": 0,
    "optimizer": "adamw",
    "schedule": "one-cycle",
    "lr": 1e-2,
    "weight_decay": 1e-3,
    "clip": 2.0,
    "seed": 8,
    "device": "auto",
    "workers": 1,
    "threads": 2,
    "memory": 3.0,
    "cache": "auto",
    "amp": False,
    "compile": False,
    "tensorboard": True,
}
BATCHES: dict[str, Any] = {"batch_size": None, "epochs": None}
RATES: dict[str, Any] = {"schedule": None, "lr": None, "weight_decay": None}
OF_STEPS: dict[str, Any] = dict.fromkeys(
    ("centers", "margin", "alpha", "epochs", "batch_size", "per_class", "optimizer", "schedule", "lr")
    + ("weight_decay", "clip", "hidden", "dropout", "grow")
)
LAYERS: dict[str, Any] = {"hidden": None, "dropout": None}
PICTURES: dict[str, Any] = {"image_size": None, "fit": None, "interpolation": None}  # as weights expect them
ALSO: dict[str, dict[str, Any]] = {  # what changes with a field that was given alone
    "data": {
        "image_size": None,
        "augment": None,
        "epochs": None,
        "batch_size": None,
        "per_class": None,
        "amp": None,
        "grow": None,
        "mirror": None,
    },
    "bits": {"margin": None},
    "method": OF_STEPS | dict.fromkeys(("image_size", "augment", "mirror", "amp")),
    "freeze": BATCHES | RATES | LAYERS | {"optimizer": None, "per_class": None},
    "batch_size": {"epochs": None, "per_class": None},
    "centers": BATCHES | {"per_class": None},
    "margin": BATCHES | {"centers": None, "per_class": None},
    "alpha": BATCHES | {"centers": None, "per_class": None},
    # the size is of pretrained weights
    "backbone": BATCHES | RATES | PICTURES | LAYERS | dict.fromkeys(("optimizer", "grow", "amp", "per_class")),
    "augment": {"mirror": None},
    "optimizer": RATES,
    "pretrained": PICTURES | {"amp": None, "grow": None},
    "weights": {"pretrained": False},
    "image_size": {"amp": None, "grow": None},
    "device": {"amp": None},
}


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A finished run with that recipe."""
    folder = small_run(tmp_path / "run")
    edit(folder / "config.json", config=asdict(RECIPE))
    return str(folder)


def differences(config: TrainConfig, recipe: TrainConfig = RECIPE) -> dict[str, Any]:
    mine, theirs = asdict(config), asdict(recipe)
    return {name: value for name, value in mine.items() if value != theirs[name]}


def test_without_changes_a_recipe_is_taken_as_it_is() -> None:
    again = changed(RECIPE, {})
    assert differences(again) == {} and type(again) is TrainConfig
    assert changed(TrainConfig(), {}) == TrainConfig()


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_a_field_that_changes_takes_along_what_was_chosen_by_it(name: str) -> None:
    assert differences(changed(RECIPE, {name: OTHERS[name]})) == {name: OTHERS[name], **ALSO.get(name, {})}


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_a_field_given_as_it_was_takes_nothing_along(name: str) -> None:
    if name not in ("weights", "margin", "alpha"):  # the recipe has none; and did not use these, see below
        assert differences(changed(RECIPE, {name: getattr(RECIPE, name)})) == {}


@pytest.mark.parametrize(("name", "along"), [(name, other) for name, others in ALSO.items() for other in others])
def test_what_is_given_too_stays_as_given(name: str, along: str) -> None:
    given = {name: OTHERS[name], along: getattr(RECIPE, along)}
    config = changed(RECIPE, given)
    assert {name: getattr(config, name), along: getattr(config, along)} == given


def test_bfloat16_is_open_only_where_the_size_that_is_open_was_not_given() -> None:
    """Given, the size is as it was, and bfloat16 as safe as it was."""
    kept = changed(RECIPE, {"pretrained": False, "image_size": RECIPE.image_size})
    assert differences(kept) == {"pretrained": False, "fit": None, "interpolation": None}


def test_of_other_networks_than_pretrained_ones_the_picture_size_stays() -> None:
    plain = replace(RECIPE, pretrained=False)
    open_then = BATCHES | RATES | LAYERS | dict.fromkeys(("optimizer", "grow", "amp", "per_class"))
    assert differences(changed(plain, {"backbone": "resnet9"}), plain) == {"backbone": "resnet9", **open_then}
    theirs = changed(plain, {"backbone": "resnet34", "pretrained": True})
    assert (theirs.image_size, theirs.amp) == (None, None)


def test_pretrained_weights_and_those_of_a_file_take_each_others_place(tmp_path: Path) -> None:
    of_file = replace(RECIPE, pretrained=False, weights=str(tmp_path))
    assert differences(changed(of_file, {"pretrained": True}), of_file) == {
        "pretrained": True, "weights": None, "amp": None, "grow": None, **PICTURES
    }  # fmt: skip
    assert changed(of_file, {"pretrained": False}).weights == str(tmp_path)
    both = changed(RECIPE, {"pretrained": True, "weights": str(tmp_path)})
    with pytest.raises(UsageError, match="`pretrained` and `weights`"):
        both.check()


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 500},
        {"centers": "none"},
        {"margin": 4.0},
        {"alpha": 0.1},
        {"optimizer": "adamw"},
        {"backbone": "small-resnet"},
        {"bits": 2},
        {"bits": 48},
        {"smoothing": 0.1, "epochs": 3},
    ],
)
def test_like_a_run_of_the_defaults_is_as_they_are(changes: dict[str, Any]) -> None:
    base = TrainConfig(data="digits", device="cpu", threads=1)
    splits = load_splits(base)
    like = changed(settle(base, splits), changes, 10)
    assert settle(like, splits) == settle(changed(base, changes), splits)


def test_what_bits_and_data_decided_they_decide_again() -> None:
    base = TrainConfig(data="digits", device="cpu", threads=1)
    splits = load_splits(base)
    default = settle(base, splits)
    two_bits = settle(replace(base, bits=2), splits)
    assert two_bits.centers == "none"
    assert settle(changed(two_bits, {"bits": 8}, 10), splits) == default
    mnist = replace(default, data="mnist", batch_size=500, lr=0.12, epochs=2, image_size=28, grow=True)
    assert settle(changed(mnist, {"data": "digits"}), splits) == default


def test_the_defaults_are_changed_in_what_is_given_alone() -> None:
    for name, value in OTHERS.items():
        config = changed(TrainConfig(), {name: value})
        assert getattr(config, name) == value
        assert differences(config, TrainConfig()).keys() <= {name}


def test_paths_are_made_absolute_and_names_of_sets_are_not() -> None:
    for name in ("photos", "digits", "own.safetensors"):
        os.mkdir(name)
    config = changed(TrainConfig(), {"data": "photos", "weights": "own.safetensors"})
    assert (config.data, config.weights) == (os.path.abspath("photos"), os.path.abspath("own.safetensors"))
    assert changed(TrainConfig(), {"data": "digits"}).data == "digits"  # though a folder has its name
    assert changed(TrainConfig(), {"data": "./digits"}).data == os.path.abspath("digits")
    assert changed(TrainConfig(), {"data": "nowhere"}).data == "nowhere"  # of which reading it says more
    with pytest.raises(UsageError, match="`weights` none.pt: there is no such file or run folder"):
        changed(TrainConfig(), {"weights": "none.pt"})


def test_a_request_is_of_the_defaults_or_like_a_run(run: str) -> None:
    assert Request({"bits": 6}).opened() == (replace(TrainConfig(), bits=6), None)
    like_it = replace(changed(RECIPE, {"bits": 6}), cache="auto")  # where pictures are kept is no part of a recipe
    assert Request({"bits": 6}, like=run).opened() == (like_it, None)
    with pytest.raises(UsageError, match="`bits` 0"):
        Request({"bits": 0}, like=run).opened()
    with pytest.raises(RunError, match="no run folder at none"):
        Request({"bits": 0}, like="none").opened()


@pytest.mark.parametrize("there", [False, True])
def test_a_resumed_run_uses_the_cache_it_names_only_where_one_is(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training that began it has made one; a stranger's run shall not make files anywhere."""
    config = replace(RECIPE, cache=str(tmp_path / "kept"))
    if there:
        PictureCache(tmp_path / "kept", Form(8, 1))._db.close()
    stranger = SimpleNamespace(config=config, require_unfinished=lambda: None)
    monkeypatch.setattr(Run, "open", lambda path: stranger)
    opened, _ = Request({}, resume="run").opened()
    assert opened == (config if there else replace(config, cache="auto"))
    assert (tmp_path / "kept").exists() == there


@pytest.mark.parametrize("cache", ["~nobody-of-that-name/x", "x" * 5000, "a\0b"])
def test_a_cache_that_names_no_folder_is_none(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = SimpleNamespace(config=replace(RECIPE, cache=cache), require_unfinished=lambda: None)
    monkeypatch.setattr(Run, "open", lambda path: stranger)
    assert Request({}, resume="run").opened()[0].cache == "auto"


def test_an_unfinished_run_goes_on_with_its_own_recipe(run: str) -> None:
    with pytest.raises(UsageError, match=f"{run} is finished; for the same recipe again: dsh train --like {run}"):
        Request({}, resume=run).opened()
    edit(Path(run) / "metrics.json", finished=False)
    assert Request({}, resume=run).opened() == (RECIPE, Run.open(run))
    for more in (Request({"seed": 1}, resume=run), Request({}, "out", None, run), Request({}, None, run, run)):
        with pytest.raises(UsageError, match="`resume` goes on with the run's own recipe.*use `like`") as caught:
            more.check()
        assert caught.value.fields == ("resume", "like")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"centers": "none", "smoothing": 0.1}, ("centers", "smoothing")),
        ({"centers": "auto", "margin": 8.0}, ("centers", "margin", "alpha")),
        ({"centers": "auto", "alpha": 0.0}, ("centers", "margin", "alpha")),
        ({"margin": 8.0, "smoothing": 0.1}, ("smoothing", "margin", "alpha")),
        ({"alpha": 0.0, "smoothing": 0.0}, ("smoothing", "margin", "alpha")),
    ],
)
def test_what_is_of_one_loss_contradicts_the_other(changes: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="contradict") as caught:
        Request(changes, resume="none").check()
    assert caught.value.fields == named


def test_what_is_of_one_loss_goes_together() -> None:
    fine: list[dict[str, Any]] = [
        {"centers": "none"},
        {"centers": "auto", "smoothing": 0.1},
        {"centers": "none", "margin": 8.0, "alpha": 0.0},
        {"margin": 8.0, "alpha": 0.0},
        {"smoothing": 0.1},
    ]
    for changes in fine:
        config, _ = Request(changes).opened()
        assert {name: getattr(config, name) for name in changes} == changes


# What is settled


def splits_of(count: int = 6000, channels: int = 1, classes: int = 10, size: int = 8) -> Splits:
    pixels = np.broadcast_to(np.uint8(0), (count, size, size, channels))
    names = tuple(map(str, range(classes)))
    dataset = Dataset(pixels, np.arange(count) % classes, names, tuple(map(str, range(count))), "made")
    return Splits(dataset, dataset, dataset)


def settled(splits: Splits | None = None, **asked: Any) -> Recipe:
    return settle(TrainConfig(**{"data": "photos", "device": "cpu", "amp": False, **asked}), splits or splits_of())


def test_by_default_muon_trains_the_choice_of_a_center() -> None:
    recipe = settled()
    assert (recipe.centers, recipe.smoothing, recipe.optimizer, recipe.schedule) == ("auto", 0.2, "muon", "linear")
    assert (recipe.lr, recipe.weight_decay, recipe.clip, recipe.per_class) == (0.093, 5e-3, None, 0)
    assert type(recipe) is Recipe and all(value is not None for value in (recipe.margin, recipe.alpha))


@pytest.mark.parametrize("backbone", ["resnet9", "small-resnet", "dsh-cnn", "resnet18"])
def test_other_networks_have_adamw(backbone: str) -> None:
    recipe = settled(backbone=backbone)
    assert (recipe.optimizer, recipe.schedule, recipe.lr, recipe.batch_size) == ("adamw", "one-cycle", 6e-3, 200)
    assert settled(backbone=backbone, optimizer="muon", batch_size=500).lr == 0.12


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"optimizer": "sgd"}, ("one-cycle", 6e-3, 5e-3, 200)),
        ({"optimizer": "adamw", "schedule": "linear", "lr": 0.5}, ("linear", 0.5, 5e-3, 200)),
        ({"schedule": "step", "weight_decay": 0.0}, ("step", 0.093, 0.0, 300)),
        ({"lr": 1e-3, "batch_size": 17}, ("linear", 1e-3, 5e-3, 17)),
    ],
)
def test_what_is_asked_for_stays_and_the_rest_goes_with_the_optimizer(
    asked: dict[str, Any], found: tuple[object, ...]
) -> None:
    recipe = settled(**asked)
    assert (recipe.schedule, recipe.lr, recipe.weight_decay, recipe.batch_size) == found


@pytest.mark.parametrize(
    ("count", "batch_size", "epochs"),
    [(60_000, 500, 2), (10_000, 500, 12), (6000, 300, 12), (1257, 62, 12), (39, 32, 60), (4, 32, 60), (3, 32, 60)],
)
def test_small_sets_have_smaller_batches_and_about_as_many_steps(count: int, batch_size: int, epochs: int) -> None:
    recipe = settled(splits_of(count, classes=2))
    assert (recipe.batch_size, recipe.epochs) == (batch_size, epochs)


def test_colour_pictures_are_seen_more_often() -> None:
    assert settled(splits_of(50_000, channels=3)).epochs == 8 and settled(splits_of(50_000)).epochs < 8


@pytest.mark.parametrize(
    ("asked", "margin", "alpha"),
    [({"margin": 9.0}, 9.0, 0.01), ({"alpha": 0.0}, 16.0, 0.0), ({"centers": "none"}, 16.0, 0.01)],
)
def test_a_margin_or_alpha_turns_centers_off(asked: dict[str, Any], margin: float, alpha: float) -> None:
    recipe = settled(**asked)
    assert (recipe.centers, recipe.margin, recipe.alpha, recipe.batch_size) == ("none", margin, alpha, 200)


def test_as_a_run_without_centers_had_them_margin_and_alpha_stay() -> None:
    of_pairs, chosen = settled(margin=9.0, alpha=0.5), settled()
    again = settle(changed(of_pairs, {"seed": 1}), splits_of())
    assert again == replace(of_pairs, seed=1)
    turned = settle(changed(of_pairs, {"centers": "auto"}), splits_of())
    assert (turned.centers, turned.margin, turned.alpha) == ("auto", 16.0, 0.01)
    assert settle(changed(chosen, {"seed": 1}), splits_of()) == replace(chosen, seed=1)


@pytest.mark.parametrize("name", ["margin", "alpha"])
def test_a_margin_that_is_asked_for_counts_even_where_the_run_had_it_and_did_not_use_it(name: str) -> None:
    chosen = settled()
    recipe = settle(changed(chosen, {name: getattr(chosen, name)}), splits_of())
    assert recipe.centers == "none" and getattr(recipe, name) == getattr(chosen, name)


def test_where_there_can_be_no_centers_there_are_none() -> None:
    assert settled(bits=3).centers == "none" and settled(bits=4).centers == "auto"
    assert settled(splits_of(classes=1)).centers == "none"


def test_classes_that_are_many_come_together_only_in_the_loss_over_pairs() -> None:
    many = splits_of(4000, classes=1000)
    assert settled(many, bits=32).per_class == 0
    assert settled(many, bits=32, centers="none").per_class == 4
    assert settled(many, bits=32, centers="none", per_class=0).per_class == 0


def test_like_a_run_of_an_earlier_version_smooths_as_by_default() -> None:
    """Which had no smoothing; else it would be refused, with the advice to do what was done."""
    earlier = replace(RECIPE, smoothing=None, data="photos", amp=False)
    assert settle(changed(earlier, {}), splits_of()).smoothing == 0.2
    assert settle(changed(RECIPE, {"data": "photos"}), splits_of()).smoothing == 0.1


def test_codes_are_of_a_picture_and_its_mirror_image_where_it_was_trained_on_both() -> None:
    for augment, mirror in (("photos", True), ("digits", False), ("none", False)):
        assert model_config(settled(augment=augment), splits_of()).mirror is mirror


def test_an_impossible_request_is_refused_without_torch() -> None:
    code = "from dsh_cli.cli import app\ntry:\n    app(['train', '--bits', '0'])\nexcept SystemExit:\n    pass"
    loaded = loaded_after(code)
    assert "dsh_cli.training.recipe" in loaded and not loaded & HEAVY
