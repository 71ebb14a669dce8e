"""`dsh evaluate`: protocols, folders, several runs, and what it refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import DIGITS, dsh, dsh_json, dsh_process, one_line_error
from test_cli import golden_run

from dsh_cli import TrainConfig, data, load_splits
from dsh_cli.checkpoint import Run
from dsh_cli.errors import DataError

FIELDS = [
    "protocol", "bits", "queries", "database", "map", "map_best", "map_worst", "map_at", "precision_at", "radius",
    "pr_curve", "per_class", "health", "seconds",
]  # fmt: skip


@pytest.fixture
def small_draw(monkeypatch):
    """The drawn protocols at the size of digits."""
    monkeypatch.setattr(data, "DRAWN", {"cifar10": (100, 500), "cifar10-1": (100, 500)})


def test_it_answers_with_its_contract_and_with_the_map_of_the_training(digits_run):
    answer = dsh_json("evaluate", "--model", digits_run)
    assert list(answer) == FIELDS
    assert answer["map"] == dsh_json("info", digits_run)["metrics"]["map"]  # to the last digit
    assert answer["map_worst"] <= answer["map"] <= answer["map_best"]
    assert (answer["protocol"], answer["queries"], answer["database"]) == ("test-vs-train", 359, 1295)
    assert list(answer["map_at"]) == ["1000"] and list(answer["precision_at"]) == ["1", "10", "100"]
    assert list(answer["radius"]) == ["0", "1", "2"] and list(answer["radius"]["0"]) == ["precision", "recall", "empty"]
    assert [point["radius"] for point in answer["pr_curve"]] == list(range(9))
    assert answer["pr_curve"][8]["recall"] == 1
    assert [score["label"] for score in answer["per_class"]] == list("0123456789")
    assert set(answer["health"]) == {"distinct_codes", "largest_share", "largest_correlation", "bit_balance"}


def test_the_papers_protocol_ranks_test_pictures_among_themselves(digits_run):
    answer = dsh_json("evaluate", "--model", digits_run, "--protocol", "paper", "--at", 5, "--at", 50)
    assert (answer["queries"], answer["database"]) == (359, 358)
    assert list(answer["map_at"]) == ["5", "50"]
    table = dsh("evaluate", "--model", digits_run, "--protocol", "paper", "--format", "table").stdout
    assert "359 queries against the others, none against itself" in table


def test_all_others_are_searched_under_cifar10_2(digits_run):
    answer = dsh_json("evaluate", "--model", digits_run, "--protocol", "cifar10-2")
    assert (answer["queries"], answer["database"]) == (359, 1295 + 143)


@pytest.mark.parametrize("protocol", ["cifar10", "cifar10-1"])
def test_drawn_protocols_split_the_whole_set(protocol, small_draw):
    splits = load_splits(TrainConfig(data="digits", protocol=protocol, seed=3))
    names = {split: set(part) for split, part in splits.names().items()}
    assert len(names["test"]) == 100 and len(names["train"]) == 500
    assert not names["test"] & (names["train"] | names["database"] | names["validation"])
    assert len(names["database"]) == (1197 if protocol == "cifar10" else 1697)
    assert names["train"].isdisjoint(names["database"]) == (protocol == "cifar10")
    assert not names["validation"] & names["train"] and names["validation"] <= names["database"]
    assert np.bincount(splits.test.labels).min() >= 9  # a tenth of each class
    again, other = (load_splits(TrainConfig(data="digits", protocol=protocol, seed=seed)) for seed in (3, 4))
    assert again.names() == splits.names() != other.names()


def test_a_run_trained_for_a_drawn_protocol_is_measured_under_it(small_draw, tmp_path):
    arguments = [*DIGITS, "--epochs", 3, "--out", tmp_path / "run", "--protocol", "cifar10"]
    trained = dsh_json(*arguments)
    answer = dsh_json("evaluate", "--model", tmp_path / "run")
    assert (answer["protocol"], answer["queries"], answer["database"]) == ("cifar10", 100, 1197)
    assert answer["map"] == trained["map"]
    assert len(Run.open(tmp_path / "run").codes("database")) == 1197
    plain = dsh_json("evaluate", "--model", tmp_path / "run", "--protocol", "test-vs-train")
    assert plain["database"] == 500
    for protocol in ("paper", "cifar10-2", "cifar10-1"):
        line = one_line_error(dsh("evaluate", "--model", tmp_path / "run", "--protocol", protocol), 2)
        assert f"cannot answer --protocol {protocol}" in line and f"--protocol {protocol}" in line.split("dsh train")[1]


def test_a_protocol_whose_queries_were_trained_on_is_refused(digits_run):
    line = one_line_error(dsh("evaluate", "--model", digits_run, "--protocol", "cifar10"), 2)
    assert "its training pictures would be among the queries" in line and f"--like {digits_run}" in line


def test_a_set_too_small_for_a_protocol_is_refused():
    with pytest.raises(DataError, match="1,000 queries and 5,000 training pictures, .* has 1,797 pictures"):
        load_splits(TrainConfig(data="digits", protocol="cifar10"))


def test_two_labelled_folders(photos, tmp_path):
    dsh_json("train", photos, "--bits", 8, "--epochs", 20, "--out", tmp_path / "run", "-q", "--no-tensorboard")
    shutil.copytree(photos, tmp_path / "asked")
    (tmp_path / "asked" / "plum").rename(tmp_path / "asked" / "cherry")  # a class that is not there to be found
    answer = dsh_json(
        "evaluate", "--model", tmp_path / "run", "--query", tmp_path / "asked", "--database", photos, "--quiet"
    )
    assert (answer["queries"], answer["database"]) == (18, 18)
    scores = {score["label"]: score["map"] for score in answer["per_class"]}
    assert scores["cherry"] == 0 and scores["plum"] is None and scores["apple"] > 0.5
    noted = dsh("evaluate", "--model", tmp_path / "run", "--query", photos, "--database", photos)
    assert "whether the run has trained on these pictures is not known" in noted.stderr


def test_several_runs_give_mean_and_deviation(digits_run, tmp_path):
    dsh_json(*DIGITS, "--epochs", 3, "--seed", 1, "--out", tmp_path / "other")
    answer = dsh_json("evaluate", "-m", digits_run, "-m", tmp_path / "other")
    one, two = (run["map"] for run in answer["runs"])
    assert answer["mean"]["map"] == pytest.approx((one + two) / 2)
    assert answer["std"]["map"] == pytest.approx(abs(one - two) / 2**0.5)
    assert [run["run"] for run in answer["runs"]] == [str(digits_run), str(tmp_path / "other")]
    shown = dsh("evaluate", "-m", digits_run, "-m", tmp_path / "other", "--format", "table").stdout
    assert "standard deviation" in shown and f"{answer['mean']['map']:.4f}" in shown
    lines = dsh("evaluate", "-m", digits_run, "-m", tmp_path / "other").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(digits_run), str(tmp_path / "other"), "mean", "std"]


def test_runs_that_cannot_be_compared_are_refused(digits_run, tmp_path):
    dsh_json(*DIGITS, "--bits", 9, "--epochs", 1, "--out", tmp_path / "nine")
    line = one_line_error(dsh("evaluate", "-m", digits_run, "-m", tmp_path / "nine"), 2)
    assert "8 bits" in line and "9: evaluate them one by one" in line


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_curves_are_drawn(digits_run, tmp_path, suffix):
    out = tmp_path / f"curves.{suffix}"
    result = dsh("evaluate", "-m", digits_run, "--pr-curve", out)
    assert result.exit_code == 0 and f"drew {out}" in result.stderr
    assert out.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    assert [file.name for file in tmp_path.glob("curves*")] == [out.name]


def test_the_curve_has_a_point_for_each_radius_and_a_legend(digits_run, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from dsh_cli.evaluation import evaluate
    from dsh_cli.plots import pr_curves

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (drawn.append(figure), open(path, "w").close()))
    result = evaluate(Run.open(digits_run)).retrieval
    pr_curves({"one": result, "two": replace(result, map=0.5)}, str(tmp_path / "x.png"))
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")
    recall, precision = axes.lines[0].get_data()
    kept = [look for look in result.lookups if look.empty < result.queries]
    assert list(recall) == [look.recall for look in kept] and list(precision) == [look.precision for look in kept]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"one, 8 bits, mAP {result.map:.4f}", "two, 8 bits, mAP 0.5000"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (["--query", "x"], "--query and --database go together", 2),
        (["--query", "x", "--database", "y", "--protocol", "paper"], "give one", 2),
        (["--query", "x", "--database", "y"], "no folder or CSV file at x", 1),
        (["--at", 0], "--at 0", 2),
        (["--pr-curve", "curve.txt"], "ends with .png, .svg or .pdf", 2),
        (["--pr-curve", "none/curve.png"], "cannot write none/curve.png", 1),
    ],
)
def test_bad_input(digits_run, options, message, code):
    assert message in one_line_error(dsh("evaluate", "-q", "--model", digits_run, *options), code)


def test_an_unfinished_run_says_how_to_go_on(digits_run, tmp_path):
    copy = shutil.copytree(digits_run, tmp_path / "copy")
    (copy / "metrics.json").unlink()
    assert "--resume" in one_line_error(dsh("evaluate", "--model", copy), 1)


def test_golden_report_at_width_80(tmp_path):
    codes = [(0, "f0")] * 8 + [(0, "f1"), (0, "e0")] + [(1, "0f")] * 10
    model = golden_run(tmp_path, ["cat", "dog"], 8, codes)
    source = tmp_path / "golden" / "codes" / "test.safetensors"
    shutil.copy(source, source.with_name("train.safetensors"))
    for name in ("config.json", "metrics.json"):
        content = json.loads((tmp_path / "golden" / name).read_text())
        content["counts"] = {"test": 20, "train": 20}
        (tmp_path / "golden" / name).write_text(json.dumps(content))
    shown = dsh("evaluate", "--model", model, "--protocol", "paper", "--format", "table").stdout
    lines = [line.rstrip() for line in shown.splitlines()]
    expected = """\
golden: 8 bits
protocol   paper: 20 queries against the others, none against itself
mAP        1.0000, ties in expectation; 1.0000 to 1.0000 by their order
mAP@1,000  1.0000
precision  1.0000 at 1, 0.9000 at 10, 0.4737 at 100
codes      4 distinct; the most common has 50.0% of the pictures
bits       1 in 45% to 55% of pictures (50% uses a bit best); largest
           correlation 1.00

 radius   precision   recall   empty balls
 ─────────────────────────────────────────
      0      0.9000   0.8111             2
      1      1.0000   0.9889             0
      2      1.0000   1.0000             0


 class   queries      mAP
 ────────────────────────
 cat          10   1.0000
 dog          10   1.0000
"""
    assert lines[: len(expected.splitlines())] == expected.splitlines()


def test_neither_torch_nor_numba_is_needed_for_a_small_set(digits_run):
    code = (
        "import sys; from dsh_cli.cli import app\n"
        f"try: app(['evaluate', '--model', {str(digits_run)!r}])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'torch', 'numba', 'matplotlib'} & set(sys.modules)), 'end')"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1].strip() == "end"
    assert dsh_process("evaluate", "--model", digits_run).returncode == 0
