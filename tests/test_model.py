import pytest
import torch
from torchvision import models
from torchvision.models.regnet import BlockParams

from dsh_cli.batches import Batches, augment
from dsh_cli.config import ModelConfig, TrainConfig
from dsh_cli.data import load_splits
from dsh_cli.errors import UsageError
from dsh_cli.model import HashNet, check_backbone, preset


@pytest.mark.parametrize("backbone", ["small-resnet", "dsh-cnn"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 31, 64, 128])
@pytest.mark.parametrize("bits", [1, 48, 1024])
def test_networks_take_every_size_channel_and_length(backbone, channels, size, bits):
    net = HashNet(ModelConfig(backbone, bits, channels, size))
    assert net(torch.rand(2, channels, size, size)).shape == (2, bits)


def test_the_papers_network_has_the_papers_layers():
    net = HashNet(ModelConfig("dsh-cnn", 12, 3, 32))
    shapes = [tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")]
    assert shapes == [(32, 3, 5, 5), (32, 32, 5, 5), (64, 32, 5, 5), (500, 64 * 4 * 4), (12, 500)]


def test_normalisation_is_part_of_the_network():
    net = HashNet(ModelConfig("small-resnet", 8, 1, 28)).eval()
    images = torch.rand(4, 1, 28, 28)
    plain = net((images - 0.5) / 0.25)
    net.mean.fill_(0.5)
    net.std.fill_(0.25)
    assert torch.allclose(net(images), plain, atol=1e-5)


@pytest.fixture
def shapes_only(monkeypatch):
    """Networks built here have shapes and no numbers, and so take neither time nor memory."""
    plan = BlockParams.from_init_params.__func__  # reads numbers back

    def on_cpu(cls, *args, **kwargs):
        with torch.device("cpu"):
            return plan(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_classifier_of_torchvision_gives_codes(name, shapes_only):
    size = preset(name).image_size
    net = HashNet(ModelConfig(name, 12, 1, size))
    net.require_size()
    assert net(torch.empty(2, 1, size, size)).shape == (2, 12)  # in training, where some give more than one output
    assert net.eval()(torch.empty(2, 1, size, size)).shape == (2, 12)
    assert net.hash_layer.in_features == net.backbone(torch.empty(2, 3, size, size)).shape[1]


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_the_hash_layer_takes_what_the_class_layer_took(name):
    theirs, ours = models.get_model(name, weights=None).eval(), HashNet(ModelConfig(name, 8, 3, 64)).eval()
    ours.backbone.load_state_dict(theirs.state_dict(), strict=False)
    if name == "resnet18":
        theirs.fc = torch.nn.Identity()
    else:
        theirs.classifier[1] = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(ours.hash_layer(theirs(images)), ours(images))


def test_grey_pictures_are_seen_as_colour_pictures_without_colour():
    net = HashNet(ModelConfig("resnet18", 8, 1, 32)).eval()
    net.mean.copy_(torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
    grey = torch.rand(2, 1, 32, 32)
    assert torch.allclose(net(grey), net(grey.expand(2, 3, 32, 32)), atol=1e-6)


def test_names_that_are_none_get_the_closest():
    with pytest.raises(UsageError, match=r"--backbone resnet81: there is no such network; did you mean resnet18"):
        check_backbone("resnet81")
    with pytest.raises(UsageError, match="try small-resnet, dsh-cnn, resnet18"):
        HashNet(ModelConfig("?", 8, 3, 32))
    with pytest.raises(UsageError, match="quantized"):  # there, but it cannot learn
        check_backbone("quantized_resnet18")


@pytest.mark.parametrize(("name", "size"), [("alexnet", 28), ("vit_b_32", 100), ("maxvit_t", 128), ("densenet121", 8)])
def test_sizes_a_network_does_not_take_are_refused(name, size, shapes_only):
    message = f"--image-size {size}: {name} does not take pictures of that size .*; its own is --image-size 224"
    with pytest.raises(UsageError, match=message):
        HashNet(ModelConfig(name, 8, 3, size)).require_size()


def test_trying_a_size_changes_nothing():
    net = HashNet(ModelConfig("resnet18", 8, 3, 32))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.require_size()
    assert net.training and all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_frozen_only_the_hash_layer_learns():
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


def test_plain_tensors_load_into_networks_that_ask_for_a_version():
    net = HashNet(ModelConfig("mnasnet0_5", 8, 3, 32))
    net.load_state_dict(dict(net.state_dict()))


def batches(seed=0, augment="digits"):
    return Batches(load_splits(TrainConfig(data="digits")).train, 64, augment, seed, torch.device("cpu"))


def test_batches_depend_on_seed_and_epoch_only():
    one, same, other = batches(), batches(), batches(seed=1)
    first = [images for images, _ in one.epoch(3)]
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, same.epoch(3), strict=True))
    assert not torch.equal(first[0], next(one.epoch(4))[0])
    assert not torch.equal(first[0], next(other.epoch(3))[0])


def test_an_epoch_shows_no_picture_twice_and_batches_are_full():
    loader = batches(augment="none")
    shown = [images for images, _ in loader.epoch(0)]
    assert len(shown) == len(loader) and all(len(images) == 64 for images in shown)
    names = {image.numpy().tobytes() for images in shown for image in images}
    distinct = {image.tobytes() for image in load_splits(TrainConfig(data="digits")).train.images}
    assert len(names) > 0.99 * min(len(distinct), 64 * len(loader))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["none", "digits", "photos"])
def test_augmented_batches_keep_range_shape_and_layout(kind, channels):
    images = torch.rand(8, channels, 32, 32).contiguous(memory_format=torch.channels_last)
    varied = augment(images, kind, torch.Generator().manual_seed(0))
    assert varied.shape == images.shape and varied.min() >= 0 and varied.max() <= 1
    assert varied.is_contiguous(memory_format=torch.channels_last)
    assert (kind == "none") == torch.equal(varied, images)


def test_photos_are_mirrored_and_digits_never():
    """A picture dark on the left stays so for digits; half of the photos turn."""
    images = torch.zeros(64, 1, 32, 32)
    images[..., 16:] = 1
    rng = torch.Generator().manual_seed(0)
    turned = {kind: (augment(images, kind, rng)[..., 4:8].mean((1, 2, 3)) > 0.5).sum() for kind in ("digits", "photos")}
    assert turned["digits"] == 0 and 20 <= turned["photos"] <= 44


def test_photos_move_by_whole_pixels():
    rng = torch.Generator().manual_seed(0)
    levels = (torch.randint(0, 256, (16, 1, 32, 32), generator=rng) / 255).contiguous()
    moved = augment(levels, "photos", rng)
    assert torch.allclose(moved * 255, (moved * 255).round(), atol=1e-3)
