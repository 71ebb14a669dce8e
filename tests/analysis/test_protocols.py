"""Which pictures are looked up in which, and what a run may not answer."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dsh_cli.analysis.protocols import (
    Comparison,
    Measured,
    compared,
    evaluate_folders,
    evaluate_run,
    measure,
    require_different,
    sizes,
)
from dsh_cli.analysis.retrieval import evaluate
from dsh_cli.codes.bits import unpack
from dsh_cli.codes.sets import CodeSet
from dsh_cli.config import PROTOCOLS, TrainConfig
from dsh_cli.data import splits
from dsh_cli.data.splits import Splits
from dsh_cli.errors import UsageError
from dsh_cli.runs.run import Run
from tests.support.commands import DIGITS, dsh, dsh_json, one_line_error
from tests.support.runs import edit
from tests.support.values import there


@pytest.fixture(scope="module")
def pooled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits under the protocol cifar10, of 100 queries and 500 pictures to train on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "POOLED_QUERIES", 100)
        patch.setattr(splits, "POOLED_TRAIN", 500)
        out = tmp_path_factory.mktemp("runs") / "pooled"
        result = dsh(*DIGITS, "--protocol", "cifar10", "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def run(digits_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(digits_run, tmp_path / "copy")


def test_what_each_protocol_compares() -> None:
    counts = {"train": 10, "validation": 2, "test": 5, "database": 20}
    expected = {
        "test-vs-train": (5, 10),
        "paper": (5, 5),
        "cifar10": (5, 20),
        "cifar10-1": (5, 32),
        "cifar10-2": (5, 12),
    }
    assert {name: sizes(name, counts) for name in PROTOCOLS} == expected


@pytest.mark.parametrize(("protocol", "database"), [("test-vs-train", 1295), ("paper", 359), ("cifar10-2", 1438)])
def test_what_a_plain_run_answers(digits_run: Path, protocol: str, database: int) -> None:
    answer = dsh_json("evaluate", "--model", digits_run, "--protocol", protocol)
    assert (answer["protocol"], answer["queries"], answer["database"]) == (protocol, 359, database)
    run = Run.open(digits_run)
    queries, items = compared(protocol, run.codes)
    assert (items is None) == (protocol == "paper")
    assert answer["map"] == evaluate(queries, items).map
    if protocol == "cifar10-2":
        labels = [run.codes(split).labels for split in ("train", "validation")]
        assert np.array_equal(there(items).labels, np.concatenate(labels))


def test_train_and_evaluate_give_the_same_map_to_the_last_digit(digits_run: Path, pooled_run: Path) -> None:
    for path in (digits_run, pooled_run):
        run = Run.open(path)
        assert dsh_json("evaluate", "--model", path)["map"] == run.metrics["map"] == evaluate_run(run).map


def test_what_a_pooled_run_answers(pooled_run: Path) -> None:
    run = Run.open(pooled_run)
    assert dict(run.counts) == {"train": 450, "validation": 50, "test": 100, "database": 1197}
    assert {split: len(names) for split, names in run.names().items()} == dict(run.counts)
    answers = {
        name: dsh_json("evaluate", "--model", pooled_run, "--protocol", name) for name in ("cifar10", "cifar10-1")
    }
    assert answers["cifar10"] | {"seconds": 0} == dsh_json("evaluate", "--model", pooled_run) | {"seconds": 0}
    assert [(a["queries"], a["database"]) for a in answers.values()] == [(100, 1197), (100, 1697)]
    assert dsh_json("evaluate", "--model", pooled_run, "--protocol", "test-vs-train")["database"] == 450
    assert "protocol cifar10: 100 queries against 1,197" in dsh("info", pooled_run, "--format", "table").stdout


@pytest.mark.parametrize(
    ("comparison", "fields"),
    [
        (Comparison(query="a"), ("query", "database")),
        (Comparison(database="a", protocol="paper"), ("query", "database")),
        (Comparison("paper", query="a", database="b"), ("query", "protocol")),
        (Comparison("paper", "seen", "a", "b"), ("query", "protocol")),
        (Comparison(among="seen", query="a", database="b"), ("query", "among")),
    ],
)
def test_a_comparison_that_contradicts_itself_names_its_fields(comparison: Comparison, fields: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        comparison.check()
    assert caught.value.fields == fields and "--" not in str(caught.value)


def test_a_run_is_measured_as_asked(digits_run: Path, photos: Path) -> None:
    run = Run.open(digits_run)

    def same(one: Measured, other: Measured) -> bool:
        return replace(one.evaluation, seconds=0) == replace(other.evaluation, seconds=0)

    assert same(measure(run, Comparison()), Measured(evaluate_run(run)))
    asked = measure(run, Comparison("paper", "all", at=(5, 9, 5)))
    assert same(asked, Measured(evaluate_run(run, "paper", (5, 9))))
    assert list(asked.evaluation.map_at) == [5, 9] and asked.skipped == ()
    (photos / "plum" / "broken.png").write_text("no picture")
    of_folders = measure(run, Comparison(query=str(photos), database=str(photos), at=(3,)))
    assert same(of_folders, evaluate_folders(run, str(photos), str(photos), (3,)))
    assert [Path(picture.path).name for picture in of_folders.skipped] == ["broken.png"]
    with pytest.raises(UsageError, match="go together"):
        measure(run, Comparison(query=str(photos)))


def test_a_run_and_a_link_to_it_are_one(digits_run: Path, run: Path) -> None:
    Path("link").symlink_to(digits_run)
    require_different([Run.open(digits_run), Run.open(run)])
    with pytest.raises(UsageError, match=f"`model` {digits_run} and `model` link are one run"):
        require_different([Run.open(digits_run), Run.open(run), Run.open("link")])


def test_a_pooled_run_can_be_taken_again_and_resumed(
    pooled_run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(splits, "POOLED_QUERIES", 100)
    monkeypatch.setattr(splits, "POOLED_TRAIN", 500)
    dsh_json("train", "--like", pooled_run, "--epochs", 2, "--out", tmp_path / "again", "--quiet")
    again = Run.open(tmp_path / "again")
    assert (again.config.protocol, again.names()) == ("cifar10", Run.open(pooled_run).names())


def test_queries_that_were_trained_on_are_refused(digits_run: Path, pooled_run: Path) -> None:
    for protocol in ("cifar10", "cifar10-1"):
        line = one_line_error(dsh("evaluate", "--model", digits_run, "--protocol", protocol), 2)
        assert "has trained on most of them" in line
        assert f"dsh train --like {digits_run} --protocol {protocol}" in line
    for protocol in ("paper", "cifar10-2"):
        line = one_line_error(dsh("evaluate", "--model", pooled_run, "--protocol", protocol), 2)
        assert "has trained on some of them" in line
        assert f"dsh train --like {pooled_run} --protocol {protocol}" in line


def test_names_in_two_splits_are_found_out(run: Path) -> None:
    names = json.loads((run / "splits.json").read_text())
    names["test"][3] = names["train"][5]
    edit(run / "splits.json", **names)
    line = one_line_error(dsh("evaluate", "--model", run), 2)
    assert "trained on 1 of the 359 queries" in line and names["train"][5] in line


def test_runs_without_splits_say_what_is_missing(run: Path, pooled_run: Path, tmp_path: Path) -> None:
    (run / "codes" / "train.safetensors").unlink()
    assert "train.safetensors is missing" in one_line_error(dsh("evaluate", "--model", run), 1)
    assert dsh("evaluate", "--model", run, "--protocol", "paper").exit_code == 0
    (run / "splits.json").unlink()
    assert "splits.json is missing" in one_line_error(dsh("evaluate", "--model", run, "--protocol", "paper"), 1)
    copy = shutil.copytree(pooled_run, tmp_path / "pooled")
    (copy / "codes" / "database.safetensors").unlink()
    assert "database.safetensors is missing" in one_line_error(dsh("evaluate", "--model", copy), 1)


def test_runs_from_before_there_were_protocols_load(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())["config"]
    del config["protocol"]
    edit(run / "config.json", config=config)
    assert dsh_json("evaluate", "--model", run)["protocol"] == "test-vs-train"
    edit(run / "config.json", config=config | {"protocol": "mine"})
    assert "protocol is 'mine'" in one_line_error(dsh("evaluate", "--model", run), 1)


@pytest.fixture(scope="module")
def held_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits that has not seen three of their classes."""
    out = tmp_path_factory.mktemp("runs") / "held"
    result = dsh(*DIGITS, "--hold-out-classes", 3, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


def test_classes_held_out_are_in_no_picture_trained_on(held_run: Path, digits_run: Path) -> None:
    run = Run.open(held_run)
    unseen = set(run.codes("unseen").labels)
    assert len(unseen) == 3
    for split in ("train", "validation"):
        assert set(run.codes(split).labels) == set(range(10)) - unseen
    assert set(run.codes("test").labels) == set(range(10))
    names = [name for split in run.counts for name in run.names()[split]]
    plain = Run.open(digits_run)
    # None twice, and lost are only validation pictures of those classes, so that all classes have as many.
    lost = {name for name, label in zip(plain.names()["validation"], plain.codes("validation").labels, strict=True)
            if label in unseen}  # fmt: skip
    assert sorted(names) == sorted({name for split in plain.names().values() for name in split} - lost)
    assert not unpack(there(run.centers())[sorted(unseen)], 8).any()
    seen = there(run.centers())[sorted(set(range(10)) - unseen)]
    assert len({row.tobytes() for row in seen}) == 7


@pytest.mark.parametrize("protocol", ["test-vs-train", "paper"])
def test_seen_and_unseen_classes_are_measured_apart(held_run: Path, protocol: str) -> None:
    run = Run.open(held_run)
    unseen = np.unique(run.codes("unseen").labels)
    test, items = run.codes("test"), [run.codes(split) for split in ("train", "unseen")]
    for classes in ("seen", "unseen", "all"):
        answer = dsh_json("evaluate", "--model", held_run, "--protocol", protocol, "--classes", classes)
        wanted = {"seen": set(range(10)) - set(unseen), "unseen": set(unseen), "all": set(range(10))}[classes]

        def of(codes: CodeSet, wanted: set[int] = wanted) -> CodeSet:
            chosen = np.isin(codes.labels, list(wanted))
            return CodeSet(8, codes.packed[chosen], codes.labels[chosen], codes.classes, ())

        parts = [of(part) for part in items]
        packed, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("packed", "labels"))
        database = None if protocol == "paper" else CodeSet(8, packed, labels, test.classes, ())
        assert answer["classes"] == classes
        assert answer["map"] == evaluate(of(test), database).map
        assert {score["label"] for score in answer["per_class"] if score["map"] is not None} == {
            test.classes[label] for label in wanted
        }
    assert answer["database"] == (359 if protocol == "paper" else len(items[0]) + len(items[1]))
    if protocol == "test-vs-train":
        assert answer["map"] == run.metrics["map"]


def test_the_seed_draws_the_classes_held_out(splits_held: Callable[[int], Splits]) -> None:
    drawn = {seed: frozenset(there(splits_held(seed).unseen).labels) for seed in (0, 1, 2, 3)}
    assert drawn[0] == frozenset(there(splits_held(0).unseen).labels)
    assert len(set(drawn.values())) > 1


@pytest.fixture
def splits_held() -> Callable[[int], Splits]:
    return lambda seed: splits.load_splits(TrainConfig(data="digits", seed=seed, hold_out_classes=4))


def test_what_cannot_be_held_out_or_measured_is_refused(digits_run: Path, held_run: Path, photos: Path) -> None:
    line = one_line_error(dsh("train", photos, "--hold-out-classes", 2, "--quiet"), 2)
    assert "has 3 classes, and two must be left" in line and "hold out 1 at most" in line
    line = one_line_error(dsh("train", "digits", "--hold-out-classes", 2, "--protocol", "cifar10"), 2)
    assert line.endswith("contradict each other; take --protocol test-vs-train or paper or cifar10-2")
    line = one_line_error(dsh("evaluate", "--model", held_run, "--protocol", "cifar10"), 2)
    assert line.endswith("--protocol cifar10 --hold-out-classes 0")  # which can be followed
    assert "--hold-out-classes -1" in one_line_error(dsh("train", "digits", "--hold-out-classes", -1), 2)
    line = one_line_error(dsh("evaluate", "--model", digits_run, "--classes", "unseen"), 2)
    assert "was trained on all classes" in line and "--hold-out-classes" in line
    line = one_line_error(dsh("table", "--model", digits_run, "--split", "unseen"), 2)
    assert line == f"error: --split unseen: {digits_run} has train, validation, test"
    arguments = ["--query", photos, "--database", photos, "--classes", "seen"]
    assert "contradict" in one_line_error(dsh("evaluate", "--model", held_run, *arguments), 2)


def test_classes_held_out_are_named(held_run: Path) -> None:
    unseen = [str(label) for label in sorted(set(Run.open(held_run).codes("unseen").labels.tolist()))]
    assert list(Run.open(held_run).held_out()) == unseen
    shown = " ".join(dsh("info", held_run, "--format", "table").stdout.split())
    assert f"held out of the training: {', '.join(unseen)}" in shown and "(of all 10 classes, 3 held out)" in shown
    assert "3 of 10 classes were held out" in dsh("evaluate", "--model", held_run).stderr
    rows = dsh_json("table", "--model", held_run, "--split", "unseen")["classes"]
    assert [row["label"] for row in rows if row["count"]] == unseen


def test_a_folder_holds_classes_out_too(photos: Path, tmp_path: Path) -> None:
    arguments = ["--hold-out-classes", 1, "--bits", 4, "--epochs", 2, "--batch-size", 4, "--quiet", "--no-tensorboard"]
    result = dsh("train", photos, *arguments, "--out", "held", "--json")
    assert result.exit_code == 0, result.stderr
    run = Run.open("held")
    assert len(set(run.codes("unseen").labels)) == 1 and run.counts["unseen"] + run.counts["train"] < 18
    table = dsh("evaluate", "--model", "held", "--classes", "unseen", "--format", "table").stdout
    assert "unseen classes only" in table
