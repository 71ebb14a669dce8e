"""Which pictures are looked up in which, and what a run may not answer."""

import json
import shutil

import numpy as np
import pytest
from conftest import DIGITS, dsh, dsh_json, one_line_error
from test_checkpoint import edit

from dsh_cli import data
from dsh_cli.checkpoint import Run
from dsh_cli.config import PROTOCOLS
from dsh_cli.protocols import compared, evaluate_run, sizes
from dsh_cli.retrieval import evaluate


@pytest.fixture(scope="module")
def pooled_run(tmp_path_factory):
    """A run on digits under the protocol cifar10, of 100 queries and 500 pictures to train on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "POOLED_QUERIES", 100)
        patch.setattr(data, "POOLED_TRAIN", 500)
        out = tmp_path_factory.mktemp("runs") / "pooled"
        result = dsh(*DIGITS, "--protocol", "cifar10", "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture
def run(digits_run, tmp_path):
    return shutil.copytree(digits_run, tmp_path / "copy")


def test_what_each_protocol_compares():
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
def test_what_a_plain_run_answers(digits_run, protocol, database):
    answer = dsh_json("evaluate", "--model", digits_run, "--protocol", protocol)
    assert (answer["protocol"], answer["queries"], answer["database"]) == (protocol, 359, database)
    run = Run.open(digits_run)
    queries, items = compared(protocol, run.codes)
    assert (items is None) == (protocol == "paper")
    assert answer["map"] == evaluate(queries, items).map
    if protocol == "cifar10-2":
        labels = [run.codes(split).labels for split in ("train", "validation")]
        assert np.array_equal(items.labels, np.concatenate(labels))


def test_train_and_evaluate_give_the_same_map_to_the_last_digit(digits_run, pooled_run):
    for path in (digits_run, pooled_run):
        run = Run.open(path)
        assert dsh_json("evaluate", "--model", path)["map"] == run.metrics["map"] == evaluate_run(run).map


def test_what_a_pooled_run_answers(pooled_run):
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


def test_a_pooled_run_can_be_taken_again_and_resumed(pooled_run, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "POOLED_QUERIES", 100)
    monkeypatch.setattr(data, "POOLED_TRAIN", 500)
    dsh_json("train", "--like", pooled_run, "--epochs", 2, "--out", tmp_path / "again", "--quiet")
    again = Run.open(tmp_path / "again")
    assert (again.config.protocol, again.names()) == ("cifar10", Run.open(pooled_run).names())


def test_queries_that_were_trained_on_are_refused(digits_run, pooled_run):
    for protocol in ("cifar10", "cifar10-1"):
        line = one_line_error(dsh("evaluate", "--model", digits_run, "--protocol", protocol), 2)
        assert "has trained on most of them" in line
        assert f"dsh train --like {digits_run} --protocol {protocol}" in line
    for protocol in ("paper", "cifar10-2"):
        line = one_line_error(dsh("evaluate", "--model", pooled_run, "--protocol", protocol), 2)
        assert "has trained on some of them" in line
        assert f"dsh train --like {pooled_run} --protocol {protocol}" in line


def test_names_in_two_splits_are_found_out(run):
    names = json.loads((run / "splits.json").read_text())
    names["test"][3] = names["train"][5]
    edit(run / "splits.json", **names)
    line = one_line_error(dsh("evaluate", "--model", run), 2)
    assert "trained on 1 of the 359 queries" in line and names["train"][5] in line


def test_runs_without_splits_say_what_is_missing(run, pooled_run, tmp_path):
    (run / "codes" / "train.safetensors").unlink()
    assert "train.safetensors is missing" in one_line_error(dsh("evaluate", "--model", run), 1)
    assert dsh("evaluate", "--model", run, "--protocol", "paper").exit_code == 0
    (run / "splits.json").unlink()
    assert "splits.json cannot be read" in one_line_error(dsh("evaluate", "--model", run, "--protocol", "paper"), 1)
    copy = shutil.copytree(pooled_run, tmp_path / "pooled")
    (copy / "codes" / "database.safetensors").unlink()
    assert "database.safetensors is missing" in one_line_error(dsh("evaluate", "--model", copy), 1)


def test_runs_from_before_there_were_protocols_load(run):
    config = json.loads((run / "config.json").read_text())["config"]
    del config["protocol"]
    edit(run / "config.json", config=config)
    assert dsh_json("evaluate", "--model", run)["protocol"] == "test-vs-train"
    edit(run / "config.json", config=config | {"protocol": "mine"})
    assert "protocol is 'mine'" in one_line_error(dsh("evaluate", "--model", run), 1)
