import pytest
import torch

from dsh_cli.network.device import instructions

NEWEST = {"avx2": True, "avx512_f": True, "avx512_bf16": True, "amx_bf16": True, "avx": True}
ALL = ("avx2", "avx512", "avx512_bf16", "amx_bf16")


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({}, 4),
        ({"ONEDNN_MAX_CPU_ISA": "ALL", "ATEN_CPU_CAPABILITY": "avx512"}, 4),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, 4),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, 3),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, 2),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}, 1),
        ({"DNNL_MAX_CPU_ISA": "avx2"}, 1),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, 1),
        ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, 0),
        ({"ATEN_CPU_CAPABILITY": "default"}, 0),
    ],
)
def test_the_environment_holds_a_processor_to_fewer_instructions(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], left: int
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: NEWEST)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert instructions() == ALL[:left]


def test_a_processor_has_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": False})
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert instructions() == ("avx2",)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"neon": True})
    assert instructions() == ()
