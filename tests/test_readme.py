"""What the README promises runs."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

import dsh_cli
from tests.support.commands import dsh, every_command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("cluster", "handing-on", "pictures"))]


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_examples_run(code: str, digits_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkdir("runs")
    os.symlink(digits_run, "runs/mine")
    for name in ("a.png", "b.png"):
        Image.effect_noise((20, 20), 60).save(name)
    exec(code, {})
    codes, distance = capsys.readouterr().out.splitlines()
    a, b = (int(code, 16) for code in eval(codes))
    assert int(distance) == (a ^ b).bit_count()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_it_names_exists(page: Path) -> None:
    text = page.read_text()
    longest_first = sorted(every_command(), key=len, reverse=True)  # so that "index add" is not taken for "index"
    helps = {command: dsh(*command.split(), "--help").stdout for command in longest_first}
    of_commands = re.findall(rf"\bdsh ({'|'.join(helps)})\b([^`|#\n]*)", text)
    options = [(command, option) for command, rest in of_commands for option in re.findall(r" (--?[a-z-]+)", rest)]
    assert len(options) > (5 if page.name == "README.md" else -1)
    assert [pair for pair in options if pair[1] not in helps[pair[0]]] == []
    alone = re.findall(r"`(--[a-z-]+)", text)
    assert alone and [option for option in alone if option not in "".join(helps.values())] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_it_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text())
    assert links and all((page.parent / link).exists() for link in links)


def test_it_names_the_whole_library() -> None:
    _, _, after = README.partition("## As a library")
    section = after.partition("\n## ")[0]
    assert not set(dsh_cli.__all__) - set(re.findall(r"\w+", section))
