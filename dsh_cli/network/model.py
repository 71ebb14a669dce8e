"""Backbones and the hash layer."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node, Tracer
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dsh_cli.config import OWN_BACKBONES, PIXELS, TIMM, ModelConfig
from dsh_cli.errors import UsageError
from dsh_cli.network.presets import FROM_TENSORFLOW, check_backbone, preset, timm_module

# Of the default network, for grey and for colour: pixels across the patches that its first layer whitens, where
# pictures are `_SIDE` pixels square; directions of patches kept, at most; channels of its groups.
_PATCH, _KEPT, _GROUPS = {1: 3, 3: 2}, 24, {1: (16, 32, 64), 3: (64, 256, 256)}
_LARGEST = 256  # pixels across pictures that the first layer sees: it has a matrix of all pairs of numbers of a patch
_WHITE = 5e-3  # added to variances of patches, in units of the pictures' deviation, lest noise is blown up
_FOLLOWS = 0.4  # of BatchNorm's running statistics: how far each batch moves them
_NINE = {1: (16, 16, 64, 128), 3: (16, 48, 96, 192)}  # channels of stem and stages of the ResNet-9, for grey and colour
_SIDE = 32  # pixels across the first maps, about; larger pictures get there by the stem's stride
_POOLED = 4  # pixels across a map from which it is pooled: those of one pixel have no neighbours, see LOG.md
_WIDTHS = (16, 32, 64)  # channels of the three stages of the small ResNet
_STRIDES = ((16, 1), (24, 2), (48, 3))  # of the stem, for pictures below so many pixels; 4 for larger ones


class HashNet(nn.Module):
    """Normalisation, a backbone, and a hash layer of k outputs.

    Takes (B, channels, H, W) float pictures in [0, 1], or (B, width) vectors where the data are features already, and
    returns (B, k) relaxed codes. Its weights are random: building a network reads and downloads nothing.

    Raises:
        UsageError: there is no such backbone, or none for pictures of that size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen = False
        # Networks of torchvision and timm take RGB; a grey picture is broadcast against three means.
        planes = (config.channels if config.backbone in OWN_BACKBONES else 3, 1, 1)
        numbers = (config.width,) if config.of_vectors else planes
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("std", torch.ones(numbers))
        self.backbone: nn.Module
        if config.of_vectors:
            self.backbone, outputs = nn.Identity(), config.width
        elif config.backbone in OWN_BACKBONES:
            own = _OWN[config.backbone](config.channels, config.image_size)
            self.backbone, outputs = own, own.outputs
        elif config.backbone.startswith(TIMM):
            self.backbone, outputs = timm_network(config.backbone, config.image_size)
        else:
            self.backbone, outputs = _torchvision(config.backbone, config.image_size)
        self.outputs, self.views = outputs, 2 if config.mirror else 1
        self.dropout = nn.Dropout(0.0)
        self.hidden = _hidden(outputs, config.hidden) if config.hidden else nn.Identity()
        self.hash_layer = nn.Linear(config.hidden or outputs, config.bits)

    def forward(self, images: Tensor) -> Tensor:
        relaxed = self.of_features(self.features(images))
        if self.config.mirror and not self.training:
            relaxed = (relaxed + self.of_features(self.features(images.flip(3)))) / 2
        return relaxed

    def features(self, images: Tensor) -> Tensor:
        """What the backbone gives of pictures, or vectors normalised: (B, outputs)."""
        found: Tensor = self.backbone((images - self.mean) / self.std)
        return found

    def of_features(self, features: Tensor) -> Tensor:
        """Relaxed codes (B, k) of what the backbone gives."""
        relaxed: Tensor = self.hash_layer(self.hidden(self.dropout(features)))
        return relaxed

    def folded(self) -> HashNet:
        """A copy for inference, equal but for rounding: BatchNorm folded into the convolutions before it."""
        copied = copy.deepcopy(self).eval().to(memory_format=torch.channels_last)
        with suppress(TraceError, TypeError, RuntimeError):  # of a network whose steps hang on its input
            _part_norms(copied.backbone)
            _fold(copied.backbone)  # alone: it is called twice where mirror images count, and once in itself
        return copied

    def freeze(self) -> None:
        """From now on only the hash layer learns; the backbone stays in evaluation mode, BatchNorm and dropout too."""
        self.frozen = True
        self.backbone.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> HashNet:
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        # A dict of plain tensors has lost the versions of its modules, without which MNASNet loads nothing.
        own: Any = self.state_dict()
        versioned: Any = OrderedDict(state_dict)
        versioned._metadata = own._metadata
        return super().load_state_dict(versioned, strict, assign)

    def require_size(self, side: int | None = None) -> None:
        """Try the network on empty pictures, if it takes such, without computing anything.

        Args:
            side: theirs, if not that of the network.

        Raises:
            UsageError: they are too small for it.
        """
        if self.config.of_vectors:
            return
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
        config, training = self.config, self.training
        side = side or config.image_size
        pictures = torch.empty(2, config.channels, side, side, device="meta")
        try:
            torch.func.functional_call(self.eval(), shapes, (pictures,))
        except RuntimeError as error:
            raise _wrong_size(config.backbone, side, error) from error
        finally:
            self.train(training)


class Standardised(nn.Dropout):
    """Dropout of features that are first brought to mean 0 and one deviation, as vectors are, while a head learns.

    Stands in the place of a network's dropout, and is not saved: `settled` puts it into the layer behind.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, p: float, mean: Tensor, deviation: float) -> None:
        super().__init__(p)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward((features - self.mean) / self.deviation)


def settled(net: HashNet) -> dict[str, Tensor]:
    """The weights by which a network gives of features as they are what it gave while they were standardised."""
    state = dict(net.state_dict())
    if not isinstance(net.dropout, Standardised):
        return state
    layer = "hidden.0" if net.config.hidden else "hash_layer"
    weight = state[f"{layer}.weight"].double() / net.dropout.deviation.double()
    shift = weight @ net.dropout.mean.double()  # by which what the layer gives is larger than before
    state[f"{layer}.weight"] = weight.float()
    follows, sign = ("hidden.1.running_mean", 1) if net.config.hidden else ("hash_layer.bias", -1)
    state[follows] = (state[follows].double() + sign * shift).float()
    return state


def _part_norms(net: nn.Module) -> None:
    """Put BatchNorm and what follows it, which timm has in one module, one after the other, so that it is folded."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            follows = getattr(child, "act", None)
            if isinstance(child, nn.BatchNorm2d) and isinstance(follows, nn.Module):
                norm = nn.BatchNorm2d(child.num_features, child.eps, device=child.weight.device).eval()
                norm.load_state_dict({key: value for key, value in child.state_dict().items() if "." not in key})
                setattr(module, name, nn.Sequential(norm, follows))


class _Steps(Tracer):
    """Follows the steps of a network; a convolution is one, such as timm's whose padding hangs on its input."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d) or super().is_leaf_module(m, module_qualified_name)


def _fold(net: nn.Module) -> None:
    """Fold each BatchNorm into the convolution before it, where nothing else takes what that gives.

    Raises:
        TraceError, TypeError, RuntimeError: its steps hang on its input.
    """
    modules = dict(net.named_modules())
    steps = [step for step in _Steps().trace(net).nodes if step.op == "call_module"]
    calls = Counter(step.target for step in steps)
    for step in steps:
        before = step.args[0] if step.args else None
        if not isinstance(before, Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        convolution, norm = modules[str(before.target)], modules[str(step.target)]
        if type(norm) is not nn.BatchNorm2d or not isinstance(convolution, nn.Conv2d):
            continue
        if calls[before.target] == calls[step.target] == 1:
            net.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            net.set_submodule(str(step.target), nn.Identity())


def _hidden(inputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units), nn.GELU())


def _torchvision(name: str, image_size: int) -> tuple[nn.Module, int]:
    """A network of torchvision without its last layer, and the number of features it then gives."""
    check_backbone(name)
    from torchvision import models

    options: dict[str, Any] = {}
    if name in FROM_TENSORFLOW:
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit"):
        options = {"image_size": image_size}
    elif name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    try:
        net: nn.Module = models.get_model(name, weights=None, **options)
    except (AssertionError, ValueError) as error:
        raise _wrong_size(name, image_size, error) from error
    layers = {path: layer for path, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    path, last = layers.popitem()  # a convolution in SqueezeNet
    parent, _, child = path.rpartition(".")
    setattr(net.get_submodule(parent), child, nn.Identity())
    return net, last.in_features if isinstance(last, nn.Linear) else last.in_channels


def timm_network(name: str, image_size: int, pretrained: bool = False) -> tuple[nn.Module, int]:
    """A network of timm without its classifier, and the number of features it then gives.

    Raises:
        UsageError: there is no such network, or none for pictures of that size.
        Exception: with `pretrained`, whatever keeps timm from its weights.
    """
    check_backbone(name)
    create, short = timm_module().create_model, name.removeprefix(TIMM)
    try:
        try:
            net = create(short, pretrained, num_classes=0, img_size=image_size)
        except TypeError:  # it takes pictures of any size
            net = create(short, pretrained, num_classes=0)
    except (AssertionError, RuntimeError, ValueError) as error:
        if pretrained:
            raise
        raise _wrong_size(name, image_size, error) from error
    return net, getattr(net, "head_hidden_size", None) or net.num_features


def has_depthwise(backbone: str, image_size: int) -> bool:
    """Whether a network of torchvision or timm has convolutions of one channel each."""
    build = timm_network if backbone.startswith(TIMM) else _torchvision
    with torch.random.fork_rng(devices=[]):
        net, _ = build(backbone, image_size)
    return any(isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1 for layer in net.modules())


def _wrong_size(name: str, image_size: int, error: Exception) -> UsageError:
    reason = str(error).partition("\n")[0].rstrip(".!")
    instead = "choose a larger one" if name in OWN_BACKBONES else f"its own is `image_size` {preset(name).image_size}"
    return UsageError(f"`image_size` {image_size}: {name} does not take pictures of that size ({reason}); {instead}")


class Airbench(nn.Module):
    """Jordan's network for CIFAR-10 in seconds: a fixed layer that whitens patches, then groups of two convolutions.

    Jordan, *94% on CIFAR-10 in 3.29 Seconds on a Single GPU*, 2024, from which widths, and the mean in place of the
    maximum over the last maps, differ. Convolutions begin as identities (Zagoruyko and Komodakis, *DiracNets*, 2017),
    and BatchNorm has no scale to learn, for the filters before it have no size that matters.
    """

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        widths = _GROUPS[channels]
        self.block = -(-image_size // _LARGEST)  # pixels across blocks whose means are taken first
        side = image_size // self.block
        stride = max(1, round(side / _SIDE))
        patch = _PATCH[channels] * stride
        self.outputs = widths[-1]
        self.kept = min(channels * patch**2, _KEPT)
        self.stem = nn.Conv2d(channels, 2 * self.kept, patch, stride)
        self.stem.weight.requires_grad_(False)
        nn.init.zeros_(self.stem.get_parameter("bias"))
        groups, inputs, side = [], 2 * self.kept, (side - patch) // stride + 1
        for width in widths:
            pool = side >= _POOLED
            groups.append(_group(inputs, width, pool))
            inputs, side = width, side // 2 if pool else side
        self.groups = nn.Sequential(*groups)

    @torch.no_grad()
    def whiten(self, pictures: Tensor) -> None:
        """Set the first layer from (n, channels, H, W) normalised training pictures.

        Its filters are the principal directions of their patches, each both ways round, scaled to variance 1.
        """
        stride, patch = self.stem.stride[0], self.stem.kernel_size[0]
        products = torch.zeros(pictures.shape[1] * patch**2, pictures.shape[1] * patch**2, dtype=torch.float64)
        count = 0
        for some in torch.split(pictures, 100):  # patches take `patch`^2 times the memory of pictures
            patches = (
                F.unfold(self._shrunk(some), patch, stride=stride).transpose(1, 2).flatten(0, 1)
            )  # (patches, numbers)
            products += patches.T @ patches
            count += len(patches)
        variances, directions = torch.linalg.eigh(products / count)  # the largest last
        kept = (directions / (variances + _WHITE).sqrt())[:, -self.kept :].flip(1).T
        filters = kept.reshape(self.kept, *self.stem.weight.shape[1:])
        self.stem.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.groups(F.gelu(self.stem(self._shrunk(images))))  # (B, outputs, h, w)
        return maps.mean(dim=(2, 3))

    def _shrunk(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.block) if self.block > 1 else images


def _group(inputs: int, outputs: int, pool: bool) -> nn.Sequential:
    """Two convolutions, each with BatchNorm and GELU after it; the maps of the first are pooled if wanted."""
    layers: list[nn.Module] = []
    for into, pooled in ((inputs, pool), (outputs, False)):
        convolution = nn.Conv2d(into, outputs, 3, padding=1, bias=False)
        nn.init.dirac_(convolution.weight.data[: min(into, outputs)])  # the other filters begin at random
        norm = nn.BatchNorm2d(outputs, momentum=_FOLLOWS)
        norm.weight.requires_grad_(False)
        layers += [convolution, *([nn.MaxPool2d(2)] if pooled else []), norm, nn.GELU()]
    return nn.Sequential(*layers)


class Pixels(nn.Module):
    """The pixels themselves, of large pictures the means of squares: what linear codes are often learned from."""

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        self.side = min(image_size, _SIDE)
        self.outputs = channels * self.side**2

    def forward(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images, self.side).flatten(1)


class ResNet9(nn.Module):
    """Page's network for training in minutes: eight convolutions, two shortcuts, and maps that soon are small.

    Page, *How to Train Your ResNet*, 2018, from which widths, strides and the hash layer differ.
    """

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        first, second, third, last = _NINE[channels]
        stride = max(1, round(image_size / _SIDE))
        self.outputs = last
        self.stem = _convolved(channels, first, stride=stride)
        self.stage1 = nn.Sequential(_convolved(first, second, pool=True), Shortcut(second))
        self.stage2 = _convolved(second, third, pool=True)
        self.stage3 = nn.Sequential(_convolved(third, last, pool=True), Shortcut(last))

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stage3(self.stage2(self.stage1(self.stem(images))))  # (B, last, h, w)
        return maps.amax(dim=(2, 3))


class Shortcut(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(_convolved(width, width), _convolved(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.convolutions(x)
        return y


def _convolved(inputs: int, outputs: int, stride: int = 1, pool: bool = False) -> nn.Sequential:
    """Convolution, pooling if wanted, BatchNorm and ReLU: normalising after pooling has a quarter to do."""
    kernel = max(3, 2 * stride - 1)  # overlaps its neighbours
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class SmallResNet(nn.Module):
    """Three residual stages after an early stride, then global pooling: most of ResNet's gain at a CPU's price.

    He et al., *Deep Residual Learning*, CVPR 2016, with one block a stage.
    """

    outputs = _WIDTHS[-1]

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        stride = next((stride for below, stride in _STRIDES if image_size < below), 4)
        kernel = max(3, 2 * stride - 1)  # overlaps its neighbours
        self.stem = nn.Sequential(
            nn.Conv2d(channels, _WIDTHS[0], kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(_WIDTHS[0]),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.Sequential(
            ResidualBlock(_WIDTHS[0], _WIDTHS[0], stride=1),
            ResidualBlock(_WIDTHS[0], _WIDTHS[1], stride=2),
            ResidualBlock(_WIDTHS[1], _WIDTHS[2], stride=2),
        )

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.stages(self.stem(images))  # (B, 64, h, w)
        return maps.mean(dim=(2, 3))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class DshCnn(nn.Module):
    """The network of the DSH paper (Liu et al., CVPR 2016, figure 2 and section 3): for one picture size only."""

    outputs = 500

    def __init__(self, channels: int, image_size: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.AvgPool2d(3, 2, ceil_mode=True),
        )
        side = image_size
        for _ in range(3):
            side = -(-(side - 3) // 2) + 1  # pooling 3/2, rounded up
        self.fc = nn.Linear(64 * side * side, self.outputs)

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.fc(self.features(images).flatten(1)))


_OWN: dict[str, type[Airbench] | type[ResNet9] | type[SmallResNet] | type[DshCnn] | type[Pixels]] = {
    "airbench": Airbench,
    "resnet9": ResNet9,
    "small-resnet": SmallResNet,
    "dsh-cnn": DshCnn,
    PIXELS: Pixels,
}
