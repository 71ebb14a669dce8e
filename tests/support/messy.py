"""A folder of pictures as it comes from cameras, network drives, archives and colleagues."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.heif import heic

TOLD = [  # of what is left out, for a training: the first three kinds, and the rest in short
    "left out: 1 unreadable picture, ",
    "left out: 1 class folder without pictures, ",
    "left out: 3 pictures beside class folders, first 0.png",
    "left out: 2 pictures not named as such, 2 camera raw files, "
    "2 links back, or to folders that are taken anyway, 1 link that leads nowhere",
]
COUNTS = {"train": 39, "validation": 3, "test": 10}  # pictures that can be read, see `make`
CLASSES = ["caf\u00e9", "item 2", "item 10"]
EACH = [16, 21, 15]


def make(root: Path) -> Path:
    """The folder, below `root`, where some of its pictures are too."""
    folder = root / "messy"
    drawn = np.random.default_rng(0)

    def put(number: int, *names: str, mode: str = "RGB", within: Path = folder, kind: str | None = None) -> None:
        """A picture of class `number` under each of the names."""
        for name in names:
            pixels = drawn.integers(0, 90, (24, 24, 3), np.uint8)
            pixels[..., number] += 150
            path = within / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).convert(mode).save(path, kind)

    # Splits in any case, one class under both forms of its name, names that count, suffixes in capitals.
    put(0, *(f"Train/cafe\u0301/{i}.png" for i in range(8)), "Train/caf\u00e9/9.JPG", "Train/caf\u00e9/deep/10.webp")
    put(0, "Test/caf\u00e9/0.png", "Test/caf\u00e9/1.bmp", "Test/caf\u00e9/2.tif", "val/caf\u00e9/0.png")
    put(1, *(f"Train/item 2/{i}.jpg" for i in range(10)), "Train/item 2/glob[1]*.png", "Train/item 2/[b]\n\x1b[2J.png")
    put(1, *(f"Test/item 2/{i}.png" for i in range(4)), "val/item 2/0.png")
    # A class that is a link to elsewhere, where links lead back, round, and nowhere.
    put(2, *(f"pool/{i}.png" for i in range(11)), within=root)
    (folder / "Train" / "item 10").symlink_to("../../pool")
    (root / "pool" / "round").symlink_to(".")
    (root / "pool" / "back").symlink_to("../messy/Train/item 2")
    (root / "pool" / "gone").symlink_to("/nowhere")
    put(2, *(f"Test/item 10/{i}.png" for i in range(3)), "val/item 10/0.png")
    # Other modes, the same picture under two names.
    put(0, "Train/cafe\u0301/grey.png", mode="L")
    put(1, "Train/item 2/palette.gif", mode="P")
    (folder / "Train" / "cafe\u0301" / "copy.png").symlink_to("0.png")
    # As phones, cameras and instruments write them.
    put(1, "Train/item 2/stereo.mpo", kind="MPO")
    (folder / "Train" / "item 2" / "IMG_7.HEIC").write_bytes(heic(drawn.integers(0, 256, (24, 24, 3), np.uint8)))
    deep = drawn.integers(0, 4096, (24, 24)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "Train" / "item 2" / "scope.tiff")
    # What systems leave behind.
    for junk in ("@eaDir", "__MACOSX", "Train/lost+found", "Train/item 2/#recycle", ".Trashes", "$RECYCLE.BIN/S-1"):
        put(1, f"{junk}/x.png")
    for name in ("Thumbs.db", "Train/item 2/.DS_Store", "Train/item 2/._0.jpg", "Train/item 2/0.xmp", "desktop.ini"):
        (folder / name).write_bytes(b"\0\1of a system")
    # Pictures beside class folders, not named as pictures, of cameras, and one that is a pointer to itself elsewhere.
    put(1, "0.png", "Train/1.png", "Test/1.png")
    put(1, "Train/item 2/photo", "Train/item 2/scan.jpg.bak", kind="PNG")
    for name in ("Train/item 2/IMG_1.CR2", "Test/item 2/DSC_1.NEF"):
        (folder / name).write_bytes(b"II*\0\x10\0\0\0CR\2\0")
    (folder / "Train" / "item 2" / "large.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "Train" / "empty").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "Train" / "item 2" / "pipe")
    return folder
