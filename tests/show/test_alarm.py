"""The alarm of a collapse: told from health, once, never of what the next epochs mend, and at the end at the latest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsh_cli import TrainConfig, load_splits, mean_average_precision, train
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.runs.run import Run
from dsh_cli.show.alarm import CollapseAlarm
from dsh_cli.training.events import EpochStats, Plan
from dsh_cli.training.recipe import settle
from tests.support.runs import LOSS

CONFIG = TrainConfig(data="digits", device="cpu", tensorboard=False)
LABELS = [*range(10)] * 10
ONE, PARTED = [7] * 100, LABELS  # codes of pictures with these labels
FEW = [[0, 1, 2, 3][label % 4] for label in LABELS]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(CONFIG)


@pytest.fixture(scope="module")
def plan(splits: Splits) -> Plan:
    config, model = settle(CONFIG, splits), ModelConfig("small-resnet", 8, 1, 8)
    return Plan(Run(Path("run"), config, model, (), "", "", {}, {}, {}), "cpu", 100, 64, 0)


def alarms(
    plan: Plan,
    epochs: Sequence[Sequence[int]],
    labels: Sequence[int] = LABELS,
    bits: int = 8,
    first: int = 1,
) -> dict[int, str]:
    """What the alarm says after which epoch, of a training with these codes after each of its last epochs."""
    said: list[str] = []
    found: dict[int, str] = {}
    alarm = CollapseAlarm(said.append)
    config = replace(plan.run.config, bits=bits, epochs=first + len(epochs) - 1)
    alarm.on_start(replace(plan, run=replace(plan.run, config=config)))
    for epoch, numbers in enumerate(epochs, first):
        classes = tuple(map(str, range(max(labels) + 1)))
        codes = CodeSet(bits, np.array(numbers, np.uint8)[:, None], np.array(labels), classes, ())
        alarm.on_epoch(EpochStats(epoch, LOSS, 1.0, codes, mean_average_precision(codes)))
        found |= {epoch: said.pop()} if said else {}
    return found


def test_the_alarm_tells_collapse_from_health(plan: Plan) -> None:
    (told,) = alarms(plan, [ONE]).values()
    assert "after epoch 1 of 1 the 100 validation pictures of 10 classes share 1 code, and 100% have the same" in told
    assert "`lr`" in told
    assert alarms(plan, [FEW])
    assert alarms(plan, [[1] * 60 + [2, 4, 8, 16, 32, 64, 128, 255] * 5])  # most have one code
    assert not alarms(plan, [PARTED])
    assert not alarms(plan, [[0, 255] * 50], [0, 1] * 50)
    assert not alarms(plan, [[7] * 9], [*range(9)])  # too few pictures to tell


def test_a_collapse_that_the_next_epochs_mend_is_none(plan: Plan) -> None:
    assert not alarms(plan, [ONE, ONE, ONE, PARTED, PARTED, PARTED])
    assert not alarms(plan, [PARTED, PARTED, PARTED, ONE, PARTED, PARTED])  # one look is not enough
    assert not alarms(plan, [ONE, ONE, [7] * 60 + [1] * 40, [7] * 50 + [1] * 50, FEW, PARTED])  # better each time


def test_a_collapse_that_stays_is_told_once_and_before_the_end(plan: Plan) -> None:
    assert [*alarms(plan, [ONE] * 6)] == [4]
    assert [*alarms(plan, [ONE] * 7)] == [5]
    assert [*alarms(plan, [PARTED] * 5 + [ONE] * 5)] == [7]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_what_the_last_epoch_leaves_is_told_whatever_was_before(plan: Plan, epochs: int) -> None:
    assert [*alarms(plan, [PARTED] * (epochs - 1) + [ONE])] == [epochs]
    assert [*alarms(plan, [ONE] * (epochs - 1) + [FEW])] == [epochs]


def test_a_resumed_training_is_judged_by_what_it_has_left(plan: Plan) -> None:
    assert [*alarms(plan, [ONE], first=8)] == [8]
    assert [*alarms(plan, [ONE] * 3, first=6)] == [7]
    assert not alarms(plan, [ONE, PARTED], first=7)


def test_a_code_that_most_pictures_have_is_no_collapse_where_most_are_of_its_class(plan: Plan) -> None:
    few = [0] * 3
    assert not alarms(plan, [[7] * 97 + few], [0] * 97 + [1] * 3)
    assert not alarms(plan, [[7] * 30], [0] * 30)  # of the other class none is held out
    assert not alarms(plan, [[7] * 94 + few + [255] * 3], [0] * 94 + [1] * 3 + [2] * 3)
    assert alarms(plan, [[7] * 97 + few])
    assert alarms(plan, [ONE], [0] * 97 + [1] * 3)


def test_codes_that_are_many_and_tell_nothing_of_their_class_are_told(plan: Plan) -> None:
    rng = np.random.default_rng(0)
    at_random = rng.integers(256, size=100).tolist()
    (told,) = alarms(plan, [at_random]).values()
    assert "have codes that tell nothing of their class: mAP 0." in told and "whether the labels fit" in told
    assert alarms(plan, [at_random], [0, 1] * 50)
    own = [label if label < 3 else code for label, code in zip(LABELS, at_random, strict=True)]
    assert not alarms(plan, [own])  # three classes of ten have learned theirs
    labels = [*range(100)] * 4
    hard = [label if rng.random() < 0.3 else int(rng.integers(256)) for label in labels]
    assert not alarms(plan, [hard], labels)  # little, of many classes, is more than nothing


@pytest.mark.parametrize("labels", [[*range(10)], [0, 1] * 5, [0, 1, 2, 3] * 3])
def test_few_pictures_with_codes_of_their_own_class_are_well(plan: Plan, labels: list[int]) -> None:
    assert not alarms(plan, [labels], labels)


def said_of(splits: Splits, folder: Path, **changes: Any) -> list[str]:
    """What the alarm says of a training."""
    said: list[str] = []
    train(replace(CONFIG, **changes), splits, str(folder / "run"), listeners=[CollapseAlarm(said.append)])
    return said


FEW_AT_FIRST = {"epochs": 6, "backbone": "small-resnet", "optimizer": "sgd", "lr": 1.0}  # four codes after two epochs


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"epochs": 6}, FEW_AT_FIRST])
def test_a_training_that_ends_well_is_not_told(splits: Splits, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert not said_of(splits, tmp_path, seed=5, **changes)


@pytest.mark.parametrize("changes", [{"lr": 100.0}, {"margin": 1e-6}])
def test_a_real_collapse_is_told(splits: Splits, tmp_path: Path, changes: dict[str, float]) -> None:
    (told,) = said_of(splits, tmp_path, epochs=4, **changes)
    assert told.startswith("collapse: after epoch 3 of 4 ") and " have the same" in told


def test_labels_at_random_are_told(splits: Splits, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def shuffled(dataset: Dataset) -> Dataset:
        return replace(dataset, labels=rng.permutation(dataset.labels))

    of_none = replace(splits, train=shuffled(splits.train), validation=shuffled(splits.validation))
    (told,) = said_of(of_none, tmp_path, epochs=4)
    assert "Look whether the labels fit the pictures" in told
