"""Shared by all tests: an empty working folder, a small trained run, the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import browser
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dsh_cli.cli import app
from dsh_cli.codes.bits import from_hex
from dsh_cli.errors import DshError

DIGITS = ["train", "digits", "--epochs", "12", "--batch-size", "64", "--quiet", "--no-tensorboard"]


@pytest.fixture(autouse=True)
def _nothing_from_outside(tmp_path, monkeypatch):
    """Every test starts in a folder of its own, with no data, model or cache of the user's in reach."""
    monkeypatch.chdir(tmp_path)
    for name in ("DSH_DATA", "DSH_MODEL", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")


def dsh(*args: object, **kwargs) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(arg) for arg in args], **kwargs)


def dsh_json(*args: object):
    """Run a command that must succeed, and give what it printed as JSON."""
    result = dsh(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def dsh_process(*args: object, **kwargs) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own."""
    command = [sys.executable, "-m", "dsh_cli", *map(os.fspath, args)]
    return subprocess.run(command, capture_output=True, timeout=300, **kwargs)


def one_line_error(result: Result, exit_code: int) -> str:
    """What a command said that must fail: one line on stderr, nothing on stdout."""
    assert result.exit_code == exit_code, (result.exit_code, result.stderr, result.exception)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A run on real data: scikit-learn's handwritten digits, 8 bits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    result = dsh(*DIGITS, "--bits", 8, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of 3 classes with 6 colour pictures each, nested, one class easy to tell from another."""
    root = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for index, name in enumerate(("apple", "pear", "plum")):
        for i in range(6):
            pixels = rng.integers(0, 60, (40, 50, 3), np.uint8)
            pixels[..., index] += 180
            path = root / name / ("deep" if i % 2 else ".") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return root


class StandIn:
    """As much of an index as neighbours need, in memory."""

    def __init__(self, codes, rows, bits=8):
        self.bits, self._codes, self._rows, self.refuses = bits, codes, rows, False

    def __len__(self):
        return len(self._rows)

    def codes(self):
        return self._codes

    def labels(self):
        names = sorted({row.label for row in self._rows} - {None})
        return np.array([names.index(row.label) if row.label else -1 for row in self._rows]), names

    def rows(self, numbers):
        return [self._rows[number] for number in numbers]

    def require_rows(self):
        pass

    def require(self, run):
        if self.refuses:
            raise DshError("the index is of model aa, the run of model bb")


@pytest.fixture
def index(monkeypatch):
    """An index of four rows, in memory."""
    rows = [SimpleNamespace(path=f"/pictures/{i}.jpg", label=label) for i, label in enumerate(["x", None, "cat", "x"])]
    stand_in = StandIn(from_hex(["f0", "f1", "f0", "0f"], 8), rows)
    module = ModuleType("dsh_cli.index.index")
    module.Index = SimpleNamespace(open=lambda uri: stand_in)
    monkeypatch.setitem(sys.modules, "dsh_cli.index.index", module)
    return stand_in


@pytest.fixture
def read_only(tmp_path):
    """A folder that nobody may write into: the kernel's own where this is root, who may write anywhere else."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if not os.access(folder, os.W_OK):
        return "locked"
    if not os.path.isdir("/sys/kernel"):
        pytest.skip("root may write anywhere here")
    return "/sys"


@pytest.fixture(scope="module")
def chromium():
    program = browser.find()
    if program is None:
        reason = f"no browser on the PATH (looked for {', '.join(browser.NAMES)})"
        if os.environ.get("DSH_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with browser.started(program) as tab:
        yield tab
