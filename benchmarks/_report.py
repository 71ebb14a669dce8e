"""What every benchmark says of itself: machine, versions, commit, command; one row a result in RESULTS.md."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

import torch

from dsh_cli.network.device import instructions

# What holds a newer processor to AVX2: oneDNN, and PyTorch's own kernels. Both are read when torch starts.
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
RESULTS = Path(__file__).with_name("RESULTS.md")


def machine(device: str = "cpu") -> str:
    """Processor, cores and torch, and before them the GPU where that was used."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    return f"{gpu}{model}, {os.cpu_count()} cores, torch {torch.__version__}"


def hold_to_avx2() -> None:
    """Start this program anew, held to AVX2, if it is not yet."""
    if any(os.environ.get(name) != value for name, value in AVX2.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | AVX2)


def isa() -> str:
    """The newest of the instructions that a training may use here: avx2, avx512, avx512_bf16 or amx_bf16."""
    return (*instructions()[-1:], "none")[0]


def number_format(amp: bool) -> str:
    """What a training computes in."""
    return "bfloat16" if amp else "float32"


def forget_peak() -> None:
    """Let `peak` begin again from the memory that this process has now, where the system can."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")


def peak() -> int:
    """The most memory that this process has had, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) >> 10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def commit() -> str:
    """The commit, marked where the code differs from it; rows added to RESULTS.md do not count."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=RESULTS.parent.parent)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/RESULTS.md")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


def append(what: str, result: str, device: str = "cpu") -> None:
    """Add a row to RESULTS.md, failures included, and print it."""
    command = " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    row = f"| {date.today()} | {what} | {result} | `{command}` | {machine(device)} | {commit()} |\n"
    if not RESULTS.exists():
        RESULTS.write_text(
            "# Results\n\nEvery row was appended by the command it names; none was removed.\n\n"
            "| date | what | result | command | machine | commit |\n| --- | --- | --- | --- | --- | --- |\n"
        )
    with RESULTS.open("a") as file:
        file.write(row)
    print(row, end="", flush=True)
