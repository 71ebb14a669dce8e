"""HEIC and HEIF, as phones write them."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from dsh_cli.errors import ImageError
from dsh_cli.pictures import decode, decoders, guesses, worker
from dsh_cli.pictures.decode import Form
from tests.support import odd_pictures as odd
from tests.support.commands import dsh
from tests.support.deep_pictures import twin
from tests.support.heif import heic, several

SMOOTH = np.asarray(odd.picture("RGB"))
GREY = np.asarray(odd.picture("L"))


def furthest(data: bytes, shown: Image.Image, channels: int) -> int:
    """How far the pixels are from those of a picture without loss, at most."""
    side = min(shown.size)
    found = decode.decode(data, Form(side, channels)).astype(int)
    return int(np.abs(found - decode.decode(odd.encoded(shown), Form(side, channels))).max())


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_colour_and_alpha(mode: str, channels: int) -> None:
    shown = odd.picture(mode)
    assert furthest(heic(np.asarray(shown)), shown, channels) <= 2


@pytest.mark.parametrize(("quality", "most"), [(50, 3), (90, 1)])
def test_compression_takes_what_it_takes_and_no_more(quality: int, most: float) -> None:
    shown = odd.picture("RGB", (240, 180))
    data = heic(np.asarray(shown), quality=quality, chroma=420)
    difference = decode.decode(data, Form(64, 3)).astype(int) - decode.decode(odd.encoded(shown), Form(64, 3))
    assert np.abs(difference).mean() < most


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_ten_and_twelve_bits(mode: str, bits: int) -> None:
    guesses.take()
    shown = odd.picture(mode)
    half = Image.fromarray((np.asarray(shown) // 2).astype(np.uint8), mode)
    for picture in (shown, half):
        deep = np.asarray(picture).astype(np.uint16) * 257
        assert furthest(heic(deep, bits), picture, 3) <= 2
    assert guesses.take() == []  # the file says how bright a dark picture is


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(odd.encoded(Image.fromarray(SMOOTH), exif=exif))))
    assert furthest(heic(SMOOTH, orientation=orientation), upright, 3) <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_that_of_avif_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(odd.encoded(Image.fromarray(SMOOTH), exif=exif))))
    data = odd.encoded(Image.fromarray(SMOOTH), "AVIF", exif=exif, quality=100, speed=10)
    assert furthest(data, upright, 3) <= 12


def test_exif_alone_turns_nothing_as_the_standard_has_it() -> None:
    data = heic(SMOOTH, orientation=6)
    at = data.index(b"irot") + 4
    assert data[at] & 3 == 3
    assert furthest(data[:at] + b"\0" + data[at + 1 :], Image.fromarray(SMOOTH), 3) <= 2


def test_the_primary_picture_of_several_counts() -> None:
    pictures = [np.full((32, 32), value, np.uint8) for value in (40, 130, 220)]
    for primary, pixels in enumerate(pictures):
        assert np.abs(decode.decode(several(pictures, primary), Form(8, 1)).astype(int) - pixels[0, 0]).max() <= 1


def test_tiles_as_phones_write_them() -> None:
    shown = odd.picture("RGB", (400, 300))
    assert furthest(heic(np.asarray(shown), tile_size=128), shown, 3) <= 2


def test_size_and_colour_come_from_the_header(tmp_path: Path) -> None:
    for pixels, grey in ((SMOOTH, False), (GREY, True), (GREY.astype(np.uint16) * 257, True)):
        (tmp_path / "x.heic").write_bytes(heic(pixels, 10, orientation=6))
        assert decode.probe(tmp_path / "x.heic") == decoders.Shape(40, 48, grey)


def test_they_are_decoded_in_a_process_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "pixels", lambda data, *_: len(data))
    data = heic(GREY)
    assert decode.decode(data, Form(8, 1)) == len(data)


def test_ordinary_pictures_do_not_wait_for_what_opens_them() -> None:
    program = (
        "import sys; from dsh_cli.pictures import decode; decode.decode(sys.stdin.buffer.read(), decode.Form(8, 3)); "
        "print('pillow_heif' in sys.modules)"
    )
    for format in ("JPEG", "PNG", "WEBP"):
        done = subprocess.run([sys.executable, "-c", program], input=odd.encoded(odd.picture("RGB"), format), stdout=-1)
        assert done.stdout == b"False\n"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_short(share: float) -> None:
    data = heic(SMOOTH)
    with pytest.raises(ImageError, match="damaged"):
        decode.decode(data[: int(len(data) * share)], Form(8, 3))


def test_bytes_that_flip_are_pixels_or_an_image_error() -> None:
    whole, rng = heic(SMOOTH), np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(whole)
        for at in rng.integers(len(data) if rng.random() < 0.5 else 700, size=3):
            data[at] = rng.integers(256)
        try:
            assert decode.decode(bytes(data), Form(8, 3)).shape == (8, 8, 3)
        except ImageError as error:
            assert "\n" not in str(error)


def test_one_that_claims_to_be_enormous() -> None:
    data = heic(twin(64, 64))
    at = data.index(b"ispe") + 8
    assert data[at : at + 8] == bytes((0, 0, 0, 64)) * 2
    for side in (15_000, 20_000, 2**31 - 1):
        wide = data[:at] + side.to_bytes(4, "big") * 2 + data[at + 8 :]
        with pytest.raises(ImageError, match="limit against decompression bombs"):
            decode.decode(wide, Form(8, 3))


def test_avif_under_the_brand_of_both() -> None:
    data = odd.encoded(odd.picture("RGB"), "AVIF", quality=100, speed=10)
    assert data[8:12] == b"avif"
    assert furthest(data[:8] + b"mif1" + data[12:], odd.picture("RGB"), 3) <= 12


def test_codes_are_those_of_pictures_without_loss(tmp_path: Path, digits_run: Path) -> None:
    for number in range(12):
        pixels = np.kron(twin(8, 8, seed=number), np.ones((8, 8), np.uint8))
        (tmp_path / f"{number:02}-a.heic").write_bytes(heic(pixels))
        Image.fromarray(pixels).save(tmp_path / f"{number:02}-b.png")
    paths = sorted(tmp_path.glob("*-?.*"))
    done = dsh("hash", *paths, "--model", digits_run, "--json")
    codes = [json.loads(line)["code"] for line in done.stdout.splitlines()]
    assert len(codes) == 24 and codes[::2] == codes[1::2]
