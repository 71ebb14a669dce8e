"""Mutated files of a small run, opened in process: anything but an error in one line is a finding.

    python benchmarks/fuzz_runs.py --minutes 10 --seed 0

Files are mutated by bytes and by what JSON and the heads of safetensors say. In half of the rounds the digests are made
to fit again, as a stranger would, so that what lies behind them is reached. A tensor file that is taken must be read as
the safetensors library reads it. Findings go to standard output with what it takes to repeat them: seed and round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import shutil
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch

from dsh_cli import TrainConfig, load_splits, train
from dsh_cli.analysis.classes import class_table
from dsh_cli.errors import DshError, Interrupted
from dsh_cli.runs.check import check
from dsh_cli.runs.folders import list_runs, resumed
from dsh_cli.runs.record import METRICS, file_digest, own_digest
from dsh_cli.runs.run import Run
from dsh_cli.show.views.info import run_info, run_list
from dsh_cli.show.views.table import class_codes
from dsh_cli.training.events import EpochStats, Quiet

CONFIG = TrainConfig(data="digits", bits=12, epochs=3, batch_size=64, device="cpu", tensorboard=False)
SLOW, LARGE = 10.0, 1 << 30  # seconds of one round, and bytes of memory that all may take beyond what the start took

STRANGE: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.0, -0.5, 1e308, float("nan"), float("inf"),
    "", "x", "\x1b[31m", "\x00", "\ud800", "../../x", "[/b]", "a" * 5000, [], {}, [[]], [1], ["x"], {"x": 1}, {"": []},
]  # fmt: skip


class Stop(Quiet):
    """Ctrl-C after the second epoch."""

    def on_epoch(self, stats: EpochStats) -> None:
        if stats.epoch == 2:
            raise KeyboardInterrupt


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where a JSON value has others: containers, and the key or place in each."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(min(len(value), 5)):
            yield value, key
            yield from spots(value[key])


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        there = list(spots(content))
        if not there:
            break
        holder, key = rng.choice(there)
        match rng.randrange(5):
            case 0:
                del holder[key]
            case 1:
                holder[key] = holder[rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))]
            case 2 if isinstance(holder, dict):
                holder[str(rng.choice(STRANGE))] = holder.pop(key)
            case 3 if isinstance(holder[key], int):
                holder[key] += rng.choice((-1, 1, 256))
            case _:
                holder[key] = rng.choice(STRANGE)
    return json.dumps(content).encode()


def mutated_head(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose head says something else; sometimes with as many bytes as it then takes."""
    length = int.from_bytes(data[:8], "little")
    text = mutated_json(data[8 : 8 + length], rng)
    if rng.random() < 0.5:
        for one, other in (rng.choice([("U8", "I8"), ("U8", "I64"), ("F16", "BF16"), ("I32", "F32"), ("F32", "I32")]),):
            text = text.replace(f'"{one}"'.encode(), f'"{other}"'.encode(), 1)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def mutated_numbers(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with odd numbers in a tensor, or a tensor of another type or shape, well written."""
    arrays = safetensors.numpy.load(data)
    name = rng.choice(sorted(arrays))
    array = arrays[name]
    match rng.randrange(5):
        case 0:
            arrays[name] = array.astype(rng.choice([np.int64, np.float32, np.uint8, np.float64, np.bool_]))
        case 1:
            arrays[name] = array[..., None] if rng.random() < 0.5 else array.reshape(-1)
        case 2:
            arrays[name] = array[:-1] if array.ndim else array
        case 3 if array.dtype.kind == "f" and array.size:
            arrays[name] = array.copy()
            arrays[name].flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -np.inf, 0])
        case _ if array.size:
            arrays[name] = array.copy()
            arrays[name].flat[rng.randrange(array.size)] = rng.choice([0, 1, 127])
    return safetensors.numpy.save({key: np.ascontiguousarray(value) for key, value in arrays.items()})


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(changed) + 1)
        match rng.randrange(5):
            case 0 if place < len(changed):
                changed[place] ^= 1 << rng.randrange(8)
            case 1 if place < len(changed):
                changed[place] = rng.randrange(256)
            case 2:
                del changed[place:]
            case 3:
                del changed[place : place + rng.randrange(1, 64)]
            case _:
                changed[place:place] = rng.choice([b"[", b"{", b'"', b"\x00", b"9" * 500, b"," * 9, bytes(64)])
    return bytes(changed)


def answers(path: Path) -> None:
    """All that is asked of a run; each asked whether or not the one before went well."""
    run = Run.open(path)
    asked: list[Callable[[], object]] = [
        lambda: [run_info(run).table(80), run_info(run).json, list(run_info(run).plain())],
        lambda: run_list([run]).table(80),
        lambda: run.names(),
        lambda: run.centers(),
        lambda: run.load_state(),
        lambda: run.load_model()(torch.zeros(2, run.model.channels, run.model.image_size, run.model.image_size)),
        lambda: run.thumbnails("test", [0, 1]),
        lambda: list_runs(path.parent),
        lambda: check(path),
        *(lambda split=split: shown(run, split) for split in run.counts),
        lambda: gone_on(path),
    ]
    for ask in asked:
        with contextlib.suppress(DshError):
            ask()


def shown(run: Run, split: str) -> object:
    codes = run.codes(split, "relaxed", "thumbnails")
    view = class_codes(class_table(codes, split), run)
    return view.table(80), view.json, view.plain()


def gone_on(path: Path) -> None:
    with resumed(path) as run:
        run.load_state()
        run.centers()


def same_as_the_library(file: Path) -> None:
    """What is taken is read as the safetensors library reads it."""
    from dsh_cli.runs.storage import Tensors

    with file.open("rb") as opened:
        try:
            tensors = Tensors(opened)
        except ValueError:
            return
        with safetensors.safe_open(file, "numpy") as theirs:
            assert set(theirs.keys()) == set(tensors.tensors), "other tensors"
            for name in tensors.tensors:
                ours, other = tensors.array(name), theirs.get_tensor(name)
                assert ours.dtype == other.dtype and ours.shape == other.shape, name
                assert ours.tobytes() == other.tobytes(), name


def reseal(run: Path) -> None:
    """Digests that fit, as far as what is there can be read."""
    with contextlib.suppress(DshError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        content = json.loads((run / METRICS).read_bytes())
        for name in content["digests"]:
            with contextlib.suppress(DshError):
                content["digests"][name] = file_digest(run, name)
        content["digest"] = own_digest(content)
        (run / METRICS).write_text(json.dumps(content))


def made(folder: Path) -> list[Path]:
    """A finished run and an unfinished one."""
    splits = load_splits(CONFIG)
    train(CONFIG, splits, str(folder / "finished"))
    with contextlib.suppress(Interrupted):
        train(CONFIG, splits, str(folder / "part"), listeners=[Stop()])
    return [folder / "finished", folder / "part"]


def harm(run: Path, rng: random.Random) -> str:
    file = rng.choice(sorted(path for path in run.rglob("*") if path.is_file()))
    data = file.read_bytes()
    kinds = [mutated_bytes] + ([mutated_json] * 3 if file.suffix == ".json" else [mutated_head, mutated_numbers])
    kind = rng.choice(kinds)
    try:
        file.write_bytes(kind(data, rng))
    except (ValueError, RecursionError, safetensors.SafetensorError):  # of what was harmed before
        file.write_bytes(mutated_bytes(data, rng))
    if file.suffix == ".safetensors":
        same_as_the_library(file)
    if rng.random() < 0.5:
        reseal(run)
    return f"{file.relative_to(run)} by {kind.__name__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, help="this one alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        sound = made(Path(name, "sound"))
        for run in sound:
            answers(run)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        findings: Counter[str] = Counter()
        slowest, number, end = 0.0, options.round or 0, time.monotonic() + 60 * options.minutes
        while time.monotonic() < end:
            rng = random.Random(options.seed * 1_000_003 + number)
            copy = Path(name, "runs", "copy")
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(rng.choice(sound), copy)
            what, started = "", time.monotonic()
            try:
                for _ in range(rng.choice((1, 1, 2))):
                    what = harm(copy, rng)
                with contextlib.suppress(DshError):
                    answers(copy)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                finding = f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}"
                if not findings[finding]:
                    print(f"round {number}, {what}: {finding}: {str(error)[:200]}", flush=True)
                findings[finding] += 1
            seconds = time.monotonic() - started
            slowest = max(slowest, seconds)
            if seconds > SLOW:
                print(f"round {number}, {what}: {seconds:.1f} s", flush=True)
            number += 1
            if options.round is not None:
                break
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - memory
        print(
            f"{number:,} rounds of seed {options.seed}, {sum(findings.values())} findings of {len(findings)} kinds; "
            f"slowest {slowest:.2f} s, memory grown by {grown >> 20} MiB"
        )
        if findings or grown > LARGE or slowest > SLOW:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
