"""The loss against its formula written as a double loop, and its gradient against finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dsh_cli.codes.centers import drawn
from dsh_cli.training.terms import choice_scale, choice_term, choices, dsh_loss, pair_term, quantization_term


def slow_dsh_loss(relaxed: Tensor, labels: Tensor, margin: float, alpha: float) -> float:
    """Equation 3 of the paper, pair by pair."""
    total, pairs = 0.0, 0
    for i in range(len(relaxed)):
        for j in range(i + 1, len(relaxed)):
            distance = float(((relaxed[i] - relaxed[j]) ** 2).sum())
            same = labels[i] == labels[j]
            total += 0.5 * distance if same else 0.5 * max(margin - distance, 0)
            total += alpha * float(((relaxed[i].abs() - 1).abs()).sum() + ((relaxed[j].abs() - 1).abs()).sum())
            pairs += 1
    return total / pairs


@pytest.mark.parametrize("bits", [1, 8, 48])
@pytest.mark.parametrize("classes", [1, 3, 20])
def test_equals_the_double_loop(bits: int, classes: int) -> None:
    rng = torch.Generator().manual_seed(bits * classes)
    relaxed = torch.randn(20, bits, generator=rng, dtype=torch.float64)
    labels = torch.randint(classes, (20,), generator=rng)
    loss, pair, quantization = dsh_loss(relaxed, labels, margin=2 * bits, alpha=0.01)
    assert float(loss) == pytest.approx(slow_dsh_loss(relaxed, labels, 2 * bits, 0.01), abs=1e-12)
    assert float(loss) == pytest.approx(float(pair + 0.01 * quantization))


def test_two_opposite_codes_of_two_classes_cost_nothing() -> None:
    relaxed = torch.tensor([[1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, 1.0, 1.0]])
    loss, _, _ = dsh_loss(relaxed, torch.tensor([0, 1]), margin=8.0, alpha=0.01)
    assert float(loss) == 0  # Hamming distance k / 2 is squared distance 2k, the margin


def test_equal_outputs_of_one_class_cost_only_quantization() -> None:
    relaxed = torch.full((4, 3), 0.5)
    assert float(pair_term(relaxed, torch.zeros(4), margin=6.0)) == 0
    assert float(quantization_term(relaxed)) == pytest.approx(2 * 3 * 0.5)


def test_gradient_equals_finite_differences() -> None:
    rng = torch.Generator().manual_seed(0)
    relaxed = torch.randn(7, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    assert torch.autograd.gradcheck(lambda x: dsh_loss(x, labels, 10.0, 0.01)[0], (relaxed,))


def test_needs_no_tensor_of_all_pairs_and_bits() -> None:
    """2,000 outputs of 1,024 bits: an n x n x k tensor would take 16 GB."""
    relaxed = torch.randn(2000, 1024)
    assert torch.isfinite(pair_term(relaxed, torch.arange(2000) % 10, margin=2048.0))


def test_the_choice_of_a_center_is_by_inner_products_of_moved_outputs() -> None:
    """Against a slow loop: the target is what the own center would choose."""
    rng = torch.Generator().manual_seed(0)
    relaxed, offsets = torch.randn(7, 8, generator=rng, dtype=torch.float64)[:6], torch.linspace(-0.3, 0.3, 8).double()
    centers = torch.randn(3, 8, generator=rng, dtype=torch.float64).sign()
    labels = torch.arange(6) % 2  # centers of classes that are not in the batch count too

    def probabilities(outputs: list[float]) -> list[float]:
        chosen = [math.exp(0.4 * sum(a * b for a, b in zip(outputs, row, strict=True))) for row in centers.tolist()]
        return [value / sum(chosen) for value in chosen]

    total = 0.0
    for output, label in zip((relaxed + offsets).tolist(), labels.tolist(), strict=True):
        wanted, found = probabilities(centers[label].tolist()), probabilities(output)
        total -= sum(target * math.log(value) for target, value in zip(wanted, found, strict=True))
    assert float(choice_term(relaxed, choices(centers, 0.4)[labels], centers, offsets, 0.4)) == pytest.approx(
        total / 6, abs=1e-12
    )


@pytest.mark.parametrize("classes", [2, 10])
def test_a_picture_on_its_center_chooses_others_as_often_as_the_smoothing_says(classes: int) -> None:
    """Where all other centers are as far as the closest; label smoothing then, of equal shares."""
    words = torch.eye(classes) if classes > 2 else torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    centers = 2 * words - 1  # any two differ in two bits
    scale = choice_scale(classes, 2, 0.2)
    chosen = choices(centers, scale)
    assert chosen.diagonal().numpy() == pytest.approx(0.8, rel=1e-5)
    cost = choice_term(centers, chosen, centers, torch.zeros(centers.shape[1]), scale)
    assert float(cost) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2 / (classes - 1)), rel=1e-5)


def test_outputs_that_cost_least_are_the_centers_in_every_bit() -> None:
    """With unequal distances between centers too: equal shares of the target leave bits at a tenth there."""
    centers = torch.from_numpy(drawn(8, 10).astype(np.float64)) * 2 - 1
    assert len({int(distance) for row in (centers @ centers.T) for distance in row}) > 2
    relaxed = torch.zeros(10, 8, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([relaxed], max_iter=300, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        descent.zero_grad()
        scale = choice_scale(10, 4, 0.2)
        term = choice_term(relaxed, choices(centers, scale), centers, torch.zeros(8, dtype=torch.float64), scale)
        term.backward()  # type: ignore[no-untyped-call]
        return term

    descent.step(cost)  # type: ignore[no-untyped-call]
    assert (relaxed.detach() * centers).numpy() == pytest.approx(1, abs=0.01)
