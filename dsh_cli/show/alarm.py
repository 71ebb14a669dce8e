"""The alarm that tells a training whose codes have collapsed, or tell nothing of their classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dsh_cli.analysis.health import code_health
from dsh_cli.analysis.protocols import compared
from dsh_cli.analysis.retrieval import mean_average_precision
from dsh_cli.codes.sets import CodeSet, sample, taken
from dsh_cli.config import UNSEEN, Recipe
from dsh_cli.training.events import Quiet, TrainResult
from dsh_cli.training.recipe import unusual
from dsh_cli.words import counted

if TYPE_CHECKING:
    from dsh_cli.data.splits import Splits

_COMMON = 0.5  # share of one code from which a set of more than two classes counts as collapsed
_OWN = 0.6  # share of one class among the pictures of that code from which it is the code of that class
_LITTLE = 0.1  # mAP
_DEVIATIONS, _ORDERS = (
    3,
    20,
)  # of the mAP by chance, from which codes tell of classes; orders of the labels that tell it
_QUERIES = 500  # whose labels are put in other orders, at most


class CollapseAlarm(Quiet):
    """Warns when a training is finished and its codes have fallen to few values, or tell nothing of classes.

    Not before: codes that are few may part as late as in the last epochs, when the rate has fallen. It looks at those
    that are measured, and at those of the training pictures, whose every class is there.

    Args:
        warn: takes what is to be said.
        splits: the data, by which settings are told that are not the default.
    """

    def __init__(self, warn: Callable[[str], None], splits: Splits) -> None:
        self.warn, self.splits = warn, splits

    def on_end(self, result: TrainResult) -> None:
        run = result.run
        if not run.classes or run.config.method != "dsh":
            return
        found = _few(run.codes("train")) or _by_chance(result)
        if found:
            self.warn(f"collapse: {found}. {_advice(run.config, self.splits)}")


def _few(codes: CodeSet) -> str:
    """In words, if codes of the training pictures are far fewer than classes, or one of no class has most pictures."""
    health, class_count = code_health(codes), len(np.unique(codes.labels))
    few = health.distinct == 1 or health.distinct < min(class_count, 2**codes.bits) / 2
    crowded = class_count > 2 and codes.bits > 1 and health.largest_share >= _COMMON and _of_no_class(codes)
    if class_count < 2 or not (few or crowded):
        return ""
    shared = counted(health.distinct, "code")
    same = "" if health.distinct == 1 else f", and {health.largest_share:.0%} have the same"
    return f"the {len(codes):,} training pictures of {class_count:,} classes share {shared}{same}"


def _of_no_class(codes: CodeSet) -> bool:
    """Whether pictures of the most common code are of different classes."""
    _, places, counts = np.unique(codes.packed, axis=0, return_inverse=True, return_counts=True)
    of_one_code = codes.labels[places.ravel() == counts.argmax()]
    return bool(np.bincount(of_one_code).max() < _OWN * len(of_one_code))


def _by_chance(result: TrainResult) -> str:
    """In words, if the mAP of a run is no better than if its labels were in another order.

    Nothing of so few pictures that those of another order may come to much more or less.
    """
    run = result.run
    if result.map is None:
        return ""
    queries, database = compared(run.config.protocol, run.codes, UNSEEN in run.counts)
    queries = taken(queries, sample(queries.labels, _QUERIES, 0))
    rng = np.random.default_rng(0)
    found, *others = (
        mean_average_precision(replace(queries, labels=labels), database)
        for labels in (queries.labels, *(rng.permutation(queries.labels) for _ in range(_ORDERS)))
    )
    chance, doubt = float(np.mean(others)), _DEVIATIONS * float(np.std(others))
    if doubt > _LITTLE or found >= chance + doubt:
        return ""
    return f"codes tell nothing of their classes: mAP {result.map:.3f}, and {chance:.3f} by chance"


def _advice(config: Recipe, splits: Splits) -> str:
    """What to try."""
    usual = unusual(config, splits)
    if not usual:
        return "Look whether the labels fit the pictures, or try more `epochs`"
    named = ", ".join(f"`{name}` {_said(getattr(config, name))} ({_said(value)})" for name, value in usual.items())
    return f"Try the defaults, in brackets, of {named}; or look whether the labels fit the pictures"


def _said(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else f"{value}"
