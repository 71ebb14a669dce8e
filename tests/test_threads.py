"""How many processors are free of other programs, and that a training computes on so many."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dsh_cli import threads
from dsh_cli.config import TrainConfig
from dsh_cli.data.splits import load_splits
from dsh_cli.runs.run import Run
from dsh_cli.show.progress import begins
from dsh_cli.threads import default_workers, free_processors
from dsh_cli.training import recipe, start
from dsh_cli.training.events import Plan, Quiet, RunningLoss
from dsh_cli.training.loop import train
from dsh_cli.training.recipe import settle

CONFIG = TrainConfig(data="digits", epochs=1, batch_size=512, device="cpu", tensorboard=False)

# user nice system idle iowait irq softirq steal guest guest_nice
BEFORE = "cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 10 500 0 0 0 0 50 0\ncpu1 100 0 10 500 0 0 0 0 50 0\nintr 5 1\n"


@pytest.mark.parametrize(
    ("after", "free"),
    [
        ("cpu0 100 0 10 530 0 0 0 0 50 0\ncpu1 100 0 10 530 0 0 0 0 50 0\n", 2),
        ("cpu0 100 0 10 530 0 0 0 0 50 0\ncpu1 130 0 10 500 0 0 0 0 80 0\n", 1),  # one is busy with a guest
        ("cpu0 115 0 10 515 0 0 0 0 50 0\ncpu1 115 0 10 515 0 0 0 0 50 0\n", 1),  # one program, now here, now there
        ("cpu0 130 0 10 500 0 0 0 0 50 0\ncpu1 100 0 40 500 0 0 0 0 50 0\n", 1),  # none
        ("cpu0 105 0 10 525 0 0 0 0 50 0\ncpu1 100 0 10 530 0 0 0 0 50 0\n", 2),  # a little
        ("cpu0 100 30 10 500 0 0 0 0 50 0\ncpu1 100 0 10 500 30 0 0 0 50 0\n", 2),  # gives way; waits for a disk
        ("cpu0 100 0 10 500 0 0 0 30 50 0\ncpu1 100 0 10 530 0 0 0 0 50 0\n", 1),  # another machine's on this host
        (BEFORE, 2),  # the clock stands still, as in some containers
    ],
)
def test_what_others_use_is_not_free(after: str, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = tmp_path / "stat"
    stat.write_text(BEFORE)
    monkeypatch.setattr(threads, "_STAT", stat)
    monkeypatch.setattr(time, "sleep", lambda _: stat.write_text(after))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert free_processors() == free


def test_where_the_system_does_not_tell_all_are_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_STAT", tmp_path / "none")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert free_processors() == default_workers()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system does not tell")
def test_a_busy_program_is_seen() -> None:
    """On the one processor that this process is held to, whatever else runs on the machine."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(ours)})
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None
        busy.stdout.readline()
        before = threads._ticks()
        assert free_processors() == 1  # one is always left
        (free, all_), (free_before, all_before) = threads._ticks()[min(ours)], before[min(ours)]
        assert free - free_before < (all_ - all_before) / 2
    finally:
        busy.kill()
        busy.communicate()
        os.sched_setaffinity(0, ours)


def quiet_environment(monkeypatch: pytest.MonkeyPatch, processors: int, free: int) -> None:
    """So many processors, as many of them free, and nobody who says how many threads there shall be."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: processors)
    monkeypatch.setattr(recipe, "default_workers", lambda: processors)
    monkeypatch.setattr(recipe, "cores", lambda: processors)
    monkeypatch.setattr(recipe, "free_processors", lambda: free)


def test_a_training_leaves_busy_processors_to_others_unless_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_splits(CONFIG)
    quiet_environment(monkeypatch, 8, 5)
    assert settle(CONFIG, splits).threads == 5
    assert settle(replace(CONFIG, threads=7), splits).threads == 7
    quiet_environment(monkeypatch, 8, 8)
    assert settle(CONFIG, splits).threads == 8


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_an_environment_that_says_how_many_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_splits(CONFIG)
    quiet_environment(monkeypatch, 8, 1)
    monkeypatch.setenv(name, "8")
    assert settle(CONFIG, splits).threads == 8


def test_of_processors_that_share_cores_pytorch_takes_one_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_splits(CONFIG)
    for free, taken in ((8, 4), (5, 4), (2, 2)):
        quiet_environment(monkeypatch, 8, free)
        monkeypatch.setattr(recipe, "cores", lambda: 4)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
        assert settle(CONFIG, splits).threads == taken


@pytest.mark.parametrize(("asked", "spared"), [(None, 1), (1, 0), (2, 0)])
def test_what_is_left_to_others_is_told_where_nobody_asked_for_it(
    asked: int | None, spared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Told(Quiet):
        def on_start(self, plan: Plan) -> None:
            self.plan = plan

    told, before = Told(), torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("cores", "default_workers"):
        monkeypatch.setattr(recipe, name, lambda: 2)
    monkeypatch.setattr(start, "default_workers", lambda: 2)
    monkeypatch.setattr(recipe, "free_processors", lambda: 1)
    torch.set_num_threads(2)
    try:
        train(replace(CONFIG, threads=asked), load_splits(CONFIG), str(tmp_path / "run"), listeners=[told])
    finally:
        torch.set_num_threads(before)
    assert told.plan.spared == spared
    said = [line for line in begins(told.plan) if "processors" in line]
    assert said == ["computing on 1 of 2 processors, for others are busy (--threads has it otherwise)"] * spared


def test_cores_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(threads, "_CORES", tmp_path)
    for ours, found in (({0, 1, 2, 3}, 2), ({0, 2}, 1), ({1, 2}, 2), ({0, 9}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, ours=ours: ours)
        assert threads.cores() == found
    monkeypatch.setattr(threads, "_CORES", tmp_path / "none")
    assert threads.cores() == 2


def test_so_does_a_program_that_has_told_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_splits(CONFIG)
    quiet_environment(monkeypatch, 8, 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    assert settle(CONFIG, splits).threads == 6


class Threads(Quiet):
    """With how many threads each batch was computed."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def on_start(self, plan: Plan) -> None:
        self.asked = plan.run.config.threads

    def on_batch(self, epoch: int, done: int, loss: RunningLoss) -> None:
        self.seen.add(torch.get_num_threads())


def test_a_recipe_of_a_larger_machine_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = load_splits(CONFIG)
    quiet_environment(monkeypatch, 2, 1)
    assert settle(replace(CONFIG, threads=64), splits).threads == 2


def test_it_computes_on_so_many_and_says_so_in_the_run_and_the_caller_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, listener = torch.get_num_threads(), Threads()
    wanted = before + 1  # which no other test has
    for module in (recipe, start):
        monkeypatch.setattr(module, "default_workers", lambda: wanted)
    train(replace(CONFIG, threads=wanted), load_splits(CONFIG), str(tmp_path / "run"), listeners=[listener])
    assert (listener.seen, listener.asked, torch.get_num_threads()) == ({wanted}, wanted, before)
    assert Run.open(tmp_path / "run").config.threads == wanted
