"""Weights to start from: torchvision's, or those of a file. A finished run has its own, and needs none of this."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from dsh_cli import bounded
from dsh_cli.config import OWN_BACKBONES, TIMM
from dsh_cli.errors import WeightsError, reason
from dsh_cli.files import STALLED, open_regular, require_no_links, socket_timeout
from dsh_cli.network import pickled
from dsh_cli.network.model import HashNet, timm_network
from dsh_cli.network.presets import file_of, preset

_MOST = 1 << 28  # bytes of a file for the smallest networks; for others 16 times their weights, as of an optimizer
_MAX_HEAD = 1 << 23  # bytes of the head of a safetensors file: 100 for each tensor
_PREFIXES = ("", "backbone.", "module.", "model.", "_orig_mod.")  # of a run; data parallel, Lightning, compiled nets
_HASH = re.compile(r"-([a-f0-9]{8,})\.")  # the head of a file's SHA-256, in the names PyTorch gives
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")  # torchvision's own files still say norm.1


@dataclass(frozen=True)
class Taken:
    """What a network took over."""

    source: str
    tensors: int  # taken, all of the backbone
    offered: int  # there; the rest is a class head, hash layer or auxiliary classifier
    normalised: bool  # mean and deviation came with them

    def __str__(self) -> str:
        return f"took {self.tensors} of {self.offered} tensors from {self.source}"


def take_pretrained(net: HashNet) -> Taken:
    """Torchvision's or timm's best weights for the backbone, and their normalisation; fetched where they are not yet.

    Raises:
        UsageError: the backbone is none of theirs.
        WeightsError: they cannot be fetched; the message says where the file can be put.
    """
    expected = preset(net.config.backbone)
    if expected.url is None:
        return _take_from_hub(net)
    file = file_of(expected)
    if not file.is_file():
        _download(expected.url, file)
    return take_file(net, file)


def _take_from_hub(net: HashNet) -> Taken:
    """Timm's weights, by the hub that it uses: with its cache, and its way to fit them to another picture size."""
    from huggingface_hub.utils import logging

    name = net.config.backbone.removeprefix(TIMM)
    sys.stderr.write(f"taking timm's weights of {name}, from its hub where they are not in the cache\n")
    told = logging.get_verbosity()
    logging.set_verbosity(40)  # errors alone: it tries again for a minute, and says so each time
    try:
        with redirect_stdout(sys.stderr), socket_timeout(STALLED):
            theirs, _ = timm_network(net.config.backbone, net.config.image_size, pretrained=True)
        net.backbone.load_state_dict(theirs.state_dict())
    except Exception as error:  # whatever a client, a mirror or a proxy raises
        raise WeightsError(
            f"cannot fetch timm's weights of {name} ({reason(error).partition('. ')[0]}); get the file elsewhere, and "
            "name it with `weights`"
        ) from error
    finally:
        logging.set_verbosity(told)
    tensors = len(net.backbone.state_dict())
    return Taken(f"timm's {name}", tensors, tensors, _take_normalisation(net, {}))


def take_file(net: HashNet, path: str | Path) -> Taken:
    """The weights of a file for the whole backbone, which must all be there; other tensors are left.

    The file is safetensors or a state dict that `torch.save` wrote, of the backbone, of the whole torchvision model,
    or of a run of the same backbone; a folder is a run. Nothing in it is executed. The normalisation is a run's
    own; for other weights of a torchvision or timm model it is that of the weights these have.

    Raises:
        WeightsError: it cannot be read without executing code, or is not of this backbone; names the first tensor
            that is wrong.
    """
    file = Path(path)
    if file.is_dir():
        file /= "model.safetensors"
        require_no_links(file, Path(path))
    wanted = net.backbone.state_dict()
    tensors = _read(file, max(_MOST, 16 * sum(tensor.nbytes for tensor in wanted.values())))
    prefix = max(_PREFIXES, key=lambda prefix: sum(prefix + name in tensors for name in wanted))
    found = {name: tensors[prefix + name] for name in wanted if prefix + name in tensors}
    for name, tensor in wanted.items():
        if name not in found and name.endswith("num_batches_tracked"):  # unused here; older files have none
            continue
        if name not in found:
            raise WeightsError(
                f"{file} does not fit {net.config.backbone}: it has {len(found)} of the {len(wanted)} tensors that are "
                f"needed, and no {name!r}; choose the `backbone` it was made for"
            )
        if found[name].shape != tensor.shape:
            raise WeightsError(
                f"{file} does not fit {net.config.backbone}: {name!r} is {tuple(found[name].shape)} there, and "
                f"{tuple(tensor.shape)} here; choose the `backbone` and `image_size` it was made for"
            )
    normalisation = {name: tensors[name] for name in ("mean", "std") if name in tensors}
    for name, tensor in (found | normalisation).items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{file} is damaged: {name!r} has values that are no finite numbers; get it again")
    net.load_state_dict({f"backbone.{name}": tensor for name, tensor in found.items()}, strict=False)
    return Taken(str(file), len(found), len(tensors), _take_normalisation(net, tensors))


def _take_normalisation(net: HashNet, tensors: Mapping[str, Tensor]) -> bool:
    if {"mean", "std", "hash_layer.weight"} <= tensors.keys():
        net.mean.copy_(tensors["mean"])
        net.std.copy_(tensors["std"])
    elif net.config.backbone not in OWN_BACKBONES:
        expected = preset(net.config.backbone)
        net.mean.copy_(torch.tensor(expected.mean).view(3, 1, 1))
        net.std.copy_(torch.tensor(expected.std).view(3, 1, 1))
    else:
        return False
    return True


def _read(file: Path, most: int) -> dict[str, Tensor]:
    """The tensors of a file of up to `most` bytes by name, on the CPU."""
    try:
        descriptor = open_regular(file)
        with os.fdopen(descriptor, "rb") as opened:
            if (size := os.fstat(descriptor).st_size) > most:
                raise WeightsError(
                    f"{file} has {size:,} bytes, and no weights of this network have more than {most:,}; choose the "
                    "`backbone` it was made for"
                )
            data = opened.read(size)
        named = _safetensors(data) if data[8:9] == b"{" else pickled.tensors_of(data)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise WeightsError(f"{file} cannot be read ({reason(error)}); name another file with `weights`") from error
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{file} is damaged ({error}); get it again") from error
    except bounded.Failed as error:
        raise WeightsError(f"{file} {error}") from error
    tensors = {_OLD_DENSENET.sub(r"\1\2.", name): value for name, value in named.items()}
    if not tensors:
        raise WeightsError(f"{file} holds no tensors by name; save some with: torch.save(net.state_dict(), FILE)")
    return tensors


def _safetensors(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file: the length of its JSON head in 8 bytes, that head, and the numbers."""
    if (length := int.from_bytes(data[:8], "little")) > _MAX_HEAD:
        raise safetensors.SafetensorError(f"a head of {length:,} bytes")
    tensors: dict[str, Tensor] = safetensors.torch.load(data)
    return tensors


def _download(url: str, file: Path) -> None:
    """Fetch a file whole or not at all; progress goes to stderr."""
    hashed = _HASH.search(file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        sys.stderr.write(f"downloading {url}\n")
        with redirect_stdout(sys.stderr), socket_timeout(STALLED):
            torch.hub.download_url_to_file(
                url, str(file), hashed.group(1) if hashed else None, progress=sys.stderr.isatty()
            )
    except Exception as error:  # whatever a client, a mirror or a proxy raises
        raise WeightsError(
            f"cannot download {url} ({error}); put that file at {file}, or name it with `weights`"
        ) from error
