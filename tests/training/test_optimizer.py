"""Muon against its description written slowly, what each optimizer trains, and the courses of their rates."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.network.model import HashNet
from dsh_cli.training.optimizer import COUNTS, Muon, make_optimizers, make_schedules, moments, orthogonal
from tests.support.values import there


def slow_orthogonal(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each singular value s, of all those divided by the Frobenius norm, taken through the polynomial three times."""
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    values = values / (np.linalg.norm(matrix) + 1e-7)
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    whole: NDArray[np.float64] = (u * values) @ v
    return whole


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (6, 6), (16, 40), (40, 16)])
def test_orthogonal_is_a_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonal(matrix)
    assert found.shape == shape and found.numpy() == pytest.approx(slow_orthogonal(matrix.numpy()), abs=1e-9)


@pytest.mark.parametrize("shape", [(64, 216), (216, 64), (16, 144), (256, 2304)])
def test_singular_values_are_brought_near_to_one(shape: tuple[int, int]) -> None:
    """Those of random matrices of such shapes; three rounds leave none of them small, nor any large."""
    matrix = 7 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert float(values.min()) > 0.4 and float(values.max()) < 1.25


def test_no_gradient_gives_no_direction() -> None:
    assert not orthogonal(torch.zeros(4, 9)).any()


def test_steps_of_muon_are_those_of_its_description() -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(6, 4, 3, 3)), rng.normal(size=(4, 6, 4, 3, 3))
    weight = nn.Parameter(torch.tensor(start))
    muon = Muon([weight], lr=0.1, momentum=0.6)
    slow, momentum = start, np.zeros_like(start)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        muon.step()
        momentum = 0.6 * momentum + gradient
        ahead = gradient + 0.6 * momentum  # Nesterov's
        slow = slow / (np.linalg.norm(slow) / 6**0.5)  # a mean norm of 1 a filter
        slow = slow - 0.1 * slow_orthogonal(ahead.reshape(6, 36)).reshape(slow.shape)
        assert weight.detach().numpy() == pytest.approx(slow, abs=1e-9)
    assert muon.state[weight]["momentum_buffer"].numpy() == pytest.approx(momentum, abs=1e-9)


def test_what_takes_no_part_in_the_loss_is_left_alone() -> None:
    used, unused = (nn.Parameter(torch.ones(2, 1, 3, 3)) for _ in range(2))
    muon = Muon([used, unused], lr=0.1)
    used.grad = torch.ones_like(used)
    muon.step()
    assert unused not in muon.state and bool((unused == 1).all()) and not bool((used == 1).any())


def network(backbone: str = "airbench") -> HashNet:
    torch.manual_seed(0)
    return HashNet(ModelConfig(backbone, 8, 1, 16))


def trained_by(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def test_muon_trains_the_convolutions_and_adamw_all_else() -> None:
    net = network()
    muon, beside = make_optimizers(net, Recipe(optimizer="muon", lr=0.5, weight_decay=0.03))
    assert isinstance(muon, Muon) and isinstance(beside, torch.optim.AdamW)
    assert (muon.param_groups[0]["lr"], muon.param_groups[0]["momentum"]) == (0.5, 0.6)
    assert [group["lr"] for group in beside.param_groups] == [0.08 * 0.5, 5.2 * 0.5 / 64]
    assert all(group["weight_decay"] == 0.03 for group in beside.param_groups)
    names: dict[Tensor, str] = {parameter: name for name, parameter in net.named_parameters()}
    by_muon, by_adamw = ({names[one] for one in trained_by(each)} for each in (muon, beside))
    convolutions = {name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    assert by_muon == {f"{name}.weight" for name in convolutions - {"backbone.stem"}} and len(by_muon) == 6
    assert by_adamw >= {"hash_layer.weight", "hash_layer.bias", "backbone.stem.bias"} and len(by_adamw) == 9
    assert by_muon.isdisjoint(by_adamw)
    assert names.keys() - {*trained_by(muon), *trained_by(beside)} == {
        parameter for parameter in net.parameters() if not parameter.requires_grad
    }


def test_each_layer_beside_muon_has_a_rate_by_its_inputs() -> None:
    torch.manual_seed(0)
    _, beside = make_optimizers(HashNet(ModelConfig("airbench", 8, 1, 16, hidden=32)), Recipe(optimizer="muon", lr=0.5))
    rates = {tuple(group["params"][0].shape): group["lr"] for group in beside.param_groups[1:]}
    assert rates == {(32, 64): 5.2 * 0.5 / 64, (8, 32): 5.2 * 0.5 / 32}


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
@pytest.mark.parametrize("backbone", ["airbench", "small-resnet"])
def test_what_an_optimizer_keeps_is_known(optimizer: Any, backbone: str) -> None:
    net = network(backbone)
    made = make_optimizers(net, Recipe(optimizer=optimizer, lr=1e-3))
    net(torch.rand(4, 1, 16, 16)).square().mean().backward()
    for each in made:
        each.step()
    moved = [parameter for each in made for parameter in trained_by(each)]
    assert {id(one) for one in moved} == {id(one) for one in net.parameters() if one.requires_grad}
    assert len(moved) == len({id(one) for one in moved})
    for each in made:
        for parameter in trained_by(each):
            kept = each.state[parameter]
            assert tuple(kept) == moments(each)
            assert all(value.shape == (() if key in COUNTS else parameter.shape) for key, value in kept.items())


# Rates


def rates(schedule: Any, steps: int, optimizer: Any = "muon") -> list[list[float]]:
    """Of each optimizer the rates of the steps, and the one after the last."""
    net = network()
    made = make_optimizers(net, Recipe(optimizer=optimizer, schedule=schedule, lr=0.5))
    planned = make_schedules(made, Recipe(optimizer=optimizer, schedule=schedule, lr=0.5), steps)
    found: list[list[float]] = []
    for _ in range(steps):
        found.append([each.param_groups[0]["lr"] for each in made])
        for each, course in zip(made, planned, strict=True):
            each.step()
            course.step()
    found.append([each.param_groups[0]["lr"] for each in made])
    return [list(of_one) for of_one in zip(*found, strict=True)]


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_linear_course_ends_at_zero(steps: int) -> None:
    for of_one, peak in zip(rates("linear", steps), (0.5, 0.04), strict=True):
        assert of_one == pytest.approx([peak * (1 - step / steps) for step in range(steps + 1)], abs=1e-12)
        assert of_one[-1] == 0 and of_one[-2] > 0


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_other_courses_reach_their_peak_with_every_optimizer(optimizer: Any) -> None:
    one_cycle, stepped, constant = (rates(kind, 40, optimizer) for kind in ("one-cycle", "step", "constant"))
    for of_one, peak in zip(one_cycle, (0.5, 0.04), strict=False):
        assert max(of_one) == pytest.approx(peak, rel=0.01) and of_one[0] < 0.1 * peak and 0 < of_one[-1] < 1e-3 * peak
        assert 0.2 < of_one.index(max(of_one)) / 40 < 0.4
    for of_one, peak in zip(stepped, (0.5, 0.04), strict=False):
        expected = [peak * (0.01 if step >= 34 else 0.1 if step >= 24 else 1) for step in range(41)]
        assert of_one == pytest.approx(expected)
    assert all(set(of_one) == {of_one[0]} for of_one in constant)
    assert len(one_cycle) == (2 if optimizer == "muon" else 1)


def test_momentum_of_muon_stays_as_it_is_in_a_cycle() -> None:
    made = make_optimizers(network(), Recipe(optimizer="muon", schedule="one-cycle", lr=0.5))
    planned = make_schedules(made, Recipe(optimizer="muon", schedule="one-cycle", lr=0.5), 10)
    for _ in range(5):
        for each, course in zip(made, planned, strict=True):
            each.step()
            course.step()
    assert made[0].param_groups[0]["momentum"] == 0.6 and there(made[1].param_groups[0]["betas"])[0] < 0.95
