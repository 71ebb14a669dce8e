"""What a picture costs in operations, in training and for its code: counted from shapes, with nothing computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsh_cli.network.model import HashNet

_PICTURES = 2  # the fewest that BatchNorm takes in training where maps are of one pixel


def training_operations(net: HashNet, shape: tuple[int, ...]) -> int:
    """Operations of forward and backward of one picture (channels, H, W), or its features (d,); a multiply-add is two.

    Those of convolutions and products of matrices, attention's among them; all else is small beside them. What is
    frozen has no backward. The network stays as it is, for the count has the shapes of its weights and no numbers.
    """
    return _counted(net, shape, training=True)


def encoding_operations(net: HashNet, shape: tuple[int, ...]) -> int:
    """Operations of the code of one picture, or of its features, counted in the same way."""
    return _counted(net, shape, training=False)


class _OfFeatures(torch.nn.Module):
    """A network from its features on, for PyTorch calls no other than `forward`."""

    def __init__(self, net: HashNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor) -> Tensor:
        return self.net.of_features(features)


def _counted(net: HashNet, shape: tuple[int, ...], training: bool) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # which sets up loggers

    module = _OfFeatures(net) if len(shape) == 1 and not net.config.of_vectors else net
    tensors = [*module.named_parameters(), *module.named_buffers()]
    # Leaves of their own: gradients end there. `empty_like` keeps integers as they are, which need none.
    shapes = {
        name: torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad) for name, tensor in tensors
    }
    inputs = torch.empty(_PICTURES, *shape, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolved_back})
    modes = {part: part.training for part in net.modules()}
    net.train(training)
    try:
        with torch.set_grad_enabled(training), counter:
            relaxed: Tensor = torch.func.functional_call(module, shapes, (inputs,))  # (2, k)
            if training:
                relaxed.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        for part, mode in modes.items():
            part.training = mode
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
