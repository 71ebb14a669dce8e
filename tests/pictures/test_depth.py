"""Depth and range of samples: a picture looks as its twin of eight bits, however deep its own samples are."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.pictures import decode, depth, guesses, ranges
from dsh_cli.pictures.decode import Form
from tests.support import odd_pictures as odd
from tests.support.commands import dsh
from tests.support.deep_pictures import deepened, fits, tiff, twin

Samples = NDArray[Any]
SEEN = twin()
SIGNED = SEEN.astype(np.int64) - 128


@pytest.fixture(autouse=True)
def no_guesses() -> Iterator[None]:
    guesses.take()
    yield
    guesses.take()


def furthest(data: bytes, expected: Samples = SEEN) -> int:
    """How far the pixels are from those of the twin, at most."""
    expected = expected.reshape(*expected.shape[:2], -1).astype(int)
    return int(np.abs(decode.decode(data, Form(len(expected), expected.shape[2])) - expected).max())


def with_one(samples: Samples, value: float) -> Samples:
    """One sample, which is black, replaced."""
    changed = samples.copy()
    changed[0, 0] = value
    return changed


UNIT = SEEN.astype(np.float32) / 255
INTEGERS: dict[str, Samples] = {
    **{f"{bits} bits in 16": deepened(SEEN, bits).astype(np.uint16) for bits in (8, 10, 12, 14, 16)},
    **{f"{bits} bits in 32": deepened(SEEN, bits).astype(np.uint32) for bits in (8, 10, 12, 16, 18, 24, 32)},
    **{f"{bits} bits in signed 16": deepened(SEEN, bits).astype(np.int16) for bits in (8, 10, 12, 15)},
    **{f"{bits} bits in signed 32": deepened(SEEN, bits).astype(np.int32) for bits in (8, 12, 16, 31)},
    "signed 8": SIGNED.astype(np.int8),
    "signed 16": (SIGNED << 8).astype(np.int16),
    "signed 32": (SIGNED << 24).astype(np.int32),
    "signed 12 in 16": (SIGNED << 4).astype(np.int16),
    "signed 16 in 32": (SIGNED << 8).astype(np.int32),
}
FLOATS: dict[str, Samples] = {
    "0 to 1": UNIT,
    "0 to 255": SEEN.astype(np.float32),
    "0 to 1,023": deepened(SEEN, 10).astype(np.float32),
    "0 to 4,095": deepened(SEEN, 12).astype(np.float32),
    "0 to 65,535": UNIT * 65535,
    "0 to 2^32": UNIT * 2**32,
    "0 to 1e-6": UNIT * 4.0**-10,
    "-1 to 1": UNIT * 2 - 1,
    "-128 to 128": (UNIT * 2 - 1) * 128,
    "doubles": UNIT.astype(np.float64),
}
DEEP = INTEGERS | FLOATS


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", DEEP)
def test_a_tiff_of_any_depth_looks_as_its_twin_in_either_polarity(kind: str, order: str, compressed: bool) -> None:
    samples = DEEP[kind]
    assert furthest(tiff(samples, order, compressed=compressed)) <= 1
    if samples.dtype.kind == "f" or samples.min() < 0:
        negative = samples.max() + samples.min() - samples
    else:
        negative = samples.max() - samples
    assert furthest(tiff(negative.astype(samples.dtype), order, white_is_zero=True, compressed=compressed)) <= 1


@pytest.mark.parametrize("kind", [kind for kind in DEEP if kind != "signed 8" and "e-6" not in kind])
def test_fits_of_any_depth_looks_as_its_twin(kind: str) -> None:
    assert furthest(fits(DEEP[kind])) <= 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_what_a_tiff_says_is_white_is_white_in_few_bits(bits: int) -> None:
    levels = (SEEN >> (8 - bits)).astype(np.uint8)
    packed = np.packbits(np.unpackbits(levels[..., None], axis=2)[..., -bits:].reshape(24, -1), axis=1)
    for white_is_zero in (False, True):
        data = tiff(packed, white_is_zero=white_is_zero, tags={256: (4, [24]), 258: (3, [bits]), 339: (3, [1])})
        shown = (levels * (255 // (2**bits - 1))).astype(np.uint8)
        assert furthest(data, 255 - shown if white_is_zero else shown) == 0


@pytest.mark.parametrize(
    ("kind", "value"),
    [("0 to 1", 1.01), ("0 to 1", 2), ("0 to 1", 300), ("0 to 1", 1e30), ("0 to 1", -0.5), ("0 to 1", np.inf),
     ("0 to 1", -np.inf), ("0 to 1", np.nan), ("0 to 255", 256.5), ("0 to 255", 1e6), ("0 to 65,535", 1e9),
     ("-1 to 1", 1.5), ("-1 to 1", -20), ("16 bits in 32", 10**6), ("12 bits in signed 16", -3)],
)  # fmt: skip
def test_one_sample_decides_nothing(kind: str, value: float) -> None:
    changed = decode.decode(tiff(with_one(DEEP[kind], value)), Form(24, 1)).astype(int)[..., 0]
    assert np.abs(changed - SEEN)[1:].max() <= 1
    assert changed[0, 0] == (255 if value > 0 else 0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 5), (1, 400)])
def test_small_pictures_too(shape: tuple[int, int]) -> None:
    for samples in (np.full(shape, 1, np.float32), np.full(shape, 255, np.float32), np.full(shape, 65535, np.uint16)):
        assert (decode.decode(tiff(samples), Form(4, 1)) == 255).all()
    for dtype in (np.float32, np.uint16, np.int32, np.int8):
        assert not decode.decode(tiff(np.zeros(shape, dtype)), Form(4, 1)).any()


def test_what_resampling_leaves_beyond_black_and_white_changes_nothing() -> None:
    sharp = np.kron(twin(8, 8) > 127, np.ones((3, 3))).astype(np.float32)
    rung = np.where(np.indices((24, 24)).sum(0) % 7 == 0, sharp * 1.2 - 0.1, sharp)
    assert furthest(tiff(rung.astype(np.float32)), (sharp * 255).astype(np.uint8)) <= 26


def test_a_few_bright_samples_in_black_are_not_taken_for_outliers() -> None:
    stars = np.zeros((40, 40), np.float32)
    stars[::10, ::10] = np.arange(100, 260, 10).reshape(4, 4) - 5
    assert furthest(tiff(stars), stars.astype(np.uint8)) <= 1


def test_not_a_number_is_black_and_infinity_is_white_in_either_polarity() -> None:
    samples = np.array([[np.nan, np.inf, -np.inf, 0.5]] * 4, np.float32)
    shown = [0, 255, 0, 128]
    assert decode.decode(tiff(samples), Form(4, 1))[0, :, 0].tolist() == shown
    assert decode.decode(tiff(samples, white_is_zero=True), Form(4, 1))[0, :, 0].tolist() == [0, 0, 255, 128]


# Colour


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("write", [odd.png16, tiff, lambda s: tiff(s, ">"), lambda s: tiff(s, ">", compressed=True)])
def test_colour_of_sixteen_bits_looks_as_its_twin(bits: int, write: Callable[[Samples], bytes]) -> None:
    colour = twin(bands=3)
    assert furthest(write(deepened(colour, bits).astype(np.uint16)), colour) <= 1


def png16_with_alpha(samples: Samples) -> bytes:
    """(h, w, 2) or (h, w, 4) of 16 bits."""
    height, width, bands = samples.shape
    body = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples))
    data = odd.png(width=width, height=height, depth=16, colour={2: 4, 4: 6}[bands])
    return data[:33] + odd.png_chunk(b"IDAT", body) + data[-12:]


@pytest.mark.parametrize("bands", [2, 4])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_alpha_of_sixteen_bits_goes_with_its_colour(bands: int, bits: int) -> None:
    flat = twin(bands=bands)
    flat[..., -1] = np.where(flat[..., -1] > 127, 255, 0)
    expected = np.where(flat[..., -1:] == 255, flat[..., :-1], 255)
    expected = np.repeat(expected, 3, axis=2) if bands == 2 else expected
    assert furthest(png16_with_alpha(deepened(flat, bits).astype(np.uint16)), expected) <= 1


def test_large_pictures_go_in_bands_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "BAND", 7)
    assert furthest(odd.png16(deepened(SEEN, 12).astype(np.uint16))) <= 1
    assert furthest(odd.png16(deepened(twin(bands=3), 12).astype(np.uint16)), twin(bands=3)) <= 1


# Twins of eight bits


def times(unit: int, dtype: type) -> Callable[[Samples], Samples]:
    return lambda seen: (seen.astype(np.int64) * unit).astype(dtype)


def ppm16(samples: Samples) -> bytes:
    kind = 6 if samples.ndim == 3 else 5
    return b"P%d %d %d 65535\n" % (kind, samples.shape[1], samples.shape[0]) + samples.astype(">u2").tobytes()


EIGHT: dict[str, tuple[int, Callable[[Samples], bytes]]] = {
    "PNG grey": (1, odd.png16),
    "PNG RGB": (3, odd.png16),
    "PNG RGBA": (4, png16_with_alpha),
    "TIFF grey": (1, tiff),
    "TIFF RGB": (3, tiff),
    "PGM": (1, ppm16),
    "PPM": (3, ppm16),
}


@pytest.mark.parametrize("unit", [257, 256])
@pytest.mark.parametrize("kind", EIGHT)
@given(lowest=st.integers(0, 255), span=st.integers(1, 256), seed=st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_a_twin_of_eight_bits_in_sixteen_is_the_same(kind: str, unit: int, lowest: int, span: int, seed: int) -> None:
    """Dark, bright and mixed ones."""
    bands, write = EIGHT[kind]
    shape = (16, 16) if bands == 1 else (16, 16, bands)
    seen = np.random.default_rng(seed).integers(lowest, min(lowest + span, 256), shape, np.uint8)
    if bands == 4:
        seen[..., 3] = 255
    samples = times(unit, np.uint16)(seen)
    if bands == 4:
        samples[..., 3] = 65535
    assert furthest(write(samples), seen[..., :3] if bands == 4 else seen) <= 1
    assert guesses.take() == []


@pytest.mark.parametrize("highest", [2, 3, 20, 60, 130, 255])
@pytest.mark.parametrize(
    "deepen",
    [times(1 << 24, np.uint32), times(0x01010101, np.uint32), times(257, np.int32), times(1, np.float32),
     times(257, np.float32), lambda seen: (seen / 255).astype(np.float32), lambda seen: seen / 255],
)  # fmt: skip
def test_a_dark_twin_of_eight_bits_in_more_is_as_dark(highest: int, deepen: Callable[[Samples], Samples]) -> None:
    seen = (twin() // (256 / (highest + 1))).astype(np.uint8)
    assert furthest(tiff(deepen(seen)), seen) <= 1


@pytest.mark.parametrize("deepen", [times(256, np.int16), times(1 << 24, np.int32)])
def test_a_pale_signed_twin_of_eight_bits_is_as_pale(deepen: Callable[[Samples], Samples]) -> None:
    pale = twin() // 16 + 120
    assert furthest(tiff(deepen(pale.astype(np.int64) - 128)), pale) <= 1


# Few samples, and no data


NARROW: dict[str, Samples] = {
    **{f"{bits} bits in 16": deepened(twin(60, 60), bits).astype(np.uint16) for bits in (8, 10, 12, 14)},
    **{f"{bits} bits in 32": deepened(twin(60, 60), bits).astype(np.uint32) for bits in (8, 12, 16, 24)},
    **{f"{bits} bits in signed 16": deepened(twin(60, 60), bits).astype(np.int16) for bits in (8, 10, 12)},
    **{f"floats to {white}": (twin(60, 60) * (white / 255)).astype(np.float32) for white in (1, 1023, 4095)},
}


@pytest.mark.parametrize("kind", NARROW)
@pytest.mark.parametrize("times", [1.3, 5, 1e9])
def test_hot_pixels_are_white_and_change_no_other(kind: str, times: float) -> None:
    samples: Samples = NARROW[kind].copy()
    most = np.finfo(np.float32).max if samples.dtype.kind == "f" else np.iinfo(samples.dtype).max
    places = [(0, 0), (20, 30), (50, 7)]  # of 3,600: fewer than one in a thousand
    for place in places:
        samples[place] = samples.dtype.type(min(float(samples.max()) * times + 1, float(most)))
    expected = twin(60, 60)
    for place in places:
        expected[place] = 255
    assert furthest(tiff(samples), expected) <= 1


@pytest.mark.parametrize("highest", [5000, 65535])
@pytest.mark.parametrize("hot", [1, 3])
@pytest.mark.parametrize("write", [odd.png16, tiff])
def test_hot_pixels_of_colour_too(highest: int, hot: int, write: Callable[[Samples], bytes]) -> None:
    colour = twin(bands=3)
    samples = deepened(colour, 12).astype(np.uint16)
    samples[5, 5, :hot], colour[5, 5, :hot] = highest, 255
    assert furthest(write(samples), colour) <= 1
    assert guesses.take() == ["0 to 4,095"]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.float32])
def test_a_night_with_lamps_stays_dark(dtype: type) -> None:
    """Lamps are one in 200: more than hot pixels, and few enough to be lost in a hundredth."""
    white = np.iinfo(np.uint32).max if dtype == np.uint32 else 65535
    night = np.random.default_rng(0).integers(0, white // 20, (80, 80)) | 1
    night[::8, ::32] = np.linspace(0.6, 1, 30).reshape(10, 3) * white
    samples: Samples
    for samples in (night.astype(dtype), np.stack([night.astype(dtype)] * 3, axis=2)):
        if samples.ndim == 2 or dtype == np.uint16:  # colour has no other depth here
            shown = (samples / (white + 1) * 256).astype(np.uint8)
            assert furthest(tiff(samples), shown) <= 1


def test_stars_are_white_or_as_bright_as_they_are() -> None:
    sky = np.random.default_rng(0).integers(100, 4000, (80, 80)).astype(np.uint16)
    sky[::40, ::40] = 60000
    seen = decode.decode(tiff(sky), Form(80, 1))[..., 0]
    assert (seen[::40, ::40] == 255).all() and seen.mean() > 100  # four in 6,400: the sky is seen
    sky[sky < 50000] = 0
    sky[::40, ::20] = 30000
    assert furthest(tiff(sky), (sky >> 8).astype(np.uint8)) <= 1  # on black, none are few


LAND = np.random.default_rng(1).uniform(0, 100, (40, 40))
NONE_THERE = np.indices((40, 40))[1] < 10


@pytest.mark.parametrize(
    ("missing", "dtype"),
    [(-999, np.int16), (-9999, np.int16), (-32768, np.int16), (-9999, np.int32), (-(2**31), np.int32),
     (-9999, np.float32), (-32768, np.float32), (np.finfo(np.float32).min, np.float32), (-99999, np.float64)],
)  # fmt: skip
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("offset", [0, -50, 1000])
def test_no_data_is_black_and_changes_nothing_else(
    missing: float, dtype: type, white_is_zero: bool, offset: int
) -> None:
    if missing == -999 and offset == 1000:
        offset = 100
    land: Samples = (LAND + offset).astype(dtype)
    alone = decode.decode(tiff(np.where(NONE_THERE, land[20, 20], land), white_is_zero=white_is_zero), Form(40, 1))
    found = decode.decode(tiff(np.where(NONE_THERE, dtype(missing), land), white_is_zero=white_is_zero), Form(40, 1))
    assert (found[~NONE_THERE] == alone[~NONE_THERE]).all() and np.ptp(found[~NONE_THERE].astype(int)) > 4
    assert not found[NONE_THERE].any()


@pytest.mark.parametrize(
    ("missing", "dtype"),
    [(-1, np.float32), (-9999, np.float32), (65535, np.uint16), (0, np.uint16), (1e20, np.float32)],
)
def test_a_tag_says_what_stands_for_no_data(missing: float, dtype: type) -> None:
    land: Samples = (LAND * 40).astype(dtype)  # of 12 bits: -9999 lies near enough to be one of them
    text: list[float] = list(f"{missing:.17g}".encode() + b"\0")
    alone = decode.decode(tiff(np.where(NONE_THERE, dtype(1), land)), Form(40, 1))
    found = decode.decode(tiff(np.where(NONE_THERE, dtype(missing), land), tags={42113: (2, text)}), Form(40, 1))
    assert (found[~NONE_THERE] == alone[~NONE_THERE]).all() and alone.mean() > 60
    assert not found[NONE_THERE].any()


@pytest.mark.parametrize("text", [b"none\0", b"nan\0", b"1e999\0", b"\0", b"-7\0", b"\xff\xfe\0"])
def test_a_tag_that_says_nothing_of_no_data_changes_nothing(text: bytes) -> None:
    for samples in (DEEP["12 bits in 16"], UNIT):
        assert furthest(tiff(samples, tags={42113: (2, list(text))})) <= 1


def test_what_may_be_dark_is_not_taken_for_no_data() -> None:
    """A lowest sample that many have: above -999, near to the others, or one of two."""
    low = np.where(NONE_THERE, -1.0, LAND / 100).astype(np.float32)
    assert (decode.decode(tiff(low), Form(40, 1))[~NONE_THERE] >= 127).all()
    deep = np.where(NONE_THERE, -2000, LAND * 20).astype(np.int16)  # as far below 0 as the others are above
    assert (decode.decode(tiff(deep), Form(40, 1))[~NONE_THERE] >= 127).all()
    two = np.where(NONE_THERE, -5000, -1000).astype(np.int16)
    assert len(np.unique(decode.decode(tiff(two), Form(40, 1)))) == 2


# What files say


def dark(bits: int) -> Samples:
    """A picture of 16 bits that has none above so many, and what it shows."""
    return deepened(SEEN, bits).astype(np.uint16)


def test_full_sixteen_bits_keep_their_high_byte_and_none_is_guessed() -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (24, 24), np.uint16)
    for data in (tiff(wide), tiff(wide, ">"), odd.png16(wide), odd.encoded(Image.fromarray(wide), "PPM")):
        assert furthest(data, (wide >> 8).astype(np.uint8)) == 0
    assert guesses.take() == []


def test_a_tag_says_how_bright_a_dark_picture_is_meant_to_be() -> None:
    shown = (dark(12) >> 8).astype(np.uint8)
    assert furthest(tiff(dark(12), tags={281: (3, [65535])}), shown) <= 1
    colour = deepened(twin(bands=3), 12).astype(np.uint16)
    assert furthest(tiff(colour, tags={281: (3, [65535] * 3)}), (colour >> 8).astype(np.uint8)) <= 1
    assert guesses.take() == []


@pytest.mark.parametrize("tags", [{281: (3, [1000])}, {341: (12, [1000])}, {341: (12, [1000]), 281: (3, [5])}])
def test_tags_of_the_highest_sample_are_white(tags: dict[int, tuple[int, list[float]]]) -> None:
    for dtype in (np.uint16, np.uint32, np.float32, np.int16):
        assert furthest(tiff(np.rint(SEEN * (1000 / 255)).astype(dtype), tags=tags)) <= 1
    assert guesses.take() == []


def test_tags_of_the_lowest_sample_are_black() -> None:
    tags: dict[int, tuple[int, list[float]]] = {340: (12, [-3]), 341: (12, [7])}
    assert furthest(tiff(UNIT * 10 - 3, tags=tags)) <= 1


@pytest.mark.parametrize("said", [[0], [3], [float("nan")], [float("inf")], [3.4e38], [-1e300], []])
def test_tags_that_say_nothing_or_what_the_samples_contradict_are_not_believed(said: list[float]) -> None:
    for samples in (UNIT * 65535, deepened(SEEN, 12).astype(np.uint16)):
        for tag in (340, 341):
            if tag == 341 or said != [3]:
                assert furthest(tiff(samples, tags={tag: (12, said)})) <= 1


def test_packed_twelve_bits() -> None:
    samples = deepened(SEEN, 12).reshape(-1, 2) // 2  # dark: half of what there is
    first, second = samples[:, 0], samples[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1).astype(np.uint8)
    data = tiff(packed.reshape(24, 36), tags={256: (4, [24]), 258: (3, [12])})
    assert furthest(data, (samples.reshape(24, 24) >> 4).astype(np.uint8)) == 0
    assert guesses.take() == []


def test_a_png_that_says_its_significant_bits_is_of_full_range() -> None:
    data = odd.png16(dark(12))
    said = data[:33] + odd.png_chunk(b"sBIT", b"\x0c") + data[33:]
    assert furthest(said, (dark(12) >> 8).astype(np.uint8)) == 0
    assert guesses.take() == []
    assert furthest(data) <= 1
    assert guesses.take() == ["0 to 4,095"]


@pytest.mark.parametrize("highest", [255, 1023, 4095, 65535])
def test_a_pgm_says_what_is_white(highest: int) -> None:
    half = np.rint(SEEN * (highest / 255 / 2)).astype(np.uint16)
    body = half.astype(">u2" if highest > 255 else np.uint8).tobytes()
    assert furthest(b"P5 24 24 %d\n" % highest + body, (SEEN / 2).astype(np.uint8)) <= 1
    assert guesses.take() == []


def test_jpeg_2000_says_it_too() -> None:
    shown = (dark(12) >> 8).astype(np.uint8)
    assert furthest(odd.encoded(Image.fromarray(dark(12)), "JPEG2000"), shown) == 0
    assert guesses.take() == []


# What was guessed


@pytest.mark.parametrize(
    ("samples", "range"),
    [("0 to 1", "0 to 1"), ("12 bits in 16", "0 to 4,095"), ("16 bits in 16", None), ("-1 to 1", "-1 to 1"),
     ("signed 16", None), ("signed 12 in 16", "-2,048 to 2,047"), ("24 bits in 32", "0 to 16,777,215")],
)  # fmt: skip
def test_a_guess_is_noted_from_whichever_process_made_it(samples: str, range: str | None) -> None:
    for _ in "12":
        decode.decode(tiff(DEEP[samples]), Form(8, 1))
    assert guesses.take() == ([] if range is None else [range])


def test_a_command_says_once_what_was_guessed(tmp_path: Path, digits_run: Path) -> None:
    """And pictures of any depth have the codes of their twins."""
    for number in range(30):
        seen = np.asarray(Image.fromarray(twin(8, 8, seed=number)))
        deep = (seen.astype(np.uint16) << 4, seen.astype(np.uint16) << 2, seen.astype(np.float32))[number % 3]
        (tmp_path / f"{number:02}-deep.tif").write_bytes(tiff(deep))
        Image.fromarray(seen).save(tmp_path / f"{number:02}-seen.png")
    done = dsh("hash", tmp_path, "--model", digits_run, "--json")
    codes = [json.loads(line)["code"] for line in done.stdout.splitlines()]
    assert codes[::2] == codes[1::2] and len(set(codes)) > 3
    said = [line for line in done.stderr.splitlines() if "black" in line]
    assert len(said) == 1 and all(text in said[0] for text in ("0 to 4,095", "0 to 1,023", "0 to 255"))
    assert "black" not in dsh("hash", tmp_path, "--model", digits_run, "--json", "--quiet").stderr
    assert "black" not in dsh("hash", tmp_path / "00-seen.png", "--model", digits_run).stderr


def test_the_range_of_no_samples_at_all() -> None:
    assert ranges.of(lambda: iter([np.full((2, 2), np.nan)]), None).white == 1
