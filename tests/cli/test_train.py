"""Options of `dsh train`, and what they become."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from dsh_cli.cli import app
from dsh_cli.config import TrainConfig
from dsh_cli.runs.run import Run
from tests.support.commands import dsh, dsh_json
from tests.support.runs import small_run


def test_every_field_of_the_config_is_an_option_and_no_option_is_lost() -> None:
    whole = get_command(app)
    assert isinstance(whole, TyperGroup)
    options = {parameter.name for parameter in whole.commands["train"].params}
    others = {"out", "like", "resume", "checkpoint_every", "form", "as_json", "quiet"}
    assert options == {field.name for field in fields(TrainConfig)} | others


def test_options_reach_the_run_as_they_were_given(tmp_path: Path) -> None:
    given: dict[str, Any] = {"bits": 5, "epochs": 1, "batch_size": 96, "seed": 3, "alpha": 0.0, "lr": 0.01}
    given |= {"margin": 9.0, "weight_decay": 0.0, "optimizer": "sgd", "schedule": "step", "centers": "none"}
    given |= {"memory": 1.5, "threads": 1, "hidden": 4, "dropout": 0.25, "fit": "pad", "interpolation": "bicubic"}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    dsh_json("train", "digits", *options, "--no-tensorboard", "--no-amp", "--out", tmp_path / "run", "--quiet")
    config = Run.open(tmp_path / "run").config
    expected = replace(TrainConfig(data="digits", amp=False, tensorboard=False), **given)
    settled = ("image_size", "augment", "grow", "mirror", "per_class")
    assert {name: value for name, value in asdict(config).items() if name not in settled} == {
        name: value for name, value in asdict(expected).items() if name not in settled
    }


def test_trainings_begun_at_once_without_a_place_have_runs_of_their_own(photos: Path) -> None:
    command = [sys.executable, "-m", "dsh_cli", "train", str(photos), "--epochs", "1", "--backbone", "small-resnet"]
    command += ["--bits", "8", "--no-tensorboard", "--quiet", "--json"]
    begun = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in begun]
    assert [process.returncode for process in begun] == [0, 0], said
    places = {json.loads(stdout)["run"] for stdout, _ in said}
    assert len(places) == 2 and all(Run.open(place).finished for place in places)


def test_of_runs_of_one_second_the_last_is_the_newest() -> None:
    for number in (1, 2, 9, 10):
        small_run(Path("runs", f"x-{number}"))
    assert [Path(run["run"]).name for run in dsh_json("info")["runs"]] == ["x-1", "x-2", "x-9", "x-10"]
    assert dsh("table", "--format", "plain").stderr == "using runs/x-10\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_where_the_result_cannot_be_written_it_says_that_the_run_is_finished(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dsh_cli", "train", "digits", "--epochs", "1", "--no-tensorboard", "--out", "run"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: cannot write the output: ")
    assert last.endswith("; run is finished: dsh info run")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such terminals")
def test_a_terminal_that_closes_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    import pty

    out, (ours, theirs) = tmp_path / "run", pty.openpty()
    script = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); from dsh_cli.cli import app; app()"
    words = ["train", "digits", "--epochs", "4000", "--no-tensorboard", "--out", str(out)]
    command = [sys.executable, "-c", script, *words]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    while not list(out.glob("state-*")):
        assert process.poll() is None
        os.read(ours, 65536)  # or it would wait for whoever shows it
    os.close(ours)
    process.send_signal(signal.SIGHUP)  # as the system does to whom the terminal is theirs
    assert process.wait(timeout=60) == 143
    assert Run.open(out).metrics["finished"] is False and Run.open(out).begun
