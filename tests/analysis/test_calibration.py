"""What a distance means: against a slow count, and in what a command says."""

from pathlib import Path

import numpy as np
import pytest

from dsh_cli import neighbors
from dsh_cli.analysis import calibration
from dsh_cli.codes.sets import CodeSet
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json
from tests.support.runs import small_run
from tests.support.values import there


def test_calibration_is_what_a_slow_count_finds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for bits in (5, 48, 64, 100):
        digits = -(-bits // 4)
        labels = ["cat", "dog", "owl", None]
        rows = [
            (labels[rng.integers(4)], f"{int.from_bytes(rng.bytes(16), 'big') % 2**bits:0{digits}x}") for _ in range(90)
        ]
        folder = small_run(tmp_path / str(bits), train=rows[:60], validation=rows[60:], bits=bits, test=rows[:2])
        run = Run.open(folder)
        known = there(neighbors.Finder(run, neighbors.split_database(run)).calibration)
        pairs, same = np.zeros((2, bits + 1), int)
        for label, code in rows[60:]:
            for other, code_of_other in rows[:60]:
                if label and other:
                    distance = (int(code, 16) ^ int(code_of_other, 16)).bit_count()
                    pairs[distance] += 1
                    same[distance] += label == other
        assert known.split == "validation"
        assert known.pairs.tolist() == pairs.tolist() and known.same.tolist() == same.tolist()
        answer = dsh_json("neighbors", "0x" + rows[0][1], "--model", folder, "--split", "test", "-k", 1)
        expected = same[0] / pairs[0] if pairs[0] else None
        assert answer["same_class_rate"] == expected


def test_calibration_of_more_than_can_be_compared_takes_some_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out, train = (
        CodeSet(8, np.arange(n, dtype=np.uint8)[:, None], np.arange(n) % 2, ("even", "odd"), ()) for n in (40, 200)
    )
    monkeypatch.setattr(calibration, "_HELD_OUT", 10)
    monkeypatch.setattr(calibration, "_WORDS", 500)
    known = calibration.calibrate(held_out, train, "test")
    assert (known.queries, known.database, known.pairs.sum()) == (10, 50, 500)
    assert (known.same <= known.pairs).all()


def test_calibration_falls_back_on_test_and_says_what_it_used(tmp_path: Path) -> None:
    without = small_run(tmp_path / "run", validation=[], test=[("cat", "f0"), ("dog", "f0")])
    answer = dsh_json("neighbors", "0xf0", "--model", without, "-k", 1)
    assert answer["same_class_rate"] == 0.5  # of 4 pairs at distance 0, cat and cat twice
    shown = " ".join(dsh("neighbors", "0xf0", "--model", without, "-k", 1, "--format", "table").stdout.split())
    assert "calibration: 50.0% of 4 pairs 0 bits away are of one class (test against train)" in shown
    neither = small_run(tmp_path / "neither", validation=[], test=[])
    assert dsh_json("neighbors", "0xf0", "--model", neither)["same_class_rate"] is None
    assert "no held-out pictures" in dsh("neighbors", "0xf0", "--model", neither, "--format", "table").stdout
