"""The alarm of a collapse: told from health at the end of a training, and what is to be tried."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsh_cli import TrainConfig, load_splits, mean_average_precision, train
from dsh_cli.analysis.classes import class_table
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.runs.run import Run
from dsh_cli.show.alarm import CollapseAlarm
from dsh_cli.training.events import TrainResult
from dsh_cli.training.recipe import settle

CONFIG = TrainConfig(data="digits", device="cpu", tensorboard=False)
LABELS = [*range(10)] * 10
ONE, PARTED = [7] * 100, LABELS  # codes of pictures with these labels
FEW = [[0, 1, 2, 3][label % 4] for label in LABELS]


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(CONFIG)


@pytest.fixture
def said(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the alarm says of a training that ends with such codes, of its training and of its test pictures."""

    def of(
        numbers: Sequence[int],
        labels: Sequence[int] = LABELS,
        bits: int = 8,
        test: Sequence[int] | None = None,
        **changes: Any,
    ) -> str:
        spoken: list[str] = []
        classes = tuple(map(str, range(max(labels) + 1)))

        def codes(split: str) -> CodeSet:
            chosen = test if test is not None and split == "test" else numbers
            return CodeSet(bits, np.array(chosen, np.uint8)[:, None], np.array(labels), classes, ())

        config = replace(settle(CONFIG, splits), bits=bits, **{"margin": 2.0 * bits, **changes})
        run = Run(Path("run"), config, ModelConfig("airbench", bits, 1, 8), classes, "", "", {}, {}, {})
        monkeypatch.setattr(Run, "codes", lambda self, split: codes(split))
        value = mean_average_precision(codes("test"), codes("train"))
        result = TrainResult(run, 1.0, 1.0, value, class_table(codes("test"), "test"))
        CollapseAlarm(spoken.append, splits).on_end(result)
        return " ".join(spoken)

    return of


def test_the_alarm_tells_collapse_from_health(said: Any) -> None:
    assert said(ONE) == (
        "collapse: the 100 training pictures of 10 classes share 1 code. "
        "Look whether the labels fit the pictures, or try more `epochs`"
    )
    assert "share 4 codes, and 30% have the same" in said(FEW)
    assert said([1] * 60 + [2, 4, 8, 16, 32, 64, 128, 255] * 5)  # most have one code
    assert not said(PARTED)
    assert not said([0, 255] * 50, [0, 1] * 50)


def test_a_code_that_most_pictures_have_is_no_collapse_where_most_are_of_its_class(said: Any) -> None:
    few = [0] * 3
    assert not said([7] * 97 + few, [0] * 97 + [1] * 3)
    assert not said([7] * 94 + few + [255] * 3, [0] * 94 + [1] * 3 + [2] * 3)
    assert said([7] * 97 + few)
    assert said(ONE, [0] * 99 + [1])  # all the same, though their mAP is .98


def test_codes_that_are_many_and_tell_nothing_of_their_class_are_told(said: Any) -> None:
    rng = np.random.default_rng(0)
    labels = [*range(10)] * 100
    at_random = rng.integers(256, size=1000).tolist()
    told = said(labels, labels, test=at_random)
    assert "codes tell nothing of their classes: mAP 0." in told and " by chance. Look whether" in told
    assert said([0, 1] * 500, [0, 1] * 500, test=at_random)
    own = [label if label < 3 else code for label, code in zip(labels, at_random, strict=True)]
    assert not said(labels, labels, test=own)  # three classes of ten have learned theirs
    many = [*range(100)] * 10
    hard = [label if rng.random() < 0.3 else int(rng.integers(256)) for label in many]
    assert not said(many, many, test=hard)  # little, of many classes, is more than nothing


@pytest.mark.parametrize("labels", [[*range(10)] * 2, [0, 1] * 5, [0, 1, 2, 3] * 3])
def test_of_few_pictures_nothing_is_said_that_chance_may_have_done(said: Any, labels: list[int]) -> None:
    assert not said(labels, labels)
    unlike = np.random.default_rng(1).permutation(labels).tolist()
    assert not said(labels, labels, test=unlike)


def test_what_is_not_the_default_is_named_with_what_would_be(said: Any, splits: Splits) -> None:
    rate = settle(CONFIG, splits).lr
    assert said(ONE, lr=1e-5, clip=1e-12).endswith(
        f"Try the defaults, in brackets, of `lr` 1e-05 ({rate:g}), `clip` 1e-12 (none); "
        "or look whether the labels fit the pictures"
    )
    of_pairs = said(ONE, centers="none", margin=1e-6, smoothing=0.3)  # which that loss does not have
    assert "`margin` 1e-06 (16)" in of_pairs and "smoothing" not in of_pairs


def said_of(splits: Splits, folder: Path, **changes: Any) -> list[str]:
    """What the alarm says of a training."""
    spoken: list[str] = []
    listeners = [CollapseAlarm(spoken.append, splits)]
    train(replace(CONFIG, **changes), splits, str(folder / "run"), listeners=listeners)
    return spoken


FEW_AT_FIRST = {"epochs": 6, "backbone": "small-resnet", "optimizer": "sgd", "lr": 1.0}  # four codes after two epochs
LATE = {"epochs": 8, "lr": 3.0}  # nothing until the rate has fallen


@pytest.mark.parametrize("changes", [{"epochs": 1}, {"epochs": 6}, FEW_AT_FIRST, LATE])
def test_a_training_that_ends_well_is_not_told(splits: Splits, tmp_path: Path, changes: dict[str, Any]) -> None:
    assert not said_of(splits, tmp_path, seed=5, **changes)


@pytest.mark.parametrize("changes", [{"lr": 100.0}, {"margin": 1e-6}])
def test_a_real_collapse_is_told(splits: Splits, tmp_path: Path, changes: dict[str, float]) -> None:
    (told,) = said_of(splits, tmp_path, epochs=4, **changes)
    (name,) = changes
    assert told.startswith("collapse: the 1,295 training pictures of 10 classes share ") and f"`{name}` " in told


def test_labels_at_random_are_told(splits: Splits, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def shuffled(dataset: Dataset) -> Dataset:
        return replace(dataset, labels=rng.permutation(dataset.labels))

    of_none = replace(splits, train=shuffled(splits.train), test=shuffled(splits.test))
    (told,) = said_of(of_none, tmp_path)
    assert "codes tell nothing of their classes" in told and "Look whether the labels fit the pictures" in told
