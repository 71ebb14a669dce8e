"""Tables of many classes: the terminal shows some, plain lines and JSON all, and no form a matrix too large to read."""

from pathlib import Path

import pytest

from tests.support.commands import dsh, dsh_json
from tests.support.runs import small_run


def many(folder: Path, count: int) -> Path:
    names = [f"{number:05d}" for number in range(count)]
    rows = [(name, f"{number:04x}") for number, name in enumerate(names)]
    return small_run(folder, rows[:3], 16, rows[:3], rows, names)


def test_json_has_the_distances_of_up_to_a_thousand_classes(tmp_path: Path) -> None:
    at_most = dsh_json("table", "--model", many(tmp_path / "a", 1000))
    assert len(at_most["class_distances"]) == 1000 and at_most["class_distances"][1][6] == 3
    more = dsh_json("table", "--model", many(tmp_path / "b", 1001))
    assert more["class_distances"] is None and more["min_class_distance"] == 1
    assert len(more["classes"]) == 1001


@pytest.mark.parametrize("count", [1000, 1001])
def test_the_terminal_shows_a_thousand_classes_and_says_so(tmp_path: Path, count: int) -> None:
    run = many(tmp_path / "run", count)
    shown = dsh("table", "--model", run, "--format", "table").stdout
    assert "00999" in shown and ("the first 1,000 of 1,001 classes; --format plain has all" in shown) == (count > 1000)
    assert f"10 of {count * (count - 1) // 2:,} pairs" in shown and ("--json" in shown) == (count == 1000)
    plain = dsh("table", "--model", run, "--format", "plain").stdout
    assert len(plain.splitlines()) == count and plain.splitlines()[-1].startswith(f"{count - 1:05d}\t")


def test_a_class_without_pictures_has_no_distance(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", test=[("cat", "f0"), ("owl", "0f")])
    assert dsh_json("table", "--model", run)["class_distances"] == [[0, None, 8], [None, None, None], [8, None, 0]]
