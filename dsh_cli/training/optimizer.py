"""The optimizer of a training, and the course of its learning rate."""

from __future__ import annotations

import torch

from dsh_cli.config import Recipe
from dsh_cli.network.model import HashNet

_STEP_AT = (0.6, 0.85)  # shares of the training at which the `step` schedule divides the rate by ten
_MOMENTUM = 0.9  # of SGD, as in the DSH authors' released code
# What each keeps of a parameter: scalars, and what has the parameter's shape.
MOMENTS = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
COUNTS = ("step",)  # the scalars


def make_optimizer(net: HashNet, config: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe, for what of the network is to learn."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, momentum=_MOMENTUM, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The course of the learning rate over so many steps."""
    # Schedulers plan one step more than is taken, for `step` is also called after the last batch.
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=steps + 1)
    drops = [int(steps * share) for share in _STEP_AT] if config.schedule == "step" else []
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, drops)
