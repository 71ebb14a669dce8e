"""What a file is by its first bytes and its name, without decoding it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache

from PIL import Image

HEAD = 64  # bytes at the start of a file by which its format is known
HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif", ".heics", ".heifs"))
RAW_SUFFIXES = frozenset(
    (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos",
     ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f")
)  # fmt: skip
RAW_NOT_READ = "raw files of cameras are not read; export it as JPEG or TIFF, and give that"
# Pillow would start another program for these (EPS), leave them to one (the others), or open any format
# inside (IPTC); a picture must not decide what runs here.
REFUSED = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"))

_TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")
# CR2, CRW, ORF, RW2, CR3, RAF, MRW, X3F; the others begin as a TIFF does
_RAW = re.compile(
    rb"II\*\0.{4}CR|II\x1a\0.{2}HEAP|II(R[OS]|U\0)|MMOR|.{4}ftypcrx |FUJIFILMCCD-RAW|\0MRM|FOVb", re.DOTALL
)
_HEIF = re.compile(rb".{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.DOTALL)
_GAP = rb"(\s|#[^\r\n]*[\r\n])+"
_TEXT = {  # formats that can be told from other text
    "PPM": re.compile(  # size and white; or a comment, longer than what is here
        rb"P([14]%b\d+%b\d+|[2356]%b\d+%b\d+%b\d+|f%b\d+%b\d+%b-?[\d.]+)\s|P[1-6f]\s+#[^\r\n]{50,}\Z" % ((_GAP,) * 8)
    ),
    "XPM": re.compile(rb"/\* XPM \*/"),
    "FITS": re.compile(rb"SIMPLE  = "),
}
_PCX = re.compile(rb"\n[\0\2\3\5][\0\1][\1\2\4\x08]")  # version, compression, bits
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1f]")
# Of whose first bytes Pillow asks so little that other files have them too.
_WEAK = frozenset(("FPX", "GBR", "MIC", "PCX", "PPM", "XBM"))


def looks_like_picture(head: bytes) -> str | None:
    """The format of a picture by the first `HEAD` bytes of its file, as Pillow names it, or `raw`; None for others.

    Nothing is decoded: the file may be damaged, or of a kind that cannot be read. Formats that Pillow does not know by
    their beginning, such as TGA, are not known here either, nor are those that are refused. Raw files that begin as a
    TIFF does are told from it by their names; see `is_raw`.
    """
    if _RAW.match(head):
        return "raw"
    for name, begins in _TEXT.items():
        if begins.match(head):
            return name
    if not _BINARY.search(head):
        return None
    if _HEIF.match(head):
        return "HEIF"
    if _PCX.match(head):
        return "PCX"
    padded = head.ljust(HEAD, b"\0")  # some look at bytes that are not there
    return next((name for name, accept in _accepts() if accept(padded) is True), None)


def is_raw(path: str | os.PathLike[str], head: bytes) -> bool:
    """Whether a file is a camera's: of a TIFF Pillow would show the small preview."""
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    return bool(_RAW.match(head) or (suffix in RAW_SUFFIXES and _TIFF.match(head)))


@cache
def _accepts() -> tuple[tuple[str, Callable[[bytes], bool | str]], ...]:
    """What Pillow itself asks of the first bytes of a file, by format."""
    Image.init()
    found = ((name, accept) for name, (_, accept) in Image.OPEN.items() if name not in REFUSED | _WEAK)
    return tuple((name, accept) for name, accept in found if accept is not None)
