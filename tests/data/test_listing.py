"""Label files, whatever is in them: the pictures and classes they name, or one clear line."""

import csv
import io
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dsh_cli.data.listing import UNLABELLED, Listing, list_folder, list_labels, sort_classes
from dsh_cli.errors import DataError
from dsh_cli.pictures.find import Kind

PICTURES = ("a.png", "b c.png", "d,e.png", 'f".png', "g/h.png", "ä.png", "new\nline.png")
FILE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "g").mkdir()
    for name in PICTURES:
        (tmp_path / name).touch()
    return tmp_path


def listed(folder: Path, content: bytes, name: str = "labels.csv") -> Listing | str:
    """What a label file names, or what is said of it."""
    (folder / name).write_bytes(content)
    try:
        return list_labels(folder / name)
    except DataError as error:
        assert "\n" not in repr(str(error)) and len(str(error)) < 5000
        return str(error)


PIECES = [b"a.png", b",", b'"', b"x", b"\n", b"\r", b"\0", b"train", b"path", b"label", b"split"]
WORDS = st.text("ab,\"' \t\r\n\0;é\ufeff\ud800\u2028", max_size=6)


@FILE
@given(
    st.lists(st.tuples(st.sampled_from(PICTURES), WORDS), max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
def test_what_is_written_as_csv_is_read_as_it_was(
    folder: Path, rows: list[tuple[str, str]], end: str, marked: bool
) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("path", "label"), *rows])
    data = text.getvalue().encode("utf-8", "surrogatepass" if marked else "replace")
    found = listed(folder, b"\xef\xbb\xbf" * marked + data)
    paths = [path for path, _ in rows]
    if not rows or not all(label.strip() for _, label in rows) or len(set(paths)) < len(paths):
        assert isinstance(found, str)
    elif "\ud800" not in "".join(label for _, label in rows):
        assert isinstance(found, Listing)
        assert found.parts == {"train": [(os.path.join(folder, path), label.strip()) for path, label in rows]}


@FILE
@given(
    st.one_of(
        st.binary(max_size=40),
        st.text('ab.png,"\r\n\t\0 trainvlidospth#', max_size=40).map(str.encode),
        st.lists(st.sampled_from(PIECES)).map(b"".join),
    ),
    st.sampled_from(["labels.csv", "labels.tsv", "labels.txt"]),
)
@example(b"a.png,x\0\n", "labels.csv")
@example(b"a.png\0,x\n", "labels.csv")
@example(b'a.png,"x\n', "labels.csv")  # a quote that never ends
@example(b"a.png," + b"x" * 140_000, "labels.csv")  # a field larger than csv takes
@example(b"x" * 100_000 + b"\n", "labels.csv")  # what is no row was said whole
@example("a.png,x\n".encode("utf-16"), "labels.csv")
@example(b"a.png,caf\xe9\n", "labels.csv")
@example(b"path,path,label,label\na.png,b,x,y\n", "labels.csv")
@example(b"label\tsplit\tpath\nx\t\ta.png\n", "labels.tsv")
@example(b"a.png,x,train,more\n", "labels.csv")
@example(b"path,label\n/" + b"a/" * 3000 + b",x\n", "labels.csv")  # a path that no system takes
def test_any_file_names_pictures_that_are_there_or_is_refused(folder: Path, content: bytes, name: str) -> None:
    found = listed(folder, content, name)
    if isinstance(found, Listing):
        rows = [row for part in found.parts.values() for row in part]
        assert rows and set(found.parts) <= {"train", "validation", "test"}
        assert all(os.path.isfile(path) and label and label == label.strip() for path, label in rows)
        assert len({path for path, _ in rows}) == len(rows)
    else:
        assert str(folder / name) in found


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"a.png,x\nb.png,y\n",
            "labels.csv, line 2: no picture at .*b.png; paths are relative to the folder of the file$",
        ),
        (
            b"fichier,classe\na.png,x\n",
            "line 1: no picture at .*; where this line is a header, it names the columns path",
        ),
        ("path,label\na.png,x\n".encode("utf-16-le"), "labels.csv is UTF-16 without the mark .*; save it as UTF-8"),
        ("path,label\na.png,x\n".encode("utf-16-be"), "labels.csv is UTF-16 without the mark"),
        ("path,label\na.png,x\n".encode("utf-16")[:-1], "line 2: .*truncated data; each line is"),
        (b"\xff\xfe\x00\xd8a\x00", "line 1: .*illegal UTF-16 surrogate"),
        (b"a.png,x\n./g/../a.png,y\n", "line 2: .*a.png stands in line 1 already"),
        (b"a.png,x\n\n  ,\nb c.png,\n", "line 4: no label for 'b c.png'"),
        (b"a.png,x,all\n", "line 1: split 'all'; it is one of train, validation, test, or empty"),
        (b"a.png\n", "line 1: 'a.png' is not path,label"),
        (b",x\n", "line 1: ',x' is not path,label"),
        (b"gone.png;x\na.png;y\n", "line 1: no picture at .*/gone.png; paths are relative"),
        (b"gone.png x\n", "is not path,label.*; between columns are commas, semicolons or tabs$"),
        (b"\n", "names no pictures"),
        (b"a.png,caf\xe9\n", r"line 1: the label 'caf\\udce9' is not UTF-8; save the file as UTF-8"),
        (b"x", "'x' is not path,label"),
        (b"path,label,more,split\na.png\n", "line 2: 'a.png' is not path,label"),
        (b"a.png,x,,\n", "line 1: 4 columns without a header"),
        (b"path,label\n", "names no pictures"),
        (b"", "names no pictures"),
        (b'a.png,x\na"b,"y" z\n', "line 2: .*each line is path,label"),
    ],
)
def test_what_is_said_of_a_malformed_file(folder: Path, content: bytes, said: str) -> None:
    found = listed(folder, content)
    assert isinstance(found, str) and re.search(said, found), found


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a.png\nb c.png\n", ["a.png", "b c.png"]),
        (b'a.png,\n"d,e.png",\n', ["a.png", "d,e.png"]),
        (b"path\na.png\ng/h.png\n", ["a.png", "g/h.png"]),
        (b"split;file;size\ntest;a.png;3\n", ["a.png"]),
    ],
)
def test_labels_that_are_not_needed_may_be_left_out_of_all(folder: Path, content: bytes, names: list[str]) -> None:
    (folder / "list.csv").write_bytes(content)
    parts = list_labels(folder / "list.csv", needed=False).parts
    assert [pair for part in parts.values() for pair in part] == [(f"{folder}/{name}", UNLABELLED) for name in names]
    assert list(parts) == ["test" if b"test" in content else "train"]
    with pytest.raises(DataError):
        list_labels(folder / "list.csv")


def test_a_list_of_paths_may_have_any_names(folder: Path) -> None:
    for name in ("image", "x,y.png", "c;d.png", "e f.png"):
        (folder / name).touch()
        for content in (f"{name}\na.png\n", f"a.png\n{name}\n"):
            (folder / "list.txt").write_text(content)
            found = list_labels(folder / "list.txt", needed=False).parts["train"]
            assert sorted(found) == sorted((f"{folder}/{one}", UNLABELLED) for one in (name, "a.png"))


@pytest.mark.parametrize("label", ["image", "file", "picture"])
def test_a_label_that_is_the_name_of_a_column_is_a_label(folder: Path, label: str) -> None:
    (folder / "list.csv").write_text(f"a.png,{label}\nb c.png,text\n")
    found = list_labels(folder / "list.csv", needed=False).parts["train"]
    assert found == [(f"{folder}/a.png", label), (f"{folder}/b c.png", "text")]


def test_labels_that_are_not_needed_are_kept_and_of_all_or_of_none(folder: Path) -> None:
    (folder / "list.csv").write_text("a.png,x\nb c.png,y\n")
    assert list_labels(folder / "list.csv", needed=False).parts == list_labels(folder / "list.csv").parts
    (folder / "list.csv").write_text("a.png,x\nb c.png,\n")
    with pytest.raises(DataError, match=r"line 2: no label for .*/b c.png, and others have one; name all or none$"):
        list_labels(folder / "list.csv", needed=False)


def test_columns_stand_in_any_order_under_a_header(folder: Path) -> None:
    content = " Split ,x,LABEL,path,path\nTEST,1, cat ,a.png,b\n,2,dog,ä.png,\n"
    found = listed(folder, content.encode())
    assert isinstance(found, Listing)
    assert found.parts == {"test": [(f"{folder}/a.png", "cat")], "train": [(f"{folder}/ä.png", "dog")]}


@pytest.mark.parametrize("header", ["filename,class", "image,label,SET", "file,Category,more", "img_path,target", None])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le with a mark"])
def test_label_files_as_people_and_programs_write_them(
    folder: Path, header: str | None, delimiter: str, encoding: str
) -> None:
    rows = [header] * bool(header) + ["a.png,caf\u00e9", "g\\h.png,cafe\u0301", "a\u0308.png,x"]
    text = "".join(f"{row}\r\n" for row in rows).replace(",", delimiter)
    data = ("\ufeff" + text).encode("utf-16-le") if "mark" in encoding else text.encode(encoding)
    found = listed(folder, data)
    assert isinstance(found, Listing), found
    assert found.parts == {  # one class, in whichever form of Unicode, and the file whose name is in the other form
        "train": [(f"{folder}/a.png", "caf\u00e9"), (f"{folder}/g/h.png", "caf\u00e9"), (f"{folder}/\u00e4.png", "x")]
    }


def test_what_excel_is_told_of_and_lists_of_imagenet(folder: Path) -> None:
    expected = {"train": [(f"{folder}/a.png", "x"), (f"{folder}/b c.png", "y")]}
    found = listed(folder, b"sep=;\r\na.png;x\r\nb c.png;y\r\n")
    assert isinstance(found, Listing) and found.parts == expected
    assert re.search("line 3: no label", str(listed(folder, b"sep=;\na.png;x\nb c.png;\n")))
    found = listed(folder, b'a.png x\n"b c.png" y\n', "val.txt")
    assert isinstance(found, Listing) and found.parts == expected


def test_of_two_names_for_a_column_the_commoner_is_taken(folder: Path) -> None:
    found = listed(folder, b"category,image,label,path,partition\nc,none.png,x,a.png,Dev\n")
    assert isinstance(found, Listing) and found.parts == {"validation": [(f"{folder}/a.png", "x")]}


def made(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["train/a/1.png", "test/a/2.png"], {"train": ["a"], "test": ["a"]}),
        (["Train/a/1.png", "VAL/a/2.png", "Testing/b/3.png"], {"train": ["a"], "validation": ["a"], "test": ["b"]}),
        (["training/a/1.png", "dev/a/2.png"], {"train": ["a"], "validation": ["a"]}),
        (["train/a/1.png", "valid/a/2.png", "__MACOSX/a/3.png", ".git/x/4.png"], {"train": ["a"], "validation": ["a"]}),
        (["train/a/1.png", "validation/train/2.png"], {"train": ["a"], "validation": ["train"]}),
        (["bus/1.png", "train/2.png", "tram/3.png"], {"train": ["bus", "train", "tram"]}),  # that on rails
        (["item 10/1.png", "item 2/2.png"], {"train": ["item 10", "item 2"]}),
        (["bus/1.png", "train/2.png", "train/@eaDir/2.png"], {"train": ["bus", "train"]}),
        (["train/caf\u00e9/1.png", "test/cafe\u0301/2.png"], {"train": ["caf\u00e9"], "test": ["caf\u00e9"]}),
        (["caf\u00e9/1.png", "cafe\u0301/2.png", "x/3.png"], {"train": ["caf\u00e9", "caf\u00e9", "x"]}),
    ],
)
def test_splits_are_known_by_the_names_that_people_give_them(
    tmp_path: Path, paths: list[str], expected: dict[str, list[str]]
) -> None:
    found = list_folder(made(tmp_path, *paths))
    assert {split: sorted(label for _, label in part) for split, part in found.parts.items()} == expected
    assert not found.left_out.counts


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (
            ["train/a/1.png", "test/a/2.png", "annotations/x.xml"],
            r"folders of splits \(test, train\) beside others \(annotations\), so which are classes\? Rename",
        ),
        (["train/a/1.png", "a/2.png", "b/3.png"], r"\(train\) beside others \(a, b\).*or give .*/train alone"),
        (["train/1.png", "test/2.png", "x/3.png"], r"\(test, train\) beside others \(x\).*/train alone$"),
        (["train/a/1.png", *(f"c{i}/{i}.png" for i in range(9))], r"\(c0, c1, c2, c3, c4 and 4 more\)"),
        (["train/a/1.png", "val/a/2.png", "Dev/a/3.png"], "a split under two names, of Dev, train, val"),
        (["train/1.png", "test/2.png"], "train holds pictures but no class folders"),
        (["a.png", "b.png"], "holds pictures but no class folders"),
        (
            ["x/IMG_1.CR2", "x/IMG_2.CR2"],
            "no pictures under .*; left out: 1 class folder without .*; left out: 2 camera",
        ),
        (["notes.txt"], "no pictures under"),
    ],
)
def test_folders_that_can_be_understood_in_two_ways_are_refused(tmp_path: Path, paths: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        list_folder(made(tmp_path, *paths))


def test_a_link_to_itself_is_no_folder_anywhere(tmp_path: Path) -> None:
    made(tmp_path, "train/1.png", "car/2.png")
    (tmp_path / "train" / "loop").symlink_to("loop")
    assert list_folder(tmp_path).parts == {
        "train": [(f"{tmp_path}/car/2.png", "car"), (f"{tmp_path}/train/1.png", "train")]
    }


def test_pictures_beside_class_folders_are_left_out_and_told(tmp_path: Path) -> None:
    found = list_folder(made(tmp_path, "0.png", "train/1.png", "train/a/2.png", "test/a/3.png", "test/4.png"))
    assert found.parts == {"train": [(f"{tmp_path}/train/a/2.png", "a")], "test": [(f"{tmp_path}/test/a/3.png", "a")]}
    assert found.left_out.counts == {Kind.LOOSE: 3}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("0123456789٣²a", min_size=1, max_size=3) | st.integers(0, 2000).map(str), unique=True))
@example(["1" * 5000, "2"])  # more digits than int() reads
@example(["10", "9", "09", "009"])
@example(["²", "1"])
def test_classes_are_sorted_as_people_count(names: list[str]) -> None:
    found = sort_classes(names)
    assert sorted(found) == sorted(names) and sort_classes(reversed(names)) == found
    if all(name.isdecimal() and len(name) < 100 for name in names):
        assert [int(name) for name in found] == sorted(int(name) for name in names)
    assert sort_classes(["item 10", "Item 2", "item 2", "1" * 5000, "9"]) == [
        "9",
        "1" * 5000,
        "Item 2",
        "item 2",
        "item 10",
    ]
