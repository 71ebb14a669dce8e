"""What both pages rest on: texts are escaped by themselves, and sections are not held in memory."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError

from dsh_cli.neighbors import Answer, Finder, split_database
from dsh_cli.runs.run import Run
from dsh_cli.show.pages.html import TEMPLATES
from dsh_cli.show.pages.neighbors import page
from tests.support.runs import small_run


def test_every_text_is_escaped_without_being_asked() -> None:
    template = TEMPLATES.from_string("<p title='{{ text }}'>{{ text }} {{ path | breakable }} {{ number }}</p>")
    shown = template.render(text="'<b>\x1b\udcff\n", path="<i>/\x00/a", number=7)
    inside = r"&#39;&lt;b&gt;\x1b\udcff\n"
    assert shown == rf"<p title='{inside}'>{inside} &lt;i&gt;/<wbr>\x00/<wbr>a 7</p>"
    with pytest.raises(UndefinedError):
        template.render(text="", number=7)


def test_a_page_takes_no_memory_for_pictures_that_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, side = 200, 100
    run = Run.open(small_run(tmp_path / "run", [("cat", "f0")] * count, 8, [], []))
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    monkeypatch.setattr("dsh_cli.show.pages.neighbors._pictures", lambda shown, database: (noise for _ in shown))
    finder = Finder(run, split_database(run), count)
    (answer,) = finder.find(["0xf0"])
    assert isinstance(answer, Answer)
    with page("page.html") as written:
        written.add(answer)  # the templates are read
        tracemalloc.start()
        written.add(answer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert Path("page.html").stat().st_size > 2 * count * side * side
    assert peak < 20 * side * side
