"""Neighbours: the contract, order, filters, calibration, and what bad input gets."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from dsh_cli import neighbors
from dsh_cli.codes import nearest
from dsh_cli.codes.bits import from_hex, hamming, looks_like_code, parse, to_hex
from dsh_cli.errors import UsageError
from dsh_cli.neighbors import Finder, Search
from dsh_cli.runs.run import Run
from dsh_cli.show.views import neighbors as views
from tests.support.commands import dsh, dsh_json, dsh_process, one_line_error
from tests.support.imports import HEAVY, loaded_by_command
from tests.support.runs import TRAIN, edit, small_run
from tests.support.stand_in import StandIn
from tests.support.values import in_memory, there


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "run")


def found(*arguments: object) -> list[tuple[str, int]]:
    """(path, distance) of the neighbours of one query."""
    return [(n["path"], n["distance"]) for n in dsh_json("neighbors", *arguments)["neighbors"]]


# The contract, and order


def test_it_answers_with_its_contract(run: Path) -> None:
    answer = dsh_json("neighbors", "0xf0", "--model", run, "-k", 3)
    assert answer == {
        "query": "0xf0",
        "code": "f0",
        "predicted_label": "cat",
        "neighbors": [
            {"rank": 1, "path": "train/0", "label": "cat", "code": "f0", "distance": 0},
            {"rank": 2, "path": "train/1", "label": "cat", "code": "f0", "distance": 0},
            {"rank": 3, "path": "train/3", "label": "cat", "code": "f1", "distance": 1},
        ],
        "same_class_rate": 1.0,
    }
    assert list(answer) == ["query", "code", "predicted_label", "neighbors", "same_class_rate"]
    assert list(answer["neighbors"][0]) == ["rank", "path", "label", "code", "distance"]


def test_codes_in_binary_and_of_odd_case_are_the_same_query(run: Path) -> None:
    for text in ("0xf1", "0XF1", "0xF_1", "0b1111_0001", "0b11110001", "0B1111_0001"):
        assert dsh_json("neighbors", text, "--model", run)["code"] == "f1"


def test_plain_lines_are_fields_with_the_path_last(run: Path) -> None:
    assert dsh("neighbors", "0xf0", "0x0f", "--model", run, "-k", 2).stdout.splitlines() == [
        "0xf0\t1\t0\tcat\tf0\ttrain/0",
        "0xf0\t2\t0\tcat\tf0\ttrain/1",
        "0x0f\t1\t0\tdog\t0f\ttrain/2",
        "0x0f\t2\t1\tdog\t1f\ttrain/5",
    ]


def test_ties_keep_the_order_of_adding(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = [f"{code:02x}" for code in rng.integers(0, 4, 200)]
    run = small_run(tmp_path / "run", train=[("cat", code) for code in codes])
    for limit in (["-k", 150], ["-k", 7], ["--radius", 2], ["--radius", 1, "-k", 40]):
        paths, distances = zip(*found("0x01", "--model", run, *limit), strict=True)
        order = [(distance, int(path.split("/")[1])) for path, distance in zip(paths, distances, strict=True)]
        assert order == sorted(order)
    help_text = " ".join(dsh("neighbors", "--help").stdout.split())
    assert "Those equally near come in the order in which they were added." in help_text


@given(st.integers(1, 70), st.integers(0, 30), st.integers(1, 40), st.integers(0, 2**32))
def test_search_is_what_a_slow_search_finds(bits: int, count: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = [f"{int.from_bytes(rng.bytes(9), 'big') >> (72 - bits):0{-(-bits // 4)}x}" for _ in range(count + 3)]
    packed = from_hex(text, bits)
    database, queries, radius = packed[:count], packed[count:], min(bits, k)
    rows, distances = nearest.nearest(database, queries, bits, k)
    assert rows.dtype == np.int64 and distances.dtype == np.int32 and rows.shape == (3, min(k, count))
    for i, query in enumerate(queries):
        slow = sorted((int(hamming(query, code)), row) for row, code in enumerate(database))
        assert list(zip(distances[i].tolist(), rows[i].tolist(), strict=True)) == slow[:k]
        within_rows, within_distances = nearest.within(database, queries, bits, radius)[i]
        expected = [pair for pair in slow if pair[0] <= radius]
        assert list(zip(within_distances.tolist(), within_rows.tolist(), strict=True)) == expected


def test_ten_by_default_all_within_a_radius_and_both_together(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", train=[("cat", "00")] * 12 + [("dog", "01")] * 5 + [("owl", "03")])
    assert len(found("0x00", "--model", run)) == 10
    assert len(found("0x00", "--model", run, "--radius", 0)) == 12
    assert len(found("0x00", "--model", run, "--radius", 1)) == 17
    assert len(found("0x00", "--model", run, "--radius", 1, "-k", 14)) == 14
    assert len(found("0x00", "--model", run, "--radius", 8)) == 18
    assert len(found("0x00", "--model", run, "--radius", 1, "-k", 18)) == 17


def test_filters_apply_before_ranking_so_that_k_are_still_found(run: Path) -> None:
    assert found("0xf0", "--model", run, "--label", "dog", "-k", 2) == [("train/5", 7), ("train/2", 8)]
    assert found("0xf0", "--model", run, "--not-label", "cat", "-k", 2) == [("train/4", 4), ("train/6", 4)]
    both = found("0xf0", "--model", run, "--label", "dog", "--label", "owl", "-k", 4)
    assert [path for path, _ in both] == ["train/4", "train/6", "train/5", "train/2"]
    narrowed = found("0xf0", "--model", run, "--label", "dog", "--label", "owl", "--not-label", "dog", "-k", 2)
    assert [path for path, _ in narrowed] == ["train/4", "train/6"]


def test_pictures_without_a_label_are_found_and_say_so(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", train=[*TRAIN, (None, "f0")])
    answer = dsh_json("neighbors", "0xf0", "--model", run, "-k", 3)
    assert [n["label"] for n in answer["neighbors"]] == ["cat", "cat", None]
    assert dsh("neighbors", "0xf0", "--model", run, "-k", 3).stdout.splitlines()[2].split("\t")[3] == "-"
    assert found("0xf0", "--model", run, "--not-label", "cat", "-k", 1) == [("train/7", 0)]


def test_splits(run: Path) -> None:
    assert found("0xfe", "--model", run, "--split", "test", "-k", 1) == [("test/2", 0)]
    assert "train, validation, test" in one_line_error(dsh("neighbors", "0xfe", "--model", run, "--split", "all"), 2)


def test_a_run_with_a_database_split_looks_there(run: Path) -> None:
    shutil.copy(run / "codes" / "test.safetensors", run / "codes" / "database.safetensors")
    for file in ("metrics.json", "config.json"):
        counts = json.loads((run / file).read_text())["counts"]
        edit(run / file, counts=counts | {"database": counts["test"]})
    edit(run / "splits.json", database=[f"test/{i}" for i in range(3)])
    assert found("0xfe", "--model", run, "-k", 1) == [("test/2", 0)]
    assert found("0xfe", "--model", run, "--split", "train", "-k", 1) == [("train/4", 1)]


# What a run knows


def test_the_predicted_class_is_that_of_the_nearest_class_code(run: Path) -> None:
    finder = neighbors.Finder(Run.open(run), neighbors.split_database(Run.open(run)))
    for text, label, distance in (("f0", "cat", 0), ("f2", "cat", 1), ("fe", "owl", 1), ("07", "dog", 1)):
        predicted = there(finder.predict(from_hex([text], 8))[0])
        assert (predicted.label, predicted.distance, predicted.tied) == (label, distance, ())


def test_classes_equally_near_are_told_and_the_one_with_most_pictures_on_its_code_is_taken(tmp_path: Path) -> None:
    train = [("cat", "00"), ("dog", "03"), ("dog", "03"), ("owl", "ff"), ("owl", "ff"), ("owl", "ff")]
    run = Run.open(small_run(tmp_path / "run", train=train))
    finder = neighbors.Finder(run, neighbors.split_database(run))
    predicted = there(finder.predict(from_hex(["01"], 8))[0])
    assert (predicted.label, predicted.code, predicted.distance, predicted.tied) == ("dog", "03", 1, ("cat",))
    assert "on the code: cat)" in dsh("neighbors", "0x01", "--model", run.path, "--format", "table").stdout.replace(
        "\n", " "
    )
    same = small_run(tmp_path / "same", train=[("dog", "00"), ("cat", "00"), ("owl", "00")])
    assert dsh_json("neighbors", "0xff", "--model", same)["predicted_label"] == "cat"  # of equals the first


def test_a_distance_that_no_held_out_pair_has(run: Path) -> None:
    arguments = ["neighbors", "0xfc", "--model", run, "--label", "owl", "-k", 1]
    answer = dsh_json(*arguments)
    assert answer["neighbors"][0]["distance"] == 2 and answer["same_class_rate"] is None
    assert "calibration: no pair is 2 bits away" in dsh(*arguments, "--format", "table").stdout
    farther = " ".join(dsh(*arguments[:4], "--label", "owl", "--label", "cat", "--format", "table").stdout.split())
    assert "calibration: no pair is 2 bits away, 0.0% of 2 pairs 3 bits away are of one class (" in farther
    assert dsh_json("neighbors", "0xe0", "--model", run, "--label", "dog", "-k", 1)["same_class_rate"] == 0.0  # at 7


def test_a_run_without_the_codes_of_its_held_out_pictures(run: Path) -> None:
    (run / "codes" / "validation.safetensors").unlink()
    assert "dsh train" in one_line_error(dsh("neighbors", "0xe0", "--model", run), 1)


# Tables


def test_golden_table_at_width_80(run: Path) -> None:
    shown = dsh("neighbors", "0xf3", "--model", run, "-k", 4, "--format", "table").stdout
    expected = """\
0xf3

 rank   distance   label   code, ^ differs   path
 ───────────────────────────────────────────────────
    1          1   cat     0xf1 11110001     train/3
                                      ^
    2          2   cat     0xf0 11110000     train/0
                                      ^^
    3          2   cat     0xf0 11110000     train/1
                                      ^^
    4          2   owl     0xff 11111111     train/4
                                    ^^

predicted class cat, whose code 0xf0 is 2 bits away (as near, with no more
training pictures on the code: owl)
3 of 4 neighbours of class cat, among 7 of the train split
calibration: 100.0% of 4 pairs 1 bit away are of one class, no pair is 2 bits
away (validation against train)

"""
    assert [line.rstrip() for line in shown.splitlines()] == expected.splitlines()


def test_an_answer_carries_all_that_is_shown_of_it(run: Path) -> None:
    shown = dsh("neighbors", "0xf3", "--model", run, "--radius", 1, "--format", "table").stdout
    opened = Run.open(run)
    (answer,) = neighbors.Finder(opened, neighbors.split_database(opened), radius=1).find(["0xf3"])
    assert isinstance(answer, neighbors.Answer)
    shutil.rmtree(run)  # nothing is read, and so nothing computed, while it is shown
    view = views.neighbors(answer)
    console = Console(width=80, file=io.StringIO())
    console.print(view.table(80))
    assert isinstance(console.file, io.StringIO) and console.file.getvalue() == shown
    assert view.record["same_class_rate"] == answer.same_class_rate == 1.0


@pytest.mark.parametrize("bits", [1, 16, 48, 64, 65, 256, 1024])
def test_long_codes_and_paths_fit_the_terminal_and_every_bit_that_differs_is_counted(bits: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    digits = -(-bits // 4)
    numbers = [int.from_bytes(rng.bytes(128), "big") >> (1024 - bits) for _ in range(5)]
    names = ["/a/very/long/folder" * 9 + f"/{i}.jpg" for i in range(5)]
    label = "a class with a long name, too"
    train = [(label, f"{number:0{digits}x}") for number in numbers]
    run = small_run(tmp_path / "run", train, bits, train[:1], train[:1], classes=(label,), names=names)
    query = f"0x{numbers[0]:0{digits}x}"
    for width in (80, 200):
        shown = dsh("neighbors", query, "--model", run, "--format", "table", env={"COLUMNS": str(width)}).stdout
        assert max(map(len, shown.splitlines())) <= width
        assert query[:20] in shown
    from dsh_cli.show.views.neighbors import marked

    for number in numbers[1:]:
        for room in (30, 80):
            lines = marked(f"{number:0{digits}x}", query[2:], 0, room).plain.splitlines()
            assert max(map(len, lines)) <= room
            signs = [line for line in lines if set(line) <= set(" 1234")]
            codes = [line for line in lines if line not in signs]
            if bits > 64:
                assert "".join(codes).replace(" ", "") == f"0x{number:0{digits}x}"
                assert sum(map(int, "".join(signs).replace(" ", ""))) == (number ^ numbers[0]).bit_count()


def test_differing_bits_are_coloured_and_marked_without_colours_too(run: Path) -> None:
    arguments: list[str | Path] = ["neighbors", "0xf3", "--model", run, "--format", "table"]
    coloured = dsh_process(*arguments, env=os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"})
    assert coloured.returncode == 0, coloured.stderr
    assert b"\x1b[1;31m0\x1b[0m" in coloured.stdout
    plain = dsh_process(*arguments, env=os.environ | {"NO_COLOR": "1"}).stdout
    assert b"\x1b[" not in plain and b"^^" in plain


def test_nothing_within_the_radius_is_said(run: Path) -> None:
    shown = dsh("neighbors", "0x3c", "--model", run, "--radius", 0, "--format", "table").stdout
    assert "no neighbour within 0 bits among 7 of the train split" in shown
    answer = dsh_json("neighbors", "0x3c", "--model", run, "--radius", 0)
    assert answer["neighbors"] == [] and answer["same_class_rate"] is None and answer["predicted_label"]


# Pictures


@pytest.fixture
def digits(digits_run: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """Pictures of the digits run's test split as files, with their codes."""
    from dsh_cli import TrainConfig, load_splits

    test = load_splits(TrainConfig(data="digits")).test
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(in_memory(test)[i, ..., 0]).save(folder / f"{i}.png")
    return folder, to_hex(Run.open(digits_run).codes("test").packed[:3], 8)


def test_pictures_and_codes_together_keep_their_order(digits_run: Path, digits: tuple[Path, list[str]]) -> None:
    folder, codes = digits
    arguments = ["--model", digits_run, "--json", "-k", 5]
    result = dsh("neighbors", "0x00", folder, "0xff", folder / "1.png", *arguments)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["query"] for row in rows] == ["0x00", *(str(folder / f"{i}.png") for i in range(3)), "0xff",
                                              str(folder / "1.png")]  # fmt: skip
    assert [row["code"] for row in rows] == ["00", *codes, "ff", codes[1]]
    train = Run.open(digits_run).codes("train")
    for row in rows:
        distances = hamming(from_hex([row["code"]], 8)[0], train.packed)
        order = np.argsort(distances, kind="stable")[:5]
        assert [n["path"] for n in row["neighbors"]] == [Run.open(digits_run).names()["train"][i] for i in order]
        assert [n["label"] for n in row["neighbors"]] == [train.classes[i] for i in train.labels[order]]


def test_lists_on_standard_input(digits_run: Path, digits: tuple[Path, list[str]]) -> None:
    folder, codes = digits
    by_line = dsh("neighbors", "-", "--model", digits_run, "--json", input=f"{folder}/0.png\n0xf0\n")
    by_null = dsh("neighbors", "-0", "-", "--model", digits_run, "--json", input=f"{folder}/0.png\0" + "0xf0\0")
    assert by_line.stdout == by_null.stdout
    assert [json.loads(line)["code"] for line in by_line.stdout.splitlines()] == [codes[0], "f0"]


def test_what_cannot_be_read_is_reported_and_the_others_go_on(digits_run: Path, digits: tuple[Path, list[str]]) -> None:
    folder, codes = digits
    (folder / "1.png").write_text("no picture")
    result = dsh("neighbors", "none.png", folder, "-", "--model", digits_run, "--json", input="0xabc\n0xf0\n")
    assert result.exit_code == 1
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert ["error" in row for row in rows] == [True, False, True, False, True, False]
    assert rows[0] == {"query": "none.png", "error": "no such file or directory"}
    assert [rows[1]["code"], rows[3]["code"], rows[5]["code"]] == [codes[0], codes[2], "f0"]
    lines = result.stderr.splitlines()
    assert len(lines) == 3 and "0xabc" in lines[2] and "2 hex digits" in lines[2]
    plain = dsh("neighbors", "none.png", folder / "0.png", "--model", digits_run)
    assert plain.exit_code == 1 and len(plain.stdout.splitlines()) == 10


def test_a_file_named_like_a_code_goes_first(digits_run: Path, digits: tuple[Path, list[str]]) -> None:
    folder, codes = digits
    os.rename(folder / "0.png", "0xf7")
    assert dsh_json("neighbors", "0xf7", "--model", digits_run)["code"] == codes[0]
    assert dsh_json("neighbors", "0xF7", "--model", digits_run)["code"] == "f7"


def test_a_code_without_its_prefix_is_told_how_to_write_it(digits_run: Path) -> None:
    assert "as a code it is written 0xf7" in one_line_error(dsh("neighbors", "f7", "--model", digits_run), 1)


def test_a_code_is_looked_up_without_torch(run: Path) -> None:
    line = ["neighbors", "0xf0", "0x00", "--radius", 1, "--html", "page.html", "--model", run]
    assert not loaded_by_command(*line) & HEAVY
    assert os.path.exists("page.html")


# Codes


@pytest.mark.parametrize("text", ["0xf", "0xfff", "0x", "0xg0", "0b1111", "0b11110002", "0xf__7", "0xf7_", "0b"])
def test_malformed_codes_get_one_line_with_the_right_form(text: str, run: Path) -> None:
    line = one_line_error(dsh("neighbors", "0xf0", text, "--model", run), 2)
    assert text in line and "8 bits is written 0x and 2 hex digits, or 0b and 8 binary digits" in line


def test_a_code_whose_first_digit_is_too_large() -> None:
    assert parse("0x1f", 5).tolist() == [0b11111000]
    with pytest.raises(UsageError, match="does not fit 5 bits"):
        parse("0x3f", 5)
    with pytest.raises(UsageError, match=r"'0b1{35}\.\.\.' of 300 digits"):
        parse("0b" + "1" * 300, 8)


@given(st.integers(1, 300).flatmap(lambda k: st.tuples(st.just(k), st.integers(0, 2**k - 1))))
def test_a_code_is_read_as_it_is_written(code: tuple[int, int]) -> None:
    bits, number = code
    packed = from_hex([f"{number:0{-(-bits // 4)}x}"], bits)[0]
    hexadecimal, binary = f"{number:0{-(-bits // 4)}x}", f"{number:0{bits}b}"
    for text in ("0x" + hexadecimal, "0X" + hexadecimal.upper(), "0b" + binary, "0b" + "_".join(binary)):
        assert looks_like_code(text) and (parse(text, bits) == packed).all()


def test_paths_do_not_look_like_codes() -> None:
    assert not any(map(looks_like_code, ["0xf7.png", "0x/a", "./0xf7", "f7", "", "0", "x0f7", "0xf7\n"]))


# What bad input gets


def test_bad_input_gets_one_line(run: Path, tmp_path: Path) -> None:
    model = ["--model", run]
    assert "differ in 0 to 8" in one_line_error(dsh("neighbors", "0xf0", "--radius", 9, *model), 2)
    assert "--radius" in one_line_error(dsh("neighbors", "0xf0", "--radius", -1, *model), 2)
    assert "-k" in one_line_error(dsh("neighbors", "0xf0", "-k", 0, *model), 2)
    assert "cat, dog, owl" in one_line_error(dsh("neighbors", "0xf0", "--label", "cow", *model), 2)
    assert "no class 'cow'" in one_line_error(dsh("neighbors", "0xf0", "--not-label", "cow", *model), 2)
    line = one_line_error(dsh("neighbors", "0xf0", "--label", "cat", "--not-label", "cat", *model), 2)
    assert "--not-label takes away all" in line
    line = one_line_error(dsh("neighbors", "0xf0", "--split", "test", "--index", "x", *model), 2)
    assert "contradict" in line
    empty = small_run(tmp_path / "empty", validation=[])
    line = one_line_error(dsh("neighbors", "0xf0", "--split", "validation", "--model", empty), 1)
    assert "no pictures in the validation split" in line
    assert "no run folder" in one_line_error(dsh("neighbors", "0xf0", "--model", "none"), 1)
    assert dsh("neighbors", *model).exit_code == 2


@pytest.mark.parametrize(
    ("search", "fields"),
    [
        (Search(split="test", index="i"), ("index", "split")),
        (Search(relative_to="."), ("relative_to", "html", "index")),
        (Search(relative_to=".", index="i"), ("relative_to", "html", "index")),
        (Search(relative_to=".", html="p.html"), ("relative_to", "html", "index")),
        (Search(relative_to="none", html="p.html", index="i"), ("relative_to",)),
        (Search(label=("cat",), not_label=("dog", "cat")), ("not_label", "label")),
    ],
)
def test_a_search_that_contradicts_itself_names_its_fields(search: Search, fields: tuple[str, ...], run: Path) -> None:
    for refused in (search.check, lambda: search.finder(Run.open(run))):
        with pytest.raises(UsageError) as caught:
            refused()
        assert caught.value.fields == fields and "--" not in str(caught.value)


def test_a_search_finds_what_a_finder_of_its_database_does(run: Path, index: StandIn) -> None:
    opened = Run.open(run)
    for search, database in (
        (Search(k=2), neighbors.split_database(opened)),
        (Search("test", radius=4), neighbors.split_database(opened, "test")),
        (Search(label=("dog", "owl"), not_label=("owl",)), neighbors.split_database(opened, None, ["dog"])),
        (Search(index="i", label=("x",), html="p", relative_to="."), neighbors.index_database("i", opened, ["x"])),
    ):
        search.check()
        finder = search.finder(opened, ["0xf0", "a.png"])
        assert finder.database.folder == (search.relative_to or "") and finder.radius == search.radius
        (mine,), (theirs,) = (one.find(["0xf1"]) for one in (finder, Finder(opened, database, search.k, search.radius)))
        assert isinstance(mine, neighbors.Answer) and isinstance(theirs, neighbors.Answer)
        assert mine.neighbors == theirs.neighbors and len(mine.neighbors) >= 2


def test_malformed_codes_are_refused_before_a_radius_that_cannot_be(run: Path) -> None:
    with pytest.raises(UsageError, match="2 hex digits"):
        Search(radius=9).finder(Run.open(run), ["0xf0", "0xf"])
    with pytest.raises(UsageError, match="`radius` 9"):
        Search(radius=9).finder(Run.open(run), ["0xf0"])


def test_more_than_there_are_gives_all_with_a_notice(run: Path) -> None:
    result = dsh("neighbors", "0xf0", "-k", 8, "--model", run)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 7
    assert "the train split has only 7 to choose from" in result.stderr
    assert dsh("neighbors", "0xf0", "-k", 7, "--model", run).stderr == ""
    assert dsh("neighbors", "0xf0", "-k", 8, "--model", run, "--quiet").stderr == ""


def test_names_that_do_not_fit_the_codes(run: Path) -> None:
    (run / "splits.json").write_text(json.dumps({"train": ["a"]}))
    assert "splits.json is damaged" in one_line_error(dsh("neighbors", "0xf0", "--model", run), 1)


# An index


def test_an_index_is_looked_in_as_a_split_is(run: Path, index: StandIn) -> None:
    options = ["--model", run, "--index", "pictures.lance"]
    answer = dsh_json("neighbors", "0xf0", *options, "-k", 3)
    assert [(n["path"], n["label"], n["distance"]) for n in answer["neighbors"]] == [
        ("/pictures/0.jpg", "x", 0), ("/pictures/2.jpg", "cat", 0), ("/pictures/1.jpg", None, 1)
    ]  # fmt: skip
    assert answer["predicted_label"] == "cat" and answer["same_class_rate"] == 1.0
    assert found("0xf0", *options, "--label", "x") == [("/pictures/0.jpg", 0), ("/pictures/3.jpg", 8)]
    assert found("0xf0", *options, "--not-label", "x", "-k", 1) == [("/pictures/2.jpg", 0)]
    for option in ("--label", "--not-label"):
        line = one_line_error(dsh("neighbors", "0xf0", *options, option, "y"), 2)
        assert "no class 'y' in index pictures.lance; its classes: cat, x" in line
    line = one_line_error(dsh("neighbors", "0xf0", *options, "--label", "x", "--not-label", "x"), 2)
    assert "--not-label takes away all that --label names" in line
    table = dsh("neighbors", "0xf0", *options, "--format", "table").stdout
    assert "among 4 of the index pictures.lance" in table


def test_an_index_of_another_model(run: Path, index: StandIn) -> None:
    index.refuses = True
    line = one_line_error(dsh("neighbors", "0xf0", "--model", run, "--index", "i"), 1)
    assert "model aa" in line and "model bb" in line
    # whose codes may be of another length, which is not what is wrong with the code
    assert "model aa" in one_line_error(dsh("neighbors", "0xf0f0", "--model", run, "--index", "i"), 1)
