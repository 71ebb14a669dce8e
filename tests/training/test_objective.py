"""Another objective in place of DSH: what the loop, the terminal and TensorBoard make of its terms."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.data.dataset import Dataset
from dsh_cli.network.model import HashNet
from dsh_cli.runs.run import Run
from dsh_cli.show.progress import Lines, epoch_line
from dsh_cli.show.tensorboard import TensorBoard
from dsh_cli.training.events import EpochStats, Loss, Plan, Quiet
from dsh_cli.training.objective import Terms


class Other:
    """Draws outputs to 1; knows no classes."""

    weights: Mapping[str, float | None] = {"pull": None, "size": 0.5}
    told = "another objective"
    prepared: list[int] = []

    def __init__(self, run: Run, dataset: Dataset, batches: int, device: torch.device) -> None:
        self.prepared.clear()

    def prepare(self, net: HashNet, epoch: int) -> None:
        self.prepared.append(epoch)

    def __call__(self, relaxed: Tensor, labels: Tensor, epoch: float) -> Terms:
        pull, size = (relaxed - 1).square().mean(), relaxed.abs().mean()
        return Terms(pull + 0.5 * size, {"size": size, "pull": pull})

    def settings(self) -> tuple[str, ...]:
        return ("lr", "clip")


class Keep(Quiet):
    def on_start(self, plan: Plan) -> None:
        self.plan = plan
        self.all: list[EpochStats] = []

    def on_epoch(self, stats: EpochStats) -> None:
        self.all.append(stats)


def test_nothing_but_the_objective_knows_what_terms_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.training.loop.DshObjective", Other)
    config = TrainConfig(data="digits", epochs=2, batch_size=64, device="cpu")
    said: list[str] = []
    keep = Keep()
    train(config, load_splits(config), str(tmp_path / "run"), listeners=[keep, Lines(said.append), TensorBoard()])
    assert Other.prepared == [0, 1] and said[0] == "another objective"
    for stats, line in zip(keep.all, said[1:], strict=True):
        pull, size = stats.loss.terms["pull"], stats.loss.terms["size"]
        assert stats.loss.total == pytest.approx(pull + 0.5 * size, rel=1e-4)
        assert f"loss {stats.loss.total:.3f} = pull {pull:.3f} + 0.5 x {size:.2f}  val" in line
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")}
    assert tags == {"loss/total", "loss/pull", "loss/size", "loss/size_weighted"}


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (Loss(2.5, {"pair": 2.0, "quantization": 50.0, "centers": 0.0}, {}), "loss 2.500 = pair 2.000 + 0.01 x 50.00"),
        (
            Loss(3.0, {"pair": 2.0, "quantization": 50.0, "centers": 0.5}, {}),
            "= pair 2.000 + 0.01 x 50.00 + centers 0.500",
        ),
        (
            Loss(0.0, {"pair": 0.0, "quantization": 0.0, "centers": 0.0}, {}),
            "= pair 0.000 + 0.01 x 0.00  ",
        ),
    ],
)
def test_a_line_says_the_loss_as_the_sum_of_its_terms(digits_run: Path, loss: Loss, said: str) -> None:
    weighed = Loss(loss.total, loss.terms, {"pair": None, "quantization": 0.01, "centers": None})
    run = Run.open(digits_run)
    stats = EpochStats(1, weighed, 100.0, run.codes("validation"), None)
    plan = Plan(run, "cpu", 10, 64, 0)
    assert said in epoch_line(stats, plan)
    assert "=" not in epoch_line(stats, plan, narrow=True)
    assert Console(width=80).measure(epoch_line(stats, plan, narrow=True)).maximum < 80
