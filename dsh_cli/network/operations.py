"""What a picture costs in operations, in training and for its code: counted from shapes, with nothing computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsh_cli.network.model import HashNet

_PICTURES = 2  # the fewest that BatchNorm takes in training where maps are of one pixel


def training_operations(net: HashNet, side: int) -> int:
    """Operations of forward and backward of one picture of `side` pixels square; a multiply-add is two.

    Those of convolutions and products of matrices, attention's among them; all else is small beside them. What is
    frozen has no backward. The network stays as it is, for the count has the shapes of its weights and no numbers.
    """
    return _counted(net, side, training=True)


def encoding_operations(net: HashNet) -> int:
    """Operations of the code of one picture, counted in the same way."""
    return _counted(net, net.config.image_size, training=False)


def _counted(net: HashNet, side: int, training: bool) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # which sets up loggers

    tensors = [*net.named_parameters(), *net.named_buffers()]
    # Leaves of their own: gradients end there. `empty_like` keeps integers as they are, which need none.
    shapes = {
        name: torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad) for name, tensor in tensors
    }
    pictures = torch.empty(_PICTURES, net.config.channels, side, side, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolved_back})
    modes = {module: module.training for module in net.modules()}
    net.train(training)
    try:
        with torch.set_grad_enabled(training), counter:
            relaxed: Tensor = torch.func.functional_call(net, shapes, (pictures,))  # (2, k)
            if training:
                relaxed.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for module, mode in modes.items():
            module.training = mode
    return counter.get_total_flops() // _PICTURES


def _convolved_back(
    outputs: Sequence[int], inputs: Sequence[int], weight: Sequence[int], *settings: Any, **more: Any
) -> int:
    """Operations of a convolution's gradients, by their shapes: each of the two that is wanted costs what forward does.

    PyTorch's own formula has the gradient of the weights as if there were one group: of a depthwise convolution many
    times too much.
    """
    transposed: bool = settings[4]
    wanted: Sequence[bool] = settings[7][:2]
    places = inputs if transposed else outputs  # each meets all the weights of one channel
    return 2 * math.prod(places) * math.prod(weight[1:]) * sum(wanted)
