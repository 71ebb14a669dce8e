"""The objectives term by term, and another in its place: what the loop, the terminal and TensorBoard make of it."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.codes.bits import unpack
from dsh_cli.codes.centers import construct, minimum_distance, offsets
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.errors import RunError
from dsh_cli.runs.folders import created
from dsh_cli.runs.run import Run
from dsh_cli.show.progress import Lines, epoch_line
from dsh_cli.show.tensorboard import TensorBoard
from dsh_cli.training.events import EpochStats, Loss, Plan, Quiet
from dsh_cli.training.objective import CenterObjective, DshObjective, Objective, Terms, make_objective
from dsh_cli.training.recipe import require_known_loss
from dsh_cli.training.terms import choice_term, choices, dsh_loss
from tests.support.runs import LOSS
from tests.support.values import there

# Hash centers, or DSH


@pytest.fixture
def digits() -> Dataset:
    """Thirty pictures of three of four classes; the fourth is held out."""
    return made()


def made() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    labels = np.array([0, 1, 3])[np.arange(30) % 3]
    return Dataset(images, labels, ("a", "b", "c", "d"), tuple(map(str, range(30))), "made")


def run_of(folder: Path, bits: int = 8, **recipe: Any) -> Run:
    """An unfinished run of four classes."""
    asked = {"bits": bits, "backbone": "dsh-cnn", "image_size": 8, "margin": 2.0 * bits, "centers": "auto"}
    config = Recipe(**{**asked, "epochs": 16, "smoothing": 0.2, **recipe})
    with created(config, ModelConfig("dsh-cnn", bits, 1, 8), Splits(made(), made(), made()), folder) as run:
        return run


def as_it_is(run: Run) -> Run:
    """The run as its folder has it by now, some of its training done."""
    run.write_state({"epochs_done": torch.tensor(1)}, epochs_done=1)
    return replace(Run.open(run.path), place=run.place)


def objective_of(run: Run, dataset: Dataset) -> Objective:
    return make_objective(run, dataset, torch.device("cpu"))


def centers_of(run: Run, dataset: Dataset) -> CenterObjective:
    objective = objective_of(run, dataset)
    assert isinstance(objective, CenterObjective)
    return objective


def test_the_loss_is_the_choice_of_a_center_alone(tmp_path: Path, digits: Dataset) -> None:
    objective = centers_of(run_of(tmp_path / "run", smoothing=0.1), digits)
    assert objective.told == "hash centers: distance 5 of at most 5 between classes"
    assert objective.weights == {"choice": None} and objective.settings == ("smoothing",)
    assert objective.centers.shape == (3, 8) and set(objective.centers.flatten().tolist()) == {-1, 1}
    relaxed = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    terms = objective(relaxed, torch.tensor([0, 3, 3, 1, 0]))
    rows = torch.tensor([0, 2, 2, 1, 0])  # of the classes seen, the third of which is d
    scale = math.log(2 * 9) / (2 * 5)  # one of three centers is chosen with 9 to 1 by a picture on it
    targets = choices(objective.centers, scale)[rows]
    expected = choice_term(relaxed, targets, objective.centers, objective.offsets, scale)
    assert (
        float(terms.total) == float(terms.named["choice"]) == pytest.approx(float(expected)) and len(terms.named) == 1
    )


@pytest.mark.parametrize(("bits", "distance", "largest"), [(8, 5, 0.3 * 5 / 12), (48, 32, 0.3), (18, 12, 0.3)])
def test_offsets_are_small_where_centers_are_close(
    tmp_path: Path, digits: Dataset, bits: int, distance: int, largest: float
) -> None:
    objective = centers_of(run_of(tmp_path / "run", bits), digits)
    words = (objective.centers.numpy() > 0).astype(np.uint8)
    assert minimum_distance(words) == distance and float(objective.offsets.abs().max()) == pytest.approx(largest)
    assert objective.offsets.numpy() == pytest.approx(largest * offsets(words), abs=1e-6)


def test_codes_have_the_offsets_that_the_loss_does_not_see(tmp_path: Path, digits: Dataset) -> None:
    """Of 48 bits three centers span two directions: what the offsets have beside these no step would come to."""
    objective, layer = centers_of(run_of(tmp_path / "run", 48), digits), nn.Linear(5, 48)
    seen = torch.linalg.pinv(objective.centers) @ objective.centers @ objective.offsets
    assert (objective.offsets - seen).norm() > 0.9 * objective.offsets.norm()
    objective.begin(layer)
    assert torch.equal(layer.bias, -objective.offsets) and not layer.weight.any()
    layer.zero_grad()
    objective(layer(torch.randn(30, 5)), torch.tensor([0, 1, 3] * 10)).total.backward()  # type: ignore[no-untyped-call]
    assert layer.bias.grad is not None
    unseen = objective.offsets - seen
    assert abs(float(layer.bias.grad @ unseen)) < 1e-5 * float(layer.bias.grad.norm() * unseen.norm()) + 1e-9


def test_which_class_has_which_center_is_drawn_by_the_seed(tmp_path: Path, digits: Dataset) -> None:
    found = [centers_of(run_of(tmp_path / str(seed), 48, seed=seed), digits).centers for seed in (3, 4)]
    again = centers_of(run_of(tmp_path / "again", 48, seed=3), digits).centers
    assert torch.equal(found[0], again) and not torch.equal(found[0], found[1])
    words = {tuple(word) for word in construct(48, 3, 3).words.tolist()}
    assert {tuple(word) for word in ((found[0] + 1) / 2).int().tolist()} <= words
    saved = there(Run.open(tmp_path / "3").centers())
    assert (2.0 * unpack(saved[[0, 1, 3]], 48) - 1 == found[0].numpy()).all()
    assert not saved[2].any()  # of the class held out


def test_a_resumed_run_goes_on_with_its_centers(tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run")
    first = centers_of(run, digits)
    later = centers_of(as_it_is(run), digits)
    assert torch.equal(later.centers, first.centers) and torch.equal(later.offsets, first.offsets)
    run.write_centers(255 - there(as_it_is(run).centers()))  # which a new draw would not give
    again = centers_of(as_it_is(run), digits)
    assert torch.equal(again.centers, -first.centers)
    (run.path / "centers.safetensors").unlink()
    with pytest.raises(RunError, match=r"centers.safetensors is missing.*dsh train --like"):
        objective_of(as_it_is(run), digits)


def test_a_run_that_an_earlier_version_began_is_trained_anew(tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run", smoothing=None)
    with pytest.raises(RunError, match=r"begun by an earlier version.*train anew with: dsh train --like .*run$"):
        require_known_loss(run)
    of_pairs = run_of(tmp_path / "pairs", smoothing=None, centers="none")
    require_known_loss(of_pairs)
    assert isinstance(objective_of(of_pairs, digits), DshObjective)


@pytest.mark.parametrize(
    ("bits", "told"),
    [
        (8, "hash centers are off: the loss is over pairs, margin 7, alpha 0.02"),
        (1, "hash centers are off: 3 classes cannot have different codes of 1 bits"),
    ],
)
def test_without_centers_the_loss_is_dsh(tmp_path: Path, digits: Dataset, bits: int, told: str) -> None:
    run = run_of(tmp_path / "run", bits, centers="none", margin=7.0, alpha=0.02)
    objective = objective_of(run, digits)
    assert objective.told == told and objective.settings == ("margin", "alpha")
    assert objective.weights == {"pair": None, "quantization": 0.02} and not run.has_centers
    relaxed = torch.randn(5, bits, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 3, 3, 1, 0])
    terms = objective(relaxed, labels)
    loss, pair, quantization = dsh_loss(relaxed, labels, 7.0, 0.02)
    assert (float(terms.total), dict(terms.named)) == (float(loss), {"pair": pair, "quantization": quantization})


# Another in its place


class Other:
    """Draws outputs to 1; knows no classes."""

    def begin(self, hash_layer: nn.Linear) -> None:
        pass

    weights: Mapping[str, float | None] = {"pull": None, "size": 0.5}
    told = "another objective"
    settings = ("lr", "clip")

    def __init__(self, run: Run, dataset: Dataset, device: torch.device) -> None:
        pass

    def __call__(self, relaxed: Tensor, labels: Tensor) -> Terms:
        pull, size = (relaxed - 1).square().mean(), relaxed.abs().mean()
        return Terms(pull + 0.5 * size, {"size": size, "pull": pull})


class Keep(Quiet):
    def on_start(self, plan: Plan) -> None:
        self.plan = plan
        self.all: list[EpochStats] = []

    def on_epoch(self, stats: EpochStats) -> None:
        self.all.append(stats)


def test_nothing_but_the_objective_knows_what_terms_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.training.loop.make_objective", lambda *of, **_: Other(*of[:3]))
    config = TrainConfig(data="digits", epochs=2, batch_size=64, device="cpu")
    said: list[str] = []
    keep = Keep()
    train(config, load_splits(config), str(tmp_path / "run"), listeners=[keep, Lines(said.append), TensorBoard()])
    assert said[0] == "another objective"
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
        (Loss(2.5, {"pair": 2.0, "quantization": 50.0, "more": 0.0}, {}), "loss 2.500 = pair 2.000 + 0.01 x 50.00"),
        (
            Loss(3.0, {"pair": 2.0, "quantization": 50.0, "more": 0.5}, {}),
            "= pair 2.000 + 0.01 x 50.00 + more 0.500",
        ),
        (
            Loss(0.0, {"pair": 0.0, "quantization": 0.0, "more": 0.0}, {}),
            "= pair 0.000 + 0.01 x 0.00  ",
        ),
        (Loss(0.5, {"choice": 0.5}, {}), "loss 0.500  "),
    ],
)
def test_a_line_says_the_loss_as_the_sum_of_its_terms(digits_run: Path, loss: Loss, said: str) -> None:
    weighed = Loss(loss.total, loss.terms, {"choice": None, "pair": None, "quantization": 0.01, "more": None})
    run = Run.open(digits_run)
    stats = EpochStats(1, weighed, 100.0, run.codes("validation"), None)
    plan = Plan(run, "cpu", 10, 64, 0)
    assert said in epoch_line(stats, plan)
    assert "=" not in epoch_line(stats, plan, narrow=True)
    assert Console(width=80).measure(epoch_line(stats, plan, narrow=True)).maximum < 80


@pytest.mark.parametrize(
    ("codes", "labels", "said"),
    [
        ([7] * 4, [0, 1, 2, 3], " (1 code)"),
        ([7, 7, 7, 9], [0, 0, 1, 1], ""),
        ([7] * 4, [0] * 4, ""),
        ([1, 1, 2, 2, 2, 2], [*range(6)], " (2 codes)"),
        ([1, 2, 3, 3, 3, 3], [*range(6)], ""),
    ],
)
def test_a_line_says_how_few_codes_there_are(codes: list[int], labels: list[int], said: str) -> None:
    made = CodeSet(8, np.array(codes, np.uint8)[:, None], np.array(labels), (), ())
    run = Run(Path(), Recipe(epochs=2), ModelConfig("dsh-cnn", 8, 1, 8), (), "", "", {}, {}, {})
    line = epoch_line(EpochStats(1, LOSS, 10.0, made, 0.25), Plan(run, "cpu", 2, 5, 0))
    assert line.endswith(f"val. mAP 0.250{said}  10 img/s")
