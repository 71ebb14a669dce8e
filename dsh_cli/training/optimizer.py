"""The optimizers of a training, and the course of their learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from dsh_cli.config import Recipe, Schedule
from dsh_cli.network.model import HashNet

COUNTS = ("step",)  # see `moments`
_STEP_AT = (0.6, 0.85)  # shares of the training at which the `step` schedule divides the rate by ten
_MOMENTUM = 0.9  # of SGD, as in the DSH authors' released code
# Rates of AdamW beside Muon, as shares of its: of biases, and of the hash layer and one before it, times its inputs, of
# which its outputs are sums (Yang et al., *Tensor Programs V*, 2022).
_BIASES, _LAYER = 0.08, 5.2
_MUON_MOMENTUM, _ROUNDS = 0.6, 3  # Jordan's for airbench94_muon
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of x, x^3 and x^5, by Jordan et al., 2024


class Muon(torch.optim.Optimizer):
    """Steps along the momentum of the gradient with all its singular values brought near to 1.

    Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. A convolution's weight counts as a
    matrix of a row a filter. Its size does not matter where BatchNorm follows; each step first brings it to a mean norm
    of 1 a filter, so that the rate is relative to it.

    Args:
        weights: of convolutions that BatchNorm follows.
        lr: the rate.
        dtype: in which singular values are brought near to 1, where not in that of the weights; bfloat16 does.
        momentum: Nesterov's.
    """

    def __init__(
        self, weights: Iterable[Tensor], lr: float, dtype: torch.dtype | None = None, momentum: float = _MUON_MOMENTUM
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                kept = self.state[weight]
                if "momentum_buffer" not in kept:
                    kept["momentum_buffer"] = torch.zeros_like(weight)
                momentum = kept["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
                ahead = weight.grad.add(momentum, alpha=group["momentum"])
                weight.mul_(len(weight) ** 0.5 / weight.norm())
                weight.sub_(orthogonal(ahead.flatten(1).to(self.dtype)).view_as(weight), alpha=group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """An (m, n) matrix with its singular values brought near to 1, the small ones less so: Newton-Schulz iteration."""
    first, third, fifth = _NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x: Tensor = wide / (wide.norm() + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = first * x + (third * square + fifth * square @ square) @ x
    return x if wide is matrix else x.T


def make_optimizers(net: HashNet, config: Recipe) -> list[torch.optim.Optimizer]:
    """The optimizers of a recipe, for what of the network is to learn: with Muon, AdamW for all but convolutions."""
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return [torch.optim.SGD(learning, config.lr, momentum=_MOMENTUM, weight_decay=config.weight_decay)]
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(learning, config.lr, weight_decay=config.weight_decay, fused=True)]
    biases, layers, filters = ([weight for weight in learning if weight.dim() == number] for number in (1, 2, 4))
    rest = [
        {"params": biases, "lr": _BIASES * config.lr},
        *({"params": [layer], "lr": _LAYER * config.lr / layer.shape[1]} for layer in layers),
    ]
    beside = torch.optim.AdamW(rest, weight_decay=config.weight_decay, fused=True)
    return [Muon(filters, config.lr, torch.bfloat16 if config.amp else None), beside]


def make_schedules(optimizers: Sequence[torch.optim.Optimizer], config: Recipe, steps: int) -> list[LRScheduler]:
    """The course of each one's learning rate over so many steps."""
    return [_schedule(optimizer, config.schedule, steps) for optimizer in optimizers]


def _schedule(optimizer: torch.optim.Optimizer, kind: Schedule, steps: int) -> LRScheduler:
    # Schedulers plan one step more than is taken, for `step` is also called after the last batch.
    if kind == "linear":
        return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    if kind == "one-cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, rates, total_steps=steps + 1, cycle_momentum=not isinstance(optimizer, Muon))
    return MultiStepLR(optimizer, [int(steps * share) for share in _STEP_AT] if kind == "step" else [])


def moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """What an optimizer keeps of a parameter: `COUNTS`, which are scalars, and what has the parameter's shape."""
    return ("step", "exp_avg", "exp_avg_sq") if isinstance(optimizer, torch.optim.AdamW) else ("momentum_buffer",)
