"""Every kind of picture becomes what the model expects, or a clear error."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pytest
from PIL import Image

from dsh_cli.config import Fit, Interpolation
from dsh_cli.errors import ImageError
from dsh_cli.pictures import decode, find
from dsh_cli.pictures.decode import Form


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of a few hundred bytes that claims to be enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


GREY = Image.fromarray(np.arange(0, 256, dtype=np.uint8).reshape(16, 16))
RED = Image.new("RGB", (16, 16), (200, 30, 30))


def test_grey_is_repeated_and_colour_becomes_luma() -> None:
    assert (decode.decode(encoded(GREY), Form(16, 3)) == np.asarray(GREY)[..., None]).all()
    assert decode.decode(encoded(RED), Form(16, 1))[0, 0, 0] == np.asarray(RED.convert("L"))[0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"])
def test_every_mode_of_png_in_one_and_three_channels(mode: str) -> None:
    image = Image.new("L", (20, 12), 255)
    image = Image.fromarray(np.full((12, 20), 65535, np.uint16)) if mode.startswith("I") else image.convert(mode)
    for channels in (1, 3):
        assert (decode.decode(encoded(image), Form(8, channels)) == 255).all()


def test_sixteen_bits_keep_their_high_byte() -> None:
    wide = Image.fromarray((np.asarray(GREY).astype(np.uint16) << 8) + 0x7F)
    assert (decode.decode(encoded(wide), Form(16, 1))[..., 0] == np.asarray(GREY)).all()


@pytest.mark.parametrize(("top", "expected"), [(1.0, 255), (255.0, 255)])
def test_floats_hold_zero_to_one_or_zero_to_255(top: float, expected: int) -> None:
    image = Image.fromarray(np.full((9, 9), top, np.float32))
    assert decode.decode(encoded(image, "TIFF"), Form(8, 1)).max() == expected


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (decode.decode(encoded(clear), Form(8, 3)) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    assert (decode.decode(encoded(palette, transparency=0), Form(8, 3)) == 255).all()


def test_cmyk() -> None:
    pixels = decode.decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), Form(16, 3))
    assert np.abs(pixels[0, 0].astype(int) - [255, 0, 0]).max() < 12


def test_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (50, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(decode.decode(data, Form(8, 1)).astype(int) - 50).max() <= 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    from PIL import ImageOps

    corner = np.zeros((16, 16, 3), np.uint8)
    corner[:8, :8] = 255
    corner[:8, 8:, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(corner), format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    difference = np.abs(decode.decode(data, Form(16, 3)).astype(int) - np.asarray(expected))
    assert difference.max() <= 2


def test_the_largest_centred_square_is_taken() -> None:
    wide = Image.new("L", (30, 10), 0)
    wide.paste(255, (10, 0, 20, 10))
    assert (decode.decode(encoded(wide), Form(10, 1)) == 255).all()


def test_all_of_a_picture_is_padded_with_white_or_stretched() -> None:
    wide = Image.new("RGB", (60, 20), (10, 20, 30))
    wide.paste((200, 0, 0), (0, 0, 30, 20))
    for format in ("PNG", "JPEG"):
        data = encoded(wide, format)
        padded = decode.decode(data, Form(30, 3, "pad")).astype(int)
        assert (padded[:10] == 255).all() and (padded[20:] == 255).all()
        stretched = decode.decode(data, Form(30, 3, "stretch")).astype(int)
        for shown in (padded[11:19], stretched):
            assert np.abs(shown[:, :13] - [200, 0, 0]).max() < 20 and np.abs(shown[:, 17:] - [10, 20, 30]).max() < 20


@pytest.mark.parametrize("size", [16, 17, 40])
@pytest.mark.parametrize("fit", get_args(Fit))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_picture_fits_as_the_upright_one(format: str, fit: Fit, size: int, orientation: int) -> None:
    rng = np.random.default_rng(0)
    shown = Image.fromarray(rng.integers(0, 256, (5, 3, 3), np.uint8)).resize((24, 41), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = shown.transpose(
        {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    )
    found = decode.decode(
        encoded(turned, format, exif=exif, **({"quality": 95} if format == "JPEG" else {})), Form(size, 3, fit)
    )
    expected = decode.decode(encoded(shown), Form(size, 3, fit))
    difference = np.abs(found.astype(int) - expected)
    assert (difference.max() <= 1) if format == "PNG" else (difference.mean() < 3 and difference.max() < 40)


def test_pictures_are_resized_as_asked() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8))
    for name, way in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        found = decode.decode(encoded(image), Form(12, 1, interpolation=cast(Interpolation, name)))
        assert (found[..., 0] == np.asarray(image.resize((12, 12), way, reducing_gap=2.0))).all()


@pytest.mark.parametrize("fit", get_args(Fit))
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_extreme_shapes(shape: tuple[int, int], format: str, fit: Fit) -> None:
    found = decode.decode(encoded(Image.new("L", shape, 9), format), Form(28, 1, fit))
    assert found.shape == (28, 28, 1) and abs(int(found.min()) - 9) <= 1


def test_ordinary_jpegs_give_the_pixels_pillow_gives() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    data = encoded(smooth, "JPEG", quality=90)
    assert np.abs(decode.decode(data, Form(32, 3)).astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 2


WRONG = {
    "empty": (b"", "empty file"),
    "text": (b"this is text, whatever its name says", "not a picture"),
    "truncated jpeg": (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:-400], "truncated"),
    "truncated png": (encoded(Image.effect_noise((64, 64), 90))[:-900], "truncated"),
    "half a jpeg header": (encoded(RED, "JPEG")[:15], "not a picture|truncated"),
    "bomb": (bomb(), "decompression bombs"),
    "bomb that Pillow only warns of": (bomb(13_000, 13_800), "decompression bombs"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_picture_is_an_image_error(kind: str, tmp_path: Path) -> None:
    data, message = WRONG[kind]
    file = tmp_path / "x.png"
    file.write_bytes(data)
    with pytest.raises(ImageError, match=message):
        decode.read(file, Form(28, 1))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    for path, message in [(tmp_path / "none.png", "no such file"), (tmp_path, "folder without pictures")]:
        with pytest.raises(ImageError, match=message):
            decode.read(path, Form(28, 1))
    with pytest.raises(ImageError):
        decode.read("nul\0.png", Form(28, 1))


def test_folders_are_searched_in_order_and_hidden_files_skipped(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/1.jpg", "a.gif", ".hidden.png", ".dir/x.png", "notes.txt", "b/c/3.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = [path.removeprefix(f"{tmp_path}/") for path in find.find(tmp_path)]
    assert found == ["a.gif", "b/1.jpg", "b/2.PNG", "b/c/3.webp"]


def test_thumbnails_shrink_only_what_is_large() -> None:
    small = np.zeros((2, 28, 28, 1), np.uint8)
    assert decode.thumbnails(small) is small
    assert decode.thumbnails(np.zeros((2, 96, 96, 3), np.uint8)).shape == (2, 48, 48, 3)
