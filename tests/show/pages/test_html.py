"""What both pages rest on: texts are escaped by themselves, sections are not held in memory, a wheel has all files."""

import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from jinja2 import UndefinedError

from dsh_cli.neighbors import Answer, Finder, split_database
from dsh_cli.runs.run import Run
from dsh_cli.show.pages.html import TEMPLATES
from dsh_cli.show.pages.neighbors import page
from tests.support.runs import small_run

ROOT = Path(__file__).parents[3]


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
    monkeypatch.setattr("dsh_cli.show.pages.neighbors._pictures", lambda shown, finder: (noise for _ in shown))
    finder = Finder(run, split_database(run), count)
    (answer,) = finder.find(["0xf0"])
    assert isinstance(answer, Answer)
    with page("page.html", finder) as written:
        written.add(answer)  # the templates are read
        tracemalloc.start()
        written.add(answer)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert Path("page.html").stat().st_size > 2 * count * side * side
    assert peak < 20 * side * side


def test_a_wheel_has_the_templates_styles_and_scripts(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "dsh_cli", source / "dsh_cli", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    files = {path.relative_to(source).as_posix() for path in (source / "dsh_cli").rglob("*") if path.is_file()}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("dsh_cli/")} == files
