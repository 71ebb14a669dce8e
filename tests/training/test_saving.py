"""What a training saves as it goes: where its folder is gone, in the middle of an epoch, and at Ctrl-C."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.data.splits import Splits
from dsh_cli.errors import RunError
from dsh_cli.runs import folders
from dsh_cli.training import loop, measuring
from dsh_cli.training.events import EpochStats, Quiet, TrainResult
from tests.support.commands import DIGITS, dsh, one_line_error

CONFIG = TrainConfig(data="digits", epochs=2, batch_size=64, device="cpu", tensorboard=False)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_splits(CONFIG)


def deleted(run: Path) -> None:
    shutil.rmtree(run)


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def replaced(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))
    run.mkdir()
    (run / ".lock").write_bytes(b"of another")


def emptied(run: Path) -> None:
    for path in run.iterdir():
        path.unlink()


class AfterFirst(Quiet):
    """Does something to the folder of a run once its first epoch is saved."""

    def __init__(self, run: Path, harm: Callable[[Path], None]) -> None:
        self.run, self.harm = run, harm

    def on_epoch(self, stats: EpochStats) -> None:
        if stats.epoch == 1:
            self.harm(self.run)


@pytest.mark.parametrize("harm", [deleted, moved, replaced, emptied])
def test_a_run_whose_folder_is_gone_ends_at_the_next_saving(
    splits: Splits, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    config = replace(CONFIG, centers="none")
    with pytest.raises(RunError, match=f"^{run} was deleted, moved or replaced while it was trained"):
        train(config, splits, str(run), listeners=[AfterFirst(run, harm)])
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    saved = [f"elsewhere/{name}" for name in (".lock", "config.json", "metrics.json", "splits.json")]
    # the lock in a folder that took its place is not ours to take away
    expected = {"moved": saved, "replaced": [*saved, "run/.lock"]}.get(harm.__name__, [])
    assert [name for name in left if "state" not in name] == expected
    if harm is moved:
        with folders.resumed(tmp_path / "elsewhere") as part:
            assert part.begun


@pytest.mark.parametrize("tensorboard", ["--tensorboard", "--no-tensorboard"])
@pytest.mark.parametrize("harm", [deleted, replaced])
def test_a_run_whose_folder_is_gone_at_the_end_has_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], tensorboard: str
) -> None:
    measured, run = measuring.measured, tmp_path / "run"

    def then_measured(*args: Any) -> TrainResult:
        harm(run)
        return measured(*args)

    monkeypatch.setattr(loop, "measured", then_measured)
    result = dsh(*DIGITS, "--epochs", 1, tensorboard, "--out", run)
    assert "run was deleted, moved or replaced while it was trained" in one_line_error(result, 1)
    assert sorted(path.name for path in run.rglob("*")) == ([".lock"] if harm is replaced else [])
