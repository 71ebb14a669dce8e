import pytest
import torch
from torch import nn

from dsh_cli.config import ModelConfig
from dsh_cli.network.model import HashNet
from dsh_cli.network.operations import encoding_operations, training_operations


def convolved(inputs: int, outputs: int, kernel: int, side: int) -> int:
    """Operations forward: each output of (outputs, side, side) is a sum over what the kernel covers."""
    return 2 * outputs * side**2 * inputs * kernel**2


def counted(backbone: str, bits: int, channels: int, image_size: int, side: int | None = None) -> int:
    with torch.device("meta"):
        net = HashNet(ModelConfig(backbone, bits, channels, image_size))
    return training_operations(net, (channels, side or image_size, side or image_size))


# By hand, layer by layer. Backward costs what forward does for the gradient of the weights, and as much again for that
# of the inputs, which pictures do not need.


def test_the_papers_network() -> None:
    first = convolved(3, 32, 5, side=32)
    others = convolved(32, 32, 5, side=16) + convolved(32, 64, 5, side=8)
    full = 2 * (64 * 4 * 4) * 500 + 2 * 500 * 12
    assert counted("dsh-cnn", 12, 3, 32) == 2 * first + 3 * (others + full)


def test_the_small_resnet() -> None:
    first = convolved(1, 16, 5, side=10)  # stride 3
    stage1 = 2 * convolved(16, 16, 3, side=10)
    stage2 = convolved(16, 32, 3, side=5) + convolved(32, 32, 3, side=5) + convolved(16, 32, 1, side=5)
    stage3 = convolved(32, 64, 3, side=3) + convolved(64, 64, 3, side=3) + convolved(32, 64, 1, side=3)
    assert counted("small-resnet", 8, 1, 28) == 2 * first + 3 * (stage1 + stage2 + stage3 + 2 * 64 * 8)


def resnet9(side: int) -> int:
    """On grey pictures, 8 bits; it pools after the convolutions."""
    half, quarter = side // 2, side // 4
    first = convolved(1, 16, 3, side)
    stage1 = convolved(16, 16, 3, side) + 2 * convolved(16, 16, 3, half)
    stage2 = convolved(16, 64, 3, half)
    stage3 = convolved(64, 128, 3, quarter) + 2 * convolved(128, 128, 3, quarter // 2)
    return 2 * first + 3 * (stage1 + stage2 + stage3 + 2 * 128 * 8)


def test_a_network_on_pictures_of_its_size_and_of_another() -> None:
    assert counted("resnet9", 8, 1, 28) == resnet9(28)
    assert counted("resnet9", 8, 1, 28, side=24) == resnet9(24)


@pytest.mark.parametrize(
    ("channels", "size", "stem", "learned"),
    [
        (
            1,
            28,
            convolved(1, 18, 3, side=26),
            convolved(18, 16, 3, side=26) + convolved(16, 16, 3, side=13)
            + convolved(16, 32, 3, side=13) + convolved(32, 32, 3, side=6)
            + convolved(32, 64, 3, side=6) + convolved(64, 64, 3, side=3) + 2 * 64 * 8,
        ),
        (
            3,
            32,
            convolved(3, 24, 2, side=31),
            convolved(24, 64, 3, side=31) + convolved(64, 64, 3, side=15)
            + convolved(64, 256, 3, side=15) + convolved(256, 256, 3, side=7)
            + convolved(256, 256, 3, side=7) + convolved(256, 256, 3, side=3) + 2 * 256 * 8,
        ),
    ],
)  # fmt: skip
def test_the_default_network_whose_first_layer_does_not_learn(
    channels: int, size: int, stem: int, learned: int
) -> None:
    assert counted("airbench", 8, channels, size) == stem + 3 * learned
    with torch.device("meta"):
        net = HashNet(ModelConfig("airbench", 8, channels, size))
    assert encoding_operations(net, (channels, size, size)) == stem + learned


def resnet18_forward() -> int:
    """Without its last layer, on 64 pixels in colour."""
    total = convolved(3, 64, 7, side=32) + 4 * convolved(64, 64, 3, side=16)
    for width, side in ((128, 8), (256, 4), (512, 2)):
        total += convolved(width // 2, width, 3, side) + 3 * convolved(width, width, 3, side)
        total += convolved(width // 2, width, 1, side)
    return total


def test_what_is_frozen_has_no_backward() -> None:
    net = HashNet(ModelConfig("resnet18", 16, 3, 64))
    net.freeze()
    assert training_operations(net, (3, 64, 64)) == resnet18_forward() + 2 * (2 * 512 * 16)
    net.backbone.conv1.requires_grad_(True)  # the first layer: its gradient comes through all others
    assert training_operations(net, (3, 64, 64)) == 2 * resnet18_forward() + 3 * (2 * 512 * 16)


def test_a_code_costs_forward_alone() -> None:
    net = HashNet(ModelConfig("resnet18", 16, 3, 64))
    assert encoding_operations(net, (3, 64, 64)) == resnet18_forward() + 2 * 512 * 16
    assert net.training and all(parameter.requires_grad for parameter in net.parameters())


def test_attention_counts() -> None:
    with torch.device("meta"):
        net = HashNet(ModelConfig("vit_b_32", 8, 3, 64))
    net.freeze()
    tokens, width, layers = 2 * 2 + 1, 768, 12
    layer = 2 * tokens * (3 * width**2 + width**2 + 2 * width * 4 * width)  # queries, keys, values; output; two full
    attention = 2 * (2 * tokens**2 * width)
    forward = convolved(3, width, 32, side=2) + layers * (layer + attention)
    assert training_operations(net, (3, 64, 64)) == forward + 2 * (2 * width * 8)


def test_convolutions_in_groups_cost_less_backward_too() -> None:
    net = HashNet(ModelConfig("resnet9", 8, 3, 32))
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
    upwards = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
    net.backbone = nn.Sequential(nn.Conv2d(3, 6, 1), depthwise, upwards, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.hash_layer = nn.Linear(4, 8)
    first, grouped = convolved(3, 6, 1, side=32), 6 * convolved(1, 1, 3, side=32)
    spread = 2 * 6 * 32**2 * 2 * 2**2  # each input reaches 2 channels of its group, 2 x 2 places of each
    assert training_operations(net, (3, 32, 32)) == 2 * first + 3 * (grouped + spread + 2 * 4 * 8)


def test_counting_changes_nothing() -> None:
    net = HashNet(ModelConfig("mobilenet_v3_small", 8, 3, 64)).eval()  # with BatchNorm and dropout
    net.hash_layer.train()
    (first, *_), modes = net.parameters(), [module.training for module in net.modules()]
    first.grad = torch.ones_like(first)
    before, random = {name: tensor.clone() for name, tensor in net.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        assert training_operations(net, (3, 64, 64)) > 0
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.equal(first.grad, torch.ones_like(first))
    assert sum(parameter.grad is not None for parameter in net.parameters()) == 1
    assert torch.equal(torch.get_rng_state(), random)
