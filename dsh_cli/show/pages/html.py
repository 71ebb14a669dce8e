"""What all pages are made with: templates in which every text is escaped, styles and scripts, and pictures."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from dsh_cli.show.views.shared import printable
from dsh_cli.words import counted

_FOLDER = Path(__file__).parent


def _shown(value: object) -> object:
    """What a template shows of a value: of all but our own markup, text without control characters."""
    return value if isinstance(value, Markup) else printable(str(value))


def _breakable(path: str) -> Markup:
    """A path that is broken at its slashes first."""
    return Markup("/<wbr>").join(map(printable, path.split("/")))


def _sentence(text: str) -> str:
    """A text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


@cache
def _asset(name: str) -> Markup:
    """A style or a script of ours, to stand in a page as it is."""
    return Markup((_FOLDER / "assets" / name).read_text("utf-8"))


def data_uri(pixels: NDArray[np.uint8], kind: str) -> Markup:
    """A picture, (height, width, 1 or 3), as an address that holds all of it: `kind` is png or jpeg."""
    data = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(data, kind, quality=88)
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}")


TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    auto_reload=False,
)
TEMPLATES.filters |= {"breakable": _breakable, "counted": counted, "sentence": _sentence}
TEMPLATES.globals["asset"] = _asset
