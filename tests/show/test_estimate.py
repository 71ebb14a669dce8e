"""How long a training will take: said once, and right where pictures grow."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dsh_cli import CodeSet, TrainConfig
from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.network.model import HashNet
from dsh_cli.network.operations import training_operations
from dsh_cli.runs.run import Run
from dsh_cli.show import estimate
from dsh_cli.show.estimate import Estimate
from dsh_cli.training.events import EpochStats, Plan, RunningLoss
from tests.support.commands import dsh
from tests.support.runs import LOSS

BATCHES, EPOCHS, SIZE = 295, 4, 200  # of MNIST
COUNTS = {"train": 59_000, "validation": 1_000, "test": 10_000}
CODES = CodeSet(8, np.zeros((1, 1), np.uint8), np.zeros(1, np.int64), (), ())
MODEL = ModelConfig("resnet9", 8, 1, 28)


def recipe(**changes: Any) -> Recipe:
    return replace(Recipe(**vars(TrainConfig()) | {"epochs": EPOCHS, "amp": True, "image_size": 28}), **changes)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What is said of a training whose operations take so long each, and first steps more."""

    def of(
        seconds: float,
        operations: list[int] | None = None,
        first: tuple[int, int] = (0, 0),
        device: str = "cpu",
        encoding: int = 0,
        slower: Mapping[int, float] | None = None,
        **changes: Any,
    ) -> list[str]:
        now, spoken, loss = 1000.0, list[str](), RunningLoss({}, torch.device("cpu"))
        monkeypatch.setattr(time, "monotonic", lambda: now)
        loss.batches = 1
        run = Run(Path("run"), recipe(**changes), MODEL, (), "", "", COUNTS, {}, {})
        costs = operations or [100] * BATCHES * EPOCHS
        listener = Estimate(spoken.append)
        stretches = [(len([*same]), cost) for cost, same in groupby(costs)]
        listener.on_start(Plan(run, device, BATCHES, SIZE, first[0], None, "", first[1], stretches, encoding))
        began = first[0] * BATCHES + first[1]
        for step, cost in enumerate(costs[began:], began):
            epoch, done = step // BATCHES + 1, step % BATCHES + 1
            now += cost * seconds * (20 if step < began + 2 else 1) * (slower or {}).get(epoch - 1, 1.0)
            listener.on_batch(epoch, done, loss)
            if done == BATCHES:
                now += encoding * COUNTS["validation"] / SIZE * seconds
                listener.on_epoch(EpochStats(epoch, LOSS, 1.0, CODES, None))
        return spoken

    return of


def test_the_first_steps_do_not_count_but_for_the_time_they_took(said: Callable[..., list[str]]) -> None:
    each = 0.2  # seconds a step: 236 s, and 8 s more for the first two
    assert said(each / 100) == ["about 4 minutes: 4 epochs of 59,000 pictures, 969 a second, then 70,000 codes"]


def test_steps_weigh_what_they_cost(said: Callable[..., list[str]]) -> None:
    half = BATCHES * EPOCHS // 2
    growing = [100] * half + [300] * half
    assert said(0.05 / 100, growing) == [
        "about 2 minutes: 4 epochs of 59,000 pictures, 1,968 a second, then 70,000 codes"
    ]  # 118 s, and 2 more


def test_codes_take_their_time_too(said: Callable[..., list[str]]) -> None:
    """Of 74,000 pictures, for there are 1,000 to validate with after each epoch."""
    assert said(0.2 / 100, encoding=50) == [
        "about 5 minutes: 4 epochs of 59,000 pictures, 969 a second, then 70,000 codes"  # 244 and 37 s
    ]
    assert said(0.2 / 100, encoding=200)[0].startswith("about 7 minutes: ")  # 244 and 148 s
    assert said(0.2 / 100, encoding=200, first=(2, 0))[0].startswith("about 4 minutes more: ")  # 126 and 144 s


def test_of_a_resumed_training_what_is_left_counts(said: Callable[..., list[str]]) -> None:
    assert said(0.05 / 100, first=(2, 100)) == [
        "about 25 seconds more: the rest of 4 epochs of 59,000 pictures, 3,712 a second, then 70,000 codes"
    ]
    (long,) = said(3 / 100, first=(3, 0))  # which goes on with the recipe that it has
    assert long.startswith("about 17 minutes more: ")


def test_of_one_step_or_two_the_first_tells_it(said: Callable[..., list[str]]) -> None:
    (two,) = said(0.9 / 100, first=(3, 293))  # which take 18 s each
    assert two.startswith("about 35 seconds more: ")


def test_what_is_left_is_said_anew_where_it_comes_otherwise(said: Callable[..., list[str]]) -> None:
    times = said(0.22 / 100, slower={1: 2.0})
    assert times == [
        "about 4 minutes: 4 epochs of 59,000 pictures, 881 a second, then 70,000 codes",
        "about 4 minutes more, at the rate of this epoch",  # two epochs of 130 s
        "about 65 seconds more, at the rate of this epoch",  # one of 65 s
    ]
    assert len(said(0.2 / 100, slower={1: 1.4})) == 1
    assert len(said(0.05 / 100, slower={2: 3.0})) == 1  # 45 s are left


def test_short_trainings_say_nothing(said: Callable[..., list[str]]) -> None:
    assert not said(0.009 / 100)
    assert said(0.015 / 100) == ["about 20 seconds: 4 epochs of 59,000 pictures, 12,917 a second, then 70,000 codes"]


def test_of_a_long_training_on_a_processor_it_says_what_would_be_sooner(said: Callable[..., list[str]]) -> None:
    assert said(0.26 / 100)[1].startswith("sooner would be ") and len(said(0.23 / 100)) == 1  # 317 s, and 280 s
    assert len(said(0.26 / 100, device="cuda")) == 1
    with torch.device("meta"):
        cost, small = (
            training_operations(HashNet(replace(MODEL, backbone=name)), (1, 28, 28))
            for name in ("resnet9", "small-resnet")
        )
    steps, each = [cost] * BATCHES * EPOCHS, 31 / cost
    assert said(each, steps)[0].startswith("about 10.5 hours: ")
    assert said(each, steps)[1] == "sooner would be `backbone` small-resnet (less precise) or fewer `epochs`"
    assert said(each, steps, weights="w.safetensors")[1] == "sooner would be fewer `epochs`"
    assert said(each, [small] * BATCHES * EPOCHS)[1] == "sooner would be fewer `epochs`"


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_is_named_where_the_processor_has_it_and_it_is_off(
    said: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, has: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has})
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    more = " or `amp`" if has else ""
    assert said(3 / 100, weights="w.safetensors", amp=False)[1].endswith("fewer `epochs`" + more)
    assert "amp" not in said(3 / 100)[1]


def test_nothing_of_it_draws_random_numbers(said: Callable[..., list[str]]) -> None:
    before = torch.get_rng_state()
    assert "small-resnet" in said(3 / 100, [10**9] * BATCHES * EPOCHS)[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_the_command_says_it_with_its_options_and_not_where_it_is_quiet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_TIMED", "_SHORT", "_LONG"):
        monkeypatch.setattr(estimate, name, 0.0)
    words = ["train", "digits", "--epochs", 2, "--batch-size", 64, "--device", "cpu", "--no-tensorboard", "--out"]
    said = dsh(*words, tmp_path / "told").stderr.splitlines()
    times, sooner = (line for line in said if line.startswith(("about ", "sooner ")))
    assert "seconds: 2 epochs of 1,280 pictures, " in times and times.endswith(" a second, then 1,797 codes")
    assert said.index(times) < next(place for place, line in enumerate(said) if line.startswith("epoch 1/2"))
    assert "fewer --epochs" in sooner and "`" not in sooner
    assert dsh(*words, tmp_path / "quiet", "--quiet").stderr == ""
