"""DSH's objective term by term, and another in its place: what the loop, the terminal and TensorBoard make of it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.codes.bits import unpack
from dsh_cli.codes.centers import assign, construct
from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.errors import RunError
from dsh_cli.network.encoding import Encoder
from dsh_cli.network.model import HashNet
from dsh_cli.runs.folders import created
from dsh_cli.runs.run import Run
from dsh_cli.show.progress import Lines, epoch_line
from dsh_cli.show.tensorboard import TensorBoard
from dsh_cli.training.events import EpochStats, Loss, Plan, Quiet
from dsh_cli.training.objective import DshObjective, Terms, _class_means, _why_no_centers
from dsh_cli.training.terms import center_term, choice_term, dsh_loss
from tests.support.values import there

# DSH with its hash centers


@pytest.fixture
def digits() -> Dataset:
    """Thirty pictures of three of four classes; the fourth is held out."""
    return made()


def made() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    labels = np.array([0, 1, 3])[np.arange(30) % 3]
    return Dataset(images, labels, ("a", "b", "c", "d"), tuple(map(str, range(30))), "made")


def pixels_of(dataset: Dataset) -> NDArray[np.uint8]:
    assert isinstance(dataset.images, np.ndarray)
    return dataset.images


def run_of(folder: Path, bits: int = 8, **recipe: Any) -> Run:
    """An unfinished run of four classes."""
    asked = {
        "bits": bits,
        "backbone": "dsh-cnn",
        "image_size": 8,
        "margin": 2.0 * bits,
        "epochs": 16,
        "centers": "auto",
    }
    config = Recipe(**{**asked, **recipe})
    with created(config, ModelConfig("dsh-cnn", bits, 1, 8), Splits(made(), made(), made()), folder) as run:
        return run


def as_it_is(run: Run) -> Run:
    """The run as its folder has it by now."""
    return replace(Run.open(run.path), place=run.place)


def objective_of(run: Run, dataset: Dataset, batches: int = 4) -> DshObjective:
    return DshObjective(run, dataset, batches, torch.device("cpu"))


def network(run: Run) -> HashNet:
    torch.manual_seed(0)
    return HashNet(run.model).eval()


def test_the_loss_is_the_weighted_sum_of_its_terms_and_centers_are_phased_in(tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run", alpha=0.02, center_weight=0.7)
    objective, net = objective_of(run, digits), network(run)
    assert objective.told == "hash centers: distance 5 of at most 5 between classes"
    assert objective.weights == {"pair": None, "quantization": 0.02, "centers": None}
    assert objective.settings() == ("margin", "alpha")
    labels = torch.tensor([0, 3, 3, 1, 0])
    relaxed = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    for epoch in (0, 1):  # an eighth of 16 epochs
        objective.prepare(net, epoch)
        terms = objective(relaxed, labels, float(epoch))
        assert objective.centers is None and float(terms.named["centers"]) == 0
    objective.prepare(net, 2)
    centers = there(objective.centers)
    assert centers.shape == (3, 8) and set(centers.flatten().tolist()) == {-1, 1}
    assert objective.settings() == ("margin", "alpha", "center_weight")
    rows = torch.tensor([0, 2, 2, 1, 0])  # of the classes seen, the third of which is d
    pairs = center_term(relaxed, rows, centers, min(16.0, 4.0 * 5))
    whole = 0.7 * (pairs + 10 / 3 * choice_term(relaxed, rows, centers, 5))
    for moment, share in ((2.0, 0.0), (2.5, 0.25), (3.0, 0.5), (4.0, 1.0), (9.0, 1.0)):
        terms = objective(relaxed, labels, moment)
        loss, pair, quantization = dsh_loss(relaxed, labels, 16.0, 0.02)
        assert float(terms.named["pair"]) == float(pair) and float(terms.named["quantization"]) == float(quantization)
        assert float(terms.named["centers"]) == pytest.approx(share * float(whole), rel=1e-6)
        assert float(terms.total) == pytest.approx(float(loss) + share * float(whole), rel=1e-6)
    kept = centers.clone()
    objective.prepare(net, 3)
    assert (there(objective.centers) == kept).all()


def test_the_margin_to_centers_is_no_more_than_their_distance(tmp_path: Path, digits: Dataset) -> None:
    """A picture on its center pays nothing for the others: 4 is what one bit adds."""
    run = run_of(tmp_path / "run", margin=100.0)
    objective = objective_of(run, digits)
    objective.prepare(network(run), 2)
    centers, labels = there(objective.centers), torch.tensor([0, 1, 3])
    paid = float(objective(centers, labels, 8.0).named["centers"])
    assert paid == pytest.approx(0.3 * 10 / 3 * float(choice_term(centers, torch.arange(3), centers, 5)), rel=1e-6)


def test_classes_get_the_centers_nearest_to_their_means(tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run", seed=3)
    objective, net = objective_of(run, digits), network(run)
    objective.prepare(net, 2)
    outputs = Encoder(net).relaxed(pixels_of(digits))
    means = np.stack([outputs[digits.labels == label].mean(axis=0) for label in (0, 1, 3)])
    expected = assign(means.astype(np.float32), construct(8, 3, 3).words, 3)
    assert (there(objective.centers).numpy() == 2.0 * expected - 1).all()
    saved = there(as_it_is(run).centers())
    assert (unpack(saved[[0, 1, 3]], 8) == expected).all() and not saved[2].any()  # of the class held out


def test_means_are_of_a_sample(tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path / "run")
    net = network(run)
    monkeypatch.setattr("dsh_cli.training.objective._MEANS", (5, 3))
    rows = np.random.default_rng(7).permutation(30)[: 3 * 4]  # for each class, of which four have names
    outputs = Encoder(net).relaxed(pixels_of(digits)[rows])
    found = _class_means(net, digits, 7)
    for label in (0, 1, 3):
        assert found[label] == pytest.approx(outputs[digits.labels[rows] == label].mean(axis=0), abs=1e-5)
    assert (found[2] == 0).all()
    monkeypatch.setattr("dsh_cli.training.objective._MEANS", (20, 3))
    more = np.random.default_rng(7).permutation(30)[:20]
    outputs = Encoder(net).relaxed(pixels_of(digits)[more])
    assert _class_means(net, digits, 7)[1] == pytest.approx(outputs[digits.labels[more] == 1].mean(axis=0), abs=1e-5)


def test_a_resumed_run_goes_on_with_its_centers(tmp_path: Path, digits: Dataset) -> None:
    run = run_of(tmp_path / "run")
    net = network(run)
    first = objective_of(run, digits)
    first.prepare(net, 2)
    later = objective_of(as_it_is(run), digits)
    later.prepare(net, 5)
    assert (there(later.centers) == there(first.centers)).all()
    kept = there(as_it_is(run).centers())
    run.write_centers(255 - kept)  # which a new assignment would not give
    again = objective_of(as_it_is(run), digits)
    again.prepare(net, 3)
    assert (there(again.centers) == -there(first.centers)).all()
    anew = objective_of(as_it_is(run), digits)
    anew.prepare(net, 2)  # the first epoch with centers gives them out, whatever an interrupted one has left
    assert (there(anew.centers) == there(first.centers)).all() and (there(as_it_is(run).centers()) == kept).all()
    (run.path / "centers.safetensors").unlink()
    with pytest.raises(RunError, match="missing"):
        objective_of(as_it_is(run), digits).prepare(net, 3)


@pytest.mark.parametrize(
    ("recipe", "batches", "told"),
    [
        ({"centers": "none"}, 4, ""),
        ({"center_weight": 0.0}, 4, ""),
        ({"epochs": 1}, 4, "one epoch is too few for them"),
        ({"epochs": 2}, 1, "two epochs of one batch are too few for them"),
        ({"epochs": 2}, 2, None),
        ({"bits": 1}, 4, "3 classes cannot have different codes of 1 bits"),
        ({"bits": 2}, 4, None),
    ],
)
def test_when_there_are_no_centers(
    tmp_path: Path, digits: Dataset, recipe: dict[str, Any], batches: int, told: str | None
) -> None:
    run = run_of(tmp_path / "run", **{"bits": 8, **recipe})
    objective = objective_of(run, digits, batches)
    if told is None:
        assert objective.words is not None and objective.told.startswith("hash centers: distance")
        return
    assert objective.words is None and objective.told == (told and f"hash centers are off: {told}")
    objective.prepare(network(run), 9)
    assert objective.centers is None and not run.has_centers
    assert float(objective(torch.ones(2, run.model.bits), torch.tensor([0, 1]), 9.0).named["centers"]) == 0


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (1, "there is one class"),
        (2, ""),
        (3000, ""),
        (3001, "3,001 classes would take too long, 3,000 at most"),
        (2**14, "16,384 classes would take too long, 3,000 at most"),
        (2**14 + 1, "16385 classes cannot have different codes of 14 bits"),
    ],
)
def test_how_many_classes_have_centers(count: int, why: str) -> None:
    recipe = Recipe(bits=14, epochs=4)
    assert _why_no_centers(recipe, count, 1, 10) == why
    assert _why_no_centers(replace(recipe, epochs=2), 10, 1, 10) == ""


@pytest.mark.parametrize(("epochs", "warm_up"), [(1, 1), (2, 1), (8, 1), (12, 2), (16, 2), (80, 10)])
def test_the_warm_up_is_an_eighth_of_the_epochs(tmp_path: Path, digits: Dataset, epochs: int, warm_up: int) -> None:
    assert objective_of(run_of(tmp_path / "run", epochs=epochs), digits).warm_up == warm_up


# Another in its place


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
