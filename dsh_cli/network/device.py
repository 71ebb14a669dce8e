"""The device to compute on."""

from __future__ import annotations

import os

import torch

from dsh_cli.errors import UsageError

# What speed rests on, the newest last, and what PyTorch calls it; then how many of these a setting leaves.
_INSTRUCTIONS = {"avx2": "avx2", "avx512": "avx512_f", "avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16"}
_ONEDNN = {
    **dict.fromkeys(("sse41", "avx"), 0),
    **dict.fromkeys(("avx2", "avx2_vnni", "avx2_vnni_2"), 1),
    **dict.fromkeys(("avx512_core", "avx512_core_vnni"), 2),
    **dict.fromkeys(("avx512_core_bf16", "avx512_core_fp16", "avx10_1_512"), 3),
}
_ATEN = {"default": 0, "avx2": 1}


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


def instructions() -> tuple[str, ...]:
    """Of avx2, avx512, avx512_bf16 and amx_bf16, those that a training may use here.

    They are the processor's, but for what is kept from oneDNN by `ONEDNN_MAX_CPU_ISA`, or from PyTorch's own kernels
    by `ATEN_CPU_CAPABILITY`.
    """
    has = torch.cpu.get_capabilities()
    held = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).lower()
    own = os.environ.get("ATEN_CPU_CAPABILITY", "").lower()
    most = min(_ONEDNN.get(held, len(_INSTRUCTIONS)), _ATEN.get(own, len(_INSTRUCTIONS)))
    return tuple(name for name, spoken in list(_INSTRUCTIONS.items())[:most] if has.get(spoken))
