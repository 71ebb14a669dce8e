"""Odd pictures, odd names, full disks: a code or one line for each, and never a traceback."""

import inspect
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dsh_cli.errors import ImageError
from dsh_cli.pictures import decode, decoders, depth, find
from dsh_cli.pictures.decode import Form
from dsh_cli.show.views.shared import printable
from tests.support import odd_pictures as odd
from tests.support.commands import dsh, dsh_json, dsh_process, one_line_error, undone, unmeasured

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX files and limits")

ROOT = Path(odd.__file__).parents[2]
MUTATED = 400
OddRows = tuple[dict[str, dict[str, Any]], subprocess.CompletedProcess[bytes]]
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


@pytest.fixture(scope="session")
def odd_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder, and the paths of all that lies in it."""
    folder = tmp_path_factory.mktemp("odd") / "set"
    return folder, odd.make(folder)


@pytest.fixture(scope="session")
def odd_rows(odd_set: tuple[Path, list[str]], digits_run: Path) -> OddRows:
    """What `dsh hash --json` says of each, by path below the folder; and its process."""
    folder, paths = odd_set
    listed = b"\0".join(map(os.fsencode, paths))
    done = dsh_process("hash", "--null", "-", "--model", digits_run, "--json", "--quiet", input=listed)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == paths  # one row a file, exact, in order
    return {row["path"].removeprefix(f"{folder}/"): row for row in rows}, done


# The set


def test_the_set_is_the_same_every_time() -> None:
    assert odd.written() == odd.written()
    assert odd.special() == odd.special()


def test_each_gets_a_code_or_an_error_and_stderr_has_a_line_for_each_error(odd_rows: OddRows) -> None:
    rows, done = odd_rows
    errors = {path: row["error"] for path, row in rows.items() if "error" in row}
    assert done.returncode == 1
    assert all(set(row) in ({"path", "error"}, {"path", "code", "bits"}) for row in rows.values())
    lines = done.stderr.decode().splitlines()
    assert len(lines) == len(errors) and all(line.startswith("error: ") for line in lines)
    assert not any("\n" in error or "Traceback" in error for error in errors.values())


def test_what_pillow_writes_and_reads_back_gets_a_code(odd_rows: OddRows) -> None:
    rows, _ = odd_rows
    failed = {
        name.split("/")[1].split("-")[0] for name, row in rows.items() if name[:8] == "written/" and "error" in row
    }
    assert failed <= {"EPS", "PALM"}  # a program, and a format Pillow only writes
    assert {path: row["error"] for path, row in rows.items() if path.startswith("names/") and "error" in row} == {}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["special/eps.png", "written/EPS-RGB.ps"], "EPS files are not read"),
        (["special/iptc-with-eps.iptc"], "IPTC files are not read"),
        (["special/text.png", "special/page.gif", "special/svg.png", "special/page.pdf"], "not a picture"),
        (["special/empty.png"], "empty file"),
        (["bombs/wide.png", "bombs/canvas.gif", "bombs/dimensions.tiff", "bombs/header.jpg"], "decompression bombs"),
        (["bombs/text.png", "bombs/ztxt.png", "bombs/profile.png", "bombs/claims.png"], "damaged or truncated"),
        (["no-files/pipe.png", "no-files/socket.png", "no-files/zero.png"], "not a regular file"),
        (["no-files/broken.png"], "no such file"),
        (["no-files/loop.png"], "symbolic links"),
    ],
)
def test_errors_say_what_is_wrong(odd_rows: OddRows, names: list[str], message: str) -> None:
    assert {name: message in odd_rows[0][name]["error"] for name in names} == dict.fromkeys(names, True)


def test_a_format_that_runs_programs_never_does(tmp_path: Path) -> None:
    """A Ghostscript that leaves a trace is first on the path, and stays unused."""
    trace = tmp_path / "trace"
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch '{trace}'\n")
    script.chmod(0o755)
    eps = odd.encoded(odd.picture("RGB"), "EPS")
    for name, data in {"a.eps": eps, "b.png": eps, "c.iim": odd.iptc(eps)}.items():
        (tmp_path / name).write_bytes(data)
    program = """
import sys
from dsh_cli.pictures import decode
for path in sys.argv[1:]:
    try:
        decode.read(path, decode.Form(8, 3))
    except decode.ImageError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *(tmp_path / name for name in ("a.eps", "b.png", "c.iim"))],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count("files are not read") == 3, done.stderr
    assert not trace.exists()


def test_bombs_take_neither_memory_nor_time() -> None:
    """Each in a process of its own would be slow: all in one, whose peak is that of the worst."""
    program = """
import time, warnings
from tests.support import odd_pictures as odd
from tests.support.memory import peak, peak_of_children
from dsh_cli import bounded
from dsh_cli.pictures import decode
warnings.filterwarnings("ignore", module=r"PIL\\.")  # as the command line does
before = peak()
for name, data in odd.bombs().items():
    started = time.process_time()
    try:
        decode.decode(data, decode.Form(32, 3))
    except decode.ImageError:
        pass
    assert time.process_time() - started < 2, name
bounded._end_idle()
print(peak() - before, peak_of_children())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=path_with(ROOT))
    assert done.returncode == 0, done.stderr
    ours, others = map(int, done.stdout.split())  # MiB
    assert ours < 400
    assert others < 500  # the largest holds 12,000 x 12,000 grey pixels until it turns out to have none
    assert done.stderr == ""


def path_with(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_small_files_that_unfold_for_minutes_are_refused() -> None:
    compressed = odd.bombs()["gzip.fits"]
    assert decode.decode(compressed, Form(8, 1)).shape == (8, 8, 1)
    wide = compressed.replace(b"ZNAXIS1 =                    8", b"ZNAXIS1 =                 8000")
    wide = wide.replace(b"ZNAXIS2 =                    8", b"ZNAXIS2 =                 8000")
    with pytest.raises(ImageError, match="more than 4 million pixels"):
        decode.decode(wide, Form(8, 1))


def test_a_jpeg_of_very_many_scans_is_refused_unless_they_lie_behind_its_end() -> None:
    whole = odd.encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xc4", 0, whole.rindex(b"\xff\xda"))
    scan = whole[start:-2]
    with pytest.raises(ImageError, match="too many scans"):
        decode.decode(whole[:-2] + 600 * scan + whole[-2:], Form(32, 1))
    assert not decode.decode(whole + 600 * scan, Form(32, 1)).any()  # as where a film follows the picture


def test_files_larger_than_a_picture_can_be_are_not_read(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.png"
    sparse.touch()
    os.truncate(sparse, decode.MAX_BYTES + 1)
    with pytest.raises(ImageError, match="larger than 256 MiB"):
        decode.read(sparse, Form(32, 1))


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    failed = threading.Event()

    def read() -> None:
        with pytest.raises(ImageError, match="not a regular file"):
            decode.read(tmp_path / "pipe.png", Form(32, 1))
        failed.set()

    threading.Thread(target=read, daemon=True).start()
    assert failed.wait(10)


def test_folders_nested_deeper_than_calls_can_be(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 200)
    deep.mkdir(parents=True)
    (deep / "x.png").write_bytes(b"")
    (tmp_path / "e.png").write_bytes(b"")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = list(find.find(tmp_path))
    finally:
        sys.setrecursionlimit(limit)
    assert found == [str(deep / "x.png"), str(tmp_path / "e.png")]


# Mutated bytes


def test_mutated_pictures_are_pixels_or_an_image_error(capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    files = [data for data in {**odd.written(), **odd.special()}.values() if len(data) > 4]
    outcomes = set()
    for _ in range(MUTATED):
        data = bytearray(files[rng.integers(len(files))])
        for _ in range(int(rng.integers(1, 9))):
            at = int(rng.integers(min(len(data), 256) if rng.random() < 0.6 else len(data)))
            match rng.integers(3):
                case 0:
                    data[at] = rng.integers(256)
                case 1:
                    data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
                case 2 if len(data) > 100:
                    del data[at : at + int(rng.integers(40))]
        for channels in (1, 3):
            try:
                pixels = decode.decode(bytes(data), Form(32, channels))
            except ImageError as error:
                outcomes.add("error")
                assert "\n" not in str(error)
            else:
                outcomes.add("pixels")
                assert pixels.shape == (32, 32, channels) and pixels.dtype == np.uint8
    assert outcomes == {"error", "pixels"}
    if sys.platform == "linux":  # where libtiff can be told to be quiet
        assert capfd.readouterr().err == ""


# Pixels


def by_pillow(data: bytes, size: int, channels: int) -> NDArray[np.int64]:
    """The slow way: all pixels, turned, converted by Pillow, the centred square of exact bounds."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = image.convert("L") if channels == 1 else image
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(square).reshape(size, size, channels).astype(int)


def furthest(data: bytes, size: int, channels: int) -> int:
    return int(np.abs(decode.decode(data, Form(size, channels)) - by_pillow(data, size, channels)).max())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name",
    ["rgb.jpg", "ycck.jpg", "progressive.jpg", "xmp-6.jpg", "1x5000.jpeg", "5000x1.jpeg", "two.mpo", "animated.webp",
     "animated.gif", "animated.png", "pages.tiff", *(f"turned-{i}.jpeg" for i in range(1, 9)),
     *(f"subsampling-{i}.jpg" for i in range(3)), *(f"exif-{name}.jpeg" for name in odd.HOSTILE_EXIF)],
)  # fmt: skip
def test_jpegs_and_first_frames_are_as_pillow_shows_them(name: str, channels: int) -> None:
    assert furthest(odd.special()[name], 40, channels) <= 2  # their own height: nothing is reduced


@pytest.mark.parametrize("size", [(640, 480), (481, 639), (1001, 333), (257, 2049)])
@pytest.mark.parametrize("side", [28, 64, 128])
def test_jpegs_decoded_at_a_reduced_scale_are_not_shifted(size: tuple[int, int], side: int) -> None:
    for mode in ("RGB", "L"):
        data = odd.encoded(odd.picture(mode, size), "JPEG", quality=90)
        for channels in (1, 3):
            assert furthest(data, side, channels) <= 4


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "HSV", "YCbCr", "RGBX"])
def test_other_colours_are_those_of_pillow(mode: str) -> None:
    format = {"HSV": "WEBP"}.get(mode, "TIFF")
    assert furthest(odd.encoded(odd.picture(mode), format), 24, 3) <= 2
    if mode == "CMYK":
        assert furthest(odd.encoded(odd.picture(mode), "JPEG"), 24, 3) <= 2


def test_sixteen_bits_in_grey_and_colour_keep_the_high_byte() -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (24, 24, 3), np.uint16)
    assert (decode.decode(odd.png16(wide), Form(24, 3)) == wide >> 8).all()
    assert (decode.decode(odd.png16(wide[..., 0]), Form(24, 1)) == wide[..., :1] >> 8).all()


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "F"])
def test_wide_greys_look_as_they_do_in_eight_bits(mode: str) -> None:
    data = odd.encoded(odd.picture(mode), "TIFF")
    narrow = odd.encoded(odd.picture("L"))
    assert np.abs(decode.decode(data, Form(24, 1)).astype(int) - decode.decode(narrow, Form(24, 1))).max() <= 1


@pytest.mark.parametrize("name", [name for name in odd.HOSTILE_EXIF if name != "orientation-two"])  # the first counts
def test_hostile_exif_leaves_sound_pixels_upright_in_every_format(name: str) -> None:
    files = odd.special()
    upright = decode.decode(odd.encoded(odd.picture("RGB")), Form(24, 3))
    for format in ("png", "webp", "jpeg"):
        pixels = decode.decode(files[f"exif-{name}.{format}"], Form(24, 3))
        assert np.abs(pixels.astype(int) - upright).mean() < 12  # webp and jpeg lose a little


def test_large_pictures_are_converted_in_bands_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("P", "LA", "RGBA", "I;16", "F", "CMYK"):
        data = odd.encoded(odd.picture(mode, (40, 50)), "TIFF")
        at_once = decode.decode(data, Form(24, 3))
        with monkeypatch.context() as patch:
            patch.setattr(depth, "BAND", 7)
            assert (decoders.pixels(data, Form(24, 3), nullcontext) == at_once).all()


# Names


@pytest.fixture
def named(tmp_path: Path) -> Path:
    odd.make_named(tmp_path / "names")
    return tmp_path / "names"


def test_names_are_exact_in_json_and_in_lists(named: Path, digits_run: Path) -> None:
    written = sorted(os.listdir(os.fsencode(named)))
    assert len(written) > 15
    found = [
        json.loads(line)["path"] for line in dsh("hash", named, "--model", digits_run, "--json").stdout.splitlines()
    ]
    assert sorted(os.path.basename(os.fsencode(path)) for path in found) == written
    nul = dsh_process("hash", "-0", "-", "--json", "--model", digits_run, cwd=named, input=b"\0".join(written))
    assert [os.fsencode(json.loads(line)["path"]) for line in nul.stdout.splitlines()] == written
    assert nul.returncode == 0
    plain = [name for name in written if b"\n" not in name and b"\r" not in name]
    lines = dsh_process("hash", "-", "--json", "--model", digits_run, cwd=named, input=b"\n".join(plain))
    assert [os.fsencode(json.loads(line)["path"]) for line in lines.stdout.splitlines()] == plain


def test_names_in_plain_lines_are_marked_as_md5sum_does_and_can_be_undone(named: Path, digits_run: Path) -> None:
    done = dsh_process("hash", named, "--model", digits_run, "--quiet")
    names = []
    for line in done.stdout.decode().splitlines():
        name = line.split("  ", 1)[1]
        names.append(os.path.basename(os.fsencode(undone(name) if line.startswith("\\") else name)))
    assert sorted(names) == sorted(os.listdir(os.fsencode(named)))


def test_names_that_people_read_hold_nothing_a_terminal_obeys(named: Path, digits_run: Path) -> None:
    command: list[str | Path] = ["hash", named.name, "--model", digits_run, "--quiet", "--format", "table"]
    shown = dsh_process(*command, cwd=named.parent)
    for file in named.iterdir():
        file.write_bytes(b"no picture")
    errors = dsh_process(*command, cwd=named.parent).stderr
    assert len(errors.decode().splitlines()) == len(os.listdir(named))
    for text in (shown.stdout.decode(), errors.decode()):
        assert all(line.isprintable() for line in text.split("\n"))
        for escaped in (r"\x1b[31mred\x1b]0;title\x07.png", r"right\u202egnp.png", r"not-utf8-\udcff\udcfe.png"):
            assert escaped in text
        for kept in ("[red]markup.png", ":smile:.png", "日本語", "-dash.png"):
            assert kept in text


def test_a_terminal_is_shown_plain_lines_escaped(named: Path, digits_run: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "dsh_cli", "hash", str(named), "--model", str(digits_run), "--format", "plain"]
    process = subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # Linux's way to say that the other side has closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    assert b"\x1b" not in shown and b"\\x1b[31mred" in shown


@pytest.fixture
def odd_classes(tmp_path: Path) -> Path:
    names = [
        b"[/",
        b"[b]",
        b"a|b",
        b"\x1b[31mred",
        b"new\nline",
        b"tab\there",
        "rtl\u202ex".encode(),
        b"\xff\xfe",
        b":cat:",
    ]
    for i, name in enumerate(names):
        folder = os.path.join(os.fsencode(tmp_path), b"set", name)
        try:
            os.makedirs(folder)
        except OSError:  # a file system that takes only UTF-8
            continue
        for j in range(4):
            Path(os.fsdecode(folder), f"{j}.png").write_bytes(odd.encoded(odd.picture("L", (16, 16), 10 * i + j)))
        Path(os.fsdecode(folder), "bad\x1b[32m.png").write_bytes(b"no picture")
    return tmp_path / "set"


def test_classes_of_odd_names(odd_classes: Path, tmp_path: Path) -> None:
    trained = dsh_process("train", odd_classes, "--epochs", "1", "--out", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    warnings = [line for line in trained.stderr.decode().splitlines() if line.startswith("warning: ")]
    assert [line for line in warnings if "left out" in line] == [
        f"warning: left out: {len(os.listdir(odd_classes))} unreadable pictures, first {first}/bad\\x1b[32m.png "
        "(not a picture, or of a format Pillow does not know); dsh hash names each"
        for first in [printable(min(os.listdir(odd_classes)))]
    ]
    assert trained.stderr.decode().replace("\n", "").isprintable()
    there = {os.fsencode(entry) for entry in os.listdir(odd_classes)}
    assert {os.fsencode(row["label"]) for row in dsh_json("table", "--model", "run")["classes"]} == there
    assert {os.fsencode(name) for name in dsh_json("info", "run")["classes"]} == there
    for command in (["table", "--model", "run"], ["info", "run"]):
        table = dsh(*command, "--format", "table")
        assert table.exit_code == 0, table.exception
        assert table.stdout.replace("\n", "").isprintable()
        assert "[b]" in table.stdout and ":cat:" in table.stdout
        plain = dsh_process(*command, "--format", "plain", cwd=tmp_path)
        assert plain.returncode == 0 and rb"\xff\xfe" in plain.stdout and b"new\\nline" in plain.stdout


def test_a_run_folder_that_is_not_utf8(tmp_path: Path, odd_classes: Path) -> None:
    name = os.fsdecode(b"run\xff")
    line = one_line_error(dsh("train", odd_classes, "--out", name), 2)
    assert "--no-tensorboard" in line
    assert dsh_json("train", odd_classes, "--out", name, "--no-tensorboard", "--epochs", 1, "-q")["run"] == name
    assert dsh_json("info", name)["run"] == name


@pytest.mark.parametrize("command", [["train"], ["table", "--model"], ["info"], ["train", "digits", "-q", "--out"]])
def test_names_too_long_for_any_file(command: list[str]) -> None:
    assert "x" * 300 in one_line_error(dsh(*command, "x" * 300), 1)


# Full disks, read-only folders, files that vanish


@needs_dev_full
@pytest.mark.parametrize(
    "command", [["hash", "x.png", "--json"], ["hash", "x.png", "--format", "table"], ["hash", "x.png"], ["table"],
                ["info", "RUN"], ["--help"], ["--version"]]
)  # fmt: skip
def test_output_to_a_full_disk_is_one_line(command: list[str], digits_run: Path, tmp_path: Path) -> None:
    Path("x.png").write_bytes(odd.encoded(odd.picture("L")))
    command = [str(digits_run) if word == "RUN" else word for word in command]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dsh_cli", *command],
            env={**os.environ, "DSH_MODEL": str(digits_run)}, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the output: No space left on device; free space, or send it elsewhere\n"


@pytest.mark.parametrize("kilobytes", [1, 3, 60])
def test_training_on_a_full_disk_is_one_line_and_leaves_whole_files(
    kilobytes: int, photos: Path, tmp_path: Path
) -> None:
    """A limit on the size of files fails as a full disk does: before the run, in its event files, in its weights."""
    script = f"""
import resource, signal
from dsh_cli.cli import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({kilobytes << 10}, {kilobytes << 10}))
app()
"""
    out = tmp_path / "run"
    command = [sys.executable, "-c", script, "train", str(photos), "--epochs", "1", "-q", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=unmeasured())
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: collapse")]
    assert len(lines) == 1 and lines[0].startswith("error: cannot write "), done.stderr
    assert "free space" in lines[0] and done.stdout == ""
    left = [path for path in out.rglob("*") if path.is_file() and path.parent.name != "tensorboard"]
    assert {path.name for path in left} <= {"config.json", "metrics.json", "splits.json"}  # no scratch files
    for path in left:
        json.loads(path.read_bytes())
    if not (out / "config.json").exists():
        assert left == []  # no run, and nothing in the way of the next try


def test_a_run_where_there_can_be_no_folder(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = one_line_error(dsh("train", photos, "-q", "--epochs", 1, "--out", "file/run"), 1)
    assert "cannot write" in line and (tmp_path / "file").read_text() == "in the way"


@pytest.mark.skipif(sys.platform == "win32", reason="folders are locked otherwise there")
def test_a_read_only_folder(read_only: str, photos: Path) -> None:
    line = one_line_error(dsh("train", photos, "-q", "--epochs", 1, "--out", f"{read_only}/run"), 1)
    assert "cannot write" in line and "choose another --out" in line
    line = one_line_error(dsh("train", photos, "-q", "--memory", 0, "--cache", f"{read_only}/x", "--out", "run"), 1)
    assert f"{read_only}/x" in line and "--cache off" in line
    assert not os.path.exists(f"{read_only}/run") and not os.path.exists("run")


def test_files_that_vanish_between_listing_and_reading(tmp_path: Path, digits_run: Path) -> None:
    from dsh_cli.data.inputs import encode_files
    from dsh_cli.runs.run import Run

    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(odd.encoded(odd.picture("L", seed=i)))

    def listed() -> Iterator[str]:
        for path in find.find(tmp_path):
            if path.endswith("2.png"):
                os.remove(path)
            yield path

    rows = list(encode_files(Run.open(digits_run).load_model(), listed()))
    assert [row.error for row in rows] == [None, None, "no such file or directory", None]
