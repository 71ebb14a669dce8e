"""What a hostile picture may cost, and that ordinary ones cost no more than they did."""

import io
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
from PIL import Image

from dsh_cli import bounded
from dsh_cli.errors import ImageError
from dsh_cli.pictures import decode, decoders, worker
from dsh_cli.pictures.decode import Form
from tests.support import odd_pictures as odd
from tests.support.privileges import kept_out

needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="memory can be bounded on Linux alone")


def refuse(*_: object) -> None:
    pytest.fail("another process was asked")


# Names of files, as far as the dot.
ORDINARY = (
    "JPEG-RGB", "JPEG-L", "PNG-RGB", "PNG-L", "PNG-P", "PNG-1", "PNG-I;16", "PNG-RGBA", "BMP-RGB", "BMP-L", "BMP-P",
    "PPM-RGB", "PPM-L", "PPM-1",
)  # fmt: skip


def test_ordinary_pictures_need_no_other_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(worker, "pixels", refuse)
    monkeypatch.setattr(worker, "shape", refuse)
    written = {name.partition(".")[0]: data for name, data in odd.written().items()}
    files = {name: written[name] for name in ORDINARY}
    files |= {name: data for name, data in odd.special().items() if name.startswith("turned-") and ".jpeg" in name}
    for name, data in files.items():
        assert decode.decode(data, decode.Form(24, 3)).shape == (24, 24, 3), name
        (tmp_path / "x").write_bytes(data)
        shape = decode.probe(tmp_path / "x")
        assert {shape.width, shape.height} == {48, 40}, name


def test_another_process_gives_the_very_pixels() -> None:
    files = {**odd.written(), **odd.special()}
    asked = []
    for name, data in files.items():
        if not data or decoders.ordinary(data, decode.Form(24, 3), nullcontext) is not None:
            continue
        asked.append(name)
        for channels in (1, 3):
            try:
                expected = decoders.pixels(data, decode.Form(24, channels), nullcontext)
            except ImageError as error:
                with pytest.raises(ImageError) as other:
                    decode.decode(data, decode.Form(24, channels))
                assert str(other.value) == str(error), name
            else:
                found = decode.decode(data, decode.Form(24, channels))
                assert (found == expected).all() and found.flags.writeable, name
    assert len(asked) > 100


@needs_limits
def test_hostile_pictures_are_given_up() -> None:
    """Each took minutes or gigabytes. Within a bound of 1 s in place of 10, so that the test takes no longer."""
    program = """
import os
from dsh_cli import bounded
from dsh_cli.pictures import decode
from tests.support import odd_pictures as odd
from tests.support.memory import peak, peak_of_children

bounded.SECONDS = 1
for name, data in odd.hostile().items():
    started = os.times()
    try:
        decode.decode(data, decode.Form(32, 3))
    except decode.ImageError as error:
        print(error)
    bounded._end_idle()  # so that what they took is known
    assert sum(os.times()[:4]) - sum(started[:4]) < 3, name  # seconds of the processor, 0.5 of them to start
    assert peak() < 1100 and peak_of_children() < 1100, (name, peak(), peak_of_children())  # MiB
"""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("limit against decompression bombs") >= 5, done.stdout


def webp(kind: str, width: int, height: int) -> bytes:
    """The head of a WebP of such a size, and some zeros."""
    match kind:
        case "VP8 ":
            content = b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width, height)
        case "VP8L":
            content = b"\x2f" + struct.pack("<I", width - 1 | height - 1 << 14)
        case _:
            content = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + kind.encode() + struct.pack("<I", len(content) + 40) + content + bytes(40)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize(
    ("kind", "width", "height"),
    [
        ("VP8 ", 16383, 16383),
        ("VP8L", 16384, 16384),
        ("VP8X", 13000, 13000),
        ("VP8X", 1 << 24, 255),
        ("VP8L", 9000, 9000),
    ],
)
def test_a_webp_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path, kind: str, width: int, height: int) -> None:
    said = "^more than 67 million pixels, the limit against decompression bombs$"
    (tmp_path / "x").write_bytes(webp(kind, width, height))
    with pytest.raises(ImageError, match=said):
        decode.read(tmp_path / "x", Form(32, 3))
    with pytest.raises(ImageError, match=said):
        decode.probe(tmp_path / "x")


@pytest.mark.parametrize("kind", [b"VP8 ", b"VP8L", b"VP8X"])
def test_the_pixels_of_a_webp_are_counted_as_they_are(kind: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    mode, options = {b"VP8 ": ("RGB", {}), b"VP8L": ("RGB", {"lossless": True}), b"VP8X": ("RGBA", {})}[kind]
    file = io.BytesIO()
    Image.frombytes(mode, (301, 77), os.urandom(301 * 77 * len(mode))).save(file, "WEBP", **options)
    data = file.getvalue()
    assert data[12:16] == kind
    monkeypatch.setattr(decoders, "_MAX_WEBP", 301 * 77)
    assert decoders.pixels(data, Form(8, 3), nullcontext).shape == (8, 8, 3)
    monkeypatch.setattr(decoders, "_MAX_WEBP", 301 * 77 - 1)
    with pytest.raises(ImageError, match="million pixels"):
        decoders.pixels(data, Form(8, 3), nullcontext)


def test_a_process_that_was_ended_is_replaced() -> None:
    data = odd.encoded(odd.picture("RGB"), "WEBP")
    expected = decode.decode(data, Form(8, 3))
    process = bounded._idle[worker.__name__][-1]._process
    process.kill()
    process.wait()
    assert (decode.decode(data, Form(8, 3)) == expected).all()


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_a_signal_to_a_whole_job_is_for_who_asks() -> None:
    data = odd.encoded(odd.picture("RGB"), "WEBP")
    expected = decode.decode(data, Form(8, 3))
    process = bounded._idle[worker.__name__][-1]._process
    process.terminate()
    assert (decode.decode(data, Form(8, 3)) == expected).all()
    assert process.poll() is None and bounded._idle[worker.__name__][-1]._process is process


def test_a_crash_is_an_error_of_the_picture_and_the_next_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = odd.encoded(odd.picture("RGB"), "WEBP")

    def crash(process: bounded._Process, *_: bytes) -> None:
        process._process.send_signal(signal.SIGSEGV)
        process._process.wait()

    with monkeypatch.context() as patch, pytest.raises(ImageError, match="ends the process that reads it"):
        patch.setattr(bounded._Process, "_say", crash)
        decode.decode(data, Form(8, 3))
    assert decode.decode(data, Form(8, 3)).shape == (8, 8, 3)


def test_threads_ask_processes_of_their_own() -> None:
    files = [odd.encoded(odd.picture("RGB", seed=seed), "GIF") for seed in range(4)]
    expected = [decoders.pixels(data, Form(16, 3), nullcontext) for data in files]
    wrong = []

    def work(number: int) -> None:
        for _ in range(20):
            if (decode.decode(files[number], Form(16, 3)) != expected[number]).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_large_pictures_wait_for_one_another_in_other_processes_too() -> None:
    data = odd.encoded(Image.new("L", (4200, 4200), 7), "TIFF")
    done = threading.Event()

    def work() -> None:
        assert (decode.decode(data, Form(8, 1)) == 7).all()
        done.set()

    thread = threading.Thread(target=work)
    with decode._one_large:
        thread.start()
        assert not done.wait(0.5)
    assert done.wait(20)
    thread.join()


def test_what_a_process_imports_is_not_chosen_by_the_working_folder(tmp_path: Path) -> None:
    trap = "import pathlib; pathlib.Path(__file__).with_name('trapped').touch()"
    for name in ("numpy", "simplejpeg", "struct"):
        (tmp_path / f"{name}.py").write_text(trap)
    program = (
        "import sys; from dsh_cli.pictures import decode; "
        "print(decode.decode(sys.stdin.buffer.read(), decode.Form(8, 3)).shape)"
    )
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], input=odd.encoded(odd.picture("RGB"), "WEBP"), capture_output=True,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.stdout == b"(8, 8, 3)\n", done.stderr
    assert not (tmp_path / "trapped").exists()


@needs_limits
def test_a_limit_of_the_users_is_no_damage_of_a_picture() -> None:
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 34, 1 << 34)); "
        "from dsh_cli.pictures import decode; print(decode.decode(sys.stdin.buffer.read(), decode.Form(8, 3)).shape)"
    )
    done = subprocess.run(
        kept_out([sys.executable, "-c", program]), input=odd.encoded(odd.picture("RGB"), "WEBP"), capture_output=True
    )
    assert done.stdout == b"(8, 8, 3)\n", done.stderr
