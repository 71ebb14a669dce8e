import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dsh_cli.codes.bits import (
    binarize,
    from_hex,
    hamming,
    is_packed,
    looks_like_code,
    pack,
    parse,
    to_binary,
    to_hex,
    to_words,
    unpack,
)
from dsh_cli.errors import UsageError

bit_rows = st.integers(1, 70).flatmap(lambda k: hnp.arrays(bool, st.tuples(st.integers(1, 5), st.just(k))))


@pytest.mark.parametrize("bits", range(1, 26))
def test_only_the_bits_left_over_must_be_zero(bits: int) -> None:
    codes = pack(np.ones((3, bits), bool))
    assert is_packed(codes, bits) and is_packed(codes[:0], bits)
    for more in range(bits, 8 * codes.shape[1]):
        changed = codes.copy()
        changed[1, -1] |= 128 >> more % 8
        assert not is_packed(changed, bits)


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


# Whatever is given as a code: it is read as the number it is, or refused

ALPHABET = "0123456789abcdefABCDEFxX_b ٣²+-.\n\0\ud800"


def number_of(text: str, bits: int) -> int | None:
    """What a code as people write it says, digit by digit; None where it is none of so many bits."""
    base = {"0x": 16, "0b": 2}.get(text[:2].lower())
    number, digits, before = 0, 0, ""
    for digit in text[2:]:
        if digit == "_":
            if before == "_":
                return None
        else:
            value = "0123456789abcdef".find(digit.lower()) if digit.isascii() else -1
            if base is None or not 0 <= value < base:
                return None
            number, digits = number * base + value, digits + 1
        before = digit
    wanted = {None: -1, 16: -(-bits // 4), 2: bits}[base]
    return number if digits == wanted and before != "_" and number < 2**bits else None


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 20), st.sampled_from(["0x", "0b", "0X", "0B", ""]), st.text(ALPHABET, max_size=22))
@example(8, "0x", "f_7")
@example(8, "0x", "_f7")  # as in 0x_f7, which Python reads too
@example(8, "0x", "f7_")
@example(8, "0x", "f__7")
@example(2, "0b", "11")
@example(2, "0b", "12")  # of hex digits alone
@example(20, "0x", "12345")
@example(20, "0b", "00010010001101000101")
@example(2, "0x", "4")
@example(4, "0x", "٣")  # a digit to str.isdigit and to int()
@example(8, "0x", "f7\n")  # which $ would let pass
def test_a_code_as_people_write_it_is_its_number_or_refused(bits: int, prefix: str, body: str) -> None:
    text = prefix + body
    expected = number_of(text, bits)
    if expected is None:
        with pytest.raises(UsageError, match="code "):
            parse(text, bits)
        return
    packed = parse(text, bits)
    assert packed.shape == (-(-bits // 8),) and packed.dtype == np.uint8
    assert int(to_hex(packed[None], bits)[0], 16) == expected
    assert looks_like_code(text)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20), st.lists(st.text(ALPHABET, max_size=7), max_size=3))
@example(8, ["0xf7", "07"])
@example(8, ["0X07"])
@example(8, ["0x0x"])
@example(4, ["٣"])
def test_hex_is_its_number_or_refused(bits: int, texts: list[str]) -> None:
    bodies = [text[2:] if text[:2] == "0x" else text for text in texts]
    good = all(number_of("0x" + body, bits) is not None and "_" not in body for body in bodies)
    if not good:
        with pytest.raises(UsageError, match="code "):
            from_hex(texts, bits)
        return
    packed = from_hex(texts, bits)
    assert packed.shape == (len(texts), -(-bits // 8))
    assert [int(text, 16) for text in to_hex(packed, bits)] == [int(body, 16) for body in bodies]


@pytest.mark.parametrize(
    ("text", "code"),
    [("0xf7", True), ("0b1", True), ("0XF7", True), ("0x", True), ("0xzz", True), ("f7", False), ("0x1.png", False)]
    + [("0x1/a", False), ("0xé", False), ("a0x1", False), ("0o17", False), ("", False), ("0x1\n", False)],
)
def test_what_is_meant_as_a_code(text: str, code: bool) -> None:
    assert looks_like_code(text) == code


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0xf", "code '0xf' of 1 digits: a code of 8 bits is written 0x and 2 hex digits, or 0b and 8 binary digits"),
        ("0b1", "code '0b1' of 1 digits: a code of 8 bits"),
        ("0xg7", "code '0xg7': a code of 8 bits"),
        ("0x" + "f" * 38, f"code '0x{'f' * 38}' of 38 digits"),
        ("0x" + "f" * 39, f"code '0x{'f' * 35}...' of 39 digits"),
    ],
)
def test_what_is_said_of_a_malformed_code(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, 8)
    assert said in str(caught.value)


@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 17])
def test_words_are_the_bytes_with_zeros_behind_them(width: int) -> None:
    packed = np.random.default_rng(width).integers(0, 256, (3, width), np.uint8)
    words = to_words(packed)
    assert words.shape == (3, -(-width // 8)) and words.dtype == np.uint64
    assert [row.tobytes() for row in words] == [row.tobytes().ljust(8 * words.shape[1], b"\0") for row in packed]


def test_hamming_takes_codes_in_as_many_rows_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = np.random.default_rng(0).integers(0, 256, (7, 2), np.uint8)
    slow = [[(int(a[0]) ^ int(b[0])).bit_count() + (int(a[1]) ^ int(b[1])).bit_count() for b in packed] for a in packed]
    for room in (1, 14, 15, 28, 1 << 24):
        monkeypatch.setattr("dsh_cli.codes.bits._BLOCK_BYTES", room)
        assert hamming(packed, packed).tolist() == slow
    assert hamming(packed[:0], packed).shape == (0, 7) and hamming(packed, packed[:0]).shape == (7, 0)
