"""An exported network -> codes, by onnxruntime. Free of torch, which takes seconds to import."""

from __future__ import annotations

import ctypes.util
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dsh_cli.config import ModelConfig
from dsh_cli.errors import DshError, EngineError, lacking_memory, reason
from dsh_cli.network.encoder import Encoder

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INSTALL = "pip install dsh-cli"  # with all it takes
INPUT, OUTPUTS = "input", ("relaxed", "packed")  # names in the graph
ABOUT = "dsh"  # the entry of the file's metadata that says what it is
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # by which Nvidia's, those of Windows and AMD's are reached
LARGEST = 1_500_000_000  # bytes of a file: two thousand million are the most that its format can say


def has_engine() -> bool:
    """Whether onnxruntime is there."""
    return find_spec("onnxruntime") is not None


def is_cpu(device: str) -> bool:
    """Whether a device is the CPU, or `auto` where there is no GPU, as far as can be told without torch."""
    if device != "auto" or (torch := find_spec("torch")) is None:
        return device in ("auto", "cpu")
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    library = ctypes.util.find_library("nvcuda") if sys.platform == "win32" else None
    reached = bool(library) or any(map(os.path.exists, _GPUS))
    return not (apple or (reached and any(map(_has_gpus, torch.submodule_search_locations or ()))))


def _has_gpus(torch: str) -> bool:
    """Whether a PyTorch that is installed in such a folder was built for GPUs, by the file in which it says so."""
    try:
        return re.search(r"^(cuda|hip)\b.*=\s*['\"]", Path(torch, "version.py").read_text(), re.MULTILINE) is not None
    except OSError:
        return True


def opened(content: bytes) -> tuple[InferenceSession, dict[str, Any]]:
    """A file that `dsh export` wrote, ready to compute in the thread that asks, and what it says of itself.

    Raises:
        EngineError: onnxruntime is not installed, or cannot be loaded.
        ValueError: it is no such file; the message says why.
        MemoryError: there is no room for it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # of which its initialisation makes this
            raise
        raise EngineError(f"onnxruntime cannot be loaded ({reason(error)}): pip install onnxruntime") from error

    onnxruntime.set_default_logger_severity(4)  # what goes wrong is told by the errors it raises
    options = onnxruntime.SessionOptions()
    # weights are in the file itself: others are looked for where no folder can be
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", f"{os.devnull}/none")
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # workers have a processor each
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # each of its own, and of no common kind
        _refuse(error)
    return session, _about(session.get_modelmeta().custom_metadata_map)


def digest_of(graph: bytes, about: Mapping[str, Any]) -> str:
    """32 hex digits that change with any bit of a file: of its graph, and of what it says but for the digest itself."""
    said = {name: value for name, value in about.items() if name != "digest"}
    return hashlib.blake2b(graph + json.dumps(said, sort_keys=True).encode(), digest_size=16).hexdigest()


def require_whole(content: bytes, about: Mapping[str, Any]) -> None:
    """Check a file against the digest that it carries. What it says stands behind the graph, whose size it names.

    Raises:
        ValueError: it has changed since it was written, or has no digest.
    """
    size = about.get("graph_bytes")
    graph = content[:size] if isinstance(size, int) and 0 < size <= len(content) else b""
    if about.get("digest") != digest_of(graph, about):
        raise ValueError("it has changed since it was written")


class OnnxEncoder(Encoder):
    """An exported network as it makes codes, on the CPU.

    Args:
        session: of the file.
        model: what it says it is.
        name: of the file, for errors.

    Raises:
        ValueError: its graph is of no such model.
    """

    def __init__(self, session: InferenceSession, model: ModelConfig, name: str) -> None:
        super().__init__(model)
        _require_ends(session, model)
        self._session, self._name = session, name

    def _computed(self, inputs: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return self.both(inputs)[0]
        except ValueError as error:
            raise DshError(f"{self._name} is damaged ({error}); export its run again") from error

    def both(self, inputs: NDArray[np.uint8] | NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """(n, H, W, channels) pictures or (n, d) vectors -> (n, k) outputs, and (n, ceil(k / 8)) codes of the graph.

        Raises:
            ValueError: the graph is damaged.
            MemoryError: there is no room for what it computes.
        """
        try:
            relaxed, packed = self._session.run(OUTPUTS, {INPUT: inputs})
        except Exception as error:
            _refuse(error)
        if relaxed.shape != (len(inputs), self.bits) or packed.shape != (len(inputs), -(-self.bits // 8)):
            raise ValueError(f"it gives outputs of shape {relaxed.shape} for {len(inputs)} inputs")
        return relaxed, packed


def _refuse(error: Exception) -> NoReturn:
    """Say of what onnxruntime raises what it is.

    Raises:
        MemoryError: it has no room.
        ValueError: the file is none that it can read, or does not fit what it is given.
    """
    if lacking_memory(error) is not None or "bad_alloc" in str(error) or "Failed to allocate" in str(error):
        raise MemoryError(str(error)) from error
    raise ValueError(f"onnxruntime: {reason(error)[:300]}") from error


def _about(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What the file says of itself."""
    try:
        about = json.loads(metadata[ABOUT])
    except KeyError as error:
        raise ValueError("it says nothing of the model it is") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"what it says of itself is no JSON ({reason(error)})") from error
    if not isinstance(about, dict):
        raise ValueError("what it says of itself is no object of JSON")
    return about


def _require_ends(session: InferenceSession, model: ModelConfig) -> None:
    """Refuse a graph that does not take what such a model takes, or does not give what it gives.

    Raises:
        ValueError: it does not.
    """
    wanted = [model.width] if model.of_vectors else [model.image_size, model.image_size, model.channels]
    kind = "tensor(float)" if model.of_vectors else "tensor(uint8)"
    taken = [(end.name, end.type, list(end.shape[1:])) for end in session.get_inputs()]
    given = sorted((end.name, end.type, list(end.shape[1:])) for end in session.get_outputs())
    ends = [
        ("packed", "tensor(uint8)", [-(-model.bits // 8)]),
        ("relaxed", "tensor(float)", [model.bits]),
    ]
    if taken != [(INPUT, kind, wanted)] or given != ends:
        raise ValueError("its graph does not fit the model that it says it is")
