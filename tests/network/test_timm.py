"""Networks of timm: by name, with what their weights expect, from files or its hub."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from dsh_cli.config import ModelConfig, TrainConfig
from dsh_cli.errors import UsageError, WeightsError
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.network.model import HashNet
from dsh_cli.network.presets import check_backbone, chosen, expecting, file_of, preset
from dsh_cli.network.weights import take_file, take_pretrained
from tests.support.commands import dsh, dsh_json

LITE, TINY = "timm:tf_efficientnet_lite0", "timm:resnet10t"
FAMILIES = {  # one of each, and pictures smaller than its weights expect
    "timm:vit_small_patch14_dinov2": 56,
    "timm:vit_small_patch16_dinov3": 64,
    "timm:vit_base_patch16_clip_224": 64,
    "timm:vit_base_patch16_siglip_224": 64,
    "timm:fastvit_mci0.apple_mclip": 64,
    "timm:mobilenetv4_conv_small": 64,
    LITE: 64,
}


def state(name: str, seed: int) -> dict[str, torch.Tensor]:
    """The tensors of a whole model of timm, classifier included."""
    torch.manual_seed(seed)
    found: dict[str, torch.Tensor] = timm.create_model(name.removeprefix("timm:"), pretrained=False).state_dict()
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_networks_of_each_family_are_had_by_name(name: str) -> None:
    with torch.device("meta"):  # shapes alone: a base ViT has 86 million weights
        net = HashNet(ModelConfig(name, 16, 3, FAMILIES[name]))
        outputs = net.eval()(torch.empty(2, 3, FAMILIES[name], FAMILIES[name]))
    assert outputs.shape == (2, 16)
    expected = preset(name)
    assert expected.url is None and len(expected.mean) == 3 and expected.image_size >= 224
    assert (expected.fit, expected.interpolation) == ("crop", "bicubic")


def test_pictures_are_as_the_weights_expect_them_where_nothing_else_is_asked_for() -> None:
    asked = TrainConfig(backbone=LITE)
    found = expecting(asked)
    assert (found.image_size, found.fit, found.interpolation) == (224, "crop", "bicubic")
    own = expecting(TrainConfig(backbone=LITE, image_size=96, fit="pad", interpolation="bilinear"))
    assert (own.image_size, own.fit, own.interpolation) == (96, "pad", "bilinear")
    assert expecting(TrainConfig()) == TrainConfig(fit="crop", interpolation="bilinear")
    assert (
        preset("timm:tf_efficientnetv2_s").fit == "crop" and preset("timm:vit_so400m_patch14_siglip_384").fit == "crop"
    )


@pytest.mark.parametrize(("mode", "fit"), [("center", "crop"), ("squash", "stretch"), ("border", "pad")])
def test_every_way_of_timm_to_make_a_picture_square_has_its_own_here(
    monkeypatch: pytest.MonkeyPatch, mode: str, fit: str
) -> None:
    data: Any = timm.data
    asked = data.resolve_data_config
    monkeypatch.setattr(data, "resolve_data_config", lambda **given: {**asked(**given), "crop_mode": mode})
    assert preset(LITE).fit == fit


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tf_efficientnet_lite", r"did you mean .*timm:tf_efficientnet_lite\d.*\?"),
        ("mobileclip_s0", r"did you mean .*timm:fastvit_mci0\.apple_mclip\?"),
        ("xyzzyq", r"try timm:tf_efficientnet_lite0, timm:vit_small_patch14_dinov2, timm:resnet18$"),
        ("", r"`backbone` timm:: timm has no such network; try"),
    ],
)
def test_a_name_that_is_none_gives_those_close_to_it(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_backbone(f"timm:{name}")


def test_without_timm_it_is_said_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm is not installed; install it with: pip install 'dsh-cli\[timm\]'"):
        HashNet(ModelConfig(TINY, 8, 3, 64))


@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_weights_of_a_file_are_taken_with_the_normalisation_they_expect(tmp_path: Path, form: str) -> None:
    tensors, file = state(LITE, seed=3), tmp_path / "weights"
    if form == "safetensors":
        safetensors.torch.save_file(tensors, file)
    else:
        torch.save(tensors, file)
    net = HashNet(ModelConfig(LITE, 8, 3, 64))
    taken = take_file(net, file)
    assert taken.normalised and taken.offered - taken.tensors == 2  # the classifier
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in net.backbone.state_dict().items())
    assert net.mean.flatten().tolist() == net.std.flatten().tolist() == [0.5] * 3
    with pytest.raises(WeightsError, match="does not fit timm:resnet10t"):
        take_file(HashNet(ModelConfig(TINY, 8, 3, 64)), file)


def test_weights_of_the_hub_are_those_timm_makes_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a picture size that is not theirs: positions are interpolated."""
    name, builder = "timm:vit_tiny_patch16_224", sys.modules["timm.models._builder"]
    theirs = state(name, seed=5)
    fetched: list[Any] = []

    def fetch(*where: Any, **_: Any) -> dict[str, torch.Tensor]:
        fetched.append(where)
        return {key: tensor.clone() for key, tensor in theirs.items()}

    monkeypatch.setattr(builder, "load_state_dict_from_hf", fetch)
    net = HashNet(ModelConfig(name, 8, 3, 64))
    taken = take_pretrained(net)
    assert fetched and taken.normalised and str(taken).endswith("from timm's vit_tiny_patch16_224")
    ours = net.backbone.state_dict()
    assert ours["pos_embed"].shape == (1, 17, 192) != theirs["pos_embed"].shape
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items() if key != "pos_embed")


def test_a_hub_out_of_reach_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match="cannot fetch timm's weights of resnet10t.*name it with `weights`"
    ) as caught:
        take_pretrained(HashNet(ModelConfig(TINY, 8, 3, 64)))
    assert "\n" not in str(caught.value)


def test_codes_are_those_of_the_network_folded_or_not() -> None:
    """EfficientNet-Lite's padding hangs on its input, and its BatchNorm has an activation in it."""
    rng = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 64, 64, 3), generator=rng, dtype=torch.uint8)
    for name in (LITE, TINY):
        torch.manual_seed(1)
        net = HashNet(ModelConfig(name, 16, 3, 64)).eval()
        with torch.no_grad():
            expected = net(pictures.permute(0, 3, 1, 2).float() / 255)
        assert torch.allclose(torch.from_numpy(TorchEncoder(net).relaxed(pictures.numpy())), expected, atol=1e-5)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.folded().modules()), name


def test_a_norm_is_folded_only_where_nothing_else_takes_what_the_convolution_gives() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.alone, self.twice = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
            self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(3) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.shared(x)
            x = self.norms[0](y) + y
            x = self.norms[1](self.alone(x))
            for _ in range(2):
                x = self.norms[2](self.twice(x))
            return x.mean(dim=(2, 3))

    torch.manual_seed(0)
    net = HashNet(ModelConfig("small-resnet", 8, 3, 16))
    net.backbone, net.hash_layer = Net(), torch.nn.Linear(3, 8)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean, module.running_var = torch.randn(3), torch.rand(3) + 0.5
    pictures = torch.rand(2, 3, 16, 16)
    folded: Any = net.eval().folded()
    assert [type(norm) for norm in folded.backbone.norms] == [
        torch.nn.BatchNorm2d,
        torch.nn.Identity,
        torch.nn.BatchNorm2d,
    ]
    with torch.no_grad():
        assert torch.allclose(folded(pictures), net(pictures), atol=1e-5)


def test_a_tag_that_a_network_does_not_have_is_told_with_those_it_has() -> None:
    check_backbone("timm:resnet18.a1_in1k")
    with pytest.raises(UsageError, match=r"timm has no such network; did you mean timm:resnet18[.]"):
        check_backbone("timm:resnet18.a9_in1k")


def test_auto_takes_what_is_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda hub, file: None)
    asked = TrainConfig(data="photos", backbone="auto")
    assert chosen(asked) == replace(asked, backbone="airbench")
    weights = file_of(preset("resnet18"))
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert chosen(asked) == replace(asked, backbone="resnet18", pretrained=True, freeze=True)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda hub, file: "here" if "efficientnet_lite0" in hub else None
    )
    assert chosen(asked) == replace(asked, backbone=LITE, pretrained=True, freeze=True)
    assert chosen(replace(asked, data="mnist")).backbone == "airbench"
    with_weights = chosen(replace(asked, weights="runs/mine", freeze=True))
    assert (with_weights.backbone, with_weights.freeze) == ("airbench", True)
    nothing = chosen(replace(asked, data="mnist", pretrained=True, freeze=True))
    assert (nothing.backbone, nothing.pretrained, nothing.freeze) == ("airbench", False, False)
    assert chosen(replace(asked, backbone="dsh-cnn")).backbone == "dsh-cnn"


def test_few_photographs_are_told_what_does_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for label, shade in (("dark", 40), ("light", 215)):
        for number in range(6):
            file = tmp_path / "photos" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (90, 80), (shade + number, shade, shade)).save(file)
    options = ["--epochs", "1", "--bits", "8", "--no-tensorboard"]
    said = "few to train a network from nothing"
    photos = str(tmp_path / "photos")
    for backbone in ("airbench", "auto"):
        done = dsh("train", photos, *options, "--backbone", backbone, "--out", str(tmp_path / backbone))
        assert done.exit_code == 0 and said in done.stderr and f"--backbone {LITE} --pretrained --freeze" in done.stderr
    small = dsh("train", photos, *options, "--image-size", "32", "--out", str(tmp_path / "small"))
    assert said not in small.stderr and said not in dsh("train", "digits", *options, "--out", "digits").stderr


def test_a_folder_is_learned_and_hashed(tmp_path: Path) -> None:
    for label, shade in (("dark", 40), ("light", 215)):
        for number in range(12):
            file = tmp_path / "photos" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (shade + number, shade, shade)).save(file)
    run = str(tmp_path / "run")
    said = dsh_json(
        "train", str(tmp_path / "photos"), "--backbone", TINY, "--image-size", "32", "--fit", "pad", "--epochs", "1",
        "--bits", "8", "--out", run, "--no-tensorboard",
    )  # fmt: skip
    assert said["bits"] == 8
    codes = dsh("hash", str(tmp_path / "photos"), "--model", run).stdout.splitlines()
    assert len(codes) == 24
    assert dsh_json("info", run)["model"]["fit"] == "pad"
