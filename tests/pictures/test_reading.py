"""Files read ahead by workers, and the cache of resized pictures."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsh_cli.errors import DshError, ImageError
from dsh_cli.pictures import decode
from dsh_cli.pictures.cache import PictureCache
from dsh_cli.pictures.decode import Form, Picture
from dsh_cli.pictures.reading import Intake
from tests.support.values import there


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """100 pictures of 40 x 30, each of another grey, one of them missing and one no picture."""
    paths = []
    for i in range(100):
        path = tmp_path / f"{i:03d}.png"
        Image.new("L", (40, 30), 2 * i).save(path)
        paths.append(str(path))
    os.unlink(paths[17])
    (tmp_path / "042.png").write_text("text")
    return paths


def greys(results: Iterable[tuple[str, Picture | ImageError]]) -> list[int | None]:
    return [None if isinstance(picture, ImageError) else int(picture[0, 0, 0]) for _, picture in results]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cached", [False, True])
def test_pictures_come_in_order_with_what_cannot_be_read(
    files: list[str], tmp_path: Path, workers: int, cached: bool
) -> None:
    intake = Intake(Form(8, 1), workers, PictureCache(tmp_path / "cache", Form(8, 1)) if cached else None)
    for _ in range(2):
        results = list(intake.read(files))
        assert [path for path, _ in results] == files
        assert greys(results) == [None if i in (17, 42) else 2 * i for i in range(100)]
        assert str(results[17][1]) == "no such file or directory"
        assert str(results[42][1]) == "not a picture, or of a format Pillow does not know"
        assert all(p.shape == (8, 8, 1) and p.dtype == np.uint8 for _, p in results if not isinstance(p, ImageError))


def test_workers_read_ahead_but_not_without_end(files: list[str]) -> None:
    asked = []

    def endless() -> Iterator[str]:
        while True:
            asked.append(1)
            yield files[0]

    results = Intake(Form(1024, 3), 2).read(endless())
    assert isinstance(results, Generator)
    next(results)
    first = len(asked)
    assert 4 < first <= 64 // 3 + 1  # of 3 MiB each, in 64 MiB
    next(results)
    results.close()
    assert len(asked) == first + 1


def test_reading_ahead_goes_on_while_the_caller_works(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches that take a while to decode are there at once after a caller that was busy for as long."""

    def slow(path: str, form: Form) -> Picture:
        time.sleep(0.01)
        return np.zeros((form.size, form.size, form.channels), np.uint8)

    monkeypatch.setattr(decode, "read", slow)
    results = Intake(Form(8, 1), 2).read(files)
    next(results)
    time.sleep(0.7)
    started = time.perf_counter()
    assert len(list(results)) == 99
    assert time.perf_counter() - started < 0.2


def test_no_thread_is_left_behind(files: list[str]) -> None:
    before = threading.active_count()
    for stop in (1, 40):
        results = Intake(Form(8, 1), 4).read(files)
        assert isinstance(results, Generator)
        for _ in range(stop):
            next(results)
        results.close()
    assert threading.active_count() == before


def test_a_cached_picture_is_neither_decoded_nor_read_again(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PictureCache(tmp_path / "cache", Form(8, 1))
    before = greys(Intake(Form(8, 1), 2, cache).read(files))
    monkeypatch.setattr(decode, "decode", lambda *arguments: pytest.fail("decoded again"))
    del files[42]  # which has no picture to keep
    del before[42]
    again = PictureCache(tmp_path / "cache", Form(8, 1))
    monkeypatch.setattr(decode, "read_bytes", lambda path: pytest.fail("read again"))
    assert greys(Intake(Form(8, 1), 2, again).read(files)) == before


def test_the_cache_goes_by_content(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PictureCache(tmp_path / "cache", Form(8, 1))
    list(Intake(Form(8, 1), 1, cache).read(files))
    copy = tmp_path / "moved elsewhere.png"
    shutil.copy(files[7], copy)
    with monkeypatch.context() as patched:
        patched.setattr(decode, "decode", lambda *arguments: pytest.fail("the same content was decoded again"))
        assert greys(Intake(Form(8, 1), 1, cache).read([str(copy)])) == [14]
    Image.new("L", (40, 30), 99).save(files[7])
    os.utime(files[7], ns=(1, 1))
    assert greys(Intake(Form(8, 1), 1, cache).read([files[7]])) == [99]


def test_other_sizes_and_colours_are_kept_apart(files: list[str], tmp_path: Path) -> None:
    for size, channels in ((8, 1), (8, 3), (16, 1)):
        cache = PictureCache(tmp_path / "cache", Form(size, channels))
        (_, picture), *_ = Intake(Form(size, channels), 1, cache).read(files[:1])
        assert isinstance(picture, np.ndarray) and picture.shape == (size, size, channels)


def test_names_that_are_not_text_are_kept(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n.png")
    try:
        Image.new("L", (8, 8), 5).save(path, format="png")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    cache = PictureCache(tmp_path / "cache", Form(8, 1))
    for _ in range(2):
        assert greys(Intake(Form(8, 1), 1, cache).read([path])) == [5]


def test_processes_may_share_a_cache_and_none_leaves_it_broken(files: list[str], tmp_path: Path) -> None:
    """Four processes fill one cache at once; two are killed on the way."""
    good = [path for i, path in enumerate(files) if i not in (17, 42)]
    script = (
        "import sys; from pathlib import Path; \n"
        "from dsh_cli.pictures.cache import PictureCache; from dsh_cli.pictures.decode import Form\n"
        "from dsh_cli.pictures.reading import Intake\n"
        "cache = PictureCache(Path(sys.argv[1]), Form(64, 3)); print(flush=True)\n"
        "while True:\n"
        "    seen = [int(picture[0, 0, 0]) for _, picture in Intake(Form(64, 3), 2, cache).read(sys.argv[2:])]\n"
        "    print(seen, flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "cache"), *good]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        for process in started:
            assert there(process.stdout).readline() == "\n"
        for process in started[:2]:
            process.kill()
        expected = [2 * i for i in range(100) if i not in (17, 42)]
        for process in started[2:]:
            assert there(process.stdout).readline().strip() == str(expected)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    with contextlib.closing(sqlite3.connect(PictureCache(tmp_path / "cache", Form(64, 3)).path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM checked_pictures").fetchone() == (len(good),)


def test_a_full_disk_stops_the_storing_and_not_the_reading(files: list[str], tmp_path: Path) -> None:
    cache = PictureCache(tmp_path / "cache", Form(8, 1))
    cache._db._db.execute("PRAGMA max_page_count = 8")  # the disk has room for no more
    assert greys(Intake(Form(8, 1), 2, cache).read(files)).count(None) == 2
    assert "takes no more pictures" in there(cache.problem) and str(cache.path) in there(cache.problem)
    assert greys(Intake(Form(8, 1), 2, cache).read(files)).count(None) == 2


def test_a_damaged_cache_and_one_that_cannot_be_made_say_what_to_do(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DshError, match="`cache` off"):
        PictureCache(tmp_path / "file", Form(8, 1))
    cache = PictureCache(tmp_path / "cache", Form(8, 1))
    cache._db.close()
    cache.path.write_bytes(b"this is no database, it is only a line of text repeated. " * 100)
    with pytest.raises(DshError, match="`cache`"):
        PictureCache(tmp_path / "cache", Form(8, 1))


# Bits that flip, and files of others


def filled(folder: Path, files: list[str]) -> Path:
    """A cache of the files, closed."""
    cache = PictureCache(folder, Form(8, 1))
    list(Intake(Form(8, 1), 1, cache).read(files))
    cache._db.close()
    return cache.path


def test_a_bit_that_flips_in_the_cache_changes_no_picture(files: list[str], tmp_path: Path) -> None:
    """Whatever it was in: pixels, paths, times, or what SQLite keeps of them."""
    for file in files:  # so that a path that becomes another finds a picture of this size and time
        if os.path.exists(file):
            os.utime(file, ns=(1, 1))
    expected = [None if i in (17, 42) else 2 * i for i in range(100)]
    path = filled(tmp_path / "cache", files)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(80):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        for kept in ("-wal", "-shm"):
            path.with_name(path.name + kept).unlink(missing_ok=True)
        try:
            cache = PictureCache(tmp_path / "cache", Form(8, 1))
            assert greys(Intake(Form(8, 1), 1, cache).read(files)) == expected
            assert greys(Intake(Form(8, 1), 1, cache).read(files)) == expected
            cache._db.close()
        except DshError as error:
            told += 1
            assert "choose another `cache` FOLDER" in str(error)
    assert told <= 2  # the words a database begins with


def test_a_picture_that_has_changed_in_the_cache_is_decoded_anew_and_replaced(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "cache", files)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE checked_pictures SET pixels = zeroblob(length(pixels))")
    assert greys(Intake(Form(8, 1), 1, PictureCache(tmp_path / "cache", Form(8, 1))).read(files))[50] == 100
    monkeypatch.setattr(decode, "decode", lambda *arguments: pytest.fail("decoded once more"))
    assert greys(Intake(Form(8, 1), 1, PictureCache(tmp_path / "cache", Form(8, 1))).read(files[:17]))[16] == 32


def test_a_database_that_cannot_be_read_is_begun_anew(files: list[str], tmp_path: Path) -> None:
    path = filled(tmp_path / "cache", files)
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (len(path.read_bytes()) - 4096))
    cache = PictureCache(tmp_path / "cache", Form(8, 1))
    for _ in range(2):
        assert greys(Intake(Form(8, 1), 1, cache).read(files)).count(None) == 2
    assert cache.problem is None
    assert cache._db._db.execute("SELECT count(*) FROM checked_pictures").fetchone() == (98,)


def test_a_cache_without_checksums_is_not_used(files: list[str], tmp_path: Path) -> None:
    path = filled(tmp_path / "cache", files)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE pictures (digest BLOB PRIMARY KEY, pixels BLOB NOT NULL)")
    assert greys(Intake(Form(8, 1), 1, PictureCache(tmp_path / "cache", Form(8, 1))).read(files)).count(None) == 2
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT name FROM sqlite_master WHERE name = 'pictures'").fetchone() is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
@pytest.mark.parametrize("kind", ["link", "link beside", "pipe", "folder"])
def test_what_is_no_file_in_place_of_the_cache_is_refused_and_left(kind: str, tmp_path: Path) -> None:
    path = filled(tmp_path / "cache", [])
    (tmp_path / "mine").write_text("mine")
    path.unlink()
    if kind == "link":
        path.symlink_to(tmp_path / "mine")
    elif kind == "link beside":
        path.with_name(f"{path.name}-wal").symlink_to(tmp_path / "mine")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(DshError, match="is a link, and nothing in|not a regular file|[Ii]s a directory"):
        PictureCache(tmp_path / "cache", Form(8, 1))
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_of_ones_own_choice_may_be_a_link(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    filled(tmp_path / "link", files)
    assert list((tmp_path / "disk").glob("*.sqlite"))
