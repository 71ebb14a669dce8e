"""`dsh evaluate` as a user meets it: three forms, several runs, folders, the picture, and bad input."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsh_cli.analysis.retrieval import Evaluation, evaluate, spread
from dsh_cli.codes.sets import CodeSet
from dsh_cli.data.dataset import Dataset
from dsh_cli.runs.run import Run
from dsh_cli.show import figures
from dsh_cli.show.views.evaluate import evaluated, evaluated_runs
from tests.support.codes import code_set
from tests.support.commands import DIGITS, dsh, dsh_json, one_line_error
from tests.support.runs import edit
from tests.support.values import in_memory, there

CONTRACT = [
    "protocol", "classes", "bits", "queries", "database", "map", "map_best", "map_worst", "map_at", "precision_at",
    "radius", "pr_curve", "per_class", "health", "seconds",
]  # fmt: skip


@pytest.fixture(scope="module")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another seed of the small run."""
    out = tmp_path_factory.mktemp("runs") / "other"
    assert dsh(*DIGITS, "--seed", 1, "--out", out).exit_code == 0
    return out


@pytest.fixture
def digits_folders(tmp_path: Path, digits_run: Path) -> Dataset:
    """Test pictures of the run as files: 12 to look up, 40 to look them up in, by class."""
    from dsh_cli import TrainConfig, load_splits

    test = load_splits(TrainConfig(data="digits")).test
    for i in range(52):
        name = tmp_path / ("query" if i < 12 else "database") / test.classes[test.labels[i]] / f"{i}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(in_memory(test)[i, ..., 0]).save(name)
    return test


def test_evaluate_answers_with_its_contract(digits_run: Path) -> None:
    answer = dsh_json("evaluate", "--model", digits_run)
    assert list(answer) == CONTRACT
    assert (answer["protocol"], answer["bits"], answer["queries"], answer["database"]) == (
        "test-vs-train", 8, 359, 1295
    )  # fmt: skip
    assert answer["map_worst"] <= answer["map"] <= answer["map_best"]
    assert list(answer["map_at"]) == ["1000"] and list(answer["precision_at"]) == ["1", "10", "100"]
    assert list(answer["radius"]) == ["0", "1", "2"] and list(answer["radius"]["0"]) == ["precision", "recall", "empty"]
    assert [list(point) for point in answer["pr_curve"]] == [["radius", "precision", "recall"]] * 9
    assert [row["label"] for row in answer["per_class"]] == list("0123456789")
    assert list(answer["health"]) == ["bit_balance", "bit_correlation", "distinct", "largest_share"]
    assert len(answer["health"]["bit_balance"]) == 8 and answer["seconds"] > 0
    ks = dsh_json("evaluate", "--model", digits_run, "--at", 5, "--at", 50)["map_at"]
    assert list(ks) == ["5", "50"] and all(0 < value <= 1 for value in ks.values())


def test_self_matches_are_excluded_and_said_so(digits_run: Path) -> None:
    result = dsh("evaluate", "--model", digits_run, "--protocol", "paper", "--format", "table")
    assert "protocol paper: 359 queries, 359 database, self-matches excluded" in result.stderr
    assert "359 pictures, each against the 358 others" in result.stdout
    assert "self-matches are excluded" in result.stdout
    assert dsh("evaluate", "--model", digits_run, "--quiet").stderr == ""
    assert "self" not in dsh("evaluate", "--model", digits_run).stderr


def small() -> Evaluation:
    """Four queries against five codes of 4 bits, small enough to check by hand.

    AP of the first: a tie of two, one relevant, then a relevant third: (3/4 + 2/3) / 2 = .7083; .7083 as well of the
    second; of the third (1 + 1 + (3/4 + 3/5) / 2) / 3 = .8917; the fourth has nothing relevant.
    """
    queries = code_set(["0", "1", "f", "f"], [0, 0, 1, 2], bits=4)
    return evaluate(queries, code_set(["0", "0", "f", "e", "8"], [0, 1, 1, 1, 0], bits=4), at=(2,), protocol="paper")


def test_golden_table_at_width_80(capsys: pytest.CaptureFixture[str]) -> None:
    from dsh_cli.cli.shared import show

    show(evaluated(small(), "runs/mine"), "table")
    expected = """\
runs/mine
protocol paper, 4 bits: 4 queries against 5 pictures

mAP        0.5771, tie-aware; 0.5083 to 0.6458 by the order of ties
mAP@2      0.4375
precision  0.5000 at 1, 0.3500 at 10, 0.3500 at 100

 radius   precision   recall   queries with nothing so near
 ──────────────────────────────────────────────────────────
      0      0.3750   0.2083         1 (25.0%), precision 0
      1      0.5417   0.5417                              0
      2      0.5833   0.6667                              0


 class      mAP
 ──────────────
 c       0.0000
 a       0.7083
 b       0.8917

codes: 4 distinct among 5; the most common is that of 40.0%
bits: 1 in 20% to 60% of pictures; largest correlation of two 1.00
"""
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown == expected.splitlines()


def test_of_classes_that_are_equally_bad_ten_comes_after_two(capsys: pytest.CaptureFixture[str]) -> None:
    from dsh_cli.cli.shared import show

    one = small()
    scores = tuple(replace(one.per_class[0], label=f"item {number}", map=0.5) for number in (10, 9, 2, 1))
    show(evaluated(replace(one, per_class=scores), "runs/mine"), "table")
    assert re.findall(r"^ (item \d+) ", capsys.readouterr().out, re.M) == ["item 1", "item 2", "item 9", "item 10"]


def test_golden_plain_and_json_forms() -> None:
    view = evaluated(replace(small(), seconds=0.25), "runs/mine")
    lines = dict(line.split("\t") for line in view.plain())
    assert list(lines)[:9] == [
        "protocol", "classes", "bits", "queries", "database", "map", "map_best", "map_worst", "map_at.2"
    ]  # fmt: skip
    record = json.loads(view.json)
    assert list(record) == CONTRACT
    assert lines["precision_at.10"] == repr(record["precision_at"]["10"]) == "0.35"
    assert lines["radius.0.empty"] == "1" and lines["pr_curve.4.recall"] == "0.75"
    assert lines["per_class.c"] == "0.0" and lines["health.bit_balance.0"] == "0.6" and lines["seconds"] == "0.25"


def test_golden_tables_of_several_runs(capsys: pytest.CaptureFixture[str]) -> None:
    from dsh_cli.cli.shared import show

    one = small()
    two = replace(one, map=one.map + 0.1)
    runs = {"runs/one": one, "runs/two": two}
    view = evaluated_runs(runs, spread([one, two]))
    show(view, "table")
    expected = """\
protocol paper, 4 bits: 4 queries against 5 pictures

 over 2 runs                   mean      std
 ───────────────────────────────────────────
 mAP                         0.6271   0.0707
 mAP, best order of ties     0.6458   0.0000
 mAP, worst order of ties    0.5083   0.0000
 mAP@2                       0.4375   0.0000
 precision at 1              0.5000   0.0000
 precision at 10             0.3500   0.0000
 precision at 100            0.3500   0.0000
 precision within 0          0.3750   0.0000
 recall within 0             0.2083   0.0000
 nothing within 0, queries      1.0      0.0
 precision within 1          0.5417   0.0000
 recall within 1             0.5417   0.0000
 nothing within 1, queries      0.0      0.0
 precision within 2          0.5833   0.0000
 recall within 2             0.6667   0.0000
 nothing within 2, queries      0.0      0.0

std: sample standard deviation, n - 1

 run           mAP    worst     best    mAP@2      P@1    P@100
 ──────────────────────────────────────────────────────────────
 runs/one   0.5771   0.5083   0.6458   0.4375   0.5000   0.3500
 runs/two   0.6771   0.5083   0.6458   0.4375   0.5000   0.3500

"""
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown == expected.splitlines()
    assert f"map\t{view.record['mean']['map']}\t{view.record['std']['map']}" in view.plain()
    assert f"runs/two\tmap\t{two.map}" in view.plain()


def test_several_runs_have_a_mean_and_a_deviation(digits_run: Path, other_run: Path) -> None:
    answer = dsh_json("evaluate", "--model", digits_run, "--model", other_run)
    assert list(answer) == ["protocol", "classes", "bits", "queries", "database", "mean", "std", "runs"]
    alone = [dsh_json("evaluate", "-m", run) for run in (digits_run, other_run)]
    values = [one["map"] for one in alone]
    assert answer["mean"]["map"] == pytest.approx(np.mean(values), abs=1e-15)
    assert answer["std"]["map"] == pytest.approx(np.std(values, ddof=1), abs=1e-15)
    assert answer["mean"]["radius"]["2"].keys() == {"precision", "recall", "empty"}
    assert [run["run"] for run in answer["runs"]] == [str(digits_run), str(other_run)]
    assert [run["map"] for run in answer["runs"]] == values
    assert list(answer["runs"][0]) == ["run", *CONTRACT]


def test_runs_that_do_not_go_together_are_refused(digits_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    edit(copy / "config.json", classes=[f"digit {i}" for i in range(10)])
    assert "differ in their classes" in one_line_error(dsh("evaluate", "-q", "-m", digits_run, "-m", copy), 2)
    dsh_json(*DIGITS[:2], "--bits", 9, "--epochs", 1, "--out", tmp_path / "nine", "--quiet", "--no-tensorboard")
    line = one_line_error(dsh("evaluate", "-q", "-m", digits_run, "-m", tmp_path / "nine"), 2)
    assert "differ in bits: 8 and 9" in line


def test_a_run_given_twice_is_refused(digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(digits_run)
    for again in (digits_run, f"{digits_run}/", tmp_path / "link"):
        line = one_line_error(dsh("evaluate", "-q", "-m", digits_run, "-m", again), 2)
        assert "are one run; give each run once" in line


def test_the_picture_has_a_curve_for_each_run(digits_run: Path, other_run: Path, tmp_path: Path) -> None:
    runs = ["--model", digits_run, "--model", other_run]
    dsh_json("evaluate", *runs, "--pr-curve", tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (960, 720)
    evaluations = {str(path): evaluate(*_compared(path)) for path in (digits_run, other_run)}
    (axes,) = figures.precision_recall(evaluations).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")
    assert "8 bits" in axes.get_title() and "359 queries, 1,295 pictures" in axes.get_title()
    assert len(axes.lines) == len(there(axes.get_legend()).get_texts()) == 2
    for line, of_run in zip(axes.lines, evaluations.values(), strict=True):
        points = [(within.recall, within.precision) for within in of_run.curve]
        assert np.array_equal(line.get_xydata(), points) and len(points) == 9


def _compared(path: Path) -> tuple[CodeSet, CodeSet]:
    run = Run.open(path)
    return run.codes("test"), run.codes("train")


def test_names_of_runs_are_no_formulas(tmp_path: Path) -> None:
    figures.save(figures.precision_recall({r"run $\frac$ _x": small()}), str(tmp_path / "curve.svg"))
    assert (tmp_path / "curve.svg").stat().st_size > 1000


def test_a_picture_that_cannot_be_saved_is_refused_before_anything_is_measured(
    digits_run: Path, tmp_path: Path
) -> None:
    line = one_line_error(dsh("evaluate", "-m", "no such run", "--pr-curve", "curve.docx"), 2)
    assert "must end in .png" in line
    line = one_line_error(dsh("evaluate", "-m", "no such run", "--pr-curve", tmp_path / "none" / "curve.png"), 2)
    assert "there is no folder" in line
    (tmp_path / "folder.png").mkdir()
    line = one_line_error(dsh("evaluate", "-q", "-m", digits_run, "--pr-curve", tmp_path / "folder.png"), 1)
    assert "cannot write" in line


# Two folders


def test_two_labelled_folders(digits_run: Path, digits_folders: Dataset) -> None:
    result = dsh("evaluate", "--query", "query", "--database", "database", "--model", digits_run, "--json")
    answer = json.loads(result.stdout)
    assert (answer["protocol"], answer["queries"], answer["database"]) == ("folders", 12, 40)
    assert "trained on copies of these pictures is not known" in result.stderr
    codes = replace(Run.open(digits_run).codes("test"), classes=tuple("0123456789"))
    parts = [replace(codes, packed=codes.packed[p], labels=codes.labels[p]) for p in (slice(12), slice(12, 52))]
    assert answer["map"] == pytest.approx(evaluate(*parts).map, abs=1e-12)


def test_one_folder_against_itself_leaves_self_matches_out(digits_run: Path, digits_folders: Dataset) -> None:
    result = dsh("evaluate", "--query", "database", "--database", "./database/", "--model", digits_run, "--json")
    answer = json.loads(result.stdout)
    assert (answer["queries"], answer["database"]) == (40, 40) and "self-matches excluded" in result.stderr


def test_classes_are_matched_by_name_and_one_missing_is_told(
    digits_run: Path, digits_folders: Dataset, tmp_path: Path
) -> None:
    missing = next((tmp_path / "query").iterdir()).name
    shutil.rmtree(tmp_path / "database" / missing)
    result = dsh("evaluate", "--query", "query", "--database", "database", "--model", digits_run, "--json")
    assert result.exit_code == 0
    assert f"no picture in the database is of class {missing}; queries of it score 0" in result.stderr
    per_class = {row["label"]: row["map"] for row in json.loads(result.stdout)["per_class"]}
    assert per_class[missing] == 0


def test_unreadable_pictures_are_reported_and_the_others_go_on(
    digits_run: Path, digits_folders: Dataset, tmp_path: Path
) -> None:
    label = next((tmp_path / "query").iterdir())
    (label / "broken.png").write_text("no picture")
    result = dsh("evaluate", "--query", "query", "--database", "database", "--model", digits_run, "--json")
    assert result.exit_code == 1 and "broken.png: not a picture" in result.stderr
    assert json.loads(result.stdout)["queries"] == 12


def test_folders_that_overlap_or_were_trained_on_are_refused(photos: Path, tmp_path: Path) -> None:
    dsh_json("train", photos, "--epochs", 1, "--out", tmp_path / "run", "--quiet", "--no-tensorboard")
    (tmp_path / "link").symlink_to(photos)
    for query in (photos, tmp_path / "link", f"{tmp_path}/run/../photos"):
        line = one_line_error(dsh("evaluate", "--query", query, "--database", query, "-m", tmp_path / "run"), 2)
        assert "has trained on 14 of the 18 queries" in line
    other = shutil.copytree(photos, tmp_path / "other")
    shutil.copytree(photos, other / "more")  # which holds the classes one level down: all of class "more"
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "apple").symlink_to(other / "apple")
    line = one_line_error(dsh("evaluate", "--query", other, "--database", tmp_path / "both", "-m", tmp_path / "run"), 2)
    assert "are in both --query and --database" in line


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "x"], "--query and --database go together"),
        (["--database", "x"], "--query and --database go together"),
        (["--query", "x", "--database", "y", "--protocol", "paper"], "contradict"),
        (["--query", "none", "--database", "none"], "no folder at none"),
        (["--protocol", "cifar100"], "cifar100"),
        (["--at", "0"], "--at"),
    ],
)
def test_impossible_requests(arguments: list[str], message: str, digits_run: Path) -> None:
    assert message in one_line_error(dsh("evaluate", "--model", digits_run, *arguments), 2)


@pytest.mark.parametrize("k", [5000, 10**30])
def test_k_larger_than_the_database_takes_all_and_says_so(k: list[int], digits_run: Path) -> None:
    result = dsh("evaluate", "--model", digits_run, "--at", k, "--json")
    answer = json.loads(result.stdout)
    assert answer["map_at"][str(k)] == answer["map"]
    assert f"mAP@{k} takes all 1,295 pictures there are" in result.stderr


def test_an_unfinished_run_says_how_to_go_on(digits_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    edit(copy / "metrics.json", finished=False)
    line = one_line_error(dsh("evaluate", "-q", "-m", copy), 1)
    assert "is unfinished" in line and f"dsh train --resume {copy}" in line


def test_without_model_the_environment_names_one(
    digits_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "train one with: dsh train --bits 8" in one_line_error(dsh("evaluate"), 1)
    copy = shutil.copytree(digits_run, tmp_path / "my run")
    monkeypatch.setenv("DSH_MODEL", str(copy))
    assert dsh_json("evaluate")["bits"] == 8
