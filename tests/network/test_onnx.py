"""Exported networks: the codes of torch, of every kind of network; files that are none are refused."""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dsh_cli.codes.bits import binarize, pack
from dsh_cli.config import ModelConfig
from dsh_cli.errors import DshError, EngineError
from dsh_cli.network import onnx_encoding, onnx_export
from dsh_cli.network.encoder import NEAR_ZERO
from dsh_cli.network.encoding import TorchEncoder
from dsh_cli.network.model import HashNet
from dsh_cli.network.onnx_encoding import ABOUT, OnnxEncoder, opened
from dsh_cli.network.onnx_export import Compared, Differing, compared, inputs_of, onnx_bytes, tried

MODELS = {
    "airbench, grey": ModelConfig("airbench", 8, 1, 28),
    "airbench, colour, mirrored": ModelConfig("airbench", 48, 3, 32, mirror=True),
    "resnet9": ModelConfig("resnet9", 12, 3, 40),
    "small-resnet": ModelConfig("small-resnet", 1, 1, 8),
    "dsh-cnn": ModelConfig("dsh-cnn", 9, 1, 16),
    "pixels": ModelConfig("pixels", 16, 3, 9),
    "hidden": ModelConfig("pixels", 16, 3, 9, hidden=7),
    "vectors": ModelConfig("vectors", 17, 0, 0, width=5, hidden=6),
    "torchvision": ModelConfig("mobilenet_v3_small", 32, 3, 64, fit="pad", interpolation="bicubic"),
    "torchvision, grey": ModelConfig("resnet18", 8, 1, 64),
    "a transformer": ModelConfig("vit_b_16", 8, 3, 224),
    "timm": ModelConfig("timm:tf_efficientnet_lite0", 16, 3, 64),
}
SMALL = MODELS["dsh-cnn"]


def network(model: ModelConfig) -> HashNet:
    """A network whose statistics are not those of a new one."""
    torch.manual_seed(0)
    net = HashNet(model)
    net.mean.fill_(0.4)
    net.std.fill_(0.3)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


def file_of(model: ModelConfig = SMALL, **about: Any) -> bytes:
    return onnx_bytes(network(model), {"model": asdict(model), **about})


@pytest.mark.parametrize("name", MODELS)
def test_the_codes_are_those_of_torch(name: str) -> None:
    model = MODELS[name]
    net, few = network(model), 3 if model.image_size > 100 else 20
    inputs = inputs_of(net, None, few)
    found = compared(net, onnx_bytes(net, {"name": name}), inputs)
    assert found.count == len(inputs) and found.why_unlike == ""
    assert found.largest <= 1e-4
    before = {key: value.clone() for key, value in net.state_dict().items()}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_any_number_of_pictures_at_once(count: int) -> None:
    session, about = opened(file_of(bits="told"))
    encoder, pictures = OnnxEncoder(session, SMALL, "m"), inputs_of(network(SMALL), None, 5)[:count]
    relaxed, packed = encoder.both(pictures)
    assert relaxed == pytest.approx(TorchEncoder(network(SMALL)).relaxed(pictures), abs=1e-5)
    assert (packed == pack(binarize(relaxed))).all() and packed.shape == (count, 2)
    assert about["bits"] == "told" and not (packed[:, -1] & 0b0111_1111).any()


def test_inputs_are_pictures_as_large_as_the_network_takes_them() -> None:
    net = network(SMALL)
    thumbnails = np.arange(7, dtype=np.uint8)[:, None, None, None].repeat(3, 1).repeat(5, 2)
    shown = inputs_of(net, thumbnails[tried(SMALL, 7, 4)], 4)
    assert shown.shape == (4, 16, 16, 1) and shown[:, 0, 0, 0].tolist() == [0, 2, 4, 6]
    halves = np.array([[0, 9], [5, 7]], np.uint8)[None, :, :, None]
    assert inputs_of(net, halves, 4)[0, ::8, ::8, 0].tolist() == [[0, 9], [5, 7]]
    assert len(tried(ModelConfig("resnet18", 8, 3, 1024), 5000, 10_000)) == 9
    assert len(tried(SMALL, 5, 10_000)) == 5


def test_vectors_are_tried_as_large_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(MODELS["vectors"])
    net.mean.fill_(100.0)
    net.std.fill_(1e-5)
    found = inputs_of(net, None, 3)
    assert found.shape == (3, 5) and found.dtype == np.float32 and np.abs(found - 100).max() < 1e-3
    assert compared(net, onnx_bytes(net, {}), found).why_unlike == ""


def test_a_file_of_another_network_is_told() -> None:
    other = network(SMALL)
    with torch.no_grad():
        other.hash_layer.bias.add_(0.5)
    found = compared(other, file_of(), inputs_of(other, None, 30))
    assert (
        found.largest == pytest.approx(0.5, abs=1e-4)
        and "differ from those of PyTorch by up to 0.5" in found.why_unlike
    )
    assert found.differing and all(one.torch >= 0 > one.onnx for one in found.differing)


def test_bits_of_outputs_near_zero_may_differ() -> None:
    assert Compared(9, 2e-5, (Differing(1, 2, 1e-5, -1e-5),)).why_unlike == ""
    assert Compared(9, 3e-4, ()).why_unlike


class Unlike(nn.Module):
    outputs = 4

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.linalg.svd(images.mean(dim=1)[:, :4, :4])[1]
        return found


def test_a_network_of_steps_that_onnx_has_not_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    net = network(ModelConfig("dsh-cnn", 4, 1, 16))
    net.backbone, net.hash_layer = Unlike(), nn.Linear(4, 4)
    with pytest.raises(DshError, match="^dsh-cnn cannot be exported to ONNX: .*svd"):
        onnx_bytes(net, {})
    assert capfd.readouterr() == ("", "")  # no graph


def test_a_network_too_large_for_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST", 1000)
    with pytest.raises(DshError, match="does not fit in one ONNX file"):
        file_of()


def changed(content: bytes) -> Iterator[tuple[bytes, str]]:
    """Files that are none, or say other things of themselves, and why they are refused."""
    yield b"no model", "onnxruntime: "
    yield content[: len(content) // 2], "onnxruntime: "
    made = onnx.load_model_from_string(content)
    del made.metadata_props[:]
    said = {None: "says nothing of the model", "{": "no JSON", "[" * 100_000: "no JSON", "[1]": "no object of JSON"}
    for text, why in said.items():
        if text is not None:
            onnx.helper.set_model_props(made, {ABOUT: text})
        yield made.SerializeToString(), why


def test_files_that_are_none_are_refused() -> None:
    for content, why in changed(file_of()):
        with pytest.raises(ValueError, match=why):
            opened(content)


def test_a_graph_that_does_not_fit_what_it_says_is_refused() -> None:
    session, _ = opened(file_of())
    for wrong in (ModelConfig("dsh-cnn", 8, 1, 16), ModelConfig("dsh-cnn", 9, 3, 16), ModelConfig("dsh-cnn", 9, 1, 17)):
        with pytest.raises(ValueError, match="does not fit the model"):
            OnnxEncoder(session, wrong, "m")
    with pytest.raises(ValueError, match="does not fit the model"):
        OnnxEncoder(session, MODELS["vectors"], "m")


@pytest.mark.parametrize(
    ("device", "gpu", "cpu"),
    [("auto", False, True), ("auto", True, False), ("cpu", True, True), ("cuda", False, False)],
)
def test_the_device_is_told_without_torch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, device: str, gpu: bool, cpu: bool
) -> None:
    there = tmp_path / "gpu"
    if gpu:
        there.touch()
    monkeypatch.setattr(onnx_encoding, "_GPUS", (str(there),))
    monkeypatch.setattr(onnx_encoding, "_has_gpus", lambda torch: True)
    assert onnx_encoding.is_cpu(device) is cpu
    monkeypatch.setattr(onnx_encoding, "_has_gpus", lambda torch: False)  # which PyTorch was not built for
    assert onnx_encoding.is_cpu("auto")


@pytest.mark.parametrize(
    ("line", "gpus"),
    [
        ("cuda: Optional[str] = '13.0'", True),
        ("hip: Optional[str] = '6.4'", True),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None", False),
        ("cuda = None", False),
        ('cuda = "11.8"', True),
    ],
)
def test_what_pytorch_was_built_for_is_told_by_its_file(tmp_path: Path, line: str, gpus: bool) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.14.1'\n{line}\n")
    assert onnx_encoding._has_gpus(str(tmp_path)) is gpus


def test_an_onnxruntime_that_cannot_be_loaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="onnxruntime cannot be loaded .*pip install onnxruntime"):
        opened(b"")


def test_weights_in_other_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = onnx.load_model_from_string(file_of())
    onnx.save_model(made, "m.onnx", save_as_external_data=True, location="secret", size_threshold=0)
    assert Path("secret").stat().st_size > 0
    with pytest.raises(ValueError, match="secret"):
        opened(Path("m.onnx").read_bytes())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that PyTorch can use")
@pytest.mark.parametrize("name", ["airbench, colour, mirrored", "torchvision"])
def test_a_gpu_gives_the_codes_of_the_cpu(name: str) -> None:
    net = network(MODELS[name])
    pictures = inputs_of(net, None, 50)
    here = TorchEncoder(net).relaxed(pictures)
    there = TorchEncoder(net.to("cuda")).relaxed(pictures)
    differ = binarize(here) != binarize(there)
    assert not (differ & (np.abs(here) > NEAR_ZERO)).any()


def test_what_it_says_of_itself_is_kept() -> None:
    _, about = opened(file_of(classes=["été", 'a"b']))
    assert about["classes"] == ["été", 'a"b'] and about["model"] == json.loads(json.dumps(asdict(SMALL)))
