"""What a training takes over of another run's recipe, and what contradicts itself."""

import os
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsh_cli.config import Recipe, TrainConfig
from dsh_cli.errors import RunError, UsageError
from dsh_cli.pictures.cache import PictureCache
from dsh_cli.runs.run import Run
from dsh_cli.training.recipe import Request, changed
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
    image_size=64,
    augment="photos",
    margin=20.0,
    alpha=0.1,
    centers="auto",
    center_weight=0.5,
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
    "backbone": "resnet34",
    "pretrained": False,
    "weights": "/",
    "freeze": False,
    "image_size": 32,
    "augment": "none",
    "margin": 30.0,
    "alpha": 0.2,
    "centers": "none",
    "center_weight": 0.6,
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
ALSO: dict[str, dict[str, Any]] = {  # what changes with a field that was given alone
    "data": {"image_size": None, "augment": None, "epochs": None, "per_class": None, "amp": None},
    "bits": {"margin": None},
    "backbone": {"image_size": None, "amp": None},  # of pretrained weights
    "pretrained": {"image_size": None, "amp": None},
    "weights": {"pretrained": False},
    "image_size": {"amp": None},
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
    if name != "weights":  # of which the recipe has none
        assert differences(changed(RECIPE, {name: getattr(RECIPE, name)})) == {}


@pytest.mark.parametrize(("name", "along"), [(name, other) for name, others in ALSO.items() for other in others])
def test_what_is_given_too_stays_as_given(name: str, along: str) -> None:
    given = {name: OTHERS[name], along: getattr(RECIPE, along)}
    config = changed(RECIPE, given)
    assert {name: getattr(config, name), along: getattr(config, along)} == given


def test_bfloat16_is_open_only_where_the_size_that_is_open_was_not_given() -> None:
    """Given, the size is as it was, and bfloat16 as safe as it was."""
    kept = changed(RECIPE, {"pretrained": False, "image_size": RECIPE.image_size})
    assert differences(kept) == {"pretrained": False}


def test_of_other_networks_than_pretrained_ones_the_picture_size_stays() -> None:
    plain = replace(RECIPE, pretrained=False)
    assert differences(changed(plain, {"backbone": "resnet9"}), plain) == {"backbone": "resnet9", "amp": None}
    theirs = changed(plain, {"backbone": "resnet34", "pretrained": True})
    assert (theirs.image_size, theirs.amp) == (None, None)


def test_pretrained_weights_and_those_of_a_file_take_each_others_place(tmp_path: Path) -> None:
    of_file = replace(RECIPE, pretrained=False, weights=str(tmp_path))
    assert differences(changed(of_file, {"pretrained": True}), of_file) == {
        "pretrained": True, "weights": None, "image_size": None, "amp": None
    }  # fmt: skip
    assert changed(of_file, {"pretrained": False}).weights == str(tmp_path)
    both = changed(RECIPE, {"pretrained": True, "weights": str(tmp_path)})
    with pytest.raises(UsageError, match="`pretrained` and `weights`"):
        both.check()


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
        PictureCache(tmp_path / "kept", 8, 1)._db.close()
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


def test_a_weight_of_centers_that_are_none_is_refused() -> None:
    with pytest.raises(UsageError, match="`centers` none and `center_weight` contradict each other"):
        Request({"centers": "none", "center_weight": 0.3}, resume="none").check()
    Request({"centers": "none"}).check()
    Request({"centers": "auto", "center_weight": 0.3}).check()


def test_an_impossible_request_is_refused_without_torch() -> None:
    code = "from dsh_cli.cli import app\ntry:\n    app(['train', '--bits', '0'])\nexcept SystemExit:\n    pass"
    loaded = loaded_after(code)
    assert "dsh_cli.training.recipe" in loaded and not loaded & HEAVY
