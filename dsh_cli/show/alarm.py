"""The alarm that tells a training whose codes have collapsed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dsh_cli.analysis.health import CodeHealth, code_health
from dsh_cli.codes.sets import CodeSet
from dsh_cli.training.events import EpochStats, Plan, Quiet

_WARM_UP = 200  # steps before which few codes are no cause for alarm
_ENOUGH = 10  # validation pictures, below which their codes tell nothing
_COMMON = 0.5  # share of one code from which a set of more than two classes counts as collapsed
_OWN = 0.6  # share of one class among the pictures of that code from which it is the code of that class


class CollapseAlarm(Quiet):
    """Warns once when the codes of the validation pictures fall to few values."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn = warn
        self.raised = False

    def on_start(self, plan: Plan) -> None:
        self.plan = plan
        self.config = plan.run.config

    def on_epoch(self, stats: EpochStats) -> None:
        steps, total = stats.epoch * self.plan.batches, self.config.epochs * self.plan.batches
        if self.raised or len(stats.validation) < _ENOUGH or steps < min(_WARM_UP, total / 3):
            return
        health = code_health(stats.validation)
        class_count = len(set(stats.validation.labels.tolist()))
        enough = min(class_count, 2**self.config.bits)
        crowded = class_count > 2 and self.config.bits > 1 and _is_crowded(stats.validation, health)
        if class_count > 1 and (health.distinct < enough / 2 or health.distinct == 1 or crowded):
            self.raised = True
            codes = "1 code" if health.distinct == 1 else f"{health.distinct} codes"
            self.warn(
                f"collapse: after epoch {stats.epoch} the {len(stats.validation)} validation pictures of {class_count} "
                f"classes share {codes}, and {health.largest_share:.0%} have the same. "
                f"If the next epochs do not part them, try `lr` {self.config.lr / 3:.2g}, a larger `batch_size`, "
                "or look whether the labels fit the pictures"
            )


def _is_crowded(codes: CodeSet, health: CodeHealth) -> bool:
    """Whether most pictures have one code, and are of different classes."""
    if health.largest_share < _COMMON:
        return False
    _, places, counts = np.unique(codes.packed, axis=0, return_inverse=True, return_counts=True)
    of_one_code = codes.labels[places.ravel() == counts.argmax()]
    return bool(np.bincount(of_one_code).max() < _OWN * len(of_one_code))
