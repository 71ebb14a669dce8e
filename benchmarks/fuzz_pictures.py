"""Hostile pictures: headers of small real files of every format, changed at random, decoded and probed.

python benchmarks/fuzz_pictures.py --minutes 10 --seed 0

A file must become pixels or an `ImageError`, within 10 s and 1 GiB. What does not is kept beside this file's output,
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from dsh_cli import bounded
from dsh_cli.errors import ImageError
from dsh_cli.pictures import decode
from tests.support import odd_pictures as odd

HEAD = 200  # bytes in which most changes are made
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with some of its bytes changed, mostly of its header, as numbers of one to four bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(changed), HEAD) if rng.random() < 0.8 else len(changed))
        width = rng.choice((1, 2, 4))
        match rng.randrange(5):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                value = rng.choice(NUMBERS) & ((1 << 8 * width) - 1)
                changed[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
            case 2:
                changed[at : at + width] = rng.randbytes(width)
            case 3 if len(changed) > 50:
                del changed[at : at + rng.randrange(20)]
            case 4:
                part = changed[at : at + rng.randrange(1, 40)]
                changed[at:at] = part * rng.choice((1, 2, 50, 5000))
    return bytes(changed)


def peak() -> int:
    """MiB that this process and any it has ended have taken at most."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(each).ru_maxrss for each in who) // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-pictures"), help="folder for files that failed")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = random.Random(arguments.seed)
    files = [(name, data) for name, data in {**odd.written(), **odd.special()}.items() if len(data) > 16]
    floor, outcomes, failed, longest = peak(), Counter[str](), 0, 0.0
    probed = Path(f"{arguments.keep}.tmp")
    ends = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < ends:
        name, data = rng.choice(files)
        hostile = mutated(data, rng)
        probed.write_bytes(hostile)
        began, wrong = time.monotonic(), ""
        for work in (lambda: decode.decode(hostile, decode.Form(32, 3)), lambda: decode.probe(probed)):  # noqa: B023 - at once
            try:
                work()
                outcomes["read"] += 1
            except ImageError as error:
                if "ends the process" in str(error):  # by a crash, or for want of memory
                    print(f"{name}: {error}", flush=True)
                outcomes[" ".join(str(error).split(" (")[0].split()[:4])] += 1
            except BaseException:
                wrong = traceback.format_exc()
                if "KeyboardInterrupt" in wrong:
                    raise
        seconds = time.monotonic() - began
        longest = max(longest, seconds)
        if outcomes.total() % 2000 == 0:
            bounded._end_idle()  # what a process took is known when it has ended
        if seconds > 2 * bounded.SECONDS:
            wrong = f"{seconds:.1f} s"
        if peak() - floor > 1024 and not failed:
            wrong = wrong or f"{peak() - floor} MiB, of this or one of the last thousand"
        if wrong:
            failed += 1
            arguments.keep.mkdir(exist_ok=True)
            (arguments.keep / f"{failed}-{name}").write_bytes(hostile)
            print(f"{name}: {wrong}", flush=True)
    bounded._end_idle()
    probed.unlink(missing_ok=True)
    print(f"{outcomes.total():,} readings, {failed} failed; longest {longest:.1f} s, at most {peak() - floor} MiB more")
    for outcome, count in outcomes.most_common():
        print(f"{count:>9,}  {outcome}")
    print(f"seed {arguments.seed}, {arguments.minutes:g} minutes, processors {len(os.sched_getaffinity(0))}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
