"""The table of results: which rows count for which line of it."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, with no rows yet."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script = importlib.import_module("quality")
    monkeypatch.setattr(script, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(script.Cell, "code", "0123abcd")
    (tmp_path / "RESULTS.md").write_text("")
    return script


def measure(quality: ModuleType, group: str, figures: str, seed: int = 0, code: str = "0123abcd") -> None:
    with quality.RESULTS.open("a") as file:
        file.write(f"| 2026-11-27 | quality {group}, seed {seed} | {figures}, code {code} | `c` | m | c |\n")


AVX2 = "seconds 55.0, tflop 4.5, distance 4, format float32, isa avx2"
BEST = "seconds 29.0, tflop 4.5, distance 4, format bfloat16, isa amx_bf16"
GPU = "seconds 2.0, tflop 380, distance 22, format bfloat16, device cuda"


def test_rows_held_to_avx2_count_apart(quality: ModuleType) -> None:
    held = quality.Asked("held", "mnist-8", 0.991, 60, 5, distance=4, seeds=2, kind="avx2")
    best = quality.Asked("best", "mnist-8", 0.990, 30, distance=4, seeds=2)
    for seed in (0, 1):
        measure(quality, "mnist-8", f"mAP 0.9{seed + 1}00, {AVX2}", seed)
    assert (held.line().fine, best.line().fine) == (False, None)
    assert held.line().asked == "0.991 in 60 s, 5 TFLOP, distance 4"
    for seed in (0, 1):
        measure(quality, "mnist-8", f"mAP 0.992{seed}, {AVX2}", seed)
        measure(quality, "mnist-8", f"mAP 0.99{seed}0, {BEST}", seed)
    assert held.line().reached == "**0.9920** in 55 s, distance **4, 4**" and held.line().fine
    assert best.line().fine and best.line().reached.startswith("**0.9905** in 29 s")
    assert quality._on(held.line().rows) == "avx2, float32" and quality._tflop(held.line().rows) == "4.5"


@pytest.mark.parametrize("limit", [{"score": 0.993}, {"seconds": 54}, {"tflop": 4.4}, {"distance": 5}])
def test_each_limit_counts(quality: ModuleType, limit: dict[str, float]) -> None:
    measure(quality, "mnist-8", f"mAP 0.992, {AVX2}")
    fine = {"score": 0.992, "seconds": 55, "tflop": 4.5, "distance": 4}
    assert quality.Asked("a", "mnist-8", **fine, kind="avx2").line().fine
    assert not quality.Asked("a", "mnist-8", **fine | limit, kind="avx2").line().fine


def test_a_gpu_counts_for_map_alone_and_gives_way_to_a_processor(quality: ModuleType) -> None:
    group = "cifar-48-cifar10-2"
    measure(quality, group, f"mAP 0.9460, plain 0.9410, {GPU}")
    line = quality.Asked("a", group, 0.945, tflop=400).line()
    assert (line.fine, line.reached) == (True, "**0.9460** (0.9410 without the mirror image)")
    assert quality._on(line.rows) == "a GPU, bfloat16"
    assert quality.Asked("a", group, 0.945, 60).line().fine is None
    measure(quality, group, "mAP 0.9440, seconds 900.0, tflop 390, distance 22, format bfloat16, isa avx512_bf16")
    measure(quality, group, f"mAP 0.9460, {GPU}")
    assert quality.Asked("a", group, 0.945, tflop=400).line().reached == "**0.9440** in 900 s"


def test_seconds_left_out_count_for_map_alone(quality: ModuleType) -> None:
    group = "cifar-48"
    measure(quality, group, f"mAP 0.8710, {BEST.replace('seconds 29.0', 'seconds -')}")
    assert quality.Asked("a", group, 0.87, 60).line().fine is None
    line = quality.Asked("a", group, 0.87, tflop=400).line()
    assert (line.fine, line.reached) == (True, "**0.8710**")
    measure(quality, group, f"mAP 0.8720, {BEST}", seed=1)
    assert quality.Asked("a", group, 0.87).line().reached == "**0.8715** in 29 s, mean of 2 seeds"
    assert quality.Asked("a", group, 0.87, 60).line().reached == "**0.8720** in 29 s"


def test_cells_of_one_training_share_it(quality: ModuleType) -> None:
    by_group = {cell.group: cell for cell in quality.cells() if cell.config.seed == 0}
    paper, other = by_group["cifar-48"], by_group["cifar-48-cifar10-2"]
    assert paper.config == other.config and (paper.protocol, other.protocol) == (None, "cifar10-2")


def test_seeds_beyond_those_asked_for_count_too(quality: ModuleType) -> None:
    for seed, score in enumerate((0.87, 0.88, 0.86)):
        measure(quality, "cifar-48", f"mAP {score}, {GPU}", seed)
    line = quality.Asked("a", "cifar-48", 0.87, tflop=400).line()
    assert line.reached == "**0.8700**, mean of 3 seeds" and len(line.rows) == 3


def test_pairs_with_and_without_centers_are_of_one_seed(quality: ModuleType) -> None:
    for seed in range(5):
        measure(quality, "fashion-8", f"mAP 0.8{seed}, {BEST}", seed)
        measure(quality, "fashion-8 without centers", f"mAP 0.7{seed}, {BEST}", seed)
    line = quality.AgainstNone("a", "fashion-8", -0.002, 5).line()
    assert line.fine and line.reached == "**+0.1000** (0.8200, 0.7200 without)"
    assert quality.AgainstNone("a", "cifar-12", 0.0, 1).line().reached == "0 of 1 pairs measured"


def test_rows_of_other_code_do_not_count(quality: ModuleType) -> None:
    measure(quality, "mnist-8", f"mAP 0.992, {AVX2}", code="01234567")
    assert quality.Asked("a", "mnist-8", 0.99, kind="avx2").line().reached == "0 of 1 measured"
    assert all(line.fine is None for line in (one.line() for one in quality.wanted()))


def test_it_starts_itself_anew_held_to_avx2_and_once(quality: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    report = importlib.import_module("_report")
    begun: list[dict[str, str]] = []
    monkeypatch.setattr(report.os, "execve", lambda program, words, environment: begun.append(environment))
    for name in report.AVX2:
        monkeypatch.delenv(name, raising=False)
    report.hold_to_avx2()
    assert len(begun) == 1 and begun[0].items() >= report.AVX2.items()
    for name, value in report.AVX2.items():
        monkeypatch.setenv(name, value)
    report.hold_to_avx2()
    assert len(begun) == 1
    if sys.platform == "linux":
        report.forget_peak()
        assert 10 < report.peak() < 100_000
