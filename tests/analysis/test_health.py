"""Whether codes are used well, or have collapsed."""

import numpy as np
import pytest

from dsh_cli.analysis.health import code_health
from dsh_cli.codes.bits import unpack
from tests.support.codes import code_set, random_codes


def test_code_health() -> None:
    health = code_health(code_set(["f0", "f0", "0f", "f0"], [0, 0, 1, 1]))
    assert (health.distinct, health.largest_share) == (2, 0.75)
    assert health.bit_balance == (0.75,) * 4 + (0.25,) * 4 and health.bit_correlation == pytest.approx(1.0)


@pytest.mark.parametrize("block", [1 << 22, 100])
def test_bit_correlation_is_numpys(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.analysis.health._BLOCK", block)
    codes = random_codes(90, 11, 2, 4)
    table = np.abs(np.corrcoef(unpack(codes.packed, 11).T.astype(float)))
    expected = table[np.triu_indices(11, 1)].max()
    assert code_health(codes).bit_correlation == pytest.approx(expected, abs=1e-12)
    constant = code_set(["f0", "f0"], [0, 0])
    assert code_health(constant).bit_correlation == 0.0 and code_health(constant).distinct == 1
