"""Weights to start from: every usual form is taken, nothing is executed, and no run needs them again."""

import hashlib
import json
import os
import shutil
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision import models

from dsh_cli import bounded
from dsh_cli.config import ModelConfig
from dsh_cli.errors import DshError, WeightsError
from dsh_cli.network import weights
from dsh_cli.network.model import HashNet
from dsh_cli.network.presets import preset
from dsh_cli.network.weights import take_file, take_pretrained
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json, one_line_error
from tests.support.runs import edit
from tests.support.values import there

NAME = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def theirs() -> dict[str, Tensor]:
    """The state of a whole torchvision model."""
    torch.manual_seed(7)
    state: dict[str, Tensor] = models.get_model(NAME, weights=None).state_dict()
    return state


@pytest.fixture
def net() -> HashNet:
    return HashNet(ModelConfig(NAME, 8, 3, 32))


def has_taken(net: HashNet, theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in net.backbone.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_every_usual_form_is_taken(
    net: HashNet, theirs: dict[str, Tensor], prefix: str, wrapper: str | None, form: str
) -> None:
    state = {prefix + name: tensor for name, tensor in theirs.items()}
    if form == "safetensors":
        safetensors.torch.save_file(state, "weights")
    else:
        torch.save({wrapper: state, "epoch": 3} if wrapper else state, "weights")
    taken = take_file(net, "weights")
    assert has_taken(net, theirs)
    assert (taken.tensors, taken.offered, taken.normalised) == (len(theirs) - 2, len(theirs), True)
    assert str(taken) == "took 242 of 244 tensors from weights"
    assert torch.allclose(net.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))


def test_a_backbone_alone_is_enough(net: HashNet, theirs: dict[str, Tensor]) -> None:
    torch.save({name: theirs[name] for name in net.backbone.state_dict()}, "weights.pt")
    take_file(net, "weights.pt")
    assert has_taken(net, theirs)


def test_a_run_brings_its_own_normalisation(net: HashNet) -> None:
    other = HashNet(ModelConfig(NAME, 48, 3, 64))
    other.mean.fill_(0.25)
    Path("run").mkdir()
    safetensors.torch.save_file(other.state_dict(), "run/model.safetensors")
    assert take_file(net, "run").normalised
    assert has_taken(net, other.backbone.state_dict()) and (net.mean == 0.25).all()
    assert net.hash_layer.weight.shape == (8, 1024)


def test_the_names_of_torchvisions_old_files_are_understood() -> None:
    """Its DenseNets say norm.1 for norm1, and files of that time count no batches."""
    net = HashNet(ModelConfig("densenet121", 8, 3, 32))
    state = models.densenet121(weights=None).state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".norm2.", ".norm.2.").replace(".conv1.", ".conv.1."): tensor
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, "weights.pth")
    take_file(net, "weights.pth")
    assert has_taken(net, state)


def test_weights_of_another_network_are_refused_by_the_first_wrong_tensor(
    net: HashNet, theirs: dict[str, Tensor]
) -> None:
    torch.save(models.resnet18(weights=None).state_dict(), "weights.pt")
    with pytest.raises(WeightsError, match=r"does not fit mobilenet_v3_small: it has 0 of the 242 tensors that are "):
        take_file(net, "weights.pt")
    torch.save({**theirs, "features.0.0.weight": torch.zeros(1)}, "weights.pt")
    with pytest.raises(WeightsError, match=r"'features.0.0.weight' is \(1,\) there, and \(16, 3, 3, 3\) here"):
        take_file(net, "weights.pt")
    torch.save({name: theirs[name] for name in theirs if name != "features.12.0.weight"}, "weights.pt")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError, match="has 241 of the 242 tensors that are needed, and no 'features.12.0.weight'"):
        take_file(net, "weights.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


class Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("harmed",))


@pytest.mark.parametrize("content", [Harm(), {"state_dict": {}, "args": Harm()}, torch.nn.Linear(2, 2)])
def test_nothing_is_executed(net: HashNet, content: object) -> None:
    torch.save(content, "weights.pt")
    with pytest.raises(WeightsError, match="would take running code from it; save plain weights with: torch.save"):
        take_file(net, "weights.pt")
    assert not Path("harmed").exists()


@pytest.mark.parametrize("harm", ["empty", "text", "truncated.pt", "truncated.safetensors", "no tensors", "folder"])
def test_what_holds_no_weights_gets_one_line(theirs: dict[str, Tensor], harm: str) -> None:
    if harm.startswith("truncated"):
        torch.save(theirs, "whole") if harm.endswith("pt") else safetensors.torch.save_file(theirs, "whole")
        Path(harm).write_bytes(Path("whole").read_bytes()[:5000])
    elif harm == "no tensors":
        torch.save({"epoch": 3}, harm)
    elif harm == "folder":
        Path(harm).mkdir()
    else:
        Path(harm).write_text("" if harm == "empty" else "these are words, not weights")
    result = dsh("train", "digits", "--backbone", NAME, "--weights", harm, "--out", "run", "--quiet")
    assert str(Path(harm).absolute()) in one_line_error(result, 1)
    assert not Path("run").exists()


# --pretrained


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch.hub keeps what it downloaded; downloads fail."""

    def offline(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_a_pretrained_run_has_its_weights_size_and_normalisation_and_needs_no_cache(
    cache: Path, theirs: dict[str, Tensor], photos: Path
) -> None:
    cache.mkdir(parents=True)
    torch.save(theirs, cache / there(preset(NAME).url).rpartition("/")[2])
    options = ["--backbone", NAME, "--pretrained", "--freeze", "--epochs", 1, "--batch-size", 6, "--no-tensorboard"]
    result = dsh("train", photos, *options, "--out", "run", "--json")
    assert result.exit_code == 0 and "took 242 of 244 tensors from " in result.stderr
    assert json.loads(result.stdout)["run"] == "run"
    shutil.rmtree(cache)
    net = Run.open("run").load_model()
    assert net.config.image_size == 224 and has_taken(net, theirs)
    assert torch.allclose(net.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
    assert dsh_json("hash", photos / "plum" / "0.png", "--model", "run")["bits"] == 8
    table = dsh("info", "run", "--format", "table").stdout
    assert "mobilenet_v3_small pretrained and frozen, 8 bits, colour 224 x 224" in table


def test_weights_that_cannot_be_fetched_say_where_a_file_can_be_put(cache: Path, photos: Path) -> None:
    result = dsh("train", photos, "--backbone", NAME, "--pretrained", "--image-size", 32, "--out", "run", "--json")
    assert result.exit_code == 1 and result.stdout == ""
    url, file = preset(NAME).url, cache / "mobilenet_v3_small-047dcff4.pth"
    assert result.stderr.splitlines()[-1] == (
        f"error: cannot download {url} (<urlopen error no route>); put that file at {file}, or name it with --weights"
    )
    assert not Path("run").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_download_arrives_whole_or_not_at_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    net: HashNet,
    theirs: dict[str, Tensor],
    whole: bool,
) -> None:
    torch.save(theirs, "server.pth")
    digest = hashlib.sha256(Path("server.pth").read_bytes()).hexdigest()[:8] if whole else "00000000"
    served = Path(f"net-{digest}.pth").absolute()
    os.rename("server.pth", served)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "preset", lambda name: replace(preset(name), url=served.as_uri()))
    if whole:
        take_pretrained(net)
        assert has_taken(net, theirs)
    else:
        with pytest.raises(WeightsError, match="cannot download file:.*invalid hash value"):
            take_pretrained(net)
    assert [file.name for file in (tmp_path / "torch" / "hub" / "checkpoints").iterdir()] == [served.name] * whole
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"downloading {served.as_uri()}\n")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_whose_weights_expect_another_range_get_it(name: str) -> None:
    """Torchvision converts inside the network; here the normalisation does, to the same numbers."""
    expected = models.get_model_weights(name).DEFAULT.transforms()
    theirs = models.get_model(name, weights=None, init_weights=False, transform_input=True)
    images = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (expected.mean, expected.std))
    inside = theirs._transform_input((images - mean) / std)
    ours = preset(name)
    assert torch.allclose((images - ours.mean[0]) / ours.std[0], inside, atol=1e-6)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze"], "there are no weights to freeze; give --pretrained or --weights"),
        (["--pretrained"], "no such weights of airbench"),
        (["--pretrained", "--backbone", "resnet18", "--weights", "."], "give one of them"),
        (["--weights", "none.pt"], "--weights none.pt: there is no such file"),
        (["--clip", "0"], "--clip 0.0: above 0"),
        (["--backbone", "resnet81"], "did you mean resnet18"),
        (["--backbone", "alexnet"], "--image-size 8: alexnet does not take"),
    ],
)
def test_what_no_run_could_do_is_refused(options: list[str], message: str) -> None:
    assert message in one_line_error(dsh("train", "digits", "--out", "run", "--quiet", *options), 2)
    assert not Path("run").exists()


def test_a_recipe_taken_again_keeps_its_start_and_can_change_it(digits_run: Path) -> None:
    options = ["--epochs", 1, "--batch-size", 600, "--no-tensorboard", "--quiet"]
    shutil.copytree(digits_run, "from")
    first = ["--weights", "from", "--freeze", "--amp", "--clip", 2]
    assert dsh("train", "digits", *first, *options, "--out", "one").exit_code == 0
    assert dsh("train", "--like", "one", "--quiet", "--out", "two").exit_code == 0
    assert Run.open("one").config == Run.open("two").config
    assert Run.open("two").config.weights == str(Path("from").absolute())
    assert dsh("train", "--like", "two", "--no-freeze", "--no-amp", "--quiet", "--out", "three").exit_code == 0
    assert (Run.open("three").config.freeze, Run.open("three").config.amp) == (False, False)
    table = " ".join(dsh("info", "one", "--format", "table", env={"COLUMNS": "300"}).stdout.split())
    assert f"airbench from {Path('from').absolute()} and frozen" in table and "clip 2, bfloat16" in table


def test_runs_from_before_these_options_still_open(digits_run: Path) -> None:
    shutil.copytree(digits_run, "run")
    head = json.loads(Path("run/config.json").read_text())
    for name in ("pretrained", "weights", "freeze", "clip", "amp", "compile", "centers", "hold_out_classes"):
        del head["config"][name]
    edit(Path("run/config.json"), config=head["config"])
    assert Run.open("run").config == replace(Run.open(digits_run).config, amp=False, centers="none")


# Hostile files


def zipped(pickle: bytes, name: str, compression: int = zipfile.ZIP_STORED) -> None:
    """A file as `torch.save` writes it, with such a pickle."""
    with zipfile.ZipFile(name, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def nested(depth: int) -> bytes:
    """A dict with a key that takes 2^depth steps to hash: a tuple of one tuple twice, and so on."""
    levels = b"".join(b"q%ch%c\x86" % (number, number) for number in range(depth))
    return b"\x80\x02}K\x01\x85" + levels + b"K\x01s."


@pytest.mark.parametrize("harm", ["bytearray", "key", "unfolds"])
def test_a_pickle_that_takes_hours_or_all_memory_is_given_up(
    net: HashNet, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 2)
    if harm == "bytearray":
        zipped(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.", "x.pt")
    elif harm == "key":
        zipped(nested(60), "x.pt")
    else:
        monkeypatch.setattr(bounded, "MEMORY", 200 << 20)
        zipped(b"\x80\x02}." + bytes(250 << 20), "x.pt", zipfile.ZIP_DEFLATED)
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"^x.pt (takes more than|is damaged, or holds more than tensors)"):
        take_file(net, "x.pt")
    assert time.monotonic() - started < 30


def test_a_head_of_safetensors_that_claims_to_be_huge_is_not_read(net: HashNet) -> None:
    Path("x").write_bytes((1 << 40).to_bytes(8, "little") + b"{" + bytes(99))
    with pytest.raises(WeightsError, match="x is damaged .a head of 1,099,511,627,776 bytes"):
        take_file(net, "x")


def test_files_larger_than_weights_can_be_are_not_read(net: HashNet) -> None:
    Path("x").touch()
    os.truncate("x", 1 << 40)
    with pytest.raises(WeightsError, match="x has 1,099,511,627,776 bytes, and no weights of this network have more"):
        take_file(net, "x")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_in_place_of_weights_is_not_waited_for(net: HashNet) -> None:
    os.mkfifo("pipe")
    with pytest.raises(WeightsError, match="pipe cannot be read .not a regular file"):
        take_file(net, "pipe")


def test_the_weights_of_a_run_are_not_reached_through_a_link(net: HashNet, theirs: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(theirs, "elsewhere")
    Path("run").mkdir()
    Path("run/model.safetensors").symlink_to("../elsewhere")
    with pytest.raises(DshError, match="run/model.safetensors is a link"):
        take_file(net, "run")


@pytest.mark.parametrize("form", ["torch", "safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_finite_numbers_are_damaged(
    net: HashNet, theirs: dict[str, Tensor], form: str, value: float
) -> None:
    name = "features.0.0.weight"
    spoiled = {**theirs, name: theirs[name].clone()}
    spoiled[name].view(-1)[5] = value
    (torch.save if form == "torch" else safetensors.torch.save_file)(spoiled, "x")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError, match=f"x is damaged: {name!r} has values that are no finite numbers"):
        take_file(net, "x")
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_tied_and_strided_weights_come_as_they_are(net: HashNet, theirs: dict[str, Tensor]) -> None:
    name = "features.0.0.weight"
    strided = {**theirs, name: theirs[name].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)}
    torch.save({**strided, "tied": strided[name], "sparse": torch.eye(3).to_sparse()}, "x")
    take_file(net, "x")
    assert has_taken(net, theirs)
