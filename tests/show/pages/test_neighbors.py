"""The page of neighbours: whole or not there, nothing in it but itself, and right in a real browser."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.index.index import Index, ReadyCodes
from dsh_cli.runs.run import Run
from dsh_cli.show.views.neighbors import away
from tests.support.browser import Browser
from tests.support.commands import dsh, dsh_json, one_line_error, unmeasured
from tests.support.runs import TRAIN, edit, small_run
from tests.support.stand_in import StandIn
from tests.support.values import there

DATA = Path(os.environ["DSH_DATA"]).resolve() if os.environ.get("DSH_DATA") else None  # before conftest forgets it


class Read(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [about for name, about in self.elements if name == tag and kind in about.get("class", "")]


def pixels(image: dict[str, str]) -> NDArray[np.uint8]:
    data = base64.b64decode(image["src"].partition("base64,")[2])
    return np.array(Image.open(io.BytesIO(data)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "run")


def page_of(*arguments: object) -> Read:
    result = dsh("neighbors", *arguments, "--html", "page.html")
    assert result.exit_code == 0, result.stderr
    assert "wrote page.html" in result.stderr
    with open("page.html", encoding="utf-8") as file:
        return Read(file.read())


def test_the_page_shows_the_neighbours_in_order_with_their_own_pictures(run: Path) -> None:
    page = page_of("0xf1", "--model", run)
    rows = dsh_json("neighbors", "0xf1", "--model", run)["neighbors"]
    pictures = page.all("img")
    assert [image["alt"] for image in pictures] == [
        f"neighbour {n['rank']}, {n['label']}, {n['distance']} bit{'s' * (n['distance'] != 1)} away: {n['path']}"
        for n in rows
    ]
    # the thumbnail of a row of this run has the number of the row in every pixel
    assert [set(pixels(image).ravel()) for image in pictures] == [{int(n["path"][6:])} for n in rows]
    assert "0xf1" in page.text and "Predicted class cat" in page.text
    assert len(page.all("li", "same")) == sum(row["label"] == "cat" for row in rows) == 3


def test_the_strip_marks_the_bits_that_differ(run: Path) -> None:
    strips = [about["d"] for tag, about in page_of("0xf3", "--model", run, "-k", 4).elements if tag == "path"]
    assert strips == ["M6 0h1v1h-1z", *["M6 0h1v1h-1zM7 0h1v1h-1z"] * 2, "M4 0h1v1h-1zM5 0h1v1h-1z"]


def test_pictures_of_a_split_are_read_from_the_run_and_no_others(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.show.pages.neighbors._from_file", None)
    assert set(pixels(page_of("0xfe", "--model", run, "--split", "test", "-k", 1).all("img")[0]).ravel()) == {2}


def test_of_very_many_neighbours_the_first_have_pictures(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsh_cli.show.pages.neighbors.CARDS", 3)
    page = page_of("0xf1", "--model", run)
    assert len(page.all("img")) == 3 and "And 4 more" in page.text


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    odd = ['</p><script>alert("1")</script>', "'><img src=http://x.invalid/>", "\x1b[31m\u202e\udcff&amp;"]
    train = [(odd[i % 2], code) for i, (_, code) in enumerate(TRAIN)]
    names = (odd * 3)[: len(TRAIN)]
    run = small_run(tmp_path / "run", train, validation=[], test=[], classes=tuple(odd[:2]), names=names)
    page = page_of("0xf0", "--model", run)
    assert not page.all("script") and len(page.all("img")) == len(TRAIN)
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert {image["alt"].partition(": ")[2] for image in page.all("img")} == {*odd[:2], r"\x1b[31m\u202e\udcff&amp;"}
    assert odd[0] in page.text and "\x1b" not in page.text


def test_it_refers_to_nothing_outside_itself(run: Path) -> None:
    page = page_of("0xf0", "--model", run)
    links = [value for _, about in page.elements for name, value in about.items() if name in ("src", "href", "action")]
    assert len(links) > 7 and all(link.startswith("data:") for link in links)
    with open("page.html", encoding="utf-8") as file:
        assert not re.search(r"url\(|@import|https?:", file.read())


# Written whole or not at all


def test_an_older_page_stays_until_the_new_one_is_whole(run: Path) -> None:
    page_of("0xf0", "--model", run)
    before = os.stat("page.html").st_ino
    result = dsh("neighbors", "-", "--model", run, "--html", "page.html", input="0xabc\n")
    assert result.exit_code == 1 and "wrote" not in result.stderr  # nothing to show
    assert os.stat("page.html").st_ino == before and sorted(os.listdir(".")) == ["page.html", "run"]
    page_of("0x0f", "--model", run)
    assert os.stat("page.html").st_ino != before


@pytest.mark.skipif(sys.platform == "win32", reason="links and modes are POSIX's")
def test_a_page_is_written_where_a_link_leads_with_the_modes_it_had_and_by_no_name_that_can_be_foretold(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    Path("kept/page.html").write_text("old")
    os.chmod("kept/page.html", 0o600)
    os.symlink("kept/page.html", "page.html")
    Path("secret").write_text("mine")
    os.symlink(tmp_path / "secret", f"kept/.page.html.{os.getpid()}")
    page_of("0xf0", "--model", run)
    assert os.path.islink("page.html") and os.stat("kept/page.html").st_mode & 0o777 == 0o600
    assert "Nearest pictures" in Path("kept/page.html").read_text() and Path("secret").read_text() == "mine"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/page.html", "no such file or directory; choose another --html FILE"),
        ("run", "it is there and no file"),
        ("run/config.json/page.html", "choose another --html FILE"),
        ("", "choose another --html FILE"),
        ("x" * 300, "choose another --html FILE"),
    ],
)
def test_places_that_cannot_be_written_get_one_line_before_anything_is_done(
    place: str, message: str, run: Path
) -> None:
    line = one_line_error(dsh("neighbors", "0xf0", "--model", run, "--html", place), 1)
    assert "cannot write" in line and message in line
    assert os.listdir(".") == ["run"]


@pytest.mark.skipif(sys.platform == "win32", reason="limits on files are POSIX's")
def test_a_full_disk_gets_one_line_and_leaves_nothing(run: Path) -> None:
    script = f"""
import resource, signal
from dsh_cli.cli import app
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
app(['neighbors', '0xf0', '--model', {str(run)!r}, '--html', 'page.html'])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=unmeasured())
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("; free space")
    assert "cannot write page.html" in done.stderr and "Traceback" not in done.stderr
    assert os.listdir(".") == ["run"]


# Pictures in files


@pytest.fixture
def files(tmp_path: Path, index: StandIn, digits_run: Path) -> Path:
    """An index of pictures in files, of which one is gone and one no picture."""
    folder = tmp_path / "files"
    folder.mkdir()
    Image.new("RGB", (400, 300), (255, 0, 0)).save(folder / "0.jpg")
    Image.new("RGB", (20, 30), (0, 0, 255)).save(folder / "2.png")
    (folder / "3.jpg").write_text("no picture")
    for row, name in zip(index._rows, ("0.jpg", "gone.jpg", "2.png", "3.jpg"), strict=True):
        row.path = str(folder / name)
    return folder


def test_pictures_of_an_index_are_reduced_and_those_that_are_gone_have_a_placeholder(
    files: Path, digits_run: Path
) -> None:
    line = [files / "2.png", "0xf0", "--model", digits_run, "--index", "pictures", "-k", 4]
    page = page_of(*line, "--pictures", files)
    query, *shown = page.all("img")
    assert pixels(query).shape == (20, 20, 3) and query["alt"] == f"query {files / '2.png'}"
    by_name = {os.path.basename(image["alt"]): pixels(image) for image in shown}
    assert by_name["0.jpg"].shape == (224, 224, 3) and by_name["2.png"].shape == (20, 20, 3)
    assert np.abs(by_name["0.jpg"].astype(int) - (255, 0, 0)).max() < 4
    gone = [about["aria-label"] for about in page.all("div", "gone")]
    assert len(gone) == 4 and sum("gone.jpg" in text for text in gone) == 2
    assert page.text.count("picture not found") == page.text.count("picture cannot be read: not a picture") == 2
    assert "4 of 8 pictures cannot be shown." in page.text


@pytest.mark.parametrize(("fit", "side"), [("crop", 20), ("pad", 30), ("stretch", 30)])
def test_pictures_in_files_are_square_in_the_way_the_network_takes_them(
    fit: str, side: int, files: Path, digits_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(digits_run, tmp_path / "copied"))
    (run / "model.onnx").unlink()  # which is of the network as it was
    edit(run / "config.json", model=json.loads((run / "config.json").read_text())["model"] | {"fit": fit})
    line = [files / "2.png", "--model", run, "--index", "pictures", "-k", 4, "--pictures", files]
    found = [pixels(image) for image in page_of(*line).all("img") if image["alt"].endswith("2.png")]
    assert len(found) == 2  # the query, and the same as a neighbour
    for picture in found:
        assert picture.shape == (side, side, 3)
        assert (picture[:, 5:-5] == (0, 0, 255)).all() and (picture[:, 0] == 255).all() == (fit == "pad")


def test_relative_paths_of_an_index_are_looked_for_in_the_folder_given(
    digits_run: Path, files: Path, index: StandIn
) -> None:
    for row in index._rows:
        row.path = os.path.basename(row.path)
    line = ["0xf0", "--model", digits_run, "--index", "pictures", "-k", 4]
    page = page_of(*line, "--relative-to", "files")
    assert len(page.all("img")) == 2 and "gone.jpg" in page.text and "files/gone.jpg" not in page.text
    assert f"2 of 4 pictures cannot be shown: relative paths were looked for in {files}; name another" in page.text
    result = dsh("neighbors", *line, "--html", "page.html")
    assert result.exit_code == 0 and len(result.stderr.splitlines()) == 2
    said = result.stderr.splitlines()[1]
    assert said.startswith("4 of 4 pictures cannot be shown: 4 left out") and "--relative-to" in said
    with open("page.html", encoding="utf-8") as file:
        assert f"{said}." in Read(file.read()).text
    for wrong in (["--relative-to", "files"], ["--relative-to", "none", "--html", "page.html"]):
        assert "--relative-to" in one_line_error(dsh("neighbors", *line, *wrong), 2)
    os.chdir(files)
    assert len(page_of(*line).all("img")) == 0  # nobody has named this folder
    assert len(page_of(*line, "--relative-to", ".").all("img")) == 2


def test_of_an_index_that_names_my_pictures_none_is_on_the_page_unless_its_folder_is_named(
    digits_run: Path, tmp_path: Path
) -> None:
    """A stranger's index may name any path; one of mine is known by where I added from, not by what is in it."""
    for folder in ("mine", "private/deep"):
        (tmp_path / folder).mkdir(parents=True)
        Image.effect_noise((20, 20), 50).save(tmp_path / folder / "a.png")
    Image.effect_noise((20, 20), 50).save(tmp_path / "private" / "b.png")
    os.symlink(tmp_path / "private" / "b.png", tmp_path / "mine" / "link.png")
    run = Run.open(digits_run)
    paths = [f"{tmp_path}/{name}" for name in ("mine/a.png", "mine/../private/b.png", "private/deep/a.png", "mine")]
    paths += [f"{tmp_path}/mine/link.png", "private/b.png", "/dev/zero"]
    codes = ReadyCodes(paths, np.zeros((len(paths), 1), np.uint8))
    Index.open("strangers").add_codes([codes], 8, run.fingerprint)
    line = ["0x00", "--model", digits_run, "--index", "strangers", "-k", len(paths)]

    def shown(*more: object, of: str = "strangers") -> set[str]:
        page = page_of(*line[:4], of, *line[5:], *more)
        return {image["alt"].partition(": ")[2].removeprefix(f"{tmp_path}/") for image in page.all("img")}

    assert shown() == set()
    told = dsh("neighbors", *line, "--html", "page.html").stderr.splitlines()
    assert told[1].startswith("7 of 7 pictures cannot be shown: 7 left out") and "--pictures" in told[1]
    assert shown("--pictures", "mine") == {"mine/a.png"}  # and nothing that a link or .. leads to
    assert shown("--pictures", "private/deep") == {"private/deep/a.png"}
    assert shown("--pictures", "mine", "--pictures", "private") >= {"mine/link.png", "private/b.png"}
    assert shown("--relative-to", "private") == {"mine/../private/b.png", "private/deep/a.png", "mine/link.png"}

    # of an index of mine what I added is shown, and of a stranger's that took its place nothing else
    assert dsh_json("index", "add", "my.lance", "mine", "private/deep/a.png", "--model", digits_run)["added"] == 3
    assert shown(of="my.lance") == {"mine/a.png", "mine/link.png", "private/deep/a.png"}
    os.symlink("my.lance", "other-name.lance")
    assert len(shown(of="other-name.lance")) == 3
    shutil.copytree("my.lance", "copy.lance")
    assert shown(of="copy.lance") == set() and len(shown("--pictures", ".", of="copy.lance")) == 3
    shutil.rmtree("my.lance")
    shutil.copytree("strangers", "my.lance")
    assert shown(of="my.lance") == {"mine/a.png", "mine/link.png", "private/deep/a.png"}
    for wrong in (["--pictures", "mine"], ["--pictures", "none", "--html", "page.html"]):
        assert "--pictures" in one_line_error(dsh("neighbors", *line, *wrong), 2)


# In a browser


IMAGES = "Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth, () => 0)))"
CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)/.test(c)) return c } return "rgb(255, 255, 255)" };
  return [...document.querySelectorAll("h1,h2,p,span,mark,.bits,.gone")].map(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) }) })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_in_a_browser_every_picture_loads_and_nothing_is_asked_of_the_network(
    width: int, scheme: str, chromium: Browser, digits_run: Path, files: Path, tmp_path: Path
) -> None:
    page_of("0xf0", files / "2.png", "--model", digits_run, "-k", 30)
    chromium.open((tmp_path / "page.html").as_uri(), width, scheme)
    widths = chromium.value(IMAGES)
    assert len(widths) == 61 and min(widths) > 0
    assert {url.partition(":")[0] for url in chromium.requests} == {"file", "data"}
    assert [url for url in chromium.requests if url.startswith("file:")] == [(tmp_path / "page.html").as_uri()]
    assert chromium.problems == []
    assert chromium.value("document.documentElement.scrollWidth") <= width
    columns = "getComputedStyle(document.querySelector('ol')).gridTemplateColumns.split(' ').length"
    assert chromium.value(columns) == (2 if width == 375 else 5)
    assert min(chromium.value(CONTRAST)) >= 4.5  # WCAG 2.2, AA
    dark = chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(20, 21, 19)"
    assert dark == (scheme == "dark")


def cifar(archive: Path, root: Path) -> None:
    """40 JPEG pictures of each class of CIFAR-10."""
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            split, _, name = member.name.partition("/")
            if split != "train":
                break
            if re.fullmatch(r"\w+/00[0-3]\d\.jpg", name):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(there(tar.extractfile(member)).read())


def digits(root: Path) -> None:
    """40 JPEG pictures of each of scikit-learn's handwritten digits."""
    from sklearn.datasets import load_digits

    known = load_digits()
    for digit in range(10):
        (root / f"{digit}").mkdir(parents=True)
        for i, pixels in enumerate(known.images[known.target == digit][:40]):
            small = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
            small.resize((32, 32), Image.Resampling.NEAREST).save(root / f"{digit}/{i:04d}.jpg", quality=90)


@pytest.fixture(scope="module")
def looked_up(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A page and the JSON of five pictures, looked up in an index of their tree by a run trained on it."""
    place = tmp_path_factory.mktemp("show")
    tree, run, uri, page = (str(place / name) for name in ("tree", "run", "pictures.lance", "page.html"))
    archive = DATA and DATA / "cifar10-jpeg.tar.xz"
    if archive and archive.is_file():
        cifar(archive, place / "tree")
    else:
        digits(place / "tree")
    classes = sorted((place / "tree").iterdir())
    assert [len(list(label.iterdir())) for label in classes] == [40] * 10
    dsh_json(
        "train", tree, "--bits", 16, "--epochs", 6, "--batch-size", 40, "--out", run, "--no-tensorboard", "--quiet"
    )
    assert dsh_json("index", "add", uri, tree, "--labels", "folder", "--model", run)["added"] == 400
    queries = [label / f"{number:04d}.jpg" for number, label in enumerate(classes[::2])]
    result = dsh("neighbors", *queries, "--index", uri, "--model", run, "--html", page, "-k", 12, "--json")
    assert result.exit_code == 0, result.stderr
    return Path(page), [json.loads(line) for line in result.stdout.splitlines()]


SECTIONS = """[...document.querySelectorAll("section")].map(section => ({
  query: section.querySelector(".query img").alt, cards: [...section.querySelectorAll("li")].map(card => {
    const [image, about] = ["img", ".about"].map(part => card.querySelector(part).getBoundingClientRect());
    const text = part => card.querySelector(part).innerText;
    return {told: [text(".rank"), text(".label"), text(".away"), text(".path")], wide: image.width > 50,
            under: about.top >= image.bottom && about.height > 40 && about.width <= image.width} }) }))"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_in_a_browser_the_neighbours_of_pictures_of_an_index_are_all_there(
    width: int, scheme: str, chromium: Browser, looked_up: tuple[Path, list[Any]]
) -> None:
    page, answers = looked_up
    assert len(answers) == 5 and {len(answer["neighbors"]) for answer in answers} == {12}
    assert len({n["distance"] for answer in answers for n in answer["neighbors"]}) > 1
    chromium.open(page.as_uri(), width, scheme)
    widths = chromium.value(IMAGES)
    assert len(widths) == 5 * 13 and min(widths) > 0
    assert [url for url in chromium.requests if not url.startswith("data:")] == [page.as_uri()]
    assert chromium.problems == []
    assert chromium.value(SECTIONS) == [
        {
            "query": f"query {answer['query']}",
            "cards": [
                {
                    "told": [f"{n['rank']}", n["label"], away(n["distance"]), n["path"]],
                    "wide": True,
                    "under": True,
                }
                for n in answer["neighbors"]
            ],
        }
        for answer in answers
    ]
    assert chromium.value("document.documentElement.scrollWidth") <= width
    assert min(chromium.value(CONTRAST)) >= 4.5
    assert chromium.value("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    ground = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(246, 246, 243)", "dark": "rgb(20, 21, 19)"}[scheme]


def test_the_pictures_on_the_page_are_those_of_the_files(looked_up: tuple[Path, list[Any]]) -> None:
    page, answers = looked_up
    shown = {image["alt"].partition(": ")[2]: pixels(image) for image in Read(page.read_text("utf-8")).all("img")
             if image["alt"].startswith("neighbour")}  # fmt: skip
    assert shown.keys() == {n["path"] for answer in answers for n in answer["neighbors"]}
    for path, found in shown.items():
        with Image.open(path) as image:
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - found).mean() < 2


@pytest.mark.parametrize("width", [1280, 375])
def test_in_a_browser_long_codes_and_names_stay_inside(width: int, chromium: Browser, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label, codes = "averylongnameofaclass" * 3, [rng.bytes(128).hex() for _ in range(4)]
    train = [(label, code) for code in codes]
    names = ["folder" * 30 + f"/{i}.jpg" for i in range(4)]
    run = small_run(tmp_path / "run", train, 1024, train[:1], train[:1], classes=(label,), names=names)
    page_of(f"0x{codes[0]}", "--model", run)
    chromium.open((tmp_path / "page.html").as_uri(), width)
    assert chromium.value("document.documentElement.scrollWidth") <= width
    outside = "[...document.querySelectorAll('li *, .query *')].filter(e => e.scrollWidth > e.clientWidth + 1 && "
    outside += "getComputedStyle(e).display !== 'inline').map(e => e.className)"
    assert chromium.value(outside) == []
    assert chromium.problems == []


def test_in_a_browser_a_page_that_is_not_whole_would_be_noticed(chromium: Browser, tmp_path: Path) -> None:
    broken = "<!doctype html><img src='data:image/png;base64,AAAA'><img src='http://pictures.invalid/a.png'><script>x()</script>"
    (tmp_path / "broken.html").write_text(broken)
    chromium.open((tmp_path / "broken.html").as_uri())
    assert chromium.value(IMAGES) == [0, 0]
    assert "http://pictures.invalid/a.png" in chromium.requests
    assert any("ERR_NAME_NOT_RESOLVED" in problem for problem in chromium.problems)
    assert any("Uncaught" in problem for problem in chromium.problems)
