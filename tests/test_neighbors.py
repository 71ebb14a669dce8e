"""Queries and lists of files, whatever is in them: each is a code, a picture or an error, and the others go on."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dsh_cli.cli.shared import arguments
from dsh_cli.codes.bits import parse
from dsh_cli.config import ModelConfig
from dsh_cli.data.inputs import encode_files
from dsh_cli.errors import UsageError
from dsh_cli.neighbors import parse_queries
from dsh_cli.network.model import HashNet
from dsh_cli.pictures.find import expand

IN_FOLDER = [HealthCheck.function_scoped_fixture]
NAMES = st.text(st.sampled_from("ab0x1f.png/~-*\0\t\r\n \ud8ff\udcff\x1bé"), max_size=8)


@pytest.fixture(scope="module")
def net() -> HashNet:
    torch.manual_seed(0)
    return HashNet(ModelConfig("dsh-cnn", 8, 1, 8)).eval()


@settings(max_examples=100, deadline=None, suppress_health_check=IN_FOLDER)
@given(st.lists(NAMES, max_size=4))
@example(["a\0b.png"])
@example(["\ud8ff.png"])  # which no system's name can hold
@example(["x" * 5000])
@example(["/dev/null", ""])
def test_every_name_in_a_list_has_a_code_or_an_error(net: HashNet, tmp_path: Path, names: list[str]) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    wanted = [name for name in (*names, "picture.png") if not os.path.isdir(name)]
    found = list(encode_files(net, expand(wanted), workers=1))
    assert [item.path for item in found] == wanted
    assert all((item.packed is None) == (item.error is not None) for item in found)
    assert found[-1].packed is not None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(NAMES, st.text("0123456789abcdefx_", max_size=6).map("0x".__add__)), max_size=4))
@example(["0xf\0"])
@example(["0x" + "f" * 5000])
@example(["0b_1111_0000", "0B11110000"])
def test_every_query_is_a_code_a_picture_or_an_error(texts: list[str]) -> None:
    texts = [text for text in texts if not os.path.isdir(text)]  # which come as the pictures below them
    found = list(parse_queries(texts, 8))
    assert [query.name for query in found] == texts
    for query in found:
        if query.picture:
            assert query.packed is None and query.error is None
        elif query.error is None:
            assert query.packed is not None and query.packed.tolist() == parse(query.name, 8).tolist()
        else:
            with pytest.raises(UsageError):
                parse(query.name, 8)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=6)), st.booleans())
@example([b"\xff\xfe", b" "], True)
@example([b"a\rb"], False)
def test_a_list_on_standard_input_is_the_names_in_it(names: list[bytes], null: bool) -> None:
    names = [name.replace(b"\0", b"") for name in names]
    if null:
        names = [name for name in names if name]
    else:  # blank lines are none; what ends a line ends it
        names = [name for name in (n.replace(b"\n", b"").rstrip(b"\r") for n in names) if name.strip()]
    with pytest.MonkeyPatch.context() as patch:
        data = (b"\0" if null else b"\n").join(names)
        patch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        found = list(arguments(["first", "-", "last"], null))
    assert [name.encode("utf-8", "surrogateescape") for name in found[1:-1]] == names
    assert (found[0], found[-1]) == ("first", "last")
