"""The device to compute on."""

from __future__ import annotations

import torch

from dsh_cli.errors import UsageError


def choose_device(wanted: str) -> torch.device:
    """The device of that name, such as `cuda` or `cuda:1`, or the fastest there is for `auto`.

    Raises:
        UsageError: it is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        wanted = next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there.get(wanted.partition(":")[0]):
        raise UsageError(f"`device` {wanted}: this machine has none that PyTorch can use; try `device` cpu")
    return torch.device(wanted)
