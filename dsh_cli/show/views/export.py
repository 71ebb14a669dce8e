"""A model that was exported."""

from __future__ import annotations

import shlex
from typing import Any

from dsh_cli.export import Export
from dsh_cli.show.views.shared import View, pairs_table, plain_record, printable
from dsh_cli.words import counted

_SHOWN = 5  # bits that differ


def exported(made: Export) -> View:
    """What was written, and how it compares with PyTorch."""
    found = made.compared
    record: dict[str, Any] = {
        "out": made.file,
        "bits": made.bits,
        "bytes": made.size,
        "compared": found.count,
        "differ": len(found.differing),
        "max_difference": found.largest,
    }
    differing = [
        {"name": name, "bit": one.bit, "torch": one.torch, "onnx": one.onnx}
        for name, one in zip(made.names, found.differing, strict=True)
    ]
    rows = {
        "file": f"{printable(made.file)}, {made.size / 1e6:.1f} MB",
        "codes": f"{counted(made.bits, 'bit')}; {_agreement(made)}",
        "outputs": f"differ from those of PyTorch by {found.largest:.2g} at most",
        "next": f"dsh hash PICTURE --model {printable(shlex.quote(made.file))}",
    }
    lines = [*plain_record(record), *(("differing", *one.values()) for one in differing)]
    return View(lambda width: pairs_table(rows), lines, record | {"differing": differing})


def _agreement(made: Export) -> str:
    found = made.compared
    if not found.differing:
        return f"of {found.count:,} compared, none differs from PyTorch's"
    shown = [
        f"{printable(name)} bit {one.bit} ({one.torch:.1g}, {one.onnx:.1g})"
        for name, one in zip(made.names[:_SHOWN], found.differing, strict=False)
    ]
    more = f" and {len(found.differing) - _SHOWN} more" if len(found.differing) > _SHOWN else ""
    return f"of {found.count:,} compared, {len(found.differing)} bits differ: {', '.join(shown)}{more}"
