"""Where there is no memory, one line says so, and what would take less."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dsh_cli.errors import lacking_memory
from tests.support.commands import dsh, one_line_error

CPU = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
GPU = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which"


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (MemoryError(), "more"),
        (RuntimeError("std::bad_alloc"), "more"),
        (RuntimeError(f"{CPU}5872025600 bytes. Error code 12 (Cannot allocate memory)"), "5,872.0 MB"),
        (torch.OutOfMemoryError(GPU), "20.00 MiB"),
        (RuntimeError("can't start new thread"), "another thread"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "more"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "more"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ImportError("libgomp.so.1: cannot open shared object file"), None),
        (OSError(errno.ENOENT, "No such file or directory"), None),
        (ValueError("cannot allocate 3 bytes"), None),
    ],
)
def test_libraries_say_in_many_ways_that_there_is_no_memory(error: Exception, asked: str | None) -> None:
    assert lacking_memory(error) == asked


def test_numpy_says_what_it_asked_for() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 50, np.uint8)
    assert lacking_memory(caught.value) == "1.00 PiB"


@pytest.mark.parametrize(
    ("command", "lower"),
    [
        (["train", "digits"], "lower --batch-size or --memory or --image-size or --workers, "),
        (["hash", "a.png"], "lower --workers, "),
        (["index", "add", "i.lance", "a.png"], "lower --workers, "),
        (["table"], ""),
    ],
)
def test_the_line_names_what_of_the_command_takes_less(
    command: list[str], lower: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64")

    monkeypatch.setattr("dsh_cli.runs.folders.find_run", fail)
    monkeypatch.setattr("dsh_cli.training.recipe.Request.opened", fail)
    line = one_line_error(dsh(*command), 1)
    said = f"error: out of memory: there is no room for 7.45 GiB; {lower}end other programs, or raise the limit"
    assert line == f"{said} (see: ulimit -v)"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_limit_of_the_address_space_ends_a_training_in_one_line(tmp_path: Path) -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (800 << 20, 800 << 20))"
    script = f"{limited}; from dsh_cli.cli import app; app(['train', 'digits', '--quiet', '--out', 'run'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "", done.stderr
    assert done.stderr.startswith("error: out of memory: there is no room for ") and done.stderr.count("\n") == 1
    assert "; lower --batch-size or " in done.stderr and not (tmp_path / "run").exists()
