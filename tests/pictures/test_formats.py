"""What a file is by its first bytes and its name; raw files of cameras."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsh_cli.errors import ImageError
from dsh_cli.pictures import decode, decoders, formats, guesses
from dsh_cli.pictures.cache import PictureCache
from dsh_cli.pictures.decode import Form
from tests.support import odd_pictures as odd
from tests.support.commands import dsh, one_line_error
from tests.support.deep_pictures import tiff, twin
from tests.support.heif import heic

RAW_HEADS = {
    "x.cr2": b"II*\0\x10\0\0\0CR\2\0" + bytes(60),
    "x.cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(60),
    "x.crw": b"II\x1a\0\0\0HEAPCCDR" + bytes(60),
    "x.orf": b"IIRO\x08\0\0\0" + bytes(60),
    "y.orf": b"IIRS\x08\0\0\0" + bytes(60),
    "x.rw2": b"IIU\0\x18\0\0\0" + bytes(60),
    "x.raf": b"FUJIFILMCCD-RAW 0201" + bytes(60),
    "x.mrw": b"\0MRM" + bytes(60),
    "x.x3f": b"FOVb" + bytes(60),
}


def head(data: bytes) -> bytes:
    return data[: formats.HEAD]


def test_every_format_is_known_by_its_first_bytes_as_pillow_knows_it() -> None:
    unknown = set()
    for name, data in odd.written().items():
        try:
            with Image.open(io.BytesIO(data)) as image:
                format = image.format
        except Exception:  # what Pillow writes and does not read
            continue
        found = formats.looks_like_picture(head(data))
        if found is None:
            unknown.add(format)
        elif format != "TGA":  # which begins as some other formats do
            assert found == ("JPEG" if format == "MPO" else format), name
    assert unknown <= {"EPS", "IM", "SPIDER", "TGA", "WMF", "XBM"}  # refused, without a mark, or text of C


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "1", "P"])
def test_the_usual_ones_are_all_known(mode: str) -> None:
    for format in ("PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM", "PCX", "ICO", "QOI", "SGI", "DDS", "ICNS"):
        try:
            data = odd.encoded(odd.picture(mode), format)
        except (OSError, ValueError):
            continue
        assert decoders.looks_like_picture(head(data)) == format
    assert formats.looks_like_picture(head(odd.encoded(odd.picture("L"), "JPEG"))) == "JPEG"
    assert formats.looks_like_picture(head(odd.animated("MPO"))) == "JPEG"
    assert formats.looks_like_picture(head(odd.encoded(odd.picture("RGB"), "AVIF", speed=10))) == "AVIF"
    assert formats.looks_like_picture(head(heic(twin()))) == "HEIF"
    assert formats.looks_like_picture(b"8BPS\0\1" + bytes(20)) == "PSD"
    assert formats.looks_like_picture(b"SIMPLE  =                    T / conforms") == "FITS"


@pytest.mark.parametrize(
    "text",
    [b"", b"P", b"P5", b"Python is a language", b"P1 is a class", b"BMW, 1998", b"#define X 1", b"/* a comment */",
     b"<svg xmlns='http://www.w3.org/2000/svg'>", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", b"%!PS-Adobe-3.0",
     b"PK\3\4" + bytes(30), b"\x7fELF\2\1\1" + bytes(30), b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(30),
     b"RIFF\x24\0\0\0WAVEfmt ",
     b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", b"\0\0\0\x14ftypqt  ", bytes(64), b"\x1f\x8b\x08\0", b"ID3\3\0",
     b"path,label\na.png,cat\n", "GIF und BMP für alle".encode(), b"\xef\xbb\xbfP5 text",
     b"\n\2hi\x10\1" + bytes(8), b"\n\5hello\x12\3abc\x18\1", b"\n\3\x08\x96\1\x12\0",  # Protocol Buffers
     b"\n\2" + bytes(6) + b"\x8a\x1c\x33\x07\n\x87\4", b"\n\5" + bytes(6) + b"\1\2\3\4",  # TFRecord
     b"P5 2020 was a good year\n", b"P1 12 drummers\n", b"P6 10 10 people came\n", b"P2\n# heading\n\ntext\n"],
)  # fmt: skip
def test_other_files_are_no_pictures(text: bytes) -> None:
    assert formats.looks_like_picture(text) is None


@pytest.mark.parametrize(
    "data",
    [b"P4 8 8\n\xff", b"P1\n2 2\n0 1 1 0\n", b"P2 # grey\n24 7 # size\n15\n0 3", b"P5\r\n# by hand\r\n640 480\r\n255\n",
     b"P6\n# " + b"a long comment " * 9 + b"\n640 480\n255\n", b"Pf\n3 2\n-1.0\n"],
)  # fmt: skip
def test_headers_of_pnm_are_known_with_comments_and_without(data: bytes) -> None:
    assert formats.looks_like_picture(head(data)) == "PPM"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_pcx_of_every_mode_is_known(mode: str) -> None:
    assert formats.looks_like_picture(head(odd.encoded(odd.picture(mode), "PCX"))) == "PCX"


def test_any_bytes_may_be_asked_about() -> None:
    rng = np.random.default_rng(0)
    for data in [*odd.special().values(), *(rng.bytes(64) for _ in range(300))]:
        for length in (0, 1, 2, 3, 4, 5, 8, 12, 15, 16, 64):
            assert formats.looks_like_picture(data[:length]) in {None, "raw", *Image.OPEN, "HEIF"}


@pytest.mark.parametrize("name", RAW_HEADS)
def test_raw_files_are_named_by_content(name: str, tmp_path: Path) -> None:
    data = RAW_HEADS[name]
    assert formats.looks_like_picture(head(data)) == "raw"
    for path in (tmp_path / name, tmp_path / "x.jpg"):
        path.write_bytes(data)
        for read in (lambda path: decode.read(path, Form(8, 3)), decode.probe):
            with pytest.raises(ImageError, match="raw files of cameras are not read; export it as JPEG or TIFF"):
                read(path)
    with pytest.raises(ImageError, match="export it"):
        decode.decode(data, Form(8, 3))


def with_preview(*tags: int) -> bytes:
    """A TIFF whose first picture is a small preview, as that of DNG, NEF or ARW."""
    return tiff(twin(8, 8), tags={254: (4, [1]), **{tag: (1, [1, 4, 0, 0]) for tag in tags}})


def test_of_a_raw_file_that_begins_as_a_tiff_the_preview_is_not_taken_for_the_picture(tmp_path: Path) -> None:
    assert decode.decode(with_preview(), Form(8, 1)).shape == (8, 8, 1)  # what would be taken
    for name in ("a.DNG", "b.nef", "c.Arw", "d.pef"):
        (tmp_path / name).write_bytes(with_preview())
        with pytest.raises(ImageError, match="export it"):
            decode.read(tmp_path / name, Form(8, 1))
        (found,) = PictureCache(tmp_path / "cache", Form(8, 1)).read([str(tmp_path / name)])
        assert isinstance(found, ImageError) and "export it" in str(found)
    (tmp_path / "dng.tif").write_bytes(with_preview(50706))
    with pytest.raises(ImageError, match="export it"):
        decode.read(tmp_path / "dng.tif", Form(8, 1))


def test_a_jpeg_with_the_name_of_a_raw_file_is_a_jpeg(tmp_path: Path) -> None:
    (tmp_path / "x.nef").write_bytes(odd.encoded(odd.picture("L"), "JPEG"))
    assert decode.read(tmp_path / "x.nef", Form(8, 1)).shape == (8, 8, 1)


def test_a_command_says_what_to_do_with_a_raw_file(tmp_path: Path, digits_run: Path) -> None:
    (tmp_path / "x.cr2").write_bytes(RAW_HEADS["x.cr2"])
    line = one_line_error(dsh("hash", tmp_path / "x.cr2", "--model", digits_run), 1)
    assert "x.cr2" in line and "export it as JPEG or TIFF" in line


def test_of_what_begins_as_a_picture_and_cannot_be_opened_the_format_is_named() -> None:
    three_floats = tiff(np.zeros((4, 4, 3), np.float32))
    broken = b"\x89PNG\r\n\x1a\n" + bytes(40)
    for data, kind in ((three_floats, "TIFF"), (broken, "PNG"), (heic(twin())[:60], "HEIF")):
        with pytest.raises(ImageError, match=f"a {kind} file that is damaged, or of a kind that is not read; save it"):
            decode.decode(data, Form(8, 3))


def test_a_command_tells_what_was_guessed_of_its_own_pictures_alone(tmp_path: Path, digits_run: Path) -> None:
    guesses.note("0 to 4,095")  # of another that this process read
    Image.new("L", (8, 8), 7).save(tmp_path / "x.png")
    assert dsh("hash", tmp_path / "x.png", "--model", digits_run).stderr == ""
