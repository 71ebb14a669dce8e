"""The page of an embedding: right in a real browser, asking nothing of the network, quick with ten thousand points."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dsh_cli.analysis.embedding import Embedding, Projection, embed, embed_run
from dsh_cli.codes.bits import hamming
from dsh_cli.runs.run import Run
from dsh_cli.show.pages.embedding import page
from tests.support.browser import Browser
from tests.support.codes import made
from tests.support.commands import dsh, one_line_error
from tests.support.values import there

# Where a row of the page's data is on the screen, and what its parts say.
HELPERS = """
window.part = name => Bokeh.documents[0].get_model_by_name(name)
window.data = () => part("map").renderers[0].data_source.data
window.place = row => {
  const view = Bokeh.index.find_one(part("map")), box = view.canvas_view.el.getBoundingClientRect()
  return [box.x + view.frame.x_scale.compute(data().x[row]), box.y + view.frame.y_scale.compute(data().y[row])] }
window.everything = (root = document) =>
  [...root.querySelectorAll("*")].flatMap(e => [e, ...(e.shadowRoot ? everything(e.shadowRoot) : [])])
window.tooltip = () => everything().find(e => e.classList.contains("dsh-picture") && e.offsetParent !== null)
1"""


@pytest.fixture
def shown(chromium: Browser, digits_run: Path, tmp_path: Path) -> Embedding:
    """A page of the digits' test pictures, open; and its embedding."""
    command = ["embed", "--model", digits_run, "--method", "pca", "--out", "page.html", "--quiet"]
    assert dsh(*command).exit_code == 0
    chromium.open((tmp_path / "page.html").as_uri())
    chromium.value(HELPERS)
    return embed_run(Run.open(digits_run), "test", Projection("pca"))


def mouse(tab: Browser, kind: str, x: float, y: float, **more: object) -> None:
    tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)


def wait_for(tab: Browser, expression: str) -> Any:
    deadline = time.monotonic() + 20
    while not (value := tab.value(expression)):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)
    return value


def lonely(embedding: Embedding) -> int:
    """A point that no other is near."""
    apart = np.linalg.norm(embedding.points[:, None] - embedding.points, axis=2)
    np.fill_diagonal(apart, 9)
    return int(apart.min(axis=1).argmax())


def test_nothing_is_asked_of_the_network_and_nothing_complained_of(
    chromium: Browser, shown: Embedding, tmp_path: Path
) -> None:
    assert {url.partition(":")[0] for url in chromium.requests} <= {"file", "data", "blob"}
    assert [url for url in chromium.requests if url.startswith("file:")] == [(tmp_path / "page.html").as_uri()]
    assert chromium.problems == []
    assert chromium.value("document.documentElement.scrollWidth") <= 1280


# Of every text on the page, in Bokeh's shadow roots too, the contrast with what is behind it.
CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255).map(
      v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const ground = e => { for (; e; e = e.parentElement ?? e.getRootNode().host) {
      const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)/.test(c)) return c } return "rgb(255, 255, 255)" }
  const between = (one, other) => { const [a, b] = [light(one), light(other)].sort((x, y) => y - x)
      return (a + 0.05) / (b + 0.05) }
  const said = e => e.tagName == "INPUT" || [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())
  const texts = everything().filter(e => said(e) && e.getClientRects().length).map(
      e => [e.value || e.placeholder || e.textContent, between(getComputedStyle(e).color, ground(e))])
  const field = everything().find(e => e.tagName == "INPUT")
  texts.push(["placeholder", between(getComputedStyle(field, "::placeholder").color, ground(field))])
  const probe = document.body.appendChild(document.createElement("i"))  // what colours on the canvas are
  const css = c => { probe.style.color = c; return getComputedStyle(probe).color }
  const map = part("map"), [legend, names] = [map.right[0], map.center.find(m => m.type == "LabelSet")]
  for (const [text, behind] of [
      [legend.label_text_color, legend.background_fill_color], [legend.title_text_color, legend.background_fill_color],
      [names.text_color.value, names.background_fill_color.value], [names.text_color.value, map.background_fill_color]])
    texts.push(["canvas", between(css(text), css(behind))])
  probe.remove()
  return texts })()"""


def test_the_page_follows_the_scheme_that_the_reader_prefers(
    chromium: Browser, shown: Embedding, tmp_path: Path
) -> None:
    grounds = {"light": "rgb(255, 255, 255)", "dark": "rgb(30, 31, 28)"}
    row = lonely(shown)
    for scheme in ("light", "dark"):
        chromium.open((tmp_path / "page.html").as_uri(), scheme=scheme)
        chromium.value(HELPERS)
        search(chromium, "7")
        x, y = chromium.value(f"place({row})")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            mouse(chromium, kind, x, y, button="none" if kind == "mouseMoved" else "left", buttons=1, clickCount=1)
        wait_for(chromium, "!!tooltip() && part('panel').text.includes('Nearest')")
        texts = chromium.value(CONTRAST)
        assert {"Nearest by Hamming distance", "7", "Search", "placeholder"} <= {text for text, _ in texts}
        assert [text for text in texts if text[1] < (3 if text[0] == "⋮" else 4.5)] == []  # WCAG 2.2, AA; a sign
        for part in ("document.body", "tooltip().getRootNode().host"):
            assert chromium.value(f"getComputedStyle({part}).backgroundColor") == grounds[scheme], part
    dark = chromium.value("[part('map').background_fill_color, data().colour.find((c, i) => c != data().own[i])]")
    chromium.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    wait_for(chromium, "part('map').background_fill_color == '#fff'")  # where it is open meanwhile, too
    assert dark == ["#1e1f1c", "#34362f"]
    assert chromium.value("data().colour.find((c, i) => c != data().own[i])") == "#dfdfd8"
    assert chromium.problems == []


def test_the_pointer_shows_the_right_picture_label_code_and_class(chromium: Browser, shown: Embedding) -> None:
    row = lonely(shown)
    x, y = chromium.value(f"place({row})")
    mouse(chromium, "mouseMoved", x - 40, y - 40)
    mouse(chromium, "mouseMoved", x, y)
    wait_for(chromium, "!!tooltip()")
    said = chromium.value("tooltip().parentElement.innerText")
    codes = shown.codes
    assert codes.classes[codes.labels[row]] in said and f"0x{codes.hex[row]}" in said and codes.names[row] in said
    assert f"nearest class: {shown.nearest[row]}" in said
    # The pixels the tooltip shows, read back from the sheet at the place its style names.
    pixels = chromium.value(PIXELS)
    height, width = there(codes.thumbnails).shape[1:3]
    assert np.array_equal(np.array(pixels).reshape(height, width), there(codes.thumbnails)[row, ..., 0])


PIXELS = """(async () => {
  const style = getComputedStyle(tooltip())
  const sheet = style.backgroundImage
  const image = new Image()
  image.src = sheet.trim().replace(/^url\\(["']?/, "").replace(/["']?\\)$/, "")
  await image.decode()
  const scale = parseFloat(style.backgroundSize) / image.width
  const [left, top] = style.backgroundPosition.split(" ").map(parseFloat)
  const canvas = document.createElement("canvas"); canvas.width = image.width; canvas.height = image.height
  const context = canvas.getContext("2d"); context.drawImage(image, 0, 0)
  const w = Math.round(parseFloat(style.width) / scale), h = Math.round(parseFloat(style.height) / scale)
  return [...context.getImageData(-left / scale, -top / scale, w, h).data].filter((_, i) => i % 4 == 0) })()"""


def test_a_click_lists_the_nearest_codes(chromium: Browser, shown: Embedding) -> None:
    row = lonely(shown)
    x, y = chromium.value(f"place({row})")
    for kind in ("mousePressed", "mouseReleased"):
        mouse(chromium, kind, x, y, button="left", buttons=1, clickCount=1)
    wait_for(chromium, "part('panel').text.includes('Nearest')")
    lines = chromium.value("""(() => { const d = document.createElement("div"); d.innerHTML = part("panel").text
      return [...d.querySelectorAll("code")].map(c => [c.textContent, c.nextSibling.nextSibling.textContent]) })()""")
    codes = shown.codes
    away = hamming(codes.packed[row], codes.packed)
    nearest = [i for i in np.argsort(away, kind="stable") if i != row][:12]
    assert lines == [[f"0x{codes.hex[i]}", codes.names[i]] for i in (row, *nearest)]


def test_a_click_where_points_overlap_takes_the_one_its_tooltip_shows(chromium: Browser, shown: Embedding) -> None:
    apart = np.linalg.norm(shown.points[:, None] - shown.points, axis=2)
    np.fill_diagonal(apart, 9)
    row = int(apart.min(axis=1).argmin())  # the two that are nearest
    x, y = chromium.value(f"place({row})")
    mouse(chromium, "mouseMoved", x - 40, y - 40)
    mouse(chromium, "mouseMoved", x, y)
    wait_for(chromium, "!!tooltip()")
    said = chromium.value("tooltip().parentElement.innerText")
    for times in (1, 2):  # a second click keeps it
        for kind in ("mousePressed", "mouseReleased"):
            mouse(chromium, kind, x, y, button="left", buttons=1, clickCount=1)
        wait_for(chromium, "part('panel').text.includes('Nearest')")
        first = chromium.value("""(() => { const d = document.createElement("div"); d.innerHTML = part("panel").text
          return d.querySelector("small").textContent })()""")
        assert first in said, times
        time.sleep(0.5)


def search(tab: Browser, text: str) -> tuple[str, list[int]]:
    tab.value(f"part('search').value_input = {text!r}; 1")
    said, rows = tab.value(
        "[part('said').text, data().colour.map((c, i) => c == data().own[i] ? i : -1).filter(i => i >= 0)]"
    )
    return said, rows


def test_a_search_finds_a_class_or_a_code(chromium: Browser, shown: Embedding) -> None:
    codes = shown.codes
    said, found = search(chromium, "7")
    assert found == np.flatnonzero(codes.labels == 7).tolist() and said == f"{len(found)} of 359 points"
    code = codes.hex[5]
    said, found = search(chromium, f" 0x{code.upper()} ")
    assert found == [i for i, other in enumerate(codes.hex) if other == code]
    for form in (code, f"0b{int(code, 16):08b}", f"{int(code, 16):08b}"):
        assert search(chromium, form)[1] == found or form in codes.classes
    assert chromium.value("part('map').renderers[1].data_source.data.x.length") == len(found)  # drawn over the others
    assert search(chromium, codes.names[9])[1] == [9]
    said, found = search(chromium, "zebra")
    assert found == [] and said.startswith("nothing found")
    assert search(chromium, "") == ("", list(range(359)))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_number_and_size_are_shown(chromium: Browser, tmp_path: Path, channels: int) -> None:
    """Noise, which no format makes smaller: far more than a browser takes in one custom property."""
    codes = made(1500)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 48, 48, 1), dtype=np.uint8)
    codes = replace(codes, thumbnails=np.repeat(noise, channels, axis=3))
    embedding = embed(codes, Projection("pca"))
    Path("page.html").write_text(page(embedding, "run", "test"))
    chromium.open((tmp_path / "page.html").as_uri())
    chromium.value(HELPERS)
    assert chromium.value("Math.max(...data().sheet)") >= 2
    row = 1499
    x, y = chromium.value(f"place({row})")
    mouse(chromium, "mouseMoved", x - 40, y - 40)
    mouse(chromium, "mouseMoved", x, y)
    wait_for(chromium, "!!tooltip()")
    name = chromium.value("tooltip().parentElement.querySelector('small').textContent")
    row = embedding.codes.names.index(name)  # of those that lie there the one it shows
    away = np.array(chromium.value(PIXELS)).reshape(48, 48) - there(embedding.codes.thumbnails)[row, ..., 0].astype(int)
    assert np.abs(away).mean() < (0.01 if channels == 1 else 25)  # JPEG spoils noise; another picture is 85 away


def test_every_class_has_a_shape_and_colour_that_can_be_seen_and_an_entry_in_the_legend(
    chromium: Browser, tmp_path: Path
) -> None:
    """Also of names that begin alike; lines alone would not be drawn."""
    codes = replace(
        made(400), labels=np.arange(400) % 100, classes=tuple(f"a class by the name of {i}" for i in range(100))
    )
    for count in (100, 20):
        few = replace(codes, labels=codes.labels % count)
        Path("page.html").write_text(page(embed(few, Projection("pca")), "run", "test"))
        chromium.open((tmp_path / "page.html").as_uri())
        chromium.value(HELPERS)
        looks = chromium.value("data().marker.map((marker, i) => marker + data().own[i])")
        assert len(set(looks)) == count
        assert not {look.split("#")[0] for look in looks} & {
            "x",
            "cross",
            "asterisk",
            "dash",
            "y",
            "dot",
            "circle_cross",
        }
        entries = chromium.value("part('map').right.flatMap(legend => legend.items.map(item => item.index))")
        assert entries == ([] if count == 100 else list(range(20)))


def test_ten_thousand_points_move_smoothly(chromium: Browser, tmp_path: Path) -> None:
    codes = made(10_000, 10)
    Path("page.html").write_text(page(embed(codes, Projection("pca"), 10_000), "run", "test"))
    chromium.open((tmp_path / "page.html").as_uri())
    chromium.value(HELPERS)
    time.sleep(1)
    chromium.call("Performance.enable", timeDomain="threadTicks")  # so that it is the page's work, whatever else runs
    before = chromium.value("part('map').x_range.start"), _seconds_of_work(chromium)
    x, y = chromium.value("place(0)")
    mouse(chromium, "mousePressed", x, y, button="left", buttons=1, clickCount=1)
    for step in range(60):
        mouse(chromium, "mouseMoved", x + 3 * step, y + step, button="left", buttons=1)
        time.sleep(0.02)
    mouse(chromium, "mouseReleased", x + 180, y + 60, button="left")
    assert chromium.value("part('map').x_range.start") != before[0]
    assert (_seconds_of_work(chromium) - before[1]) / 60 <= 0.05  # for each move: twenty a second, and more


def _seconds_of_work(tab: Browser) -> float:
    """What the page's thread has computed so far."""
    metrics = tab.call("Performance.getMetrics")["metrics"]
    return float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))


def test_names_cannot_do_anything(chromium: Browser, tmp_path: Path) -> None:
    codes = made(40)
    odd = "<img src=x onerror=window.hit=1>"
    names = [f"{odd} {i}" for i in range(40)]
    codes = replace(codes, classes=(odd, "'\"&", "@x", "${1}"), names=names)
    embedding = embed(codes, Projection("pca"))
    Path("page.html").write_text(page(embedding, odd, "test"))
    chromium.open((tmp_path / "page.html").as_uri())
    chromium.value(HELPERS)
    row = lonely(embedding)
    x, y = chromium.value(f"place({row})")
    mouse(chromium, "mouseMoved", x - 40, y - 40)
    mouse(chromium, "mouseMoved", x, y)
    wait_for(chromium, "!!tooltip()")
    assert f"{odd} {row}" in chromium.value("tooltip().parentElement.innerText")
    for kind in ("mousePressed", "mouseReleased"):
        mouse(chromium, kind, x, y, button="left", buttons=1, clickCount=1)
    wait_for(chromium, "part('panel').text.includes('Nearest')")
    assert chromium.value("window.hit") is None and chromium.problems == []


def test_a_page_that_cannot_be_written_is_one_line(digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    line = one_line_error(dsh("embed", "--model", digits_run, "--method", "pca", "--out", "page.html", "--quiet"), 1)
    assert "cannot write page.html" in line
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
