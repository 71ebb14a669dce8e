"""The alarm that tells a training whose codes have collapsed, or tell nothing of their classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from dsh_cli.analysis.health import CodeHealth, code_health
from dsh_cli.analysis.retrieval import mean_average_precision
from dsh_cli.codes.sets import CodeSet
from dsh_cli.training.events import EpochStats, Plan, Quiet

_ENOUGH = 10  # validation pictures, below which their codes tell nothing
_COMMON = 0.5  # share of one code from which a set of more than two classes counts as collapsed
_OWN = 0.6  # share of one class among the pictures of that code from which it is the code of that class
_LITTLE = 0.1  # mAP above chance from which codes tell of classes, however few they are
_DEVIATIONS, _ORDERS = 3, 20  # of the mAP by chance, from which they do too; orders of the labels that tell them


class CollapseAlarm(Quiet):
    """Warns once when the codes of the validation pictures have fallen to few values, or tell nothing of classes.

    Codes that are few at first may part later. So it looks from half of the training on, and speaks where an epoch has
    mended nothing of what the one before left, or where no epoch is left to mend it.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.raised = False

    def on_start(self, plan: Plan) -> None:
        self.config = plan.run.config
        self.before: CodeHealth | None = None  # after the epoch before, where there was something to warn of

    def on_epoch(self, stats: EpochStats) -> None:
        codes, epochs, lr = stats.validation, self.config.epochs, self.config.lr
        if self.raised or len(codes) < _ENOUGH or stats.epoch < epochs / 2:
            return
        now, before = code_health(codes), self.before
        found = _found(stats, now)
        self.before = now if found else None
        if found and (stats.epoch == epochs or (before and not _is_better(now, before))):
            self.raised = True
            self.warn(
                f"collapse: after epoch {stats.epoch} of {epochs} the {len(codes)} validation pictures of "
                f"{_class_count(codes)} classes {found}. Look whether the labels fit the pictures, or try `lr` "
                f"{lr / 3:.2g}, a larger `batch_size` or more `epochs`"
            )


def _is_better(now: CodeHealth, before: CodeHealth) -> bool:
    return now.distinct > before.distinct or now.largest_share < before.largest_share


def _found(stats: EpochStats, health: CodeHealth) -> str:
    """What is wrong with codes, in words, if anything: far fewer than classes, one of no class, or told by chance."""
    codes, class_count = stats.validation, _class_count(stats.validation)
    few = health.distinct == 1 or health.distinct < min(class_count, 2**codes.bits) / 2
    if class_count > 1 and (few or (class_count > 2 and codes.bits > 1 and _is_crowded(codes, health))):
        shared = "1 code" if health.distinct == 1 else f"{health.distinct} codes"
        return f"share {shared}, and {health.largest_share:.0%} have the same"
    if stats.validation_map is not None and _is_chance(codes, stats.validation_map):
        return f"have codes that tell nothing of their class: mAP {stats.validation_map:.3f}, as by chance"
    return ""


def _class_count(codes: CodeSet) -> int:
    return len(np.unique(codes.labels))


def _is_crowded(codes: CodeSet, health: CodeHealth) -> bool:
    """Whether most pictures have one code, and are of different classes."""
    if health.largest_share < _COMMON:
        return False
    _, places, counts = np.unique(codes.packed, axis=0, return_inverse=True, return_counts=True)
    of_one_code = codes.labels[places.ravel() == counts.argmax()]
    return bool(np.bincount(of_one_code).max() < _OWN * len(of_one_code))


def _is_chance(codes: CodeSet, value: float) -> bool:
    """Whether the mAP of codes is no better than if their labels were in another order."""
    chance = mean_average_precision(replace(codes, packed=np.zeros_like(codes.packed)))  # that of all orders
    if value >= chance + _LITTLE:
        return False
    rng = np.random.default_rng(0)
    others = [mean_average_precision(replace(codes, labels=rng.permutation(codes.labels))) for _ in range(_ORDERS)]
    return value < chance + _DEVIATIONS * float(np.std(others))
