"""Shared by all tests: an empty working folder, a small trained run, the command line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dsh_cli.codes.bits import from_hex
from dsh_cli.runs.run import Run
from dsh_cli.threads import default_workers
from tests.support import browser
from tests.support.browser import Browser
from tests.support.commands import DIGITS, dsh
from tests.support.stand_in import StandIn

os.environ.setdefault("OMP_NUM_THREADS", str(default_workers()))  # weights are compared, whatever else runs here
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has ignored in what it starts beside itself


@pytest.fixture(autouse=True)
def _nothing_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in a folder of its own, with no data, model or cache of the user's in reach."""
    monkeypatch.chdir(tmp_path)
    for name in ("DSH_DATA", "DSH_MODEL", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="session", autouse=True)
def _no_state_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept for a user from one command to the next, for fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on real data: scikit-learn's handwritten digits, 8 bits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    result = dsh(*DIGITS, "--bits", 8, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def digit_png(digits_run: Path, tmp_path: Path) -> Path:
    """A picture that this run was tested on, in a file."""
    pixels = Run.open(digits_run).thumbnails("test", [0])[0, :, :, 0]
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    return tmp_path / "digit.png"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
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


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """An index of four rows, in memory."""
    rows = [SimpleNamespace(path=f"/pictures/{i}.jpg", label=label) for i, label in enumerate(["x", None, "cat", "x"])]
    stand_in = StandIn(from_hex(["f0", "f1", "f0", "0f"], 8), rows)
    module = ModuleType("dsh_cli.index.index")
    monkeypatch.setattr(module, "Index", SimpleNamespace(open=lambda uri: stand_in), raising=False)
    monkeypatch.setitem(sys.modules, "dsh_cli.index.index", module)
    return stand_in


@pytest.fixture
def read_only(tmp_path: Path) -> str:
    """A folder that nobody may write into: the kernel's own where this is root, who may write anywhere else."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if not os.access(folder, os.W_OK):
        return "locked"
    if not os.path.isdir("/sys/kernel"):
        pytest.skip("root may write anywhere here")
    return "/sys"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = browser.find()
    if program is None:
        reason = f"no browser on the PATH (looked for {', '.join(browser.NAMES)})"
        if os.environ.get("DSH_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    with browser.started(program) as tab:
        yield tab
