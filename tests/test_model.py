import pytest
import torch

from dsh_cli.batches import Batches, augment
from dsh_cli.config import ModelConfig, TrainConfig
from dsh_cli.data import load_splits
from dsh_cli.model import HashNet


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
