from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import models
from torchvision.models.regnet import BlockParams

from dsh_cli.config import OWN_BACKBONES, ModelConfig
from dsh_cli.errors import UsageError
from dsh_cli.network.model import Airbench, HashNet
from dsh_cli.network.presets import check_backbone, preset
from tests.support.values import there


@pytest.mark.parametrize("backbone", OWN_BACKBONES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 31, 64, 128])
@pytest.mark.parametrize("bits", [1, 48, 1024])
def test_networks_take_every_size_channel_and_length(backbone: str, channels: int, size: int, bits: int) -> None:
    net = HashNet(ModelConfig(backbone, bits, channels, size))
    assert net(torch.rand(2, channels, size, size)).shape == (2, bits)


def test_the_papers_network_has_the_papers_layers() -> None:
    net = HashNet(ModelConfig("dsh-cnn", 12, 3, 32))
    shapes = [tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 3, 5, 5), (32, 32, 5, 5), (64, 32, 5, 5), (500, 64 * 4 * 4), (12, 500)]


def test_normalisation_is_part_of_the_network() -> None:
    net = HashNet(ModelConfig("resnet9", 8, 1, 28)).eval()
    images = torch.rand(4, 1, 28, 28)
    plain = net((images - 0.5) / 0.25)
    net.mean.fill_(0.5)
    net.std.fill_(0.25)
    assert torch.allclose(net(images), plain, atol=1e-5)


@pytest.fixture
def shapes_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Networks built here have shapes and no numbers, and so take neither time nor memory."""
    plan = BlockParams.from_init_params.__func__  # reads numbers back

    def on_cpu(cls: type[BlockParams], *args: Any, **kwargs: Any) -> BlockParams:
        with torch.device("cpu"):
            return plan(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_classifier_of_torchvision_gives_codes(name: str, shapes_only: None) -> None:
    size = preset(name).image_size
    net = HashNet(ModelConfig(name, 12, 1, size))
    net.require_size()
    assert net(torch.empty(2, 1, size, size)).shape == (2, 12)  # in training, where some give more than one output
    assert net.eval()(torch.empty(2, 1, size, size)).shape == (2, 12)
    assert net.hash_layer.in_features == net.backbone(torch.empty(2, 3, size, size)).shape[1]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_the_hash_layer_takes_what_the_class_layer_took(name: str) -> None:
    theirs, ours = models.get_model(name, weights=None).eval(), HashNet(ModelConfig(name, 8, 3, 64)).eval()
    ours.backbone.load_state_dict(theirs.state_dict(), strict=False)
    if name == "resnet18":
        theirs.fc = torch.nn.Identity()
    else:
        theirs.classifier[1] = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours.hash_layer(theirs(images)), ours(images))


def test_grey_pictures_are_seen_as_colour_pictures_without_colour() -> None:
    net = HashNet(ModelConfig("resnet18", 8, 1, 32)).eval()
    net.mean.copy_(torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
    grey = torch.rand(2, 1, 32, 32)
    assert torch.allclose(net(grey), net(grey.expand(2, 3, 32, 32)), atol=1e-6)


def test_names_that_are_none_get_the_closest() -> None:
    with pytest.raises(UsageError, match=r"`backbone` resnet81: there is no such network; did you mean resnet18"):
        check_backbone("resnet81")
    with pytest.raises(UsageError, match="try airbench, resnet9, small-resnet, resnet18"):
        HashNet(ModelConfig("?", 8, 3, 32))
    with pytest.raises(UsageError, match="quantized"):  # there, but it cannot learn
        check_backbone("quantized_resnet18")


@pytest.mark.parametrize(("name", "size"), [("alexnet", 28), ("vit_b_32", 100), ("maxvit_t", 128), ("densenet121", 8)])
def test_sizes_a_network_does_not_take_are_refused(name: str, size: int, shapes_only: None) -> None:
    message = f"`image_size` {size}: {name} does not take pictures of that size .*; its own is `image_size` 224"
    with pytest.raises(UsageError, match=message):
        HashNet(ModelConfig(name, 8, 3, size)).require_size()


def test_of_a_network_of_our_own_no_size_of_others_is_named(shapes_only: None) -> None:
    net = HashNet(ModelConfig("resnet9", 8, 3, 8))
    net.require_size()
    with pytest.raises(UsageError, match="`image_size` 6: resnet9 does not take .*; choose a larger one"):
        net.require_size(6)


def test_trying_a_size_changes_nothing() -> None:
    net = HashNet(ModelConfig("resnet18", 8, 3, 32))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.require_size()
    assert net.training and all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_frozen_only_the_hash_layer_learns() -> None:
    net = HashNet(ModelConfig("resnet18", 8, 3, 32))
    net.freeze()
    assert net.training and net.hash_layer.training
    before = {name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}
    net.eval().train()(torch.rand(4, 3, 32, 32)).sum().backward()
    assert [name for name, parameter in net.named_parameters() if parameter.grad is not None] == [
        "hash_layer.weight",
        "hash_layer.bias",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.backbone.state_dict().items())


def test_plain_tensors_load_into_networks_that_ask_for_a_version() -> None:
    net = HashNet(ModelConfig("mnasnet0_5", 8, 3, 32))
    loaded = net.load_state_dict(dict(net.state_dict()))
    assert not loaded.missing_keys and not loaded.unexpected_keys


# The default network


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_of_the_default_network_never_come_to_one_pixel(channels: int) -> None:
    with torch.device("meta"):
        for size in (*range(8, 130), 224, 255, 256, 257, 299, 512, 1000, 1024):
            net = Airbench(channels, size)
            maps = net.groups(net.stem(net._shrunk(torch.empty(2, channels, size, size))))
            assert maps.shape[:2] == (2, net.outputs) and 2 <= maps.shape[2] == maps.shape[3] <= 6, size


def test_a_large_picture_trains() -> None:
    rng = torch.Generator().manual_seed(0)
    net = HashNet(ModelConfig("airbench", 8, 3, 1024)).train()
    pictures = torch.rand(2, 3, 1024, 1024, generator=rng)
    net(pictures).square().mean().backward()
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert learning and all(there(parameter.grad).isfinite().all() for parameter in learning)


def patches_of(net: Airbench, pictures: Tensor) -> Tensor:
    """(patches, kept) outputs of one half of the first layer."""
    outputs: Tensor = net.stem(net._shrunk(pictures))
    assert torch.allclose(outputs[:, : net.kept], -outputs[:, net.kept :], atol=1e-4)
    return outputs[:, : net.kept].permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize(
    ("channels", "size", "kept"),
    [(1, 8, 9), (1, 28, 9), (3, 32, 12), (3, 64, 24), (1, 64, 24), (3, 128, 24), (3, 1024, 24)],
)
def test_the_first_layer_whitens_patches(channels: int, size: int, kept: int) -> None:
    """Its outputs have variance 1 and are not correlated, on pictures that are smooth, as photographs are."""
    rng = torch.Generator().manual_seed(size)
    net, count = Airbench(channels, size), 150 if size < 100 else 6
    coarse = torch.randn(count, channels, size // 4, size // 4, generator=rng)
    noise = torch.randn(count, channels, size, size, generator=rng)
    pictures = F.interpolate(coarse, size, mode="bilinear") + 0.3 * net.block * noise
    net.whiten(pictures)
    assert net.kept == kept and not net.stem.weight.requires_grad and not there(net.stem.bias).any()
    with torch.no_grad():
        patches = patches_of(net, pictures).double()
    covariance = patches.T @ patches / len(patches)
    deviation = covariance.diagonal().sqrt()
    assert (deviation > 0.95).all() and (deviation < 1.001).all()  # less where variances are small
    between = covariance - covariance.diagonal().diag()
    assert between.abs().max() < 1e-3
    assert net.stem.weight[0].abs().sum() > 0


def test_what_patches_have_no_variance_in_is_not_blown_up() -> None:
    net = Airbench(3, 32)
    net.whiten(torch.zeros(4, 3, 32, 32))
    assert net.stem.weight.isfinite().all() and net.stem.weight.abs().max() <= 5e-3**-0.5 + 1e-3


def test_convolutions_begin_as_identities_and_norms_learn_no_scale() -> None:
    net = Airbench(3, 32)
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.Conv2d) and name != "stem":
            count = min(module.in_channels, module.out_channels)
            maps = torch.rand(2, module.in_channels, 9, 9)
            assert torch.allclose(module(maps)[:, :count], maps[:, :count], atol=1e-6)
            assert module.weight[count:].abs().sum() > 0 or count == module.out_channels
        if isinstance(module, torch.nn.BatchNorm2d):
            assert not module.weight.requires_grad and module.bias.requires_grad


# Codes of a picture and its mirror image


def used(backbone: str, mirror: bool) -> HashNet:
    """A network some batches of whose training have moved its normalisations."""
    torch.manual_seed(0)
    net = HashNet(ModelConfig(backbone, 8, 3, 32, mirror)).train()
    for _ in range(5):
        net(torch.randn(16, 3, 32, 32) * 2 + 1)
    return net


@pytest.mark.parametrize("backbone", ["airbench", "resnet18"])
def test_outputs_are_means_of_a_picture_and_its_mirror_image_but_in_training(backbone: str) -> None:
    plain, net, pictures = used(backbone, False), used(backbone, True), torch.randn(4, 3, 32, 32) * 2 + 1
    with torch.no_grad():
        for each in (pictures, pictures.flip(3)):  # which move BatchNorm's statistics
            assert torch.equal(net(each), plain(each))
        net.eval()
        plain.eval()
        assert torch.allclose(net(pictures), net(pictures.flip(3)), atol=1e-5)
        assert torch.allclose(net(pictures), (plain(pictures) + plain(pictures.flip(3))) / 2, atol=1e-5)
        assert not torch.allclose(plain(pictures), plain(pictures.flip(3)), atol=1e-3)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("backbone", [*OWN_BACKBONES, "resnet18"])
def test_folded_it_is_the_same_network(backbone: str, mirror: bool) -> None:
    net, pictures = used(backbone, mirror).eval(), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        outputs = net(pictures)
        assert net.folded()(pictures) == pytest.approx(outputs, abs=1e-4 * float(outputs.abs().max()))
