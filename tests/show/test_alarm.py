"""The alarm of a collapse: told from health, once, and while it trains."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig
from dsh_cli.data.splits import Splits
from dsh_cli.runs.run import Run
from dsh_cli.show.alarm import CollapseAlarm
from dsh_cli.training.events import EpochStats, Plan
from dsh_cli.training.recipe import settle
from tests.support.runs import LOSS

CONFIG = TrainConfig(data="digits", epochs=3, batch_size=64, device="cpu", tensorboard=False)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(CONFIG)


def alarm_for(
    numbers: list[int], classes: int = 0, epoch: int = 4, bits: int = 8, labels: Sequence[int] | None = None
) -> list[str]:
    """What the alarm says after an epoch with these validation codes."""
    said: list[str] = []
    alarm = CollapseAlarm(said.append)
    config, model = replace(settle(CONFIG, load_splits(CONFIG)), epochs=5), ModelConfig("small-resnet", bits, 1, 8)
    run = Run(Path("run"), config, model, (), "", "", {}, {}, {})
    alarm.on_start(Plan(run, "cpu", 100, 64, 0))
    packed = np.array(numbers, np.uint8)[:, None]
    of_class = np.arange(len(packed)) % classes if labels is None else np.array(labels)
    codes = CodeSet(bits, packed, of_class, tuple(map(str, range(of_class.max() + 1))), ())
    stats = EpochStats(epoch, LOSS, 1.0, codes, 0.1)
    alarm.on_epoch(stats)
    alarm.on_epoch(stats)
    return said


def test_the_alarm_tells_collapse_from_health() -> None:
    assert len(alarm_for([7] * 100, 10)) == 1  # said once
    assert "share 1 code, and 100% have the same" in alarm_for([7] * 100, 10)[0]
    assert "`lr`" in alarm_for([7] * 100, 10)[0]
    assert alarm_for([1] * 60 + [2, 4, 8, 16, 32, 64, 128, 255] * 5, 10)  # most have one code
    assert not alarm_for(list(range(10)) * 10, 10)
    assert not alarm_for([0, 255] * 50, 2)
    assert not alarm_for([7] * 100, 10, epoch=1)  # too early to say


def test_a_code_that_most_pictures_have_is_no_collapse_where_most_are_of_its_class() -> None:
    few = [0] * 3
    assert not alarm_for([7] * 97 + few, labels=[0] * 97 + [1] * 3)
    assert not alarm_for([7] * 30, labels=[0] * 30, classes=2)  # of the other class none is held out
    assert not alarm_for([7] * 94 + few + [255] * 3, labels=[0] * 94 + [1] * 3 + [2] * 3)
    assert alarm_for([7] * 97 + few, labels=[*range(10)] * 10)
    assert alarm_for([7] * 100, labels=[0] * 97 + [1] * 3)


def test_a_real_collapse_is_noticed_while_it_trains(splits: Splits, tmp_path: Path) -> None:
    said: list[str] = []
    config = replace(CONFIG, epochs=3, alpha=50.0)  # nothing but quantization counts
    train(config, splits, str(tmp_path / "run"), listeners=[CollapseAlarm(said.append)])
    assert len(said) == 1 and said[0].startswith("collapse: after epoch ")
