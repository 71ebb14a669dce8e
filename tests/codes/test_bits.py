import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dsh_cli.codes.bits import binarize, from_hex, hamming, pack, to_binary, to_hex, unpack
from dsh_cli.errors import UsageError

bit_rows = st.integers(1, 70).flatmap(lambda k: hnp.arrays(bool, st.tuples(st.integers(1, 5), st.just(k))))


def test_exactly_zero_is_one() -> None:
    assert binarize([-1e-9, -0.0, 0.0, 2.0]).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("bits", "text"),
    [("11110111", "f7"), ("00000001", "01"), ("1", "1"), ("101", "5"), ("000000001111", "00f"), ("10000", "10")],
)
def test_text_is_the_number_with_the_first_output_as_top_bit(bits: str, text: str) -> None:
    packed = pack([[bit == "1" for bit in bits]])
    assert to_hex(packed, len(bits)) == [text]
    assert to_binary(packed, len(bits)) == [bits]


def test_packed_form_is_numpys_big_endian() -> None:
    row = [True] + [False] * 8 + [True]
    assert pack([row]).tolist() == [[0b10000000, 0b01000000]]


@given(bit_rows)
def test_codes_survive_every_form(rows: NDArray[np.bool_]) -> None:
    k = rows.shape[1]
    packed = pack(rows)
    texts = to_hex(packed, k)
    assert (unpack(packed, k) == rows).all()
    assert (from_hex(texts, k) == packed).all()
    assert all(
        len(text) == -(-k // 4) and int(text, 16) == int(b, 2)
        for text, b in zip(texts, to_binary(packed, k), strict=True)
    )


@pytest.mark.parametrize("k", [1, 7, 8, 9, 63, 64, 65, 1024])
def test_the_extremes_of_every_length(k: int) -> None:
    rows = np.array([[False] * k, [True] * k])
    packed = pack(rows)
    assert hamming(packed, packed).tolist() == [[0, k], [k, 0]]
    assert (from_hex(to_hex(packed, k), k) == packed).all()


@given(bit_rows)
def test_hamming_counts_differing_bits_and_is_a_metric(rows: NDArray[np.bool_]) -> None:
    packed = pack(rows)
    distances = hamming(packed, packed)
    slow = np.array([[(a != b).sum() for b in rows] for a in rows])
    assert (distances == slow).all()
    assert (distances == distances.T).all() and (np.diag(distances) == 0).all()
    assert (distances[:, :, None] <= distances[:, None, :] + distances[None, :, :]).all()


def test_hamming_of_single_codes_drops_their_axis() -> None:
    a, b = from_hex(["f0"], 8)[0], from_hex(["0f", "f1"], 8)
    assert hamming(a, b).tolist() == [8, 1]
    assert int(hamming(a, b[1])) == 1


def test_hamming_in_blocks_equals_hamming_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = np.random.default_rng(0).integers(0, 256, (50, 6), np.uint8)
    at_once = hamming(packed, packed)
    monkeypatch.setattr("dsh_cli.codes.bits._BLOCK_BYTES", 1000)
    assert (hamming(packed, packed) == at_once).all()


def test_hamming_refuses_codes_of_different_length() -> None:
    with pytest.raises(UsageError, match="1 and 2 bytes"):
        hamming(np.zeros((1, 1), np.uint8), np.zeros((1, 2), np.uint8))


@pytest.mark.parametrize("text", ["f", "fff", "", "g0", "+f", " f", "f_", "0x", "-1"])
def test_malformed_hex_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="2 hex digits"):
        from_hex([text], 8)


def test_hex_with_bits_beyond_the_length_is_refused() -> None:
    assert from_hex(["0x3"], 2).tolist() == [[0b11000000]]
    with pytest.raises(UsageError, match="does not fit 2 bits"):
        from_hex(["4"], 2)
