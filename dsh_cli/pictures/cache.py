"""Resized pictures on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dsh_cli.errors import ImageError, reason
from dsh_cli.pictures import decode
from dsh_cli.pictures.database import Database, checksum
from dsh_cli.pictures.decode import Form, Picture

_USUAL = ("crop", "bilinear")  # of which the name of a cache says nothing
_TABLES = (
    *(f"DROP TABLE IF EXISTS {old}" for old in ("files", "pictures")),  # of a format without checksums
    "CREATE TABLE IF NOT EXISTS checked_pictures "
    "(digest BLOB PRIMARY KEY, pixels BLOB NOT NULL, checksum INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS checked_files (path BLOB PRIMARY KEY, bytes INTEGER NOT NULL, "
    "mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID",
)


class PictureCache:
    """Resized pictures on disk, keyed by the content of their files, so that none is decoded twice.

    A file whose size and time of change are known is not even read. One SQLite database for each form of picture:
    processes may share it, and a crash leaves it whole. Every row has a checksum: one that has changed on the disk is
    not used, and replaced; a database that cannot be read is begun anew. A disk that is full stops the storing, not
    the reading; `problem` then says so.
    """

    def __init__(self, folder: Path, form: Form) -> None:
        self.form = form
        way = "" if (form.fit, form.interpolation) == _USUAL else f"-{form.fit}-{form.interpolation}"
        name = f"pictures-{form.size}x{form.size}x{form.channels}{way}-v{decode.INTAKE}.sqlite"
        self._db = Database(
            folder / name,
            _TABLES,
            "pictures",
            "choose another `cache` FOLDER, or `cache` off",
            "from now on they are decoded each time",
        )

    @property
    def path(self) -> Path:
        """The file that they are in."""
        return self._db.path

    @property
    def problem(self) -> str | None:
        """Why it takes no more pictures, if it does not."""
        return self._db.problem

    def read(self, paths: Sequence[str]) -> list[Picture | ImageError]:
        """The picture of each file, or why there is none; decoded only where it is not stored yet."""
        found: dict[str, Picture | ImageError] = {}
        stamps: dict[str, tuple[int, int]] = {}
        for path in paths:
            try:
                status = os.stat(path)
                stamps[path] = status.st_size, status.st_mtime_ns
            except (OSError, ValueError) as error:
                found[path] = ImageError(reason(error))
        found |= self._known(stamps)
        contents: dict[str, bytes] = {}
        for path in stamps.keys() - found.keys():
            try:
                contents[path] = decode.read_bytes(path)
            except ImageError as error:
                found[path] = error
        if contents:
            found |= self._decoded(contents, stamps)
        return [found[path] for path in paths]

    def _known(self, stamps: dict[str, tuple[int, int]]) -> dict[str, Picture]:
        """Pictures of the files that have not changed since they were stored."""
        names = {os.fsencode(os.path.abspath(path)): path for path in stamps}
        query = (
            "SELECT path, bytes, mtime_ns, digest, f.checksum, pixels, p.checksum "
            "FROM checked_files f JOIN checked_pictures p USING (digest) WHERE path IN"
        )
        found = {}
        for name, size, time, digest, of_file, pixels, of_pixels in self._db.select(query, names):
            path = names.get(name)
            if path is not None and stamps[path] == (size, time) and checksum(name, size, time, digest) == of_file:
                picture = self._picture(digest, pixels, of_pixels)
                if picture is not None:
                    found[path] = picture
        return found

    def _decoded(
        self, contents: dict[str, bytes], stamps: dict[str, tuple[int, int]]
    ) -> dict[str, Picture | ImageError]:
        """Pictures of files that are not known: of the same content as a stored one, or decoded and stored now."""
        found: dict[str, Picture | ImageError] = {}
        digests = {path: hashlib.blake2b(data, digest_size=16).digest() for path, data in contents.items()}
        rows = self._db.select(
            "SELECT digest, pixels, checksum FROM checked_pictures WHERE digest IN", set(digests.values())
        )
        stored = {digest: self._picture(digest, pixels, of_it) for digest, pixels, of_it in rows}
        fresh: dict[bytes, Picture] = {}
        for path, digest in digests.items():
            pixels = stored.get(digest)
            if pixels is None:
                pixels = fresh.get(digest)
            try:
                if pixels is None:
                    pixels = fresh[digest] = decode.decode(contents[path], self.form)
                found[path] = pixels
            except ImageError as error:
                found[path] = error
        self._store(fresh, {path: (*stamps[path], digest) for path, digest in digests.items()})
        return found

    def _picture(self, digest: bytes, pixels: bytes, stored: int) -> Picture | None:
        """A stored picture; None if it is not as it was stored."""
        if self._checked(digest, pixels) != stored:
            return None
        return np.frombuffer(pixels, np.uint8).reshape(self.form.size, self.form.size, self.form.channels)

    def _store(self, pictures: dict[bytes, Picture], files: dict[str, tuple[int, int, bytes]]) -> None:
        if not (pictures or files):
            return
        of_pictures = [
            (digest, pixels := picture.tobytes(), self._checked(digest, pixels)) for digest, picture in pictures.items()
        ]
        known = [(os.fsencode(os.path.abspath(path)), *stamp) for path, stamp in files.items()]
        self._db.insert(
            [("checked_pictures", of_pictures), ("checked_files", [(*row, checksum(*row)) for row in known])]
        )

    def _checked(self, digest: bytes, pixels: bytes) -> int:
        return checksum(digest, self.form.size, self.form.channels, pixels)


def holds_pictures(folder: str) -> bool:
    """Whether there is a cache in a folder."""
    try:
        place = Path(folder).expanduser()
        return any(any(place.glob(f"{kind}-*.sqlite")) for kind in ("pictures", "features"))  # of them
    except (OSError, RuntimeError, ValueError):  # RuntimeError: of a user whom this machine does not know
        return False
