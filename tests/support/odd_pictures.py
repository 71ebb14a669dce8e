"""The odd pictures: every format and mode Pillow writes, cut short, mislabelled, hostile. The same bytes every time.

To have them as a folder: python -m tests.support.odd_pictures FOLDER
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import os
import socket
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

MODES = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV",
    "I", "F", "I;16", "I;16L", "I;16B", "I;16N",
)  # fmt: skip
CUTS = (0.02, 0.2, 0.5, 0.9, 0.99)  # shares of a file that its cut copies keep
ORIENTATION = 0x0112

_SIZE = (48, 40)
_GREEDY: dict[str, dict[str, Any]] = {
    "JPEG2000": {"quality_layers": [20]},
    "AVIF": {"speed": 10},
    "WEBP": {"method": 0},
}  # quick ones


def picture(mode: str, size: tuple[int, int] = _SIZE, seed: int = 0) -> Image.Image:
    """A smooth random picture of any mode."""
    rng = np.random.default_rng(seed)
    if mode.startswith("I") or mode == "F":
        grey = np.asarray(picture("L", size, seed))
        if mode == "F":
            return Image.fromarray(grey.astype(np.float32) / 255)
        if mode == "I":
            return Image.fromarray(grey.astype(np.int32) * 257)
        wide = Image.fromarray(grey.astype(np.uint16) * 257)  # I;16
        return wide if mode == "I;16" else Image.frombytes(mode, size, _sixteen(wide, mode))
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 6), np.uint8)) for _ in range(max(bands, 4))]
    smooth = [band.resize(size, Image.Resampling.BICUBIC) for band in coarse]
    if mode in ("1", "P"):
        return Image.merge("RGB", smooth[:3]).convert(mode)
    if mode == "PA":
        return Image.merge("LA", smooth[:2]).convert("PA")
    if mode == "L":
        return smooth[0]
    if mode in ("La", "RGBa"):  # premultiplied: no value above alpha
        return Image.merge({"La": "LA", "RGBa": "RGBA"}[mode], smooth[:bands]).convert(mode)
    return Image.merge(mode, smooth[:bands])


def _sixteen(wide: Image.Image, mode: str) -> bytes:
    order = {"I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2"}[mode]
    return np.asarray(wide).astype(order).tobytes()


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def written() -> dict[str, bytes]:
    """Every format in every mode that Pillow can write, by name such as `PNG-I;16.png`."""
    Image.init()
    suffixes: dict[str, str] = {}
    for suffix, format in Image.registered_extensions().items():
        suffixes.setdefault(format, suffix)
    files = {}
    for format, mode in itertools.product(sorted(Image.SAVE), MODES):
        with warnings.catch_warnings(action="ignore"):
            try:
                data = encoded(picture(mode), format, **_GREEDY.get(format, {}))
            except Exception:  # Pillow cannot write this mode in this format, each plugin in its own words
                continue
        if format == "PDF":  # the only one with a clock in it
            continue
        files[f"{format}-{mode}{suffixes.get(format, '.' + format.lower())}"] = data
    return files


def cut(files: dict[str, bytes]) -> dict[str, bytes]:
    """Each file cut short at several places."""
    return {f"cut-{share}-{name}": data[: int(len(data) * share)] for name, data in files.items() for share in CUTS}


def png(*chunks: tuple[bytes, bytes], width: int = 8, height: int = 8, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of black pixels with extra chunks before the pixels; honest only for small sizes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    rows = bytes((1 + width * samples * depth // 8) * height) if width * height <= 1 << 16 else bytes(99)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in parts)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(pixels: np.ndarray) -> bytes:
    """(h, w) or (h, w, 3) uint16 as a PNG of 16 bits a sample; Pillow writes only the first."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    data = png(width=width, height=height, depth=16, colour=2 if pixels.ndim == 3 else 0)
    head, tail = data[:33], data[-12:]
    body = zlib.compress(rows)
    return head + struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body)) + tail


def exif(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """An EXIF block of one entry, true or not."""
    return b"Exif\0\0" + b"II*\0" + struct.pack("<IHHHI", 8, 1, tag, kind, count) + value[:4].ljust(4, b"\0") + bytes(4)


def upright_exif(orientation: int) -> bytes:
    return exif(ORIENTATION, 3, 1, struct.pack("<H", orientation))


HOSTILE_EXIF = {
    "orientation-0": upright_exif(0),
    "orientation-9": upright_exif(9),
    "orientation-65535": upright_exif(65535),
    "orientation-text": exif(ORIENTATION, 2, 4, b"six\0"),
    "orientation-text-6": exif(ORIENTATION, 2, 2, b"6\0"),
    "orientation-two": exif(ORIENTATION, 3, 2, struct.pack("<HH", 6, 6)),
    "orientation-bytes": exif(ORIENTATION, 7, 4, b"\6\0\0\0"),
    "orientation-zero-over-zero": exif(ORIENTATION, 5, 1, struct.pack("<I", 26)) + bytes(8),
    "orientation-nan": exif(ORIENTATION, 11, 1, struct.pack("<f", float("nan"))),
    "orientation-none": exif(ORIENTATION, 3, 0, b""),
    "huge-count": exif(ORIENTATION, 3, 0xFFFFFFFF, struct.pack("<I", 8)),
    "unknown-type": exif(ORIENTATION, 99, 1, b"\6"),
    "loop": exif(0x8769, 4, 1, struct.pack("<I", 8)),
    "far-offset": b"Exif\0\0II*\0" + struct.pack("<I", 0xFFFFFFF0),
    "many-entries": b"Exif\0\0II*\0" + struct.pack("<IH", 8, 0xFFFF) + bytes(64),
    "truncated": upright_exif(6)[:16],
    "header-only": b"Exif\0\0",
    "garbage": b"Exif\0\0" + bytes(range(250)),
}


def with_exif(block: bytes, format: str) -> bytes:
    """A picture with an EXIF block put in as it is: Pillow would refuse some when it writes them."""
    plain = encoded(picture("RGB"), format)
    if format == "JPEG":
        return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + plain[2:]
    if format == "PNG":
        body = block.removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        return plain[:33] + chunk + plain[33:]
    return encoded(picture("RGB"), format, exif=block)  # WebP stores any bytes


def rgb_jpeg() -> bytes:
    """A JPEG whose samples are RGB, not YCbCr; Adobe's marker says so."""
    return encoded(picture("RGB"), "JPEG", keep_rgb=True, quality=95)


def ycck_jpeg() -> bytes:
    """A CMYK JPEG that claims the transform YCCK, as Photoshop writes: only the marker is changed."""
    data = encoded(picture("CMYK"), "JPEG", quality=95)
    at = data.index(b"Adobe")
    return data[: at + 11] + b"\x02" + data[at + 12 :]


def xmp_orientation(orientation: int) -> bytes:
    """A JPEG that has its orientation in XMP only."""
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'
    return encoded(picture("RGB"), "JPEG", xmp=text.encode(), quality=95)


def animated(format: str) -> bytes:
    frames = [picture("RGB", seed=seed) for seed in range(3)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def special() -> dict[str, bytes]:
    """What Pillow writes only when asked to, or not at all."""
    wide = (np.asarray(picture("RGB")).astype(np.uint16) << 8) + 0x7F
    clear = picture("P")
    clear.info["transparency"] = bytes(range(256))
    files = {
        "empty.png": b"",
        "one-byte.jpg": b"\xff",
        "text.png": b"just text, whatever the name says",
        "page.gif": b"<!doctype html><title>404</title>",
        "png.jpg": encoded(picture("RGB"), "PNG"),
        "jpeg.png": encoded(picture("RGB"), "JPEG"),
        "animated.gif": animated("GIF"),
        "animated.webp": animated("WEBP"),
        "animated.png": animated("PNG"),
        "pages.tiff": animated("TIFF"),
        "two.mpo": animated("MPO"),
        "palette-alpha.png": encoded(clear),
        "palette-clear.gif": encoded(picture("P"), "GIF", transparency=3),
        "colour-key.png": encoded(picture("RGB"), transparency=(0, 0, 0)),
        "one-bit-key.png": encoded(picture("1"), transparency=0),
        "grey-16-key.png": png((b"tRNS", b"\0\0"), depth=16),
        "grey-16.png": png16(wide[..., 0]),
        "rgb-16.png": png16(wide),
        "progressive.jpg": encoded(picture("RGB"), "JPEG", progressive=True),
        "rgb.jpg": rgb_jpeg(),
        "ycck.jpg": ycck_jpeg(),
        "xmp-6.jpg": xmp_orientation(6),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "page.pdf": b"%PDF-1.4\n1 0 obj <<>> endobj\ntrailer <<>>\n%%EOF\n",
        "eps.png": encoded(picture("RGB"), "EPS"),
        "iptc-with-eps.iptc": iptc(encoded(picture("RGB"), "EPS")),
    }
    for size in ((1, 1), (1, 5000), (5000, 1), (2, 3)):
        for format in ("JPEG", "PNG"):
            files[f"{size[0]}x{size[1]}.{format.lower()}"] = encoded(picture("RGB", size), format)
    for subsampling in (0, 1, 2):
        files[f"subsampling-{subsampling}.jpg"] = encoded(picture("RGB"), "JPEG", subsampling=subsampling)
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "tiff_adobe_deflate"):
        files[f"{compression}.tiff"] = encoded(picture("RGB"), "TIFF", compression=compression)
    for compression in ("group3", "group4", "tiff_ccitt"):
        files[f"{compression}.tiff"] = encoded(picture("1"), "TIFF", compression=compression)
    for format, orientation in itertools.product(("JPEG", "PNG", "WEBP", "TIFF"), range(1, 9)):
        block = upright_exif(orientation)
        files[f"turned-{orientation}.{format.lower()}"] = encoded(picture("RGB"), format, exif=block)
    for format, (name, block) in itertools.product(("JPEG", "PNG", "WEBP"), HOSTILE_EXIF.items()):
        files[f"exif-{name}.{format.lower()}"] = with_exif(block, format)
    return files


def iptc(inner: bytes) -> bytes:
    """An IPTC file that wraps a picture of another format, which Pillow opens whatever it is."""

    def field(number: int, data: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, 3, number, len(data)) + data

    fields = field(20, b"\0\0\0\x08") + field(30, b"\0\0\0\x08") + field(60, b"\1\0") + field(120, b"\5")
    return fields + struct.pack(">BBBBBI", 0x1C, 8, 10, 0x84, 0, len(inner)) + inner


def bombs() -> dict[str, bytes]:
    """Small files that unfold, or claim to."""
    zeros = zlib.compress(bytes(20 << 20), 9)
    fits = b"".join(
        f"{card:<80}".encode()
        for card in (
            "SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    0", "END"
        )
    ).ljust(2880) + b"".join(
        f"{card:<80}".encode()
        for card in (
            "XTENSION= 'BINTABLE'", "BITPIX  =                    8", "NAXIS   =                    2",
            "NAXIS1  =                    8", "NAXIS2  =                    8", "ZIMAGE  =                    T",
            "ZBITPIX =                    8", "ZNAXIS  =                    2", "ZNAXIS1 =                    8",
            "ZNAXIS2 =                    8", "ZCMPTYPE= 'GZIP_1  '", "PCOUNT  =                    0",
            "GCOUNT  =                    1", "END",
        )
    ).ljust(2880)  # fmt: skip
    return {
        "wide.png": png(width=50_000, height=50_000),
        "wide-rgba-16.png": png(width=2**31 - 1, height=2**31 - 1, depth=16, colour=6),
        "warned-of.png": png(width=13_000, height=13_800),
        "claims.png": png(width=12_000, height=12_000),  # within the limit, but the pixels are not there
        "text.png": png((b"iTXt", b"k\0\1\0\0\0" + zeros)),
        "ztxt.png": png((b"zTXt", b"k\0\0" + zeros)),
        "profile.png": png((b"iCCP", b"k\0\0" + zeros)),
        "canvas.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded(picture("P"), "GIF")[10:],
        "dimensions.tiff": tiff(2**31 - 1, 2**31 - 1),
        "counts.tiff": tiff(8, 8, count=0xFFFFFFFF),
        "header.bmp": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 99, 0, 0, 54, 40, 60_000, 60_000, 1, 24, *[0] * 6),
        "header.qoi": b"qoif" + struct.pack(">IIBB", 60_000, 60_000, 4, 0) + bytes(64),
        "header.ppm": b"P6\n60000 60000\n255\n" + bytes(64),
        "header.jpg": _wide_jpeg(),
        "gzip.fits": fits + bytes(64) + gzip.compress(bytes(20 << 20), 9, mtime=0),
    }


def hostile() -> dict[str, bytes]:
    """Files that made a decoder work for minutes, or took gigabytes."""
    hexadecimal = b"\nexif\n1\n" + many_entries(30_000, 400_000).hex().encode()
    return {
        "zeros.jpg": b"\xff\xd8\xff\xe0\0\4ab" + bytes(48 << 20),
        "segments.jpg": b"\xff\xd8" + b"\xff\xe5\0\2" * (16 << 20),
        "scans.jpg": encoded(picture("RGB"), "JPEG")[:-2] + b"\xff\xda\0\2" * (8 << 20),
        "comment.ppm": b"P6\n#" + b"a" * (64 << 20) + b"\n8 8 255\n" + bytes(192),
        "chunks.png": png()[:33] + png_chunk(b"abcd", b"") * (4 << 20) + png()[33:],
        "exif.png": png((b"eXIf", many_entries(60_000, 1 << 20))),
        "profile.png": png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(hexadecimal))),
        "canvas.webp": wide_webp(13_000, 13_000),
        "canvas.qoi": b"qoif" + struct.pack(">IIBB", 13_000, 13_000, 4, 0) + b"\xfd" * (4 << 20),
    }


def many_entries(count: int, size: int) -> bytes:
    """An EXIF block whose entries all claim to hold the whole block."""
    entries = b"".join(struct.pack("<HHII", 1000 + number, 7, size, 0) for number in range(count))
    return (b"II*\0" + struct.pack("<IH", 8, count) + entries + bytes(4)).ljust(size, b"\0")


def wide_webp(width: int, height: int) -> bytes:
    """A small WebP on a large canvas."""
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", len(canvas)) + canvas + encoded(picture("RGB"), "WEBP")[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff(width: int, height: int, count: int = 1) -> bytes:
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 64)]
    fields = b"".join(struct.pack("<HHII", tag, 4, count if tag == 273 else 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + fields + bytes(4)


def _wide_jpeg() -> bytes:
    data = bytearray(encoded(picture("RGB"), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


NAMES = (
    b"with space.png",
    b"new\nline.png",
    b"return\r.png",
    b"tab\there.png",
    "snow \u2603 \u65e5\u672c\u8a9e \u0440\u0443\u0441.png".encode(),
    "right\u202egnp.png".encode(),
    "zero\u200bwidth\ufeff.png".encode(),
    "line\u2028separator.png".encode(),
    b"\x1b[31mred\x1b]0;title\x07.png",
    "c1\u009b31m.png".encode(),
    b"not-utf8-\xff\xfe.png",
    b"-dash.png",
    b"--help.png",
    b"back\\slash\\n.png",
    b"[red]markup.png",
    b"[bold.png",
    b":smile:.png",
    b"quote\"'`$(x).png",
    "e\u0301 \u00e9.png".encode(),
)  # hard to show, hard to pass on


def make(folder: str | os.PathLike[str]) -> list[str]:
    """Write all of them below a folder; returns the paths that `dsh hash` is to give a row each."""
    root = Path(folder)
    usual = written()
    sets = {"written": usual, "cut": cut(usual), "special": special(), "bombs": bombs()}
    for name, files in sets.items():
        (root / name).mkdir(parents=True)
        for file, data in files.items():
            (root / name / file).write_bytes(data)
    make_named(root / "names")
    make_no_files(root / "no-files")
    return [os.path.join(top, file) for top, _, files in os.walk(root) for file in files]


def make_named(folder: Path) -> None:
    """One sound picture under each of `NAMES`; names that this file system refuses are left out."""
    folder.mkdir()
    data = encoded(picture("L"))
    for name in NAMES:
        try:
            with open(os.path.join(os.fsencode(folder), name), "wb") as file:
                file.write(data)
        except OSError:
            continue


def make_no_files(folder: Path) -> None:
    """What has the name of a picture and is no file."""
    folder.mkdir()
    (folder / "folder.png").mkdir()
    (folder / "broken.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        (folder / "zero.png").symlink_to("/dev/zero")
        with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(folder):  # for such a path must be short
            server.bind("socket.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    print(f"{len(make(sys.argv[1]))} files")
