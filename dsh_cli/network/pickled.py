"""What `torch.save` wrote, read in a process of its own: a pickle of a few bytes can take hours and all memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dsh_cli import bounded
from dsh_cli.errors import WeightsError

_A_SECOND = 1 << 27  # bytes that are read in one, however slow the machine
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # under which checkpoints keep the weights


def tensors_of(data: bytes) -> dict[str, Tensor]:
    """The tensors of a state dict by name, on the CPU; nothing else that is in the file, and nothing in it is executed.

    Raises:
        bounded.Failed: it cannot be read without executing code, or not within the bounds, which grow with the file.
    """
    memory = max(bounded.MEMORY - 2 * len(data), 3 * len(data))
    found: dict[str, Tensor] = safetensors.torch.load(
        bounded.ask(__name__, None, data, memory, bounded.SECONDS + len(data) // _A_SECOND)
    )
    return found


def serve() -> None:
    """The other side: read what is given."""
    torch.set_num_threads(1)
    bounded.serve(_read)


def _read(_: Any, data: bytes, wait: bounded.Wait) -> bytes:
    """The tensors of a state dict as safetensors."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of old pickle protocols: they are read, or refused below
            content: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        for wrapper in _WRAPPERS:
            if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
        named = content.items() if isinstance(content, Mapping) else ()
        tensors = {name: value for name, value in named if isinstance(name, str) and _is_plain(value)}
        del content, named
        for name, value in tensors.items():  # each in memory of its own: nets with tied weights share it
            tensors[name] = value.detach().contiguous().clone()
        written: bytes = safetensors.torch.save(tensors)
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise WeightsError(
            "is damaged, or holds more than tensors, which would take running code from it; "
            "save plain weights with: torch.save(net.state_dict(), FILE)"
        ) from error
    return written


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_complex() or value.is_quantized)
    )
