"""A run's retrieval under a named protocol, or between two labelled folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsh_cli.checkpoint import Run
from dsh_cli.codes import CodeSet
from dsh_cli.config import Protocol
from dsh_cli.data import DRAWN, load_labelled
from dsh_cli.errors import UsageError
from dsh_cli.metrics import CodeHealth, code_health
from dsh_cli.retrieval import AT, Retrieval, measure

# Queries, and the splits they are ranked against; none: themselves, self-matches excluded.
PROTOCOLS: dict[Protocol, tuple[str, tuple[str, ...]]] = {
    "test-vs-train": ("test", ("train",)),
    "paper": ("test", ()),  # DSH (Liu et al., CVPR 2016): queries and gallery are the test pictures
    "cifar10": ("test", ("database",)),  # DeepHash-pytorch: 1,000 query, 5,000 train, 54,000 others searched
    "cifar10-1": ("test", ("database",)),  # 1,000 query, 59,000 searched, 5,000 of them trained on
    "cifar10-2": ("test", ("train", "validation")),  # 10,000 test pictures, the 50,000 others searched
}


@dataclass(frozen=True)
class Evaluation:
    """One run's retrieval. `protocol` is a name, or what the folders were."""

    run: Run
    protocol: str
    retrieval: Retrieval
    health: CodeHealth  # of the codes searched


def evaluate(run: Run, protocol: Protocol | None = None, at: Sequence[int] = AT) -> Evaluation:
    """Measure a run under a protocol; without one, under that it was trained for.

    Raises:
        UsageError: the run has trained on queries of the protocol, or `at` is no rank.
        RunError: the run is unfinished or damaged.
    """
    protocol = protocol or run.config.protocol
    require_answerable(run, protocol)
    _require_ranks(at)
    query, searched = PROTOCOLS[protocol]
    queries = run.codes(query)
    database = joined([run.codes(split) for split in searched]) if searched else None
    health = code_health(queries if database is None else database)
    return Evaluation(run, protocol, measure(queries, database, at), health)


def evaluate_paths(run: Run, queries: str, database: str, at: Sequence[int] = AT) -> Evaluation:
    """Measure how pictures of one labelled folder find their class in another; classes are matched by name.

    Raises:
        DataError: one of them has no labelled pictures that can be read.
    """
    from dsh_cli.encoding import encode_dataset
    from dsh_cli.training import choose_device

    _require_ranks(at)
    size, channels = run.model.image_size, run.model.channels
    datasets = [load_labelled(path, size, channels) for path in (queries, database)]
    net = run.load_model(choose_device("auto"))
    asked, searched = (encode_dataset(net, dataset) for dataset in datasets)
    classes = tuple(dict.fromkeys(searched.classes + asked.classes))
    asked, searched = (_relabelled(codes, classes) for codes in (asked, searched))
    retrieval = measure(asked, searched, at)
    return Evaluation(run, f"{queries} against {database}", retrieval, code_health(searched))


def require_answerable(run: Run, protocol: Protocol) -> None:
    """Refuse a protocol whose queries the run has seen.

    Raises:
        UsageError: it has; the message says how to train for the protocol.
    """
    own = run.config.protocol
    if protocol in (own, "test-vs-train") or not (own in DRAWN or protocol in DRAWN):
        return
    if own not in DRAWN:
        seen = "its training pictures would be among the queries"
    elif protocol in DRAWN:
        seen = f"it was trained for {own}, which searches other pictures"
    else:
        seen = f"it drew its training pictures from all there are, for {own}, the queries of {protocol} included"
    raise UsageError(
        f"{run.path} cannot answer --protocol {protocol}: {seen}; "
        f"train for it with: dsh train --like {run.path} --protocol {protocol}"
    )


def require_comparable(runs: Sequence[Run], protocol: Protocol | None) -> None:
    """Refuse to take the mean of what cannot be compared.

    Raises:
        UsageError: the runs have codes of different length, or answer different protocols.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.model.bits != first.model.bits:
            raise UsageError(
                f"{first.path} has {first.model.bits} bits and {run.path} {run.model.bits}: evaluate them one by one"
            )
        if protocol is None and run.config.protocol != first.config.protocol:
            raise UsageError(
                f"{first.path} is for {first.config.protocol} and {run.path} for {run.config.protocol}: "
                "name one --protocol for all"
            )


def joined(parts: Sequence[CodeSet]) -> CodeSet:
    """Codes of several splits of one run, one after the other."""
    packed, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("packed", "labels"))
    return replace(parts[0], packed=packed, labels=labels, names=(), relaxed=None, thumbnails=None)


def _relabelled(codes: CodeSet, classes: tuple[str, ...]) -> CodeSet:
    numbers = np.array([classes.index(name) for name in codes.classes], np.int64)
    return replace(codes, labels=numbers[codes.labels], classes=classes)


def _require_ranks(at: Sequence[int]) -> None:
    for k in at:
        if k < 1:
            raise UsageError(f"--at {k}: mAP@K takes the first K ranks, 1 or more")
