"""Methods that learn without steps: a linear map of features, found at once."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dsh_cli.codes.linear import LinearCodes, itq, pca, quantization_error, rotation
from dsh_cli.config import Recipe
from dsh_cli.data.splits import Splits
from dsh_cli.network.model import HashNet
from dsh_cli.network.weights import Taken
from dsh_cli.runs.run import Run
from dsh_cli.training.events import Listener, Plan, TrainResult
from dsh_cli.training.features import with_features
from dsh_cli.training.measuring import measured


def fitted(
    run: Run,
    net: HashNet,
    taken: Taken | None,
    splits: Splits,
    device: torch.device,
    listeners: Sequence[Listener],
) -> TrainResult:
    """Make the hash layer the map that the method of a run finds for the features of its training pictures.

    Raises:
        UsageError: the features have fewer numbers than there are to be bits.
        DataError: they vary in fewer directions than that, or no picture can be read.
    """
    net = net.to(device).to(memory_format=torch.channels_last)
    splits, made, notes = with_features(run.config, net, splits, listeners)
    features = splits.train.features
    assert features is not None  # for the backbone of these methods stays as it is
    started = time.perf_counter()
    values = features.mean(axis=1) if net.config.mirror else features[:, 0]  # (n, d)
    if net.config.of_vectors:
        values = (values - net.mean.cpu().numpy()) / net.std.cpu().numpy()
    told = take(net, run.config, values)
    seconds = time.perf_counter() - started
    plan = Plan(run.noting(notes), str(device), 0, 0, 0, taken, told)
    for listener in listeners:
        listener.on_start(plan)
    result = measured(run, net, splits, seconds, made)
    for listener in listeners:
        listener.on_end(result)
    return result


def take(net: HashNet, config: Recipe, values: NDArray[np.float32]) -> str:
    """Give the hash layer the map of a method for (n, d) features, so scaled that outputs are 1 on average; say what.

    Raises:
        UsageError, DataError: as `fitted`.
    """
    errors: list[float] = []
    found: LinearCodes
    match config.method:
        case "itq":
            found = itq(values, config.bits, config.seed, errors.append)
        case "rotation":
            found = rotation(values, config.bits, config.seed)
        case _:
            found = pca(values, config.bits)
    outputs = found(values)
    scale = float(np.abs(outputs).mean()) or 1.0
    layer = net.hash_layer
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(found.matrix.T / scale))
        layer.bias.copy_(torch.from_numpy(-found.mean @ found.matrix / scale))
    error = quantization_error(outputs / scale)
    turned = f" after {len(errors) - 1} rounds" if errors else ""
    return f"{config.method} of {values.shape[1]:,} numbers: quantization error {error:.3f}{turned}"
