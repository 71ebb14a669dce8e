"""Where a training starts: network, normalisation, random numbers, and the state it goes on from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsh_cli.config import ModelConfig, Recipe
from dsh_cli.data.dataset import Dataset
from dsh_cli.data.splits import Splits
from dsh_cli.errors import DataError, RunError
from dsh_cli.network.model import HashNet
from dsh_cli.network.weights import Taken, take_file, take_pretrained
from dsh_cli.runs.run import Run

_SAMPLE = 2000  # pictures in files that mean and deviation are taken from


def starting_network(
    config: Recipe, model: ModelConfig, splits: Splits, resume: Run | None
) -> tuple[HashNet, Taken | None]:
    """The network a training starts from, normalisation included, and what weights it took over."""
    net = HashNet(model)
    net.require_size()
    taken = None
    if resume is None or not resume.begun:  # else all comes from its state
        if config.pretrained:
            taken = take_pretrained(net)
        elif config.weights is not None:
            taken = take_file(net, config.weights)
        if taken is None or not taken.normalised:
            fit_normalisation(net, splits.train, config.seed)
    if config.freeze:
        net.freeze()
    return net, taken


def fit_normalisation(net: HashNet, dataset: Dataset, seed: int) -> None:
    """Set mean and deviation per channel to those of the training pictures, or of a sample of those in files."""
    pictures = dataset.images
    if not isinstance(pictures, np.ndarray):
        sample = np.sort(np.random.default_rng(seed).permutation(len(dataset))[:_SAMPLE])
        pictures = np.concatenate([batch.images for batch in dataset.read([sample])])
        if not len(pictures):
            raise DataError(f"none of {len(sample):,} pictures of {dataset.source} can be read; are they still there?")
    # From histograms: exact, and no float copy of the set.
    for channel in range(pictures.shape[3]):
        counts = np.bincount(pictures[..., channel].ravel(), minlength=256)
        levels = np.arange(256) / 255
        mean = float(np.average(levels, weights=counts))
        deviation = float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))
        planes = slice(channel, None, pictures.shape[3])  # all of them for grey pictures
        net.mean[planes] = mean
        net.std[planes] = max(deviation, 1 / 255)  # a set of one colour has none


def state_of(net: HashNet, optimizer: torch.optim.Optimizer, epochs_done: int) -> dict[str, Tensor]:
    """Weights and optimizer moments as flat tensors. Shuffles need no state: they follow the epoch."""
    state = {f"net.{name}": value for name, value in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():  # frozen ones have none
            state[f"optimizer.{name}.{key}"] = value
    # Here as well as in metrics.json, for the two files are not written at one moment.
    return {**state, "epochs_done": torch.tensor(epochs_done)}


def restore(run: Run, net: HashNet, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Undo `state_of` where the run has one; returns the epochs done and the seconds they took."""
    state = run.load_state()
    if not state:
        return 0, 0.0
    try:
        net.load_state_dict({name: state[f"net.{name}"] for name in net.state_dict()})
        for name, parameter in net.named_parameters():
            prefix = f"optimizer.{name}."
            optimizer.state[parameter] = {
                # moments in the layout of their parameter and steps on its device: fused optimizers rely on both
                key.removeprefix(prefix): (
                    torch.empty_like(parameter).copy_(value) if value.dim() else value.to(parameter.device)
                )
                for key, value in state.items()
                if key.startswith(prefix)
            }
        return int(state["epochs_done"]), float(state["seconds"])
    except (KeyError, RuntimeError) as error:
        raise RunError(f"{run.path / 'state.safetensors'} is damaged ({error}); train again with: dsh train") from error


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Seed PyTorch, and give the caller's random state and settings back afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    settings: Any = torch.utils.deterministic  # its attributes are made at run time
    fill_before = settings.fill_uninitialized_memory
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = False  # nothing here reads such; it costs a third
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            settings.fill_uninitialized_memory = fill_before
