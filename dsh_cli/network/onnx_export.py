"""A network -> an ONNX file that takes pictures as they are read, and gives outputs and packed codes."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dsh_cli.codes.bits import binarize, unpack
from dsh_cli.config import ModelConfig
from dsh_cli.errors import DshError, EngineError, reason
from dsh_cli.network.encoder import NEAR_ZERO
from dsh_cli.network.encoding import TorchEncoder, to_float
from dsh_cli.network.model import HashNet
from dsh_cli.network.onnx_encoding import ABOUT, INPUT, INSTALL, LARGEST, OUTPUTS, OnnxEncoder, digest_of, opened

_OPSET = 17  # of 2022: the first with layer normalisation in one step
_BITS = 8  # in a byte
_PIXELS = 10_000 * 32 * 32  # of all pictures that are compared, about
_SEED = 0  # of what is compared where there are no pictures


class _WithCodes(nn.Module):
    """Normalisation, network, sign and packing, of pictures (B, H, W, channels) uint8 or vectors (B, d)."""

    weights: Tensor

    def __init__(self, net: HashNet) -> None:
        super().__init__()
        self.net, self.of_vectors = net.folded(), net.config.of_vectors
        self.bytes, self.unused = -(-net.config.bits // _BITS), -net.config.bits % _BITS  # bits of the last byte
        self.register_buffer("weights", 2.0 ** torch.arange(_BITS - 1, -1, -1))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        relaxed = self.net(inputs if self.of_vectors else to_float(inputs))
        bits = nn.functional.pad((relaxed >= 0).float(), (0, self.unused))
        return relaxed, (bits.reshape(-1, self.bytes, _BITS) @ self.weights).to(torch.uint8)


@contextlib.contextmanager
def _in_plain_steps() -> Iterator[None]:
    """Let attention be computed in steps that ONNX has, not in one of PyTorch's own; and no graph be printed."""
    fast, inner = torch.backends.mha.get_fastpath_enabled(), cast(Any, torch._C)
    printing = getattr(inner, "_jit_onnx_log", None)
    torch.backends.mha.set_fastpath_enabled(False)
    inner._jit_onnx_log = lambda *_: None  # PyTorch 2.14 switches it on whatever is asked for
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        inner._jit_onnx_log = printing


def onnx_bytes(net: HashNet, about: Mapping[str, Any]) -> bytes:
    """The file, with `about` as JSON among its metadata.

    Raises:
        DshError: the network has steps that ONNX has not, or is too large for one file.
    """
    weights = sum(tensor.nbytes for tensor in net.state_dict().values())
    if weights > LARGEST:
        raise DshError(f"a network of {weights / 1e9:.1f} GB does not fit in one ONNX file, which has 2 GB at most")

    try:
        import onnx
    except ImportError as error:
        raise EngineError(f"onnx cannot be loaded ({reason(error)}): {INSTALL}") from error

    model = net.config
    shape = (model.width,) if model.of_vectors else (model.image_size, model.image_size, model.channels)
    example = torch.zeros(2, *shape, dtype=torch.float32 if model.of_vectors else torch.uint8)
    written = io.BytesIO()
    whole = _WithCodes(net).cpu().eval()
    with warnings.catch_warnings(action="ignore"), torch.no_grad(), _in_plain_steps():
        try:
            # PyTorch's older exporter: a tenth of the time of the newer one, and it needs no onnxscript.
            torch.onnx.export(
                whole,
                (example,),
                written,  # type: ignore[arg-type]  # which is said of the newer exporter alone
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "n"} for name in (INPUT, *OUTPUTS)},
                opset_version=_OPSET,
                dynamo=False,
            )
        except (RuntimeError, TypeError, ValueError) as error:
            raise DshError(f"{model.backbone} cannot be exported to ONNX: {reason(error)[:300]}") from error
    made = onnx.load_model_from_string(written.getvalue())
    made.producer_name = "dsh"
    graph: bytes = made.SerializeToString()
    said = {**about, "graph_bytes": len(graph)}
    onnx.helper.set_model_props(made, {ABOUT: json.dumps(said | {"digest": digest_of(graph, said)})})
    content: bytes = made.SerializeToString()
    if not content.startswith(graph):  # for the digest; fields are written in the order of their numbers
        raise ValueError("onnx writes what is said of a model before its graph")
    return content


@dataclass(frozen=True)
class Differing:
    """A bit that two ways of computing a code do not agree on."""

    row: int  # of the input
    bit: int  # counted from 0
    torch: float  # the output
    onnx: float


@dataclass(frozen=True)
class Compared:
    """How far a file comes to the codes of its network."""

    count: int  # inputs
    largest: float  # difference of two outputs; of outputs above 1 as a part of these
    differing: tuple[Differing, ...]

    @property
    def why_unlike(self) -> str:
        """Why the file is not the network, in words; nothing where it is, but for what rounding does near zero."""
        if self.largest <= NEAR_ZERO and all(abs(one.torch) <= NEAR_ZERO for one in self.differing):
            return ""
        return f"its outputs differ from those of PyTorch by up to {self.largest:.2g}"


def tried(model: ModelConfig, count: int, most: int) -> NDArray[np.int64]:
    """Rows of so many pictures on which both ways are tried, evenly spread: of larger ones fewer."""
    most = max(1, min(most, _PIXELS // max(1, model.image_size) ** 2))
    return np.linspace(0, count - 1, min(most, count)).astype(np.int64)


def inputs_of(net: HashNet, thumbnails: NDArray[np.uint8] | None, most: int) -> NDArray[Any]:
    """What both ways are tried on: thumbnails, as large as the network takes pictures; else what is drawn by lot."""
    model, rng = net.config, np.random.default_rng(_SEED)
    if model.of_vectors:
        drawn: NDArray[np.float32] = rng.standard_normal((most, model.width), np.float32)
        drawn *= net.std.cpu().numpy()
        drawn += net.mean.cpu().numpy()
        return drawn
    side = model.image_size
    if thumbnails is None or not len(thumbnails):
        count = len(tried(model, most, most))
        return rng.integers(256, size=(count, side, side, model.channels), dtype=np.uint8)
    down, across = (np.arange(side) * length // side for length in thumbnails.shape[1:3])
    return np.ascontiguousarray(thumbnails[:, down][:, :, across])


def compared(net: HashNet, content: bytes, inputs: NDArray[Any]) -> Compared:
    """Compute outputs and codes of inputs by a network and by its file.

    Raises:
        ValueError: the file is damaged, or its packed codes are not the signs of its outputs.
        DivergedError: an output is not finite.
    """
    session, _ = opened(content)
    there, largest, differing = OnnxEncoder(session, net.config, "the file"), 0.0, list[Differing]()
    here = TorchEncoder(net if net.mean.device.type == "cpu" else copy.deepcopy(net).cpu())
    for start in range(0, len(inputs), here.at_once):
        some = inputs[start : start + here.at_once]
        expected, (found, packed) = here.relaxed(some), there.both(some)
        if not (unpack(packed, net.config.bits) == binarize(found)).all():
            raise ValueError("its codes are not the signs of its outputs")
        largest = max(largest, float((np.abs(expected - found) / np.maximum(1, np.abs(expected))).max()))
        differing += [
            Differing(start + row, bit, float(expected[row, bit]), float(found[row, bit]))
            for row, bit in np.argwhere(binarize(expected) != binarize(found)).tolist()
        ]
    return Compared(len(inputs), largest, tuple(differing))
